"""Is a phi possible? Exact checks of the constraints of every optimum in theory, for one phi on one tree.

phi(w) = Pr(the accepted prefix passes through w). Letters: p(y|w), q(y|w) target and draft conditionals, P, Q
their products along the path, K independent drafts, g(t) = 1 - (1-t)^K = Pr(some draft meets a set of mass t).

    chain      phi(root) = 1,  phi(wy) <= p(y|w) phi(w)                (lossless verifiers)
    token      phi(root) = 1,  phi(wy) <= min(p, q)(y|w) phi(w)        (every token judged by its own ratio, K = 1)
    transport  phi(root) = 1,  phi(w) <= P(w),  phi(w) >= sum_y phi(wy)      (couplings with a target block)
    antichain  sum_{w in A} phi(w) <= g(sum_{w in A} Q(w)) for every set A of nodes, none above another
    draft      phi(w) <= Q(w)                                          (the antichain constraints of K = 1)
    selection  phi(w) <= kappa(w), kappa the law of one selected draft: kappa(S) <= g(Q(S)) for every set S of leaves;
               it implies the antichain constraints

Every function returns an excess: 0 if phi satisfies the constraints, else by how much they fail. Multipliers of
an optimal dual lie in [0, L+1] (of the antichains: in total), so an excess e changes the optimum by at most (L+1) e.

Sources: the antichain form is Hall's theorem for "the accepted prefix is a prefix of some draft"; the selection
form is its restriction to leaves (a polymatroid, so one sort decides membership).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .numbers import Array
from .prefix_tree import PrefixTree


def coverage(mass: Any, paths: int) -> Any:
    """g(t) = 1 - (1-t)^K: probability that some of K independent drafts falls into a set of mass t.

    Fractions give fractions; floats lose no digits for tiny t, and mass above 1 (rounding) counts as 1.
    """
    values = np.asarray(mass)
    if values.dtype == object:
        return 1 - (1 - mass) ** paths
    with np.errstate(divide="ignore"):
        covered = -np.expm1(paths * np.log1p(-np.minimum(values, 1.0)))
    return float(covered) if values.ndim == 0 else covered


def chain_excess(tree: PrefixTree, phi: Array) -> Any:
    """Sum over nodes of (phi(wy) - p(y|w) phi(w))+, plus |phi(root) - 1| and any negative part."""
    return _root_excess(phi) + _above(phi[1:], tree.target[1:] * phi[tree.parent[1:]])


def token_excess(tree: PrefixTree, phi: Array) -> Any:
    """Sum over nodes of (phi(wy) - min(p, q)(y|w) phi(w))+, plus |phi(root) - 1| and any negative part."""
    smaller = np.minimum(tree.target, tree.draft)
    return _root_excess(phi) + _above(phi[1:], smaller[1:] * phi[tree.parent[1:]])


def transport_excess(tree: PrefixTree, phi: Array) -> Any:
    """Sums of (phi(w) - P(w))+ and of (sum_y phi(wy) - phi(w))+, plus |phi(root) - 1| and any negative part."""
    return _root_excess(phi) + _above(phi[1:], tree.target_joint[1:]) + _above(tree.child_sums(phi), phi)


def draft_excess(tree: PrefixTree, phi: Array) -> Any:
    """Sum over nodes of (phi(w) - Q(w))+: the antichain constraints of a single draft."""
    return _above(phi[1:], tree.draft_joint[1:])


def selection_excess(tree: PrefixTree, phi: Array, kappa: Array, paths: int) -> Any:
    """By how much phi exceeds the law kappa of one selected draft, or kappa exceeds what K drafts can cover.

    Args:
        kappa [leaves]: kappa, a mass on the nodes of depth L (total at most 1).
    Returns:
        sum_w (phi(w) - kappa(w))+  +  max_S (kappa(S) - g(Q(S)))+; the maximum is over prefixes of the leaves
        sorted by decreasing kappa/Q (any other S is dominated by one of them).
    """
    if len(kappa) != len(tree.bonus):
        raise ValueError(f"kappa has {len(kappa)} entries; want {len(tree.bonus)}, one per node of depth L")
    mass, drafted = selected_mass(tree, kappa), tree.draft_joint[tree.leaves]
    slopes = np.where(kappa > 0, np.array(np.inf, dtype=drafted.dtype), drafted * 0)
    np.divide(kappa, drafted, out=slopes, where=drafted > 0)
    order = np.argsort(-slopes, kind="stable")
    kept, reached = np.cumsum(kappa[order]), np.cumsum(drafted[order])
    over_coverage = max((kept - coverage(reached, paths)).max(), 0)
    return _above(phi[1:], mass[1:]) + _above(-kappa, kappa * 0) + over_coverage


def selected_mass(tree: PrefixTree, selected: Array) -> Array:
    """[n] kappa(w): probability that the selected draft passes through each node, from its law on the leaves."""
    mass = tree.draft * 0
    mass[tree.leaves] = selected
    for level in reversed(tree.levels[1:]):
        np.add.at(mass, tree.parent[level], mass[level])
    return mass


@dataclass(frozen=True)
class Antichain:
    """The antichain that phi violates most: its nodes, and sum phi(A) - g(Q(A)) (0 and no nodes if none)."""

    nodes: tuple[int, ...]
    excess: Any


def worst_antichain(tree: PrefixTree, phi: Array, paths: int) -> Antichain:
    """The most violated antichain constraint, found exactly (`hull_antichains`); phi >= 0 is required."""
    none = Antichain((), phi[0] * 0)
    return max(hull_antichains(tree, phi, paths), key=lambda antichain: antichain.excess, default=none)


def hull_antichains(tree: PrefixTree, phi: Array, paths: int, above: float = 0.0) -> list[Antichain]:
    """Antichains with excess phi(A) - g(Q(A)) > above at the vertices of the upper hull of {(Q(A), phi(A))}.

    The excess y - g(x) is convex in (x, y), so its maximum over all antichains sits at a vertex of this hull: an
    empty list proves that no constraint fails by more than `above`. The hull is built from the leaves up: the hull
    of a forest is the Minkowski sum of the hulls of its trees (merge the edges by slope), and the root w of a tree
    adds the point (Q(w), phi(w)) at its right end, which swallows the flattest edges (pool adjacent violators).
    O(n L log n); exact for fractions; phi >= 0 is required.
    """
    edges = _upper_hull(tree, phi)
    reached = kept = phi[0] * 0
    found, taken = [], set[int]()
    for edge in edges:
        reached, kept = reached + edge.width, kept + edge.height
        taken.add(edge.node)
        excess = kept - coverage(reached, paths)
        if excess > above:
            nodes = tuple(sorted(node for node in taken if not _has_ancestor(tree, node, taken)))
            found.append(Antichain(nodes, excess))
    return found


def quotient(numerator: Any, denominator: Any) -> Any:
    """The quotient of two numbers >= 0: infinite where it is too large for a float or the denominator is 0; 0/0 = 0."""
    if numerator == 0:
        return 0
    if denominator == 0:
        return math.inf
    with np.errstate(over="ignore"):
        return numerator / denominator


def antichain_excess(tree: PrefixTree, phi: Array, paths: int) -> Any:
    """max over antichains A of phi(A) - g(Q(A)), at least 0; see `worst_antichain`."""
    return worst_antichain(tree, phi, paths).excess


# ---------------------------------------------------------------------- pieces


@dataclass(frozen=True)
class _Edge:
    """One edge of a hull; taking it replaces everything taken below `node` by `node` itself."""

    slope: Any
    width: Any
    height: Any
    node: int


def _upper_hull(tree: PrefixTree, phi: Array) -> list[_Edge]:
    hulls: dict[int, list[_Edge]] = {}
    for node in range(tree.size - 1, -1, -1):
        below = tree.children[node]
        edges = [edge for child in range(below.start, below.stop) for edge in hulls.pop(child)]
        edges.sort(key=lambda edge: edge.slope, reverse=True)
        hulls[node] = edges if node == 0 else _closed(edges, node, tree.draft_joint[node], phi[node])
    return hulls[0]


def _closed(edges: list[_Edge], node: int, reached: Any, kept: Any) -> list[_Edge]:
    """The hull of `edges` and the point (reached, kept), reached being at least the edges' total width."""
    width = max(reached - sum(edge.width for edge in edges), reached * 0)
    height = kept - sum(edge.height for edge in edges)
    if height <= 0:
        return edges
    while edges and edges[-1].slope <= quotient(height, width):
        last = edges.pop()
        width, height = width + last.width, height + last.height
    return [*edges, _Edge(quotient(height, width), width, height, node)]


def _has_ancestor(tree: PrefixTree, node: int, among: set[int]) -> bool:
    while (node := int(tree.parent[node])) > 0:
        if node in among:
            return True
    return False


def _root_excess(phi: Array) -> Any:
    return abs(phi[0] - 1) + _above(-phi, phi * 0)


def _above(values: Array, limits: Array) -> Any:
    return np.maximum(values - limits, 0).sum()
