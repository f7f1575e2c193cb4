"""What a verifier table emits, by running its race of scores in NumPy: theory's own route, without the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from specbound.theory.feasibility import selected_mass
from specbound.theory.multi_path.verifier_table import VerifierTable
from specbound.theory.prefix_tree import Array, Prefix


def selected_law(table: VerifierTable) -> Array:
    """[leaves] law of the selected draft, by running the race of scores through every K-tuple of drafts.

    Pr(draft k has the smallest score) is the integral of its density times the others' survival functions: piecewise
    a polynomial of degree K-1, integrated without error by Gauss-Legendre points. Independent of the closed form.
    """
    draft = np.asarray(table.tree.draft_joint[table.tree.leaves], dtype=float)
    lengths = [sum(high - low for low, high in intervals) for intervals in table.scores]
    reached = [leaf for leaf, length in enumerate(lengths) if length > 0]
    nodes, weights = np.polynomial.legendre.leggauss(max(1, (table.paths + 1) // 2))
    cuts = np.unique([0.0, 1.0, *(end for intervals in table.scores for pair in intervals for end in pair)])
    middle, half = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts) / 2
    points = (middle[:, None] + half[:, None] * nodes).ravel()
    measure = (half[:, None] * weights).ravel()
    density, survival = np.zeros((len(draft), len(points))), np.ones((len(draft), len(points)))
    for leaf in reached:
        for low, high in table.scores[leaf]:
            density[leaf] += ((points > low) & (points < high)) / lengths[leaf]
            survival[leaf] -= np.clip(points - low, 0.0, high - low) / lengths[leaf]
    law = np.zeros(len(draft))
    for drafts in product(reached, repeat=table.paths):
        chance = float(np.prod(draft[list(drafts)]))
        for winner in range(table.paths):
            others = [survival[leaf] for k, leaf in enumerate(drafts) if k != winner]
            integrand = np.prod([density[drafts[winner]], *others], axis=0)
            law[drafts[winner]] += chance * float(integrand @ measure)
    return law


@dataclass(frozen=True)
class TableLaw:
    """Exact law of one round: blocks of L+1 tokens (shorter where the tree ends early) and of the kept length."""

    blocks: dict[Prefix, float]
    acceptance_length: float

    def total_variation(self, other: Mapping[Prefix, Any]) -> float:
        """Half the sum of absolute differences to another law of blocks."""
        keys = set(self.blocks) | set(other)
        return float(sum(abs(self.blocks.get(key, 0.0) - float(other.get(key, 0))) for key in keys)) / 2


def output_law(table: VerifierTable, selected: Array | None = None) -> TableLaw:
    """The law of what the table emits, token by token down to depth L + 1, from a law of the selected draft.

    Args:
        selected [leaves]: by default `selected_law(table)`, the race run exactly.
    """
    tree = table.tree.as_float() if table.tree.exact else table.tree
    arriving = selected_mass(tree, selected_law(table) if selected is None else selected)
    kept, corrected = np.zeros(tree.size), np.zeros(tree.size)
    for level in reversed(tree.levels):
        passing = arriving[level].copy()
        for offset, node in enumerate(range(level.start, level.stop)):
            children = tree.children[node]
            if children.stop > children.start:
                passing[offset] = (arriving[children] - kept[children]).sum()
        kept[level] = passing * table.stop[level]
        arriving[level] = passing
    length = float(kept @ tree.depth)
    later = tree.target if table.later == "target" else table.correction
    blocks: dict[Prefix, float] = {}
    for node in range(tree.size):
        children, prefix = tree.children[node], tree.prefix(node)
        if children.stop > children.start:
            corrected[children] = kept[node] * table.correction[children] + corrected[node] * later[children]
        elif len(prefix) == tree.length:
            row = (kept[node] + corrected[node]) * tree.bonus[node - tree.leaves.start]
            blocks |= {(*prefix, y): float(mass) for y, mass in enumerate(row) if mass > 0}
        elif corrected[node] > 0:
            blocks[prefix] = float(corrected[node])
    return TableLaw(blocks, length)
