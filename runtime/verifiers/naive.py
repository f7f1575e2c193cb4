"""Naive sampling: draw from the target and keep going while some draft happens to contain the token.

Never reads the draft law. Letters: B requests, K paths, L drafted tokens, V vocabulary.
Source: "naive sampling" in SpecInfer, arXiv:2305.09781, section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.draft_tree import Walk, first_path
from ..registry import register
from ..verdict import Batch, Verdict


@register(
    "naive",
    summary="draw from the target, keep the token if a draft has it",
    source="SpecInfer, arXiv:2305.09781 (naive sampling)",
    paths="many",
    closed_form="naive",
)
def verify_naive(batch: Batch, draws: Draws) -> Verdict:
    """Draw tokens from the target along the tree until no path has the token drawn."""
    walk = Walk(batch)
    length = batch.tokens.shape[2]
    running = torch.ones_like(walk.path, dtype=torch.bool)
    kept = torch.zeros_like(walk.path)
    token = torch.zeros_like(walk.path)
    for depth in range(length + 1):
        weights = torch.where(running.unsqueeze(1), walk.target_row(depth), certain(token, walk.target_row(depth)))
        token = draws.choose(weights)
        if depth == length:
            break
        here = walk.alive & (batch.tokens[:, :, depth] == token.unsqueeze(1))
        running = running & here.any(dim=1)
        kept = kept + running
        walk.descend(torch.where(running, first_path(here), walk.path), depth)
    return Verdict(walk.path, kept, token)


def certain(token: Tensor, like: Tensor) -> Tensor:
    """[B, V] weights, 1 at `token` [B] and 0 elsewhere, in the dtype of `like`."""
    return torch.zeros_like(like).scatter_(1, token.unsqueeze(1), 1)
