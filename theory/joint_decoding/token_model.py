"""A language model with finitely many contexts, from which whole blocks of tokens are drawn.

P(x | prefix) = product of next-token probabilities. Argmax and beam ties always go to the lexicographically smallest
block. Exact in fractions when the rows are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias, cast

from ..contexts import (
    Number,
    Rows,
    all_exact,
    as_floats,
    read_count,
    read_rows,
    read_successor,
    to_number,
    tree_successor,
)

Tokens: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class TokenModel:
    """Rows [C, V] of next-token probabilities, the start context, and the context after each token.

    `successor` [C, V] None means order-1 Markov (context = last token). Raises ValueError for rows that are no
    probabilities, a start outside 0..C-1 or a successor outside its range.
    """

    rows: Rows
    start: int = 0
    successor: tuple[Tokens, ...] | None = None

    def __post_init__(self) -> None:
        rows = read_rows(self.rows, "rows")
        object.__setattr__(self, "rows", rows if all_exact(*rows) else as_floats(rows))
        object.__setattr__(self, "start", read_count(self.start, "start", len(rows) - 1))
        object.__setattr__(self, "successor", read_successor(self.successor, len(rows), len(rows[0])))

    @property
    def vocab(self) -> int:
        return len(self.rows[0])

    @cached_property
    def one(self) -> Number:
        return Fraction(1) if all_exact(*self.rows) else 1.0

    @classmethod
    def markov(cls, rows: object, start: int = 0) -> TokenModel:
        """Order-1 Markov: row c follows token c; generation starts as if after token `start`."""
        return cls(cast("Rows", rows), start)

    @classmethod
    def markov_with_start_row(cls, rows: object, start_row: object) -> TokenModel:
        """Order-1 Markov whose first token has its own law."""
        chain = read_rows(rows, "rows")
        first = read_rows([start_row], "start_row", len(chain[0]))
        return cls((*chain, *first), start=len(chain))

    @classmethod
    def tree(cls, rows: Mapping[Tokens, object]) -> TokenModel:
        """One row for every prefix of length 0..N-1; the token after N starts a new text at the root."""
        if () not in rows:
            raise ValueError("rows has no row for the empty prefix (); want a row per prefix")
        vocab = len(read_rows([rows[()]], "rows[()]")[0])
        prefixes, successor = tree_successor(rows, vocab, "rows")
        return cls(tuple(cast("Rows", [rows[w] for w in prefixes])), 0, successor)

    def next_context(self, context: int, token: int) -> int:
        """The context after `token`."""
        return cast("tuple[Tokens, ...]", self.successor)[context][token]

    def context_after(self, tokens: Sequence[int], context: int | None = None) -> int:
        """The context after `tokens`, from `context` (default: the start)."""
        context = self.start if context is None else context
        for token in tokens:
            context = self.next_context(context, token)
        return context

    def prefix_joints(self, tokens: Sequence[int], context: int | None = None) -> list[Number]:
        """P(x_1..x_i | context) for i = 0..len(tokens)."""
        context = self.start if context is None else context
        joints = [self.one]
        for token in tokens:
            joints.append(joints[-1] * self.rows[context][token])
            context = self.next_context(context, token)
        return joints

    def joint(self, tokens: Sequence[int], context: int | None = None) -> Number:
        """P(tokens | context), the start by default."""
        return self.prefix_joints(tokens, context)[-1]

    def argmax(self, context: int) -> int:
        """Most probable next token, the smallest among equals."""
        row = self.rows[context]
        return row.index(max(row))

    def block_law(self, length: int) -> dict[Tokens, Number]:
        """The law of the first `length` tokens, blocks of probability 0 left out."""
        layer: dict[Tokens, tuple[int, Number]] = {(): (self.start, self.one)}
        for _ in range(length):
            layer = {
                (*tokens, z): (self.next_context(context, z), mass * probability)
                for tokens, (context, mass) in layer.items()
                for z, probability in enumerate(self.rows[context])
                if probability > 0
            }
        return {tokens: mass for tokens, (_, mass) in layer.items()}

    def tempered(self, temperature: Number) -> TokenModel:
        """Rows proportional to p^(1/temperature); 1 leaves them as they are, 0 is one-hot at the argmax.

        Raises:
            ValueError: a negative or non-finite temperature.
        """
        temperature = to_number(temperature, "temperature")
        if temperature < 0:
            raise ValueError(f"temperature is {temperature}; want at least 0")
        if temperature == 1:
            return self
        contexts = range(len(self.rows))
        rows: list[Sequence[Number]] = []
        if temperature == 0:
            rows = [[self.one * int(z == self.argmax(c)) for z in range(self.vocab)] for c in contexts]
        else:
            rows = [_powered(self.rows[c], 1 / float(temperature)) for c in contexts]
        return TokenModel(cast("Rows", tuple(map(tuple, rows))), self.start, self.successor)


def _powered(row: Sequence[Number], exponent: float) -> list[float]:
    """row^exponent normalised, relative to its largest entry so that nothing underflows to an empty row."""
    largest = max(row)
    weights = [float(value / largest) ** exponent for value in row]
    total = sum(weights)
    return [weight / total for weight in weights]
