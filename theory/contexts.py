"""Language models small enough to be exact: finite contexts, one row of next-token probabilities each.

A context is all a model remembers; emitting token z in context c leads to context `successor[c][z]`.
An order-1 Markov chain has one context per token and `successor[c][z] = z`; a prefix tree has one
context per node and successor = child. Everything downstream is written for contexts, so both are
one case. Numbers are `fractions.Fraction` when every input is an integer, a fraction or a rational
string ("3/4", "0.1"); one float anywhere makes the instance float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from itertools import product
from numbers import Integral, Rational, Real
from typing import TypeAlias

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from .prefix_tree import parse_number

Number: TypeAlias = Fraction | float
Rows: TypeAlias = tuple[tuple[Number, ...], ...]

ROW_SUM_TOLERANCE = 1e-9
_SUPPORT_TOLERANCE = 1e-12


def to_number(value: object, field: str) -> Number:
    """`value` as a Fraction (integers, fractions, rational strings) or a finite float64.

    Raises:
        ValueError: naming `field`, for booleans, NaN, infinities, unreadable strings and other types.
    """
    if isinstance(value, str):
        try:
            return parse_number(value)
        except ValueError:
            raise ValueError(f'{field} is {value!r}; want a number or a rational string such as "3/4"') from None
    if isinstance(value, Rational) and not isinstance(value, bool):
        return Fraction(int(value.numerator), int(value.denominator))
    if isinstance(value, Real) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{field} is {float(value)}; want a finite number")
        return float(value)
    raise ValueError(f'{field} is {value!r}; want a number or a rational string such as "3/4"')


def read_rows(rows: object, field: str, width: int | None = None) -> Rows:
    """Rows [C, V] of probabilities, each non-negative with sum 1 (exactly, or to 1e-9 in floats).

    Nothing is rescaled. Raises ValueError naming the field, the entry and what was wanted.
    """
    listed = _listed(rows, field)
    if not listed:
        raise ValueError(f"{field} is empty; want at least one row of probabilities")
    parsed = []
    for c, row in enumerate(listed):
        entries = _listed(row, f"{field}[{c}]")
        width = len(entries) if width is None else width
        if len(entries) != width or not entries:
            raise ValueError(f"{field}[{c}] has {len(entries)} entries; want {width}, one per token")
        parsed.append(_read_row(entries, f"{field}[{c}]"))
    return tuple(parsed)


def _read_row(entries: Sequence[object], field: str) -> tuple[Number, ...]:
    row = tuple(to_number(value, f"{field}[{z}]") for z, value in enumerate(entries))
    for z, value in enumerate(row):
        if value < 0:
            raise ValueError(f"{field}[{z}] is {value}; want a probability, at least 0")
    if max(row) > 1 + ROW_SUM_TOLERANCE:
        raise ValueError(f"{field} has an entry above 1; want probabilities")
    total: Number = sum(row)
    tolerance = 0 if all_exact(row) else ROW_SUM_TOLERANCE
    if magnitude(total - 1) > tolerance:
        raise ValueError(f"{field} sums to {total}; want 1 (divide the row by its sum)")
    return row


def read_successor(successor: object | None, contexts: int, vocab: int) -> tuple[tuple[int, ...], ...]:
    """The successor map [C, V]; None means order-1 Markov, `successor[c][z] = z`, which needs C >= V."""
    if successor is None:
        if contexts < vocab:
            raise ValueError(
                f"target has {contexts} rows for {vocab} tokens; want one row per token, or give successor"
            )
        return (tuple(range(vocab)),) * contexts
    listed = _listed(successor, "successor")
    if len(listed) != contexts:
        raise ValueError(f"successor has {len(listed)} rows; want {contexts}, one per context")
    return tuple(_read_successor_row(row, c, contexts, vocab) for c, row in enumerate(listed))


def _read_successor_row(row: object, c: int, contexts: int, vocab: int) -> tuple[int, ...]:
    entries = _listed(row, f"successor[{c}]")
    if len(entries) != vocab:
        raise ValueError(f"successor[{c}] has {len(entries)} entries; want {vocab}, one per token")
    return tuple(read_count(value, f"successor[{c}][{z}]", contexts - 1) for z, value in enumerate(entries))


def read_count(value: object, field: str, highest: int | None = None) -> int:
    """`value` as an integer in 0..highest; ValueError naming `field` otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        raise ValueError(f"{field} is {value!r}; want an integer, at least 0")
    if highest is not None and int(value) > highest:
        raise ValueError(f"{field} is {value}; want at most {highest}")
    return int(value)


