"""Closed forms of the known verifiers: every reference table as fractions, feasibility, order, and the exact laws."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime import registry
from specbound.theory import level_by_level, selection, single_path
from specbound.theory.feasibility import antichain_excess, chain_excess, transport_excess
from specbound.theory.known_values import claim_excess, key_race, known_value, known_values, spectr_gbv_claim
from specbound.theory.multi_path import antichain
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES, iid, ragged, small_trees


def table(text: str) -> dict[str, dict[str, str]]:
    """Rows "name: one value per instance I1..I7"."""
    rows = (line.split(":") for line in text.strip().splitlines())
    return {name.strip(): dict(zip(INSTANCES, values.split(), strict=True)) for name, values in rows}


# Section 9 of the notes on multi-path verifiers: found there by enumerating every branch of each verifier.
TABLES = {
    1: table("""
        token: 10/9 38/27 2 2/3 10/9 17/16 101/75
        block: 11/9 5/3 2 2/3 7/6 5/4 217/150
        greedy-block: 4/3 50/27 2 2/3 11/9 5/4 449/300
        naive: 52/81 532/729 3/4 11/36 517/1296 3/4 281/600
        specinfer: 10/9 38/27 2 2/3 10/9 17/16 101/75
        kseq: 10/9 38/27 2 2/3 10/9 17/16 101/75
        gbv: 11/9 5/3 2 2/3 7/6 5/4 217/150
        gbv-bucketed: 11/9 5/3 2 2/3 7/6 5/4 217/150
        two-level: 11/9 5/3 2 2/3 7/6 5/4 217/150
        score-race: 11/9 5/3 2 2/3 7/6 5/4 217/150
        score-race-2: 11/9 5/3 2 2/3 7/6 5/4 217/150
        key-race: 11/9 5/3 2 2/3 7/6 5/4 217/150
        spectr-gbv: 4/3 50/27 2 2/3 11/9 5/4 449/300
    """),
    2: table("""
        token: 10/9 38/27 2 2/3 10/9 17/16 101/75
        naive: 82/81 286/243 19/16 109/216 31727/46656 259/256 118049/150000
        specinfer: 4/3 139/81 2 5/6 77/54 317/256 11407/7500
        kseq: 1.405486546 1.821025201 2 .856243101 1.473543085 1.295344052 1.595585249
        gbv: 131/81 1621/729 23/16 11/12 233/144 375/256 12947/7500
        two-level: 1.617283951 2.215363512 2 .916666667 1.618055556 1.468750000 1.772933333
    """),
    3: table("""
        naive: 8200/6561 787672/531441 93/64 827/1296 1487917/1679616 1191/1024 7580653/7500000
        specinfer: 1087/729 38240/19683 2 11/12 2077/1296 5597/4096 613447/375000
        kseq: 1.593306362 2.097494100 2 .930206458 1.639414900 1.459790975 1.726696061
        gbv: 1289/729 47933/19683 77/64 197/216 4327/2592 6755/4096 293261/187500
        two-level: 1.840635633 2.539528936 2 .990800458 1.784785488 1.660156250 1.824490682
    """),
}
WITHOUT_REPLACEMENT = {
    1: table("wo: 10/9 38/27 2 2/3 10/9 17/16 101/75")["wo"],
    2: table("wo: 4/3 139/81 2 29/36 445/324 317/256 11407/7500")["wo"],
    3: table("wo: 1087/729 38240/19683 2 95/108 5939/3888 5597/4096 613447/375000")["wo"],
}
# Section 2.3 of the notes on SpecTr-GBV: (target, draft, length, paths): block, key race, sum F.
PAIRS = {
    ("9/10 1/10", "1/2 1/2", 1, 2): ("3/5", "37/45", "37/45"),
    ("9/10 1/10", "1/2 1/2", 1, 3): ("3/5", "373/405", "373/405"),
    ("3/4 1/4", "1/2 1/2", 1, 2): ("3/4", "11/12", "11/12"),
    ("1/3 2/3", "2/3 1/3", 1, 2): ("2/3", "5/6", "5/6"),
    ("1/4 3/4", "3/4 1/4", 1, 2): ("1/2", "2/3", "2/3"),
    ("1/2 3/8 1/8", "1/4 1/4 1/2", 1, 2): ("5/8", "5/6", "5/6"),
    ("1/3 2/3", "2/3 1/3", 2, 1): ("11/9", "11/9", "4/3"),
    ("1/3 2/3", "2/3 1/3", 2, 2): ("11/9", "55/36", "19/12"),
    ("1/3 2/3", "2/3 1/3", 2, 3): ("11/9", "245/144", "83/48"),
    ("1/3 2/3", "2/3 1/3", 3, 1): ("5/3", "5/3", "50/27"),
    ("1/3 2/3", "2/3 1/3", 3, 2): ("5/3", "17/8", "485/216"),
    ("1/3 2/3", "2/3 1/3", 3, 3): ("5/3", "1379/576", "4277/1728"),
    ("3/4 1/4", "1/2 1/2", 2, 1): ("11/8", "11/8", "23/16"),
    ("3/4 1/4", "1/2 1/2", 2, 2): ("11/8", "31/18", "251/144"),
    ("3/4 1/4", "1/2 1/2", 2, 3): ("11/8", "1211/648", "2431/1296"),
    ("3/4 1/4", "1/2 1/2", 3, 2): ("123/64", "4229/1728", "2185/864"),
    ("1/2 3/8 1/8", "1/4 1/4 1/2", 2, 2): (None, "421/288", "427/288"),
}
GROUPS = [(paths, name) for paths in TABLES for name in TABLES[paths]]


def value_of(tree: PrefixTree, paths: int, name: str):
    return known_value(name, tree, paths)


@pytest.mark.parametrize(("paths", "name"), GROUPS)
def test_reference_tables_are_reproduced(paths, name):
    for instance, expected in TABLES[paths][name].items():
        known = value_of(INSTANCES[instance], paths, name)
        if "." in expected:
            assert known.value == pytest.approx(float(expected), abs=5.1e-10)
        elif name == "two-level" or name.startswith("score-race"):
            assert known.value == pytest.approx(float(Fraction(expected)), abs=1e-12)
        else:
            assert known.exact == Fraction(expected)


def specinfer_without_replacement(tree: PrefixTree, paths: int) -> np.ndarray:
    """[n] phi of recursive rejection over the distinct tokens, the draft row renormalised after each rejection.

    The residuals depend on which tokens were rejected in which order; all orders are followed, so this is for few
    drafts and small vocabularies.
    """
    phi = tree.target * 0
    phi[0] = tree.target[0]
    reach: dict[int, dict[int, Any]] = {0: {paths: phi[0]}}
    for node in range(tree.leaves.start):
        below = tree.children[node]
        for offers, mass in reach.pop(node, {}).items():
            law = _distinct_offers(tree.target[below], tree.draft[below], tree.draft[below], offers, ())
            for (place, count), probability in law.items():
                child = below.start + place
                counts = reach.setdefault(child, {})
                counts[count] = counts.get(count, 0) + mass * probability
                phi[child] += mass * probability
    return phi


def _distinct_offers(
    residual: np.ndarray, renormalised: np.ndarray, draft: np.ndarray, offers: int, rejected: tuple[int, ...]
) -> dict[tuple[int, int], Any]:
    """Law of (token kept, drafts that hold it) when `offers` drafts are to come and `rejected` tokens are skipped."""
    law: dict[tuple[int, int], Any] = {}
    if offers == 0:
        return law
    for token in np.flatnonzero(draft > 0).tolist():
        if token in rejected:
            following, chance = (residual, renormalised, draft, offers - 1, rejected), draft[token]
        else:
            coin = min(residual[token] / renormalised[token], residual[token] * 0 + 1)
            for more in range(offers):
                others = math.comb(offers - 1, more) * draft[token] ** more * (1 - draft[token]) ** (offers - 1 - more)
                law[token, more + 1] = law.get((token, more + 1), 0) + draft[token] * coin * others
            left, rest = np.maximum(residual - renormalised, 0), renormalised.copy()
            rest[token] *= 0
            if coin == 1 or left.sum() == 0 or rest.sum() == 0:
                continue
            following = (left / left.sum(), rest / rest.sum(), draft, offers - 1, (*rejected, token))
            chance = draft[token] * (1 - coin)
        for key, probability in _distinct_offers(*following).items():
            law[key] = law.get(key, 0) + chance * probability
    return law


@pytest.mark.parametrize("paths", WITHOUT_REPLACEMENT)
def test_rejection_over_distinct_tokens_reproduces_its_table(paths):
    for instance, expected in WITHOUT_REPLACEMENT[paths].items():
        phi = specinfer_without_replacement(INSTANCES[instance], paths)
        assert phi[1:].sum() == Fraction(expected)


@pytest.mark.parametrize(("case", "values"), PAIRS.items())
def test_the_tables_of_key_race_and_spectr_gbv_are_reproduced(case, values):
    target, draft, length, paths = case
    tree = iid(target, draft, length)
    found = single_path.acceptance(tree), key_race(tree, paths), spectr_gbv_claim(tree, paths)
    for phi, expected in zip(found, values, strict=True):
        assert expected is None or phi[1:].sum() == Fraction(expected)


def test_node_values_of_key_race_and_spectr_gbv_are_reproduced():
    tree = INSTANCES["I1"]
    assert spectr_gbv_claim(tree, 2)[1:].tolist() == [
        Fraction(value)
        for value in "1/3 1/2 1/9 2/9 2/9 7/36".split()  # noqa: SIM905
    ]
    assert key_race(tree, 2)[1:].tolist() == [
        Fraction(value)
        for value in "1/3 1/2 1/9 2/9 1/6 7/36".split()  # noqa: SIM905
    ]


@pytest.mark.parametrize("paths", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_every_known_phi_is_possible_and_no_better_than_the_optimum(seed, paths):
    tree = (small_trees(8))[seed]
    optima = {kind: antichain.optimum(tree, paths, kind).bound for kind in ("lossless", "block-transport")}
    for known in known_values(tree, paths):
        verifier = registry.of_closed_form(known.name)
        kind = "block-transport" if verifier.stateful else "lossless"
        excess = transport_excess if verifier.stateful else chain_excess
        assert verifier.lossless
        assert excess(tree, known.phi) < 1e-12, known.name
        assert antichain_excess(tree, known.phi, paths) < 1e-12, known.name
        assert known.value <= optima[kind] + 1e-9, known.name


@pytest.mark.parametrize(
    "name", ["token", "block", "naive", "specinfer", "kseq", "gbv", "gbv-bucketed", "two-level", "key-race"]
)
def test_the_verifiers_themselves_reach_these_values(name):
    for tree in (INSTANCES["I3"], INSTANCES["I5"], INSTANCES["I7"], PrefixTree.random(3, 2, 8, 0.7), ragged(3, 3, 2)):
        paths = 1 if name in ("token", "block") else 2
        known = value_of(tree, paths, name)
        law = exact_law(name, tree, paths)
        assert law.acceptance_length == pytest.approx(known.value, abs=1e-9)
        kept = [law.kept[tree.prefix(node)] for node in range(1, tree.size)]
        assert np.abs(np.array(kept) - known.phi[1:].astype(float)).max() < 1e-9


def test_the_single_step_optimum_is_listed_for_depth_one_and_reached_there():
    known = value_of(INSTANCES["I4"], 2, "single-step-optimal")
    assert known.exact == Fraction(11, 12)
    assert exact_law("single-step-optimal", INSTANCES["I4"], 2).acceptance_length == pytest.approx(11 / 12, abs=1e-9)
    declared = {entry.closed_form for entry in registry.entries() if entry.closed_form}
    assert {known.name for known in known_values(INSTANCES["I1"], 2)} == declared - {"single-step-optimal"}


def test_the_claim_of_spectr_gbv_is_feasible_but_not_optimal():
    for name, tree in INSTANCES.items():
        for paths in (2, 3):
            best = antichain.optimum(tree, paths, "block-transport").exact
            assert claim_excess(tree, paths) == 0
            assert spectr_gbv_claim(tree, paths)[1:].sum() <= best
            if name != "I3":
                assert spectr_gbv_claim(tree, paths)[1:].sum() < best


def test_the_claim_is_infeasible_if_drafts_are_counted_once_too_often():
    tree = INSTANCES["I1"]
    assert antichain_excess(tree, spectr_gbv_claim(tree, 3), 2) > 0


@pytest.mark.parametrize("paths", [1, 2, 3, 8])
def test_the_laws_of_the_selected_draft_are_laws_that_k_drafts_can_cover(paths):
    for tree in (*small_trees(12), *DEGENERATE.values()):
        tree = tree.as_float()
        for rule in (selection.greedy_path, selection.bucketed_path, selection.two_level_path):
            kappa = rule(tree, paths)
            assert kappa[tree.leaves].sum() == pytest.approx(1, abs=1e-9)
            inner = np.flatnonzero(kappa > 0)
            inner = inner[inner < tree.leaves.start]
            assert np.abs(tree.child_sums(kappa) - kappa)[inner].max() < 1e-9
            assert antichain_excess(tree, kappa, paths) < 1e-9


def test_greedy_selection_falls_with_more_drafts_where_the_models_agree():
    values = [value_of(INSTANCES["I3"], paths, "gbv").exact for paths in (1, 2, 3)]
    assert values == [2, Fraction(23, 16), Fraction(77, 64)]


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("paths", [1, 2, 64])
def test_degenerate_instances_have_values_between_zero_and_the_length(name, paths):
    tree = DEGENERATE[name]
    for known in known_values(tree, paths):
        assert np.isfinite(known.phi.astype(float)).all(), known.name
        assert -1e-12 <= known.value <= tree.length + 1e-9, known.name
        if name == "disjoint supports":
            assert known.value == 0
        if name in ("one child", "one-hot both"):
            assert known.value == pytest.approx(tree.length, abs=1e-12)


@pytest.mark.parametrize("paths", [1, 2])
@pytest.mark.parametrize("rare", ["target", "draft"])
def test_fractions_below_the_range_of_floats_have_the_values_of_zeros(rare, paths):
    tiny, half = Fraction(1, 10**400), [Fraction(1, 2), Fraction(1, 2)]
    for tail in (tiny, Fraction(0)):
        rows = {"target": half, "draft": half} | {rare: [tail, 1 - tail]}
        values = {known.name: known.value for known in known_values(PrefixTree.iid(**rows, length=2), paths)}
        if tail > 0:
            found = values
    assert found == pytest.approx(values, abs=1e-12)


def test_many_paths_are_computed_in_floats():
    assert value_of(INSTANCES["I4"], 9, "naive").exact is None
    assert value_of(INSTANCES["I4"], 9, "naive").value == pytest.approx(
        float(level_by_level.naive(INSTANCES["I4"], 9)[1:].sum()), abs=1e-14
    )


def test_paths_out_of_range_are_named():
    with pytest.raises(ValueError, match="paths is 0; want a positive integer"):
        known_values(INSTANCES["I1"], 0)


def test_a_closed_form_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="name is 'layer'; want one of token, block"):
        known_value("layer", INSTANCES["I1"], 2)
    with pytest.raises(ValueError, match="single-step-optimal has a value for length 1 only"):
        known_value("single-step-optimal", PrefixTree.random(2, 2, 0), 2)
