"""Calls for N tokens: what a verifier gains that may carry numbers from one call to the next.

Block verification keeps the most per call among verifiers that forget. A verifier that remembers commits the same
stream, with the same law, in fewer calls. Letters: N tokens, L draft length (the same in every call), V vocabulary,
z a prefix of the stream, z-j the prefix without its last j tokens, P(z) target probability, Q_j(z) probability that
the draft draws the last j tokens of z after z-j.

    started(z)   Pr(the stream passes z and a call starts there)
    kept_j(z)    Pr(it passes z, the running call started at z-j, and its first j drafted tokens are kept), j = 1..L

    minimise    calls = sum over |z| < N of started(z),      started(z) = P(z) - sum_j kept_j(z)
    subject to  started(z) >= 0                                                  (room)
                kept_j(z) <= started(z-j) Q_j(z)                                 (draft)
                sum_y kept_{j+1}(zy) <= kept_j(z)      for j >= 1                (flow)

Every stateful lossless verifier of one draft obeys these, and every such `kept` is realised: within a call by the
coupling of the kept prefix with the draft, and a token that ends a call at z is drawn with probability proportional
to P(zy) - sum_j kept_{j+1}(zy), whatever the phase j in which it ends. Block verification obeys more, namely
kept_{j+1}(zy) <= p(y|z) kept_j(z) phase by phase. Several paths: the draft rows become
sum_{w in A} kept(w) <= started(z) (1 - (1 - Q(A))^K) for every antichain A below z.

**The fewest calls have a closed form**, for every N, every L and every pair of models:

    started(z) = max(0, P(z) - offered(z)),      offered(z) = sum_{1 <= j <= L} started(z-j) Q_j(z)      (optimum)

No verifier has fewer calls: with s(z) = 1 - sum_{1 <= |u| <= L} price_|u|(zu) Q(u), where price_j(z) = s(z) if
offered(z) < P(z), else 0, prices price_j on the draft rows, s(z) on the rooms that are full and none on the flow rows
have this very value, and 0 <= s <= 1 by backward induction. And it is reached: let rest(z) = sum_y (P(zy) -
started(zy)), and keep the longest drafted prefix whose coin shows, the coin of z (in whatever phase) being

    h(z) = 1 if offered(z) < P(z), else (P(z) - rest(z)) / (offered(z) - rest(z))                        (coin)

Then the kept masses of all phases at z sum to P(z) - started(z), by backward induction.

"Young" is optimal too for L <= 2. "Fill" never needs more calls than block verification, nor does any rule that
keeps at least block verification's share in each phase. Proofs: the page "Many calls" of the documentation.

Sources: specbound (own); block verification: arXiv:2403.10444, Algorithm 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from . import linear_program
from .feasibility import coverage
from .prefix_tree import Array, PrefixTree
from .solution import CertificateError, check_paths

MAX_VARIABLES = 200_000
MAX_ANTICHAINS = 50_000
FEASIBILITY = 1e-8
RATE_STEPS = 400


@dataclass(frozen=True)
class Step:
    """One level of the stream: m nodes, their families, and what each phase j = 0..L-1 may do.

    Attributes:
        nodes: the slice of the nodes in the tree.
        family [m]: index of the parent among all nodes.
        offered [L, m]: started(z-j) Q_{j+1}(zy), what was drafted.
        held [L, m]: kept_j(z) at the parent z, started(z) for j = 0.
        ratio [m]: p(y|z).
        room [m]: P(zy).
    """

    nodes: slice
    family: Array
    offered: Array
    held: Array
    ratio: Array
    room: Array


Policy = Callable[[Step], Array]
"""From a step to kept_{j+1}(zy) [L, m]."""


def block(step: Step) -> Array:
    """min(offered, p kept_j), phase by phase: block verification, which remembers nothing."""
    return np.minimum(step.offered, step.ratio * step.held)


def young(step: Step) -> Array:
    """Phases 0, 1, ... take what was drafted as far as P(zy) has room; a phase that holds less is cut in proportion.

    Optimal for L <= 2.
    """
    return _youngest_first(step, np.zeros_like(step.offered))


def fill(step: Step) -> Array:
    """Block verification's share first, then the rest of P(zy), youngest first. Never behind block verification."""
    return _youngest_first(step, block(step))


