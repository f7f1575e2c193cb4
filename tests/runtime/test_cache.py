"""Slots of a model: growth, forgetting, keeping a path, rows of different lengths; broken uses are seen."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from specbound.runtime import cache
from specbound.runtime.cache import CachedModel
from specbound.runtime.tree_attention import merge_paths
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
            logits = cached.read(TEXT[:, start:end])
            torch.testing.assert_close(logits, wanted[:, start:end], rtol=0, atol=1e-12)
            cached.forget_tail([end])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kept_path_stands_as_if_it_had_been_fed_alone(family):
    model = tiny(family, 1, vocab=9, layers=2)
    with torch.no_grad():
        kept, wanted = CachedModel(model, 1), rows_of(model, TEXT[:, :8])
        kept.read(TEXT[:, :4])
        kept.forget_tail([4])
        fed = torch.tensor([[0, TEXT[0, 4], 3, TEXT[0, 5]]])
        sees = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]).bool()
        logits = kept.extend(fed, torch.tensor([[4, 4, 5, 5]]), sees)
        torch.testing.assert_close(logits[:, [1, 3]], wanted[:, [4, 5]], rtol=0, atol=1e-12)
        kept.keep_path(torch.tensor([[1, 3]]))
        kept.forget_tail([6])
        after = kept.read(TEXT[:, 6:8])
        torch.testing.assert_close(after, wanted[:, 6:], rtol=0, atol=1e-12)


def test_rows_of_different_lengths_do_not_see_each_other():
    model = tiny("llama", 2, vocab=9, layers=2)
    cached = CachedModel(model, 2)
    both = torch.cat([TEXT[:, :6], TEXT[:, 10:16]])
    with torch.no_grad():
        cached.read(both)
        cached.forget_tail([5, 2])
        fed = torch.stack([TEXT[0, 5:8], TEXT[0, 12:15]])
        logits = cached.read(fed)
    torch.testing.assert_close(logits[:1], rows_of(model, TEXT[:, :8])[:, 5:], rtol=0, atol=1e-12)
    torch.testing.assert_close(logits[1:], rows_of(model, TEXT[:, 10:15])[:, 2:], rtol=0, atol=1e-12)


def test_hidden_states_are_what_the_head_reads():
    model = tiny("qwen2", 2, vocab=9, layers=2)
    cached = CachedModel(model, 1, wants_hidden=True)
    with torch.no_grad():
        logits = cached.read(TEXT[:, :5])
        assert cached.hidden.shape == (1, 5, 8)
        torch.testing.assert_close(model.lm_head(cached.hidden), logits)
    assert CachedModel(model, 1).hidden is None


def windowed(layer_types, window=4):
    config = {"num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 8, "intermediate_size": 16}
    return spread(
        Qwen2ForCausalLM(
            Qwen2Config(
                **config, vocab_size=9, num_hidden_layers=len(layer_types), layer_types=layer_types,
                use_sliding_window=True, sliding_window=window, max_position_embeddings=64,
            )
        )
    )  # fmt: skip


def spread(model):
    """Weights large enough that every token of the context matters."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.6 if weight.ndim > 1 else weight)
    return model.double().eval()


@pytest.mark.parametrize("last", [0, 1, 7])
def test_long_runs_over_windows_are_fed_in_chunks_with_the_same_rows(monkeypatch, last):
    model = windowed(["sliding_attention", "full_attention"])
    with torch.no_grad():
        wanted = rows_of(model, TEXT)
        monkeypatch.setattr(cache, "CHUNK", 5)
        sizes: list[int] = []
        feed = CachedModel._feed
        monkeypatch.setattr(
            CachedModel, "_feed", lambda self, ids, *rest: sizes.append(ids.shape[1]) or feed(self, ids, *rest)
        )
        logits = CachedModel(model, 1).read(TEXT, last)
    assert sum(sizes) == TEXT.shape[1]
    assert max(sizes) == max(5, last)
    torch.testing.assert_close(logits, wanted[:, -last:], rtol=0, atol=1e-12)


