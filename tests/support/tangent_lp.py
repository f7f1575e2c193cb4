"""The selected-path optimum by cutting planes in HiGHS: the second route, sharing no code with `interior_point`.

    maximise    sum over nodes of phi(w)
    subject to  phi(wy) <= p(y|w) phi(w), phi(root) = 1       (block transport: phi(w) <= P(w))
                phi(w) <= kappa(w) = sum of kappa over the leaves below w
                sum over leaves of (kappa - g'(t) Q)+ <= g(t) - t g'(t)     for every tangent point t,   kappa <= K Q

Tangents of g(t) = 1 - (1-t)^K are added at the most violated prefix sets of the leaves sorted by kappa/Q. Bounds are
evaluated exactly (`certificates`): of kappa from below, and from above of C = sums along the paths of the multipliers
of phi <= kappa. For trees of at most some hundred nodes; larger ones belong to `solver`.
"""

from __future__ import annotations

import time

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array, hstack, vstack

from specbound.theory.feasibility import coverage
from specbound.theory.multi_path.certificates import (
    PathObjective,
    check_objective,
    selectable,
    verify_certificate,
    violated,
)
from specbound.theory.numbers import Array
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError, Solution, certify, check_paths

SOLVER = "HiGHS on tangents"
MAX_NODES = 5000
FIRST_POINTS = (0.01, 0.05, 0.15, 0.4, 1.0)


def tangent_optimum(
    tree: PrefixTree, paths: int, objective: PathObjective, tol: float = 1e-7, max_rounds: int = 60
) -> Solution:
    """The optimum of K paths, certified within tol.

    Raises:
        ValueError: arguments out of range, or more than MAX_NODES nodes.
        CertificateError: HiGHS failed (with its status), or max_rounds did not close the gap.
    """
    check_paths(paths)
    check_objective(objective)
    if not 0 < tol < np.inf:
        raise ValueError(f"tol is {tol}; want a positive number, e.g. 1e-7")
    if tree.size > MAX_NODES:
        raise ValueError(f"the tree has {tree.size} nodes; this route takes at most {MAX_NODES}, use multi_path")
    begin = time.perf_counter()
    tree = tree.as_float() if tree.exact else tree
    draft = tree.draft_joint[tree.leaves]
    points, value, bound = np.array(FIRST_POINTS), -np.inf, np.inf
    phi, best = np.zeros(tree.size), draft
    for _ in range(max_rounds):
        kappa, potential = _solve_lp(tree, paths, objective, points)
        found = verify_certificate(tree, paths, np.maximum(kappa, 0.0), potential, objective)
        bound = min(bound, found.bound)
        if found.value > value:
            value, phi = found.value, found.phi
            best = selectable(np.maximum(kappa, 0.0), draft, paths)
        if bound - value <= tol:
            break
        points = np.union1d(points, violated(kappa, draft, points, paths))
    return certify(
        tree,
        phi,
        bound,
        objective=objective,
        paths=paths,
        solver=SOLVER,
        seconds=time.perf_counter() - begin,
        tolerance=tol,
        kappa=best,
    )


def _solve_lp(tree: PrefixTree, paths: int, objective: PathObjective, points: Array) -> tuple[Array, Array]:
    """kappa [m] and C [n] of the LP with these tangents; variables phi [n-1], kappa [m], then excess [T, m]."""
    size, leaves = tree.size - 1, len(tree.bonus)
    draft = tree.draft_joint[tree.leaves]
    slope = paths * (1.0 - points) ** (paths - 1)
    height = coverage(points, paths) - points * slope
    nodes = np.arange(size)
    if objective == "lossless":
        deep = np.flatnonzero(tree.parent[1:] > 0)
        chain = coo_array((-tree.target[1:][deep], (deep, tree.parent[1:][deep] - 1)), shape=(size, size)) + _unit(size)
        limit = np.where(tree.parent[1:] == 0, tree.target[1:], 0.0)
    else:
        chain, limit = _unit(size), tree.target_joint[1:]
    below, above = [], []
    ancestors = np.arange(tree.leaves.start, tree.leaves.stop)
    for _ in range(tree.length):
        below.append(np.arange(leaves))
        above.append(ancestors - 1)
        ancestors = tree.parent[ancestors]
    rows, columns = np.concatenate(above), np.concatenate(below)
    mass = coo_array((-np.ones(len(rows)), (rows, columns)), shape=(size, leaves))
    blocks = [hstack([chain, csr_array((size, leaves * (1 + len(points))))])]
    blocks.append(hstack([_unit(size), mass, csr_array((size, leaves * len(points)))]))
    each = _unit(leaves)
    cuts = hstack([vstack([each] * len(points)), -_unit(leaves * len(points))])
    blocks.append(hstack([csr_array((leaves * len(points), size)), cuts]))
    owner, pairs = np.repeat(np.arange(len(points)), leaves), np.arange(leaves * len(points))
    totals = coo_array((np.ones(len(pairs)), (owner, pairs)))
    blocks.append(hstack([csr_array((len(points), size + leaves)), totals]))
    sides = np.concatenate([limit, np.zeros(size), np.outer(slope, draft).ravel(), height])
    cost = np.zeros(size + leaves * (1 + len(points)))
    cost[nodes] = -1.0
    upper = np.concatenate([np.full(size, np.inf), paths * draft, np.full(leaves * len(points), np.inf)])
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    bounds = np.c_[np.zeros(len(cost)), upper]
    answer = linprog(cost, vstack(blocks).tocsr(), sides, bounds=bounds, method="highs", options=options)
    if answer.status != 0:
        raise CertificateError(SOLVER, f"status {answer.status}: {answer.message}", "use multi_path, or a larger tol")
    potential = np.zeros(tree.size)
    potential[1:] = np.maximum(-answer.ineqlin.marginals[size : 2 * size], 0.0)
    for level in tree.levels[1:]:
        potential[level] += potential[tree.parent[level]]
    return answer.x[size : size + leaves], potential


def _unit(size: int) -> csr_array:
    return csr_array((np.ones(size), (np.arange(size), np.arange(size))), shape=(size, size))
