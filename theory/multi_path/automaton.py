"""Bounds on the multi-path optima of iid and Markov models at draft lengths whose tree cannot be written down.

The full V^L tree is folded into an automaton: the state of a prefix w is (depth, what the next row depends on, the
ratio Q(w)/P(w), its smallest value along the path, and the depth where that was reached). Ratios are fractions, so that
only prefixes whose ratios are equal share a state. P, Q are the joints of
target and draft, p, q their rows; mass(s), reach(s) the draft's and the target's probability of state s; K drafts,
g(t) = 1 - (1-t)^K. Both sides of the duality of `certificates` are restricted to functions of the state, so both
remain true for the full tree, and they need not meet (K = 1 is exact: block verification depends on the ratio and
its smallest value only):

    from below   phi(w) = Q(w) f(s), selected density kappa/Q = d(s) at full drafts, m(s) = sum_y q(y|s) m(s y):
                 maximise sum of mass f  subject to  f <= m,  q(y|s) f(s y) <= p(y|s) f(s) on every edge
                 (block transport: f <= P/Q),  d selectable
    from above   C(w) = c(s) growing along every edge:
                 minimise E[max_k c(X_k)] + gain(root),  gain(s) = sum_y p(y|s) (1 - c(s y) + c(s) + gain(s y))+
                 (block transport: E[max_k c(X_k)] + sum over edges of their target mass times (1 - c(s y) + c(s))+)

Two LPs in HiGHS with tangents of g; the bounds reported are exact evaluations of their d and c. An edge with p = 0
ends in a state of its own, of ratio infinity: nothing is kept there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array

from ..duality import expected_maximum
from ..feasibility import coverage
from ..numbers import ROW_TOLERANCE, Array, as_floats
from ..solution import CertificateError, check_paths
from .certificates import PathObjective, check_objective, selectable, violated

Ratio: TypeAlias = Fraction | float

MAX_STATES = 200_000
LEAST_LOG_RATIO = -700.0
ROUNDS = 4
ENOUGH = 1e-4
FIRST_COVERAGES = (0.01, 0.05, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
ADVICE = "lower the draft length, or solve the tree itself (multi_path)"


@dataclass(frozen=True)
class Interval:
    """value <= optimum <= bound, both certified; states: size of the automaton."""

    value: float
    bound: float
    states: int

    @property
    def gap(self) -> float:
        """bound - value, with rounding below 0 counted as 0."""
        return max(0.0, self.bound - self.value)


@dataclass(frozen=True, eq=False)
class Automaton:
    """States numbered level by level, state 0 the root; edges sorted by level.

    Attributes:
        depth, mass, reach, ratio [S]: depth, probability under draft and target, Q/P of each state.
        source, goal, p, q [E]: edges with q > 0.
        levels: slices of states; edge_levels: slices of the edges that leave each level.
    """

    depth: Array
    mass: Array
    reach: Array
    ratio: Array
    source: Array
    goal: Array
    p: Array
    q: Array
    levels: list[slice]
    edge_levels: list[slice]


def iid_bounds(
    target: Sequence[float], draft: Sequence[float], length: int, paths: int, objective: PathObjective = "lossless"
) -> Interval:
    """Bounds for tokens drawn from one target and one draft row of V probabilities, L = length, K = paths.

    Raises:
        ValueError: rows that are not laws, or arguments out of range.
        CertificateError: HiGHS failed.
    """
    return _bounds(as_floats([target]), as_floats([draft]), length, paths, objective, 0)


def markov_bounds(
    target: Sequence[Sequence[float]],
    draft: Sequence[Sequence[float]],
    length: int,
    paths: int,
    start: int = 0,
    objective: PathObjective = "lossless",
) -> Interval:
    """Bounds for order-1 chains: row y of the V x V matrices follows token y; `start` precedes the draft."""
    rows = [as_floats(matrix) for matrix in (target, draft)]
    if any(matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] for matrix in rows):
        raise ValueError(f"target and draft have shapes {rows[0].shape} and {rows[1].shape}; want V x V matrices")
    if not 0 <= start < len(rows[0]):
        raise ValueError(f"start is {start}; want a token in 0..{len(rows[0]) - 1}")
    return _bounds(rows[0], rows[1], length, paths, objective, start)


def _bounds(target: Array, draft: Array, length: int, paths: int, objective: PathObjective, start: int) -> Interval:
    check_paths(paths)
    check_objective(objective)
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or length < 1:
        raise ValueError(f"length is {length!r}; want an integer of at least 1")
    for name, rows in (("target", target), ("draft", draft)):
        if rows.shape != target.shape:
            raise ValueError(f"{name} has shape {rows.shape}; target has {target.shape}")
        if not (rows >= 0).all() or not (abs(rows.sum(axis=1) - 1) <= ROW_TOLERANCE).all():
            raise ValueError(f"a row of {name} is not a law: {rows.tolist()}")
    automaton = fold(target, draft, length, start)
    if paths == 1:
        value = lower_bound(automaton, np.ones(len(automaton.mass[automaton.levels[-1]])), 1, objective)
        return Interval(value, value, len(automaton.depth))
    points = -np.expm1(np.log1p(-np.array(FIRST_COVERAGES[:-1])) / paths)
    points = np.append(points, 1.0)
    value = -math.inf
    for _ in range(ROUNDS):
        density = _selection_lp(automaton, paths, objective, points)
        value, before = max(value, lower_bound(automaton, density, paths, objective)), value
        drafted = automaton.mass[automaton.levels[-1]]
        fresh = violated(density * drafted, drafted, points, paths, share=0.1, least=1e-10)
        if value <= before + ENOUGH or len(fresh) == 0:
            break
        points = np.union1d(points, fresh)
    bound = upper_bound(automaton, _potential_lp(automaton, paths, objective, points), paths, objective)
    return Interval(value, bound, len(automaton.depth))


def fold(target: Array, draft: Array, length: int, start: int = 0) -> Automaton:
    """The automaton of rows target, draft [contexts, V] (one context: iid; V contexts: the last token)."""
    contexts = len(target)
    steps = [[_step(p, q) for p, q in zip(*rows, strict=True)] for rows in zip(target, draft, strict=True)]
    level: dict[tuple[int, Ratio, Ratio, int], int] = {(start, Fraction(1), Fraction(1), 0): 0}
    mass, reach, log_ratio, depth = [1.0], [1.0], [0.0], [0]
    edges: list[tuple[int, int, float, float]] = []
    levels, edge_levels = [slice(0, 1)], []
    for deep in range(1, length + 1):
        following: dict[tuple[int, Ratio, Ratio, int], int] = {}
        first, first_edge = len(mass), len(edges)
        for (context, ratio, least, where), state in level.items():
            for y in np.flatnonzero(draft[context] > 0).tolist():
                total = ratio * steps[context][y]
                key = (y if contexts > 1 else 0, total, min(total, least), deep if total < least else where)
                goal = following.setdefault(key, first + len(following))
                if goal == len(mass):
                    mass.append(0.0)
                    reach.append(0.0)
                    log_ratio.append(_log(total))
                    depth.append(deep)
                p, q = float(target[context, y]), float(draft[context, y])
                mass[goal] += mass[state] * q
                reach[goal] += reach[state] * p
                edges.append((state, goal, p, q))
        if len(mass) > MAX_STATES:
            raise ValueError(f"length {length} needs more than {MAX_STATES} states; lower it")
        level = following
        levels.append(slice(first, len(mass)))
        edge_levels.append(slice(first_edge, len(edges)))
    with np.errstate(over="ignore"):
        ratios = np.exp(np.maximum(log_ratio, LEAST_LOG_RATIO))
    source, goals, p_edge, q_edge = (np.array(column) for column in zip(*edges, strict=True))
    return Automaton(
        depth=np.array(depth),
        mass=np.array(mass),
        reach=np.array(reach),
        ratio=ratios,
        source=source,
        goal=goals,
        p=p_edge,
        q=q_edge,
        levels=levels,
        edge_levels=edge_levels,
    )


def _step(p: float, q: float) -> Ratio:
    """q / p of one token, exactly: floats are fractions; infinite where p = 0."""
    return Fraction(float(q)) / Fraction(float(p)) if p > 0 else math.inf


def _log(ratio: Ratio) -> float:
    if isinstance(ratio, float) or ratio == 0:
        return math.inf if ratio else -math.inf
    return math.log(ratio.numerator) - math.log(ratio.denominator)


# ---------------------------------------------------------------------- exact evaluations


def lower_bound(automaton: Automaton, density: Array, paths: int, objective: PathObjective) -> float:
    """Expected acceptance length of a feasible phi(w) = Q(w) f(s), for any density [full-draft states] of selection."""
    leaves = automaton.levels[-1]
    drafted = automaton.mass[leaves]
    kappa = selectable(np.maximum(density, 0.0) * drafted, drafted, paths)
    held = np.zeros(len(automaton.mass))
    np.divide(kappa, drafted, out=held[leaves], where=drafted > 0)
    for edges in reversed(automaton.edge_levels):
        np.add.at(held, automaton.source[edges], automaton.q[edges] * held[automaton.goal[edges]])
    if objective == "block-transport":
        kept = np.minimum(held, 1.0 / automaton.ratio)
    else:
        kept = held.copy()
        kept[0] = 1.0
        for edges in automaton.edge_levels:
            with np.errstate(over="ignore"):
                passed = kept[automaton.source[edges]] * automaton.p[edges] / automaton.q[edges]
            np.minimum.at(kept, automaton.goal[edges], passed)
    return float(automaton.mass[1:] @ kept[1:])


def upper_bound(automaton: Automaton, potential: Array, paths: int, objective: PathObjective) -> float:
    """Dual value of any potential c [S], made monotone first."""
    c = np.maximum(potential, 0.0)
    c[0] = 0.0
    for edges in automaton.edge_levels:
        np.maximum.at(c, automaton.goal[edges], c[automaton.source[edges]])
    gain = np.zeros(len(c))
    growth = c[automaton.goal] - c[automaton.source]
    for edges in reversed(automaton.edge_levels):
        further = gain[automaton.goal[edges]] if objective == "lossless" else 0.0
        worth = np.maximum(1.0 - growth[edges] + further, 0.0)
        if objective == "lossless":
            np.add.at(gain, automaton.source[edges], automaton.p[edges] * worth)
        else:
            gain[0] += float((automaton.reach[automaton.source[edges]] * automaton.p[edges]) @ worth)
    leaves = automaton.levels[-1]
    return expected_maximum(c[leaves], automaton.mass[leaves], paths) + float(gain[0])


# ---------------------------------------------------------------------- the two LPs


def _selection_lp(automaton: Automaton, paths: int, objective: PathObjective, points: Array) -> Array:
    """[full-draft states] the density of the best selection; variables f [S], m [S], excess [T, leaves]."""
    states, count, leaves = len(automaton.mass), len(points), automaton.levels[-1]
    width, drafted = leaves.stop - leaves.start, automaton.mass[leaves]
    slope = paths * (1.0 - points) ** (paths - 1)
    size = 2 * states + count * width
    every, pair = np.arange(states), np.arange(count * width)
    rows = _Rows(size)
    rows.add(0.0, states, (every, every, 1.0), (every, states + every, -1.0))
    if objective == "lossless":
        edge = np.arange(len(automaton.source))
        rows.add(0.0, len(edge), (edge, automaton.goal, automaton.q), (edge, automaton.source, -automaton.p))
    tops = np.repeat(slope, width)
    rows.add(tops, len(pair), (pair, states + leaves.start + pair % width, 1.0), (pair, 2 * states + pair, -1.0))
    height = coverage(points, paths) - points * slope
    rows.add(height, count, (pair // width, 2 * states + pair, np.tile(drafted, count)))
    inner = automaton.levels[-1].start
    equal = _Rows(size)
    outward = (automaton.source, states + automaton.goal, automaton.q)
    equal.add(0.0, inner, (every[:inner], states + every[:inner], -1.0), outward)
    upper = np.full(size, np.inf)
    upper[:states] = 1.0 / automaton.ratio if objective == "block-transport" else np.inf
    upper[0] = 1.0
    upper[states : 2 * states] = paths
    cost = np.zeros(size)
    cost[1:states] = -automaton.mass[1:]
    answer = _solve(cost, rows, equal, upper)
    return answer[states + leaves.start : states + leaves.stop]


def _potential_lp(automaton: Automaton, paths: int, objective: PathObjective, points: Array) -> Array:
    """[S] the best potential c; variables c [S], worth [E] >= 0, mu [T], z [T, leaves]."""
    states, edges, count = len(automaton.mass), len(automaton.source), len(points)
    leaves = automaton.levels[-1]
    width, drafted = leaves.stop - leaves.start, automaton.mass[leaves]
    slope = paths * (1.0 - points) ** (paths - 1)
    height = coverage(points, paths) - points * slope
    edge, pair = np.arange(edges), np.arange(count * width)
    multiplier, share = states + edges, states + edges + count
    rows = _Rows(share + count * width)
    # worth(edge) >= 1 - c(goal) + c(source) + sum over the edges that leave the goal of p worth
    terms = [(edge, states + edge, -1.0), (edge, automaton.goal, -1.0), (edge, automaton.source, 1.0)]
    if objective == "lossless":
        follows = [np.flatnonzero(automaton.source == goal) for goal in range(states)]
        first = np.concatenate([np.full(len(follows[goal]), i) for i, goal in enumerate(automaton.goal)])
        then = np.concatenate([follows[goal] for goal in automaton.goal])
        terms.append((first, states + then, automaton.p[then]))
        weight = np.where(automaton.source == 0, automaton.p, 0.0)
    else:
        weight = automaton.reach[automaton.source] * automaton.p
    rows.add(-1.0, edges, *terms)
    rows.add(0.0, edges, (edge, automaton.source, 1.0), (edge, automaton.goal, -1.0))
    rows.add(0.0, len(pair), (pair, share + pair, 1.0), (pair, multiplier + pair // width, -1.0))
    leaf = np.arange(width)
    rows.add(0.0, width, (leaf, leaves.start + leaf, 1.0), (pair % width, share + pair, -1.0))
    cost = np.concatenate([np.zeros(states), weight, height, np.outer(slope, drafted).ravel()])
    upper = np.full(len(cost), np.inf)
    upper[0] = 0.0
    return _solve(cost, rows, None, upper)[:states]


class _Rows:
    """Rows of a sparse system, one block after the other."""

    def __init__(self, columns: int) -> None:
        self.columns, self.count = columns, 0
        self.row: list[Array] = []
        self.column: list[Array] = []
        self.entry: list[Array] = []
        self.side: list[Array] = []

    def add(self, side: float | Array, count: int, *terms: tuple[Array, Array, float | Array]) -> None:
        """`count` rows: sum of the terms (row, column, entry) <= side."""
        for row, column, entry in terms:
            self.row.append(row + self.count)
            self.column.append(column)
            self.entry.append(np.broadcast_to(entry, row.shape))
        self.side.append(np.broadcast_to(side, (count,)))
        self.count += count

    def matrix(self) -> csr_array:
        row, column, entry = (np.concatenate(part) for part in (self.row, self.column, self.entry))
        return coo_array((entry, (row, column)), shape=(self.count, self.columns)).tocsr()


def _solve(cost: Array, rows: _Rows, equal: _Rows | None, upper: Array) -> Array:
    answer = linprog(
        cost,
        rows.matrix(),
        np.concatenate(rows.side),
        None if equal is None else equal.matrix(),
        None if equal is None else np.concatenate(equal.side),
        bounds=np.c_[np.zeros(len(cost)), upper],
        method="highs-ipm",
    )
    if answer.status != 0:
        raise CertificateError("HiGHS on the automaton", f"status {answer.status}: {answer.message}", ADVICE)
    return answer.x
