"""The exact law of one call of a verifier: every K-tuple of drafts of a prefix tree, every random outcome.

Letters: L draft length, K paths, V vocabulary; P target and Q draft joint probabilities on the prefix tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from specbound.runtime import registry
from specbound.runtime.verdict import Batch
from specbound.theory.prefix_tree import Prefix, PrefixTree
from specbound.theory.solution import check_paths

from .replay import NUMBERS_PER_PASS, TooLarge, Verify, function_of, replay

MAX_DRAFTS = 2_000_000


@dataclass(frozen=True)
class Law:
    """Exact law of one call of a verifier.

    Attributes:
        blocks: law of the first L+1 tokens, the emitted block continued from the target: block -> probability (shorter
            where the tree ends early). For a stateful verifier, whose later tokens no single call decides, the law of
            the emitted tokens alone.
        accepted: Pr(at least i tokens kept) for i = 0..L.
        kept: prefix -> Pr(the kept prefix passes through it), the phi of theory, root excluded.
        mass: total probability of all replayed outcomes; 1 up to rounding.
        outcomes: number of outcomes replayed.
        stateful: True if the verifier returned a carry for any of them.
    """

    blocks: dict[Prefix, float]
    accepted: tuple[float, ...]
    kept: dict[Prefix, float]
    mass: float
    outcomes: int
    stateful: bool = False

    @property
    def acceptance_length(self) -> float:
        """Expected number of drafted tokens kept per call; the correction token is not counted."""
        return sum(self.accepted[1:])

    def total_variation(self, other: dict[Prefix, float]) -> float:
        """Total variation distance of the block law to another, e.g. `tree.target_law()`; in [0, 1].

        Raises:
            ValueError: for a stateful verifier: the distance of one call says nothing about its stream.
        """
        if self.stateful:
            raise ValueError(
                "this is one call of a stateful verifier, which says nothing about its stream; judge it by "
                "proofs_checks.laws.judge.evidence, which follows several calls"
            )
        blocks = self.blocks.keys() | other.keys()
        return 0.5 * sum(abs(self.blocks.get(block, 0.0) - float(other.get(block, 0.0))) for block in blocks)


def exact_law(verifier: str | Verify | registry.Verifier, tree: PrefixTree, paths: int = 1) -> Law:
    """Run one call of a verifier through every K-tuple of drafts of the tree and every random outcome.

    Behind the emitted token the block is continued from the target to L+1 tokens. A stateful verifier needs several
    calls: `stream_law`, and `judge.evidence`, which asks for whichever is right.

    Args:
        verifier: a registered name, a `Verifier`, or a function `verify(batch, draws) -> Verdict`.
        tree: the instance; taken in float64.
        paths: K.

    Raises:
        TooLarge: (a ValueError) if the enumeration would need more than 2e6 K-tuples of drafts.
        ValueError: if the verifier asks an ill-posed question.
        InvalidResult: (a ValueError) if it returns no verdict, or one that is out of range.
    """
    verify = function_of(verifier)
    tree = tree.as_float()
    check_paths(paths)
    drafted = np.flatnonzero(tree.draft_joint[tree.leaves] > 0) + tree.leaves.start
    if paths * math.log(len(drafted)) > math.log(MAX_DRAFTS) or len(drafted) ** paths > MAX_DRAFTS:
        raise TooLarge(f"{len(drafted)} drafts and {paths} paths are too many to enumerate; use a smaller tree")
    emitted = np.zeros((tree.size, tree.vocab))
    stateful = False
    count = 0
    nodes = ancestors(tree)
    for chosen in _chunks(itertools.product(drafted.tolist(), repeat=paths), tree.length * tree.vocab * paths):
        leaves = np.array(chosen)
        weight = tree.draft_joint[leaves].prod(axis=1)
        for outcome in replay(verify, batch_of(tree, leaves)):
            kept = nodes[leaves[outcome.row, outcome.path], outcome.accepted]
            chance = weight[outcome.row] * outcome.probability
            np.add.at(emitted, (kept, outcome.token), chance)
            count += len(kept)
            stateful = stateful or outcome.carry is not None
    return _law(tree, emitted, stateful, count)


def ancestors(tree: PrefixTree) -> np.ndarray:
    """[n, L+1] int64: the node's ancestor at each depth; the node itself from its own depth on."""
    line = np.tile(np.arange(tree.size)[:, None], (1, tree.length + 1))
    for depth in range(tree.length - 1, -1, -1):
        line[:, depth] = np.where(
            tree.depth[line[:, depth + 1]] > depth, tree.parent[line[:, depth + 1]], line[:, depth + 1]
        )
    return line


def batch_of(tree: PrefixTree, leaves: np.ndarray) -> Batch:
    """The batch of B requests whose K drafts are the given leaf nodes [B, K]; float64 tensors."""
    path = ancestors(tree)[leaves]
    target_rows = tree.rows(tree.target)
    target_rows[tree.leaves] = tree.bonus
    return Batch(
        torch.as_tensor(tree.token[path[..., 1:]]),
        torch.as_tensor(tree.rows(tree.draft)[path[..., :-1]]),
        torch.as_tensor(target_rows[path]),
    )


def _chunks(items: Iterator[tuple[int, ...]], numbers: int) -> Iterator[list[tuple[int, ...]]]:
    size = max(1, NUMBERS_PER_PASS // numbers)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _law(tree: PrefixTree, emitted: np.ndarray, stateful: bool, outcomes: int) -> Law:
    """From Pr(kept prefix = node, next token = y) [n, V] to the law of the call."""
    kept = emitted.sum(axis=1)
    for level in reversed(tree.levels[1:]):
        np.add.at(kept, tree.parent[level], kept[level])
    accepted = tuple(float(kept[level].sum()) for level in tree.levels)
    passes = {tree.prefix(node): float(kept[node]) for node in range(1, tree.size)}
    blocks = _as_blocks(tree, emitted) if stateful else _continued_blocks(tree, emitted)
    return Law(blocks, accepted, passes, float(emitted.sum()), outcomes, stateful)


def _as_blocks(tree: PrefixTree, emitted: np.ndarray) -> dict[Prefix, float]:
    """Pr(prefix of the node, then y), positive ones only."""
    return {(*tree.prefix(w), int(y)): float(emitted[w, y]) for w, y in zip(*np.nonzero(emitted), strict=True)}


def _continued_blocks(tree: PrefixTree, emitted: np.ndarray) -> dict[Prefix, float]:
    """The law of L+1 tokens if the target continues behind the emitted token."""
    continued = np.zeros(tree.size)
    for level in tree.levels[1:]:
        parent, token = tree.parent[level], tree.token[level]
        continued[level] = continued[parent] * tree.target[level] + emitted[parent, token]
    inside = np.zeros_like(emitted, dtype=bool)
    inside[tree.parent[1:], tree.token[1:]] = True
    final = np.where(inside, 0.0, emitted)
    final[tree.leaves] += continued[tree.leaves, None] * tree.bonus
    blocks = _as_blocks(tree, final)
    for node in range(tree.size - len(tree.bonus)):
        if tree.children[node].start == tree.children[node].stop and continued[node] > 0:
            blocks[tree.prefix(node)] = float(continued[node])
    return blocks
