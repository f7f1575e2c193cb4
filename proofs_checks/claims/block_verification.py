"""Claims about single-path verification: token, block and greedy block. [BV] arXiv:2403.10444."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers.greedy_block import verify_greedy_block
from specbound.theory import block_transport, single_path, token_level
from specbound.theory.contexts import ModelPair
from specbound.theory.prefix_tree import PrefixTree

from ..laws.law import exact_law
from ..laws.stream import expected_tokens, stream_law
from .ledger import Outcome, claim, described, random_instances, simple_instances
from .symbolic import block_verification_is_lossless, block_verification_is_optimal

LAW_TOLERANCE = 1e-12
PUBLISHED = PrefixTree.iid([Fraction(1, 3), Fraction(2, 3)], [Fraction(2, 3), Fraction(1, 3)], 2)


def worst_law(name: str, trees: list[PrefixTree], paths: int = 1) -> float:
    """Largest total variation distance to the target law over the trees."""
    return max(exact_law(name, tree, paths).total_variation(tree.target_law()) for tree in trees)


def _lossless(name: str, deep: bool) -> Outcome:
    trees = [*random_instances(1000 if deep else 150, 4, 4), *simple_instances(2, 2, 4)]
    worst = worst_law(name, trees)
    evidence = f"exact law of the production code on {len(trees)} trees, V <= 4, L <= 4: total variation <= {worst:.0e}"
    return Outcome("holds" if worst < LAW_TOLERANCE else "refuted", evidence)


@claim(
    "BV-token-lossless",
    source="arXiv:2211.17192, Theorem 1 (Appendix A.1); restated in [BV] Section 2",
    statement="Token verification leaves the target's law unchanged.",
    tested="runtime verifier `token`",
)
def token_verification_is_lossless(deep: bool) -> Outcome:
    return _lossless("token", deep)


@claim(
    "BV-lossless",
    source="[BV] Theorem 1",
    statement="Block verification leaves the target's law unchanged.",
    tested="runtime verifier `block`",
)
def block_verification_keeps_the_law(deep: bool) -> Outcome:
    return _lossless("block", deep)


@claim(
    "BV-lossless-symbolic",
    source="[BV] Theorem 1",
    statement="Block verification leaves the target's law unchanged.",
    tested="the formulas of [BV] Algorithm 2, V = 2, L <= 2, all parameter values",
)
def block_verification_keeps_the_law_symbolically(deep: bool) -> Outcome:
    proofs = [block_verification_is_lossless(length) for length in (1, 2)]
    evidence = f"SymPy: kept mass and stream law are identities in all {sum(proof.cases for proof in proofs)} cases"
    return Outcome("proved" if all(proof.holds for proof in proofs) else "undecided", evidence)


@claim(
    "BV-optimal",
    source="[BV] Theorem 2",
    statement="No valid verification algorithm for one draft has a larger expected acceptance length than block "
    "verification.",
    tested="the LP over all stateless lossless verifiers, which may use off-path probabilities, against the closed "
    "form; certificates in rationals",
)
def block_verification_is_optimal_exactly(deep: bool) -> Outcome:
    count = 0
    for tree in simple_instances(3 if deep else 2, 3, 4 if deep else 3):
        solution = single_path.optimum(tree)
        count += 1
        if solution.exact is None:
            return Outcome("undecided", f"no exact certificate on {described(tree)}")
    trees = list(random_instances(200 if deep else 30))
    worst = max(abs(single_path.linear_optimum(tree).value - single_path.optimum(tree).value) for tree in trees)
    evidence = (
        f"primal = dual in fractions on {count} rational instances; HiGHS on the same LP agrees to {worst:.0e} "
        f"on {len(trees)} random trees"
    )
    return Outcome("holds" if worst < 1e-9 else "refuted", evidence)


@claim(
    "BV-optimal-symbolic",
    source="[BV] Theorem 2",
    statement="No valid verification algorithm for one draft has a larger expected acceptance length than block "
    "verification.",
    tested="closed form against a dual point feasible by its form, V = 2, L <= 2, all parameter values",
)
def block_verification_is_optimal_symbolically(deep: bool) -> Outcome:
    proofs = [block_verification_is_optimal(length) for length in ((1, 2, 3) if deep else (1, 2))]
    evidence = f"SymPy: primal and dual value are one polynomial in all {sum(proof.cases for proof in proofs)} cases"
    return Outcome("proved" if all(proof.holds for proof in proofs) else "undecided", evidence)


@claim(
    "BV-at-least-token",
    source="[BV] Theorem 2 and Section 3",
    statement="Block verification accepts at least as many tokens as token verification on every instance.",
    tested="closed-form values in fractions",
)
def block_is_at_least_token(deep: bool) -> Outcome:
    count = 0
    for tree in simple_instances(3, 3, 3 if deep else 2):
        count += 1
        if single_path.optimum(tree).exact < token_level.optimum(tree).exact:  # type: ignore[operator]
            return Outcome("refuted", f"after {count} instances", described(tree))
    return Outcome("holds", f"in fractions on {count} rational instances, V <= 3, L <= 3")


@claim(
    "BV-example",
    source="[BV] Section 1, motivating example",
    statement="With draft (2/3,1/3), target (1/3,2/3) and two drafted tokens, token verification keeps 10/9, block "
    "verification 11/9, and an algorithm with full information 12/9 tokens in expectation.",
    tested="closed forms in fractions with certificates, and the exact law of the runtime verifiers",
)
def published_example(deep: bool) -> Outcome:
    values = [module.optimum(PUBLISHED).exact for module in (token_level, single_path, block_transport)]
    laws = [exact_law(name, PUBLISHED).acceptance_length for name in ("token", "block")]
    same = values == [Fraction(10, 9), Fraction(11, 9), Fraction(12, 9)]
    close = all(abs(law - float(value)) < LAW_TOLERANCE for law, value in zip(laws, values, strict=False))
    evidence = f"{values[0]}, {values[1]}, {values[2]} (= 12/9); the runtime's laws give {laws[0]:.12f}, {laws[1]:.12f}"
    return Outcome("proved" if same and close else "refuted", evidence)


# ---------------------------------------------------------------------- greedy block verification

PUBLISHED_PAIR = ModelPair.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3])


def without_modification(batch: Batch, draws: Draws) -> Verdict:
    """Greedy block verification whose later positions follow the plain target (nothing is carried)."""
    return replace(verify_greedy_block(batch, draws), carry=None)


def nearby_fraction(value: float, denominator: int = 100_000) -> Fraction:
    """The simple fraction that a float stands for.

    Raises:
        ValueError: if none with that denominator is within 1e-12.
    """
    fraction = Fraction(value).limit_denominator(denominator)
    if abs(float(fraction) - value) > LAW_TOLERANCE:
        raise ValueError(f"{value} is no fraction with a denominator up to {denominator}")
    return fraction


@claim(
    "GREEDY-transport",
    source="[BV] Appendix, greedy block verification",
    statement="In one call greedy block verification attains the block-transport optimum, the sum of min(P, Q).",
    tested="exact law of the runtime verifier `greedy-block` against the certified optimum",
)
def greedy_attains_block_transport(deep: bool) -> Outcome:
    trees = [*random_instances(500 if deep else 80, 4, 4), PUBLISHED]
    gaps = [exact_law("greedy-block", tree).acceptance_length - block_transport.optimum(tree).value for tree in trees]
    worst = max(map(abs, gaps))
    evidence = f"difference at most {worst:.0e} on {len(trees)} trees, V <= 4, L <= 4"
    return Outcome("holds" if worst < LAW_TOLERANCE else "refuted", evidence)


@claim(
    "GREEDY-lossless",
    source="[BV] Appendix, greedy block verification",
    statement="With the modified target law at later positions, greedy block verification is lossless.",
    tested="exact law of the first N tokens over several calls of the runtime verifier `greedy-block`",
)
def greedy_is_lossless_with_modification(deep: bool) -> Outcome:
    worst, count = 0.0, 0
    for length, tokens in ((2, 4), (3, 4), (3, 5)):
        depth = tokens + length - 1
        pairs = [
            PUBLISHED_PAIR,
            *(ModelPair.from_tree(PrefixTree.random(2, depth, seed)) for seed in range(6 if deep else 2)),
        ]
        for pair in pairs:
            worst = max(
                worst, stream_law("greedy-block", pair, length, tokens).total_variation(pair.target_law(tokens))
            )
            count += 1
    evidence = f"total variation <= {worst:.0e} on {count} cases, L 2..3, N 4..5, nested layers included"
    return Outcome("holds" if worst < LAW_TOLERANCE else "refuted", evidence)


@claim(
    "GREEDY-needs-modification",
    source="[BV] Appendix, greedy block verification",
    statement="Without modifying the target law of later positions, greedy block verification is not lossless.",
    tested="the runtime verifier with nothing carried over, on the published example",
)
def greedy_needs_the_modification(deep: bool) -> Outcome:
    law = stream_law(without_modification, PUBLISHED_PAIR, 2, 2)
    distance = nearby_fraction(law.total_variation(PUBLISHED_PAIR.target_law(2)))
    laws = {
        name: ", ".join(str(nearby_fraction(found.get(pair, 0.0))) for pair in ((0, 0), (0, 1), (1, 0), (1, 1)))
        for name, found in (("emitted", law.tokens), ("target", PUBLISHED_PAIR.target_law(2)))
    }
    evidence = f"first two tokens: emitted ({laws['emitted']}), target ({laws['target']}), total variation {distance}"
    return Outcome("holds" if distance > 0 else "refuted", evidence)


@claim(
    "GREEDY-several-calls",
    source="a reading of [BV] Appendix that users may take for granted",
    statement="Because it keeps more tokens per call, greedy block verification is ahead of block verification over "
    "several calls.",
    tested="expected tokens after n calls of the runtime verifiers, L = 2",
)
def greedy_is_ahead_over_several_calls(deep: bool) -> Outcome:
    greedy, block = (expected_tokens(name, PUBLISHED_PAIR, 2, 3) for name in ("greedy-block", "block"))
    rows = [
        f"n={n}: {nearby_fraction(a)} against {nearby_fraction(b)}"
        for n, (a, b) in enumerate(zip(greedy, block, strict=True), 1)
    ]
    behind = [row for row, a, b in zip(rows, greedy, block, strict=True) if a < b - LAW_TOLERANCE]
    evidence = "expected tokens, greedy against block: " + "; ".join(rows)
    if not behind:
        return Outcome("holds", evidence)
    return Outcome("refuted", evidence, f"{described(PUBLISHED)}; {behind[0]} tokens after so many calls")
