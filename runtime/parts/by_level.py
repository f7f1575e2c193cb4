"""Verifiers that decide one token at a time, walking down the tree of drafts: what they share.

At the node reached, the paths through it offer their next tokens in draft order. A round gives each offer a coin; the
first that comes up is kept and all paths with that token go on. If none does, the correction is drawn from

    max(target - excess draft, share target)

with two numbers per round that make the emitted token's law the target's.

Letters: B requests, K paths, L drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..draws import Draws
from ..verdict import Batch, Verdict
from .draft_tree import Walk


class Round(NamedTuple):
    """One round at a node.

    Attributes:
        coins [B, K]: probability of keeping the k-th offer given that none before it was kept; 0 for paths that do
            not pass through the node.
        excess, share [B]: the numbers of the correction's law; share >= 0.
    """

    coins: Tensor
    excess: Tensor
    share: Tensor


Offer = Callable[[Tensor, Tensor, Tensor, Tensor], Round]  # target row, draft row [B, V], tokens, alive [B, K]


def verify_by_level(batch: Batch, draws: Draws, offer: Offer) -> Verdict:
    """Play a round at each depth until no offer is kept; then draw the correction, or the bonus after L tokens."""
    walk = Walk(batch)
    _, paths, length = batch.tokens.shape
    running = torch.ones_like(walk.path, dtype=torch.bool)
    kept = torch.zeros_like(walk.path)
    excess = share = torch.zeros_like(walk.path, dtype=walk.dtype)
    for depth in range(length):
        tokens = batch.tokens[:, :, depth]
        played = offer(walk.target_row(depth), walk.draft_row(depth), tokens, walk.alive)
        coins = played.coins * (walk.alive & running.unsqueeze(1))
        first = draws.accept_last(coins.flip(1))  # K for the first offer, .., 1 for the last, 0 for none
        stopped = running & (first == 0)
        excess = torch.where(stopped, played.excess.to(walk.dtype), excess)
        share = torch.where(stopped, played.share.to(walk.dtype), share)
        running = running & (first > 0)
        kept = kept + running
        walk.descend(torch.where(running, paths - first, walk.path), depth)
    target_row = walk.row_after(batch.target_probs, kept)
    draft_row = walk.row_after(batch.draft_probs, kept.clamp_max(length - 1))
    excess, share = excess.unsqueeze(1), share.unsqueeze(1)
    weights = torch.maximum(target_row - excess * draft_row, share * target_row)
    some = (weights.sum(dim=1, keepdim=True) > 0) & ~running.unsqueeze(1)
    return Verdict(walk.path, kept, draws.choose(torch.where(some, weights, target_row)))
