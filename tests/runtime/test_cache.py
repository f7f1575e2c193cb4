"""Slots of a model: growth, forgetting, keeping a path, rows of different lengths; broken uses are seen."""

from __future__ import annotations

import pytest
import torch

from specbound.runtime import cache
from specbound.runtime.cache import CachedModel, causal
from tests.support.tiny_models import FAMILIES, tiny

TEXT = torch.randint(9, (1, 40), generator=torch.Generator().manual_seed(0))


def rows_of(model, tokens):
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_fed_in_pieces_give_the_rows_of_one_pass_while_the_store_grows(family, monkeypatch):
    monkeypatch.setattr(cache, "SLOTS_AT_FIRST", 4)
    model = tiny(family, 0, vocab=9, layers=2)
    cached, wanted = CachedModel(model, 1), rows_of(model, TEXT)
    with torch.no_grad():
        for start, end in ((0, 3), (3, 4), (4, 5), (5, 12), (12, 13), (13, 40)):
            tail = None if end - start == 1 else causal(end - start)
            logits = cached.extend(TEXT[:, start:end], torch.arange(start, end)[None], tail)
            torch.testing.assert_close(logits, wanted[:, start:end], rtol=0, atol=1e-12)
            cached.forget_tail([end])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kept_path_stands_as_if_it_had_been_fed_alone(family):
    model = tiny(family, 1, vocab=9, layers=2)
    with torch.no_grad():
        kept, wanted = CachedModel(model, 1), rows_of(model, TEXT[:, :8])
        kept.extend(TEXT[:, :4], torch.arange(4)[None], causal(4))
        kept.forget_tail([4])
        fed = torch.tensor([[0, TEXT[0, 4], 3, TEXT[0, 5]]])
        sees = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]).bool()
        logits = kept.extend(fed, torch.tensor([[4, 4, 5, 5]]), sees)
        torch.testing.assert_close(logits[:, [1, 3]], wanted[:, [4, 5]], rtol=0, atol=1e-12)
        kept.keep_path(torch.tensor([[1, 3]]))
        kept.forget_tail([6])
        after = kept.extend(TEXT[:, 6:8], torch.arange(6, 8)[None], causal(2))
        torch.testing.assert_close(after, wanted[:, 6:], rtol=0, atol=1e-12)


def test_rows_of_different_lengths_do_not_see_each_other():
    model = tiny("llama", 2, vocab=9, layers=2)
    cached = CachedModel(model, 2)
    both = torch.cat([TEXT[:, :6], TEXT[:, 10:16]])
    with torch.no_grad():
        cached.extend(both, torch.arange(6).expand(2, 6), causal(6))
        cached.forget_tail([5, 2])
        fed = torch.stack([TEXT[0, 5:8], TEXT[0, 12:15]])
        logits = cached.extend(fed, torch.tensor([[5, 6, 7], [2, 3, 4]]), causal(3))
    torch.testing.assert_close(logits[:1], rows_of(model, TEXT[:, :8])[:, 5:], rtol=0, atol=1e-12)
    torch.testing.assert_close(logits[1:], rows_of(model, TEXT[:, 10:15])[:, 2:], rtol=0, atol=1e-12)


def test_hidden_states_are_what_the_head_reads():
    model = tiny("qwen2", 2, vocab=9, layers=2)
    cached = CachedModel(model, 1, wants_hidden=True)
    with torch.no_grad():
        logits = cached.extend(TEXT[:, :5], torch.arange(5)[None], causal(5))
        assert cached.hidden.shape == (1, 5, 8)
        torch.testing.assert_close(model.lm_head(cached.hidden), logits)
    assert CachedModel(model, 1).hidden is None
