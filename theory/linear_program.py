"""Linear programs in phi: rows of constraints with names, solved by HiGHS.

    maximise  gain . x   subject to   rows x <= limits  (one block of rows per name),   equal x = limits,   x >= 0

In programs about a verifier x holds phi(w) of the nodes other than the root, in node order, phi(root) = 1 sits in the
limits; phi(w) = Pr(the accepted prefix passes through w), K drafts, g(t) = 1 - (1-t)^K.

Source of the solver: HiGHS dual simplex through scipy.optimize.linprog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from .feasibility import coverage
from .numbers import Array
from .prefix_tree import PrefixTree
from .solution import CertificateError

ATTEMPTS = (("highs-ds", 1e-10), ("highs-ds", 1e-7), ("highs-ipm", 1e-7))


@dataclass(frozen=True)
class Rows:
    """One named block of constraints, matrix x <= limits; the matrix is sparse [m, x]."""

    matrix: Any
    limits: Array


@dataclass(frozen=True)
class Optimum:
    """HiGHS's answer.

    Attributes:
        x: the variables.
        value: gain . x.
        multipliers: by how much the value rises per unit of each limit, at least 0; one array per block of rows.
        equal_multipliers: the same for the equalities, of either sign.
    """

    x: Array
    value: float
    multipliers: dict[str, Array]
    equal_multipliers: Array


def chain_rows(tree: PrefixTree, ratio: Array) -> Rows:
    """phi(wy) <= ratio(wy) phi(w); one row per node but the root."""
    nodes, parent = np.arange(1, tree.size), tree.parent[1:]
    slope = ratio[1:].astype(float)
    inner = parent > 0
    above = sparse.csr_array((slope[inner], (nodes[inner] - 1, parent[inner] - 1)), shape=(tree.size - 1,) * 2)
    return Rows(sparse.eye_array(tree.size - 1, format="csr") - above, np.where(inner, 0.0, slope))


def cap_rows(tree: PrefixTree, cap: Array) -> Rows:
    """phi(w) <= cap(w); one row per node but the root."""
    return Rows(sparse.eye_array(tree.size - 1, format="csr"), cap[1:].astype(float))


def flow_rows(tree: PrefixTree) -> Rows:
    """sum_y phi(wy) <= phi(w); one row per node, those without children read 0 <= phi(w)."""
    nodes, parent = np.arange(1, tree.size), tree.parent[1:]
    ones = np.ones(tree.size - 1)
    sums = sparse.csr_array((ones, (parent, nodes - 1)), shape=(tree.size, tree.size - 1))
    own = sparse.csr_array((ones, (nodes, nodes - 1)), shape=(tree.size, tree.size - 1))
    return Rows(sums - own, np.where(np.arange(tree.size) == 0, 1.0, 0.0))


def antichain_rows(tree: PrefixTree, antichains: Sequence[Sequence[int]], paths: int) -> Rows:
    """sum_{w in A} phi(w) <= g(Q(A)); one row per antichain."""
    row = np.repeat(np.arange(len(antichains)), [len(antichain) for antichain in antichains])
    nodes = np.array([node for antichain in antichains for node in antichain], dtype=np.int64)
    matrix = sparse.csr_array((np.ones(len(nodes)), (row, nodes - 1)), shape=(len(antichains), tree.size - 1))
    drafted = np.array([float(tree.draft_joint[list(antichain)].sum()) for antichain in antichains])
    return Rows(matrix, coverage(drafted, paths))


def tangent_rows(tree: PrefixTree, tangents: Array, paths: int) -> dict[str, Rows]:
    """phi(A) <= g(t) + g'(t) (Q(A) - t) for all antichains A at once, for each tangent point t.

    The worst antichain of a tangent is a dynamic program over the tree, written into the program as variables
    M_t(w), which follow phi in x, tangent by tangent:

        own    phi(w) - g'(t) Q(w) <= M_t(w)
        below  sum_y M_t(wy) <= M_t(w)
        top    sum of M_t over depth 1 <= g(t) - t g'(t)
    """
    size, count = tree.size - 1, len(tangents)
    slopes = paths * (1 - tangents) ** (paths - 1)
    nodes, parent = np.arange(1, tree.size), tree.parent[1:]
    inner = parent > 0
    ones = np.ones(int(inner.sum()))
    children = sparse.csr_array((ones, (parent[inner] - 1, nodes[inner] - 1)), shape=(size, size))
    first = sparse.csr_array((~inner).astype(float)[None, :])
    eye, each = sparse.eye_array(size, format="csr"), sparse.eye_array(count, format="csr")
    own = sparse.hstack([sparse.kron(np.ones((count, 1)), eye), -sparse.eye_array(size * count)], format="csr")
    return {
        "own": Rows(own, np.outer(slopes, tree.draft_joint[1:].astype(float)).ravel()),
        "below": _shifted(sparse.kron(each, children - eye, format="csr"), size, np.zeros(size * count)),
        "top": _shifted(sparse.kron(each, first, format="csr"), size, coverage(tangents, paths) - tangents * slopes),
    }


def widened(rows: Rows, extra: int) -> Rows:
    """The same rows with `extra` further variables, which do not enter them."""
    return Rows(
        sparse.hstack([rows.matrix, sparse.csr_array((rows.matrix.shape[0], extra))], format="csr"), rows.limits
    )


def _shifted(matrix: Any, before: int, limits: Array) -> Rows:
    return Rows(sparse.hstack([sparse.csr_array((matrix.shape[0], before)), matrix], format="csr"), limits)


def maximise(gain: Array, blocks: dict[str, Rows], equal: Rows | None = None) -> Optimum:
    """Solve the program with HiGHS, again with its own looser tolerances if it gives up at the tight ones.

    The answer is a proposal: certify it.

    Raises:
        CertificateError: with HiGHS's status, if no attempt found an optimum.
    """
    inequalities = sparse.vstack([rows.matrix for rows in blocks.values()], format="csr") if blocks else None
    for method, tolerance in ATTEMPTS:
        result = linprog(
            -gain,
            A_ub=inequalities,
            b_ub=np.concatenate([rows.limits for rows in blocks.values()]) if blocks else None,
            A_eq=None if equal is None else equal.matrix,
            b_eq=None if equal is None else equal.limits,
            bounds=(0, None),
            method=method,
            options={"primal_feasibility_tolerance": tolerance, "dual_feasibility_tolerance": tolerance},
        )
        if result.status == 0:
            break
    else:
        status = f"status {result.status}: {' '.join(str(result.message).split())}"
        raise CertificateError("HiGHS", status, "use the closed form or the certified solver, or a smaller tree")
    ends = np.cumsum([len(rows.limits) for rows in blocks.values()])
    multipliers = np.split(np.maximum(-result.ineqlin.marginals, 0.0), ends[:-1]) if blocks else []
    return Optimum(
        result.x, -result.fun, dict(zip(blocks, multipliers, strict=True)), -np.atleast_1d(result.eqlin.marginals)
    )


def with_root(x: Array) -> Array:
    """[n] phi from the variables of the program: the root's 1 in front."""
    return np.concatenate([[1.0], x])
