"""All randomness of a verifier goes through one small object, so that it can be replayed exactly.

A verifier asks questions that each have a finite set of answers with known probabilities: coins (`accept`,
`accept_while`, `accept_last`), a categorical draw (`choose`), and which of K keys is smallest (`smallest_key`,
`smallest_image`, `smallest_score`).
In production `Draws` answers from a `torch.Generator`; the exact checks answer every question in every way.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import compiled


class Draws:
    """Random answers from a generator.

    Args:
        generator: a `torch.Generator` on the device of the tensors asked about, or None for torch's default.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def accept(self, probability: Tensor) -> Tensor:
        """bool, shape of `probability`: independent coins, True with the given probability in [0, 1]."""
        return self._uniform(probability) < probability

    def accept_while(self, probability: Tensor) -> Tensor:
        """int64 [B]: how many of L independent coins [B, L] come up before the first that does not."""
        return self.accept(probability).long().cumprod(dim=-1).sum(dim=-1)

    def accept_last(self, probability: Tensor) -> Tensor:
        """int64 [B]: 1-based place of the last of L independent coins [B, L] that comes up; 0 if none does."""
        places = torch.arange(1, probability.shape[-1] + 1, device=probability.device)
        return (self.accept(probability) * places).amax(dim=-1)

    def choose(self, weights: Tensor) -> Tensor:
        """int64 [...]: one index of the last axis of `weights` [..., N], with probability weights / their sum.

        Weights are non-negative and need not sum to 1; an index of weight 0 is never chosen. One uniform per row is
        looked up in the running sums, in float64, so that weights far below the rounding of float32 keep their share.
        """
        sums = weights.cumsum(dim=-1, dtype=torch.float64)
        total = sums.narrow(-1, weights.shape[-1] - 1, 1)
        point = self._uniform(total) * total
        if weights.dtype == torch.float64:  # only these can have a sum so small that the product rounds up to it
            point = torch.minimum(point, torch.nextafter(total, torch.zeros_like(total)))
        return torch.searchsorted(sums, point, right=True).squeeze(-1).clamp_max_(weights.shape[-1] - 1)

    def smallest_key(self, low: Tensor, high: Tensor) -> Tensor:
        """int64 [B]: which of K independent keys, the k-th uniform on [low_k, high_k], is the smallest.

        Args:
            low, high [B, K] with low <= high; ties (equal degenerate keys) go to the smaller index.
        """
        return (low + (high - low) * self._uniform(low)).argmin(dim=-1)

    def smallest_image(self, like: Tensor, key: Callable[[Tensor], Tensor], knots: Callable[[], Tensor]) -> Tensor:
        """int64 [B]: which of K independent keys key_k(u_k) is the smallest, every u_k uniform on [0, 1].

        Args:
            like: any tensor [B, K] of the dtype and device of the uniforms.
            key: from uniforms [B, K] to keys [B, K], none falling in its own uniform; of equal keys the first wins.
            knots: gives [B, K, N], ascending from 0 to 1: uniforms between which every key is linear. Only an exact
                replay asks for them.
        """
        uniform = torch.rand(like.shape, dtype=like.dtype, device=like.device, generator=self.generator)
        return key(uniform).argmin(dim=-1)

    def smallest_score(self, score: Tensor, below: Tensor) -> Tensor:
        """int64 [B]: which of K independent scores is the smallest; score k has the law of the k-th row of knots.

        Args:
            score [B, K, J]: knots, ascending; a score is uniform between neighbouring ones.
            below [B, K, J]: probability of a score below each knot, ascending from 0 to 1.
        """
        if compiled.usable(score.device.type):
            from .compiled.rows import least_score

            uniform, winner = self._uniform(below[..., 0]), score.new_empty(len(score), dtype=torch.int64)
            least_score(score.numpy(), below.numpy(), uniform.numpy(), winner.numpy())
            return winner
        uniform = self._uniform(below[..., :1])
        piece = torch.searchsorted(below[..., 1:-1].contiguous(), uniform, right=True)
        start, end, low, high = (part.gather(-1, piece) for part in (score, score[..., 1:], below, below[..., 1:]))
        inside = torch.where(high > low, (uniform - low) / (high - low), torch.zeros_like(low))
        return (start + inside * (end - start)).squeeze(-1).argmin(dim=1)

    def _uniform(self, like: Tensor) -> Tensor:
        """Uniforms on [0, 1) in float64, of the shape and on the device of `like`."""
        return torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=self.generator)
