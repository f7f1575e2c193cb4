"""The rule with a budget: never above its deviation, never above the frontier, and on the published instance on it."""

from __future__ import annotations

from fractions import Fraction as F

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbound.theory import budgeted, frontier, single_path
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES, small_trees
from tests.support.strategies import trees

BUDGETS = [F(0), F(1, 81), F(1, 27), F(1, 9), F(2, 9), F(1, 3), F(1)]


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("eps", BUDGETS)
def test_on_the_published_instance_the_rule_is_the_frontier(length, eps):
    tree = PrefixTree.iid([F(1, 3), F(2, 3)], [F(2, 3), F(1, 3)], length)
    phi, stream = budgeted.acceptance(tree, eps)
    assert frontier.block_deviation(tree, stream) <= eps
    assert phi[1:].sum() == frontier.optimum(tree, eps).exact


@settings(max_examples=60, deadline=None)
@given(trees(), st.fractions(0, 1, max_denominator=40))
def test_the_deviation_is_within_the_budget_and_every_constraint_holds_exactly(tree, eps):
    phi, stream = budgeted.acceptance(tree, eps)
    assert frontier.block_deviation(tree, stream) <= eps
    assert (phi[1:] <= tree.draft_joint[1:]).all()
    inner = np.array([tree.children[node].start < tree.children[node].stop for node in range(tree.size)])
    assert (frontier.emitted(tree, phi, stream) >= 0).all()
    assert (tree.child_sums(stream) == stream)[inner].all()


@pytest.mark.parametrize("tree", [*INSTANCES.values(), *DEGENERATE.values()])
def test_no_budget_is_block_verification_and_a_full_budget_keeps_every_draft(tree):
    nothing, everything = (budgeted.acceptance(tree, eps)[0] for eps in (0, 1))
    np.testing.assert_allclose(nothing.astype(float), single_path.acceptance(tree).astype(float), atol=1e-14)
    assert float(everything[1:].sum()) == pytest.approx(tree.length)


def test_on_random_trees_the_rule_reaches_most_of_what_its_budget_can_buy():
    gains = []
    for tree in small_trees(36):
        for eps in (0.01, 0.05, 0.2):
            best, kept = frontier.optimum(tree.as_float(), eps), budgeted.acceptance(tree.as_float(), eps)[0][1:].sum()
            block = single_path.optimum(tree).value
            assert kept <= best.bound + 1e-9
            if best.value > block + 1e-6:
                gains.append((kept - block) / (best.value - block))
    assert np.mean(gains) > 0.95
    assert min(gains) > 0.6


@pytest.mark.parametrize("eps", [-0.1, 1.1, float("nan")])
def test_budgets_out_of_range_are_refused(eps):
    with pytest.raises(ValueError, match="deviation is"):
        budgeted.acceptance(INSTANCES["I1"], eps)
