"""Sampler match on a drafted tree: draw from the target, go on while the tree has the token drawn.

Lossless however the tree was chosen, since the tree is never asked about. On a tree of given nodes nothing keeps more:
a node is kept with its whole target probability.

Letters: B requests, N nodes, V vocabulary. Source: "naive sampling" in SpecInfer, arXiv:2305.09781, section 4.
"""

from __future__ import annotations

import torch

from ..drafting.tree import ROOT, TreeBatch, TreeVerdict
from ..draws import Draws
from ..tree_registry import register_tree
from .naive import certain


@register_tree(
    "tree-match",
    summary="draw from the target, keep the token if the tree has it",
    source="SpecInfer, arXiv:2305.09781 (naive sampling)",
    requires="any tree",
)
def verify_tree_match(batch: TreeBatch, draws: Draws) -> TreeVerdict:
    """Walk down the tree on tokens drawn from the target."""
    tree = batch.tree
    node = torch.full_like(batch.target_probs[:, 0, 0], ROOT, dtype=torch.int64)
    accepted = torch.zeros_like(node)
    token = draws.choose(batch.target_row(node))
    for j in range(tree.tokens.shape[1]):
        here = tree.present[:, j] & (tree.parent[:, j] == node) & (tree.tokens[:, j] == token)
        node = torch.where(here, j, node)
        accepted = accepted + here
        again = torch.where(here[:, None], batch.target_row(node), certain(token, batch.target_row(node)))
        token = draws.choose(again)
    return TreeVerdict(node, accepted, token)
