"""The exact law of one call with a drafted tree: every tree that is drafted, and the verifier's coins on each.

Letters: B outcomes replayed at once, N drafted nodes, L draft length, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from specbound.runtime.drafting.tree import ROOT, DraftedTree, Drafter, TreeBatch, TreeVerdict
from specbound.runtime.draws import Draws
from specbound.theory.prefix_tree import Prefix, PrefixTree

from .emissions import law_of_emissions
from .law import Law
from .replay import InvalidResult, ReplayDraws

VerifyTree = Callable[[TreeBatch, Draws], TreeVerdict]
ROWS_PER_PASS = 4096
PARTS = ("tokens", "parent", "sampled", "present", "draft_probs")
LOST = 1e-9


def tree_law(drafter: Drafter, verify: VerifyTree, tree: PrefixTree) -> Law:
    """The exact law of the first L+1 tokens when `drafter` grows a tree from the draft rows and `verify` judges it.

    Args:
        tree: both models, at least as deep as the drafted tree.

    Raises:
        InvalidResult: the verifier returned a node that was not drafted, or a token out of range.
        ValueError: the outcomes' probabilities do not sum to 1.
    """
    tree = tree.as_float()
    target = tree.rows(tree.target)
    target[tree.leaves] = tree.bonus
    target_rows = torch.as_tensor(target)
    child = np.full((tree.size, tree.vocab), -1)
    child[tree.parent[1:], tree.token[1:]] = np.arange(1, tree.size)
    emissions: dict[Prefix, float] = defaultdict(float)
    outcomes = 0
    for drafted, chance in _drafted(drafter, torch.as_tensor(tree.rows(tree.draft)), child):
        place = places(drafted, child)
        known = np.concatenate([np.zeros((len(place), 1), dtype=np.int64), place], axis=1)
        batch = TreeBatch(drafted, target_rows[torch.as_tensor(known)])
        batch.validate()
        pending: list[tuple[int, tuple[int, ...]]] = [(row, ()) for row in range(len(place))]
        while pending:
            pending, now = pending[:-ROWS_PER_PASS], pending[-ROWS_PER_PASS:]
            rows = [row for row, _ in now]
            draws = ReplayDraws([decisions for _, decisions in now])
            some = TreeBatch(_rows_of(drafted, rows), batch.target_probs[rows])
            blocks = _blocks(some.tree, verify(some, draws), tree.vocab)
            for block, probability in zip(blocks, chance[rows] * draws.weight, strict=True):
                emissions[block] += float(probability)
            outcomes += len(now)
            pending += [(rows[row], decisions) for row, decisions in draws.alternatives]
    if abs(sum(emissions.values()) - 1) > LOST:
        raise ValueError(f"the outcomes have probability {sum(emissions.values()):.12g} in all; want 1")
    return law_of_emissions(tree, dict(emissions), outcomes)


def _drafted(drafter: Drafter, draft_rows: Tensor, child: np.ndarray) -> Iterator[tuple[DraftedTree, np.ndarray]]:
    """Every tree that the drafter may draft, with its probability; trees of equally many nodes together."""
    found: dict[int, list[tuple[DraftedTree, np.ndarray]]] = defaultdict(list)
    pending: list[tuple[int, ...]] = [()]
    while pending:
        pending, now = pending[:-ROWS_PER_PASS], pending[-ROWS_PER_PASS:]
        draws = ReplayDraws(now)

        def read(drafted: DraftedTree, nodes: Tensor) -> Tensor:
            return draft_rows[torch.as_tensor(_below(places(drafted, child), nodes.numpy()))]

        drafted = drafter(read, draws, len(now), torch.device("cpu"))
        found[drafted.shape[1]].append((drafted, draws.weight))
        pending += [decisions for _, decisions in draws.alternatives]
    for parts in found.values():
        trees, chances = zip(*parts, strict=True)
        joined = {name: torch.cat([getattr(drafted, name) for drafted in trees]) for name in PARTS}
        yield replace(trees[0], **joined), np.concatenate(chances)


def _rows_of(drafted: DraftedTree, rows: list[int]) -> DraftedTree:
    """The trees of some requests."""
    return replace(drafted, **{name: getattr(drafted, name)[rows] for name in PARTS})


def places(drafted: DraftedTree, child: np.ndarray) -> np.ndarray:
    """int64 [B, N]: the node of the prefix tree that each drafted node stands for; 0 for absent ones."""
    tokens, parent, present = (part.numpy() for part in (drafted.tokens, drafted.parent, drafted.present))
    place = np.zeros(tokens.shape, dtype=np.int64)
    for node in range(tokens.shape[1]):
        above = _below(place, parent[:, node, None])[:, 0]
        place[:, node] = np.where(present[:, node], child[above, tokens[:, node]], 0)
    return place


def _below(place: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The places of `nodes` [B, n], -1 standing for the root."""
    known = np.concatenate([place, np.zeros((len(place), 1), dtype=np.int64)], axis=1)
    return np.take_along_axis(known, nodes, axis=1)


def _blocks(drafted: DraftedTree, verdict: TreeVerdict, vocab: int) -> list[Prefix]:
    """The emitted tokens of every row: the path to the kept node, then the verdict's token."""
    blocks = []
    for row, (node, accepted, token) in enumerate(
        zip(verdict.node.tolist(), verdict.accepted.tolist(), verdict.token.tolist(), strict=True)
    ):
        path: list[int] = []
        while node != ROOT:
            if not drafted.present[row, node]:
                raise InvalidResult(f"the verdict's node {node} was not drafted")
            path.append(int(drafted.tokens[row, node]))
            node = int(drafted.parent[row, node])
        if len(path) != accepted or not 0 <= token < vocab:
            raise InvalidResult(f"the verdict keeps {accepted} of a path of {len(path)} tokens, then token {token}")
        blocks.append((*reversed(path), token))
    return blocks
