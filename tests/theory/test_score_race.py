"""The score race in theory: possible selection laws, reference fractions, what the reserve and the safe rule keep."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from specbound.theory import multi_path, score_race, selection, single_path
from specbound.theory.feasibility import selection_excess
from specbound.theory.known_values import key_race
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES, decoy, sparse

RULES = ("two-part", "best-set", "safe", "two-part-reserved", "best-set-reserved", "best-set-soft")
RESERVED = ("two-part-reserved", "best-set-reserved")


def value(tree: PrefixTree, paths: int, rule: score_race.Rule) -> float:
    return float(score_race.acceptance(tree, paths, rule)[1:].sum())


def block_value(tree: PrefixTree) -> float:
    return float(single_path.acceptance(tree.as_float())[1:].sum())


def adversaries() -> list[PrefixTree]:
    shapes = [(2, 4), (3, 3), (4, 3), (2, 7), (6, 2)]
    found = [sparse(*shapes[seed % len(shapes)], seed) for seed in range(20)]
    found += [decoy(*case) for case in product((0.3, 0.5, 0.7), (0.02, 0.4), (3, 7))]
    return [*found, *DEGENERATE.values(), *INSTANCES.values()]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_selects_with_a_law_that_k_drafts_can_have(rule):
    for number, tree in enumerate(adversaries()[::6]):
        paths = (1, 2, 3, 5, 16, 64)[number % 6]
        phi, kappa = score_race.phi_and_selection(tree, paths, rule)
        tree = tree.as_float()
        leaves = kappa[tree.leaves]
        assert leaves.sum() == pytest.approx(1, abs=1e-12)
        assert selection_excess(tree, phi, leaves, paths) < 1e-12
        inner = np.flatnonzero(kappa[: tree.leaves.start] > 0)
        assert np.abs(tree.child_sums(kappa) - kappa)[inner].max() < 1e-12


def test_a_law_that_favours_the_winner_twice_is_not_possible():
    tree = INSTANCES["I1"].as_float()
    phi, kappa = score_race.phi_and_selection(tree, 3)
    assert selection_excess(tree, phi, kappa[tree.leaves], 2) > 1e-3


@pytest.mark.parametrize("rule", RULES)
def test_one_draft_is_block_verification(rule):
    for tree in adversaries()[::8]:
        assert np.abs(score_race.acceptance(tree, 1, rule) - single_path.acceptance(tree.as_float())).max() < 1e-12


@pytest.mark.parametrize("rule", RESERVED)
def test_the_reserve_keeps_what_block_verification_keeps_at_every_node(rule):
    for number, tree in enumerate(adversaries()[::2]):
        for paths in (2, 3 + number % 6)[number % 2 :]:
            deficit = single_path.acceptance(tree.as_float()) - score_race.acceptance(tree, paths, rule)
            assert deficit.max() < 1e-12


def test_the_safe_rule_is_never_below_block_verification():
    for number, tree in enumerate(adversaries()[::2]):
        for paths in (2, 3 + number % 6)[number % 2 :]:
            assert value(tree, paths, "safe") >= block_value(tree) - 1e-12


def test_without_reserve_or_check_both_theorems_fail_on_the_decoy():
    tree = decoy(0.5, 0.1, 8)
    assert block_value(tree) == pytest.approx(1.3, abs=1e-12)
    for rule in ("two-part", "best-set"):
        assert value(tree, 2, rule) == pytest.approx(1.2625, abs=1e-12)
    assert value(tree, 2, "safe") == pytest.approx(1.3473684210526315, abs=1e-12)
    deficit = single_path.acceptance(tree) - score_race.acceptance(tree, 2, "safe")
    assert deficit.max() < 1e-12 < (single_path.acceptance(tree) - score_race.acceptance(tree, 2, "two-part")).max()


def test_two_level_selection_falls_below_block_verification_where_the_safe_race_does_not():
    rows = {(): ([0.2, 0.8], [0.25, 0.75]), (0,): ([1, 0], [0.8, 0.2]), (1,): ([1, 0], [0, 1])}
    tree = PrefixTree.from_conditionals(
        lambda w: rows.get(w, ([1, 0], [1, 0]))[0], lambda w: rows.get(w, ([1, 0], [1, 0]))[1], 2, 3
    )
    two_level = single_path.acceptance(tree, selection.two_level_path(tree, 2))[1:].sum()
    assert (block_value(tree), two_level) == (pytest.approx(27 / 20), pytest.approx(67 / 50))
    assert value(tree, 2, "safe") >= 27 / 20


OPTIMAL = {("I1", 2): "131/81", ("I1", 3): "1351/729", ("I4", 2): "11/12", ("I5", 2): "79/48", ("I6", 2): "47/32"}


@pytest.mark.parametrize(("instance", "paths"), OPTIMAL)
def test_the_optimum_is_reached_on_reference_instances(instance, paths):
    for rule in ("two-part", "best-set", "safe"):
        assert value(INSTANCES[instance], paths, rule) == pytest.approx(
            float(Fraction(OPTIMAL[instance, paths])), abs=1e-12
        )


def test_the_best_set_is_near_optimal_and_two_level_is_not():
    fractions = {"safe": [], "two-level": []}
    for seed in range(12):
        tree, paths = PrefixTree.random(3, 3, seed), 2 + seed % 3
        best = multi_path.lossless_optimum(tree, paths, 1e-6).bound
        two_level = single_path.acceptance(tree, selection.two_level_path(tree, paths))[1:].sum()
        fractions["safe"].append(value(tree, paths, "safe") / best)
        fractions["two-level"].append(two_level / best)
    assert max(fractions["safe"]) <= 1 + 1e-9
    assert np.mean(fractions["safe"]) > 0.99 > np.mean(fractions["two-level"])


def test_the_best_set_is_not_monotone_in_the_number_of_drafts_and_two_parts_are_here():
    tree = PrefixTree.iid([0.077, 0.0093, 0.9137], [0.038, 0.108, 0.854], 1)
    best = [value(tree, paths, "best-set") for paths in (2, 3)]
    assert best == [pytest.approx(0.99756, abs=5e-6), pytest.approx(0.98649, abs=5e-6)]
    two = [value(tree, paths, "two-part") for paths in range(1, 9)]
    assert two == sorted(two)


def test_it_can_fall_below_the_key_race():
    tree = sparse(2, 4, 20)
    assert key_race(tree, 2)[1:].sum() > value(tree, 2, "safe") + 1e-3
    assert value(tree, 2, "safe") >= block_value(tree) - 1e-12


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match=r"rule is 'fast'; want one of two-part, best-set"):
        score_race.acceptance(INSTANCES["I1"], 2, "fast")


def test_many_trees_at_once_have_the_values_of_each():
    trees = [PrefixTree.random(vocab, 3, seed) for seed, vocab in enumerate((2, 3, 4, 2))]
    for rule in ("safe", "two-part"):
        found = score_race.acceptances(trees, 3, rule)
        for tree, phi in zip(trees, found, strict=True):
            assert np.abs(phi - score_race.acceptance(tree, 3, rule)).max() < 1e-13
    with pytest.raises(ValueError, match=r"lengths \[1, 3\]; want one length"):
        score_race.acceptances([trees[0], PrefixTree.random(2, 1, 0)], 2)
