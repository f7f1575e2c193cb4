"""Drafted trees: N nodes behind the last known token, and how each of them was chosen.

Letters: B requests, N drafted nodes of a request (the most of any), V vocabulary size; node 0..N-1, the root is the
last known token. Parents come before their children, siblings in the order in which they were chosen.

A child is *sampled* from the draft row of its parent, siblings before it left out unless the tree says otherwise, or
it is *given*: chosen without a coin (the most probable token, a token looked up in the prompt). What a verifier may
count on is the child's law given everything chosen before it (`offered`): the row it was drawn from, or all mass on
the token itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from ..draws import Draws
from ..verdict import arithmetic_dtype, validate_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOT = -1
Reader = Callable[["DraftedTree", Tensor], Tensor]


@dataclass(frozen=True)
class DraftedTree:
    """N drafted nodes per request with the draft's rows.

    Attributes:
        tokens [B, N] int64: the token of each node.
        parent [B, N] int64: the node before it, -1 for the root; parent[j] < j.
        sampled [B, N] bool: drawn at random from its parent's row; False: given.
        present [B, N] bool: False for the empty places of a request with fewer nodes.
        draft_probs [B, N+1, V]: the draft's law after the root (row 0) and after node j (row j + 1); rows of nodes
            without sampled children are read by nobody and may be zero.
        replacement: sampled siblings are independent; otherwise a token is offered once.
    """

    tokens: Tensor
    parent: Tensor
    sampled: Tensor
    present: Tensor
    draft_probs: Tensor
    replacement: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, N, V)."""
        requests, rows, vocab = self.draft_probs.shape
        return requests, rows - 1, vocab

    @property
    def depth(self) -> Tensor:
        """int64 [B, N]: 1 for children of the root."""
        depth = torch.zeros_like(self.parent)
        for node in range(depth.shape[1]):
            parent = self.parent[:, node]
            above = depth.gather(1, parent.clamp_min(0)[:, None])[:, 0]
            depth[:, node] = torch.where(parent == ROOT, 1, above + 1)
        return depth

    @property
    def sees(self) -> Tensor:
        """bool [B, N, N]: node i has node j on its path from the root, itself included."""
        requests, nodes = self.parent.shape
        seen = torch.eye(nodes, dtype=torch.bool, device=self.parent.device).repeat(requests, 1, 1)
        row = torch.arange(requests, device=self.parent.device)
        for node in range(nodes):
            parent = self.parent[:, node]
            seen[:, node] |= seen[row, parent.clamp_min(0)] & (parent != ROOT)[:, None]
        return seen

    def validate(self) -> None:
        """Check shapes, order, tokens and the rows that sampled children were drawn from.

        Raises:
            ValueError: naming the argument, its value and what is wanted.
        """
        if self.draft_probs.ndim != 3 or self.draft_probs.shape[1] < 1:
            raise ValueError(f"draft_probs has shape {tuple(self.draft_probs.shape)}; want [B, N+1, V]")
        requests, nodes, vocab = self.shape
        for name, kind in (
            ("tokens", torch.int64),
            ("parent", torch.int64),
            ("sampled", torch.bool),
            ("present", torch.bool),
        ):
            value = getattr(self, name)
            if value.shape != (requests, nodes) or value.dtype != kind:
                found = f"{value.dtype} of shape {tuple(value.shape)}"
                raise ValueError(f"{name} is {found}; want {kind} of shape {(requests, nodes)} = [B, N]")
        place = torch.arange(nodes, device=self.parent.device)
        if bool(((self.parent < ROOT) | (self.parent >= place)).any()):
            raise ValueError("parent names a node that does not come before its child; want -1 or a smaller index")
        if bool(((self.tokens < 0) | (self.tokens >= vocab)).any()):
            raise ValueError(f"tokens lie in {self.tokens.min()}..{self.tokens.max()}; want 0..{vocab - 1}")
        above = self.present.gather(1, self.parent.clamp_min(0)) | (self.parent == ROOT)
        if bool((self.present & ~above).any()):
            raise ValueError("present has a node whose parent is absent; want whole branches")
        drawn = (self.sampled & self.present).nonzero()
        if len(drawn):
            rows = self.draft_probs[drawn[:, 0], self.parent[drawn[:, 0], drawn[:, 1]] + 1]
            validate_rows("draft_probs", rows)


@dataclass(frozen=True)
class TreeBatch:
    """What a verifier of trees reads.

    Attributes:
        tree: the drafted nodes.
        target_probs [B, N+1, V]: the target's law after the root (row 0) and after node j (row j + 1).
    """

    tree: DraftedTree
    target_probs: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """What verifiers compute in: float64 if an input is float64, else float32."""
        draft, target = (arithmetic_dtype(probs) for probs in (self.tree.draft_probs, self.target_probs))
        return torch.promote_types(draft, target)

    def validate(self) -> None:
        """Check the tree and the target's rows.

        Raises:
            ValueError: naming the argument, its value and what is wanted.
        """
        self.tree.validate()
        if self.target_probs.shape != self.tree.draft_probs.shape:
            shape, wanted = tuple(self.target_probs.shape), tuple(self.tree.draft_probs.shape)
            raise ValueError(f"target_probs has shape {shape}; want {wanted} = [B, N+1, V]")
        present = torch.nn.functional.pad(self.tree.present, (1, 0), value=True)
        validate_rows("target_probs", self.target_probs[present])

    def target_row(self, node: Tensor) -> Tensor:
        """[B, V]: the target's law after `node` [B] (-1: the root), in arithmetic dtype."""
        return _row(self.target_probs, node).to(self.dtype)

    def draft_row(self, node: Tensor) -> Tensor:
        """[B, V]: the draft's law after `node` [B] (-1: the root), in arithmetic dtype."""
        return _row(self.tree.draft_probs, node).to(self.dtype)


