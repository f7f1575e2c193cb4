"""Verifier tables in theory: the race selects by kappa, the output is the target's law, the optimum is attained."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from specbound.theory.multi_path import lossless_optimum, transport_optimum
from specbound.theory.multi_path.verifier_table import VerifierTable, score_intervals, verifier_table
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES, ragged
from tests.support.table_law import output_law, selected_law

SOLVERS = {"lossless": lossless_optimum, "block-transport": transport_optimum}
SIZES = [(2, 2, 2), (3, 2, 2), (2, 3, 3), (3, 2, 3), (5, 1, 3), (2, 2, 5), (2, 2, 1)]


def optimal_table(tree: PrefixTree, paths: int, objective: str) -> tuple[VerifierTable, float]:
    solution = SOLVERS[objective](tree, paths)
    return verifier_table(tree, paths, solution.kappa, objective), solution.value


def total_length(intervals: tuple[tuple[float, float], ...]) -> float:
    return sum(high - low for low, high in intervals)


@pytest.mark.parametrize("objective", SOLVERS)
@pytest.mark.parametrize("size", SIZES)
def test_the_race_selects_by_kappa_and_the_output_follows_the_target(size, objective):
    vocab, length, paths = size
    for seed in (1, 2):
        tree = PrefixTree.random(vocab, length, seed)
        table, value = optimal_table(tree, paths, objective)
        selected = selected_law(table)
        np.testing.assert_allclose(selected, table.kappa, atol=1e-14)
        law = output_law(table, selected)
        assert law.total_variation(tree.target_law()) <= 1e-13
        assert law.acceptance_length == pytest.approx(table.value, abs=1e-13)
        assert table.value >= value - 1e-13


@pytest.mark.parametrize("objective", SOLVERS)
@pytest.mark.parametrize("name", [*DEGENERATE, *INSTANCES])
def test_degenerate_trees_have_tables_with_the_target_law(name, objective):
    tree = (DEGENERATE | INSTANCES)[name]
    table, value = optimal_table(tree, 2, objective)
    law = output_law(VerifierTable.from_json(table.to_json()))
    assert law.total_variation(tree.target_law()) <= 1e-12
    assert law.acceptance_length >= value - 1e-12


@pytest.mark.parametrize("paths", [2, 3, 4])
@pytest.mark.parametrize("objective", SOLVERS)
def test_any_law_of_selection_gives_a_table_with_the_target_law(objective, paths):
    rng = np.random.default_rng(0)
    for seed in range(6):
        tree = ragged(seed, vocab=3, length=2 if paths == 2 else 1)
        table = verifier_table(tree, paths, rng.dirichlet(np.full(len(tree.bonus), 0.3)), objective)
        assert output_law(table).total_variation(tree.target_law()) <= 1e-12


@pytest.mark.parametrize("paths", [2, 3, 5])
def test_a_law_between_the_draft_and_the_favoured_one_needs_scores_in_several_pieces(paths):
    """Selected laws inside the polymatroid: the later leaf gets what is left on both sides of an earlier one."""
    tree = PrefixTree.random(4, 1, seed=3)
    draft = np.asarray(tree.draft_joint, dtype=float)[tree.leaves]
    favoured = np.diff(np.concatenate([[0], np.cumsum(draft)]) ** paths)
    table = verifier_table(tree, paths, 0.5 * draft + 0.5 * favoured, "lossless")
    np.testing.assert_allclose(table.kappa, 0.5 * draft + 0.5 * favoured, atol=1e-14)
    np.testing.assert_allclose(selected_law(table), table.kappa, atol=1e-14)
    assert max(len(intervals) for intervals in table.scores) > 1
    assert output_law(table).total_variation(tree.target_law()) <= 1e-13


def test_the_published_example_is_found_by_hand():
    """g(1/3) = 5/9: the favoured token gets the scores below 1/3; value 1/3 + 5/9 = 8/9."""
    tree = PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 1)
    table, _ = optimal_table(tree, 2, "lossless")
    np.testing.assert_allclose(table.scores[0], [(1 / 3, 1)], atol=1e-15)
    np.testing.assert_allclose(table.scores[1], [(0, 1 / 3)], atol=1e-15)
    np.testing.assert_allclose(table.phi, [1, 1 / 3, 5 / 9], atol=1e-15)
    np.testing.assert_allclose(table.stop, [1, 3 / 4, 1], atol=1e-14)
    np.testing.assert_allclose(table.correction, [1, 0, 1], atol=1e-14)
    assert table.value == pytest.approx(8 / 9, abs=1e-15)


def test_scores_are_disjoint_and_have_the_draft_as_lengths():
    rng = np.random.default_rng(5)
    for paths in (1, 2, 7, 64):
        draft = np.append(rng.dirichlet(np.full(30, 0.3)), [0.0])
        tree = PrefixTree.iid(draft, draft, 1)
        table = verifier_table(tree, paths, rng.dirichlet(np.full(31, 0.3)), "lossless")
        lengths = [total_length(intervals) for intervals in table.scores]
        np.testing.assert_allclose(lengths, draft, atol=1e-14)
        ends = sorted(pair for intervals in table.scores for pair in intervals)
        assert all(low >= high - 1e-15 for (_, high), (low, _) in pairwise(ends))
        assert table.scores[-1] == ()
    assert score_intervals(np.ones(1), np.ones(1), 3) == (((0.0, 1.0),),)


@pytest.mark.parametrize("objective", SOLVERS)
def test_broken_tables_miss_the_target_law(objective):
    tree = PrefixTree.random(3, 2, 2)
    table, _ = optimal_table(tree, 2, objective)
    swapped = replace(table, scores=(table.scores[-1], *table.scores[1:-1], table.scores[0]))
    eager = replace(table, stop=np.where(tree.depth == 2, 1.0, table.stop))
    uncorrected = replace(table, correction=tree.target)
    for broken in (eager, uncorrected):
        assert output_law(broken).total_variation(tree.target_law()) > 1e-3
        with pytest.raises(ValueError, match="the scores and the tree make it"):
            VerifierTable.from_json(broken.to_json())
    with pytest.raises(ValueError, match="total length"):
        VerifierTable.from_json(swapped.to_json())
    if objective == "block-transport":  # later tokens may not go back to the target's own law
        stateless = replace(table, objective="lossless")
        assert output_law(stateless).total_variation(tree.target_law()) > 1e-3


def test_scores_of_rarely_drafted_leaves_are_found_although_rounding_hides_their_place():
    """The integral of g' over a stretch of length 1e-13 is flat to rounding: the search for its place takes long."""
    draft = [0.0002885234492058889, 0.14715184076301455, 0.018098345943714865, 0.04844604126783418]
    draft += [7.313748801468318e-14, 3.880903795669961e-08, 0.3479350868684387, 1.2648579641457276e-10]
    draft += [2.1771866800938193e-13, 2.525091155193285e-13]
    kappa = [0.0023058580542800206, 0.7185693175083229, 0.0005188056099478809, 0.00232948094863139]
    kappa += [5.83918764035518e-13, 3.098457539946024e-07, 0.2749197001947565, 1.0118863708652887e-09]
    kappa += [1.7417493440706494e-12, 2.020072924152842e-12]
    scores = score_intervals(np.array(kappa), np.array(draft), 8)
    won = [sum((1 - low) ** 8 - (1 - high) ** 8 for low, high in intervals) for intervals in scores]
    last = 2  # the leaf of lowest kappa/Q takes what is left of [0, 1]
    np.testing.assert_allclose(
        np.delete([total_length(intervals) for intervals in scores], last), np.delete(draft, last), atol=1e-15
    )
    np.testing.assert_allclose(np.delete(won, last), np.delete(kappa, last), atol=1e-14)


