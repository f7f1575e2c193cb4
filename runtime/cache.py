"""Key/value slots of one causal language model: rows of different lengths, drafted trees, and keeping one path.

B rows, n tokens fed at once, V vocabulary. The committed tokens of row b lie in slots 0..base_b - 1, and slot is
position: a prompt's padding never enters. Tokens fed after them form the row's *tail*, slots base_b, base_b + 1, ...
A tail may hold a tree: which of its slots a token sees is given, and its position is given too. Forgetting a tail
costs nothing (the next one overwrites it); keeping a path moves its slots to the front of the tail.

A layer that looks back at a window only keeps the slots of the window and `ROLLBACK` more, so that rows may still go
back a little: the slots before them are dropped when there are `SPARE` of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from .layers import kinds_of_layers, reaches, smallest_window
from .models import context_limit, input_device, parameters, vocabulary

SLOTS_AT_FIRST = 256
CHUNK = 1024
ROLLBACK, SPARE = 64, 256


class SlotCache(Cache):
    """Keys and values of every layer, [B, heads, slots, size]; `CachedModel` says where the next tokens go.

    Attributes:
        dropped: for each layer, how many slots were dropped: the first in its store is the one of that number.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        self.stores: list[tuple[Tensor, Tensor]] = []
        self.dropped: dict[int, int] = defaultdict(int)
        self.start: int | None = None
        self.slots: Tensor | None = None
        self.end = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values into their slots; return all slots in use that are kept."""
        dropped = self.dropped[layer_idx]
        end = self.end - dropped
        while len(self.stores) <= layer_idx:
            self.stores.append((_store(key_states, end), _store(value_states, end)))
        if self.stores[layer_idx][0].shape[2] < end:
            keys, values = self.stores[layer_idx]
            self.stores[layer_idx] = (_grown(keys, end), _grown(values, end))
        keys, values = self.stores[layer_idx]
        if self.slots is None:
            count = key_states.shape[2]
            keys.narrow(2, end - count, count).copy_(key_states)
            values.narrow(2, end - count, count).copy_(value_states)
        else:
            slots = self.slots.to(keys.device) - dropped
            row = torch.arange(len(slots), device=keys.device)[:, None]
            keys[row, :, slots], values[row, :, slots] = key_states.transpose(1, 2), value_states.transpose(1, 2)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def drop(self, layer: int, first: int) -> None:
        """Keep the slots from `first` on, if there are `SPARE` before it."""
        count = first - self.dropped[layer]
        if count >= SPARE and layer < len(self.stores):
            self.stores[layer] = tuple(store[:, :, count:].clone() for store in self.stores[layer])  # type: ignore[assignment]
            self.dropped[layer] = first

    def select(self, rows: Tensor, end: int) -> None:
        """Keep only the rows [B'], and their slots before `end`."""
        for layer, pair in enumerate(self.stores):
            kept = slice(0, end - self.dropped[layer])
            keys, values = (store[:, :, kept].index_select(0, rows.to(store.device)) for store in pair)
            self.stores[layer] = keys, values

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
        """Copy slots `source` [B, m] to slots `to` [B or 1, m] in every layer."""
        if len(source) == 1:
            source, to = source[0], to[0]
        else:
            row = torch.arange(len(source), device=source.device)[:, None]
        places: dict[tuple[torch.device, int], list[Tensor]] = {}
        for layer, (keys, values) in enumerate(self.stores):
            device, dropped = where = keys.device, self.dropped[layer]
            if where not in places:
                places[where] = [index.to(device) - dropped if dropped else index.to(device) for index in (source, to)]
            old, new = places[where]
            for store in (keys, values):
                if old.ndim == 1:
                    store.index_copy_(2, new, store.index_select(2, old))
                else:
                    store[row.to(device), :, new] = store[row.to(device), :, old]


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
        fed: tokens of each row's tail, m.
        places: their positions, [B or 1, ...] int64 from every pass.
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
        self.fed = 0
        self.places: list[Tensor] = []
        least = torch.finfo(model.dtype).min
        self.visible, self.unseen = torch.tensor([0.0, least], dtype=model.dtype, device=self.device)
        self._make_room(SLOTS_AT_FIRST)
        self.triangles: dict[int, Tensor] = {}
        config = model.config.get_text_config()
        self.kinds = kinds_of_layers(config)
        self.cache = SlotCache()
        self.limit = context_limit(model)
        self.reaches = reaches(config)
        layers = enumerate(self.reaches[kind] for kind in self.kinds)
        self.windowed = [(layer, reach) for layer, reach in layers if reach.kind != "all"]
        self.window = smallest_window(config) or math.inf
        self.vocab = vocabulary(model)
        self.hidden: Tensor | None = None
        self.options = {"use_cache": True, "return_dict": True}
        if wants_hidden:
            self.options["output_hidden_states"] = True
        self.takes_logits_to_keep = "logits_to_keep" in parameters(model)

    def start(self, tokens: Tensor, known: Sequence[int]) -> None:
        """Feed prompts [B, n] to the empty slots and commit `known` tokens of each row.

        A long prompt goes chunk by chunk where layers look back at a window only: they need not hold all of it.
        """
        longest = tokens.shape[1]
        size = CHUNK if self._hides(longest) else max(longest, 1)
        for begin in range(0, longest, size):
            self.read(tokens[:, begin : begin + size], last=1)
            self.forget_tail([min(count, begin + size) for count in known])

    def read(self, tokens: Tensor, last: int = 0) -> Tensor:
        """Feed a plain run: n tokens per row behind all that was fed, each seeing everything before it.

        Onto empty slots the model goes by its own causal path, without a mask; where its windows would make it build
        a mask of all tokens by all tokens, the run is fed in chunks.

        Args:
            tokens [B, n] int64. Rows that hold fewer may be filled up behind their own: nothing sees what follows it.
        Returns:
            logits [B, n, V], or of the `last` tokens if not 0.
        """
        count, begin = tokens.shape[1], max(self.base) + self.fed
        if count > max(CHUNK, last) and self._hides(count):
            first = min(CHUNK, count - last)
            head = self.read(tokens[:, :first], last=0 if last == 0 else 1)
            rest = self.read(tokens[:, first:], last)
            return rest if last else torch.cat([head, rest], dim=1)
        even, slots = min(self.base) == max(self.base), begin + count
        if even:
            positions = self._numbers(begin, slots)
        else:
            positions = self._base() + self._numbers(self.fed, self.fed + count)
        if begin == 0:
            return self._feed(tokens, positions, None, last)
        if even and not self._hides(slots):
            return self._feed(tokens, positions, self._causal(count, slots), last)
        place = self._numbers(0, slots)
        return self._feed(tokens, positions, self._masks(place <= positions[:, :, None], positions, place), last)

    def extend(self, tokens: Tensor, positions: Tensor, tail: Tensor, last: int = 0) -> Tensor:
        """Feed n tokens per row behind the tail; logits [B, n, V], or of the `last` tokens if not 0.

        Args:
            tokens, positions [B, n] int64.
            tail: bool [n, m] or [B, n, m], m >= n: which of the tail's first m slots each token sees, besides all
                committed ones; the tokens themselves take the last n of the m, and what stood there is forgotten.
        """
        tail, positions = tail.to(self.device), positions.to(self.device)
        rows, size = len(self.base), tail.shape[-1]
        self._cut_tail(size - tokens.shape[1])
        known, slots = max(self.base), max(self.base) + size
        if min(self.base) == known and not self._hides(slots):
            own = self._additive(tail.view(-1, *tail.shape[-2:]))
            return self._feed(tokens, positions, torch.nn.functional.pad(own, (known, 0)), last)
        base = torch.tensor(self.base, device=self.device)[:, None]
        slot = torch.arange(slots, device=self.device)
        seen = (slot < base)[:, None, :].repeat(1, tail.shape[-2], 1)
        tail_slots = base + torch.arange(size, device=self.device)
        index = tail_slots[:, None, :].expand(rows, tail.shape[-2], size)
        seen.scatter_(2, index, tail.expand(index.shape))
        places = torch.cat([part.expand(rows, -1) for part in (*self.places, positions)], dim=1)
        place = slot.expand(rows, -1).scatter(1, tail_slots, places)
        return self._feed(tokens, positions, self._masks(seen, positions, place), last)

    def forget_tail(self, base: Sequence[int]) -> None:
        """Set the number of committed tokens of each row; what lies behind is forgotten.

        Raises:
            RuntimeError: a row goes back by more than ROLLBACK, to where slots of a window were dropped.
        """
        self.base, self.fed, self.places = list(base), 0, []
        lowest = min(base)
        for layer, reach in self.windowed:
            if reach.first(lowest) < self.cache.dropped[layer]:
                raise RuntimeError(
                    f"a row goes back to {lowest} tokens; slots from {self.cache.dropped[layer]} on are left"
                )
            self.cache.drop(layer, reach.first(max(0, lowest - ROLLBACK)))

    def select(self, rows: Sequence[int]) -> None:
        """Hold only these of the rows, in that order; there is no tail."""
        self.base = [self.base[row] for row in rows]
        self.cache.select(torch.tensor(rows), max(self.base))

    def keep_path(self, places: Tensor) -> None:
        """Move the tail's slots `places` [B, m], in that order, to the front of the tail (no more than there are)."""
        places = places[:, : self.fed].to(self.device)
        base, count = self._base(), places.shape[1]
        front = self._numbers(base, base + count) if isinstance(base, int) else base + self._numbers(0, count)
        self.cache.move(base + places, front)

    def _base(self) -> Tensor | int:
        """The numbers of committed tokens, [B, 1]; or the number, if all rows have it."""
        if min(self.base) == max(self.base):
            return self.base[0]
        return torch.tensor(self.base, device=self.device)[:, None]

    def _hides(self, length: int) -> bool:
        """Whether a layer does not reach all of a text of that many tokens."""
        return length > self.window

    def _numbers(self, first: int, end: int) -> Tensor:
        """[1, end - first]: the numbers from `first` to below `end`."""
        if self.numbers.shape[1] < end:
            self._make_room(max(end, 2 * self.numbers.shape[1]))
        return self.numbers.narrow(1, first, end - first)

    def _make_room(self, slots: int) -> None:
        """Have `numbers` [1, slots], which count up from 0, and a mask `blank` [1, 1, 1, slots] that hides nothing."""
        self.numbers = torch.arange(slots, device=self.device)[None]
        self.blank = torch.zeros(1, 1, 1, slots, dtype=self.model.dtype, device=self.device)

    def _cut_tail(self, fed: int) -> None:
        """Forget all but the first `fed` tokens of the tail."""
        if fed < self.fed:
            rows = len(self.base)
            self.places = [torch.cat([part.expand(rows, -1) for part in self.places], dim=1)[:, :fed]]
            self.fed = fed

    def _feed(self, tokens: Tensor, positions: Tensor, mask: Tensor | dict[str, Tensor] | None, last: int) -> Tensor:
        """One pass of the model over tokens [B, n] that go behind the tail."""
        count, rows = tokens.shape[1], len(self.base)
        self.cache.end = max(self.base) + self.fed + count
        self.cache.start, self.cache.slots = self.cache.end - count, None
        if min(self.base) < max(self.base):
            self.cache.slots = self._base() + self._numbers(self.fed, self.fed + count)
        self.fed += count
        self.places.append(positions)
        if self.limit is not None and self.cache.end > self.limit:
            positions = positions.clamp_max(self.limit - 1)
        only_last = bool(last) and self.takes_logits_to_keep
        keep = {"logits_to_keep": last} if only_last else {}
        output = self.model(
            input_ids=tokens.to(self.device).clamp_max(self.vocab - 1),
            position_ids=positions if len(positions) == rows else positions.repeat(rows, 1),
            attention_mask=mask,
            past_key_values=self.cache,
            **self.options,
            **keep,
        )
        self.hidden = output.hidden_states[-1] if output.hidden_states is not None else None
        logits: Tensor = output.logits
        return logits if only_last else logits[:, -last:]

    def _masks(self, seen: Tensor, positions: Tensor, place: Tensor) -> Tensor | dict[str, Tensor]:
        """What the model takes as attention mask: one for all layers, or one for each kind where they differ.

        Args:
            seen [B or 1, n, slots] bool: what a token sees in a layer that reaches everything.
            positions [B or 1, n], place [B or 1, slots]: of the tokens and of what the slots hold.
        """
        slots = seen.shape[2]
        if not self._hides(slots):
            return self._additive(seen)
        masks = {}
        for kind, reach in self.reaches.items():
            first = self.cache.dropped[self.kinds.index(kind)] if kind in self.kinds else 0
            here = seen[:, :, first:]
            if reach.hides(slots):
                here = here & reach.sees(positions, place[:, first:])
            masks[kind] = self._additive(here)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _causal(self, count: int, slots: int) -> Tensor:
        """Additive mask [1, 1, n, slots] of the last `count` tokens: each sees all slots up to its own."""
        if count == 1:
            return self.blank.narrow(3, 0, slots)
        if count not in self.triangles:
            own = torch.ones(1, count, count, dtype=torch.bool, device=self.device).tril()
            self.triangles[count] = self._additive(own)
        return torch.nn.functional.pad(self.triangles[count], (slots - count, 0))

    def _additive(self, seen: Tensor) -> Tensor:
        """Additive mask [B or 1, 1, n, slots]: 0 where a token sees a slot, the dtype's minimum elsewhere."""
        return torch.where(seen, self.visible, self.unseen)[:, None]
