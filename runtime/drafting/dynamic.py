"""Trees that follow the draft's own confidence: the N nodes of largest joint draft probability that a beam finds.

No coin is tossed: every node is given. Level by level the `beam` most probable nodes of the level before are read and
each gets its `beam` most probable tokens; of all nodes met the N of largest joint probability stay. A node is never
more probable than its parent, so what stays is a tree.

Letters: B requests, V vocabulary. Sources: EAGLE-2, arXiv:2406.16858; OPT-Tree, arXiv:2406.17276.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..draws import Draws
from .tree import ROOT, DraftedTree, Reader, finished, sprout, with_children


@dataclass(frozen=True)
class Dynamic:
    """The most probable nodes under the draft.

    Attributes:
        length: L, levels of the tree, each one pass of the draft.
        beam: nodes read per level, and children looked at per node.
        nodes: N, nodes that stay.

    Raises:
        ValueError: one of them below 1.
    """

    length: int
    beam: int
    nodes: int

    def __post_init__(self) -> None:
        for name in ("length", "beam", "nodes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; want an integer of at least 1")

    @property
    def children(self) -> Literal["sampled", "given", "mixed"]:
        """How the children of a node are chosen."""
        return "given"

    @property
    def stem(self) -> None:
        """The tree has no independent paths."""
        return None

    def __call__(self, read: Reader, draws: Draws, requests: int, device: torch.device) -> DraftedTree:
        """Grow the tree level by level, then cut it to its most probable nodes."""
        tree = sprout(requests, device)
        frontier = torch.full((requests, 1), ROOT, device=device)
        reach = torch.ones(requests, 1, dtype=torch.float64, device=device)
        joint = reach[:, :0]
        for level in range(self.length):
            rows = read(tree, frontier)
            chance = reach[..., None] * rows.double()
            found, tokens = chance.topk(min(self.beam, rows.shape[2]), dim=2)
            parent = frontier[..., None].expand_as(tokens).flatten(1)
            found, tokens = found.flatten(1), tokens.flatten(1)
            first = joint.shape[1]
            tree = with_children(tree, parent, tokens, torch.zeros_like(found, dtype=torch.bool), found > 0)
            joint = torch.cat([joint, found], dim=1)
            if level + 1 < self.length:
                reach, best = found.topk(min(self.beam, found.shape[1]), dim=1)
                frontier = first + best
        tree = _only(tree, joint, self.nodes)
        return finished(replace(tree, draft_probs=rows.new_zeros(requests, 1, rows.shape[2])))


def _only(tree: DraftedTree, joint: torch.Tensor, nodes: int) -> DraftedTree:
    """The tree cut to its `nodes` most probable nodes; of equally probable ones the earlier stays."""
    chosen = joint.argsort(dim=1, descending=True, stable=True)[:, :nodes].sort(dim=1).values
    place = torch.full((len(joint), joint.shape[1] + 1), ROOT, device=joint.device)
    place.scatter_(1, chosen + 1, torch.arange(chosen.shape[1], device=joint.device).expand_as(chosen))
    parent = place.gather(1, tree.parent.gather(1, chosen) + 1)
    parts = (part.gather(1, chosen) for part in (tree.tokens, tree.sampled, tree.present))
    tokens, sampled, present = parts
    return replace(tree, tokens=tokens, parent=parent, sampled=sampled, present=present)
