"""Does a decoding run keep as many tokens as the exact laws say it should?

At every target call of a run the context is known, so theory gives the exact law of the number tau of drafted
tokens kept at that very call. Given the contexts, the differences tau_i - E[tau_i] are martingale differences with
known variances: their mean over n calls is within z sqrt(sum_i Var[tau_i]) / n of 0, with no model of the contexts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Measured against predicted block efficiency (tokens per target call) over the same calls.

    Attributes:
        calls: n.
        measured: mean of tau + 1 in the run.
        predicted: mean of E[tau] + 1 by the exact laws.
        half_width: half the width of the interval around `predicted`.
        agrees: |measured - predicted| <= half_width.
    """

    calls: int
    measured: float
    predicted: float
    half_width: float

    @property
    def agrees(self) -> bool:
        return abs(self.measured - self.predicted) <= self.half_width


def agreement(accepted: Sequence[int], at_least: Sequence[Sequence[float]], confidence: float = 0.999) -> Agreement:
    """Compare the acceptance lengths of n calls with the exact laws at their contexts.

    Args:
        accepted: tau_i of each call.
        at_least: at each call's context Pr(tau >= j) for j = 0..L, same order (`Law.accepted`, or the masses by depth
            of a closed form).
        confidence: of the normal interval, in (0, 1).

    Raises:
        ValueError: if the sequences differ in length or are empty.
    """
    if len(accepted) != len(at_least) or not at_least:
        raise ValueError(
            f"accepted has {len(accepted)} entries and at_least {len(at_least)}; want one law per call, at least one"
        )
    mean = np.array([sum(law[1:]) for law in at_least])
    square = np.array([sum((2 * j - 1) * mass for j, mass in enumerate(law) if j) for law in at_least])
    spread = math.sqrt(max(0.0, float((square - mean**2).sum()))) / len(at_least)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    return Agreement(len(at_least), 1 + float(np.mean(accepted)), 1 + float(mean.mean()), z * spread)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Normal confidence interval of the mean of independent values; a single value gives an infinite one."""
    if len(values) < 2:
        return (-math.inf, math.inf)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)) - half, float(np.mean(values)) + half