POLICIES: dict[str, Policy] = {"block": block, "fill": fill, "young": young}


def _youngest_first(step: Step, kept: Array) -> Array:
    """Add to `kept` [L, m], phase after phase, what was drafted and P(zy) has room for."""
    kept = kept.copy()
    left = step.room - kept.sum(axis=0)
    for phase in range(len(kept)):
        more = np.minimum(step.offered[phase] - kept[phase], left)
        more = _cut(more, step.held[phase] - _family_sums(kept[phase], step.family), step.family)
        kept[phase] += more
        left = left - more
    return kept


def _family_sums(values: Array, family: Array) -> Array:
    """[m] the sum over the siblings, each node itself included."""
    first = family[0]
    sums = np.zeros(int(family[-1] - first) + 1, dtype=values.dtype)
    np.add.at(sums, family - first, values)
    return sums[family - first]


def _cut(wanted: Array, limit: Array, family: Array) -> Array:
    """`wanted` [m], scaled down in families whose sum is above their limit [m]."""
    total = _family_sums(wanted, family)
    over = total > np.maximum(limit, 0 * limit)
    result = wanted.copy()
    result[over] = wanted[over] * np.maximum(limit[over], 0 * limit[over]) / total[over]
    return result


def phases(tree: PrefixTree, length: int, tokens: int, policy: Policy) -> Array:
    """[L+1, n] started(z) in row 0 and kept_j(z) in row j under a policy; fractions on an exact tree.

    Args:
        tree: both models, at least N - 1 tokens deep; n counts its nodes of depth below N.
        length: L, at least 1.
        tokens: N, at least 1.

    Raises:
        ValueError: length or tokens out of range, or a tree that does not hold all of the target's stream.
    """
    size = _check(tree, length, tokens)
    result = np.zeros((length + 1, size), dtype=tree.target.dtype) + 0 * tree.target[0]
    offers = result.copy()
    result[0, 0] = offers[0, 0] = tree.target[0]
    for level in tree.levels[1:tokens]:
        parent = tree.parent[level]
        offered = offers[:-1, parent] * tree.draft[level]
        step = Step(level, parent, offered, result[:-1, parent], tree.target[level], tree.target_joint[level])
        result[1:, level] = policy(step)
        result[0, level] = step.room - result[1:, level].sum(axis=0)
        offers[0, level], offers[1:, level] = result[0, level], offered
    return result


def calls(tree: PrefixTree, length: int, tokens: int, policy: Policy) -> Any:
    """Expected target calls for N tokens under a policy; a fraction on an exact tree. Args as in `phases`."""
    return phases(tree, length, tokens, policy)[0].sum()


def optimal_phases(tree: PrefixTree, length: int, tokens: int) -> Array:
    """[L+1, n] started(z) and kept_j(z) of the optimal verifier, by (optimum) and (coin). Args as in `phases`."""
    size = _check(tree, length, tokens)
    offers = np.zeros((length + 1, size), dtype=tree.target.dtype) + 0 * tree.target[0]
    offers[0, 0] = tree.target[0]
    for level in tree.levels[1:tokens]:
        offers[1:, level] = offers[:-1, tree.parent[level]] * tree.draft[level]
        short = tree.target_joint[level] - offers[1:, level].sum(axis=0)
        offers[0, level] = np.maximum(short, 0 * short)
    result = offers.copy()
    for level in reversed(tree.levels[1:tokens]):
        below = tree.levels[int(tree.depth[level.start]) + 1] if level.stop < size else slice(size, size)
        deeper = 0 * result[1:, level]
        np.add.at(deeper[:-1].T, tree.parent[below] - level.start, result[2:, below].T)
        loose = result[1:, level] - deeper
        wanted = tree.target_joint[level] - result[0, level] - deeper.sum(axis=0)
        total = loose.sum(axis=0)
        coin = np.where(total > 0, wanted, 0 * total) / np.where(total > 0, total, 1 + 0 * total)
        result[1:, level] = deeper + coin * loose
    return result


