"""The optimum of one draft: closed form with an exact dual, HiGHS and CVXPY; nothing lossless exceeds it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings

from specbound.theory import duality, modeling, single_path
from specbound.theory.feasibility import selected_mass
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES, small_trees
from tests.support.second_routes import block_verification_by_lp
from tests.support.strategies import PUBLISHED, trees

VALUES = {"I1": "11/9", "I2": "5/3", "I3": "2", "I4": "2/3", "I5": "7/6", "I6": "5/4", "I7": "217/150"}
RANDOM = {(2, 2, 1): 1.012933, (3, 2, 2): 1.200597, (2, 4, 1): 0.860151, (8, 3, 2): 0.501720, (8, 4, 1): 0.953167}


@pytest.mark.parametrize("name", VALUES)
def test_reference_values_are_reproduced_as_fractions_with_gap_zero(name):
    solution = single_path.optimum(INSTANCES[name])
    assert solution.exact == Fraction(VALUES[name])
    assert solution.gap == 0


@pytest.mark.parametrize(("shape", "value"), RANDOM.items())
def test_reference_values_of_random_instances_are_reproduced(shape, value):
    vocab, length, seed = shape
    assert single_path.optimum(PrefixTree.random(vocab, length, seed)).value == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("tree", small_trees(12) + list(DEGENERATE.values()))
def test_closed_form_highs_and_cvxpy_agree(tree):
    closed = single_path.optimum(tree)
    assert closed.gap <= 1e-12
    assert abs(block_verification_by_lp(tree).value - closed.value) < 1e-9
    model = modeling.lossless(tree, modeling.independent(tree, 1))
    assert abs(model.solve() - closed.value) < 1e-7
    assert abs(model.bound() - closed.value) < 1e-7


@settings(max_examples=40, deadline=None)
@given(trees())
def test_the_multipliers_are_dual_feasible_and_meet_the_value_exactly(tree):
    phi = single_path.acceptance(tree)
    price = single_path.prices(tree, phi)
    stream = np.where(tree.target * phi[tree.parent] <= tree.draft_joint, 1, 0) * worth(tree, phi)
    assert (price >= 0).all()
    above = tree.child_sums(tree.target * stream)
    assert all(stream[node] + price[node] - above[node] == 1 for node in range(1, tree.size))
    assert (price * tree.draft_joint)[1:].sum() + above[0] == phi[1:].sum() == single_path.optimum(tree).exact


def worth(tree, phi):
    """Value of one more unit of phi(w): itself and the children that follow in proportion, by recursion."""

    def value(node):
        kids = range(tree.children[node].start, tree.children[node].stop)
        return 1 + sum(tree.target[c] * value(c) for c in kids if tree.target[c] * phi[node] <= tree.draft_joint[c])

    return np.array([value(node) for node in range(tree.size)], dtype=object)


def test_wrong_prices_give_a_larger_bound():
    price = single_path.prices(PUBLISHED, single_path.acceptance(PUBLISHED))
    best = duality.upper_bound(PUBLISHED, 1, "lossless", price)
    for node in range(1, PUBLISHED.size):
        for change in (Fraction(1, 10), -Fraction(1, 10)):
            other = price.copy()
            other[node] += change
            if other[node] >= 0:
                assert duality.upper_bound(PUBLISHED, 1, "lossless", other) >= best
    assert duality.upper_bound(PUBLISHED, 1, "lossless", price * 0) == 2


def test_block_verification_against_another_law_uses_that_law():
    kappa = np.array([Fraction(1, 2), 0, 0, Fraction(1, 2)], dtype=object)
    drafted = selected_mass(PUBLISHED, kappa)
    phi = single_path.acceptance(PUBLISHED, drafted)
    assert phi.tolist() == [1, Fraction(1, 3), Fraction(1, 2), Fraction(1, 9), 0, 0, Fraction(1, 3)]


def test_models_with_a_capped_prefix_accept_less():
    model = modeling.lossless(PUBLISHED, modeling.independent(PUBLISHED, 1))
    capped = model.with_constraints(first=model.variables["phi"][1] <= 0.25)
    assert capped.solve() < model.solve() - 0.05
