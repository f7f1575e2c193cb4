"""The price of losing: the largest acceptance length of ANY verifier whose law may deviate from the target's by eps.

A verifier keeps a prefix W of a drafted path, emits one token after it, and the stream goes on from the target. Let
phi(w) = Pr(W passes through w), R(w) = Pr(the stream passes through w), kappa(w) = Pr(one selected draft passes
through w); p(y|w), P target conditional and joint, Q draft joint, K drafts, g(t) = 1 - (1-t)^K.

    maximise    sum_w phi(w)                                         over nodes w other than the root
    subject to  e(wy) = R(wy) - phi(wy) - p(y|w) (R(w) - phi(w)) >= 0        Pr(w is kept, then y is emitted)
                sum_y R(wy) = R(w),   phi(root) = R(root) = 1
                phi(w) <= kappa(w)    (one draft: kappa = Q),   kappa(S) <= g(Q(S)) for every set S of full drafts
                the deviation of R from P is at most eps

Every stateless verifier of this kind gives such a point (W lies on some draft: select it), and every point is a
verifier: select a draft by kappa, couple W with it (Hall: phi <= kappa), emit y after w with probability
e(wy) / Pr(W = w). The deviations, all linear:

    block       1/2 sum_u |R(u) - P(u)| over drafted blocks u: total variation of the law of one call. The bonus token
                adds nothing: after a full block the best is to draw it from the target
    token       1/2 sum_y |R(wy) - p(y|w) R(w)| <= eps R(w) at every prefix w: total variation of every next token
    first       the same for the first emitted token only

and one that is convex, sum_u R(u) log(R(u)/P(u)) <= nats (`divergence_optimum`). eps = 0 gives the lossless optimum.

Certificate. All variables lie in [0, 1]. So with the program written as  max c x,  A x <= b (= for the flow rows),
any multipliers y (at least 0 on inequalities) prove

    optimum <= y b + sum_j max(0, c_j - (A' y)_j),

whose second term is 0 at a solution of the dual LP  min y b  subject to  A' y >= c. On rational trees the vertex that
HiGHS names is solved again in fractions, primal and dual, and the two values are equal or nothing is called exact.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import sparse

from . import linear_program as lp
from .duality import childless
from .feasibility import coverage, quotient
from .prefix_tree import Array, PrefixTree
from .solution import CertificateError, check_paths

Deviation = Literal["block", "token", "first"]
Row = dict[int, Any]
SOLVER = "HiGHS, deviation rows"
MAX_EXACT_NODES = 100
MAX_ROUNDS = 500
TIGHT = 1e-9
SLOPE = 1e-6
FEASIBLE = 1e-8


@dataclass(frozen=True, eq=False)
class FrontierPoint:
    """The best acceptance length at one deviation, certified: value <= optimum <= bound.

    Attributes:
        value: expected drafted tokens kept per call, in [0, L].
        bound: no verifier within the deviation exceeds it; gap = bound - value.
        allowed: the deviation allowed (eps, or nats).
        phi, stream [n]: Pr(the accepted prefix, the emitted stream passes through the node); 1 at the root.
        kappa [leaves]: law of the selected draft.
        price: by how much the optimum rises per unit of deviation allowed, to the right of `allowed` or to its left
            (the multiplier of the budget); None where the budget is not one row.
        exact, exact_price: fractions, if primal and dual were solved in fractions and agree exactly.
        solver, seconds: how it was found.
    """

    value: float
    bound: float
    gap: float
    allowed: Any
    phi: Array
    stream: Array
    kappa: Array
    price: float | None
    exact: Fraction | None
    exact_price: Fraction | None
    solver: str
    seconds: float


def optimum(
    tree: PrefixTree, allowed: Any, paths: int = 1, deviation: Deviation = "block", tolerance: float = 1e-6
) -> FrontierPoint:
    """The largest acceptance length of a verifier of K independent drafts whose law deviates by at most `allowed`.

    Args:
        allowed: eps in [0, 1], a number; a `Fraction` on an exact tree of up to 100 nodes gives an exact answer.
        paths: K.
        deviation: "block", "token" or "first", see the module.
        tolerance: largest gap allowed.

    Raises:
        ValueError: an argument is out of range.
        CertificateError: HiGHS fails, or its answer is not feasible to 1e-8, or the gap stays above the tolerance.
    """
    check_paths(paths)
    if deviation not in ("block", "token", "first"):
        raise ValueError(f"deviation is {deviation!r}; want 'block', 'token' or 'first'")
    if not 0 <= allowed <= 1:
        raise ValueError(f"allowed is {allowed}; want a total variation in [0, 1]")
    exact = tree.exact and tree.size <= MAX_EXACT_NODES and not isinstance(allowed, float)
    tree = tree if exact else tree.as_float()
    allowed = Fraction(allowed) if exact else float(allowed)
    return _closed(tree, allowed, paths, lambda program: _budget(program, allowed, deviation), tolerance)


def curve(tree: PrefixTree, paths: int = 1, tolerance: float = 1e-9) -> list[FrontierPoint]:
    """All corners of the concave, piecewise linear frontier of the block deviation, from eps = 0 to where it is L.

    Between two corners the frontier is the straight line: where the lines that two points' prices give meet, either
    the optimum lies on them, a corner, or it lies below and both sides are searched.

    Raises:
        ValueError, CertificateError: as `optimum`.
    """
    one: Any = Fraction(1) if tree.exact and tree.size <= MAX_EXACT_NODES else 1.0
    first, last = optimum(tree, 0 * one, paths), optimum(tree, one, paths)
    found = [first, *_between(tree, paths, first, last, tolerance), last]
    lines = [_line(point) for point in found]
    slopes = [(v - u) / (b - a) for (a, u, _), (b, v, _) in pairwise(lines)]
    slopes.append(slopes[0] * 0)
    bends = [before - after > SLOPE for before, after in pairwise(slopes)]
    return [first, *(point for point, bend in zip(found[1:], bends, strict=True) if bend)]


def divergence_optimum(tree: PrefixTree, nats: float, tolerance: float = 1e-5) -> FrontierPoint:
    """The same for one draft and the divergence KL(R | P) of the block's law of at most `nats` nats.

    CVXPY (Clarabel) proposes x and multipliers y, and m of the divergence. Mixing x with the lossless optimum until it
    is feasible gives a lower bound; weak duality the upper one, where only R enters the divergence, block by block:

        y b + m nats + sum over other columns of (c - A' y)+
              + sum_u max over 0 <= r <= 1 of (c - A' y)_u r - m r log(r / P(u))

    Raises:
        ValueError: nats is negative.
        CertificateError: the two bounds stay further apart than the tolerance.
    """
    import cvxpy as cp

    if not 0 <= nats < np.inf:
        raise ValueError(f"nats is {nats}; want a divergence of at least 0, e.g. 0.01")
    start = time.perf_counter()
    tree = tree.as_float()
    lossless = optimum(tree, 0.0)
    if nats == 0:
        return lossless
    program = _Program(tree, 1)
    ends = [int(end) for end in childless(tree)]
    columns = [program.stream(end) for end in ends if tree.target_joint[end] > 0]
    target = np.array([tree.target_joint[end] for end in ends if tree.target_joint[end] > 0])
    program.limit([({program.stream(end): 1}, 0) for end in ends if tree.target_joint[end] == 0])
    matrix, limits, equal, equal_limits = program.arrays()
    gain = np.concatenate([np.ones(tree.size - 1), np.zeros(tree.size - 1)])
    x = cp.Variable(program.size, nonneg=True)
    cost = cp.sum(cp.hstack([cp.rel_entr(x[c], p) for c, p in zip(columns, target, strict=True)]))
    rows = [matrix @ x <= limits, equal @ x == equal_limits, cost <= nats]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem = cp.Problem(cp.Maximize(gain @ x), rows)
        problem.solve(solver=cp.CLARABEL)
    if x.value is None or rows[1].dual_value is None:
        raise CertificateError("Clarabel", f"status {problem.status}", "allow a larger divergence")
    found = [lp.with_root(np.maximum(part, 0)) for part in np.split(np.asarray(x.value), 2)]
    share = _largest_share(lambda s: divergence(tree, s * found[1] + (1 - s) * lossless.stream) <= nats)
    phi, law = (share * a + (1 - share) * b for a, b in zip(found, (lossless.phi, lossless.stream), strict=True))
    excess = _excess(program, np.concatenate([phi[1:], law[1:]]))
    if excess > FEASIBLE:
        raise CertificateError("Clarabel", f"a row fails by {excess:.3g}", "use a smaller tree")
    y, m = np.maximum(rows[0].dual_value, 0), max(float(np.ravel(rows[2].dual_value)[0]), TIGHT)
    left = gain - matrix.T @ y - equal.T @ rows[1].dual_value
    best = np.minimum(target * np.exp(left[columns] / m - 1), 1)
    inside = np.where(best > 0, left[columns] * best - m * best * np.log(np.where(best > 0, best, 1) / target), 0)
    others = np.delete(np.maximum(left, 0), columns).sum()
    bound = float(y @ limits + equal_limits @ rows[1].dual_value + m * nats + others + inside.sum())
    value = float(phi[1:].sum())
    if bound - value > tolerance:
        raise CertificateError("Clarabel", f"the bounds are {bound - value:.3g} apart", "give a larger tolerance")
    seconds = time.perf_counter() - start
    point = replace(lossless, value=value, bound=max(bound, value), gap=max(0.0, bound - value), phi=phi, stream=law)
    return replace(point, allowed=nats, price=m, solver="Clarabel", seconds=seconds)


# ---------------------------------------------------------------------- deviations of a law


def block_deviation(tree: PrefixTree, stream: Array) -> Any:
    """Total variation between R and P on the drafted blocks."""
    ends = childless(tree)
    return np.maximum(tree.target_joint[ends] - stream[ends], 0).sum()


def divergence(tree: PrefixTree, stream: Array) -> float:
    """KL(R | P) of the drafted blocks in nats; infinite where R is positive and P is not."""
    ends = childless(tree)
    law, target = np.asarray(stream[ends], dtype=float), tree.target_joint[ends].astype(float)
    if (law[target == 0] > 0).any():
        return np.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(law > 0, law * np.log(law / np.where(target > 0, target, 1)), 0).sum())


def emitted(tree: PrefixTree, phi: Array, stream: Array) -> Array:
    """[n] e(wy): probability that w is kept and y emitted after it (the root's entry is 0); see `optimum`."""
    result = stream - phi - tree.target * (stream[tree.parent] - phi[tree.parent])
    result[0] = phi[0] * 0
    return result


def accumulated(tree: PrefixTree, phi: Array, stream: Array, tokens: int) -> list[Any]:
    """Total variation of the first 1, .., `tokens` tokens of a stream made by call after call of one verifier.

    The tree is iid, so that every call is the same; a call that kept w and emitted y is followed by a new one.
    S_m(u) = sum over kept w and emitted y of e(wy) S(rest of u after wy), the tokens beyond m cut off.

    Raises:
        ValueError: the tree is not iid with all V tokens at every node, or V^tokens exceeds 100 000.
    """
    rows = tree.rows(tree.target)[: tree.leaves.start]
    if (rows != rows[0]).any() or (tree.bonus != rows[0]).any() or tree.vocab**tokens > 100_000:
        raise ValueError(f"the tree of vocab {tree.vocab} and {tokens} tokens; want an iid tree and few tokens")
    blocks: list[tuple[tuple[int, ...], Any]] = []
    for node, mass in enumerate(emitted(tree, phi, stream)):
        blocks.append((tree.prefix(node), mass))
    blocks = blocks[1:]
    for leaf in range(tree.leaves.start, tree.leaves.stop):
        blocks += [((*tree.prefix(leaf), y), phi[leaf] * mass) for y, mass in enumerate(rows[0])]
    laws: list[dict[tuple[int, ...], Any]] = [{(): phi[0]}]
    result = []
    for length in range(1, tokens + 1):
        law: dict[tuple[int, ...], Any] = {}
        for block, mass in blocks:
            for rest, more in laws[max(0, length - len(block))].items():
                cut = (*block, *rest)[:length]
                law[cut] = law.get(cut, 0) + mass * more
        laws.append(law)
        target = PrefixTree.iid(rows[0], rows[0], length)
        wanted = {target.prefix(leaf): target.target_joint[leaf] for leaf in range(target.size)[target.leaves]}
        result.append(sum((max(wanted[u] - law.get(u, 0), 0) for u in wanted), 0 * phi[0]))
    return result


# ---------------------------------------------------------------------- the program


@dataclass
class _Program:
    """Rows over x = (phi, R of the nodes but the root, kappa of the leaves if K > 1, further ones); all in [0, 1]."""

    tree: PrefixTree
    paths: int
    inequalities: list[tuple[Row, Any]] = field(default_factory=list)
    equalities: list[tuple[Row, Any]] = field(default_factory=list)
    budget_row: int | None = None
    size: int = 0

    def __post_init__(self) -> None:
        tree = self.tree
        self.size = 2 * (tree.size - 1) + (len(tree.bonus) if self.paths > 1 else 0)
        for node in range(1, tree.size):
            parent, p = int(tree.parent[node]), tree.target[node]
            row: Row = {self.phi(node): 1, self.stream(node): -1}
            if parent:
                row |= {self.stream(parent): p, self.phi(parent): -p}
            self.inequalities.append((row, p * 0))
        for node in range(tree.size):
            below = range(tree.children[node].start, tree.children[node].stop)
            if below:
                row = dict.fromkeys((self.stream(child) for child in below), 1)
                self.equalities.append((row | ({self.stream(node): -1} if node else {}), 0 if node else 1))
        if self.paths == 1:
            self.limit([({self.phi(node): 1}, tree.draft_joint[node]) for node in range(1, tree.size)])
        else:
            self.limit([({self.phi(node): 1} | {self.kappa(x): -1 for x in below}, 0) for node, below in self._below()])

    def phi(self, node: int) -> int:
        return node - 1

    def stream(self, node: int) -> int:
        return self.tree.size - 2 + node

    def kappa(self, leaf: int) -> int:
        return 2 * (self.tree.size - 1) + leaf

    def new(self, count: int) -> range:
        """Columns of `count` further variables."""
        self.size += count
        return range(self.size - count, self.size)

    def limit(self, rows: Iterable[tuple[Row, Any]]) -> None:
        self.inequalities += rows

    def arrays(self) -> tuple[Any, Array, Any, Array]:
        """The rows in float64: A, b of the inequalities and of the equalities."""
        return (*self._floats(self.inequalities), *self._floats(self.equalities))

    def _floats(self, rows: Sequence[tuple[Row, Any]]) -> tuple[Any, Array]:
        index = [place for place, (row, _) in enumerate(rows) for _ in row]
        columns = [column for row, _ in rows for column in row]
        values = [float(value) for row, _ in rows for value in row.values()]
        matrix = sparse.csr_array((values, (index, columns)), shape=(len(rows), self.size))
        return matrix, np.array([float(limit) for _, limit in rows])

    def _below(self) -> list[tuple[int, list[int]]]:
        """The leaves below each node but the root, as indices of `bonus`."""
        below: dict[int, list[int]] = {node: [] for node in range(1, self.tree.size)}
        for leaf in range(len(self.tree.bonus)):
            node = self.tree.leaves.start + leaf
            while node > 0:
                below[node].append(leaf)
                node = int(self.tree.parent[node])
        return list(below.items())


def _budget(program: _Program, allowed: Any, deviation: Deviation) -> None:
    """Rows short >= P - R and sum short <= eps, of the drafted blocks, of the first token, or of every next token."""
    tree = program.tree
    if deviation in ("block", "first"):
        ends = childless(tree) if deviation == "block" else np.arange(1, tree.children[0].stop)
        short = program.new(len(ends))
        for column, end in zip(short, ends.tolist(), strict=True):
            program.limit([({program.stream(end): -1, column: -1}, -tree.target_joint[end])])
        program.limit([(dict.fromkeys(short, 1), allowed)])
        program.budget_row = len(program.inequalities) - 1
        return
    for node in range(tree.size):
        below = range(tree.children[node].start, tree.children[node].stop)
        if not below:
            continue
        short = program.new(len(below))
        for column, child in zip(short, below, strict=True):
            p = tree.target[child]
            row: Row = {program.stream(child): -1, column: -1}
            program.limit([(row | {program.stream(node): p}, 0) if node else (row, -p)])
        row = dict.fromkeys(short, 1)
        program.limit([(row | {program.stream(node): -allowed}, 0) if node else (row, allowed)])


def _closed(
    tree: PrefixTree, allowed: Any, paths: int, budget: Callable[[_Program], None], tolerance: float
) -> FrontierPoint:
    """Solve, add the sets S of drafts whose kappa exceeds g(Q(S)), again until there is none; then certify."""
    start = time.perf_counter()
    program = _Program(tree, paths)
    budget(program)
    leaves = len(tree.bonus)
    drafted = tree.draft_joint[tree.leaves]
    if paths > 1:
        _cover(program, [range(leaves), *([leaf] for leaf in range(leaves))], drafted)
    known: set[frozenset[int]] = set()
    for _ in range(MAX_ROUNDS):
        matrix, limits, equal, equal_limits = program.arrays()
        gain = np.concatenate([np.ones(tree.size - 1), np.zeros(program.size - tree.size + 1)])
        answer = lp.maximise(gain, {"rows": lp.Rows(matrix, limits)}, lp.Rows(equal, equal_limits))
        x, y, z = answer.x, answer.multipliers["rows"], answer.equal_multipliers
        if tree.exact:
            x, y, z = _fractions(program, x, y, z)
        kappa = drafted if paths == 1 else np.maximum(x[2 * (tree.size - 1) :][:leaves], 0)
        sets = [] if paths == 1 else _violated(kappa, drafted, paths, 0 if x.dtype == object else 1e-11)
        new = [s for s in sets if frozenset(s) not in known]
        if not new:
            break
        known |= {frozenset(s) for s in new}
        _cover(program, new, drafted)
    else:
        raise CertificateError(SOLVER, f"no answer after {MAX_ROUNDS} rounds", "use a smaller tree or fewer paths")
    return _certified(program, allowed, x, y, z, kappa, tolerance, start)


def _cover(program: _Program, sets: Iterable[Iterable[int]], drafted: Array) -> None:
    for leaves in sets:
        members = list(leaves)
        limit = coverage(drafted[members].sum(), program.paths)
        program.limit([({program.kappa(leaf): 1 for leaf in members}, limit)])


def _violated(kappa: Array, drafted: Array, paths: int, above: float) -> list[list[int]]:
    """Sets with kappa(S) > g(Q(S)) among the first leaves by falling kappa/Q: empty only if there is none at all."""
    order = sorted(range(len(kappa)), key=lambda leaf: -quotient(kappa[leaf], drafted[leaf]))
    kept, reached = np.cumsum(kappa[order]), np.cumsum(drafted[order])
    excess = kept - coverage(reached, paths)
    return [order[: place + 1] for place in range(len(order)) if excess[place] > above]


def _certified(
    program: _Program, allowed: Any, x: Array, y: Array, z: Array, kappa: Array, tolerance: float, start: float
) -> FrontierPoint:
    """The point, or an error: rows checked one by one, the bound evaluated from the multipliers alone."""
    tree = program.tree
    exact = x.dtype == object
    excess = _excess(program, x)
    if excess > (0 if exact else FEASIBLE):
        raise CertificateError(SOLVER, f"a row fails by {float(excess):.3g}", "use a smaller tree")
    value, bound = x[: tree.size - 1].sum(), _bound(program, y, z)
    gap = bound - value
    if gap > tolerance:
        raise CertificateError(SOLVER, f"the gap {float(gap):.3g} is above {tolerance:.3g}", "use a smaller tree")
    one = np.array([1], dtype=x.dtype) if not exact else np.array([Fraction(1)], dtype=object)
    phi, stream = (np.concatenate([one, part]) for part in np.split(x[: 2 * (tree.size - 1)], 2))
    price = None if program.budget_row is None else y[program.budget_row]
    proved = exact and gap == 0
    return FrontierPoint(
        value=float(value),
        bound=float(max(bound, value)),
        gap=max(0.0, float(gap)),
        allowed=allowed,
        phi=phi,
        stream=stream,
        kappa=kappa,
        price=None if price is None else float(price),
        exact=Fraction(value) if proved else None,
        exact_price=Fraction(price) if proved and price is not None else None,
        solver=SOLVER,
        seconds=time.perf_counter() - start,
    )


def _excess(program: _Program, x: Array) -> Any:
    """By how much x fails the worst row or sign."""

    def value(row: Row) -> Any:
        return sum(coefficient * x[column] for column, coefficient in row.items())

    worst = max(0, -min(x), max(x) - 1)
    worst = max([worst, *(value(row) - limit for row, limit in program.inequalities)])
    return max([worst, *(abs(value(row) - limit) for row, limit in program.equalities)])


def _bound(program: _Program, y: Array, z: Array) -> Any:
    """y b + sum_j max(0, c_j - (A' y)_j): an upper bound from any multipliers y >= 0 and z, see the module."""
    left: list[Any] = [1] * (program.tree.size - 1) + [0] * (program.size - program.tree.size + 1)
    total: Any = 0
    for rows, multipliers in ((program.inequalities, np.maximum(y, 0)), (program.equalities, z)):
        for (row, limit), multiplier in zip(rows, multipliers, strict=True):
            if multiplier == 0:
                continue
            total += multiplier * limit
            for column, coefficient in row.items():
                left[column] -= multiplier * coefficient
    return total + sum(max(0, rest) for rest in left)


# ---------------------------------------------------------------------- fractions


def _fractions(program: _Program, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    """The vertices of the primal and of the dual that the floats stand for, solved in fractions; the floats if not.

    A vertex is the only solution of the rows that are tight at it.
    """
    rows, tight = program.inequalities, []
    for row, limit in rows:
        slack = float(limit) - sum(float(c) * x[column] for column, c in row.items())
        tight.append(slack < TIGHT)
    primal = lp.solved([*(row for row, t in zip(rows, tight, strict=True) if t), *program.equalities], x)
    columns: list[Row] = [{} for _ in range(program.size)]
    for place, (row, _) in enumerate([*program.inequalities, *program.equalities]):
        for column, coefficient in row.items():
            columns[column][place] = coefficient
    multipliers = np.concatenate([y, z])
    cost = [1] * (program.tree.size - 1) + [0] * (program.size - program.tree.size + 1)
    reduced = [cost[j] - sum(float(c) * multipliers[i] for i, c in column.items()) for j, column in enumerate(columns)]
    dual = lp.solved([(columns[j], cost[j]) for j in range(program.size) if abs(reduced[j]) < TIGHT], multipliers)
    if primal is None or dual is None:
        return x, y, z
    return primal, dual[: len(y)], dual[len(y) :]


# ---------------------------------------------------------------------- searches


def _between(
    tree: PrefixTree, paths: int, left: FrontierPoint, right: FrontierPoint, tolerance: float
) -> list[FrontierPoint]:
    """Corners strictly between two points of the frontier."""
    (a, u, s), (b, v, t) = (_line(point) for point in (left, right))
    if s - t <= tolerance or b - a <= tolerance:
        return []
    crossing = (v - u + s * a - t * b) / (s - t)
    if not a < crossing < b:
        return []
    middle = optimum(tree, crossing, paths)
    if crossing - a <= tolerance or b - crossing <= tolerance:
        return []
    reached = middle.exact if middle.exact is not None else middle.value
    if reached >= u + s * (crossing - a) - tolerance:
        return [middle]
    below = _between(tree, paths, left, middle, tolerance)
    return [*below, middle, *_between(tree, paths, middle, right, tolerance)]


def _line(point: FrontierPoint) -> tuple[Any, Any, Any]:
    """eps, value and price of a point, in fractions if it has them."""
    if point.exact is not None:
        return point.allowed, point.exact, point.exact_price
    return float(point.allowed), point.value, point.price


def _largest_share(feasible: Callable[[float], bool]) -> float:
    """The largest s in [0, 1] that is feasible, by bisection; feasible shares form an interval from 0."""
    if feasible(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if feasible(middle) else (low, middle)
    return low
