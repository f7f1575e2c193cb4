"""The law of a stream over several calls: against closed forms, brute force, and verifiers that are wrong."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.stream import _significant, expected_tokens, stream_law
from specbound.runtime.verdict import Verdict
from specbound.runtime.verifiers.token import verify_token
from specbound.theory.contexts import ModelPair
from specbound.theory.prefix_tree import PrefixTree

F = Fraction
A, B = [F(1, 3), F(2, 3)], [F(2, 3), F(1, 3)]
PUBLISHED = ModelPair.iid(A, B)
CHAIN = ModelPair.markov([[F(3, 4), F(1, 4)], A], [[F(1, 2), F(1, 2)], B], start=1)


def test_the_target_law_of_a_chain_is_the_product_of_its_rows():
    law = CHAIN.target_law(2)
    assert law == pytest.approx({(0, 0): 1 / 4, (0, 1): 1 / 12, (1, 0): 2 / 9, (1, 1): 4 / 9}, abs=1e-15)
    assert sum(CHAIN.target_law(5).values()) == pytest.approx(1, abs=1e-14)


def test_a_tree_and_the_functions_it_came_from_give_the_same_pair():
    def target(prefix):
        return [F(1 + len(prefix), 10), 1 - F(1 + len(prefix), 10)]

    def draft(prefix):
        return A if sum(prefix) % 2 else B

    tree = PrefixTree.from_conditionals(target, draft, 2, 4)
    ours, theirs = ModelPair.from_tree(tree), ModelPair.from_conditionals(target, draft, 2, 4)
    assert np.array_equal(ours.successor, theirs.successor)
    assert np.array_equal(ours.target.rows, theirs.target.rows)
    assert ours.target_law(5) == pytest.approx({k: float(v) for k, v in tree.target_law().items()}, abs=1e-15)


@pytest.mark.parametrize("name", ["token", "block"])
@pytest.mark.parametrize("pair", [PUBLISHED, CHAIN], ids=["iid", "markov"])
def test_a_lossless_stateless_verifier_has_the_target_law_over_several_calls(name, pair):
    law = stream_law(name, pair, (2, 3, 1), 5)
    assert law.mass == pytest.approx(1, abs=1e-12)
    assert law.total_variation(pair.target_law(5)) < 1e-12


def uncorrected(batch, draws):
    """Broken: after a rejection the correction is drawn from the target itself."""
    verdict = verify_token(batch, draws)
    row = batch.target_probs[torch.arange(len(verdict.accepted)), 0, verdict.accepted]
    return Verdict(verdict.path, verdict.accepted, draws.choose(row))


def test_a_wrong_correction_is_seen_by_hand_in_the_first_token():
    """Pr(first token = 0) = accept 1/3 + reject 1/3 x target 1/3 = 4/9 instead of 1/3."""
    law = stream_law(uncorrected, PUBLISHED, 1, 1)
    assert law.tokens == pytest.approx({(0,): 4 / 9, (1,): 5 / 9}, abs=1e-12)
    assert law.total_variation(PUBLISHED.target_law(1)) == pytest.approx(1 / 9, abs=1e-12)


def test_one_call_agrees_with_the_exact_law_of_a_block():
    tree = PrefixTree.random(3, 2, seed=5)
    for name in ("greedy-block", "token"):
        call = exact_law(name, tree)
        first = expected_tokens(name, ModelPair.from_tree(tree), 2, 1)
        assert first == pytest.approx([call.acceptance_length + 1], abs=1e-12)


def test_calls_until_n_tokens_are_out_follow_from_one_token_per_call():
    """Disjoint models: token verification emits exactly one token per call."""
    pair = ModelPair.iid([0, 1], [1, 0])
    assert stream_law("token", pair, 2, 4).calls == pytest.approx(4)
    assert expected_tokens("token", pair, 2, 4) == pytest.approx([1, 2, 3, 4])


@pytest.mark.parametrize(
    "target, draft, length, per_call",
    [(A, B, 2, 91 / 36), ([F(3, 4), F(1, 4)], [F(1, 2), F(1, 2)], 2, 49 / 18), ([0.9, 0.1], [0.5, 0.5], 2, 979 / 405)],
)
def test_the_key_race_emits_its_known_tokens_per_call(target, draft, length, per_call):
    race = expected_tokens("key-race", ModelPair.iid(target, draft), length, 2, paths=2)
    assert race == pytest.approx([per_call, 2 * per_call], abs=1e-12)


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match="tokens is 0"):
        stream_law("token", PUBLISHED, 2, 0)
    with pytest.raises(ValueError, match="not known far enough"):
        stream_law("token", ModelPair.from_tree(PrefixTree.iid(A, B, 3)), 2, 3)
    assert stream_law("token", ModelPair.from_tree(PrefixTree.iid(A, B, 4)), 2, 3).mass == pytest.approx(1)
    with pytest.raises(ValueError, match="too many to enumerate"):
        stream_law("key-race", PUBLISHED, 6, 3, paths=4)
    with pytest.raises(ValueError, match=r"draft\[0\] has 3 entries; want 2, one per token"):
        ModelPair.iid(A, [F(1, 3)] * 3)


def test_carries_are_told_apart_by_twelve_digits():
    """Rounding in the last digits merges, a difference in the eleventh does not; zeros of both signs are one."""
    numbers = np.array([1 / 3, -2e-9, 0.0, 7e8])
    same, other = _significant(numbers * (1 + 4e-16)), _significant(numbers * (1 + 1e-10))
    assert same.tobytes() == _significant(numbers).tobytes()
    assert (other != _significant(numbers)).tolist() == [True, True, False, True]
    assert _significant(np.array([-0.0])).tobytes() == np.array([0.0]).tobytes()
