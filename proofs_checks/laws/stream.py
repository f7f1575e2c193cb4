"""The exact law of the first N tokens of a stream: the production code called again and again, its carry passed on.

For a stateful verifier one call says little: losslessness is a statement about the whole stream. Here every draft
and every random outcome of every call is replayed until N tokens are out. Streams with the same tokens so far and
the same carry have the same future and are merged, which keeps the enumeration small.

Letters: N tokens, L draft length, K paths, V vocabulary, C contexts of the model pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from specbound.runtime import registry
from specbound.runtime.verdict import Batch
from specbound.theory.contexts import ModelPair, Prefix
from specbound.theory.numbers import Number

from .replay import TooLarge, Verify, function_of, replay

ROWS_PER_PASS = 200_000
MAX_TUPLES = 200_000
MAX_ROWS = 2_000_000


@dataclass(frozen=True)
class StreamLaw:
    """Exact law of the first N tokens of a stream.

    Attributes:
        tokens: prefix of length N -> probability.
        mass: total probability; 1 up to rounding.
        calls: expected number of target calls until N tokens are out.
        states: the largest number of different (tokens so far, carry) after a call.
    """

    tokens: dict[Prefix, float]
    mass: float
    calls: float
    states: int

    def total_variation(self, other: Mapping[Prefix, Number]) -> float:
        """Total variation distance to another law, e.g. `pair.target_law(N)`; in [0, 1]."""
        prefixes = self.tokens.keys() | other.keys()
        return 0.5 * sum(abs(self.tokens.get(prefix, 0.0) - float(other.get(prefix, 0.0))) for prefix in prefixes)


@dataclass(frozen=True)
class _Streams:
    """Different streams after a call: prefix, context, probability, and the carry (rows in the same order)."""

    prefix: list[Prefix]
    context: np.ndarray
    mass: np.ndarray
    carry: Any


def stream_law(
    verifier: str | Verify | registry.Verifier,
    pair: ModelPair,
    length: int | Sequence[int],
    tokens: int,
    paths: int = 1,
) -> StreamLaw:
    """Exact law of the first `tokens` tokens that the verifier emits, call after call.

    Args:
        verifier: a registered name, a `Verifier`, or a function `verify(batch, draws) -> Verdict`, stateful or not.
        pair: the models, taken in float64.
        length: L, or the draft lengths of call 1, 2, ... (the last one is repeated).
        tokens: N, at least 1.
        paths: K.

    Raises:
        TooLarge: (a ValueError) too many K-tuples of drafts, or of them and streams.
        ValueError: N below 1, or a pair that is not known far enough.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; want at least 1")
    verify = function_of(verifier)
    pair = pair.as_float()
    law: dict[Prefix, float] = {}
    calls, most, call = 0.0, 1, 0
    going = [_Streams([()], np.array([pair.start]), np.ones(1), None)]
    while going:
        merged = _Merged()
        for streams in going:
            calls += float(streams.mass.sum())
            for row, block, context, mass, carry in _one_call(verify, pair, streams, _length_of(length, call), paths):
                prefixes = [(streams.prefix[r] + tuple(b))[:tokens] for r, b in zip(row.tolist(), block, strict=True)]
                short = np.array([len(prefix) < tokens for prefix in prefixes])
                for prefix, chance in zip(itertools.compress(prefixes, ~short), mass[~short], strict=True):
                    law[prefix] = law.get(prefix, 0.0) + float(chance)
                merged.add(list(itertools.compress(prefixes, short)), context, mass, carry, np.flatnonzero(short))
        going = merged.streams()
        most, call = max(most, sum(len(streams.prefix) for streams in going)), call + 1
    return StreamLaw(law, sum(law.values()), calls, most)


def expected_tokens(
    verifier: str | Verify | registry.Verifier, pair: ModelPair, length: int | Sequence[int], calls: int, paths: int = 1
) -> list[float]:
    """Expected number of tokens out after 1, 2, ..., `calls` target calls (correction tokens included), exactly.

    Args and errors as in `stream_law`. Streams in the same context with the same carry are merged, so that models
    with few contexts (iid, Markov) can be followed for many calls.
    """
    verify = function_of(verifier)
    pair = pair.as_float()
    totals: list[float] = []
    going = [_Streams([()], np.array([pair.start]), np.ones(1), None)]
    for call in range(calls):
        merged = _Merged()
        emitted = 0.0
        for streams in going:
            for _, block, context, mass, carry in _one_call(verify, pair, streams, _length_of(length, call), paths):
                emitted += float(mass @ np.array([len(tokens) for tokens in block]))
                merged.add([()] * len(mass), context, mass, carry, np.arange(len(mass)))
        totals.append(emitted + (totals[-1] if totals else 0.0))
        going = merged.streams()
    return totals


def _length_of(length: int | Sequence[int], call: int) -> int:
    return length if isinstance(length, int) else length[min(call, len(length) - 1)]


