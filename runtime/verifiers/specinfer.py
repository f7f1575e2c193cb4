"""SpecInfer: recursive rejection sampling over the drafts of each node.

Offer the paths' tokens in draft order, repeated tokens included; after each rejection the target row becomes the
residual norm(max(0, target - draft)). As every path's token is a fresh draw from the draft row, a repeated token is
rejected for certain, but the residual must be updated for it too: dropping it makes the algorithm lossy.

Letters: B requests, K paths, L drafted tokens, V vocabulary. The residual after m rejections is
A max(0, target - e draft) with two numbers A, e, so no row is ever rewritten.
Source: SpecInfer, arXiv:2305.09781; recursive rejection sampling, arXiv:2402.14160.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.block_rule import surplus
from ..parts.by_level import Round, verify_by_level
from ..registry import register
from ..verdict import Batch, Verdict


def offer_with_residuals(target_row: Tensor, draft_row: Tensor, tokens: Tensor, alive: Tensor) -> Round:
    """Coins min(1, residual/draft) of the paths' tokens, the residual updated after each rejection.

    residual = A max(0, target - e draft); after a rejection e <- e + 1/A, A <- 1 / sum max(0, target - e draft)
    """
    target, draft = target_row.gather(1, tokens), draft_row.gather(1, tokens)
    one = torch.ones_like(target[:, 0])
    scale, excess = one, torch.zeros_like(one)
    coins = []
    for k in range(tokens.shape[1]):
        residual = scale * (target[:, k] - excess * draft[:, k]).clamp_min(0)
        coins.append(torch.where(residual < draft[:, k], residual / draft[:, k], one))
        rejected = excess + 1 / scale
        left = surplus(one, target_row, rejected.unsqueeze(1) * draft_row)
        update = alive[:, k] & (left > 0)
        excess = torch.where(update, rejected, excess)
        scale = torch.where(update, 1 / left, scale)
    return Round(torch.stack(coins, dim=1), excess, torch.zeros_like(excess))


@register(
    "specinfer",
    summary="offer every path's token in turn, updating the residual after each rejection",
    source="SpecInfer, arXiv:2305.09781 (recursive rejection sampling)",
    paths="many",
    cost="O(K L V)",
    closed_form="specinfer",
)
def verify_specinfer(batch: Batch, draws: Draws) -> Verdict:
    """Recursive rejection sampling at each node of the tree."""
    return verify_by_level(batch, draws, offer_with_residuals)