def _check(tree: PrefixTree, length: int, tokens: int) -> int:
    """The number of nodes of depth below N."""
    for name, value in (("length", length), ("tokens", tokens)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; want an integer of at least 1")
    if tokens > tree.length + 1:
        raise ValueError(f"tokens is {tokens}, but the tree is {tree.length} tokens deep; want at most depth + 1")
    for depth, level in enumerate(tree.levels[:tokens]):
        mass = float(tree.target_joint[level].sum())
        if abs(mass - 1) > FEASIBILITY:
            raise ValueError(
                f"tree holds {mass:.6g} of the target's mass at depth {depth}; a stream needs all of it: give every "
                "prefix that the target can reach its children"
            )
    return tree.levels[tokens - 1].stop


# ------------------------------------------------------------------ the linear program


@dataclass(frozen=True)
class Program:
    """maximise sum of x  subject to  rows x <= limits, 0 <= x <= caps; x holds kept_j(z) for 1 <= j <= min(L, |z|).

    Attributes:
        place [L+1, n] int64: where kept_j(z) stands in x, -1 where there is none.
        row, column [nonzeros] int64; value [nonzeros]: the matrix; limits [m]; caps [x]: P(z).
        tokens: N, the calls if nothing is ever kept.
    """

    place: Array
    row: Array
    column: Array
    value: Array
    limits: Array
    caps: Array
    tokens: int

    @cached_property
    def matrix(self) -> Any:
        """The matrix in float64, sparse [m, x]."""
        values = self.value.astype(float)
        return sparse.csr_array((values, (self.row, self.column)), shape=(len(self.limits), len(self.caps)))

    def excess(self, x: Array) -> Any:
        """By how much x breaks its worst constraint; at most 0 for a feasible x. Exact in fractions."""
        sums = 0 * self.limits
        np.add.at(sums, self.row, self.value * x[self.column])
        return max((sums - self.limits).max(initial=0), (-x).max(initial=0))

    def bound(self, price: Array) -> Any:
        """No fewer calls than this, from any prices [m] >= 0 of the rows: N - (limits . price + what x still gains)."""
        charged = 0 * self.caps
        np.add.at(charged, self.column, self.value * price[self.row])
        return self.tokens - (self.limits * price).sum() - (np.maximum(1 - charged, 0 * charged) * self.caps).sum()


def program(tree: PrefixTree, length: int, tokens: int, paths: int = 1, stateless: bool = False) -> Program:
    """The linear program of the module's head; with `stateless`, kept_{j+1}(zy) <= p(y|z) kept_j(z) as well.

    Rows in this order: room (nodes 1..n-1), draft (for one path in the order of x), flow, stateless.

    Args:
        tree, length, tokens: as in `phases`.
        paths: K independent drafts a call; above 1 there is one row per antichain, for tiny trees.

    Raises:
        ValueError: arguments out of range, or more variables or antichains than fit.
    """
    check_paths(paths)
    size = _check(tree, length, tokens)
    depth = tree.depth[:size]
    valid = np.arange(length + 1)[:, None] <= depth
    valid[0] = False
    if valid.sum() > MAX_VARIABLES:
        raise ValueError(f"the program has {valid.sum()} variables; want at most {MAX_VARIABLES}: fewer tokens")
    rows = _Rows(tree, np.where(valid, valid.cumsum().reshape(valid.shape) - 1, -1))
    for node in range(1, size):
        rows.add(rows.all_kept(node, 1), tree.target_joint[node])
    for start, members, chance in _drafted_sets(tree, length, size, paths):
        share = coverage(chance, paths)
        own = [(rows.place[j, w], 1) for j, w in members]
        rows.add([*own, *rows.all_kept(start, share)], share * tree.target_joint[start])
    inner = range(tree.levels[tokens - 1].start)
    for node in inner:
        below = range(tree.children[node].start, tree.children[node].stop)
        for j in range(1, min(length - 1, int(depth[node])) + 1):
            rows.add([*((rows.place[j + 1, y], 1) for y in below), (rows.place[j, node], -1)], 0)
    for y in range(1, size) if stateless else ():
        node, ratio = int(tree.parent[y]), tree.target[y]
        rows.add([(rows.place[1, y], 1), *rows.all_kept(node, ratio)], tree.target_joint[y])
        for j in range(1, min(length - 1, int(depth[node])) + 1):
            rows.add([(rows.place[j + 1, y], 1), (rows.place[j, node], -ratio)], 0)
    return rows.program(np.broadcast_to(tree.target_joint[:size], valid.shape)[valid], tokens)


class _Rows:
    """Collects rows as triples (row, column, value)."""

    def __init__(self, tree: PrefixTree, place: Array) -> None:
        self.zero = 0 * tree.target[0]
        self.place = place
        self.triples: list[tuple[int, int, Any]] = []
        self.limits: list[Any] = []

    def all_kept(self, node: int, factor: Any) -> list[tuple[Any, Any]]:
        """factor sum_j kept_j(node), what started(node) lacks to P(node)."""
        return [(place, factor) for place in self.place[:, node] if place >= 0]

    def add(self, entries: Iterable[tuple[Any, Any]], limit: Any) -> None:
        """One row: entries (column, value)."""
        self.triples += [(len(self.limits), int(column), value + self.zero) for column, value in entries]
        self.limits.append(limit + self.zero)

    def program(self, caps: Array, tokens: int) -> Program:
        """The rows with the bounds of x."""
        row, column, value = zip(*self.triples, strict=True) if self.triples else ((), (), ())
        kind = object if isinstance(self.zero, Fraction) else float
        return Program(
            self.place,
            np.array(row, dtype=np.int64),
            np.array(column, dtype=np.int64),
            np.array(value, dtype=kind),
            np.array(self.limits, dtype=kind),
            caps,
            tokens,
        )


def _drafted_sets(
    tree: PrefixTree, length: int, size: int, paths: int
) -> Iterator[tuple[int, list[tuple[int, int]], Any]]:
    """(z, members (j, w) of an antichain below z, its draft probability Q(A)); single nodes in the order of x if K = 1.

    Raises:
        ValueError: more than `MAX_ANTICHAINS` of them below one node.
    """
    start, chance = np.arange(size), np.ones(size, dtype=int) + 0 * tree.draft[:size]
    below: dict[int, list[tuple[int, int, Any]]] = {}
    for j in range(1, length + 1):
        chance = np.where(tree.depth[:size] >= j, tree.draft[:size] * chance[tree.parent[:size]], 0 * chance)
        start = start[tree.parent[:size]] if j > 1 else tree.parent[:size].copy()
        for w in np.flatnonzero(tree.depth[:size] >= j).tolist():
            if paths == 1:
                yield int(start[w]), [(j, w)], chance[w]
            else:
                below.setdefault(int(start[w]), []).append((j, w, chance[w]))
    for z, members in below.items():
        for antichain in _antichains(tree, members):
            yield z, [(j, w) for j, w, _ in antichain], sum(entry for _, _, entry in antichain)


def _antichains(tree: PrefixTree, members: list[tuple[int, int, Any]]) -> list[tuple[tuple[int, int, Any], ...]]:
    """Every nonempty antichain of the nodes below one z, given level by level."""
    found: dict[int, list[tuple[tuple[int, int, Any], ...]]] = {}
    for j, w, chance in reversed(members):
        options = [*found.pop(w, [()]), ((j, w, chance),)]
        above = found.setdefault(int(tree.parent[w]), [()])
        if len(above) * len(options) > MAX_ANTICHAINS:
            raise ValueError(
                f"more than {MAX_ANTICHAINS} antichains of drafts; want fewer tokens, a shorter length or one path"
            )
        found[int(tree.parent[w])] = [left + right for left in above for right in options]
    (antichains,) = found.values()
    return [antichain for antichain in antichains if antichain]


# ------------------------------------------------------------------ certified optima


@dataclass(frozen=True, eq=False)
class CallsOptimum:
    """A certified optimum: bound <= fewest expected calls <= value.

    Attributes:
        value: calls of a feasible verifier.
        bound: a dual value below which no verifier comes.
        gap: value - bound, at least 0.
        exact: the value as a fraction, if verifier and bound are fractions and equal.
        solver: how it was found.
        seconds: wall-clock time.
    """

    value: float
    bound: float
    gap: float
    exact: Fraction | None
    solver: str
    seconds: float


def prices(tree: PrefixTree, length: int, tokens: int, linear: Program) -> Array:
    """[m] optimal prices of the rows of the program for one path, in closed form (see the module's head)."""
    started = optimal_phases(tree, length, tokens)[0]
    full = started <= 0
    worth, charged = 0 * started, np.zeros((length + 2, len(started)), dtype=started.dtype) + 0 * started[0]
    for level in reversed(tree.levels[:tokens]):
        worth[level] = 1 - charged[0, level]
        charged[1:-1, level] += np.where(full[level], 0 * worth[level], worth[level])
        if level.start:
            np.add.at(charged[:-1].T, tree.parent[level], (tree.draft[level] * charged[1:, level]).T)
    valid = linear.place >= 0
    room = np.where(full, worth, 0 * worth)[1:]
    draft = np.broadcast_to(np.where(full, 0 * worth, worth), valid.shape)[valid]
    flow = np.zeros(len(linear.limits) - len(room) - len(draft), dtype=started.dtype) + 0 * started[0]
    return np.concatenate([room, draft, flow])


def optimum(tree: PrefixTree, length: int, tokens: int) -> CallsOptimum:
    """The fewest expected calls for N tokens with one draft of L a call, over every stateful lossless verifier.

    In closed form, verifier and prices checked against every row of the program; a fraction on an exact tree.

    Raises:
        ValueError: arguments out of range (see `phases` and `program`).
        CertificateError: the certificate fails (it does not, up to rounding).
    """
    began = time.perf_counter()
    linear = program(tree, length, tokens)
    kept = optimal_phases(tree, length, tokens)[linear.place >= 0]
    return _certified(linear, kept, prices(tree, length, tokens, linear), "closed form", 1e-9 * tokens, began)


def linear_optimum(
    tree: PrefixTree, length: int, tokens: int, paths: int = 1, stateless: bool = False, tolerance: float = 1e-6
) -> CallsOptimum:
    """The same by HiGHS, in float64 and with HiGHS's own prices; also for K paths (tiny trees) and without a carry.

    Args as in `program`; raises as `optimum` does.
    """
    began = time.perf_counter()
    linear = program(tree.as_float(), length, tokens, paths, stateless)
    if not len(linear.caps):
        return CallsOptimum(1.0, 1.0, 0.0, None, "no variables", time.perf_counter() - began)
    rows = linear_program.Rows(linear.matrix, linear.limits)
    answer = linear_program.maximise(np.ones(len(linear.caps)), {"rows": rows})
    return _certified(linear, np.maximum(answer.x, 0), answer.multipliers["rows"], "HiGHS", tolerance, began)


def _certified(linear: Program, x: Array, price: Array, solver: str, tolerance: float, began: float) -> CallsOptimum:
    """x and prices checked against the program.

    Raises:
        CertificateError: x is infeasible, or the gap is above the tolerance or below 0.
    """
    exact = linear.value.dtype == object
    excess = linear.excess(x)
    if excess > (0 if exact else FEASIBILITY):
        raise CertificateError(solver, f"kept breaks a constraint by {float(excess):.3g}", "solve a smaller instance")
    value, bound = linear.tokens - x.sum(), linear.bound(price)
    gap = value - bound
    if not (0 if exact else -tolerance) <= gap <= tolerance:
        status = f"calls {float(value):.12g} and bound {float(bound):.12g} leave a gap of {float(gap):.3g}"
        raise CertificateError(solver, status, "give a larger tolerance, or a smaller instance")
    return CallsOptimum(
        value=float(value),
        bound=float(min(bound, value)),
        gap=max(0.0, float(gap)),
        exact=Fraction(value) if exact and gap == 0 else None,
        solver=solver,
        seconds=time.perf_counter() - began,
    )


# ------------------------------------------------------------------ the rate of one drafted token


@dataclass(frozen=True)
class Rate:
    """Tokens per call in the long run, lower <= rate <= upper; `exact` where a closed form is known."""

    lower: float
    upper: float
    exact: Fraction | None = None


def one_token_rate(target: Array, draft: Array, follow: Array | None = None, grid: int = 4000) -> Rate:
    """The largest long-run rate of tokens per call with one drafted token a call (L = 1).

    The stream is a chain of (context, x): x' = max(0, 1 - x q(y)/p(y)) with y ~ p, and a token costs x calls. For any
    function h of (context, x), with (Th)(c, x) = x + sum_y p(y) h(c', x'), the calls per token lie between the least
    and the largest value of Th - h. Here h is linear between the points of a grid, so both are attained at points
    that can be listed. Where it applies, the closed form of `renewal_rate` is given as well.

    Args:
        target, draft [C, V]: rows of the contexts; [V] for one context.
        follow [C, V] int64: the context after a token; every context is reachable from every other.
        grid: points on [0, 1]; the interval shrinks with their square.

    Raises:
        ValueError: shapes that do not match, or rows that are no laws.
    """
    exact = renewal_rate(target, draft) if np.ndim(target) == 1 else None
    p, q = np.atleast_2d(np.asarray(target, dtype=float)), np.atleast_2d(np.asarray(draft, dtype=float))
    if p.shape != q.shape or p.ndim != 2:
        raise ValueError(f"target has shape {p.shape} and draft {q.shape}; want the same [C, V]")
    for name, rows in (("target", p), ("draft", q)):
        if not ((rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, rtol=0, atol=FEASIBILITY)):
            raise ValueError(f"{name} has a row that is no law; want entries of at least 0 that sum to 1")
    behind = np.zeros(p.shape, dtype=np.int64) if follow is None else np.asarray(follow)
    if behind.shape != p.shape or (behind.size and not (0 <= behind.min() <= behind.max() < len(p))):
        raise ValueError(f"follow has shape {behind.shape}; want {p.shape} with contexts 0..{len(p) - 1}")
    points = np.linspace(0.0, 1.0, grid + 1)

    def step(h: Array, x: Array) -> Array:
        after = np.tile(x, (len(p), 1))
        for c, y in zip(*np.nonzero(p), strict=True):
            carried = np.maximum(0.0, 1 - x * (q[c, y] / p[c, y]))
            after[c] += p[c, y] * np.interp(carried, points, h[behind[c, y]])
        return after

    h = np.zeros((len(p), grid + 1))
    for _ in range(RATE_STEPS):
        h = (h + step(h, points)) / 2
        h -= h[0, 0]
    kinks = [points] + [(1 - points) * (p[c, y] / q[c, y]) for c, y in zip(*np.nonzero(q), strict=True)]
    checked = np.unique(np.clip(np.concatenate(kinks), 0, 1))
    drift = step(h, checked) - np.array([np.interp(checked, points, row) for row in h])
    return Rate(float(1 / drift.max()), float(1 / drift.min()), exact)


def renewal_rate(target: Array, draft: Array) -> Fraction | None:
    """The same for one context, in closed form, where every token with q > p resets the carry; else None.

        (1 + P(S)) (2 - Q(S)),   S = {y: q(y) > p(y)}      if  1 - q(y)/p(y) >= p(z)/q(z) for all y not in S, z in S

    Then x is 0 after a token of S, 1 after x = 0, and changes linearly otherwise, so its mean follows from two
    balance equations. Floats are taken as the fractions they are.
    """
    p, q = ([Fraction(value) for value in row] for row in (target, draft))
    ahead = [y for y in range(len(p)) if q[y] > p[y]]
    slowest = min((1 - b / a for a, b in zip(p, q, strict=True) if a > 0 and b <= a), default=Fraction(0))
    if any(p[y] > slowest * q[y] for y in ahead):
        return None
    return (1 + sum((p[y] for y in ahead), Fraction(0))) * (2 - sum((q[y] for y in ahead), Fraction(0)))
