"""When to stop, as a threshold on R per context and remaining cap, computed for every rho at once.

With Gamma >= 0 the continuation gain of `optimum` is nondecreasing in rho (token and block level), so the
best rule in context y with d drafts left is "stop iff rho <= rho*(y, d)", that is iff R >= R*(y, d) = 1 - rho*(y, d).
The gain is piecewise linear in rho on [0, 1], so it is kept whole, by its breakpoints: exact in Fractions, and a
second route to the values of the memoised DP.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ..numbers import Number
from .instance import StoppingInstance
from .rounds import check_state_count


@dataclass(frozen=True)
class PiecewiseLinear:
    """A continuous function on [0, 1] by its breakpoints: `positions` rise from 0 to 1."""

    positions: tuple[Number, ...]
    values: tuple[Number, ...]

    def __call__(self, x: Number) -> Number:
        right = bisect_left(self.positions, x)
        if self.positions[right] == x:
            return self.values[right]
        low, high = self.positions[right - 1], self.positions[right]
        share = (x - low) / (high - low)
        return self.values[right - 1] + share * (self.values[right] - self.values[right - 1])

    def largest_up_to(self, x: Number) -> Number:
        """Maximum over [0, x]."""
        inside = [value for position, value in zip(self.positions, self.values, strict=True) if position <= x]
        return max([*inside, self(x)])

    def last_nonpositive(self) -> Number:
        """Largest x with value <= 0 (0 if there is none)."""
        for i in range(len(self.positions) - 1, -1, -1):
            if self.values[i] <= 0:
                return self.positions[i] if i + 1 == len(self.positions) else self._root(i)
        return self.positions[0]

    def positive_part(self) -> PiecewiseLinear:
        """max(0, .)."""
        points: list[tuple[Number, Number]] = []
        zero = 0 * self.positions[-1]
        for i, (x, value) in enumerate(zip(self.positions, self.values, strict=True)):
            if i and (self.values[i - 1] < 0 < value or value < 0 < self.values[i - 1]):
                points.append((self._root(i - 1), zero))
            points.append((x, max(value, zero)))
        kept = [
            point
            for i, point in enumerate(points)
            if i in (0, len(points) - 1) or not points[i - 1][1] == point[1] == points[i + 1][1]
        ]
        return PiecewiseLinear(tuple(x for x, _ in kept), tuple(value for _, value in kept))

    def _root(self, i: int) -> Number:
        """Where the piece from breakpoint i to i+1 crosses 0."""
        rise = self.values[i + 1] - self.values[i]
        return self.positions[i] - self.values[i] * (self.positions[i + 1] - self.positions[i]) / rise


def gain_functions(instance: StoppingInstance, gamma: Sequence[Number]) -> dict[tuple[int, int], PiecewiseLinear]:
    """The continuation gain of context y with d drafts left, as a function of rho, for every (y, d), d = 1..K."""
    forced_above = instance.max_length - instance.min_length
    one, zero = instance.one, 0 * instance.one
    gains: dict[tuple[int, int], PiecewiseLinear] = {}
    after_stop = [PiecewiseLinear((zero, one), (zero, zero))] * instance.contexts
    size = 0
    for left in range(1, instance.max_length + 1):
        for context in range(instance.contexts):
            gains[context, left] = _gain_function(instance, gamma, context, after_stop)
            size += len(gains[context, left].positions)
            check_state_count(size, instance)
        after_stop = [
            gains[c, left] if left > forced_above else gains[c, left].positive_part() for c in range(instance.contexts)
        ]
    return gains


def _gain_function(
    instance: StoppingInstance, gamma: Sequence[Number], context: int, later: Sequence[PiecewiseLinear]
) -> PiecewiseLinear:
    """-t_d + sum_z q(z|y) [rho_z Gamma(z) + later_z(rho_z)] with the breakpoints of every term.

    The last breakpoint of later_z, 1, also marks where rho_z = min(1, rho ratio) saturates.
    """
    positions = {0 * instance.one, instance.one}
    for after, _, ratio in instance.branches[context]:
        slope = min(ratio, instance.one) if instance.verifier == "token" else ratio
        if slope > 0:
            positions |= {x / slope for x in later[after].positions if x < slope}

    def value(rho: Number) -> Number:
        total = -instance.draft_time
        for after, draft, ratio in instance.branches[context]:
            rho_after = instance.next_rho(rho, ratio)
            total += draft * (rho_after * gamma[after] + later[after](rho_after))
        return total

    ordered = sorted(x for x in positions if x <= 1)
    return PiecewiseLinear(tuple(ordered), tuple(value(x) for x in ordered))


def stop_thresholds(instance: StoppingInstance, gamma: Sequence[Number]) -> dict[tuple[int, int], Number]:
    """R*(y, d): with d drafts left in context y, stop iff R >= R*. Keys (y, d), d = 1..K - min_length.

    Raises:
        ValueError: some Gamma is negative (possible only with a forced minimum); the rule need not be a threshold.
    """
    if min(gamma) < 0:
        raise ValueError(f"gamma has the negative entry {min(gamma)}; want Gamma >= 0 for thresholds in R")
    gains = gain_functions(instance, gamma)
    optional = instance.max_length - instance.min_length
    return {key: 1 - gain.last_nonpositive() for key, gain in gains.items() if key[1] <= optional}
