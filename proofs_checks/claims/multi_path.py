"""Claims about K drafted paths: the lossless optimum and greedy multi-path block verification. [GBV] arXiv:2602.16961.

Of the paper only the abstract, public reviews and public code were at hand. The optimum of stateless lossless
verifiers of K independent paths is an LP; its certified value stands above everything here.

GBV ranks the tokens at a node by target/draft. Where two tokens tie, the rule is silent and its value depends on the
order taken (claim GBV-ties), so refutations are looked for among instances without ties.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction

from specbound.theory import known_values, multi_path, selection, single_path
from specbound.theory.multi_path import antichain, coupling
from specbound.theory.prefix_tree import Array, PrefixTree
from specbound.theory.solution import Solution

from .evidence import Subject, Value, lossless, many_path_cases, wrong_at
from .instances import described, random_instances, simple_instances, sizes_run, without_ties
from .ledger import Outcome, Paper, claim

GBV = Paper("GBV", "Greedy Multi-Path Block Verification", "2602.16961")
CERTIFIED = 1e-6
Solver = Callable[[PrefixTree, int], Solution]


def transport_optimum(tree: PrefixTree, paths: int) -> Solution:
    """The block-transport optimum: what verifiers may reach that change the target laws of later positions."""
    return antichain.optimum(tree, paths, "block-transport")


@claim(
    "MULTI-lp",
    paper=GBV,
    kind="stated",
    source="[GBV], the information-agnostic LP",
    statement="The optimum over all stateless lossless verifiers of K paths is the antichain LP over the kept "
    "probabilities of prefixes.",
    tested="the LP over couplings of drafts, kept prefix and correction, against the antichain LP and the certified "
    "solver",
    subject=antichain.optimum,
    control=transport_optimum,
)
def antichain_lp_is_the_coupling_lp(solver: Solver, deep: bool) -> Outcome:
    worst, sizes = 0.0, []
    shapes = [(2, 1, 2), (2, 1, 3), (3, 1, 2), (3, 1, 3), (2, 2, 2), (2, 2, 3), *([(3, 2, 2)] if deep else [])]
    for seed, (vocab, length, paths) in itertools.product(range(8 if deep else 2), shapes):
        tree = PrefixTree.random(vocab, length, seed, concentration=0.5)
        values = [found.value for found in (coupling.optimum(tree, paths), solver(tree, paths))]
        values.append(multi_path.lossless_optimum(tree, paths).value)
        sizes.append((vocab, length, paths))
        worst = max(worst, max(values) - min(values))
        if worst > 2 * CERTIFIED:
            where = f"V={vocab}, L={length}, PrefixTree.random(concentration=0.5, seed={seed}), K={paths}"
            return Outcome("refuted", f"{values[1]:.9f} where the LP over couplings has {values[0]:.9f}", where)
    return Outcome("holds", f"three routes agree to {worst:.0e}, {sizes_run(sizes)}")


def best_selected_path(tree: PrefixTree, paths: int) -> float:
    """The best value of block verification against the law of one selected path, by the certified solver."""
    return multi_path.lossless_optimum(tree, paths).value


def gbv_phi(tree: PrefixTree, paths: int) -> Array:
    """Kept probabilities of GBV."""
    return single_path.acceptance(tree, selection.greedy_path(tree, paths))


def gbv_value(tree: PrefixTree, paths: int) -> Fraction | float:
    """Exact acceptance length of GBV."""
    return gbv_phi(tree, paths)[1:].sum()


def block_value(tree: PrefixTree, paths: int) -> Fraction | float:
    """Exact acceptance length of block verification, which looks at one path only."""
    return single_path.acceptance(tree)[1:].sum()


def key_race_value(tree: PrefixTree, paths: int) -> Fraction | float:
    """Exact acceptance length of the key race: it never falls with K and is never below block verification."""
    return known_values.key_race(tree, paths)[1:].sum()


def lossless_bound(tree: PrefixTree, paths: int) -> float:
    """The certified lossless optimum, from above: no lossless verifier is ever above it."""
    return multi_path.lossless_optimum(tree, paths).bound


@claim(
    "MULTI-selected-path",
    paper=GBV,
    kind="reading",
    source="[GBV] decomposes multi-path verification into the choice of one path and block verification against its "
    "law (by its public reviews); that this class attains the optimum is checked here",
    statement="The lossless optimum for K paths is the best value of block verification against the law of one "
    "selected path, over all laws that a selection rule can have.",
    tested="certified solver of the selected-path form against the antichain LP",
    subject=best_selected_path,
    control=gbv_value,
)
def selected_path_form(value: Value, deep: bool) -> Outcome:
    worst, sizes = 0.0, []
    for tree, paths in itertools.product(random_instances(80 if deep else 20, 3, 2), (2, 3)):
        found, best = float(value(tree, paths)), antichain.optimum(tree, paths).value
        sizes.append((tree.vocab, tree.length, paths))
        worst = max(worst, abs(found - best))
        if worst > 2 * CERTIFIED:
            return Outcome("refuted", f"{found:.9f} against {best:.9f}", f"{described(tree)}, K={paths}")
    return Outcome("holds", f"the two optima agree to {worst:.0e}, {sizes_run(sizes)}")


# ---------------------------------------------------------------------- greedy multi-path block verification


@claim(
    "GBV-lossless",
    paper=GBV,
    kind="stated",
    source="[GBV]",
    statement="Greedy multi-path block verification leaves the target's law unchanged.",
    tested="runtime verifier `gbv`, built from the paper's abstract and its public reference code",
    subject="gbv",
    control=wrong_at("gbv", vocab=2, length=2, paths=2),
)
def gbv_is_lossless(verifier: Subject, deep: bool) -> Outcome:
    return lossless(verifier, many_path_cases(deep), kept=lambda tree, k: gbv_phi(tree.as_float(), k))


def instances_without_ties(max_vocab: int, max_length: int, max_denominator: int) -> Iterator[PrefixTree]:
    """The simplest iid instances on which a rule by target/draft needs no tie-break."""
    return filter(without_ties, simple_instances(max_vocab, max_length, max_denominator))


NAMED = PrefixTree.iid([Fraction(51, 100), Fraction(49, 100)], [Fraction(1, 2), Fraction(1, 2)], 1)


def named_instance(value: Value) -> str:
    shown = ", ".join(str(value(NAMED, paths)) for paths in (1, 2, 3))
    return f"on {described(NAMED)} it keeps {shown} with K = 1, 2, 3"


@claim(
    "GBV-at-least-block",
    paper=GBV,
    kind="reading",
    source="a reading of [GBV], several paths as an improvement on one",
    statement="With K paths, greedy multi-path block verification keeps at least as many tokens as block verification "
    "of one path.",
    tested="closed-form values in fractions, iid instances without ties of target/draft",
    subject=gbv_value,
    control=key_race_value,
)
def gbv_is_at_least_block(value: Value, deep: bool) -> Outcome:
    for count, tree in enumerate(instances_without_ties(2, 1, 12), start=1):
        found, block = value(tree, 2), block_value(tree, 1)
        if found < block:
            evidence = f"instance {count} of the search: {found} with K = 2, one path {block}; {named_instance(value)}"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")


@claim(
    "GBV-monotone",
    paper=GBV,
    kind="reading",
    source="a reading of [GBV], more paths as an improvement",
    statement="The acceptance length of greedy multi-path block verification does not fall when a path is added.",
    tested="closed-form values in fractions, iid instances without ties of target/draft, K = 2 against K = 3",
    subject=gbv_value,
    control=key_race_value,
)
def gbv_is_monotone(value: Value, deep: bool) -> Outcome:
    for count, tree in enumerate(instances_without_ties(2, 1, 12), start=1):
        two, three = value(tree, 2), value(tree, 3)
        if three < two:
            evidence = f"instance {count} of the search: {two} with K = 2, {three} with K = 3; {named_instance(value)}"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2 to K=3")
    return Outcome("holds", f"on {count} iid instances")


@claim(
    "GBV-ties",
    paper=GBV,
    kind="reading",
    source="a reading of [GBV], target/draft as the ranking of tokens",
    statement="The acceptance length of greedy multi-path block verification does not depend on the order in which "
    "tokens of equal target/draft are ranked.",
    tested="closed-form values in fractions with the tied tokens in both orders, iid instances, K = 2",
    subject=gbv_value,
    control=block_value,
)
def gbv_ties_do_not_matter(value: Value, deep: bool) -> Outcome:
    for count, tree in enumerate(simple_instances(3, 1, 6), start=1):
        forward, backward = value(tree, 2), value(reversed_tokens(tree), 2)
        if forward != backward:
            target, draft = [Fraction(8, 17), Fraction(9, 17), Fraction(0)], [Fraction(n, 28) for n in (8, 9, 11)]
            floats = PrefixTree.iid(target, draft, 1)
            evidence = (
                f"instance {count} of the search: {forward} or {backward} with its tokens in reverse order. Rounding "
                f"breaks ties too: {described(floats)} gives {value(floats, 2)} = {float(value(floats, 2)):.4f} in "
                f"fractions and {value(floats.as_float(), 2):.4f} in float64"
            )
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")


def reversed_tokens(tree: PrefixTree) -> PrefixTree:
    """The same iid instance of one token with the tokens numbered the other way round."""
    return PrefixTree.iid(tree.target[1:][::-1], tree.draft[1:][::-1], 1)


@claim(
    "GBV-gap",
    paper=GBV,
    kind="stated",
    source="[GBV], the LP as an upper bound",
    statement="Greedy multi-path block verification never exceeds the lossless optimum.",
    tested="value over certified optimum, trees of unrelated and of close models, K = 2 and 3; the gap is measured",
    subject=gbv_value,
    control=lambda tree, paths: multi_path.transport_optimum(tree, paths).value,
)
def gbv_gap(value: Value, deep: bool) -> Outcome:
    shown = []
    for family, change in (("unrelated", lambda tree: tree), ("close", closer)):
        shares = []
        for tree, paths in itertools.product(map(change, random_instances(200 if deep else 24)), (2, 3)):
            shares.append(float(value(tree, paths)) / multi_path.lossless_optimum(tree, paths).bound)
            if shares[-1] > 1 + CERTIFIED:
                return Outcome("refuted", f"{shares[-1]:.6f} of the bound", f"{described(tree)}, K={paths}")
        mean = sum(shares) / len(shares)
        shown.append(f"{family} models {100 * mean:.1f} % on average, {100 * min(shares):.1f} % at worst")
    return Outcome("holds", f"of the certified optimum: {'; '.join(shown)}; {len(shares)} cases each")


def closer(tree: PrefixTree) -> PrefixTree:
    """The same target with a draft halfway to it."""
    return replace(tree, draft=(tree.draft + tree.target) / 2)