KINDS = [["sliding_attention"] * 2, ["sliding_attention", "full_attention"]]


@pytest.mark.parametrize("spare", [1, 256])
@pytest.mark.parametrize("kinds", KINDS, ids=["all", "mixed"])
def test_beyond_a_sliding_window_pieces_trees_and_rows_give_the_rows_of_one_pass(kinds, spare, monkeypatch):
    monkeypatch.setattr(cache, "ROLLBACK", 0)
    monkeypatch.setattr(cache, "SPARE", spare)
    model = windowed(kinds)
    both = torch.cat([TEXT[:, :30], TEXT[:, 10:40]])
    with torch.no_grad():
        wanted = rows_of(model, both)
        everything = windowed(["full_attention"] * 2)
        everything.load_state_dict(model.state_dict())
        assert (rows_of(everything, both) - wanted).abs().max() > 1e-2
        cached = CachedModel(model, 2)
        torch.testing.assert_close(cached.read(both[:, :12]), wanted[:, :12], rtol=0, atol=1e-12)
        cached.forget_tail([12, 9])
        fed = torch.stack([both[0, 12:17], both[1, 9:14]])
        logits = cached.read(fed)
        torch.testing.assert_close(logits[0], wanted[0, 12:17], rtol=0, atol=1e-12)
        torch.testing.assert_close(logits[1], wanted[1, 9:14], rtol=0, atol=1e-12)
        cached.forget_tail([17, 10])
        tokens = torch.stack([both[0, 17:23], both[1, 10:16]])
        merged = merge_paths(torch.tensor([0, 0]), torch.stack([8 - tokens, tokens], dim=1))
        base = torch.tensor([[16], [9]])
        logits = cached.extend(merged.tokens[:, 1:], base + merged.depth[:, 1:], merged.sees[:, 1:, 1:])
        slots = merged.place[:, 1, 1:] - 1
        torch.testing.assert_close(logits[0, slots[0]], wanted[0, 17:23], rtol=0, atol=1e-12)
        torch.testing.assert_close(logits[1, slots[1]], wanted[1, 10:16], rtol=0, atol=1e-12)
        cached.keep_path(slots)
        cached.forget_tail([23, 16])
        after = cached.read(torch.stack([both[0, 23:24], both[1, 16:17]]))
        torch.testing.assert_close(after[0, 0], wanted[0, 23], rtol=0, atol=1e-12)
        torch.testing.assert_close(after[1, 0], wanted[1, 16], rtol=0, atol=1e-12)
        assert bool(cached.cache.dropped[0]) == (spare == 1)
        assert not any(cached.cache.dropped[layer] for layer, kind in enumerate(kinds) if kind == "full_attention")


def test_layers_with_a_window_keep_its_slots_and_a_few_more(monkeypatch):
    monkeypatch.setattr(cache, "ROLLBACK", 2)
    monkeypatch.setattr(cache, "SPARE", 3)
    monkeypatch.setattr(cache, "SLOTS_AT_FIRST", 1)
    monkeypatch.setattr(cache, "CHUNK", 4)
    model = windowed(["sliding_attention", "full_attention"])
    cached = CachedModel(model, 1)
    with torch.no_grad():
        wanted = rows_of(model, TEXT)
        cached.start(TEXT[:, :21], [20])
        for end in range(20, 40):
            logits = cached.read(TEXT[:, end : end + 1])
            torch.testing.assert_close(logits[:, 0], wanted[:, end], rtol=0, atol=1e-12)
            cached.forget_tail([end + 1])
    window, whole = (keys.shape[2] for keys, _ in cached.cache.stores)
    assert window <= 2 * (4 + 2 + 3 + 4)
    assert whole >= 40
    cached.forget_tail([38])
    with pytest.raises(RuntimeError, match="a row goes back to 10 tokens"):
        cached.forget_tail([10])
