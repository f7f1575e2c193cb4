"""Roots of batches of falling functions, in a fixed number of evaluations (no synchronisation with the device).

[ITP] Oliveira and Takahashi 2021, "An enhancement of the bisection method average performance preserving minmax
optimality": a secant point, moved a little towards the middle, never further from it than bisection could afford.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SECTIONS = {torch.float64: 8, torch.float32: 16}  # by which a bracket is divided in each round
ROUNDS = {torch.float64: 14, torch.float32: 2}
STEPS = {torch.float64: 50, torch.float32: 14}  # of the secant
SLACK = 2  # evaluations that the secant steps may waste against bisection


def falling_root(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Smallest x in [low, high] with function(x) <= 0, from above: the returned x has function(x) <= 0.

    For each batch element a non-increasing function with function(high) <= 0. The bracket shrinks at least to
    2^-12 of its width, and usually far more, in float32 inputs' 14 evaluations; to 2^-48 in 50 for float64.

    Args:
        function: maps [B] to [B]; its result's dtype sets the number of evaluations.
        low, high [B] float64.
    """
    at_low, at_high = function(low), function(high)
    start = high - low
    for step in range(STEPS[at_low.dtype]):
        middle, half = (low + high) / 2, (high - low) / 2
        secant = high - at_high * (high - low) / torch.where(at_high < at_low, at_high - at_low, -1)
        towards = (middle - secant).sign()
        nudge = 0.2 * (2 * half).square() / start.clamp_min(torch.finfo(start.dtype).tiny)
        trial = torch.where(nudge <= (middle - secant).abs(), secant + towards * nudge, middle)
        reach = start * 2.0 ** (SLACK - 1 - step) - half
        point = torch.where((trial - middle).abs() <= reach, trial, middle - towards * reach)
        value = function(point)
        low, high = torch.where(value > 0, point, low), torch.where(value > 0, high, point)
        at_low, at_high = torch.where(value > 0, value, at_low), torch.where(value > 0, at_high, value)
    return high


def sectioned_root(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    dtype: torch.dtype,
) -> NDArray[np.float64]:
    """Smallest x in [low, high] with function(x) <= 0, on the host, in few evaluations of many points each.

    The bracket shrinks to 2^-8 of its width for float32 inputs, 2^-42 for float64; in it the function counts as linear.

    Args:
        function: maps [.., I], ascending points for each of the functions, to [.., I]; each is non-increasing.
        low, high [..]; where the function stays positive the result is high.
    """
    sections = SECTIONS[dtype]
    steps = np.arange(sections + 1) / sections
    low, high = low[..., None], high[..., None]
    first = np.arange(0, low.size * (sections + 1), sections + 1).reshape(low.shape)
    for _ in range(ROUNDS[dtype]):
        points = low + (high - low) * steps
        points[..., -1:] = high
        values = function(points)
        above = values > 0
        above[..., -1] = False
        after = above.argmin(axis=-1, keepdims=True)
        before = first + np.maximum(after - 1, 0)
        after += first
        low, left, high, right = (table.take(place) for place in (before, after) for table in (points, values))
    part = np.where(left > 0, left / np.where(left > right, left - right, 1.0), 0.0)
    root: NDArray[np.float64] = low + (high - low) * np.where(right > 0, 1.0, part)
    return root[..., 0]
