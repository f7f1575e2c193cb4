"""Recursive rejection on a drafted tree: a node's children are offered in turn, each against what the target has left.

At a node with the target row r and the children x_1, x_2, ..., child j offered with the law s_j given those before it
(see `drafting.tree.offered`),

    keep x_j with probability min(1, r(x_j) / s_j(x_j)),   otherwise   r <- (r - s_j)^+ / sum (r - s_j)^+

and the token after the last node kept is drawn from what is left there. For independent siblings this is SpecInfer's
rule; for siblings without replacement that of Sequoia and of recursive rejection sampling; for a given child
(s_j all mass on x_j) the coin is r(x_j) itself, the rule of EAGLE.

Letters: B requests, N nodes, V vocabulary. Sources: SpecInfer, arXiv:2305.09781; Sequoia, arXiv:2402.12374; RSD,
arXiv:2402.14160.
"""

from __future__ import annotations

import torch

from ..drafting.tree import ROOT, TreeBatch, TreeVerdict, offered
from ..draws import Draws
from ..tree_registry import register_tree


@register_tree(
    "tree-rejection",
    summary="offer the children of each node in turn, recursive rejection",
    source="SpecInfer, arXiv:2305.09781; Sequoia, arXiv:2402.12374; RSD, arXiv:2402.14160",
)
def verify_tree_rejection(batch: TreeBatch, draws: Draws) -> TreeVerdict:
    """Offer the nodes in order; those below a node that was not kept are passed over."""
    tree = batch.tree
    node = torch.full_like(batch.target_probs[:, 0, 0], ROOT, dtype=torch.int64)
    accepted = torch.zeros_like(node)
    left = batch.target_row(node)
    tried = torch.zeros_like(left, dtype=torch.bool)
    for j in range(tree.tokens.shape[1]):
        token = tree.tokens[:, j, None]
        here = tree.present[:, j] & (tree.parent[:, j] == node)
        law = offered(batch, torch.full_like(node, j), tried)
        mass, wanted = law.gather(1, token)[:, 0], left.gather(1, token)[:, 0]
        coin = torch.where(wanted < mass, wanted / mass, torch.ones_like(mass))
        kept = draws.accept(torch.where(here, coin, 0)) & here
        rest = (left - law).clamp_min(0)
        total = rest.sum(dim=1, keepdim=True)
        refused = (here & ~kept)[:, None]
        left = torch.where(refused & (total > 0), rest / total, left)
        tried = tried | (torch.zeros_like(tried).scatter_(1, token, True) & refused)
        node = torch.where(kept, j, node)
        accepted = accepted + kept
        left = torch.where(kept[:, None], batch.target_row(node), left)
        tried = tried & ~kept[:, None]
    return TreeVerdict(node, accepted, draws.choose(left))