def test_scores_that_belong_to_two_leaves_are_refused():
    table, _ = optimal_table(PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 1), 2, "lossless")
    overlapping = replace(table, scores=(table.scores[0], ((0.5, 0.5 + 1 / 3),)))
    with pytest.raises(ValueError, match="scores overlap"):
        VerifierTable.from_json(overlapping.to_json())


def test_a_table_survives_the_way_through_a_file():
    table, _ = optimal_table(INSTANCES["I7"], 2, "block-transport")
    again = VerifierTable.from_json(table.to_json())
    assert again.to_json() == table.to_json()
    assert again.later == "correction"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "format is 'x'"),
        ({"version": 2}, "version is 2"),
        ({"later": "draft"}, "later is 'draft'"),
        ({"value": 3.0}, "value is 3.0"),
        ({"paths": 3}, "kappa"),
        ({"objective": "best"}, "objective is 'best'"),
        ({"scores": [[[0.2, 0.1]]] * 9}, "want .low, high."),
        ({"scores": [[[0.0, 0.5]]]}, "scores has 1 entries"),
        ({"stop": [1.0]}, "stop has shape"),
        ({"phi": [1.0] * 12 + ["x"]}, r"phi\[12\] is 'x'; want a number"),
    ],
)
def test_bad_files_are_refused_by_field(change, message):
    table, _ = optimal_table(PrefixTree.random(3, 2, 1), 2, "lossless")
    with pytest.raises(ValueError, match=message):
        VerifierTable.from_json(json.loads(table.to_json()) | change)


@pytest.mark.parametrize(
    ("kappa", "message"), [([0.5], "kappa has shape"), ([-1.0, 2.0], "negative"), ([float("nan"), 1.0], "non-finite")]
)
def test_bad_laws_are_refused(kappa, message):
    with pytest.raises(ValueError, match=message):
        verifier_table(PrefixTree.iid([0.5, 0.5], [0.5, 0.5], 1), 2, np.array(kappa), "lossless")
