"""Claims about K drafted paths: the lossless optimum, GBV, and this project's own verifiers.

[GBV] arXiv:2602.16961. The optimum of stateless lossless verifiers of K independent paths is an LP; its certified
value stands above everything here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from specbound.runtime import registry
from specbound.runtime.verifiers.table import table_verifier
from specbound.theory import known_values, level_by_level, multi_path, selection, single_path
from specbound.theory.multi_path import antichain, coupling
from specbound.theory.multi_path.verifier_table import verifier_table
from specbound.theory.prefix_tree import Array, PrefixTree

from ..audit.shrink import shrink
from ..laws.law import Law, exact_law
from .ledger import Outcome, claim, described, random_instances, simple_instances

LAW_TOLERANCE = 1e-12
VALUE_TOLERANCE = 1e-10
CERTIFIED = 1e-6
FALL = 1e-10
CLAIMED_ELSEWHERE = ("token", "block", "greedy-block", "gbv", "two-level", "key-race", "spectr-gbv", "table")


def small_instances(deep: bool) -> Iterator[tuple[PrefixTree, int]]:
    """Random trees, V = 2..3, L = 1..2, K = 2..3, and the simplest iid instances."""
    for number, tree in enumerate(random_instances(200 if deep else 30, 3, 2)):
        yield tree, 2 + number % 2
    for tree in simple_instances(3, 1, 3):
        yield tree, 2


def law_check(name: str, phi: Callable[[PrefixTree, int], Array], deep: bool) -> Outcome:
    """Is the verifier lossless, and does it keep every prefix with the probability that theory says?"""
    worst_law = worst_phi = 0.0
    count = 0
    for tree, paths in small_instances(deep):
        law = exact_law(name, tree, paths)
        worst_law = max(worst_law, law.total_variation(tree.target_law()))
        worst_phi = max(worst_phi, kept_error(law, tree, phi(tree, paths)))
        count += 1
    evidence = (
        f"exact law of the production code, {count} cases, V <= 3, L <= 2, K 2..3: total variation <= {worst_law:.0e}, "
        f"kept probability of each prefix as in theory to {worst_phi:.0e}"
    )
    return Outcome("holds" if worst_law < LAW_TOLERANCE and worst_phi < VALUE_TOLERANCE else "refuted", evidence)


def kept_error(law: Law, tree: PrefixTree, phi: Array) -> float:
    """Largest difference between the kept probabilities of a law and phi."""
    return max(abs(law.kept[tree.prefix(node)] - float(phi[node])) for node in range(1, tree.size))


@claim(
    "MULTI-lp",
    source="[GBV], the information-agnostic LP",
    statement="The optimum over all stateless lossless verifiers of K paths is the antichain LP over the kept "
    "probabilities of prefixes.",
    tested="the LP over couplings of drafts, kept prefix and correction, against the antichain LP and the certified "
    "solver",
)
def antichain_lp_is_the_coupling_lp(deep: bool) -> Outcome:
    worst, count = 0.0, 0
    for number, tree in enumerate(random_instances(60 if deep else 12, 3, 2)):
        if tree.vocab == 3 and tree.length == 2 and not deep:
            continue
        paths = 2 + (number % 2 if tree.size <= 7 else 0)
        values = [coupling.optimum(tree, paths).value, antichain.optimum(tree, paths).value]
        values.append(multi_path.lossless_optimum(tree, paths).value)
        worst, count = max(worst, max(values) - min(values)), count + 1
    evidence = f"three routes agree to {worst:.0e} on {count} random instances, V <= 3, L <= 2, K 2..3"
    return Outcome("holds" if worst < 2 * CERTIFIED else "refuted", evidence)


@claim(
    "MULTI-selected-path",
    source="specbound (own)",
    statement="The lossless optimum for K paths is the best value of block verification against the law of one "
    "selected path, over all laws that a selection rule can have.",
    tested="certified solver of the selected-path form against the antichain LP",
)
def selected_path_form(deep: bool) -> Outcome:
    trees = list(random_instances(80 if deep else 20, 3, 2))
    worst = max(
        abs(multi_path.lossless_optimum(tree, paths).value - antichain.optimum(tree, paths).value)
        for tree in trees
        for paths in (2, 3)
    )
    evidence = f"the two optima agree to {worst:.0e} on {len(trees)} trees with K = 2 and 3"
    return Outcome("holds" if worst < 2 * CERTIFIED else "refuted", evidence)


# ---------------------------------------------------------------------- greedy multi-path block verification


def gbv_value(tree: PrefixTree, paths: int) -> Fraction | float:
    """Exact acceptance length of GBV."""
    return single_path.acceptance(tree, selection.greedy_path(tree, paths))[1:].sum()


@claim(
    "GBV-lossless",
    source="[GBV]",
    statement="Greedy multi-path block verification leaves the target's law unchanged.",
    tested="runtime verifier `gbv`, built from the paper's abstract and its public reference code",
)
def gbv_is_lossless(deep: bool) -> Outcome:
    return law_check("gbv", lambda tree, k: single_path.acceptance(tree, selection.greedy_path(tree, k)), deep)


@claim(
    "GBV-at-least-block",
    source="[GBV], several paths as an improvement on one",
    statement="With K paths, greedy multi-path block verification keeps at least as many tokens as block verification "
    "of one path.",
    tested="closed-form values in fractions, iid instances",
)
def gbv_is_at_least_block(deep: bool) -> Outcome:
    for count, tree in enumerate(simple_instances(2, 2, 4), start=1):
        value, block = gbv_value(tree, 2), single_path.optimum(tree).exact
        if value < block:  # type: ignore[operator]
            evidence = f"instance {count} of the search: GBV keeps {value} with K = 2, one path {block}"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")


@claim(
    "GBV-monotone",
    source="[GBV], more paths as an improvement",
    statement="The acceptance length of greedy multi-path block verification does not fall when a path is added.",
    tested="closed-form values in fractions, iid instances, K = 2 against K = 3",
)
def gbv_is_monotone(deep: bool) -> Outcome:
    for count, tree in enumerate(simple_instances(2, 2, 4), start=1):
        two, three = gbv_value(tree, 2), gbv_value(tree, 3)
        if three < two:
            evidence = f"instance {count} of the search: {two} with K = 2, {three} with K = 3"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2 to K=3")
    return Outcome("holds", f"on {count} iid instances")


@claim(
    "GBV-gap",
    source="[GBV], the LP as an upper bound",
    statement="Greedy multi-path block verification never exceeds the lossless optimum.",
    tested="value over certified optimum, trees of unrelated and of close models, K = 2 and 3; the gap is measured",
)
def gbv_gap(deep: bool) -> Outcome:
    shown, most = [], 0.0
    for family, change in (("unrelated", lambda tree: tree), ("close", closer)):
        fractions = [
            float(gbv_value(tree, paths)) / multi_path.lossless_optimum(tree, paths).bound
            for tree in map(change, random_instances(200 if deep else 24))
            for paths in (2, 3)
        ]
        most = max(most, *fractions)
        mean = sum(fractions) / len(fractions)
        shown.append(f"{family} models {100 * mean:.1f} % on average, {100 * min(fractions):.1f} % at worst")
    evidence = f"of the certified optimum: {'; '.join(shown)}; {len(fractions)} cases each"
    return Outcome("holds" if most < 1 + CERTIFIED else "refuted", evidence)


def closer(tree: PrefixTree) -> PrefixTree:
    """The same target with a draft halfway to it."""
    return replace(tree, draft=(tree.draft + tree.target) / 2)


# ---------------------------------------------------------------------- every other verifier that is declared lossless


def _declared_lossless(name: str) -> None:
    entry = registry.get(name)

    @claim(
        f"LOSSLESS-{name}",
        source=entry.source,
        statement=f"The verifier `{name}` leaves the target's law unchanged.",
        tested=f"runtime verifier `{name}`, the law that its code emits",
    )
    def check(deep: bool) -> Outcome:
        cases = [case for number, case in enumerate(small_instances(deep)) if deep or number % 2 == 0]
        laws = ((exact_law(name, tree, paths), tree) for tree, paths in cases)
        worst = max(law.total_variation(tree.target_law()) for law, tree in laws)
        sizes = f"{len(cases)} cases, V <= 3, L <= 2, K 2..3"
        evidence = f"exact law of the production code, {sizes}: total variation <= {worst:.0e}"
        return Outcome("holds" if worst < LAW_TOLERANCE else "refuted", evidence)


for _name in registry.names():
    if registry.get(_name).lossless and _name not in CLAIMED_ELSEWHERE:
        _declared_lossless(_name)


# ---------------------------------------------------------------------- this project's own verifiers


def two_level_phi(tree: PrefixTree, paths: int) -> Array:
    """Kept probabilities of two-level selection followed by block verification."""
    plain = tree.as_float()
    return single_path.acceptance(plain, selection.two_level_path(plain, paths))


@claim(
    "TWO-LEVEL-lossless",
    source="specbound (own)",
    statement="Two-level selection followed by block verification leaves the target's law unchanged.",
    tested="runtime verifier `two-level`",
)
def two_level_is_lossless(deep: bool) -> Outcome:
    return law_check("two-level", two_level_phi, deep)


Value = Callable[[PrefixTree, int], float]


def two_level_value(tree: PrefixTree, paths: int) -> float:
    """Acceptance length of two-level selection followed by block verification."""
    return float(two_level_phi(tree, paths)[1:].sum())


def never_below(better: Value, worse: Value, deep: bool) -> Outcome:
    """Is `better` at least `worse` on random trees? If not, the failing case is shrunk to a simple one."""

    def fails(tree: PrefixTree, paths: int) -> bool:
        return paths > 1 and better(tree, paths) < worse(tree, paths) - FALL

    count = 0
    for tree in random_instances(1500 if deep else 250):
        for paths in (2, 3, 4):
            count += 1
            if fails(tree, paths):
                found = shrink(tree, paths, fails)
                high, low = worse(found.tree, found.paths), better(found.tree, found.paths)
                evidence = f"case {count}, shrunk: {low:.9f} where at least {high:.9f} was claimed"
                return Outcome("refuted", evidence, f"{described(found.tree)}, K={found.paths}")
    return Outcome("holds", f"on all {count} random cases tried, V <= 3, L <= 3, K 2..4; not proved beyond L = 1")


@claim(
    "TWO-LEVEL-at-least-block",
    source="specbound (own), a conjecture beyond L = 1",
    statement="Two-level selection never keeps fewer tokens than block verification of one path.",
    tested="closed-form values, random trees",
)
def two_level_against_block(deep: bool) -> Outcome:
    return never_below(two_level_value, lambda tree, k: single_path.optimum(tree).value, deep)


@claim(
    "TWO-LEVEL-at-least-kseq",
    source="specbound (own), a conjecture beyond L = 1",
    statement="Two-level selection never keeps fewer tokens than K-SEQ.",
    tested="closed-form values, random trees",
)
def two_level_against_kseq(deep: bool) -> Outcome:
    return never_below(two_level_value, lambda tree, k: float(level_by_level.kseq(tree, k)[1:].sum()), deep)


@claim(
    "TWO-LEVEL-at-least-traversal",
    source="specbound (own), observed in a survey",
    statement="Two-level selection never keeps fewer tokens than traversal verification.",
    tested="closed-form value against the exact law of the runtime verifier `traversal`, three paths",
)
def two_level_against_traversal(deep: bool) -> Outcome:
    def traversal(tree: PrefixTree, paths: int) -> float:
        return exact_law("traversal", tree, paths).acceptance_length

    def fails(tree: PrefixTree, paths: int) -> bool:
        return paths > 1 and two_level_value(tree, paths) < traversal(tree, paths) - 1e-6

    for seed in range(3):
        tree = PrefixTree.random(2, 3, seed, concentration=0.3)
        if fails(tree, 3):
            found = shrink(tree, 3, fails, max_trials=1000)
            low, high = two_level_value(found.tree, found.paths), traversal(found.tree, found.paths)
            evidence = f"seed {seed}, shrunk: two-level keeps {low:.9f}, traversal {high:.9f}"
            return Outcome("refuted", evidence, f"{described(found.tree)}, K={found.paths}")
    return Outcome("undecided", "no failure on the three trees tried")


@claim(
    "TWO-LEVEL-monotone",
    source="specbound (own), a conjecture",
    statement="The acceptance length of two-level selection does not fall when a path is added.",
    tested="closed-form values, random trees, K against K - 1",
)
def two_level_is_monotone(deep: bool) -> Outcome:
    return never_below(two_level_value, lambda tree, k: two_level_value(tree, k - 1), deep)


@claim(
    "TWO-LEVEL-gap",
    source="specbound (own)",
    statement="Two-level selection reaches 99 % of the lossless optimum on average, and it is not optimal.",
    tested="value over certified optimum, random trees with K = 2 and 3",
)
def two_level_gap(deep: bool) -> Outcome:
    fractions = [
        two_level_value(tree, paths) / multi_path.lossless_optimum(tree, paths).bound
        for tree in random_instances(300 if deep else 40)
        for paths in (2, 3)
    ]
    mean = sum(fractions) / len(fractions)
    evidence = f"{100 * mean:.2f} % on average, {100 * min(fractions):.1f} % at worst, {len(fractions)} cases"
    return Outcome("holds" if mean >= 0.99 and min(fractions) < 0.999 else "refuted", evidence)


@claim(
    "KEY-RACE",
    source="specbound (own), construction C2",
    statement="K block verifications and a lottery of their keys are lossless and keep each prefix w with probability "
    "P g(phi_block / P).",
    tested="runtime verifier `key-race`",
)
def key_race_realises_its_profile(deep: bool) -> Outcome:
    return law_check("key-race", known_values.key_race, deep)


@claim(
    "TABLE",
    source="specbound (own), from optimum to verifier",
    statement="The verifier table recovered from the optimal law of the selected path is lossless and attains the "
    "lossless optimum.",
    tested="tables of certified optima, executed by the runtime verifier `table`, K = 2 and 3",
)
def table_attains_the_optimum(deep: bool) -> Outcome:
    worst_law = worst_value = 0.0
    count = 0
    for tree in random_instances(40 if deep else 8, 3, 2):
        for paths in (2, 3):
            found = multi_path.lossless_optimum(tree, paths)
            emitted = verifier_table(tree, paths, found.kappa, "lossless").to_json()
            law = exact_law(table_verifier(json.loads(emitted)).verify, tree, paths)
            worst_law = max(worst_law, law.total_variation(tree.target_law()))
            worst_value = max(worst_value, abs(law.acceptance_length - found.value))
            count += 1
    evidence = f"{count} cases: total variation <= {worst_law:.0e}, value of the optimum within {worst_value:.0e}"
    return Outcome("holds" if worst_law < LAW_TOLERANCE and worst_value < CERTIFIED else "refuted", evidence)
