"""The score race behind a common stem: K independent branches race, the winner is verified as one block with the stem.

The stem's law is the draft's, one path of L1 tokens; the law of the branch that wins below it is that of the score
race (`score_race`), begun with the ratio that block verification gives the stem. So the law of the selected path is
known node by node, and block verification against it is lossless and uses what the stem has left over. With L1 = 0 it
is the score race, with K = 1 block verification.

Letters: B requests, N nodes, K branches, L depth, L1 stem, V vocabulary. Source: specbound (own); delayed expansion of
drafts: arXiv:2602.16994.
"""

from __future__ import annotations

import torch

from ..drafting.tree import ROOT, TreeBatch, TreeVerdict, stem_and_paths
from ..draws import Draws
from ..tree_registry import register_tree
from ..verdict import Batch
from .score_race import verify_score_race


@register_tree(
    "tree-score-race",
    summary="the branches behind a common stem race, the winner is verified as one block with the stem",
    source="specbound (own); Block Verification, arXiv:2403.10444, of the selected path",
    requires="a stem, then independent paths",
    cost="O(N V), two passes",
)
def verify_tree_score_race(batch: TreeBatch, draws: Draws) -> TreeVerdict:
    """Read the tree as K paths, race, and say where the kept part of the winner ends in the tree."""
    stem, nodes = stem_and_paths(batch.tree)
    above = torch.nn.functional.pad(nodes, (1, 0), value=ROOT) + 1
    flat = Batch(
        batch.tree.tokens[:, nodes],
        batch.tree.draft_probs[:, above[:, :-1]],
        batch.target_probs[:, above],
    )
    verdict = verify_score_race(flat, draws, "safe", stem)
    return TreeVerdict((above - 1)[verdict.path, verdict.accepted], verdict.accepted, verdict.token)
