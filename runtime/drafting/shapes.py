"""Trees of fixed shape: W_1 children of the root, W_2 of each of them, ...

Letters: B requests, W_d children per node of depth d - 1, N nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..draws import Draws
from .tree import ROOT, DraftedTree, Reader, finished, sprout, with_children, with_rows

Choice = Literal["iid", "without-replacement", "top", "top-and-sampled"]


@dataclass(frozen=True)
class FixedShape:
    """Every node of depth d - 1 gets W_d children, chosen from its draft row.

    Attributes:
        widths: W_1, W_2, ..., each at least 1; their number is the draft length.
        choice: "iid" (independent children), "without-replacement" (a token is drawn once), "top" (the most probable
            tokens, no coin), or "top-and-sampled" (all but one of them so, the last one drawn from the rest).

    Raises:
        ValueError: no widths, or one below 1.
    """

    widths: tuple[int, ...]
    choice: Choice = "without-replacement"

    def __post_init__(self) -> None:
        check_widths(self.widths)

    @property
    def children(self) -> Literal["sampled", "given", "mixed"]:
        """How the children of a node are chosen."""
        if self.choice == "top":
            return "given"
        return "mixed" if self.choice == "top-and-sampled" else "sampled"

    @property
    def length(self) -> int:
        """L, the depth of the tree."""
        return len(self.widths)

    @property
    def stem(self) -> int | None:
        """Tokens before independent paths part, 0 if they part at once; None for trees of another shape."""
        wide = [depth for depth, width in enumerate(self.widths) if width > 1]
        if self.choice == "top" or len(wide) > 1 or (wide and self.choice != "iid"):
            return None
        return wide[0] if wide else 0

    @property
    def nodes(self) -> int:
        """N, the most drafted nodes."""
        total = level = 1
        for width in self.widths:
            level *= width
            total += level
        return total - 1

    def __call__(self, read: Reader, draws: Draws, requests: int, device: torch.device) -> DraftedTree:
        """Grow the tree level by level: one pass of the draft a level."""
        tree = sprout(requests, device, replacement=self.choice == "iid")
        frontier = torch.full((requests, 1), ROOT, device=device)
        for width in self.widths:
            rows = read(tree, frontier)
            tree = with_rows(tree, rows)
            first = tree.tokens.shape[1]
            tree = add_children(tree, frontier, rows, width, self.choice, draws)
            frontier = torch.arange(first, tree.tokens.shape[1], device=device).expand(requests, -1)
        return finished(tree)


def check_widths(widths: Sequence[int]) -> None:
    """Raise ValueError unless there is a width and all are integers of at least 1."""
    if not widths or any(type(width) is not int or width < 1 for width in widths):
        raise ValueError(f"widths is {tuple(widths)}; want integers of at least 1, one for each depth")


def add_children(
    tree: DraftedTree, frontier: Tensor, rows: Tensor, width: int, choice: Choice, draws: Draws
) -> DraftedTree:
    """The tree with `width` children of each frontier node [B, F], node after node, chosen from its row [B, F, V].

    A node whose row has fewer tokens with mass than `width` gets as many children as there are (independent children
    always); an absent node gets none.
    """
    requests, nodes, _ = rows.shape
    alive = torch.nn.functional.pad(tree.present, (1, 0), value=True).gather(1, frontier + 1)
    left = rows * alive[..., None]
    first = torch.zeros_like(left)
    first[..., 0] = 1.0
    tokens, sampled, present = [], [], []
    for place in range(width):
        drawn = choice in ("iid", "without-replacement") or (choice == "top-and-sampled" and place == width - 1)
        some = left.sum(dim=-1, keepdim=True) > 0
        token = draws.choose(torch.where(some, left, first)) if drawn else left.argmax(dim=-1)
        tokens.append(token)
        sampled.append(torch.full_like(alive, drawn))
        present.append(left.gather(2, token[..., None])[..., 0] > 0)
        if choice != "iid":
            left = left.scatter(2, token[..., None], 0.0)
    parent = frontier[..., None].expand(requests, nodes, width)
    parts = (parent, *(torch.stack(part, dim=-1) for part in (tokens, sampled, present)))
    return with_children(tree, *(part.flatten(1) for part in parts))
