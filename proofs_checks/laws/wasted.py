"""What a verifier costs and wastes: its deviation, its acceptance length, and the distance to the frontier above it.

Deviation is the total variation of the exact law of one call's L+1 tokens to the target's; the frontier is the best
acceptance length of any verifier of that deviation (`specbound.theory.frontier`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specbound.runtime.registry import Verifier, entries
from specbound.theory import frontier
from specbound.theory.prefix_tree import PrefixTree

from .law import Law, exact_law

SLACK = 1e-12


@dataclass(frozen=True)
class Point:
    """One verifier on one instance.

    Attributes:
        name: of the verifier.
        deviation: total variation of its law of one call to the target's.
        kept: its expected acceptance length.
        best: certified upper bound on the acceptance length of any verifier of that deviation.
        wasted: best - kept, at least 0.
    """

    name: str
    deviation: float
    kept: float
    best: float

    @property
    def wasted(self) -> float:
        return max(0.0, self.best - self.kept)


def point(name: str, law: Law, tree: PrefixTree, paths: int = 1) -> Point:
    """Where a law stands below the frontier of its tree with K = `paths` independent drafts."""
    tree = tree.as_float()
    deviation = min(1.0, law.total_variation(tree.target_law()))
    best = frontier.optimum(tree, min(1.0, deviation + SLACK), paths).bound
    return Point(name, deviation, law.acceptance_length, best)


def lossy_points(tree: PrefixTree, among: Sequence[Verifier] | None = None) -> list[Point]:
    """The points of the registered lossy verifiers of one path (or of those given), in the order of the registry."""
    wanted = [e for e in entries() if not e.lossless and e.paths == "single"] if among is None else among
    return [point(entry.name, exact_law(entry, tree), tree) for entry in wanted]


def mean_points(trees: Sequence[PrefixTree], among: Sequence[Verifier]) -> list[Point]:
    """The means over the trees of each verifier's deviation, acceptance length and frontier."""
    table = [lossy_points(tree, among) for tree in trees]
    means = np.array([[(p.deviation, p.kept, p.best) for p in points] for points in table]).mean(axis=0)
    return [Point(entry.name, *map(float, row)) for entry, row in zip(among, means, strict=True)]
