"""Ratios and thresholds of block verification, which other verifiers use on a path or a law of their own.

B requests, L drafted tokens, V vocabulary. [BV] arXiv:2403.10444, Algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import compiled
from .ratio_knots import rows_in_cache
from .single_path import at


def ratios_and_thresholds(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor) -> tuple[Tensor, Tensor]:
    """`block_ratios` [B, L+1] and `block_thresholds` [B, L] of tokens [B, L], draft [B, L, V], target [B, L+1, V]."""
    if not compiled.usable(draft_probs.device.type):
        ratios = block_ratios(tokens, draft_probs, target_probs)
        return ratios, block_thresholds(ratios, draft_probs, target_probs)
    from ..compiled import block

    (requests, length), given = tokens.shape, (tokens, target_probs, draft_probs)
    found = draft_probs.new_empty(requests, length + 1), draft_probs.new_empty(requests, length)
    arrays = [part.contiguous().numpy() for part in (*given, *found)]
    compiled.spread(
        lambda some: block.ratios_and_thresholds(*(part[some] for part in arrays)), requests, draft_probs.numel()
    )
    return found


def block_ratios(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Acceptance ratios c_0..c_L of the prefixes of the draft, [BV] Eq. (4).

        c_0 = 1,   c_i = min(1, c_{i-1} target(x_i) / draft(x_i))

    c_i is the probability that x_1..x_i is kept given that it was drafted. Computed in logarithms, where products
    of extreme ratios neither under- nor overflow. A token that the draft cannot have drawn leaves c unchanged.

    Args:
        tokens [B, L]; draft_probs [B, L, V]; target_probs [B, L+1, V].
    Returns:
        [B, L+1] in [0, 1].
    """
    return ratios_of(at(target_probs, tokens), at(draft_probs, tokens))


def ratios_of(target: Tensor, draft: Tensor) -> Tensor:
    """The same from the probabilities [B, L] of the drafted tokens.

    With s_i the sum of the first i logarithms, log c_i = s_i - max(0, s_1, .., s_i); the sums are in float64.
    """
    sums = torch.where(draft > 0, target.log() - draft.log(), 0.0).cumsum(dim=1, dtype=torch.float64)
    ratios = (sums - sums.cummax(dim=1).values.clamp_min(0)).exp()
    return torch.nn.functional.pad(ratios.to(target.dtype), (1, 0), value=1.0)


def block_thresholds(ratios: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Probability h_i of keeping at least i tokens when no longer block was kept, [BV] Eq. (5).

        h_L = c_L,   h_i = s_i / (s_i + 1 - c_i),   s_i = sum_y max(0, c_i target(y) - draft(y))

    with 0/0 = 1 (both laws equal and nothing rejected yet).

    Args:
        ratios [B, L+1]; draft_probs [B, L, V]; target_probs [B, L+1, V].
    Returns:
        [B, L] thresholds h_1..h_L in [0, 1].
    """
    at_once = max(1, rows_in_cache(draft_probs) // max(1, len(draft_probs)))
    inner = ratios[:, 1:-1], target_probs[:, 1:-1], draft_probs[:, 1:]
    left = [surplus(*some) for some in zip(*(part.split(at_once, dim=1) for part in inner), strict=True)]
    return torch.cat([threshold_from(inner[0], torch.cat(left, dim=1)), ratios[:, -1:]], dim=1)


def threshold(ratio: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """h_i [...] of prefixes shorter than the path, from their ratios c_i [...] and the rows [..., V] after them."""
    return threshold_from(ratio, surplus(ratio, target_row, draft_row))


def threshold_from(ratio: Tensor, left: Tensor) -> Tensor:
    """h_i from c_i and s_i, of one shape."""
    total = left + (1 - ratio)
    return torch.where(total > 0, left / total, 1.0)


def surplus(scale: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """[...]: sum_y max(0, scale target(y) - draft(y)) for scale [...], rows [..., V]."""
    return (scale.unsqueeze(-1) * target_row).sub_(draft_row).clamp_min_(0).sum(dim=-1)