@dataclass(frozen=True)
class TreeVerdict:
    """Where the kept path ends, and the token that follows.

    Attributes:
        node [B] int64: the last node kept, -1 if none.
        accepted [B] int64: tokens kept, the depth of that node.
        token [B] int64: the correction or bonus token.
    """

    node: Tensor
    accepted: Tensor
    token: Tensor


class Drafter(Protocol):
    """Grows a tree. `read(tree, nodes)` gives the draft's laws [B, n, V] after the nodes [B, n] of the tree so far."""

    @property
    def children(self) -> Literal["sampled", "given", "mixed"]:
        """How the children of a node are chosen."""

    @property
    def length(self) -> int:
        """L, the depth of the tree."""

    @property
    def stem(self) -> int | None:
        """Tokens before independent paths part, 0 if they part at once; None for trees of another shape."""

    def __call__(self, read: Reader, draws: Draws, requests: int, device: torch.device) -> DraftedTree:
        """The drafted tree of each of B requests."""


@dataclass(frozen=True)
class TreeDraft:
    """A draft for decoding: a model, and how its tree grows.

    Attributes:
        model: the draft model.
        grow: the shape, such as `FixedShape((3, 2, 1))` or `Dynamic(length=5, beam=4, nodes=12)`.
    """

    model: PreTrainedModel
    grow: Drafter


def sprout(requests: int, device: torch.device, replacement: bool = False) -> DraftedTree:
    """A tree without nodes, and without rows: its root has not been read."""
    empty = torch.zeros(requests, 0, dtype=torch.int64, device=device)
    none = empty.bool()
    rows = torch.zeros(requests, 0, 0, device=device)
    return DraftedTree(empty, empty, none, none, rows, replacement)


def with_rows(tree: DraftedTree, rows: Tensor) -> DraftedTree:
    """The tree with the next rows [B, n, V] read, in the order of root, node 0, node 1, ..."""
    known = tree.draft_probs
    return replace(tree, draft_probs=rows if known.shape[1] == 0 else torch.cat([known, rows], dim=1))


def with_children(tree: DraftedTree, parent: Tensor, tokens: Tensor, sampled: Tensor, present: Tensor) -> DraftedTree:
    """The tree with n more nodes, all [B, n]."""
    parts = (
        (tree.tokens, tokens),
        (tree.parent, parent),
        (tree.sampled, sampled & present),
        (tree.present, present),
    )
    tokens, parent, kinds, here = (torch.cat(pair, dim=1) for pair in parts)
    return replace(tree, tokens=tokens, parent=parent, sampled=kinds, present=here)


def finished(tree: DraftedTree) -> DraftedTree:
    """The tree with zero rows for the nodes that were not read: they have no sampled children."""
    requests, nodes = tree.tokens.shape
    missing = nodes + 1 - tree.draft_probs.shape[1]
    return with_rows(tree, tree.draft_probs.new_zeros(requests, missing, tree.draft_probs.shape[2]))


def offered(batch: TreeBatch, node: Tensor, tried: Tensor) -> Tensor:
    """[B, V]: the law of the token of `node` [B] given all nodes before it.

    All mass on the token of a given child; for a sampled one its parent's row, the siblings before it left out.

    Args:
        tried [B, V] bool: tokens of the siblings before it.
    """
    tree = batch.tree
    parent, token, sampled = (part.gather(1, node[:, None]) for part in (tree.parent, tree.tokens, tree.sampled))
    row = batch.draft_row(parent[:, 0])
    if not tree.replacement:
        row = row.masked_fill(tried, 0)
    row = row / row.sum(dim=1, keepdim=True).clamp_min(torch.finfo(row.dtype).tiny)
    return torch.where(sampled, row, torch.zeros_like(row).scatter_(1, token, 1.0))


def stem_and_paths(tree: DraftedTree) -> tuple[int, Tensor]:
    """A tree of one stem and K independent paths behind it: the length of the stem, the nodes [K, L] of each path.

    Raises:
        ValueError: it is none.
    """
    wanted = "want one stem, then independent paths behind it, as drafted by stem:L1,K"
    parent = tree.parent[:1]
    if not tree.parent.numel() or bool((tree.parent != parent).any()):
        raise ValueError(f"the drafted trees differ, or have no nodes; {wanted}")
    before = parent[0].tolist()
    children = [before.count(node) for node in range(ROOT, len(before))]
    depth = tree.depth[0]
    length, paths = int(depth.max()), children.count(0)
    leaves = [node for node in range(len(before)) if children[node + 1] == 0]
    branching = [node for node in range(ROOT, len(before)) if children[node + 1] > 1]
    if len(branching) > 1 or any(int(depth[leaf]) != length for leaf in leaves):
        raise ValueError(
            f"the drafted tree branches {len(branching)} times, or has branches of several lengths; {wanted}"
        )
    if not bool((tree.sampled & tree.present).all()) or (paths > 1 and not tree.replacement):
        raise ValueError(f"the drafted nodes are not independent draws; {wanted}")
    stem = (int(depth[branching[0]]) if branching[0] != ROOT else 0) if branching else 0
    nodes = tree.sees[0][leaves].nonzero()[:, 1].view(paths, length)
    return stem, nodes


def _row(probs: Tensor, node: Tensor) -> Tensor:
    return probs[torch.arange(len(probs), device=probs.device), node + 1]
