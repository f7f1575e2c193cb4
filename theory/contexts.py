"""Language models small enough to be exact: finite contexts, one row of next-token probabilities each.

A context is all a model remembers; token z in context c leads to context `successor[c, z]`. An order-1 Markov chain
has one context per token and `successor[c, z] = z`; a tree has one context per prefix. Everything in theory starts
here: prefix trees are a pair of models unrolled L tokens deep, draft-length problems add times to a pair, joint
decoding draws blocks from one model, laws of streams follow a pair call after call.

Letters: C contexts, V vocabulary. Numbers are Fractions when all of them are given exactly, else float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .numbers import (
    Array,
    Number,
    Row,
    Table,
    as_floats,
    check_rows,
    is_exact,
    parse_number,
    python_rows,
    read_count,
    read_list,
    read_number,
    read_rows,
    to_array,
)

if TYPE_CHECKING:
    from .prefix_tree import PrefixTree

Prefix: TypeAlias = tuple[int, ...]
Law: TypeAlias = Callable[[Prefix], Row]


@dataclass(frozen=True, eq=False)
class ContextModel:
    """One language model: rows of next-token probabilities, the context after each token, the context at the start.

    Attributes:
        rows [C, V]: float64 or Fractions; a row of zeros where the model is not known.
        successor [C, V] int64: the context after each token, -1 where it is not known; None for order-1 Markov
            (`successor[c, z] = z`).
        start: the context before the first token.

    Raises:
        ValueError: rows that are no laws, a start outside 0..C-1, a successor outside -1..C-1; names the entry.
    """

    rows: Array
    successor: Array | None = None
    start: int = 0

    def __post_init__(self) -> None:
        rows = self.rows
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype in (object, np.float64) and rows.size:
            check_rows(rows, "rows", gaps=True)
        else:
            rows = read_rows(rows, "rows")
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "successor", _read_successor(self.successor, *rows.shape))
        object.__setattr__(self, "start", read_count(self.start, "start", len(rows) - 1))

    # ------------------------------------------------------------------ constructors

    @classmethod
    def iid(cls, row: object) -> ContextModel:
        """One context: the same row at every place."""
        rows = read_rows([row], "row")
        return cls(rows, np.zeros(rows.shape, dtype=np.int64))

    @classmethod
    def markov(cls, rows: object, start: int = 0) -> ContextModel:
        """Order-1 Markov: row c follows token c; generation starts as if after token `start`."""
        return cls(read_rows(rows, "rows"), None, start)

    @classmethod
    def markov_with_start_row(cls, rows: object, start_row: object) -> ContextModel:
        """Order-1 Markov whose first token has its own law."""
        chain = read_rows(rows, "rows")
        first = read_rows([start_row], "start_row", chain.shape[1])
        return cls(to_array([*chain.tolist(), *first.tolist()]), None, len(chain))

    @classmethod
    def tree(cls, rows: Mapping[Prefix, object]) -> ContextModel:
        """One row for every prefix of length 0..N-1 (breadth-first); the token after N starts a new text at the root.

        Raises:
            ValueError: unless the prefixes are exactly the words of length 0..N-1 for some N.
        """
        if () not in rows:
            raise ValueError("rows has no row for the empty prefix (); want a row per prefix")
        vocab = read_rows([rows[()]], "rows[()]").shape[1]
        prefixes = sorted(rows, key=lambda w: (len(w), w))
        full = words(vocab, len(prefixes[-1]))
        if prefixes != full:
            missing = next((w for w in full if w not in rows), prefixes[0])
            raise ValueError(
                f"rows has {len(prefixes)} prefixes; want a row for each of the {len(full)} words of length "
                f"0..{len(prefixes[-1])} over {vocab} tokens (first difference: {missing})"
            )
        successor = np.maximum(_children(vocab, len(full)), 0)
        return cls(read_rows([rows[w] for w in full], "rows", vocab), successor)

    # ------------------------------------------------------------------ what it is

    @property
    def contexts(self) -> int:
        """C."""
        return len(self.rows)

    @property
    def vocab(self) -> int:
        """V."""
        return self.rows.shape[1]

    @property
    def exact(self) -> bool:
        """True if the rows are fractions."""
        return is_exact(self.rows)

    @property
    def one(self) -> Number:
        """1 in the model's arithmetic."""
        return Fraction(1) if self.exact else 1.0

    @cached_property
    def table(self) -> Table:
        """The rows as Python numbers, for loops in exact arithmetic."""
        return python_rows(self.rows)

    @cached_property
    def following(self) -> tuple[tuple[int, ...], ...]:
        """The successors as Python integers."""
        return tuple(map(tuple, self._successor.tolist()))

    @property
    def _successor(self) -> Array:
        assert self.successor is not None
        return self.successor

    def as_float(self) -> ContextModel:
        """The same model in float64."""
        return ContextModel(as_floats(self.rows), self.successor, self.start)

    # ------------------------------------------------------------------ laws

    def context_after(self, tokens: Sequence[int], context: int | None = None) -> int:
        """The context after `tokens`, from `context` (default: the start)."""
        context = self.start if context is None else context
        for token in tokens:
            context = self.following[context][token]
        return context

    def prefix_joints(self, tokens: Sequence[int], context: int | None = None) -> list[Number]:
        """P(x_1..x_i | context) for i = 0..len(tokens)."""
        context = self.start if context is None else context
        joints = [self.one]
        for token in tokens:
            joints.append(joints[-1] * self.row(context)[token])
            context = self.following[context][token]
        return joints

    def joint(self, tokens: Sequence[int], context: int | None = None) -> Number:
        """P(tokens | context), the start by default."""
        return self.prefix_joints(tokens, context)[-1]

    def block_law(self, length: int) -> dict[Prefix, Number]:
        """The law of the first `length` tokens, blocks of probability 0 left out."""
        layer: dict[Prefix, tuple[int, Number]] = {(): (self.start, self.one)}
        for _ in range(length):
            layer = {
                (*tokens, z): (self.following[context][z], mass * probability)
                for tokens, (context, mass) in layer.items()
                for z, probability in enumerate(self.row(context))
                if probability > 0
            }
        return {tokens: mass for tokens, (_, mass) in layer.items()}

    def row(self, context: int) -> tuple[Number, ...]:
        """The law of the next token in a context.

        Raises:
            ValueError: the model is not known there.
        """
        row = self.table[context] if context >= 0 else ()
        if not any(row):
            raise ValueError("the model is not known that far; tabulate it deeper")
        return row

    def argmax(self, context: int) -> int:
        """Most probable next token, the smallest among equals."""
        row = self.table[context]
        return row.index(max(row))

    def tempered(self, temperature: Number) -> ContextModel:
        """Rows proportional to p^(1/temperature); 1 leaves them as they are, 0 is one-hot at the argmax.

        Raises:
            ValueError: a negative or non-finite temperature.
        """
        temperature = read_number(temperature, "temperature")
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; want at least 0")
        if temperature == 1:
            return self
        contexts = range(self.contexts)
        rows: list[list[Number]]
        if temperature == 0:
            rows = [[self.one * int(z == self.argmax(c)) for z in range(self.vocab)] for c in contexts]
        else:
            rows = [_powered(self.table[c], 1 / float(temperature)) for c in contexts]
        return ContextModel(to_array(rows), self.successor, self.start)


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A target and a draft on the same contexts, both exact or both in float64.

    Raises:
        ValueError: the two have different rows, successors or starts.
    """

    target: ContextModel
    draft: ContextModel

    def __post_init__(self) -> None:
        target, draft = self.target, self.draft
        if target.rows.shape != draft.rows.shape:
            raise ValueError(f"target has shape {target.rows.shape} and draft {draft.rows.shape}; want the same")
        if target.start != draft.start or not np.array_equal(target._successor, draft._successor):
            raise ValueError("target and draft have different contexts; want the same start and the same successor")
        if target.exact != draft.exact:
            object.__setattr__(self, "target", target.as_float())
            object.__setattr__(self, "draft", draft.as_float())

    # ------------------------------------------------------------------ constructors

    @classmethod
    def of(cls, target: object, draft: object, successor: object = None, start: int = 0) -> ModelPair:
        """From rows [C, V] of both and what `ContextModel` takes; errors name target and draft."""
        rows = read_rows(target, "target")
        other = read_rows(draft, "draft", rows.shape[1])
        if len(other) != len(rows):
            raise ValueError(f"draft has {len(other)} rows and target {len(rows)}; want one per context in both")
        contexts = _read_successor(successor, *rows.shape)
        return cls(ContextModel(rows, contexts, start), ContextModel(other, contexts, start))

    @classmethod
    def iid(cls, target: object, draft: object) -> ModelPair:
        """One context: the same two rows at every place."""
        return cls.of([target], [draft], [[0] * len(read_list(target, "target"))])

    @classmethod
    def markov(cls, target: object, draft: object, start: int = 0) -> ModelPair:
        """Order-1 chains: row y of each V x V matrix follows token y; `start` is the token before the stream."""
        return cls.of(target, draft, None, start)

    @classmethod
    def from_conditionals(cls, target: Law, draft: Law, vocab: int, depth: int) -> ModelPair:
        """Two functions from a prefix to a row, tabulated `depth` tokens deep.

        Contexts are the prefixes, breadth-first; at those of length `depth` the draft is not known.
        """
        prefixes = words(vocab, depth)
        inner = sum(len(w) < depth for w in prefixes)
        rows = [_law_row("target", target(w), vocab) for w in prefixes]
        drafted = [_law_row("draft", draft(w), vocab) for w in prefixes[:inner]]
        tables = to_array(rows, drafted + [[0] * vocab] * (len(prefixes) - inner))
        for name, table in zip(("target", "draft"), tables, strict=True):
            check_rows(table, name, gaps=name == "draft")
        successor = _children(vocab, len(prefixes))
        return cls(ContextModel(tables[0], successor), ContextModel(tables[1], successor))

    @classmethod
    def from_tree(cls, tree: PrefixTree) -> ModelPair:
        """Contexts are the nodes of a tree; N tokens with draft length L want a tree of depth N + L - 1."""
        target, draft = tree.rows(tree.target), tree.rows(tree.draft)
        target[tree.leaves] = tree.bonus
        successor = np.full((tree.size, tree.vocab), -1)
        successor[tree.parent[1:], tree.token[1:]] = np.arange(1, tree.size)
        return cls(ContextModel(target, successor), ContextModel(draft, successor))

    # ------------------------------------------------------------------ what it is

    @property
    def successor(self) -> Array:
        """[C, V] int64: the context after each token, -1 where it is not known."""
        return self.target._successor

    @property
    def start(self) -> int:
        """The context before the first token."""
        return self.target.start

    @property
    def contexts(self) -> int:
        """C."""
        return self.target.contexts

    @property
    def vocab(self) -> int:
        """V."""
        return self.target.vocab

    @property
    def exact(self) -> bool:
        """True if the rows are fractions."""
        return self.target.exact

    def as_float(self) -> ModelPair:
        """The same pair in float64."""
        return ModelPair(self.target.as_float(), self.draft.as_float())

    def target_law(self, tokens: int) -> dict[Prefix, Any]:
        """The target's law of the first N tokens, impossible ones left out."""
        return self.target.block_law(tokens)


