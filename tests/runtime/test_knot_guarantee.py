"""Rows of more than 256 tokens are read at fixed knots: what the score race's reserve may lose, and what it keeps.

Block verification keeps min(1, k r) of the drafts through a token of ratio r behind a prefix of which it keeps the
share k; the reserve at the knots is the line between its values there.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime.parts import ratio_knots
from specbound.theory import single_path
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import INSTANCES, decoy, sparse

KNOTS = ratio_knots.fixed_knots(torch.device("cpu")).numpy()
STEP = math.sqrt(17 / 16)
MOST_LOST = (STEP - 1) / (STEP + 1)


def lost(kept: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Share of min(1, k r) that the line between the knots leaves out."""
    line = [np.interp(r, KNOTS, np.minimum(1, k * KNOTS)) for k, r in zip(kept, ratio, strict=True)]
    return 1 - np.array(line) / np.minimum(1, kept * ratio)


def test_a_reserve_is_short_by_less_than_two_percent_where_the_ratio_passes_what_is_kept():
    kept = np.geomspace(1 / 256, 1, 20_001)
    worst = lost(kept, 1 / kept).max()
    assert 0.015 < 0.999 * MOST_LOST < worst <= MOST_LOST + 1e-12 < 0.0152
    kept, ratio = 2.0 ** np.random.default_rng(0).uniform((-8, -8), (0, 8), (20_000, 2)).T
    assert lost(kept, ratio).max() <= MOST_LOST + 1e-12


def test_behind_prefixes_that_are_hardly_kept_the_last_knot_loses_more():
    assert lost(np.array([2.0**-12]), np.array([2.0**12])) == pytest.approx(1 - 2.0**-4)


TREES = [decoy(0.5, 0.1, 8), decoy(0.3, 0.02, 4), sparse(2, 2, 1), sparse(2, 2, 7), *list(INSTANCES.values())[::4]]


@pytest.fixture
def knots_only(monkeypatch):
    """Every row is read at the fixed knots, however few tokens it has."""
    monkeypatch.setattr(ratio_knots, "MOST", 0)


@pytest.mark.usefixtures("knots_only")
def test_no_adversarial_row_was_found_where_less_is_kept_than_by_block_verification():
    over = []
    for tree in TREES:
        block = float(single_path.acceptance(tree.as_float())[1:].sum())
        over.append(exact_law("score-race", tree, 2).acceptance_length - block)
    assert min(over) > -1e-9


@pytest.mark.usefixtures("knots_only")
def test_without_a_reserve_less_is_kept_on_the_decoy():
    tree: PrefixTree = TREES[0]
    assert exact_law("score-race-2", tree, 2).acceptance_length < single_path.acceptance(tree)[1:].sum() - 0.03
