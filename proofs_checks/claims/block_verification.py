"""Claims about single-path verification: token, block and greedy block. [BV] arXiv:2403.10444."""

from __future__ import annotations

from fractions import Fraction

from specbound.proofs_checks.law import exact_law
from specbound.proofs_checks.ledger import Outcome, claim, described, random_instances, simple_instances
from specbound.proofs_checks.symbolic import block_verification_is_lossless, block_verification_is_optimal
from specbound.theory import block_transport, single_path, token_level
from specbound.theory.prefix_tree import PrefixTree

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
