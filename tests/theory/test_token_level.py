"""Token verification: closed form, HiGHS and CVXPY agree; it is the optimum over causal verifiers and no more."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings

from specbound.theory import modeling, single_path, token_level
from specbound.theory.solution import CertificateError, certify
from tests.support.reference import DEGENERATE, INSTANCES, small_trees
from tests.support.second_routes import clipped, token_verification_by_lp
from tests.support.strategies import PUBLISHED, trees

VALUES = {"I1": "10/9", "I2": "38/27", "I3": "2", "I4": "2/3", "I5": "10/9", "I6": "17/16", "I7": "101/75"}


@pytest.mark.parametrize("name", VALUES)
def test_reference_values_are_reproduced_as_fractions(name):
    assert token_level.optimum(INSTANCES[name]).exact == Fraction(VALUES[name])


def test_acceptance_is_the_product_of_the_smaller_probabilities():
    third = Fraction(1, 3)
    expected = [1, third, third, third**2, third**2, third**2, third**2]
    assert token_level.acceptance(PUBLISHED).tolist() == expected


@pytest.mark.parametrize("tree", small_trees(12) + list(DEGENERATE.values()))
def test_closed_form_highs_and_cvxpy_agree(tree):
    closed = token_level.optimum(tree)
    assert closed.gap <= 1e-12
    assert closed.lossless
    assert abs(token_verification_by_lp(tree).value - closed.value) < 1e-9
    assert abs(modeling.token_level(tree).solve() - closed.value) < 1e-7


@settings(max_examples=30, deadline=None)
@given(trees())
def test_the_gap_is_exactly_zero_on_fractions_and_block_verification_is_never_worse(tree):
    solution = token_level.optimum(tree)
    assert solution.exact is not None
    assert solution.exact <= single_path.optimum(tree).exact


def test_looking_ahead_is_not_allowed_at_token_level():
    block = single_path.optimum(PUBLISHED)
    with pytest.raises(CertificateError, match="phi fails the token constraints"):
        certify(PUBLISHED, block.phi, block.exact, objective="token", solver="block", seconds=0)


def test_clipping_only_removes_what_breaks_the_constraints():
    ratio = np.minimum(PUBLISHED.target, PUBLISHED.draft).astype(float)
    phi = token_level.acceptance(PUBLISHED).astype(float)
    assert np.array_equal(clipped(PUBLISHED, phi, ratio), phi)
    assert np.array_equal(clipped(PUBLISHED, phi + 1e-9 * (np.arange(7) > 0), ratio), phi)
