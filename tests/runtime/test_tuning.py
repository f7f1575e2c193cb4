"""Tuning: kept probabilities estimate acceptance lengths at every draft length, and recommendations say how sure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specbound.proofs_checks.laws.law import batch_of, exact_law
from specbound.runtime.tuning import kept_probabilities, predicted_speed, recommend
from specbound.theory.prefix_tree import PrefixTree


@pytest.mark.parametrize("verifier", ["token", "block"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_long_drafts_tell_the_acceptance_length_of_shorter_ones_exactly(verifier, length):
    """Averaged over all drafts with their probabilities, c_1 + .. + c_L is the exact acceptance length at L."""
    tree = PrefixTree.random(3, 3, seed=4)
    leaves = np.arange(tree.leaves.start, tree.leaves.stop)
    kept = kept_probabilities(verifier, batch_of(tree, leaves[:, None])).numpy()
    expected = tree.draft_joint[leaves] @ kept[:, :length].sum(axis=1)
    assert abs(expected - exact_law(verifier, tree.truncated(length)).acceptance_length) < 1e-12


def test_token_statistics_do_not_pass_for_those_of_block_verification():
    tree = PrefixTree.random(3, 3, seed=4)
    leaves = np.arange(tree.leaves.start, tree.leaves.stop)
    kept = kept_probabilities("token", batch_of(tree, leaves[:, None])).numpy()
    assert abs(tree.draft_joint[leaves] @ kept.sum(axis=1) - exact_law("block", tree).acceptance_length) > 1e-2


def test_the_predicted_speed_counts_the_correction_token():
    assert predicted_speed(torch.tensor([[1.0, 0.5], [0.5, 0.0]]), 2, seconds_per_call=0.5) == pytest.approx(4.0)
    with pytest.raises(ValueError, match="length is 3; the run drafted 2 tokens"):
        predicted_speed(torch.ones(1, 2), 3, 1.0)


def test_a_clear_winner_is_recommended_with_confidence():
    found = recommend({"slow": [10, 10, 10], "fast": [10, 10, 10]}, {"slow": [2.0, 2.1, 1.9], "fast": [1.0, 1.1, 0.9]})
    assert 1.9 < found.speedup[0] <= 2 <= found.speedup[1] < 2.2
    assert (found.name, found.confidence, found.rivals) == ("fast", 1.0, ("fast",))


def test_a_close_race_names_the_rivals():
    found = recommend({"a": [10, 10, 10, 10], "b": [10, 10, 10, 10]}, {"a": [1, 2, 1, 2.1], "b": [2, 1, 2, 1]})
    assert found.name == "b"
    assert found.confidence < 0.9
    assert set(found.rivals) == {"a", "b"}


def test_unequal_numbers_of_prompts_are_refused():
    with pytest.raises(ValueError, match="one entry per prompt"):
        recommend({"a": [1, 2]}, {"a": [1.0]})


def test_verifiers_without_a_closed_form_are_refused():
    tree = PrefixTree.random(2, 2, seed=0)
    with pytest.raises(ValueError, match="want 'block' or 'token'"):
        kept_probabilities("two-level", batch_of(tree, np.array([[3]])))
    with pytest.raises(ValueError, match="2 paths; want 1"):
        kept_probabilities("block", batch_of(tree, np.array([[3, 4]])))
