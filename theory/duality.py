"""The one duality of theory: what the law of one selected draft attains, and what no verifier exceeds.

Letters: phi(w) = Pr(the accepted prefix passes through w), p the target conditional, P and Q joint target and draft
probabilities, g(t) = 1 - (1-t)^K, kappa(w) = Pr(the selected draft passes through w), price(w) >= 0, potential
C(w) = the prices along the path to w.

    from below   any kappa that K drafts allow gives    sum_w phi(w)  of `kept_mass`
    from above   any prices give                        E[max_k C(X_k)]  +  what the target gains against them

Put multipliers lambda_A >= 0 on the antichain constraints phi(A) <= g(Q(A)) and let price(w) be their sum over the
A that hold w. Then, by weak duality,

    optimum <= sum_A lambda_A g(Q(A)) + max over the remaining constraints of sum_w (1 - price(w)) phi(w),

and the maximum on the right is a dynamic program over the tree, one for each kind of remaining constraints. An upper
bound from here needs no trust in the solver that suggested the prices, and is exact on exact trees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .feasibility import coverage
from .numbers import Array
from .prefix_tree import PrefixTree


def kept_mass(tree: PrefixTree, drafted: Array, objective: str) -> Array:
    """[n] phi of single-path verification against one draft of law `drafted`; phi(root) = 1.

        lossless          phi(wy) = min(kappa(wy), p(y|w) phi(w))       block verification [BV, arXiv:2403.10444]
        block-transport   phi(w)  = min(kappa(w), P(w))                 greedy block verification [BV, Appendix]

    Args:
        drafted [n]: kappa(w), the mass of the draft's law below each node (`feasibility.selected_mass`), or Q itself.
    """
    phi = drafted.copy()
    phi[0] = tree.target[0]
    if objective == "block-transport":
        return np.minimum(phi, tree.target_joint)
    for level in tree.levels[1:]:
        phi[level] = np.minimum(phi[level], tree.target[level] * phi[tree.parent[level]])
    return phi


def path_sums(tree: PrefixTree, price: Array) -> Array:
    """[n] the potential C of prices: their sum along the path, the root's left out."""
    potential = price.copy()
    potential[0] = price[0] * 0
    for level in tree.levels[1:]:
        potential[level] += potential[tree.parent[level]]
    return potential


def increments(tree: PrefixTree, potential: Array) -> Array:
    """[n] the prices whose path sums are the potential."""
    return np.concatenate([potential[:1] * 0, potential[1:] - potential[tree.parent[1:]]])


def chain_bound(tree: PrefixTree, price: Array, ratio: Array | None = None) -> Any:
    """max sum_w (1 - price(w)) phi(w)  subject to  phi(root) = 1, 0 <= phi(wy) <= ratio(wy) phi(w).

    An optimal stopping problem: worth(w) = 1 - price(w) + sum_y ratio(wy) max(0, worth(wy)).

    Args:
        price [n]: at least 0; the root's is ignored.
        ratio [n]: at least 0; the target conditionals by default.
    """
    ratio = tree.target if ratio is None else ratio
    worth = 1 - price
    worth[0] = price[0] * 0
    for level in reversed(tree.levels[1:]):
        np.add.at(worth, tree.parent[level], ratio[level] * np.maximum(worth[level], 0))
    return worth[0]


def transport_bound(tree: PrefixTree, price: Array) -> Any:
    """max sum_w (1 - price(w)) phi(w)  subject to  phi(root) = 1, phi <= P, phi(w) >= sum_y phi(wy).

    Such a phi cuts a target path Z ~ P at a depth of one's choice, so the maximum is the mean over Z of
    max_d sum_{i<=d} (1 - price(Z_1..Z_i)).

    Args:
        price [n]: at least 0; the root's is ignored.
    """
    total = 1 - price
    total[0] = price[0] * 0
    best = total.copy()
    for level in tree.levels[1:]:
        total[level] += total[tree.parent[level]]
        best[level] = np.maximum(best[tree.parent[level]], total[level])
    ends = childless(tree)
    return (tree.target_joint[ends] * best[ends]).sum()


def childless(tree: PrefixTree) -> Array:
    """Nodes without children: the leaves, and prefixes no draft reaches where the tree ends early."""
    has_children = np.zeros(tree.size, dtype=bool)
    has_children[tree.parent[1:]] = True
    return np.flatnonzero(~has_children)


def draft_cost(tree: PrefixTree, price: Array, paths: int) -> Any:
    """E max_k C(X_k), C(w) = the prices along the path to w, X_1..X_K independent drafts.

    The cheapest way to charge these prices through antichains: the prefixes where C first reaches a level s form an
    antichain A_s, and the integral of g(Q(A_s)) over s >= 0 is this mean. One sort of the leaves.
    """
    return expected_maximum(path_sums(tree, price)[tree.leaves], tree.draft_joint[tree.leaves], paths)


def expected_maximum(toll: Array, draft: Array, paths: int) -> Any:
    """E max_k C(X_k) = sum_j g(Q(the j leaves of highest C)) (C_(j) - C_(j+1)), C_(j) falling and 0 at the end."""
    order = np.argsort(-toll, kind="stable")
    steps = toll[order] - np.append(toll[order][1:], toll[:1] * 0)
    return (coverage(np.cumsum(draft[order]), paths) * steps).sum()


def upper_bound(tree: PrefixTree, paths: int, objective: str, price: Array) -> Any:
    """Upper bound on the optimum of "lossless" or "block-transport" from any prices [n] >= 0; one pass, one sort."""
    rest = transport_bound if objective == "block-transport" else chain_bound
    return draft_cost(tree, price, paths) + rest(tree, price)
