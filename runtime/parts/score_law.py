"""Laws of a score: piecewise uniform on [0, 1], and what a score is worth in a race of K that the smallest wins.

Score s of one of K drafts wins with density g'(s) = K (1-s)^(K-1) if the scores of all drafts are uniform. The arrays
are small, a few numbers for each path, and stay on the host.

Letters: N laws, J knots, P parts, I places, C columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

NOTHING = 2.0**-1000  # so little mass lies at its first score, where scores per mass would overflow


def over(value: Array, mass: Array) -> Array:
    """value / mass, 0 where there is no mass."""
    return value / np.where(mass > 0, mass, np.inf)


def count_below(ascending: Array, values: Array, equal: bool = False) -> Indices:
    """[N, ..]: how many of the row's numbers, ascending [N, J], lie below each value [N, ..] (`equal`: or at it)."""
    if len(ascending) and (len(ascending) == 1 or not ascending.strides[0]):  # one row for all
        return ascending[0].searchsorted(values, "right" if equal else "left")
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    rows = (torch.from_numpy(np.ascontiguousarray(each)) for each in (ascending, flat))
    return torch.searchsorted(*rows, right=equal).numpy().reshape(values.shape)


def entries(tables: NDArray[Any], index: Indices) -> NDArray[Any]:
    """[C, N, ..]: entries `index` [N, ..] of the rows of `tables` [C, N, J]."""
    count, rows, size = tables.shape
    first = np.arange(0, rows * size, size).reshape(rows, *[1] * (index.ndim - 1))
    return tables.reshape(count, rows * size).take(index + first, axis=1)


def powers_below(left: Array, paths: int) -> Array:
    """1 + left + .. + left^(K-1), by doubling."""
    if paths == 1:
        return np.ones_like(left)
    total = power = left
    for place, bit in enumerate(f"{paths:b}"[1:]):
        total = total + total * power if place else 1 + left
        power = power * power
        if bit == "1":
            total, power = 1 + left * total, power * left
    return total


@dataclass(frozen=True)
class ScoreLaw:
    """Laws of a draft's score given the node that it passes through.

    Attributes:
        score [N, J]: knots, ascending from 0 to 1; uniform in between.
        below [N, J]: probability of a score below each knot, ascending from 0 to 1.
        paths: K.
    """

    score: Array
    below: Array
    paths: int

    @classmethod
    def uniform(cls, rows: int, paths: int) -> ScoreLaw:
        """The law at the root."""
        ends = np.tile(np.arange(2.0), (rows, 1))
        return cls(ends, ends, paths)

    @cached_property
    def pieces(self) -> Array:
        """[6, N, J-1] of each piece: its first score, scores per mass; mass and value of all before it; rate, unit.

        A piece of mass m on scores start..start + width is worth, x of its mass in,
        m/width ((1 - start)^K - (1 - start - x width/m)^K) = x unit (1 + left + .. + left^(K-1)),
        left = 1 - x rate, rate = width / (m (1 - start)), unit = (1 - start)^(K-1); a point has rate 0.
        """
        start, before = self.score[:, :-1], self.below[:, :-1]
        mass, left = self.below[:, 1:] - before, 1 - start
        pieces = np.empty((6, *start.shape))
        first, width, below, worth, rate, unit = pieces
        first[:], below[:], unit[:] = start, before, left ** (self.paths - 1)
        width[:] = over(self.score[:, 1:] - start, np.where(mass > NOTHING, mass, 0))
        rate[:] = over(width, left)
        value = mass * unit * powers_below(np.maximum(1 - rate * mass, 0), self.paths)
        worth[:, 0] = 0
        np.cumsum(value[:, :-1], axis=1, out=worth[:, 1:])
        return pieces

    def value(self, mass: Array) -> Array:
        """G of `mass` [N, ..] in [0, 1]: the value of the lowest scores of that probability."""
        before, worth, rate, unit = self._at(mass, slice(2, 6))
        inside = mass - before
        value: Array = worth + inside * unit * powers_below(np.maximum(1 - rate * inside, 0), self.paths)
        return value

    def score_at(self, mass: Array) -> Array:
        """[N, ..]: the score below which lies `mass` [N, ..]."""
        start, width, before = self._at(mass, slice(3))
        score: Array = start + (mass - before) * width
        return score

    def _at(self, mass: Array, columns: slice) -> Array:
        """[C, N, ..]: some of `pieces`, of those that hold the last of `mass` [N, ..]."""
        pieces, rows = self.pieces[columns], len(mass)
        if pieces.shape[2] == 1:
            return pieces.reshape(len(pieces), rows, *[1] * (mass.ndim - 1))
        flat = torch.from_numpy(np.ascontiguousarray(mass).reshape(rows, math.prod(mass.shape[1:])))
        ends, first = self._places
        index = torch.searchsorted(ends, flat, right=True).numpy()
        index += first
        return pieces.reshape(len(pieces), rows * pieces.shape[2]).take(index.reshape(mass.shape), axis=1)

    @cached_property
    def _places(self) -> tuple[torch.Tensor, Indices]:
        """Where each piece but the last ends [N, J-2], and the first entry of each row of `pieces` [N, 1]."""
        rows, count = len(self.below), self.below.shape[1] - 1
        return torch.from_numpy(self.below[:, 1:-1].copy()), np.arange(0, rows * count, count)[:, None]

    def some(self, rows: NDArray[np.bool_]) -> ScoreLaw:
        """Some of the laws."""
        some = ScoreLaw(self.score[rows], self.below[rows], self.paths)
        some.__dict__["pieces"] = self.pieces[:, rows]
        return some

    def rearranged(self, edges: Array, shares: Array) -> ScoreLaw:
        """The laws that take share i from the i-th of the parts into which `edges` cut the lowest-score mass.

        Args:
            edges [N, P+1] ascending from 0 to 1; shares [N, P], rows sum to 1.
        """
        inner = edges[:, 1:-1]
        mass = np.sort(np.concatenate([self.below, inner], axis=1))
        score = np.sort(np.concatenate([self.score, self.score_at(inner)], axis=1))
        start, length = edges[:, None, :-1], (edges[:, 1:] - edges[:, :-1])[:, None]
        taken = np.minimum(np.maximum(mass[:, :, None] - start, 0), length)
        below = np.maximum.accumulate((taken * over(shares[:, None], length)).sum(axis=2), axis=1)
        return ScoreLaw(score, over(below, below[:, -1:]), self.paths)
