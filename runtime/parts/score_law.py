"""Laws of a score: piecewise uniform on [0, 1], and what a score is worth in a race of K that the smallest wins.

Score s of one of K drafts wins with density g'(s) = K (1-s)^(K-1) if the scores of all drafts are uniform. The arrays
are small, a few numbers for each path, and stay on the host.

Letters: N laws, J knots, P parts, I places, C columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


def over(value: Array, mass: Array) -> Array:
    """value / mass, 0 where there is no mass."""
    with np.errstate(all="ignore"):
        return np.where(mass > 0, value / mass, 0.0)


def count_below(ascending: Array, values: Array, equal: bool = False) -> Indices:
    """[N, ..]: how many of the row's numbers, ascending [N, J], lie below each value [N, ..] (`equal`: or at it)."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    rows = (torch.from_numpy(np.ascontiguousarray(each)) for each in (ascending, flat))
    return torch.searchsorted(*rows, right=equal).numpy().reshape(values.shape)


def entries(tables: Array, index: Indices) -> Array:
    """[C, N, ..]: entries `index` [N, ..] of the rows of `tables` [C, N, J]."""
    count, rows, size = tables.shape
    first = np.arange(0, rows * size, size).reshape(rows, *[1] * (index.ndim - 1))
    return tables.reshape(count, rows * size).take(index + first, axis=1)


def winning_share(mass: Array, paths: int) -> Array:
    """1 - (1 - mass)^K = mass (1 + left + .. + left^(K-1)), left = 1 - mass; by doubling, without cancellation."""
    left = 1 - mass
    total, power = np.ones_like(left), left
    for bit in f"{paths:b}"[1:]:
        total, power = total * (1 + power), power * power
        if bit == "1":
            total, power = 1 + left * total, power * left
    return mass * total


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
        """[5, N, J-1] of each piece, what its value takes: below, worth of all before it, rate, weight, slope.

        A piece of mass m on scores start..start + width is worth, x of its mass in,
        m/width ((1 - start)^K - (1 - start - x width/m)^K) = weight (1 - (1 - x rate)^K), or slope x if it is a point.
        """
        start, width, mass = self.score[:, :-1], np.diff(self.score), np.diff(self.below)
        left, spread = 1 - start, (width > 0) & (mass > 0)
        rate = np.where(spread, over(width, mass * left), 0.0)
        weight = np.where(spread, over(mass, width) * left**self.paths, 0.0)
        slope = np.where(spread, 0.0, self.paths * left ** (self.paths - 1))
        value = slope * mass + weight * winning_share(np.minimum(rate * mass, 1), self.paths)
        return np.stack([self.below[:, :-1], value.cumsum(axis=1) - value, rate, weight, slope])

    def value(self, mass: Array) -> Array:
        """G of `mass` [N, ..] in [0, 1]: the value of the lowest scores of that probability."""
        before, worth, rate, weight, slope = entries(self.pieces, self._piece(mass))
        inside = mass - before
        won = winning_share(np.minimum(rate * inside, 1), self.paths)
        value: Array = worth + slope * inside + weight * won
        return value

    def score_at(self, mass: Array) -> Array:
        """[N, ..]: the score below which lies `mass` [N, ..]."""
        piece = self._piece(mass)
        knots = np.stack([self.score, self.below])
        (start, before), (end, after) = entries(knots, piece), entries(knots, piece + 1)
        return start + (end - start) * over(mass - before, after - before)

    def _piece(self, mass: Array) -> Indices:
        """[N, ..]: the piece that holds the last of `mass` [N, ..]."""
        if self.below.shape[1] == 2:
            return np.zeros(mass.shape, dtype=np.int64)
        return count_below(self.below[:, 1:-1], mass, equal=True)

    def rearranged(self, edges: Array, shares: Array) -> ScoreLaw:
        """The laws that take share i from the i-th of the parts into which `edges` cut the lowest-score mass.

        Args:
            edges [N, P+1] ascending from 0 to 1; shares [N, P], rows sum to 1.
        """
        inner = edges[:, 1:-1]
        mass = np.sort(np.concatenate([self.below, inner], axis=1))
        score = np.sort(np.concatenate([self.score, self.score_at(inner)], axis=1))
        start, length = edges[:, None, :-1], np.diff(edges)[:, None]
        taken = over(np.minimum(np.maximum(mass[:, :, None] - start, 0), length), length)
        below = np.maximum.accumulate((taken * shares[:, None]).sum(axis=2), axis=1)
        return ScoreLaw(score, over(below, below[:, -1:]), self.paths)
