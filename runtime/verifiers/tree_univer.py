"""UniVer on a drafted tree: at every node one sampled child, the others given, children before the node itself.

The sampled child of a node is the last one that was drawn: given its siblings, its law is known whatever they are. So
the rule of `univer` applies at each node; see there for the shares. The ratios of all nodes follow from the root down,
before any coin is tossed; the first coin that comes up, children before parents, decides. On a chain this is block
verification, on a tree of given nodes nothing keeps more.

Letters: B requests, N nodes, V vocabulary. Source: UniVer, arXiv:2605.04543; the last of several sampled children as
the one that counts as sampled: specbound (own).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..drafting.tree import ROOT, TreeBatch, TreeVerdict, offered
from ..draws import Draws
from ..parts.lift import own_coin
from ..tree_registry import register_tree
from .tree_traversal import tour
from .univer import serve_sampled_and_given


@register_tree(
    "tree-univer",
    summary="one sampled child a node, the others given; children before parents",
    source="UniVer, arXiv:2605.04543",
    cost="O(N (N + V))",
)
def verify_tree_univer(batch: TreeBatch, draws: Draws) -> TreeVerdict:
    """Shares from the root down, then one coin a node from the leaves up."""
    tree = batch.tree
    requests, nodes, _ = tree.shape
    each = torch.arange(requests, device=tree.parent.device)
    ratio = batch.target_probs.new_zeros(requests, nodes + 1, dtype=batch.dtype)
    ratio[:, 0] = 1
    coin, left = ratio.clone(), batch.target_probs.to(batch.dtype).clone()
    for node in range(ROOT, nodes):
        children = tree.present & (tree.parent == node)
        inner = children.any(dim=1)
        if not bool(inner.any()):
            coin[:, node + 1] = ratio[:, node + 1]
            continue
        wanted = ratio[:, node + 1, None] * left[:, node + 1]
        draft, sampled = _sampled_child(batch, children)
        served = serve_sampled_and_given(wanted, draft, tree.tokens, children, sampled)
        coin[:, node + 1] = torch.where(inner, own_coin(served.left, ratio[:, node + 1]), ratio[:, node + 1])
        some = inner & (served.left.sum(dim=1) > 0)
        left[:, node + 1] = torch.where(some[:, None], served.left, left[:, node + 1])
        before = 1 - (served.shares.cumsum(dim=1) - served.shares)
        own = torch.where(served.shares < before, served.shares / before, (served.shares > 0).to(before))
        ratio[:, 1:] = torch.where(children, own, ratio[:, 1:])
    visit, leaving = tour(tree.parent)
    order = visit[leaving].view(requests, nodes)
    coins = (coin[:, 1:] * tree.present).gather(1, order)
    chosen = nodes - draws.accept_last(coins.flip(1))
    end = torch.nn.functional.pad(order, (0, 1), value=ROOT)[each, chosen]
    accepted = torch.nn.functional.pad(tree.depth, (1, 0))[each, end + 1]
    return TreeVerdict(end, accepted, draws.choose(left[each, end + 1]))


def _sampled_child(batch: TreeBatch, children: Tensor) -> tuple[Tensor, Tensor]:
    """The last sampled of `children` [B, N]: its law [B, V] given its siblings, and which it is [B].

    Where none is sampled the law is 0 everywhere.
    """
    tree = batch.tree
    place = torch.arange(1, children.shape[1] + 1, device=children.device)
    last = (place * (children & tree.sampled)).amax(dim=1) - 1
    sampled = last.clamp_min(0)
    siblings = children & (place - 1 != sampled[:, None])
    tried = torch.zeros_like(batch.target_row(last)).scatter_add_(1, tree.tokens, siblings.to(batch.dtype)) > 0
    return offered(batch, sampled, tried) * (last != ROOT)[:, None], sampled
