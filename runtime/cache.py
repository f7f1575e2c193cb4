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

from .layers import reaches
from .models import context_limit, input_device, uncompiled, vocabulary

SLOTS_AT_FIRST = 256
CHUNK = 1024


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
        """Slots in use before the tokens that are fed now: where these begin, as far as the model's own masks go."""
        return self.start or 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Where the tokens that are fed now begin."""
        return self.start or 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Number of slots that `update` will return, and the first of them."""
        return self.end, 0

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
        places [B, m] int64: positions of the tokens of the tail.
        hidden [B, n, D]: last hidden states of the tokens fed last, what the language-model head read; None unless
            `wants_hidden`.
        limit: positions the model has, None if unlimited; a draft that overshoots them (its tokens are then cut from
            the output anyway) repeats the last position.
    """

    rolls_back = True

    def __init__(self, model: PreTrainedModel, rows: int, wants_hidden: bool = False) -> None:
        self.model = model
        self.base = [0] * rows
        self.device = input_device(model)
        self.places = torch.zeros(rows, 0, dtype=torch.int64, device=self.device)
        self.cache = SlotCache()
        self.limit = context_limit(model)
        self.reaches = reaches(model.config.get_text_config())
        self.vocab = vocabulary(model)
        self.hidden: Tensor | None = None
        self.options = {"use_cache": True, "return_dict": True}
        if wants_hidden:
            self.options["output_hidden_states"] = True
        self.takes_logits_to_keep = "logits_to_keep" in inspect.signature(uncompiled(model).forward).parameters

    def read(self, tokens: Tensor, last: int = 0) -> Tensor:
        """Feed a plain run: n tokens per row behind all that was fed, each seeing everything before it.

        Onto empty slots the model goes by its own causal path, without a mask; where its windows would make it build
        a mask of all tokens by all tokens, the run is fed in chunks.

        Args:
            tokens [B, n] int64. Rows that hold fewer may be filled up behind their own: nothing sees what follows it.
        Returns:
            logits [B, n, V], or of the `last` tokens if not 0.
        """
        count, fed = tokens.shape[1], self.places.shape[1]
        begin = torch.tensor(self.base, device=self.device)[:, None] + fed
        if count > max(CHUNK, last) and any(reach.hides(count) for reach in self.reaches.values()):
            first = min(CHUNK, count - last)
            head = self.read(tokens[:, :first], last=0 if last == 0 else 1)
            rest = self.read(tokens[:, first:], last)
            return rest if last else torch.cat([head, rest], dim=1)
        positions = begin + torch.arange(count, device=self.device)
        if max(self.base) + fed == 0:
            return self._feed(tokens, positions, None, last)
        size = fed + count
        even = min(self.base) == max(self.base)
        rows = positions[:1] if even else positions
        slot = torch.arange(max(self.base) + size, device=self.device)
        if even and count == 1 and not any(reach.hides(len(slot)) for reach in self.reaches.values()):
            seen = None
        else:
            seen = slot <= rows[:, :, None]
        return self._feed(tokens, positions, self._masks(seen, rows, slot[None], len(slot)), last)

    def extend(self, tokens: Tensor, positions: Tensor, tail: Tensor, last: int = 0) -> Tensor:
        """Feed n tokens per row behind the tail; logits [B, n, V], or of the `last` tokens if not 0.

        Args:
            tokens, positions [B, n] int64.
            tail: bool [n, m] or [B, n, m], m >= n: which of the tail's first m slots each token sees, besides all
                committed ones; the tokens themselves take the last n of the m.
        """
        tail, positions = tail.to(self.device), positions.to(self.device)
        rows, size = len(self.base), tail.shape[-1]
        base = torch.tensor(self.base, device=self.device)[:, None]
        slot = torch.arange(max(self.base) + size, device=self.device)
        seen = (slot < base)[:, None, :].repeat(1, tail.shape[-2], 1)
        tail_slots = base + torch.arange(size, device=self.device)
        index = tail_slots[:, None, :].expand(rows, tail.shape[-2], size)
        seen.scatter_(2, index, tail.expand(index.shape))
        places = torch.cat([self.places[:, : size - tokens.shape[1]], positions], dim=1)
        place = slot.expand(rows, -1).scatter(1, tail_slots, places)
        self.places = places[:, : size - tokens.shape[1]]
        return self._feed(tokens, positions, self._masks(seen, positions, place, len(slot)), last)

    def forget_tail(self, base: Sequence[int]) -> None:
        """Set the number of committed tokens of each row; what lies behind is forgotten."""
        self.base = list(base)
        self.places = self.places[:, :0]

    def keep_path(self, places: Tensor) -> None:
        """Move the tail's slots `places` [B, m], in that order, to the front of the tail."""
        base = torch.tensor(self.base, device=self.device)[:, None]
        order = torch.arange(places.shape[1], device=self.device)
        self.cache.move(base + places.to(self.device), base + order)

    def _feed(self, tokens: Tensor, positions: Tensor, mask: Tensor | dict[str, Tensor] | None, last: int) -> Tensor:
        """One pass of the model over tokens [B, n] that go behind the tail."""
        count, fed = tokens.shape[1], self.places.shape[1]
        self.cache.end = max(self.base) + fed + count
        self.cache.start, self.cache.slots = self.cache.end - count, None
        if min(self.base) < max(self.base):
            order = torch.arange(fed, fed + count, device=self.device)
            self.cache.slots = torch.tensor(self.base, device=self.device)[:, None] + order
        self.places = torch.cat([self.places, positions.expand(len(self.base), -1)], dim=1)
        if self.limit is not None:
            positions = positions.clamp_max(self.limit - 1)
        keep = {"logits_to_keep": last} if last and self.takes_logits_to_keep else {}
        output = self.model(
            input_ids=tokens.to(self.device).clamp_max(self.vocab - 1),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self.cache,
            **self.options,
            **keep,
        )
        self.hidden = output.hidden_states[-1] if output.hidden_states is not None else None
        logits: Tensor = output.logits[:, -last:]
        return logits

    def _masks(self, seen: Tensor | None, positions: Tensor, place: Tensor, slots: int) -> Tensor | dict[str, Tensor]:
        """What the model takes as attention mask: one for all layers, or one for each kind where they differ.

        Args:
            seen [B or 1, n, slots] bool: what a token sees in a layer that reaches everything; None for all.
            positions [B or 1, n], place [B or 1, slots]: of the tokens and of what the slots hold.
        """
        if not any(reach.hides(slots) for reach in self.reaches.values()):
            return self._additive(seen, slots)
        assert seen is not None
        masks = {
            kind: self._additive(seen & reach.sees(positions, place) if reach.hides(slots) else seen, slots)
            for kind, reach in self.reaches.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _additive(self, seen: Tensor | None, slots: int) -> Tensor:
        """Additive mask [B or 1, 1, n, slots]: 0 where a token sees a slot, the dtype's minimum elsewhere."""
        if seen is None:
            return torch.zeros(1, 1, 1, slots, dtype=self.model.dtype, device=self.device)
        hidden = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
        return hidden.masked_fill_(~seen, torch.finfo(self.model.dtype).min)[:, None]
