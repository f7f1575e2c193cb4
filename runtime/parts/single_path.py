"""What the single-path verifiers share: rows of one drafted path, and residual laws.

B requests, L drafted tokens, V vocabulary size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import compiled
from ..verdict import Batch, arithmetic


def only_path(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """tokens [B, L], draft_probs [B, L, V], target_probs [B, L+1, V] of the single path, in arithmetic dtype."""
    dtype = arithmetic(batch)
    return batch.tokens[:, 0], batch.draft_probs[:, 0].to(dtype), batch.target_probs[:, 0].to(dtype)


def at(rows: Tensor, tokens: Tensor) -> Tensor:
    """Entries of `rows` [.., N or more, V] at `tokens` [.., N]."""
    return rows.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def row_at(rows: Tensor, index: Tensor) -> Tensor:
    """Row `index[b]` of `rows` [B, N, V] for each request: [B, V]."""
    return rows[torch.arange(len(index), device=rows.device), index]


def correction_weights(scale: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """Unnormalised law of the correction token, max(0, scale * target - draft).

    Where rounding leaves no mass at all (both rows equal up to rounding) the target row stands in.

    Args:
        scale [B] in [0, 1]; target_row, draft_row [B, V]; a zero draft row gives the bonus token's law.
    """
    residual = (scale.unsqueeze(-1) * target_row).sub_(draft_row).clamp_min_(0)
    return torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, target_row)


def emitted_row(
    scale: Tensor, accepted: Tensor, draft_probs: Tensor, target_probs: Tensor, path: Tensor | None = None
) -> Tensor:
    """Weights [B, V] of the token after `accepted` [B] kept ones: a correction, or the bonus if all were kept.

    Args:
        scale [B]: the factor of the target row in the residual.
        draft_probs [N, L, V]; target_probs [N, L+1, V]; path [B]: whose rows count for each request; N = B and its
            own if not given.
    """
    path = torch.arange(len(accepted), device=accepted.device) if path is None else path
    if compiled.usable(draft_probs.device.type):
        from ..compiled import block

        weights = target_probs.new_empty(len(accepted), target_probs.shape[2])
        given = (scale, accepted, path, target_probs, draft_probs)
        block.emitted_rows(*(part.contiguous().numpy() for part in given), weights.numpy())
        return weights
    length = draft_probs.shape[1]
    target_row = target_probs[path, accepted]
    stopped = (accepted < length).unsqueeze(-1)
    draft_row = draft_probs[path, accepted.clamp_max(length - 1)]
    return torch.where(stopped, correction_weights(scale, target_row, draft_row), target_row)
