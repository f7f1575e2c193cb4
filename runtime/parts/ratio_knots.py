"""A row of V tokens seen at a few target/draft ratios: each token's draft mass goes to the two knots around its ratio.

What a selection rule decides depends on a token through its ratio r = target/draft only. Up to 192 tokens every token
is a knot of its own. Above, the knots are 0 and 2^-12 .. 2^12, 8 to a factor of two, and a token between two knots
counts for either in proportion: whatever is linear between knots is then summed exactly, in one pass over the row.
Decisions at the knots are carried back to the tokens in the same proportions, so losslessness does not depend on them.

Letters: N rows, V vocabulary, M knots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .draft_tree import target_ratio

MOST = 192  # tokens that are knots of their own
OCTAVES = 12  # factors of two on either side of 1
SHIFT = 20  # a float32 without its last 20 bits names one of 8 steps to an octave
BEFORE = ((127 - OCTAVES) << 23 >> SHIFT) - 1  # what the leading bits say one step below 2^-OCTAVES
LAST = (2 * OCTAVES << 23 >> SHIFT) + 1  # index of the knot 2^OCTAVES; knot 0 is the ratio 0
PIECES = 32  # a row is added up in so many pieces, whose sums are float64
IN_CACHE = 2**18  # numbers per pass on the CPU


def fixed_knots(device: torch.device) -> Tensor:
    """[LAST + 1] float64, ascending: 0, then 8 to an octave from 2^-12 to 2^12."""
    leading = torch.arange(BEFORE + 1, BEFORE + LAST + 1, dtype=torch.int32, device=device)
    steps = (leading << SHIFT).view(torch.float32).double()
    return torch.cat([torch.zeros_like(steps[:1]), steps])


def knot_below(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """int32 [N, V]: index of the fixed knot at or below each token's ratio, read off the bits of a float32."""
    leading = target_ratio(target_row, draft_row).float().view(torch.int32) >> SHIFT
    return leading.sub_(BEFORE).clamp_(0, LAST)


@dataclass(frozen=True)
class Knots:
    """Rows of tokens as masses at ratios.

    Attributes:
        ratio [N, M] float64: ascending.
        mass [N, M] float64: draft mass of each knot; rows sum to 1.
    """

    ratio: Tensor
    mass: Tensor

    @classmethod
    def of(cls, target_row: Tensor, draft_row: Tensor) -> Knots:
        """The knots of rows [N, V]."""
        if draft_row.shape[1] > MOST:
            ratio, mass = fixed_knots(draft_row.device), _shared_masses(target_row, draft_row)
            ratio = ratio.expand_as(mass)
        else:
            ratio, order = own_ratio(target_row.double(), draft_row.double()).sort(dim=1)
            mass = draft_row.double().gather(1, order)
        return cls(ratio, mass / mass.sum(dim=1, keepdim=True))

    def at(self, ratio: Tensor, table: Tensor) -> Tensor:
        """[N, ...]: the table [N, M, ...] at ratio [N], linear between knots and constant outside."""
        index = torch.searchsorted(self.ratio.contiguous(), ratio.unsqueeze(1), right=True).squeeze(1) - 1
        row, above = torch.arange(len(index), device=index.device), (index + 1).clamp_max(self.ratio.shape[1] - 1)
        low, high = self.ratio[row, index], self.ratio[row, above]
        part = torch.where(high > low, (ratio - low) / (high - low), 0.0)
        part = part.view(-1, *[1] * (table.ndim - 2))
        return torch.lerp(table[row, index], table[row, above], part)


def own_ratio(target: Tensor, draft: Tensor) -> Tensor:
    """target/draft, 0 where the draft has no mass."""
    return torch.where(draft > 0, target / draft, 0.0)


def _shared_masses(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """[N, LAST + 1] draft mass at the fixed knots, each token's shared by its two neighbours."""
    vocab = draft_row.shape[1]
    some = max(1, IN_CACHE // vocab) if draft_row.device.type == "cpu" else max(1, len(draft_row))
    sums = [_sums(*rows) for rows in zip(target_row.split(some), draft_row.split(some), strict=True)]
    target, draft = (torch.cat(part) for part in zip(*sums, strict=True))
    knots = fixed_knots(draft_row.device)
    upper = ((target - knots * draft)[:, :-1] / knots.diff()).clamp_min(0)
    upper = torch.minimum(upper, draft[:, :-1])
    draft[:, :-1] -= upper
    draft[:, 1:] += upper
    return draft


def _sums(target_row: Tensor, draft_row: Tensor) -> tuple[Tensor, Tensor]:
    """[N, LAST + 1] float64 target and draft mass of the tokens from each fixed knot up to the next."""
    rows, vocab = draft_row.shape
    shape = rows * math.gcd(vocab, PIECES), -1
    index = knot_below(target_row, draft_row).long().view(shape)
    zeros = draft_row.new_zeros(shape[0], LAST + 1)
    target, draft = (
        zeros.scatter_add(1, index, row.reshape(shape)).double().view(rows, -1, LAST + 1).sum(dim=1)
        for row in (target_row, draft_row)
    )
    return target, draft


def linear_law(table: Tensor, ratio: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """[N, V]: draft times the table [N, M] at each token's ratio, `ratio` [N, M] the knots of these rows."""
    if draft_row.shape[1] > MOST:
        slope = torch.cat([table.diff(dim=1) / ratio.diff(dim=1), torch.zeros_like(table[:, :1])], dim=1)
        index = knot_below(target_row, draft_row).long()
        level, slope = ((part).to(draft_row.dtype).gather(1, index) for part in (table - slope * ratio, slope))
        return level.mul_(draft_row).addcmul_(slope, target_row).clamp_min_(0)
    own = own_ratio(target_row.double(), draft_row.double())
    index = torch.searchsorted(ratio.contiguous(), own, right=True) - 1
    return draft_row * table.gather(1, index).to(draft_row.dtype)
