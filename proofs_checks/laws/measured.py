"""The facts that a registered verifier declares, measured on a fixed set of small trees by the judge."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

from specbound.runtime.drafting.dynamic import Dynamic
from specbound.runtime.drafting.shapes import Choice, FixedShape
from specbound.runtime.drafting.tree import Drafter
from specbound.runtime.registry import Verifier
from specbound.runtime.tree_registry import TreeVerifier
from specbound.runtime.verifiers.table import table_verifier
from specbound.theory import multi_path
from specbound.theory.multi_path.verifier_table import verifier_table
from specbound.theory.prefix_tree import PrefixTree

from .drafted_trees import tree_law
from .judge import LOSSLESS_TOLERANCE, Judgement, combined, judge, verdict

PATHS = 2
MOST_FOLLOWED = 30


@cache
def measure(verifier: Verifier) -> Judgement:
    """The verdict on a registered verifier, with one path if it takes one, else with two.

    A stateful one is followed over several calls, on the smaller of the trees (at most 30 K-tuples of drafts).
    `table` runs a table that was solved for one tree: it is measured with the tables of the optima of these trees.
    """
    if verifier.name == "table":
        return combined([judge(made, [(tree, PATHS)]) for made, tree in tables()])
    if verifier.needs:
        return Judgement("undecided", None, f"it needs {verifier.needs}; measure one that has it")
    paths = 1 if verifier.paths == "single" else PATHS
    trees = measuring_trees()
    if verifier.stateful:
        trees = tuple(tree for tree in trees if len(tree.bonus) ** paths <= MOST_FOLLOWED)
    return judge(verifier, [(tree, paths) for tree in trees])


@cache
def measure_tree(verifier: TreeVerifier) -> Judgement:
    """The verdict on a verifier of drafted trees, on the same instances with every kind of draft that it takes."""
    try:
        distances = [
            tree_law(drafter, verifier.verify, tree).total_variation(tree.target_law())
            for tree in measuring_trees()
            for drafter in drafters(verifier, tree.length)
        ]
    except Exception as error:
        return Judgement("broken", None, f"{type(error).__name__}: {error}")
    return Judgement(verdict(distances, (), LOSSLESS_TOLERANCE), max(distances))


def drafters(verifier: TreeVerifier, length: int) -> list[Drafter]:
    """Ways to draft trees of this depth that the verifier takes: two children at one node, and a dynamic tree."""
    one = (1,) * length
    stems: list[Drafter] = [FixedShape((*one[:stem], 2, *one[stem + 1 :]), "iid") for stem in range(length)]
    if verifier.requires == "a stem, then independent paths":
        return [FixedShape(one), *stems]
    kinds: tuple[Choice, ...] = ("without-replacement", "top", "top-and-sampled")
    return [*stems, *(FixedShape((2, *one[1:]), kind) for kind in kinds), Dynamic(length, 2, 3)]


@cache
def measuring_trees() -> tuple[PrefixTree, ...]:
    """Trees on which every known lossy verifier of several paths shows: V = 3, L = 1..2, zeros and ties among them."""
    ties = PrefixTree.iid([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], 2)
    zeros = PrefixTree.markov(
        [[0, 0.5, 0.5], [0.25, 0.75, 0], [1, 0, 0]], [[0.5, 0.5, 0], [0.2, 0.4, 0.4], [0, 0, 1]], 2
    )
    shapes = [(3, 1), (3, 2), (2, 2)]
    return ties, zeros, *(PrefixTree.random(v, d, seed, 1.0) for seed, (v, d) in enumerate(shapes * 2))


def tables() -> Iterator[tuple[Verifier, PrefixTree]]:
    """Verifiers of the tables of optima, each with the tree that its table is for.

    Those of block transport are stateful; they are followed on trees that begin anew, the same, where a block ends.
    """
    for tree in measuring_trees():
        found = multi_path.lossless_optimum(tree.as_float(), PATHS)
        yield table_verifier(json.loads(verifier_table(tree, PATHS, found.kappa, "lossless").to_json())), tree
    for rows in (([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2), ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5], 1)):
        tree = PrefixTree.iid(*rows)
        found = multi_path.transport_optimum(tree, PATHS)
        yield table_verifier(json.loads(verifier_table(tree, PATHS, found.kappa, "block-transport").to_json())), tree
