"""Block optimal transport: how much of a whole target block K drafts can share with it.

    maximise    E[ max_k common prefix length(X_k, Z) ]      over couplings of
    X_1..X_K    independent draft blocks, law Q on blocks of length L,   and   Z   a target block, law P

In phi(w) = Pr(the shared prefix passes through w):

    maximise    sum_w phi(w)
    subject to  phi(w) <= P(w),   phi(w) >= sum_y phi(wy),   phi(A) <= g(Q(A)) for antichains A,  g(t) = 1 - (1-t)^K

For one draft this is transport on a tree metric (L - common prefix is half the tree distance), and

    optimum     phi(w) = min(P(w), Q(w)),  the sum over depths of 1 - total variation of the two laws of prefixes
    dual        price(w) = 1 where Q(w) < P(w), else 0;  potentials: an end of a path is worth the number of its
                prefixes with price 1 (for drafts) or with price 0 (for targets)

A stateless lossless verifier does not reach it in general: greedy block verification does so by changing the target
laws of later positions.

Sources: optimal transport on trees is folklore; greedy block verification, arXiv:2403.10444, Appendix; K drafts:
Hall's theorem (`feasibility`). The exact transport solver is `ot.emd` of POT.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter

import numpy as np

from . import duality
from .numbers import Array
from .prefix_tree import PrefixTree
from .solution import CertificateError, Solution, certify, check_paths

MAX_PAIRS = 4_000_000


def acceptance(tree: PrefixTree, drafted: Array | None = None) -> Array:
    """[n] min(P(w), Q(w)); `drafted` [n] replaces Q by the joint law of one selected path."""
    return duality.kept_mass(tree, tree.draft_joint if drafted is None else drafted, "block-transport")


def optimum(tree: PrefixTree) -> Solution:
    """Block transport of one draft in closed form with its dual; the gap is exactly 0 for fractions.

    Raises:
        CertificateError: the certificate fails (it does not, up to rounding).
    """
    start = time.perf_counter()
    phi = acceptance(tree)
    price = np.where(tree.draft_joint < tree.target_joint, phi * 0 + 1, phi * 0)
    bound = duality.upper_bound(tree, 1, "block-transport", price)
    return certify(
        tree,
        phi,
        bound,
        objective="block-transport",
        solver="closed form",
        seconds=time.perf_counter() - start,
        kappa=tree.draft_joint[tree.leaves],
        potential=duality.path_sums(tree, price),
    )


# ---------------------------------------------------------------------- as a transport problem


def to_transport(tree: PrefixTree, paths: int = 1) -> tuple[Array, Array, Array]:
    """(a, b, M) for POT: `ot.emd(a, b, M)`, `ot.sinkhorn(a, b, M, ...)` and the rest take them as they are.

    Args:
        paths: K; a source is an unordered K-tuple of drafts (a multiset of leaves), see `sources`.
    Returns:
        a [N]: law of the sources; b [N']: law of the target's ends, P of the nodes without children;
        M [N, N']: cost L - max_k common prefix length, so that the optimum is L - sum(plan * M).
    Raises:
        ValueError: the cost matrix would have more than 4e6 entries.
    """
    drafts, weights = sources(tree, paths)
    ends = duality.childless(tree)
    shared = common_prefix(tree, np.arange(tree.size)[tree.leaves], ends)
    cost = tree.length - shared[drafts].max(axis=1)
    return weights, tree.target_joint[ends].astype(float), cost.astype(float)


def sources(tree: PrefixTree, paths: int) -> tuple[Array, Array]:
    """Unordered K-tuples of drafts: leaf numbers [N, K] (0 is the first node of depth L), and their law [N].

        Pr(multiset) = K! / (product of multiplicities!) * product of Q(leaf)

    Sets with probability 0 (or below 1e-323) are left out.
    """
    check_paths(paths)
    law = tree.draft_joint[tree.leaves].astype(float)
    drafted = np.flatnonzero(law > 0).tolist()
    count, ends = math.comb(len(drafted) + paths - 1, paths), len(duality.childless(tree))
    if count * ends > MAX_PAIRS:
        raise ValueError(
            f"{count} sets of drafts times {ends} target blocks exceed {MAX_PAIRS:.0e} pairs; lower paths, vocab or "
            "length, or use the certified solver"
        )
    multisets = list(itertools.combinations_with_replacement(drafted, paths))
    orders = [
        math.factorial(paths) / math.prod(math.factorial(count) for count in Counter(multiset).values())
        for multiset in multisets
    ]
    chosen = np.array(multisets, dtype=np.int64)
    weights = np.array(orders) * law[chosen].prod(axis=1)
    return chosen[weights > 0], weights[weights > 0]


def common_prefix(tree: PrefixTree, left: Array, right: Array) -> Array:
    """[len(left), len(right)] int64: depth of the deepest common ancestor of two nodes."""
    rows, columns = _ancestors(tree, left), _ancestors(tree, right)
    same = (rows[:, None, :] == columns[None, :, :]) & (rows[:, None, :] > 0)
    return same.sum(axis=-1)


def pot_optimum(tree: PrefixTree, paths: int = 1) -> Solution:
    """Block transport by POT's network simplex on (a, b, M); certified by its plan and its potentials.

    Raises:
        CertificateError: POT stopped without an optimum, or the certificate fails.
        ValueError: the problem is too large to enumerate.
    """
    import ot

    start = time.perf_counter()
    a, b, cost = to_transport(tree, paths)
    with np.errstate(all="ignore"):
        plan, log = ot.emd(a / a.sum(), b / b.sum(), cost, numItermax=10_000_000, log=True)
    if log["warning"] is not None:
        raise CertificateError("POT emd", str(log["warning"]), "use a smaller tree, or `antichain.optimum`")
    return certified_plan(tree, paths, (a, b, cost), plan, log["u"], "POT emd", start)


def certified_plan(
    tree: PrefixTree,
    paths: int,
    problem: tuple[Array, Array, Array],
    plan: Array,
    potential: Array,
    solver: str,
    start: float,
) -> Solution:
    """phi(w) of the plan: pairs whose shared prefix passes through w; bound: the c-transform of the potential."""
    a, b, cost = problem
    ends = duality.childless(tree)
    phi = np.zeros(tree.size)
    line = _ancestors(tree, ends)
    shared = tree.length - cost
    for depth in range(1, tree.length + 1):
        np.add.at(phi, line[:, depth - 1], (plan * (shared >= depth)).sum(axis=0))
    phi[0] = 1.0
    other = (cost - potential[:, None]).min(axis=0)
    bound = tree.length - (potential @ a + other @ b)
    seconds = time.perf_counter() - start
    return certify(tree, phi, bound, objective="block-transport", paths=paths, solver=solver, seconds=seconds)


def _ancestors(tree: PrefixTree, nodes: Array) -> Array:
    """[len(nodes), L] the ancestors at depths 1..L, the node itself among them; 0 below the node's depth."""
    line = np.zeros((len(nodes), tree.length), dtype=np.int64)
    at = np.asarray(nodes).copy()
    for depth in range(tree.length, 0, -1):
        here = tree.depth[at] == depth
        line[here, depth - 1] = at[here]
        at = np.where(here, tree.parent[at], at)
    return line
