"""Linear programs in phi: rows of constraints with names, solved by HiGHS.

    maximise  gain . x   subject to   rows x <= limits  (one block of rows per name),   equal x = limits,   x >= 0

In programs about a verifier x holds phi(w) of the nodes other than the root, in node order, phi(root) = 1 sits in the
limits; phi(w) = Pr(the accepted prefix passes through w), K drafts, g(t) = 1 - (1-t)^K.

Source of the solver: HiGHS dual simplex through scipy.optimize.linprog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from .feasibility import coverage
from .numbers import Array
from .prefix_tree import PrefixTree
from .solution import CertificateError

Coefficients: TypeAlias = dict[int, Any]

TIGHT = 1e-9
MAX_DENOMINATOR = 10**6
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
    value: Any
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


# ---------------------------------------------------------------------- programs in exact numbers


@dataclass
class Program:
    """maximise gain . x  subject to  row . x <= limit (`limit`), row . x = limit (`equal`), x >= 0, number by number.

    A row is a dictionary column -> coefficient. Coefficients and limits may be fractions: then the vertex that HiGHS
    names is solved again in fractions, primal and dual.
    """

    gain: list[Any] = field(default_factory=list)
    inequalities: list[tuple[Coefficients, Any]] = field(default_factory=list)
    equalities: list[tuple[Coefficients, Any]] = field(default_factory=list)

    def columns(self, count: int, gain: Any = 0) -> range:
        """`count` further variables, each with this gain."""
        self.gain += [gain] * count
        return range(len(self.gain) - count, len(self.gain))

    def limit(self, row: Coefficients, limit: Any) -> int:
        """Add row . x <= limit; its number among the inequalities."""
        self.inequalities.append((row, limit))
        return len(self.inequalities) - 1

    def equal(self, row: Coefficients, limit: Any) -> int:
        """Add row . x = limit; its number among the equalities."""
        self.equalities.append((row, limit))
        return len(self.equalities) - 1

    def solve(self) -> Optimum:
        """HiGHS's answer in float64; multipliers "rows" of the inequalities.

        Raises:
            CertificateError: HiGHS found no optimum.
        """
        rows, equal = (self._block(part) for part in (self.inequalities, self.equalities))
        return maximise(
            np.array([float(gain) for gain in self.gain]), {"rows": rows}, equal if self.equalities else None
        )

    def _block(self, rows: list[tuple[Coefficients, Any]]) -> Rows:
        place = [i for i, (row, _) in enumerate(rows) for _ in row]
        column = [j for row, _ in rows for j in row]
        value = [float(entry) for row, _ in rows for entry in row.values()]
        matrix = sparse.csr_array((value, (place, column)), shape=(len(rows), len(self.gain)))
        return Rows(matrix, np.array([float(limit) for _, limit in rows]))

    def in_fractions(self, near: Optimum) -> Optimum | None:
        """The vertices of the primal and of the dual that a float answer stands for, in fractions.

        A vertex is the only solution of the rows that are tight at it. None if the tight rows contradict each other;
        what is returned still has to be checked.
        """
        tight = [
            (row, limit)
            for row, limit in self.inequalities
            if float(limit) - sum(float(entry) * near.x[j] for j, entry in row.items()) < TIGHT
        ]
        x = solved([*tight, *self.equalities], near.x)
        multipliers = np.concatenate([near.multipliers["rows"], near.equal_multipliers[: len(self.equalities)]])
        columns: list[Coefficients] = [{} for _ in self.gain]
        for i, (row, _) in enumerate([*self.inequalities, *self.equalities]):
            for j, entry in row.items():
                columns[j][i] = entry
        binding = [
            (column, gain)
            for column, gain in zip(columns, self.gain, strict=True)
            if abs(float(gain) - sum(float(entry) * multipliers[i] for i, entry in column.items())) < TIGHT
        ]
        y = solved(binding, multipliers)
        if x is None or y is None:
            return None
        value = sum((gain * entry for gain, entry in zip(self.gain, x, strict=True)), Fraction(0))
        count = len(self.inequalities)
        return Optimum(x, value, {"rows": y[:count]}, y[count:])


def solved(equations: Sequence[tuple[Coefficients, Any]], near: Array) -> Array | None:
    """The solution in fractions of the equations in which what is near 0 is 0; None if they contradict each other.

    Sparse elimination, short equations first; unknowns that the equations leave free stay near their floats.
    """
    zero = set(np.flatnonzero(np.abs(near) < TIGHT).tolist())
    pivots: dict[int, tuple[Coefficients, Any]] = {}
    for given, limit in sorted(equations, key=lambda equation: len(equation[0])):
        row = {j: Fraction(entry) for j, entry in given.items() if j not in zero and entry != 0}
        value = Fraction(limit)
        while (hit := next((j for j in row if j in pivots), None)) is not None:
            other, known = pivots[hit]
            scale = row[hit]
            for j, entry in other.items():
                row[j] = row.get(j, Fraction(0)) - scale * entry
                if row[j] == 0:
                    del row[j]
            value -= scale * known
        if row:
            pivot = max(row, key=lambda j: abs(row[j]))
            scale = row[pivot]
            pivots[pivot] = ({j: entry / scale for j, entry in row.items()}, value / scale)
        elif value != 0:
            return None
    solution = {
        j: Fraction(0) if j in zero else Fraction(float(near[j])).limit_denominator(MAX_DENOMINATOR)
        for j in range(len(near))
        if j not in pivots
    }
    for pivot, (row, value) in reversed(pivots.items()):
        solution[pivot] = value - sum(entry * solution[j] for j, entry in row.items() if j != pivot)
    return np.array([solution[j] for j in range(len(near))], dtype=object)
