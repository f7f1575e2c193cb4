"""Where an emitted law leaves the target's: the first wrong position, the over-produced token, by how much.

Letters: w a prefix of i-1 tokens, y the token at position i of the emitted tokens; P the target's law.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from specbound.theory.prefix_tree import Prefix

DENOMINATORS = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
ROUNDING = 4e-15


@dataclass(frozen=True)
class Deviation:
    """How an emitted law differs from the target's law.

    Attributes:
        total_variation: distance of the laws of all tokens compared (L+1 for one call), in [0, 1].
        position: first position i (1-based) at which the law of the first i tokens is wrong.
        prefix, token: the over-produced token at that position, and the tokens before it.
        emitted: Pr(the stream starts with prefix + token), what the verifier gives.
        wanted: the target's probability of the same.
    """

    total_variation: float
    position: int
    prefix: Prefix
    token: int
    emitted: float
    wanted: float

    @property
    def excess(self) -> float:
        """emitted - wanted, the probability over-produced."""
        return self.emitted - self.wanted

    def to_dict(self) -> dict[str, Any]:
        """Fields as plain JSON values."""
        return {**asdict(self), "prefix": list(self.prefix), "excess": self.excess}


def marginal(law: Mapping[Prefix, Any], length: int) -> dict[Prefix, Any]:
    """The law of the first `length` tokens (shorter blocks stand for themselves)."""
    total: dict[Prefix, Any] = defaultdict(int)
    for block, probability in law.items():
        total[block[:length]] += probability
    return dict(total)


def distance(law: Mapping[Prefix, Any], other: Mapping[Prefix, Any]) -> float:
    """Total variation, half the sum of absolute differences."""
    return float(sum(abs(law.get(block, 0) - other.get(block, 0)) for block in law.keys() | other.keys())) / 2


def find_deviation(
    blocks: Mapping[Prefix, float], target_law: Mapping[Prefix, Any], tolerance: float
) -> Deviation | None:
    """The deviation of an emitted law from the target's law of the same tokens, or None if within `tolerance`.

    The first wrong position is the smallest i such that the laws of the first i tokens are more than `tolerance`
    apart (total variation); the over-produced token there is the one of largest excess.
    """
    wanted = {block: float(probability) for block, probability in target_law.items()}
    total = distance(blocks, wanted)
    if not total > tolerance:
        return None
    for position in range(1, max(map(len, [*wanted, *blocks])) + 1):
        emitted, target = marginal(blocks, position), marginal(wanted, position)
        if distance(emitted, target) > tolerance:
            break
    worst = max(sorted(emitted), key=lambda block: emitted[block] - target.get(block, 0.0))
    return Deviation(total, position, worst[:-1], worst[-1], float(emitted[worst]), target.get(worst, 0.0))


def as_fractions(blocks: Mapping[Prefix, float]) -> dict[Prefix, Fraction] | None:
    """The law in fractions, recovered from float64 and verified; None if that fails.

    Each probability is replaced by the fraction of smallest denominator (up to 10^6) within 4e-15 of it; the
    recovered fractions must sum to exactly 1, which a wrong guess among them would break.
    """
    law = {block: _fraction(probability) for block, probability in blocks.items()}
    found = {block: value for block, value in law.items() if value is not None}
    return found if len(found) == len(law) and sum(found.values()) == 1 else None


def _fraction(value: float) -> Fraction | None:
    for denominator in DENOMINATORS:
        guess = Fraction(value).limit_denominator(denominator)
        if abs(float(guess) - value) <= ROUNDING:
            return guess
    return None
