"""Key/value slots of one causal language model: rows of different lengths, drafted trees, and keeping one path.

B rows, n tokens fed at once, V vocabulary. The committed tokens of row b lie in slots 0..base_b - 1, and slot is
position: a prompt's padding never enters. Tokens fed after them form the row's *tail*, slots base_b, base_b + 1, ...
A tail may hold a tree: which of its slots a token sees is given, and its position is given too. Forgetting a tail
costs nothing (the next one overwrites it); keeping a path moves its slots to the front of the tail.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from .models import context_limit, input_device

SLOTS_AT_FIRST = 256


class SlotCache(Cache):
    """Keys and values of every layer, [B, heads, slots, size]; `CachedModel` says where the next tokens go."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.stores: list[tuple[Tensor, Tensor]] = []
        self.start: int | None = None
        self.slots: Tensor | None = None
        self.end = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values into their slots; return all slots in use."""
        while len(self.stores) <= layer_idx:
            self.stores.append((_store(key_states, self.end), _store(value_states, self.end)))
        if self.stores[layer_idx][0].shape[2] < self.end:
            keys, values = self.stores[layer_idx]
            self.stores[layer_idx] = (_grown(keys, self.end), _grown(values, self.end))
        keys, values = self.stores[layer_idx]
        for store, states in ((keys, key_states), (values, value_states)):
            if self.slots is None:
                store[:, :, self.start : self.end] = states
            else:
                store.scatter_(2, self.slots.to(store.device)[:, None, :, None].expand(states.shape), states)
        return keys[:, :, : self.end], values[:, :, : self.end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots in use; models read it only where no positions are given."""
        return self.end

    def move(self, source: Tensor, to: Tensor) -> None:
        """Copy slots `source` [B, m] to slots `to` [B, m] in every layer."""
        for pair in self.stores:
            for store in pair:
                shape = (store.shape[0], store.shape[1], source.shape[1], store.shape[3])
                kept = store.gather(2, source.to(store.device)[:, None, :, None].expand(shape))
                store.scatter_(2, to.to(store.device)[:, None, :, None].expand(shape), kept)


def _store(states: Tensor, end: int) -> Tensor:
    rows, heads, _, size = states.shape
    return states.new_zeros(rows, heads, max(end, SLOTS_AT_FIRST), size)


def _grown(store: Tensor, end: int) -> Tensor:
    rows, heads, slots, size = store.shape
    grown = store.new_zeros(rows, heads, max(end, 2 * slots), size)
    grown[:, :, :slots] = store
    return grown


class CachedModel:
    """A causal language model and its slots.

    Attributes:
        base: for each row the number of committed tokens.
        hidden [B, n, D]: last hidden states of the tokens fed last, what the language-model head read; None unless
            `wants_hidden`.
        window: tokens the model can read, None if unlimited; a draft that overshoots it (its tokens are then cut
            from the output anyway) repeats the last position.
    """

    def __init__(self, model: PreTrainedModel, rows: int, wants_hidden: bool = False) -> None:
        self.model = model
        self.base = [0] * rows
        self.cache = SlotCache()
        self.window = context_limit(model)
        self.vocab = int(model.get_input_embeddings().weight.shape[0])
        self.hidden: Tensor | None = None
        self.options = {"use_cache": True, "return_dict": True}
        if wants_hidden:
            self.options["output_hidden_states"] = True
        self.takes_logits_to_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.device = input_device(model)
        self.all_visible = torch.zeros(1, 1, 1, SLOTS_AT_FIRST, dtype=model.dtype, device=self.device)

    def extend(self, tokens: Tensor, positions: Tensor, tail: Tensor | None, last: int = 0) -> Tensor:
        """Feed n tokens per row behind the committed ones; logits [B, n, V], or of the `last` tokens if not 0.

        Args:
            tokens, positions [B, n] int64.
            tail: bool [n, m] or [B, n, m], m >= n: which of the tail's first m slots each token sees, besides all
                committed ones; the tokens themselves take the last n of the m. None: one token per row, which
                sees every slot so far (single rows only).
        """
        count = tokens.shape[1]
        size = tail.shape[-1] if tail is not None else self.cache.end - self.base[0] + 1
        self.cache.end = max(self.base) + size
        if min(self.base) == max(self.base):
            self.cache.start, self.cache.slots = self.cache.end - count, None
        else:
            places = torch.arange(size - count, size, device=self.device)
            self.cache.slots = torch.tensor(self.base, device=self.device)[:, None] + places
        if self.window is not None:
            positions = positions.clamp_max(self.window - 1)
        keep = {"logits_to_keep": last} if last and self.takes_logits_to_keep else {}
        output = self.model(
            input_ids=tokens.to(self.device).clamp_max(self.vocab - 1),
            position_ids=positions.to(self.device),
            attention_mask=self._mask(tail),
            past_key_values=self.cache,
            **self.options,
            **keep,
        )
        self.hidden = output.hidden_states[-1] if output.hidden_states is not None else None
        return output.logits[:, -last:]

    def forget_tail(self, base: Sequence[int]) -> None:
        """Set the number of committed tokens of each row; what lies behind is forgotten."""
        self.base = list(base)
        self.cache.end = max(base)

    def keep_path(self, places: Tensor) -> None:
        """Move the tail's slots `places` [B, m], in that order, to the front of the tail."""
        base = torch.tensor(self.base, device=self.device)[:, None]
        order = torch.arange(places.shape[1], device=self.device)
        self.cache.move(base + places.to(self.device), base + order)

    def _mask(self, tail: Tensor | None) -> Tensor:
        """Additive mask [B or 1, 1, n, slots]: 0 where a token sees a slot, the dtype's minimum elsewhere."""
        end = self.cache.end
        if tail is None:
            if self.all_visible.shape[-1] < end:
                self.all_visible = self.all_visible.new_zeros(1, 1, 1, 2 * end)
            return self.all_visible[..., :end]
        tail = tail.to(self.device)
        if self.cache.slots is None:
            committed = tail.new_ones((*tail.shape[:-1], self.base[0]))
            seen = torch.cat([committed, tail], dim=-1)
        else:
            rows, size = len(self.base), tail.shape[-1]
            base = torch.tensor(self.base, device=self.device)[:, None]
            seen = (torch.arange(end, device=self.device) < base)[:, None, :].repeat(1, tail.shape[-2], 1)
            slots = (base + torch.arange(size, device=self.device))[:, None, :].expand(rows, tail.shape[-2], size)
            seen.scatter_(2, slots, tail.expand(slots.shape))
        hidden = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        hidden.masked_fill_(~seen, torch.finfo(self.model.dtype).min)
        return hidden[None, None] if seen.ndim == 2 else hidden[:, None]


def causal(count: int, device: torch.device | None = None) -> Tensor:
    """bool [n, n]: token i of a plain tail sees tokens 0..i."""
    return torch.ones(count, count, dtype=torch.bool, device=device).tril()
