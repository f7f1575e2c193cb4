"""Claims of SpecTr-GBV. [SpecTr-GBV] arXiv:2604.25925, its abstract and its public code.

The acceptance it derives is F(w) = P g(min(1, Q/P)), g(t) = 1 - (1-t)^K, P and Q the joints of target and draft.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from specbound.theory import block_transport, feasibility, known_values, selection, single_path
from specbound.theory.multi_path import antichain
from specbound.theory.prefix_tree import Array, PrefixTree

from ..laws.law import exact_law
from .block_verification import nearby_fraction
from .evidence import LAW_TOLERANCE, VALUE_TOLERANCE, Subject, Value
from .instances import described, simple_instances, sizes_run
from .ledger import Outcome, Paper, claim
from .multi_path import gbv_value

SPECTR_GBV = Paper("SpecTr-GBV", "SpecTr-GBV", "2604.25925")
CERTIFIED = 1e-6
Profile = Callable[[PrefixTree, int], Array]


def sum_of_f(tree: PrefixTree, paths: int) -> float:
    """The acceptance length that the paper derives."""
    return known_values.spectr_gbv_claim(tree, paths)[1:].sum()


@claim(
    "SPECTR-feasible",
    paper=SPECTR_GBV,
    kind="stated",
    source="[SpecTr-GBV], expected acceptance length",
    statement="An acceptance of F(w) = P(1 - (1 - min(1, Q/P))^K) per prefix can be realised with K independent "
    "drafts.",
    tested="the constraints of block transport for K drafts, exact in fractions",
    subject=known_values.spectr_gbv_claim,
    control=lambda tree, paths: known_values.spectr_gbv_claim(tree, paths + 1),
)
def profile_is_feasible(profile: Profile, deep: bool) -> Outcome:
    sizes = []
    for tree in simple_instances(3 if deep else 2, 3, 3):
        for paths in (2, 3):
            phi = profile(tree, paths)
            sizes.append((tree.vocab, tree.length, paths))
            excess = max(feasibility.transport_excess(tree, phi), feasibility.antichain_excess(tree, phi, paths))
            if excess > 0:
                return Outcome("refuted", f"a constraint fails by {excess}", f"{described(tree)}, K={paths}")
    return Outcome("holds", f"every constraint holds in fractions, {sizes_run(sizes)}")


@claim(
    "SPECTR-one-path",
    paper=SPECTR_GBV,
    kind="stated",
    source="[SpecTr-GBV], consistency for one path",
    statement="For one path F is min(P, Q), the acceptance of greedy block verification.",
    tested="F against the phi of the block-transport optimum, in fractions",
    subject=known_values.spectr_gbv_claim,
    control=lambda tree, paths: single_path.acceptance(tree),
)
def profile_of_one_path(profile: Profile, deep: bool) -> Outcome:
    sizes = []
    for tree in simple_instances(3 if deep else 2, 3, 3):
        sizes.append((tree.vocab, tree.length, 1))
        if (profile(tree, 1) != block_transport.acceptance(tree)).any():
            return Outcome("refuted", f"case {len(sizes)} of the search differs", described(tree))
    return Outcome("holds", f"equal at every prefix in fractions, {sizes_run(sizes)}")


@claim(
    "SPECTR-monotone",
    paper=SPECTR_GBV,
    kind="stated",
    source="[SpecTr-GBV], monotone in the number of paths",
    statement="The sum of F does not fall when a path is added.",
    tested="the sum of F in fractions, K = 1 to 4 (a property of the formula: g grows with K)",
    subject=sum_of_f,
    control=gbv_value,
)
def profile_is_monotone(value: Value, deep: bool) -> Outcome:
    count = 0
    for tree in simple_instances(2, 2, 4):
        values = [value(tree, paths) for paths in (1, 2, 3, 4)]
        count += 1
        if values != sorted(values):
            return Outcome("refuted", f"{', '.join(map(str, values))} with K = 1, 2, 3, 4", described(tree))
    return Outcome("holds", f"in fractions on {count} rational instances, K = 1 to 4")


@claim(
    "SPECTR-converges",
    paper=SPECTR_GBV,
    kind="stated",
    source="[SpecTr-GBV], convergence in the number of paths",
    statement="With more and more paths F tends to P wherever the draft has mass: in the end every token is kept.",
    tested="the sum of P - F over all prefixes for K = 10, 100, 1000, iid instances without zeros in the draft",
    subject=known_values.spectr_gbv_claim,
    control=lambda tree, paths: single_path.acceptance(tree, selection.greedy_path(tree, paths)),
)
def profile_converges(profile: Profile, deep: bool) -> Outcome:
    worst, count = 0.0, 0
    for tree in simple_instances(2, 2, 4):
        if tree.draft.min() == 0:
            continue
        plain = tree.as_float()
        missing = [float((plain.target_joint - profile(plain, paths)).sum()) for paths in (10, 100, 1000)]
        worst, count = max(worst, missing[-1]), count + 1
        if missing != sorted(missing, reverse=True) or worst > 1e-9:
            shown = ", ".join(f"{gap:.3g}" for gap in missing)
            return Outcome("refuted", f"{shown} missing with K = 10, 100, 1000", described(tree))
    return Outcome("holds", f"at most {worst:.0e} missing with K = 1000, {count} instances")


def best_coupling(tree: PrefixTree, paths: int) -> float:
    """The certified optimum of block transport."""
    return antichain.optimum(tree, paths, "block-transport").value


@claim(
    "SPECTR-optimal",
    paper=SPECTR_GBV,
    kind="stated",
    source="[SpecTr-GBV], optimality of its expected acceptance length",
    statement="No coupling of K independent drafts with the target block has a larger expected acceptance length than "
    "the sum of F.",
    tested="the sum of F against the certified optimum of block transport, iid instances",
    subject=sum_of_f,
    control=best_coupling,
)
def profile_is_optimal(value: Value, deep: bool) -> Outcome:
    for count, tree in enumerate(simple_instances(2, 2, 3), start=1):
        claimed = value(tree, 2)
        best = antichain.optimum(tree, 2, "block-transport")
        if float(claimed) < best.value - CERTIFIED:
            shown = best.exact or f"{best.value:.9f}"
            evidence = f"instance {count} of the search: sum of F is {claimed}, the certified optimum {shown}"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")


def positive_instances() -> Iterator[PrefixTree]:
    """iid instances of two tokens and one drafted token, without zeros."""
    return (tree for tree in simple_instances(2, 1, 4) if tree.vocab == 2 and (tree.target * tree.draft).min() > 0)


@claim(
    "SPECTR-code-lossless",
    paper=SPECTR_GBV,
    kind="code",
    source="[SpecTr-GBV], public code",
    statement="The sequential algorithm of the public code leaves the target's law unchanged.",
    tested="runtime verifier `spectr-gbv-published`, written after the public code, one drafted token, two paths",
    subject="spectr-gbv-published",
    control="kseq",
)
def published_code_is_lossless(verifier: Subject, deep: bool) -> Outcome:
    for count, tree in enumerate(positive_instances(), start=1):
        law = exact_law(verifier, tree, 2)
        distance = law.total_variation(tree.target_law())
        if distance > LAW_TOLERANCE:
            first = {token: sum(mass for block, mass in law.blocks.items() if block[0] == token) for token in (0, 1)}
            shown = ", ".join(str(nearby_fraction(mass)) for mass in first.values())
            evidence = (
                f"instance {count} of the search: first token emitted with ({shown}), total variation "
                f"{nearby_fraction(distance)}"
            )
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")


@claim(
    "SPECTR-code-length",
    paper=SPECTR_GBV,
    kind="code",
    source="[SpecTr-GBV], public code",
    statement="The sequential algorithm of the public code has the expected acceptance length that the paper derives.",
    tested="runtime verifier `spectr-gbv-published` against the sum of F, one drafted token, two paths",
    subject="spectr-gbv-published",
    control="spectr-gbv",
)
def published_code_has_the_length(verifier: Subject, deep: bool) -> Outcome:
    for count, tree in enumerate(positive_instances(), start=1):
        claimed = sum_of_f(tree, 2)
        length = exact_law(verifier, tree, 2).acceptance_length
        if abs(length - float(claimed)) > VALUE_TOLERANCE:
            evidence = f"instance {count} of the search: it keeps {nearby_fraction(length)}, the sum of F is {claimed}"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")
