"""The facts that a verifier declares, measured: is its exact law the target's on a fixed set of small trees?"""

from __future__ import annotations

from specbound.runtime.registry import Verifier
from specbound.theory.prefix_tree import PrefixTree

from .law import exact_law

LOSSLESS_TOLERANCE = 1e-12


def measuring_trees() -> list[PrefixTree]:
    """Trees on which every known lossy verifier of several paths shows: V = 3, L = 1..2, zeros and ties among them."""
    ties = PrefixTree.iid([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], 2)
    zeros = PrefixTree.markov(
        [[0, 0.5, 0.5], [0.25, 0.75, 0], [1, 0, 0]], [[0.5, 0.5, 0], [0.2, 0.4, 0.4], [0, 0, 1]], 2
    )
    shapes = [(3, 1), (3, 2), (2, 2)]
    return [ties, zeros, *(PrefixTree.random(v, d, seed, 1.0) for seed, (v, d) in enumerate(shapes * 2))]


def lossless_error(verifier: Verifier) -> float:
    """Largest total variation distance of the verifier's exact law to the target's, with 1 or 2 paths."""
    paths = 1 if verifier.paths == "single" else 2
    laws = ((exact_law(verifier.verify, tree, paths), tree) for tree in measuring_trees())
    return max(law.total_variation(tree.target_law()) for law, tree in laws)
