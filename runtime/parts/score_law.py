"""Laws of a score: piecewise uniform on [0, 1], and what a score is worth in a race of K that the smallest wins.

Score s of one of K drafts wins with density g'(s) = K (1-s)^(K-1) if the scores of all drafts are uniform.

Letters: N laws, J knots, P parts, I places.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def over(value: Tensor, mass: Tensor) -> Tensor:
    """value / mass, 0 where there is no mass."""
    return torch.where(mass > 0, value / mass, 0.0)


@dataclass(frozen=True)
class ScoreLaw:
    """Laws of a draft's score given the node that it passes through.

    Attributes:
        score [N, J] float64: knots, ascending from 0 to 1; uniform in between.
        below [N, J] float64: probability of a score below each knot, ascending from 0 to 1.
        paths: K.
    """

    score: Tensor
    below: Tensor
    paths: int

    @classmethod
    def uniform(cls, rows: int, paths: int, device: torch.device) -> ScoreLaw:
        """The law at the root."""
        ends = torch.arange(2, dtype=torch.float64, device=device).repeat(rows, 1)
        return cls(ends, ends, paths)

    def repeated(self, times: int) -> ScoreLaw:
        """All laws, `times` over."""
        return ScoreLaw(self.score.repeat(times, 1), self.below.repeat(times, 1), self.paths)

    @cached_property
    def pieces(self) -> Tensor:
        """[N, J-1, 5] of each piece, what its value takes: below, worth of all before it, rate, weight, slope.

        A piece of mass m on scores start..start + width is worth, x of its mass in,
        m/width ((1 - start)^K - (1 - start - x width/m)^K) = weight (1 - (1 - x rate)^K), or slope x if it is a point.
        """
        start, width, mass = self.score[:, :-1], self.score.diff(dim=1), self.below.diff(dim=1)
        left, spread = 1 - start, (width > 0) & (mass > 0)
        rate = torch.where(spread, width / (mass * left), 0.0)
        weight = torch.where(spread, mass / width * left**self.paths, 0.0)
        slope = torch.where(spread, 0.0, self.paths * left ** (self.paths - 1))
        value = weight * self._lost(rate * mass) + slope * mass
        return torch.stack([self.below[:, :-1], value.cumsum(dim=1) - value, rate, weight, slope], dim=2)

    def _lost(self, share: Tensor) -> Tensor:
        """1 - (1 - share)^K without cancellation."""
        return -torch.expm1(self.paths * torch.log1p(-share.clamp_max(1)))

    def value(self, mass: Tensor) -> Tensor:
        """G of `mass` [N, ...] in [0, 1]: the value of the lowest scores of that probability."""
        flat = mass.flatten(1)
        before, worth, rate, weight, slope = self.pieces.gather(1, self._piece(flat).expand(-1, -1, 5)).unbind(dim=2)
        inside = flat - before
        return (worth + weight * self._lost(rate * inside) + slope * inside).view_as(mass)

    def score_at(self, mass: Tensor) -> Tensor:
        """[N, I]: the score below which lies `mass` [N, I]."""
        piece = self._piece(mass).squeeze(2)
        start, end, before, after = (
            part.gather(1, piece) for part in (self.score, self.score[:, 1:], self.below, self.below[:, 1:])
        )
        return start + (end - start) * over(mass - before, after - before)

    def _piece(self, mass: Tensor) -> Tensor:
        """int64 [N, I, 1]: the piece that holds the last of `mass` [N, I]."""
        return torch.searchsorted(self.below[:, 1:-1].contiguous(), mass.contiguous(), right=True).unsqueeze(2)

    def rearranged(self, edges: Tensor, shares: Tensor) -> ScoreLaw:
        """The laws that take share i from the i-th of the parts into which `edges` cut the lowest-score mass.

        Args:
            edges [N, P+1] ascending from 0 to 1; shares [N, P], rows sum to 1.
        """
        inner = edges[:, 1:-1]
        mass = torch.cat([self.below, inner], dim=1).sort(dim=1).values
        score = torch.cat([self.score, self.score_at(inner)], dim=1).sort(dim=1).values
        start, length = edges[:, :-1].unsqueeze(1), edges.diff(dim=1).unsqueeze(1)
        taken = over(
            torch.minimum((mass.unsqueeze(2) - start).clamp_min(0), length), length.expand(-1, mass.shape[1], -1)
        )
        below = (taken * shares.unsqueeze(1)).sum(dim=2).cummax(dim=1).values
        return ScoreLaw(score, below / below[:, -1:].clamp_min(torch.finfo(below.dtype).tiny), self.paths)
