"""Finite Markov chains, exactly: classes a chain never leaves, its stationary law, linear systems in fractions."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from .numbers import Number, magnitude

_SUPPORT_TOLERANCE = 1e-12


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
