"""K drafted paths seen as a tree: which paths share a prefix, and a walk down from the root.

B requests, K paths, L drafted tokens, V vocabulary size. Paths that agree on their first i tokens pass through the
same node of depth i, where both models have one row; the row is read from any path through the node.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..verdict import Batch, arithmetic


def node_rows(probs: Tensor, path: Tensor, depth: Tensor | int) -> Tensor:
    """[B, V]: row `depth` of path `path[b]` of `probs` [B, K, N, V]; `depth` is one number or one per request."""
    if probs.shape[1] == 1 and isinstance(depth, int):
        return probs[:, 0, depth]
    return rows_at(probs, torch.arange(len(probs), device=probs.device), path, depth)


def rows_at(probs: Tensor, request: Tensor, path: Tensor, depth: Tensor | int) -> Tensor:
    """[N, V]: rows of `probs` [B, K, L, V] at N places."""
    _, paths, rows, vocab = probs.shape
    if probs.is_contiguous():
        return probs.view(-1, vocab).index_select(0, (request * paths + path) * rows + depth)
    return probs[request, path, depth]


def first_path(mask: Tensor) -> Tensor:
    """int64 [B]: the smallest index at which `mask` [B, K] is True; 0 if nowhere."""
    return (mask.cumsum(dim=1) == 0).sum(dim=1) % mask.shape[1]


def first_appearance(tokens: Tensor) -> Tensor:
    """int64 [B, K, L]: for depth i = 1..L the smallest path index that shares the first i tokens with path k."""
    shared = (tokens.unsqueeze(2) == tokens.unsqueeze(1)).long().cumprod(dim=-1)
    earlier_none = shared.cumsum(dim=2) == 0
    return earlier_none.sum(dim=2)


def target_ratio(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """target/draft [B, V]: 0 where both are 0, huge or infinite where only the draft is."""
    return target_row / draft_row.clamp_min(torch.finfo(draft_row.dtype).tiny)


class Walk:
    """A walk down the tree: the node reached, held as one path through it and the set of all paths through it.

    Attributes:
        path [B]: index of one path through the node.
        alive [B, K] bool: the paths through the node.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.dtype = arithmetic(batch)
        self.alive = torch.ones_like(batch.tokens[:, :, 0], dtype=torch.bool)
        self.path = torch.zeros_like(batch.tokens[:, 0, 0])

    def target_row(self, depth: int) -> Tensor:
        """[B, V] target law of the next token at the node, in arithmetic dtype."""
        return node_rows(self.batch.target_probs, self.path, depth).to(self.dtype)

    def draft_row(self, depth: int) -> Tensor:
        """[B, V] draft law of the next token at the node, in arithmetic dtype."""
        return node_rows(self.batch.draft_probs, self.path, depth).to(self.dtype)

    def row_after(self, probs: Tensor, depth: Tensor) -> Tensor:
        """[B, V] row `depth[b]` of `path[b]` in `probs` [B, K, N, V], in arithmetic dtype."""
        return node_rows(probs, self.path, depth).to(self.dtype)

    def descend(self, path: Tensor, depth: int) -> None:
        """Follow `path` [B] from depth `depth` to the next, keeping every path with the same token."""
        tokens = self.batch.tokens[:, :, depth]
        self.path = path
        self.alive = self.alive & (tokens == tokens.gather(1, path.unsqueeze(1)))
