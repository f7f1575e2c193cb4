"""Ratios and thresholds of block verification, which other verifiers use on a path or a law of their own.

B requests, L drafted tokens, V vocabulary. [BV] arXiv:2403.10444, Algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .single_path import at


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
    return ratios_of(at(target_probs[:, :-1], tokens), at(draft_probs, tokens))


def ratios_of(target: Tensor, draft: Tensor) -> Tensor:
    """The same from the probabilities [B, L] of the drafted tokens."""
    steps = torch.where(draft > 0, target.log() - draft.log(), torch.zeros_like(draft))
    log_ratios = [torch.zeros_like(target[:, 0])]
    for step in steps.unbind(dim=1):
        log_ratios.append((log_ratios[-1] + step).clamp_max(0))
    return torch.stack(log_ratios, dim=1).exp()


def block_thresholds(ratios: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Probability h_i of keeping at least i tokens when no longer block was kept, [BV] Eq. (5).

        h_L = c_L,   h_i = s_i / (s_i + 1 - c_i),   s_i = sum_y max(0, c_i target(y) - draft(y))

    with 0/0 = 1 (both laws equal and nothing rejected yet).

    Args:
        ratios [B, L+1]; draft_probs [B, L, V]; target_probs [B, L+1, V].
    Returns:
        [B, L] thresholds h_1..h_L in [0, 1].
    """
    inner = [threshold(ratios[:, i], target_probs[:, i], draft_probs[:, i]) for i in range(1, draft_probs.shape[1])]
    return torch.stack([*inner, ratios[:, -1]], dim=1)


def threshold(ratio: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """h_i [B] of one prefix shorter than the path, from its ratio c_i [B] and the rows [B, V] after it."""
    return threshold_from(ratio, surplus(ratio, target_row, draft_row))


def threshold_from(ratio: Tensor, left: Tensor) -> Tensor:
    """h_i from c_i and s_i, of one shape."""
    total = left + (1 - ratio)
    return torch.where(total > 0, left / total, torch.ones_like(total))


def surplus(scale: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """[B]: sum_y max(0, scale target(y) - draft(y)) for scale [B], rows [B, V]."""
    return (scale.unsqueeze(-1) * target_row).sub_(draft_row).clamp_min_(0).sum(dim=-1)
