"""Draft length policies: when they stop, and where a length that looks at the draft keeps the output law."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.stream import stream_law
from specbound.runtime.acceptance_head import AcceptanceHead
from specbound.runtime.lengths import AcceptanceHeadLength, ConfidenceLength, EntropyLength, FixedLength, MeasuredLength
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get, greedy_block
from specbound.theory.contexts import ModelPair
from specbound.theory.prefix_tree import PrefixTree

ROW = torch.tensor([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
TOKEN = torch.tensor([0, 1, 0])


def constant_head(probability, size=2, calibrated=False):
    """A head that predicts the same raw probability whatever it reads."""
    head = AcceptanceHead(size, blocks=0, calibrated=calibrated)
    with torch.no_grad():
        head.output.weight.zero_()
        head.output.bias.copy_(torch.tensor([0.0, torch.logit(torch.tensor(probability)).item()]))
    return head


def drafted_until_stop(policy, requests=1):
    """How many tokens a request drafts under a policy, as the decoder asks it."""
    state = None
    token = torch.zeros(requests, dtype=torch.int64)
    for drafted in range(1, 100):
        stop, state = policy.should_stop(
            state, draft_row=ROW[:requests], hidden=torch.zeros(requests, 2), token=token, drafted=drafted
        )
        if bool(stop.all()):
            return drafted
    raise AssertionError("the policy never stops")


def test_a_fixed_length_stops_exactly_there():
    assert [drafted_until_stop(FixedLength(length)) for length in (1, 4)] == [1, 4]
    assert (FixedLength(4).minimum, FixedLength(4).maximum, FixedLength(4).adaptive) == (4, 4, False)


@pytest.mark.parametrize("threshold, drafted", [(0.3, 5), (0.0, 2), (0.15, 3), (0.2, 4)])
def test_the_head_stops_once_a_rejection_is_likelier_than_the_threshold(threshold, drafted):
    """Predictions of 0.9: 1 - 0.9^(k-1) passes 0.3 at k = 5, one token after the token that made it so."""
    policy = AcceptanceHeadLength(constant_head(0.9), threshold=threshold, maximum=16)
    assert drafted_until_stop(policy) == drafted


@pytest.mark.parametrize("threshold, drafted", [(0.3, 2), (0.7, 4)])
def test_a_raw_head_trained_with_class_weight_six_stops_too_early(threshold, drafted):
    """True acceptance 0.9, raw prediction 0.9 / (0.9 + 6 x 0.1) = 0.6; the calibrated head stops at 5 and beyond."""
    raw = constant_head(0.6)
    assert drafted_until_stop(AcceptanceHeadLength(raw, threshold=threshold)) == drafted
    fair = constant_head(0.6, calibrated=True)
    assert fair.acceptance(torch.zeros(1, 2)).item() == pytest.approx(0.9, abs=1e-6)
    assert drafted_until_stop(AcceptanceHeadLength(fair, threshold=threshold)) == {0.3: 5, 0.7: 13}[threshold]


def test_bounds_hold_whatever_the_head_says():
    assert drafted_until_stop(AcceptanceHeadLength(constant_head(0.01), 0.5, minimum=4, maximum=6)) == 4
    assert drafted_until_stop(AcceptanceHeadLength(constant_head(0.99), 0.99, minimum=1, maximum=3)) == 3
    assert drafted_until_stop(ConfidenceLength(threshold=1.0, minimum=3, maximum=9)) == 3
    assert drafted_until_stop(ConfidenceLength(threshold=0.0, maximum=7)) == 7


def test_requests_stop_on_their_own():
    """A head that trusts the first request's states (log-odds +3) and not the second's (-3)."""
    head = AcceptanceHead(2, blocks=0, calibrated=False)
    with torch.no_grad():
        head.output.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        head.output.bias.zero_()
    policy = AcceptanceHeadLength(head, threshold=0.5)
    hidden = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    ask = {"draft_row": ROW[:2], "hidden": hidden, "token": TOKEN[:2]}
    stop, state = policy.should_stop(None, drafted=1, **ask)
    assert stop.tolist() == [False, False]
    stop, state = policy.should_stop(state, drafted=2, **ask)
    assert stop.tolist() == [False, True]
    assert state.tolist() == pytest.approx([1 / (1 + 2.718281828**-3), 1 / (1 + 2.718281828**3)], rel=1e-5)


def test_confidence_reads_the_probability_of_the_drafted_token():
    stop, _ = ConfidenceLength(threshold=0.5).should_stop(None, draft_row=ROW, hidden=None, token=TOKEN, drafted=1)
    assert stop.tolist() == [False, True, False]


def test_entropy_stops_where_the_draft_is_in_doubt():
    rows = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]])
    policy = EntropyLength(threshold=0.5, scale=0.2)
    stop, _ = policy.should_stop(None, draft_row=rows, hidden=None, token=TOKEN[:2], drafted=1)
    assert stop.tolist() == [True, False]
    bound = 1 - (0.2 * 1.3862943611) ** 0.5
    for threshold, wanted in ((bound - 1e-4, False), (bound + 1e-4, True)):
        stop, _ = replace(policy, threshold=threshold).should_stop(
            None, draft_row=rows, hidden=None, token=TOKEN[:2], drafted=1
        )
        assert stop[0].item() is wanted


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FixedLength(0), "minimum 0 and maximum 0"),
        (lambda: ConfidenceLength(0.5, minimum=5, maximum=4), "minimum 5 and maximum 4"),
        (lambda: ConfidenceLength(1.5), "threshold is 1.5"),
        (lambda: EntropyLength(scale=0), "scale is 0"),
        (lambda: AcceptanceHeadLength(constant_head(0.5), threshold=-1), "threshold is -1"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_head_asks_for_hidden_states():
    with pytest.raises(ValueError, match="hidden is None"):
        AcceptanceHeadLength(constant_head(0.5)).should_stop(None, draft_row=ROW, hidden=None, token=TOKEN, drafted=1)


# ---- where an adaptive length is lossless ---------------------------------------------------------------------


def shortened(name, stop_after_one):
    """The verifier with drafts of one token where the rule says so, of L tokens elsewhere.

    A short draft is padded by tokens that are certain under both laws, so every verifier can take it.
    """

    def verify(batch, draws):
        short = stop_after_one(batch.tokens[:, :, 0])[:, None, None]
        places = torch.arange(batch.target_probs.shape[2])
        padding = short & (places >= 1) & (places < batch.target_probs.shape[2] - 1)
        sure = torch.zeros_like(batch.target_probs)
        sure[..., 0] = 1
        target = torch.where(padding[..., None], sure, batch.target_probs)
        target[:, :, -1] = torch.where(short, batch.target_probs[:, :, 1], target[:, :, -1])
        draft = torch.where(padding[:, :, :-1, None], sure[:, :, :-1], batch.draft_probs)
        tokens = torch.where(padding[:, :, :-1], 0, batch.tokens)
        verdict = get(name).verify(Batch(tokens, draft, target, batch.carry), draws)
        return replace(verdict, accepted=torch.where(short[:, 0, 0], verdict.accepted.clamp_max(1), verdict.accepted))

    return verify


TREE = PrefixTree.random(3, 2, seed=11, concentration=1.0)


@pytest.mark.parametrize("name", ["token", "block"])
@pytest.mark.parametrize("token", [0, 1, 2])
def test_with_one_path_and_no_carry_a_length_that_looks_at_the_draft_is_lossless(name, token):
    verifier = shortened(name, lambda first: (first == token).all(dim=1))
    assert exact_law(verifier, TREE).total_variation(TREE.target_law()) < 1e-12


@pytest.mark.parametrize("name", ["two-level", "gbv"])
def test_with_two_paths_a_length_that_looks_at_the_drafts_is_lossy(name):
    """Stopping when both paths begin alike makes the paths that go on dependent on each other."""
    blind = shortened(name, lambda first: torch.ones_like(first[:, 0], dtype=torch.bool))
    looking = shortened(name, lambda first: first[:, 0] == first[:, 1])
    assert exact_law(blind, TREE, 2).total_variation(TREE.target_law()) < 1e-12
    assert exact_law(looking, TREE, 2).total_variation(TREE.target_law()) > 1e-3


def test_with_carried_layers_a_length_that_looks_at_the_draft_is_lossy(monkeypatch):
    """The layers cannot know where the rule would have stopped on branches that were not drafted."""
    pair = ModelPair.iid([1 / 2, 3 / 8, 1 / 8], [1 / 4, 1 / 4, 1 / 2])
    rules = {"looking": lambda batch: batch.tokens[:, 0, 0] == 2, "blind": lambda batch: batch.tokens[:, 0, 0] < 0}
    found = {}
    for name, rule in rules.items():

        def shorter(batch, draws, rule=rule):
            length = batch.shape[2] - rule(batch).long()
            monkeypatch.setattr(greedy_block, "usable_length", lambda carry, _: length)
            return greedy_block.verify_greedy_block(batch, draws)

        found[name] = stream_law(shorter, pair, 2, 3).total_variation(pair.target_law(3))
    assert found["looking"] > 1e-2
    assert found["blind"] < 1e-12


# ---- measured lengths -----------------------------------------------------------------------------------------------


def best_length(share, seconds):
    speeds = [sum(share**i for i in range(length + 1)) / cost for length, cost in enumerate(seconds)]
    return max(range(len(seconds)), key=speeds.__getitem__)


@pytest.mark.parametrize("seconds", [[1.0, 1.2, 1.4, 1.6, 1.8], [1.0, 2.5, 4.0, 5.5, 7.0], [1.0, 1.3, 2.4, 3.5, 4.6]])
def test_a_measured_length_is_the_fastest_for_the_share_of_tokens_kept(seconds):
    pace, found = MeasuredLength(4, seconds).pace(1, 1), set()
    for kept in (0, 0, 0, 4, 4, 4, 4, 4, 1, 2, 0, 0, 0, 0, 0, 0):
        pace.saw(4, None, [kept], [4])
        assert pace.length() == best_length(pace.kept / pace.reached, seconds)
        found.add(pace.length())
    assert len(found) > 1 or seconds[1] > 2


def test_the_share_kept_counts_tokens_that_were_reached():
    pace = MeasuredLength(4).pace(2, 1)
    pace.kept = pace.reached = 0.0
    pace.saw(4, 0.1, [2, 4], [4, 4])
    pace.saw(0, 0.1, [0, 0], [0, 0])
    assert (pace.kept, pace.reached) == (6, 7)


@pytest.mark.parametrize(("each", "best"), [(0.1, 8), (3.0, 0)])
def test_lengths_are_tried_then_the_fastest_is_kept_to(each, best):
    policy = MeasuredLength(8)
    pace, chosen = policy.pace(3, 1), []
    for _ in range(60):
        length = pace.length()
        chosen.append(length)
        pace.saw(length, 1 + each * length, [length] * 3, [length] * 3)
    assert {0, 1, 4} <= set(chosen[:6])
    assert chosen[20:].count(best) >= 39
    assert policy.pace(3, 1) is pace
    assert policy.pace(1, 1) is not pace


@pytest.mark.parametrize("arguments", [(0,), (2, [1.0, 2.0]), (1, [1.0, 0.0]), (1, [1.0, float("nan")])])
def test_measured_lengths_refuse_bounds_and_times_out_of_range(arguments):
    with pytest.raises(ValueError, match=r"draft length bounds|seconds is"):
        MeasuredLength(*arguments)
