"""Models that keep a state: copies of it stand in for what key/value slots can roll back."""

from __future__ import annotations

import copy

import pytest
import torch

from specbound.runtime import recurrent
from specbound.runtime.decode import generate
from specbound.runtime.models import has_slots
from specbound.runtime.recurrent import StateModel, takes_runs
from specbound.runtime.tree_attention import merge_paths
from tests.support.architectures import VOCAB, toy
from tests.support.tiny_models import distance, replayed_law, target_law, tiny

TEXT = torch.randint(3, VOCAB, (2, 14), generator=torch.Generator().manual_seed(0))
FAMILIES = ["mamba", "olmo_hybrid", "bloom"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return toy(request.param)


@pytest.mark.parametrize("refed", [0, 3, 100])
def test_pieces_trees_and_rows_of_different_length_give_the_rows_of_one_pass(model, monkeypatch, refed):
    monkeypatch.setattr(recurrent, "REFED", refed)
    close = {"rtol": 0, "atol": 1e-4}
    with torch.no_grad():
        wanted = model(input_ids=TEXT).logits
        state = StateModel(model, 2)
        torch.testing.assert_close(state.read(TEXT[:, :5]), wanted[:, :5], **close)
        state.forget_tail([4, 2])
        known = torch.stack([TEXT[0, 4], TEXT[1, 2]])
        tokens = torch.stack([TEXT[0, 5:8], TEXT[1, 3:6]])
        merged = merge_paths(known, torch.stack([VOCAB - tokens, tokens], dim=1))
        logits = state.extend(merged.tokens, torch.tensor([[4], [2]]) + merged.depth, merged.sees)
        torch.testing.assert_close(logits[0, merged.place[0, 1]], wanted[0, 4:8], **close)
        torch.testing.assert_close(logits[1, merged.place[1, 1]], wanted[1, 2:6], **close)
        state.keep_path(merged.place[:, 1])
        state.forget_tail([7, 4])
        after = state.read(torch.stack([TEXT[0, 7:10], TEXT[1, 4:7]]), last=2)
        torch.testing.assert_close(after[0], wanted[0, 8:10], **close)
        torch.testing.assert_close(after[1], wanted[1, 5:7], **close)
        state.forget_tail([9, 3])
        again = state.read(torch.stack([TEXT[0, 9:11], TEXT[1, 3:5]]), last=1)
        torch.testing.assert_close(again[:, 0], torch.stack([wanted[0, 10], wanted[1, 4]]), **close)


def test_a_state_that_is_fed_instead_of_its_copy_is_seen(monkeypatch):
    model = toy("mamba")
    monkeypatch.setattr(recurrent, "copy", type("Same", (), {"deepcopy": staticmethod(lambda state: state)}))
    with torch.no_grad():
        wanted = model(input_ids=TEXT[:1]).logits
        state = StateModel(model, 1)
        state.read(TEXT[:1, :5])
        state.forget_tail([5])
        state.read(TEXT[:1, 8:10])
        state.forget_tail([5])
        assert (state.read(TEXT[:1, 5:6])[0, 0] - wanted[0, 5]).abs().max() > 1e-2


def test_only_some_models_take_runs_behind_a_state():
    assert [takes_runs(toy(family)) for family in ("mamba", "olmo_hybrid")] == [False, True]
    assert not has_slots(toy("mamba"))
    assert has_slots(tiny("llama", 0, vocab=9))


@pytest.mark.parametrize(("verifier", "paths"), [("block", 1), ("traversal", 2)])
@pytest.mark.parametrize("as_target", [True, False], ids=["target", "draft"])
def test_greedy_output_is_the_greedy_output_of_the_target(model, as_target, verifier, paths):
    other = toy("llama", seed=3)
    target, draft = (model, other) if as_target else (other, copy.copy(model))
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[0, :2] = 0
    settings = {"do_sample": False, "max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0}
    ours = generate(target, draft, TEXT[:, :6], mask, verifier=verifier, paths=paths, length=3, **settings).sequences
    for row in range(2):
        alone = TEXT[row, :6][mask[row].bool()][None]
        plain = target.generate(alone, **settings)
        assert ours[row, 6:].tolist() == plain[0, alone.shape[1] :].tolist()


def test_the_whole_loop_has_the_law_of_a_recurrent_target():
    target, draft = toy("mamba", vocab_size=2, pad_token_id=None), tiny("llama", 1, vocab=2)
    law = replayed_law(target, draft, [[1, 0]], 2, rows_per_pass=1, verifier="block", length=1, eos_token_id=None)[0]
    assert distance(law, target_law(target, [1, 0], 2)) < 1e-6
