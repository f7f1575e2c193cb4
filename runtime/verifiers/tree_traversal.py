"""Traversal verification of any drafted tree: bottom up, a node is tried after everything below it was refused.

A node that is reached holds a row r = a p, p the target's law after it and a the probability that it is kept. Its
children are visited in order; child x, offered with the law s given the siblings before it, is entered with
a_x = min(1, r(x) / s(x)). When all of the child is refused,

    r <- (r - s)^+ / (t + 1 - a),   a <- t / (t + 1 - a),   t = sum_y (r(y) - s(y))^+

and after the last child the node itself is kept with its a and emits from r / a. The root is always kept. None of
these numbers depends on a coin, so all coins are tossed at once; the first that comes up in the order of the visit
decides. On a chain this is block verification.

Letters: B requests, N nodes, D depth, V vocabulary. Source: Traversal Verification, arXiv:2505.12398.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..drafting.tree import ROOT, TreeBatch, TreeVerdict, offered
from ..draws import Draws
from ..tree_registry import register_tree


@register_tree(
    "tree-traversal",
    summary="block verification on the tree, bottom up",
    source="Traversal Verification, arXiv:2505.12398",
)
def verify_tree_traversal(batch: TreeBatch, draws: Draws) -> TreeVerdict:
    """Visit every tree depth first; keep the first node whose coin comes up, or the root."""
    tree = batch.tree
    requests, nodes, vocab = tree.shape
    depth = tree.depth
    each = torch.arange(requests, device=depth.device)
    visit, leaving = tour(tree.parent)
    root = batch.target_row(torch.full_like(each, ROOT))
    longest = int(depth.max()) if depth.numel() else 0
    rows = root.new_zeros(requests, longest + 1, vocab)
    rows[:, 0] = root
    keep = root.new_ones(requests, longest + 1)
    tried = torch.zeros_like(rows, dtype=torch.bool)
    coins, weights = [], []
    for node, leave in zip(visit.unbind(dim=1), leaving.unbind(dim=1), strict=True):
        here, level = tree.present[each, node], depth[each, node]
        above = level - 1
        token = tree.tokens[each, node, None]
        law = offered(batch, node, tried[each, above])
        mass, wanted = (values.gather(1, token)[:, 0] for values in (law, rows[each, above]))
        enter = here & ~leave
        ratio = torch.where(wanted < mass, wanted / mass, torch.ones_like(mass))
        keep[each, level] = torch.where(enter, ratio, keep[each, level])
        opened = ratio[:, None] * batch.target_row(node)
        rows[each, level] = torch.where(enter[:, None], opened, rows[each, level])
        tried[each, level] &= ~enter[:, None]

        leave = here & leave
        coins.append(torch.where(leave, keep[each, level], 0))
        weights.append(rows[each, level])
        rest = (rows[each, above] - law).clamp_min(0)
        left = rest.sum(dim=1)
        total = left + 1 - keep[each, above]
        refused = leave & (total > 0)
        scale = torch.where(refused, total, torch.ones_like(total))
        rows[each, above] = torch.where(refused[:, None], rest / scale[:, None], rows[each, above])
        keep[each, above] = torch.where(refused, left / scale, keep[each, above])
        tried[each, above] |= torch.zeros_like(tried[:, 0]).scatter_(1, token, True) & leave[:, None]
    if not coins:
        return TreeVerdict(torch.full_like(each, ROOT), torch.zeros_like(each), draws.choose(root))
    weights.append(rows[:, 0])
    chosen = 2 * nodes - draws.accept_last(torch.stack(coins, dim=1).flip(1))
    node = torch.nn.functional.pad(visit, (0, 1), value=ROOT)[each, chosen]
    accepted = torch.where(node == ROOT, 0, depth[each, node])
    left_over = torch.stack(weights, dim=1)[each, chosen]
    some = left_over.sum(dim=1, keepdim=True) > 0
    return TreeVerdict(node, accepted, draws.choose(torch.where(some, left_over, batch.target_row(node))))


def tour(parent: Tensor) -> tuple[Tensor, Tensor]:
    """The depth-first visit of each tree: nodes [B, 2N], and where they are left rather than entered, bool [B, 2N].

    Args:
        parent [B, N] int64: siblings in the order of the visit.
    """
    visits, leaves = [], []
    for before in parent.tolist():
        children: dict[int, list[int]] = {}
        for node in reversed(range(len(before))):
            children.setdefault(before[node], []).append(node)
        visit: list[int] = []
        leave: list[bool] = []
        stack = [(node, False) for node in children.get(ROOT, [])]
        while stack:
            node, done = stack.pop()
            visit.append(node)
            leave.append(done)
            if not done:
                stack.append((node, True))
                stack += [(child, False) for child in children.get(node, [])]
        visits.append(visit)
        leaves.append(leave)
    nodes = torch.tensor(visits, dtype=torch.int64, device=parent.device)
    left = torch.tensor(leaves, dtype=torch.bool, device=parent.device)
    return nodes.reshape(len(parent), 2 * parent.shape[1]), left.reshape(len(parent), 2 * parent.shape[1])