def words(vocab: int, depth: int) -> list[Prefix]:
    """All words of length 0..depth over the tokens 0..vocab-1, breadth-first."""
    return [w for length in range(depth + 1) for w in product(range(vocab), repeat=length)]


def _children(vocab: int, count: int) -> Array:
    """[count, V]: in breadth-first order the children of word i are V i + 1, ...; -1 where they are beyond."""
    children = vocab * np.arange(count)[:, None] + np.arange(1, vocab + 1)
    return np.where(children < count, children, -1)


def _law_row(name: str, row: Row, vocab: int) -> Row:
    if len(row) != vocab:
        raise ValueError(f"a {name} row has {len(row)} entries; want {vocab}")
    return row if isinstance(row, np.ndarray) else [parse_number(x) if isinstance(x, str) else x for x in row]


def _read_successor(successor: object, contexts: int, vocab: int) -> Array:
    """The successor map [C, V]; None means order-1 Markov, `successor[c, z] = z`, which needs C >= V."""
    if successor is None:
        if contexts < vocab:
            raise ValueError(
                f"target has {contexts} rows for {vocab} tokens; want one row per token, or give successor"
            )
        return np.tile(np.arange(vocab), (contexts, 1))
    ready = isinstance(successor, np.ndarray) and successor.dtype == np.int64 and successor.shape == (contexts, vocab)
    if isinstance(successor, np.ndarray) and ready and successor.min() >= -1 and successor.max() < contexts:
        return successor
    listed = read_list(successor, "successor")
    if len(listed) != contexts:
        raise ValueError(f"successor has {len(listed)} rows; want {contexts}, one per context")
    return np.array([_successor_row(row, c, contexts, vocab) for c, row in enumerate(listed)])


def _successor_row(row: object, c: int, contexts: int, vocab: int) -> list[int]:
    entries = read_list(row, f"successor[{c}]")
    if len(entries) != vocab:
        raise ValueError(f"successor[{c}] has {len(entries)} entries; want {vocab}, one per token")
    return [read_count(value, f"successor[{c}][{z}]", contexts - 1) for z, value in enumerate(entries)]


def _powered(row: Sequence[Number], exponent: float) -> list[Number]:
    """row^exponent normalised, relative to its largest entry so that nothing underflows to an empty row."""
    largest = max(row)
    weights = [float(value / largest) ** exponent for value in row]
    total = sum(weights)
    return [weight / total for weight in weights]
