"""Models whose cache cannot be rolled back or take a tree: a copy of the state is kept, and kept tokens are fed again.

Recurrent and hybrid models (Mamba, Qwen 3.5, Olmo hybrid, ...) fold the text into a state; a rejected draft cannot be
taken out of it. So the state behind the committed text is never fed: every pass goes to a copy of it. What it costs,
beside a model with plain key/value slots:

    one path        a copy of the state per call; kept tokens are fed once more, together with the next drafts, or
                    in a pass of their own once there are more than REFED of them
    K paths, trees  a copy of the state and a pass for each path
    B rows          a pass for each row: rows of different length cannot share one
    one at a time   models that take several tokens only onto an empty state are fed token by token: fine for a draft,
                    hopeless for a target

The interface is that of `CachedModel`; the cache is the model's own, whatever it is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .models import input_device, parameters, state_argument, tolerance, vocabulary

REFED = 16
_TAKES_RUNS: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@dataclass
class Row:
    """One row.

    Attributes:
        state: the model's cache behind `held` tokens; never fed, only copied. None before the first token.
        pending: committed tokens behind those.
        tail: tokens behind the committed ones, in the order they were fed.
        sees: for each of them, the places in the tail of its ancestors and its own.
        live: the state behind pending and tail, if these are one run; None if it has to be made anew.
        ends, live_ends: logits [1, V] and hidden states [1, D] of the last token in `state` and in `live`.
    """

    state: Any = None
    held: int = 0
    pending: list[int] = field(default_factory=list)
    tail: list[int] = field(default_factory=list)
    sees: list[list[int]] = field(default_factory=list)
    live: Any = None
    ends: tuple[Tensor, Tensor | None] | None = None
    live_ends: tuple[Tensor, Tensor | None] | None = None


class StateModel:
    """A causal language model and the states of its rows. Attributes as of `CachedModel`."""

    rolls_back = False

    def __init__(self, model: PreTrainedModel, rows: int, wants_hidden: bool = False) -> None:
        self.model, self.device, self.vocab = model, input_device(model), vocabulary(model)
        self.base = [0] * rows
        self.rows = [Row() for _ in range(rows)]
        self.hidden: Tensor | None = None
        self.wants_hidden = wants_hidden
        self.name = str(state_argument(model))
        self.takes_positions = "position_ids" in parameters(model)
        self.runs = takes_runs(model)

    def start(self, tokens: Tensor, known: Sequence[int]) -> None:
        """Feed prompts [B, n] and commit `known` tokens of each row."""
        if tokens.shape[1]:
            self.read(tokens, last=1)
        self.forget_tail(known)

    def read(self, tokens: Tensor, last: int = 0) -> Tensor:
        """Feed a plain run behind all that was fed; see `CachedModel.read`."""
        given = zip(self.rows, self.base, tokens.tolist(), strict=True)
        found = [self._read(row, base, ids) for row, base, ids in given]
        return self._stacked(found, last or tokens.shape[1])

    def _read(self, row: Row, base: int, tokens: list[int]) -> tuple[Tensor, Tensor | None]:
        known = max(0, row.held + len(row.pending) - base) if not row.tail else 0
        new = tokens[known:]  # rows that hold more than others are given some of it again
        if not new and row.ends is not None:
            return row.ends
        if row.live is None:
            before = row.pending + row.tail
            if len(row.pending) > REFED and not row.tail:
                _, row.state, _ = self._pass(copy.deepcopy(row.state), row.pending, row.held)
                row.held, row.pending, before = row.held + len(row.pending), [], []
            logits, row.live, hidden = self._pass(copy.deepcopy(row.state), before + new, row.held)
        else:
            at = row.held + len(row.pending) + len(row.tail)
            logits, row.live, hidden = self._pass(row.live, new, at)
        row.sees += [[*range(len(row.tail) + i + 1)] for i in range(len(new))]
        row.tail += new
        row.live_ends = logits[-1:], None if hidden is None else hidden[-1:]
        return logits, hidden

    def extend(self, tokens: Tensor, positions: Tensor, tail: Tensor, last: int = 0) -> Tensor:
        """Feed tokens of a tree; see `CachedModel.extend`. Each path is a pass of its own."""
        sees = tail.expand(len(self.rows), *tail.shape[-2:]).cpu()
        found = [self._extend(row, ids, seen) for row, ids, seen in zip(self.rows, tokens.tolist(), sees, strict=True)]
        return self._stacked([(logits, None) for logits in found], last or tokens.shape[1])

    def _extend(self, row: Row, tokens: list[int], sees: Tensor) -> Tensor:
        fed = sees.shape[1] - len(tokens)
        row.tail, row.sees, row.live = row.tail[:fed] + tokens, row.sees[:fed], None
        row.sees += [sorted({fed + i, *seen.nonzero()[:, 0].tolist()}) for i, seen in enumerate(sees)]
        wanted = range(fed, len(row.tail))
        logits: dict[int, Tensor] = {}
        for place in reversed(wanted):
            if place not in logits:
                path = row.sees[place]
                run = row.pending + [row.tail[step] for step in path]
                rows, _, _ = self._pass(copy.deepcopy(row.state), run, row.held)
                logits |= {step: rows[i - len(path)] for i, step in enumerate(path) if step >= fed}
        return torch.stack([logits[place] for place in wanted])

    def forget_tail(self, base: Sequence[int]) -> None:
        """Set the number of committed tokens of each row; what lies behind is forgotten."""
        self.base = list(base)
        for row, count in zip(self.rows, base, strict=True):
            run = row.pending + row.tail
            more = max(0, count - row.held)
            if more == len(run) and row.live is not None:
                row.state, row.held, row.pending, row.ends = row.live, row.held + more, [], row.live_ends
            else:
                row.pending = run[: max(more, 0)]
            row.tail, row.sees, row.live = [], [], None

    def select(self, rows: Sequence[int]) -> None:
        """Hold only these of the rows, in that order."""
        self.base, self.rows = [self.base[row] for row in rows], [self.rows[row] for row in rows]

    def keep_path(self, places: Tensor) -> None:
        """Bring the tail's tokens at `places` [B, m] to its front, in that order."""
        for row, path in zip(self.rows, places.tolist(), strict=True):
            row.tail, row.live = [row.tail[place] for place in path], None
            row.sees = [[*range(i + 1)] for i in range(len(path))]

    def _pass(self, cache: Any, tokens: list[int], start: int) -> tuple[Tensor, Any, Tensor | None]:
        """Feed tokens to a state that may be changed: logits [n, V], the state behind them, hidden states [n, D]."""
        size = len(tokens) if self.runs or cache is None else 1
        parts = []
        for first in range(0, len(tokens), size):
            ids = torch.tensor([tokens[first : first + size]], device=self.device).clamp_max(self.vocab - 1)
            options: dict[str, Any] = {} if cache is None else {self.name: cache}
            if self.takes_positions:
                options["position_ids"] = start + first + torch.arange(ids.shape[1], device=self.device)[None]
            output = self.model(
                input_ids=ids, use_cache=True, return_dict=True, output_hidden_states=self.wants_hidden, **options
            )
            cache = getattr(output, self.name)
            parts.append((output.logits[0], output.hidden_states[-1][0] if self.wants_hidden else None))
        logits = torch.cat([part for part, _ in parts])
        hidden = torch.cat([part for _, part in parts if part is not None]) if self.wants_hidden else None
        return logits, cache, hidden

    def _stacked(self, found: list[tuple[Tensor, Tensor | None]], last: int) -> Tensor:
        """[B, last, V] of the rows' last logits; rows that were given less are filled up in front."""

        def ends(parts: Sequence[Tensor]) -> Tensor:
            missing = [max(0, last - len(part)) for part in parts]
            filled = [torch.cat([part[:1].expand(n, -1), part[-last:]]) for n, part in zip(missing, parts, strict=True)]
            return torch.stack(filled)

        states = [hidden for _, hidden in found if hidden is not None]
        self.hidden = ends(states) if len(states) == len(found) else None
        return ends([logits for logits, _ in found])


@torch.inference_mode()
def takes_runs(model: PreTrainedModel) -> bool:
    """Whether the model may be fed several tokens behind a state: some take them as if the state were empty."""
    if model not in _TAKES_RUNS:
        name = str(state_argument(model))
        positions = "position_ids" in parameters(model)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary(model), (1, 6), generator=generator).to(input_device(model))
        try:
            first = model(input_ids=ids[:, :2], use_cache=True, return_dict=True)
            options = {"position_ids": torch.arange(2, 6, device=ids.device)[None]} if positions else {}
            behind = model(
                input_ids=ids[:, 2:], use_cache=True, return_dict=True, **{name: getattr(first, name)}, **options
            ).logits
            plain = model(input_ids=ids, use_cache=False, return_dict=True).logits[:, 2:]
            laws, wanted = (rows.double().softmax(dim=-1) for rows in (behind, plain))
            _TAKES_RUNS[model] = bool((laws - wanted).abs().sum(dim=-1).max() / 2 <= tolerance(model))
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError):
            _TAKES_RUNS[model] = False
    return _TAKES_RUNS[model]
