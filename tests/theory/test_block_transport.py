"""Block transport: closed form, transport LP and POT agree for one draft; POT on tuples of drafts for several."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import ot
import pytest
from hypothesis import given, settings

from specbound.theory import block_transport, single_path
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError
from tests.support.reference import DEGENERATE, INSTANCES, small_trees
from tests.support.second_routes import transport_by_lp
from tests.support.strategies import trees

VALUES = {"I1": "4/3", "I2": "50/27", "I3": "2", "I4": "2/3", "I5": "11/9", "I6": "5/4", "I7": "449/300"}
MULTI = {
    ("I1", 2): "134/81",
    ("I2", 2): "1708/729",
    ("I4", 2): "11/12",
    ("I5", 2): "239/144",
    ("I6", 2): "47/32",
    ("I7", 2): "37/20",
    ("I1", 3): "1351/729",
    ("I4", 3): "1",
    ("I5", 3): "1085/576",
    ("I6", 3): "425/256",
}


@pytest.mark.parametrize("name", VALUES)
def test_reference_values_are_reproduced_as_fractions(name):
    solution = block_transport.optimum(INSTANCES[name])
    assert (solution.exact, solution.gap, solution.lossless) == (Fraction(VALUES[name]), 0, False)


@pytest.mark.parametrize("tree", small_trees(16) + list(DEGENERATE.values()))
def test_closed_form_linear_program_and_pot_agree(tree):
    closed = block_transport.optimum(tree)
    assert abs(transport_by_lp(tree).value - closed.value) < 1e-9
    pot = block_transport.pot_optimum(tree)
    assert abs(pot.value - closed.value) < 1e-9
    assert max(pot.gap, closed.gap) < 1e-9


@settings(max_examples=30, deadline=None)
@given(trees())
def test_the_value_is_the_sum_over_depths_of_one_minus_total_variation(tree):
    overlap = [np.abs(tree.target_joint - tree.draft_joint)[level].sum() / 2 for level in tree.levels[1:]]
    solution = block_transport.optimum(tree)
    assert solution.exact == sum(1 - distance for distance in overlap)
    assert solution.exact >= single_path.optimum(tree).exact


@pytest.mark.parametrize(("case", "value"), MULTI.items())
def test_pot_on_tuples_of_drafts_reproduces_the_reference_values(case, value):
    name, paths = case
    solution = block_transport.pot_optimum(INSTANCES[name], paths)
    assert solution.value == pytest.approx(float(Fraction(value)), abs=1e-12)
    assert solution.gap < 1e-12


def test_unordered_tuples_carry_the_law_of_ordered_ones():
    tree = PrefixTree.random(3, 2, 4)
    law = tree.draft_joint[tree.leaves]
    expected: dict[tuple[int, ...], float] = {}
    for ordered in itertools.product(range(9), repeat=3):
        key = tuple(sorted(ordered))
        expected[key] = expected.get(key, 0.0) + law[list(ordered)].prod()
    drafts, weights = block_transport.sources(tree, 3)
    assert {tuple(row) for row in drafts.tolist()} == set(expected)
    for row, weight in zip(drafts.tolist(), weights, strict=True):
        assert weight == pytest.approx(expected[tuple(row)], rel=1e-13)


def test_the_cost_is_the_length_less_the_common_prefix_of_tokens():
    tree = PrefixTree.random(2, 3, 0)
    a, b, cost = block_transport.to_transport(tree)
    blocks = [tree.prefix(node) for node in range(tree.leaves.start, tree.leaves.stop)]
    for i, j in itertools.product(range(8), repeat=2):
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(blocks[i], blocks[j], strict=True))))
        assert cost[i, j] == 3 - shared
    assert 3 - ot.emd2(a, b, cost) == pytest.approx(block_transport.optimum(tree).value, abs=1e-12)


def test_a_wrong_plan_is_not_certified():
    tree = INSTANCES["I1"].as_float()
    problem = block_transport.to_transport(tree)
    a, b, _ = problem
    with pytest.raises(CertificateError, match="the gap"):
        block_transport.certified_plan(tree, 1, problem, np.outer(a, b), np.zeros(4), "independent coupling", 0.0)
    with pytest.raises(CertificateError, match="phi fails the transport constraints"):
        block_transport.certified_plan(tree, 1, problem, np.diag(a), np.zeros(4), "identity, wrong marginal", 0.0)


def test_too_many_tuples_are_refused():
    with pytest.raises(ValueError, match="lower paths, vocab or length, or use the certified solver"):
        block_transport.to_transport(PrefixTree.random(4, 3, 0), 4)
    with pytest.raises(ValueError, match="paths is 0; want a positive integer"):
        block_transport.to_transport(INSTANCES["I1"], 0)