def _listed(values: object, field: str) -> list[object]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{field} is {values!r}; want a list")
    return list(values)


def all_exact(*rows: Sequence[Number]) -> bool:
    """True if every number is a Fraction, so that arithmetic on them stays exact."""
    return all(isinstance(value, Fraction) for row in rows for value in row)


def as_floats(rows: Rows) -> Rows:
    """The same rows in float64."""
    return tuple(tuple(float(value) for value in row) for row in rows)


def tree_successor(
    prefixes: Collection[tuple[int, ...]], vocab: int, field: str
) -> tuple[list[tuple[int, ...]], tuple[tuple[int, ...], ...]]:
    """Prefixes in breadth-first order and their successor map; one context per prefix, the empty one first.

    After the longest prefixes the text is complete and the next token starts a new one at the root.
    Raises ValueError unless `prefixes` are exactly the words of length 0..N-1 for some N.
    """
    ordered = sorted(prefixes, key=lambda w: (len(w), w))
    depth = len(ordered[-1]) if ordered else 0
    full = [w for length in range(depth + 1) for w in product(range(vocab), repeat=length)]
    if ordered != full:
        missing = next((w for w in full if w not in set(ordered)), ordered[:1])
        raise ValueError(
            f"{field} has {len(ordered)} prefixes; want a row for each of the {len(full)} words of length "
            f"0..{depth} over {vocab} tokens (first difference: {missing})"
        )
    index = {w: c for c, w in enumerate(ordered)}
    return ordered, tuple(tuple(index.get((*w, z), 0) for z in range(vocab)) for w in ordered)


def closed_classes(transition: Sequence[Sequence[Number]]) -> list[list[int]]:
    """The sets of states a chain never leaves and that cannot be split; floats up to 1e-12 count as 0."""

    def possible(probability: Number) -> bool:
        return probability > (0 if isinstance(probability, Fraction) else _SUPPORT_TOLERANCE)

    reach = np.array([[possible(value) for value in row] for row in transition])
    count, label = connected_components(csr_array(reach), directed=True, connection="strong")
    members = [np.flatnonzero(label == i) for i in range(count)]
    return [group.tolist() for group in members if not reach[np.ix_(group, label != label[group[0]])].any()]


def stationary_law(transition: Sequence[Sequence[Number]]) -> list[Number]:
    """pi with pi = pi transition and sum 1, for a chain with one closed class; exact in Fractions."""
    states = range(len(transition))
    matrix: list[list[Number]] = [[transition[s][z] - (1 if s == z else 0) for s in states] for z in states]
    matrix[0] = [1 for _ in states]
    return solve_linear(matrix, [1, *[0] * (len(transition) - 1)])


def magnitude(value: Number) -> Number:
    """|value|."""
    return value if value >= 0 else -value


def solve_linear(matrix: Sequence[Sequence[Number]], right: Sequence[Number]) -> list[Number]:
    """x with matrix x = right, by Gauss-Jordan elimination with pivoting; exact in Fractions.

    Raises:
        ZeroDivisionError: the matrix is singular.
    """
    size = len(right)
    rows = [[_exact(value) for value in (*matrix[i], right[i])] for i in range(size)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda i: magnitude(rows[i][column]))
        if rows[pivot][column] == 0:
            raise ZeroDivisionError(f"the {size} x {size} linear system is singular in column {column}")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        scale = rows[column][column]
        rows[column] = [value / scale for value in rows[column]]
        for i in range(size):
            factor = rows[i][column]
            if i != column and factor != 0:
                rows[i] = [value - factor * base for value, base in zip(rows[i], rows[column], strict=True)]
    return [row[size] for row in rows]


def _exact(value: Number) -> Number:
    """Integers as Fractions, whose quotients stay exact."""
    return Fraction(value) if isinstance(value, int) else value
