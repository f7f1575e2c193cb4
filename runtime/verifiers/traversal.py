"""Traversal verification: block verification on the tree of drafts, bottom up, one path after another.

Visit the tree depth first, children in the order of the drafts. Try to keep a node only after everything below it was
rejected; a rejection below a node turns its target row into the residual

    a p <- max(0, a p - q) / (s + 1 - a),   a <- s / (s + 1 - a),   s = sum_y max(0, a p(y) - q(y))

where a is the probability that the node is kept when it is reached. Every path through a node is one draw from q and
makes one such update, also a path whose token was already rejected there. (This is the variant for independent
paths: the draft row stays unchanged. Dropping repeated tokens instead makes the algorithm lossy.)

After m updates a p = max(0, A p - E q) with two numbers A, E, so no row is ever rewritten. None of the numbers
depends on a coin, so all coins are tossed at once: the first that comes up, in order of the visit, decides.

Letters: B requests, K paths, L drafted tokens, V vocabulary. Source: Traversal Verification, arXiv:2505.12398, in the
variant for independent paths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.draft_tree import first_appearance, node_rows
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic


def visit_order(first: Tensor) -> tuple[Tensor, Tensor]:
    """The K L rejections (path k, depth i) in the order in which a depth-first visit meets them.

    Path k is rejected at the node of its first i-1 tokens. That comes after everything below its own prefix of
    length i if k is the first path there, and otherwise in draft order among the paths through that node.

    Args:
        first [B, K, L]: from `first_appearance`.
    Returns:
        path, depth [B, K L] int64, depth in 1..L.
    """
    requests, paths, length = first.shape
    depth = torch.arange(length, device=first.device)
    mine = torch.arange(paths, device=first.device).view(1, paths, 1, 1)
    above = depth.view(1, 1, 1, length) < depth.view(1, 1, length, 1)
    level = depth.view(1, 1, 1, length) == depth.view(1, 1, length, 1)
    keys = torch.where(above, first.unsqueeze(2), torch.where(level, mine, paths))
    keys = keys.reshape(requests, paths * length, length)
    order = torch.arange(paths * length, device=first.device).expand(requests, paths * length)
    for column in reversed(range(length)):
        order = order.gather(1, keys[..., column].gather(1, order).argsort(dim=1, stable=True))
    return order // length, order % length + 1


class Stack:
    """Numbers A, E, a of the nodes on the current branch, one slot per depth 0..L: tensors [B, L+1]."""

    def __init__(self, requests: int, length: int, like: Tensor) -> None:
        self.scale = like.new_ones(requests, length + 1)
        self.excess = like.new_zeros(requests, length + 1)
        self.keep = like.new_ones(requests, length + 1)

    def open(self, new: Tensor, target: Tensor, draft: Tensor) -> None:
        """Step onto the new nodes of a path: a <- min(1, max(0, A p - E q) / q) from the node above.

        Args:
            new [B, L] bool: depths 1..L that are new; target, draft [B, L]: rows' entries at the path's tokens.
        """
        for i in range(new.shape[1]):
            residual = (self.scale[:, i] * target[:, i] - self.excess[:, i] * draft[:, i]).clamp_min(0)
            keep = torch.where(residual < draft[:, i], residual / draft[:, i], torch.ones_like(residual))
            self.scale[:, i + 1] = torch.where(new[:, i], keep, self.scale[:, i + 1])
            self.keep[:, i + 1] = torch.where(new[:, i], keep, self.keep[:, i + 1])
            self.excess[:, i + 1] = self.excess[:, i + 1].masked_fill(new[:, i], 0)

    def at(self, depth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A, E, a [B] of the slot `depth` [B]."""
        return at(self.scale, depth), at(self.excess, depth), at(self.keep, depth)

    def reject(self, depth: Tensor, target_row: Tensor, draft_row: Tensor) -> None:
        """Update the slot `depth` [B] after a rejection below it; rows [B, V] of its node."""
        scale, excess, keep = self.at(depth)
        left = (scale.unsqueeze(1) * target_row).sub_((excess + 1).unsqueeze(1) * draft_row).clamp_min_(0).sum(dim=1)
        total = left + (1 - keep)
        for values, old, new in (
            (self.scale, scale, scale / total),
            (self.excess, excess, (excess + 1) / total),
            (self.keep, keep, left / total),
        ):
            values.scatter_(1, depth.unsqueeze(1), torch.where(total > 0, new, old).unsqueeze(1))


@register(
    "traversal",
    summary="block verification on the tree of drafts, bottom up, residuals carried from path to path",
    source="Traversal Verification, arXiv:2505.12398 (variant for independent paths)",
    paths="many",
    cost="O(K L V)",
)
def verify_traversal(batch: Batch, draws: Draws) -> Verdict:
    """Visit the tree depth first; keep the first node whose coin comes up, or the root."""
    requests, paths, length, _ = batch.shape
    dtype = arithmetic(batch)
    first = first_appearance(batch.tokens)
    new = first == torch.arange(paths, device=first.device).view(1, paths, 1)
    path, depth = visit_order(first)
    index = batch.tokens.unsqueeze(-1)
    target = batch.target_probs[:, :, :-1].gather(-1, index).squeeze(-1).to(dtype)
    draft = batch.draft_probs.gather(-1, index).squeeze(-1).to(dtype)
    rows = torch.arange(requests, device=first.device)
    stack = Stack(requests, length, target)
    nodes = []
    for visit in range(paths * length):
        k, i = path[:, visit], depth[:, visit]
        entering = (i == length).unsqueeze(1)
        stack.open(new[rows, k] & entering, target[rows, k], draft[rows, k])
        scale, excess, keep = stack.at(i)
        nodes.append((keep * new[rows, k, i - 1], scale, excess))
        target_row, draft_row = node_rows(batch.target_probs, k, i - 1), node_rows(batch.draft_probs, k, i - 1)
        stack.reject(i - 1, target_row.to(dtype), draft_row.to(dtype))
    root = torch.zeros_like(first[:, :1, 0])
    path, depth = torch.cat([path, root], dim=1), torch.cat([depth, root], dim=1)
    nodes.append((torch.ones_like(stack.keep[:, 0]), stack.scale[:, 0], stack.excess[:, 0]))
    coins, scale, excess = (torch.stack(values, dim=1) for values in zip(*nodes, strict=True))
    chosen = paths * length - draws.accept_last(coins[:, :-1].flip(1))
    path, depth, scale, excess = (at(values, chosen) for values in (path, depth, scale, excess))
    return Verdict(path, depth, draws.choose(correction(batch, path, depth, scale, excess)))


def correction(batch: Batch, path: Tensor, depth: Tensor, scale: Tensor, excess: Tensor) -> Tensor:
    """[B, V] weights of the token after the node `path`, `depth` [B]: max(0, A p - E q), or p after L tokens."""
    length = batch.tokens.shape[2]
    target_row = node_rows(batch.target_probs, path, depth).to(scale.dtype)
    draft_row = node_rows(batch.draft_probs, path, depth.clamp_max(length - 1))
    weights = (scale.unsqueeze(1) * target_row).sub_(excess.unsqueeze(1) * draft_row).clamp_min_(0)
    residual = (depth < length).unsqueeze(1) & (weights.sum(dim=1, keepdim=True) > 0)
    return torch.where(residual, weights, target_row)
