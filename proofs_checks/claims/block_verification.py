"""Claims about single-path verification: token, block and greedy block. [BV] arXiv:2403.10444."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers.greedy_block import verify_greedy_block
from specbound.theory import block_transport, linear_program, single_path, token_level
from specbound.theory.contexts import ModelPair
from specbound.theory.prefix_tree import Array, PrefixTree

from ..laws.law import exact_law
from ..laws.stream import expected_tokens, stream_law
from .evidence import LAW_TOLERANCE, Subject, lossless, single_path_cases, wrong_at
from .instances import described, random_instances, simple_instances, sizes_run
from .ledger import Outcome, Paper, claim
from .symbolic import (
    Accepted,
    Keep,
    Proof,
    always_keep,
    block_acceptance,
    block_keep,
    block_verification_is_lossless,
    block_verification_is_optimal,
    token_acceptance,
)

BV = Paper("BV", "Block Verification", "2403.10444")
PUBLISHED = PrefixTree.iid([Fraction(1, 3), Fraction(2, 3)], [Fraction(2, 3), Fraction(1, 3)], 2)
LP_TOLERANCE = 1e-9

Phi = Callable[[PrefixTree], Array]


@claim(
    "BV-lossless",
    paper=BV,
    kind="stated",
    source="[BV] Theorem 1",
    statement="Block verification leaves the target's law unchanged.",
    tested="runtime verifier `block`",
    subject="block",
    control=wrong_at("block", vocab=3, length=2, paths=1),
)
def block_verification_keeps_the_law(verifier: Subject, deep: bool) -> Outcome:
    return lossless(verifier, single_path_cases(deep))


def symbolic_outcome(proofs: dict[int, Proof], identities: str) -> Outcome:
    """Proved if no case fails; the evidence counts the cases, the counterexample names the first that fails."""
    for length, proof in proofs.items():
        if proof.failed:
            evidence = f"SymPy: {identities} fails in {len(proof.failed)} of {proof.cases} cases at L = {length}"
            return Outcome("refuted", evidence, f"V=2, L={length}, {proof.failed[0]}")
    counts = " and ".join(f"all {proof.cases} cases at L = {length}" for length, proof in proofs.items())
    if not all(proof.holds for proof in proofs.values()):
        return Outcome("undecided", f"SymPy: nothing to look at in {counts}")
    return Outcome("proved", f"SymPy: {identities} holds identically in {counts}")


@claim(
    "BV-lossless-symbolic",
    paper=BV,
    kind="stated",
    source="[BV] Theorem 1",
    statement="Block verification leaves the target's law unchanged.",
    tested="the formulas of [BV] Algorithm 2, V = 2, L <= 2, all parameter values",
    subject=block_keep,
    control=always_keep,
)
def block_verification_keeps_the_law_symbolically(keep: Keep, deep: bool) -> Outcome:
    proofs = {length: block_verification_is_lossless(length, keep) for length in (1, 2)}
    return symbolic_outcome(proofs, "Pr(kept) = c and the stream law of the target")


@claim(
    "BV-optimal",
    paper=BV,
    kind="stated",
    source="[BV] Theorem 2",
    statement="No valid verification algorithm for one draft has a larger expected acceptance length than block "
    "verification.",
    tested="the closed form of block verification against the LP over all stateless lossless verifiers, which may use "
    "off-path probabilities: its certified optimum in rationals, and the objective that HiGHS returns",
    subject=single_path.acceptance,
    control=token_level.acceptance,
)
def block_verification_is_optimal_exactly(phi: Phi, deep: bool) -> Outcome:
    count = 0
    for tree in simple_instances(3 if deep else 2, 3, 4 if deep else 3):
        best = single_path.optimum(tree)
        if best.exact is None:
            return Outcome("undecided", f"no exact certificate on {described(tree)}")
        value = phi(tree)[1:].sum()
        count += 1
        if value != best.exact:
            return Outcome("refuted", f"{value} against a certified optimum of {best.exact}", described(tree))
    trees = list(random_instances(200 if deep else 30))
    worst = 0.0
    for tree in trees:
        value, best_found = phi(tree)[1:].sum(), highs_objective(tree)
        worst = max(worst, abs(value - best_found))
        if worst > LP_TOLERANCE:
            return Outcome("refuted", f"{value:.9f} against {best_found:.9f} from HiGHS", described(tree))
    evidence = (
        f"primal = dual in fractions on {count} rational instances; the objective of HiGHS, as returned, differs by at "
        f"most {worst:.0e} on {len(trees)} random trees"
    )
    return Outcome("holds", evidence)


def highs_objective(tree: PrefixTree) -> float:
    """The raw objective of HiGHS for max sum phi, phi(wy) <= p(y|w) phi(w), phi(w) <= Q(w)."""
    blocks = {
        "chain": linear_program.chain_rows(tree, tree.target),
        "draft": linear_program.cap_rows(tree, tree.draft_joint),
    }
    return linear_program.maximise(np.ones(tree.size - 1), blocks).value


@claim(
    "BV-optimal-symbolic",
    paper=BV,
    kind="stated",
    source="[BV] Theorem 2",
    statement="No valid verification algorithm for one draft has a larger expected acceptance length than block "
    "verification.",
    tested="closed form against a dual point feasible by its form, V = 2, L <= 2, all parameter values",
    subject=block_acceptance,
    control=token_acceptance,
)
def block_verification_is_optimal_symbolically(accepted: Accepted, deep: bool) -> Outcome:
    proofs = {length: block_verification_is_optimal(length, accepted) for length in ((1, 2, 3) if deep else (1, 2))}
    return symbolic_outcome(proofs, "primal = dual value, as polynomials,")


@claim(
    "BV-at-least-token",
    paper=BV,
    kind="stated",
    source="[BV] Theorem 2 and Section 3",
    statement="Block verification accepts at least as many tokens as token verification on every instance.",
    tested="closed-form values in fractions",
    subject=(single_path.acceptance, token_level.acceptance),
    control=(token_level.acceptance, single_path.acceptance),
)
def block_is_at_least_token(pair: tuple[Phi, Phi], deep: bool) -> Outcome:
    better, worse = pair
    sizes = []
    for tree in simple_instances(3, 3 if deep else 2, 3):
        sizes.append((tree.vocab, tree.length, 1))
        if better(tree)[1:].sum() < worse(tree)[1:].sum():
            return Outcome("refuted", f"after {len(sizes)} instances", described(tree))
    return Outcome("holds", f"in fractions, {sizes_run(sizes)}")


@claim(
    "BV-example",
    paper=BV,
    kind="stated",
    source="[BV] Section 1, motivating example",
    statement="With draft (2/3,1/3), target (1/3,2/3) and two drafted tokens, token verification keeps 10/9, block "
    "verification 11/9, and an algorithm with full information 12/9 tokens in expectation.",
    tested="closed forms in fractions with certificates, and the exact law of the runtime verifiers",
    subject=("token", "block"),
    control=("token", "greedy-block"),
)
def published_example(verifiers: tuple[str, str], deep: bool) -> Outcome:
    values = [module.optimum(PUBLISHED).exact for module in (token_level, single_path, block_transport)]
    laws = [exact_law(name, PUBLISHED).acceptance_length for name in verifiers]
    evidence = f"{values[0]}, {values[1]}, {values[2]} (= 12/9); the runtime's laws give {laws[0]:.12f}, {laws[1]:.12f}"
    published = [Fraction(10, 9), Fraction(11, 9), Fraction(12, 9)]
    close = all(abs(law - float(value)) < LAW_TOLERANCE for law, value in zip(laws, published[:2], strict=True))
    if values == published and close:
        return Outcome("proved", evidence)
    return Outcome("refuted", evidence, described(PUBLISHED))


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
    paper=BV,
    kind="stated",
    source="[BV] Appendix, greedy block verification",
    statement="In one call greedy block verification attains the block-transport optimum, the sum of min(P, Q).",
    tested="exact law of the runtime verifier `greedy-block` against the certified optimum",
    subject="greedy-block",
    control="block",
)
def greedy_attains_block_transport(verifier: Subject, deep: bool) -> Outcome:
    cases = [*single_path_cases(deep), (PUBLISHED, 1)]
    worst = 0.0
    for tree, _ in cases:
        kept, best = exact_law(verifier, tree).acceptance_length, block_transport.optimum(tree).value
        worst = max(worst, abs(kept - best))
        if worst > LAW_TOLERANCE:
            return Outcome("refuted", f"it keeps {kept:.9f}, the certified optimum is {best:.9f}", described(tree))
    sizes = sizes_run([(tree.vocab, tree.length, 1) for tree, _ in cases])
    return Outcome("holds", f"difference at most {worst:.0e}, {sizes}")


@claim(
    "GREEDY-lossless",
    paper=BV,
    kind="stated",
    source="[BV] Appendix, greedy block verification",
    statement="With the modified target law at later positions, greedy block verification is lossless.",
    tested="exact law of the first N tokens over several calls of the runtime verifier `greedy-block`",
    subject="greedy-block",
    control=without_modification,
)
def greedy_is_lossless_with_modification(verifier: Subject, deep: bool) -> Outcome:
    shapes = ((1, 3), (2, 4), (3, 4), (3, 5))
    worst, count = 0.0, 0
    for length, tokens in shapes:
        pairs = {described(PUBLISHED): PUBLISHED_PAIR}
        for seed in range(6 if deep else 2):
            depth = tokens + length - 1
            pairs[f"V=2, PrefixTree.random(2, {depth}, {seed})"] = ModelPair.from_tree(
                PrefixTree.random(2, depth, seed)
            )
        for where, pair in pairs.items():
            worst = max(worst, stream_law(verifier, pair, length, tokens).total_variation(pair.target_law(tokens)))
            count += 1
            if worst > LAW_TOLERANCE:
                return Outcome(
                    "refuted", f"total variation {worst:.6f} of the first {tokens} tokens, L={length}", where
                )
    shown = ", ".join(f"{length}/{tokens}" for length, tokens in shapes)
    return Outcome("holds", f"total variation <= {worst:.0e} on {count} cases, V = 2, L/N in {shown}")


@claim(
    "GREEDY-needs-modification",
    paper=BV,
    kind="stated",
    source="[BV] Appendix, greedy block verification",
    statement="Without modifying the target law of later positions, greedy block verification is not lossless.",
    tested="the runtime verifier with nothing carried over, on the published example: one instance proves it",
    subject=without_modification,
    control="greedy-block",
)
def greedy_needs_the_modification(verifier: Subject, deep: bool) -> Outcome:
    law = stream_law(verifier, PUBLISHED_PAIR, 2, 2)
    distance = nearby_fraction(law.total_variation(PUBLISHED_PAIR.target_law(2)))
    laws = {
        name: ", ".join(str(nearby_fraction(found.get(pair, 0.0))) for pair in ((0, 0), (0, 1), (1, 0), (1, 1)))
        for name, found in (("emitted", law.tokens), ("target", PUBLISHED_PAIR.target_law(2)))
    }
    evidence = f"first two tokens: emitted ({laws['emitted']}), target ({laws['target']}), total variation {distance}"
    return Outcome("proved" if distance > 0 else "undecided", evidence)


@claim(
    "GREEDY-several-calls",
    paper=BV,
    kind="reading",
    source="a reading of [BV] Appendix that users may take for granted",
    statement="Because it keeps more tokens per call, greedy block verification is ahead of block verification over "
    "several calls.",
    tested="expected tokens after n calls of the runtime verifiers, L = 2",
    subject=("greedy-block", "block"),
    control=("block", "token"),
)
def greedy_is_ahead_over_several_calls(verifiers: tuple[str, str], deep: bool) -> Outcome:
    ahead, other = (expected_tokens(name, PUBLISHED_PAIR, 2, 3) for name in verifiers)
    rows = [
        f"n={n}: {nearby_fraction(a)} against {nearby_fraction(b)}"
        for n, (a, b) in enumerate(zip(ahead, other, strict=True), 1)
    ]
    behind = [row for row, a, b in zip(rows, ahead, other, strict=True) if a < b - LAW_TOLERANCE]
    evidence = f"expected tokens, {verifiers[0]} against {verifiers[1]}: {'; '.join(rows)}"
    if not behind:
        return Outcome("holds", evidence)
    return Outcome("refuted", evidence, f"{described(PUBLISHED)}; {behind[0]} tokens after so many calls")
