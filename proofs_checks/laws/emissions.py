"""From the blocks that one call emits to the law of the first L+1 tokens, the target going on behind them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from specbound.theory.prefix_tree import Prefix, PrefixTree

from .law import Law


def law_of_emissions(tree: PrefixTree, emissions: Mapping[Prefix, float], outcomes: int) -> Law:
    """From the law of the emitted blocks of 1 to L+1 tokens to the law of L+1 tokens, continuing from the target.

    A block that leaves the tree stands for itself.
    """
    node = {tree.prefix(w): w for w in range(tree.size)}
    rows = tree.rows(tree.target)
    rows[tree.leaves] = tree.bonus
    blocks: dict[Prefix, float] = defaultdict(float, emissions)
    kept: dict[Prefix, float] = dict.fromkeys(itertools.islice(node, 1, None), 0.0)
    for block, probability in emissions.items():
        for depth in range(1, len(block)):
            kept[block[:depth]] = kept.get(block[:depth], 0.0) + probability
    for depth in range(1, tree.length + 1):
        for block in [block for block in blocks if len(block) == depth]:
            row = rows[node[block]] if block in node else np.zeros(0)
            if row.any():
                mass = blocks.pop(block)
                for y in np.flatnonzero(row).tolist():
                    blocks[(*block, y)] += mass * row[y]
    accepted = tuple(
        sum(probability for block, probability in emissions.items() if len(block) > depth)
        for depth in range(tree.length + 1)
    )
    return Law(dict(blocks), accepted, kept, sum(emissions.values()), outcomes)
