"""Any single-step rule lifted to the tree of drafts, so that a rejected node does not end the call.

A node v carries a ratio a, the probability that v is kept when it is reached (root 1). The rule is asked to serve
the measure a target, with 1 - a left for "v is not kept", from the drafts at v. It answers, for the drafts at hand,
with the share of each child and the law `left` of what no child brings. A child is tried before v itself, with
everything below it, children in the order of the drafts:

    ratio of child j    share_j / (1 - shares of the children before it)
    v itself            sum left / (sum left + 1 - a), then the token is drawn from left; a leaf: a, and the target

By induction from the leaves: below v, something is kept with probability a on average over the drafts below v, and
what follows has the target's law; this needs of the rule only that, on average over the drafts, shares and left add
up to a target: that it is lossless. For one path and the rule min(target, draft) it is block verification.

B requests, K paths, L drafted tokens, V vocabulary.
Sources: block verification, arXiv:2403.10444; on trees, UniVer, arXiv:2605.04543, and Layer Verification (openreview
XrqcUo6B6L), each for its own rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..draws import Draws
from ..verdict import Batch, Verdict, arithmetic
from .draft_tree import first_appearance, node_rows
from .single_path import at


class Served(NamedTuple):
    """What a rule does with the drafts at N nodes.

    Attributes:
        shares [N, K]: probability that the token of path k is kept, sum at most 1; 0 for paths not at the node. A token
            of several paths may have its share with any of them.
        left [N, V]: measure of what is emitted at the node when no child is kept.
    """

    shares: Tensor
    left: Tensor


Serve = Callable[[Tensor, Tensor, Tensor, Tensor], Served]  # wanted = a target, draft [N, V], tokens, alive [N, K]


def verify_lifted(batch: Batch, draws: Draws, serve: Serve) -> Verdict:
    """Children before parents: keep the first node whose coin comes up, at the latest the root; in float64."""
    requests, paths, length, _ = batch.shape
    first = first_appearance(batch.tokens)
    own = torch.arange(paths, device=first.device)
    ratio = torch.ones(requests, paths, dtype=torch.float64, device=first.device)
    ratios, coins = [ratio], []
    for depth in range(length):
        served = _serve_all(batch, serve, ratio, depth, first)
        coins.append(own_coin(served.left, ratio.flatten()).view(requests, paths))
        ratio = _child_ratios(served.shares.view(requests, paths, paths), first, depth)
        ratios.append(ratio)
    coin = torch.stack([*coins, ratio], dim=2)
    new = torch.cat([(own == 0).expand(requests, paths).unsqueeze(2), first == own.view(1, paths, 1)], dim=2)
    path, place = children_first(first)
    request = torch.arange(requests, device=first.device).unsqueeze(1)
    ordered = (coin * new)[request, path, place]
    chosen = paths * (length + 1) - 1 - draws.accept_last(ordered[:, :-1].flip(1))
    path, kept = at(path, chosen), at(place, chosen)
    return Verdict(path, kept, draws.choose(_emitted(batch, serve, path, kept, torch.stack(ratios, dim=2), first)))


def own_coin(left: Tensor, ratio: Tensor) -> Tensor:
    """[N] chance of staying at the node when no child was kept: s / (s + 1 - a), 0/0 = 1; left [N, V], ratio [N]."""
    total = left.sum(dim=1)
    return torch.where(total + (1 - ratio) > 0, total / (total + (1 - ratio)), torch.ones_like(total))


def children_first(first: Tensor) -> tuple[Tensor, Tensor]:
    """The K (L+1) prefixes (path k, its first i tokens), each after all that are longer and start with it.

    Args:
        first [B, K, L]: from `first_appearance`.
    Returns:
        path, depth [B, K (L+1)] int64; the empty prefixes come last.
    """
    requests, paths, length = first.shape
    depth = torch.arange(length + 1, device=first.device).view(1, 1, length + 1, 1)
    inside = torch.arange(1, length + 1, device=first.device).view(1, 1, 1, length) <= depth
    keys = torch.where(inside, first.unsqueeze(2), paths).reshape(requests, paths * (length + 1), length)
    order = torch.arange(paths * (length + 1), device=first.device).flip(0).expand(requests, -1)
    for column in reversed(range(length)):
        order = order.gather(1, keys[..., column].gather(1, order).argsort(dim=1, stable=True))
    return order // (length + 1), order % (length + 1)


def _serve_all(batch: Batch, serve: Serve, ratio: Tensor, depth: int, first: Tensor) -> Served:
    """The rule at the node of the first `depth` tokens of every path: N = B K."""
    requests, paths, _, vocab = batch.shape
    same = _together(first, depth)
    rows = [probs[:, :, depth].reshape(-1, vocab).double() for probs in (batch.target_probs, batch.draft_probs)]
    tokens = batch.tokens[:, :, depth].unsqueeze(1).expand(requests, paths, paths).reshape(-1, paths)
    return serve(*scaled(ratio.flatten(), *rows), tokens, same.reshape(-1, paths))


def scaled(ratio: Tensor, target_row: Tensor, draft_row: Tensor) -> tuple[Tensor, Tensor]:
    """a target and draft [N, V], both rows first divided by their sums."""
    target, draft = (row / row.sum(dim=1, keepdim=True) for row in (target_row, draft_row))
    return ratio.unsqueeze(1) * target, draft


def _together(first: Tensor, depth: int) -> Tensor:
    """bool [B, K, K]: which paths share their first `depth` tokens."""
    if depth == 0:
        return torch.ones_like(first[:, :, 0], dtype=torch.bool).unsqueeze(1).expand(-1, first.shape[1], -1)
    return first[:, :, depth - 1].unsqueeze(2) == first[:, :, depth - 1].unsqueeze(1)


def _child_ratios(shares: Tensor, first: Tensor, depth: int) -> Tensor:
    """[B, K]: ratio of each path's child, from the shares [B, K, K] that the node of each path gives to each path."""
    child = first[:, :, depth]
    belongs, before = child.unsqueeze(1) == child.unsqueeze(2), child.unsqueeze(1) < child.unsqueeze(2)
    mine, others = (shares * belongs).sum(dim=2), (shares * before).sum(dim=2)
    return torch.where(mine < 1 - others, mine / (1 - others), (mine > 0).double())


def _emitted(batch: Batch, serve: Serve, path: Tensor, kept: Tensor, ratios: Tensor, first: Tensor) -> Tensor:
    """[B, V] weights of the token after the node: what is left there, or the target's row after L tokens."""
    request, length = torch.arange(len(path), device=path.device), first.shape[2]
    inner = kept.clamp_max(length - 1)
    target_row, draft_row = node_rows(batch.target_probs, path, kept), node_rows(batch.draft_probs, path, inner)
    alive = torch.stack([_together(first, depth)[request, path] for depth in range(length)], dim=1)[request, inner]
    wanted = scaled(ratios[request, path, kept], target_row.double(), draft_row.double())
    left = serve(*wanted, batch.tokens[request, :, inner], alive).left
    some = (kept < length).unsqueeze(1) & (left.sum(dim=1, keepdim=True) > 0)
    return torch.where(some, left, target_row.double()).to(arithmetic(batch))
