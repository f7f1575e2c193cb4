"""Agreement of a run with its exact laws: right runs agree, runs of another verifier do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specbound.proofs_checks.laws.law import batch_of, exact_law
from specbound.proofs_checks.laws.prediction import agreement, mean_interval
from specbound.runtime.draws import Draws
from specbound.runtime.verifiers import verify
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.single_path import acceptance

TREES = [PrefixTree.random(3, 3, seed) for seed in range(200)]
AT_LEAST = [[float(phi[level].sum()) for level in tree.levels] for tree in TREES for phi in [acceptance(tree)]]


def simulated(name):
    """Acceptance length of one call on each tree, drafts and coins drawn by a seeded generator."""
    rng, draws = np.random.default_rng(0), Draws(torch.Generator().manual_seed(0))
    accepted = []
    for tree in TREES:
        joint = tree.draft_joint[tree.leaves]
        leaf = rng.choice(len(joint), p=joint / joint.sum()) + tree.leaves.start
        accepted.append(int(verify(name, batch_of(tree, np.array([[leaf]])), draws).accepted))
    return accepted


def test_a_run_agrees_with_the_laws_of_its_own_verifier():
    found = agreement(simulated("block"), AT_LEAST)
    assert found.agrees
    assert found.calls == 200


def test_a_run_that_keeps_a_token_too_many_at_every_second_call_does_not_agree():
    accepted = [tau + (i % 2 == 0) for i, tau in enumerate(simulated("block"))]
    assert not agreement(accepted, AT_LEAST).agrees


def test_certain_laws_leave_no_room():
    tree = PrefixTree.iid([0.5, 0.5], [0.5, 0.5], 2)
    law = exact_law("block", tree).accepted
    assert agreement([2, 2], [law, law]).agrees
    assert agreement([2, 2], [law, law]).half_width < 1e-6
    assert not agreement([2, 1], [law, law]).agrees


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="one law per call"):
        agreement([1], [])


def test_the_interval_of_a_mean_matches_the_textbook():
    low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert abs((high - low) / 2 - 1.959964 * np.sqrt(2.5 / 5)) < 1e-6
    assert mean_interval([1.0]) == (-np.inf, np.inf)
