"""Claims of SpecTr-GBV. [SpecTr-GBV] arXiv:2604.25925, its abstract and its public code.

The acceptance it derives is F(w) = P g(min(1, Q/P)), g(t) = 1 - (1-t)^K, P and Q the joints of target and draft.
"""

from __future__ import annotations

from collections.abc import Iterator

from specbound.theory import known_values
from specbound.theory.multi_path import antichain
from specbound.theory.prefix_tree import PrefixTree

from ..laws.law import exact_law
from .block_verification import nearby_fraction
from .ledger import Outcome, claim, described, simple_instances
from .multi_path import kept_error, small_instances

LAW_TOLERANCE = 1e-12


@claim(
    "SPECTR-feasible",
    source="[SpecTr-GBV], expected acceptance length",
    statement="An acceptance of F(w) = P(1 - (1 - min(1, Q/P))^K) per prefix can be realised with K independent "
    "drafts.",
    tested="the constraints of block transport for K drafts, exact in fractions",
)
def profile_is_feasible(deep: bool) -> Outcome:
    count = 0
    for tree in simple_instances(3 if deep else 2, 3, 3):
        for paths in (2, 3):
            count += 1
            if known_values.claim_excess(tree, paths) != 0:
                return Outcome("refuted", f"after {count} cases", f"{described(tree)}, K={paths}")
    return Outcome("holds", f"every constraint holds in fractions on {count} rational instances, K 2..3")


@claim(
    "SPECTR-realised",
    source="specbound (own), construction C3, for the acceptance of [SpecTr-GBV]",
    statement="A race of path keys with the modified target law carried realises F exactly and is lossless.",
    tested="runtime verifier `spectr-gbv`, exact law of one call continued by its carry",
)
def profile_is_realised(deep: bool) -> Outcome:
    worst_law = worst_phi = 0.0
    count = 0
    for tree, paths in small_instances(deep):
        law = exact_law("spectr-gbv", tree, paths)
        worst_law = max(worst_law, law.total_variation(tree.target_law()))
        worst_phi = max(worst_phi, kept_error(law, tree, known_values.spectr_gbv_claim(tree, paths)))
        count += 1
    evidence = f"{count} cases: total variation <= {worst_law:.0e}, kept probabilities equal F to {worst_phi:.0e}"
    return Outcome("holds" if max(worst_law, worst_phi) < 1e-10 else "refuted", evidence)


@claim(
    "SPECTR-optimal",
    source="[SpecTr-GBV], optimality of its expected acceptance length",
    statement="No coupling of K independent drafts with the target block has a larger expected acceptance length than "
    "the sum of F.",
    tested="the sum of F against the certified optimum of block transport, iid instances",
)
def profile_is_optimal(deep: bool) -> Outcome:
    for count, tree in enumerate(simple_instances(2, 2, 4), start=1):
        claimed = known_values.spectr_gbv_claim(tree, 2)[1:].sum()
        best = antichain.optimum(tree, 2, "block-transport")
        if float(claimed) < best.value - 1e-6:
            shown = best.exact or f"{best.value:.9f}"
            evidence = f"instance {count} of the search: sum of F is {claimed}, the certified optimum {shown}"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")


def positive_instances() -> Iterator[PrefixTree]:
    """iid instances of two tokens and one drafted token, without zeros."""
    return (tree for tree in simple_instances(2, 1, 4) if tree.vocab == 2 and (tree.target * tree.draft).min() > 0)


@claim(
    "SPECTR-code-lossless",
    source="[SpecTr-GBV], public code",
    statement="The sequential algorithm of the public code leaves the target's law unchanged.",
    tested="runtime verifier `spectr-gbv-published`, written after the public code, one drafted token, two paths",
)
def published_code_is_lossless(deep: bool) -> Outcome:
    for count, tree in enumerate(positive_instances(), start=1):
        law = exact_law("spectr-gbv-published", tree, 2)
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
    source="[SpecTr-GBV], public code",
    statement="The sequential algorithm of the public code has the expected acceptance length that the paper derives.",
    tested="runtime verifier `spectr-gbv-published` against the sum of F, one drafted token, two paths",
)
def published_code_has_the_length(deep: bool) -> Outcome:
    for count, tree in enumerate(positive_instances(), start=1):
        claimed = known_values.spectr_gbv_claim(tree, 2)[1:].sum()
        length = exact_law("spectr-gbv-published", tree, 2).acceptance_length
        if abs(length - float(claimed)) > 1e-10:
            evidence = f"instance {count} of the search: it keeps {nearby_fraction(length)}, the sum of F is {claimed}"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")