class _Merged:
    """Collects streams; equal (prefix, context, carry) become one. The carry is compared to 12 significant digits.

    A verifier may return a carry for some batches and None for others: streams with and without one are kept apart.
    """

    def __init__(self) -> None:
        self.place: dict[tuple[Prefix, int, bytes | None], int] = {}
        self.mass: list[float] = []
        self.carries: list[Any] = []

    def add(self, prefixes: list[Prefix], context: np.ndarray, mass: np.ndarray, carry: Any, rows: np.ndarray) -> None:
        """Add the outcomes `rows`, whose prefixes are given."""
        keys = None if carry is None else _significant(carry.numbers().cpu().numpy())
        fresh: list[int] = []
        for prefix, row in zip(prefixes, rows.tolist(), strict=True):
            key = (prefix, int(context[row]), None if keys is None else keys[row].tobytes())
            if key not in self.place:
                self.place[key] = len(self.mass)
                self.mass.append(0.0)
                fresh.append(row)
            self.mass[self.place[key]] += float(mass[row])
        if carry is not None and fresh:
            self.carries.append(carry.select(fresh))

    def streams(self) -> list[_Streams]:
        """What was collected: streams without a carry, and streams with one."""
        groups = []
        for carried in (False, True):
            keys = [key for key in self.place if (key[2] is not None) == carried]
            if keys:
                carry = type(self.carries[0]).joined(self.carries) if carried else None
                context = np.array([context for _, context, _ in keys], dtype=np.int64)
                mass = np.array([self.mass[self.place[key]] for key in keys])
                groups.append(_Streams([prefix for prefix, _, _ in keys], context, mass, carry))
        return groups


def _significant(numbers: np.ndarray) -> np.ndarray:
    """Rounded to 12 significant digits; minus zero becomes zero."""
    scale = 10.0 ** (11 - np.floor(np.log10(np.where(numbers == 0, 1.0, np.abs(numbers)))))
    return np.round(numbers * scale) / scale + 0.0


def _one_call(
    verify: Verify, pair: ModelPair, streams: _Streams, length: int, paths: int
) -> Iterator[tuple[np.ndarray, list[list[int]], np.ndarray, np.ndarray, Any]]:
    """Every outcome of one call: rows of `streams`, emitted tokens, context behind them, probability, carry."""
    drafts = pair.vocab**length
    if drafts**paths > MAX_TUPLES or drafts**paths * len(streams.prefix) > MAX_ROWS:
        raise TooLarge(
            f"{drafts} drafts and {paths} paths, after {len(streams.prefix)} different beginnings of the stream, are "
            "too many to enumerate; lower length or paths"
        )
    blocks = np.array(list(itertools.product(range(pair.vocab), repeat=length)))
    tuples = np.array(list(itertools.product(range(len(blocks)), repeat=paths)))
    per_pass = max(1, ROWS_PER_PASS // len(tuples))
    for first in range(0, len(streams.prefix), per_pass):
        rows = np.arange(first, min(first + per_pass, len(streams.prefix)))
        contexts, chance = _walk(pair, streams.context[rows], blocks)
        stream, chosen = np.nonzero(chance[:, tuples].prod(axis=-1))
        contexts = contexts[stream[:, None], tuples[chosen]]
        tokens = blocks[tuples[chosen]]
        weight = streams.mass[rows][stream] * chance[stream[:, None], tuples[chosen]].prod(axis=-1)
        carry = None if streams.carry is None else streams.carry.select(rows[stream])
        batch = Batch(
            torch.as_tensor(tokens),
            torch.as_tensor(pair.draft.rows[contexts[..., :-1]]),
            torch.as_tensor(pair.target.rows[contexts]),
            carry,
            torch.as_tensor(_rows_after(pair, contexts[..., -1])),
        )
        for outcome in replay(verify, batch):
            kept, winner = outcome.accepted, tokens[outcome.row, outcome.path]
            block = [
                [*path[:count].tolist(), int(y)] for path, count, y in zip(winner, kept, outcome.token, strict=True)
            ]
            behind = pair.successor[contexts[outcome.row, outcome.path, kept], outcome.token]
            yield rows[stream[outcome.row]], block, behind, weight[outcome.row] * outcome.probability, outcome.carry


def _rows_after(pair: ModelPair, contexts: np.ndarray) -> np.ndarray:
    """The draft's rows in `contexts`; uniform where the pair is not known, which only concerns tokens beyond N."""
    rows: np.ndarray = pair.draft.rows[contexts]
    return np.where(rows.sum(axis=-1, keepdims=True) > 0, rows, 1 / pair.vocab)


def _walk(pair: ModelPair, start: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Contexts [S, D, L+1] along each block from each start, and the draft probability [S, D] of the block.

    Raises:
        ValueError: if a draft leads to where the pair is not known.
    """
    context = np.broadcast_to(start[:, None], (len(start), len(blocks)))
    along, chance = [context], np.ones(context.shape)
    for token in blocks.T:
        if (chance * (pair.draft.rows[context].sum(axis=-1) == 0)).any():
            raise ValueError("the model pair is not known far enough; tabulate it to depth N + L - 1 at least")
        chance = chance * pair.draft.rows[context, token]
        context = pair.successor[context, token]
        along.append(context)
    return np.stack(along, axis=-1), chance
