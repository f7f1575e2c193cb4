"""Interior-point method for the selected-path LP: Newton steps by elimination up the tree.

The law kappa of one selected draft may not put more than g(t) = 1 - (1-t)^K on leaves of draft mass t; a tangent of g
at t_i, slope lam_i and height h_i = g(t_i) - t_i lam_i, says sum over leaves of (kappa - lam_i Q)+ <= h_i. So

    maximise    sum over nodes of phi_w
    subject to  r_w = p_w phi_parent - phi_w >= 0   [D_w]        (block transport: r_w = P_w - phi_w)
                m_w = kappa_w - phi_w >= 0          [Z_w]        kappa_w = sum of kappa over the leaves below w
                s = lam_i Q + v - kappa >= 0        [z]          every leaf, every tangent i of its window
                v >= 0                              [y]
                sum over leaves of v + v0_i = h_i   [mu_i >= 0]
    dual        D_w + Z_w - sum over children of p D = 1 (block transport: D_w + Z_w = 1),  z + y = mu_i,
                C_leaf = sum of Z along the path = sum_i z

phi and kappa are free: phi >= 0 holds at the optimum, and would destroy the central path at tiny nodes.

Windows: at the optimum z = mu_i where the density kappa/Q of a leaf is above lam_i and z = 0 below, so a leaf keeps
only the `width` tangents around its density and takes the others as decided. The multipliers are then eliminated
against a border of the cumulative multipliers M_i = mu_i + mu_(i+1) + ..., in which a leaf touches width + 1 columns.
Work per step: a few passes over (leaves x width) and (inner nodes x tangents) entries, all dense.

Letters: T tangents, n nodes, leaves of the work tree (`WorkTree`) sorted by window. Mehrotra's predictor-corrector with
Gondzio's extra correctors; feasible throughout except for C_leaf = sum z, whose residual is carried in the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ..numbers import Array

CHUNK = 4096
TO_BOUNDARY = 0.995
CENTRALITY = 0.01
EXTRA_CORRECTORS = 4
RESIDUAL = 1e-7
SHORT = 0.01


@dataclass(frozen=True, eq=False)
class WorkTree:
    """The tree that is solved: every node is reached by some draft.

    Attributes:
        kept [n]: node of the whole tree.
        parent [n], p [n]: parent and target conditional (0 for block transport, where nothing links phi to its
            parent); node 0 is the root, breadth-first.
        cap [n]: P(w).
        leaves [m]: childless nodes; draft [m]: their draft mass Q > 0.
        levels: slices of nodes of depth 0, 1, ...
        scale [n]: weight of a node on the central path, in (0, 1]; the root of its natural phi works best.
    """

    kept: Array
    parent: Array
    p: Array
    cap: Array
    leaves: Array
    draft: Array
    levels: list[slice]
    scale: Array
    transport: bool


@dataclass(frozen=True, eq=False)
class Tangents:
    """Tangents of g: points t, slopes lam (falling to 0), heights h = g(t) - t lam; all [T]."""

    t: Array
    slope: Array
    height: Array


@dataclass(frozen=True, eq=False)
class Part:
    """Leaves (in window order) that share a window, the tangents first .. first + width - 1.

    nodes: their node ids; parents: their parents (index into inner nodes, each once); runs: where each parent starts.
    """

    leaves: slice
    first: int
    nodes: Array
    parents: Array
    runs: Array


@dataclass(frozen=True, eq=False)
class Guess:
    """Where to start: a law kappa [m] (in the order of work.leaves) strictly better than nothing, how far to stay away
    from it (`mix` in (0, 1]), and Z, D [n], mu [T] of an earlier point if there is one."""

    kappa: Array
    mix: float
    Z: Array | None = None
    D: Array | None = None
    mu: Array | None = None


@dataclass(eq=False)
class Point:
    """Primal and dual variables, and the same fields for a step. Nodes: phi, r, m, D, Z [n]. Leaves, in window
    order: kappa [m]; s, v, z, y [width, m]. Tangents: mu, spare (v0) [T]."""

    phi: Array
    r: Array
    m: Array
    D: Array
    Z: Array
    kappa: Array
    s: Array
    v: Array
    z: Array
    y: Array
    mu: Array
    spare: Array

    def move(self, step: Point, primal: float, dual: float) -> None:
        """Add primal * step to the primal and dual * step to the dual variables."""
        for field in fields(self):
            length = dual if field.name in ("D", "Z", "z", "y", "mu") else primal
            _add_scaled(getattr(self, field.name), getattr(step, field.name), length)


@dataclass(frozen=True, eq=False)
class Layout:
    """Leaves sorted by window, and how leaves and inner nodes hang together.

    Attributes:
        order [m]: work.leaves[order] are the leaves in window order.
        width: tangents per leaf; parts: chunks of leaves with one window.
        inner: node ids of inner nodes; inner_levels: slices of them; inner_parent, leaf_parent: index into inner.
    """

    work: WorkTree
    tangents: Tangents
    order: Array
    width: int
    parts: list[Part]
    inner: Array
    inner_levels: list[slice]
    inner_parent: Array
    leaf_parent: Array


def plan(work: WorkTree, tangents: Tangents, density: Array, width: int) -> Layout:
    """Give each leaf the `width` tangents around its expected kappa/Q (`density` [m], in the order of work.leaves)."""
    count = len(tangents.t)
    width = min(width, count)
    rank = np.searchsorted(-tangents.slope, -density)
    first = np.clip(rank - width // 2, 0, count - width)
    order = np.argsort(first, kind="stable")
    bounds = np.searchsorted(first[order], np.arange(count - width + 2))
    size = len(work.parent)
    leaf = np.zeros(size, dtype=bool)
    leaf[work.leaves] = True
    inner = np.flatnonzero(~leaf)
    index = np.cumsum(~leaf) - 1
    leaf_parent = index[work.parent[work.leaves[order]]]
    parts = []
    for start in range(count - width + 1):
        for begin in range(bounds[start], bounds[start + 1], CHUNK):
            leaves = slice(begin, min(begin + CHUNK, bounds[start + 1]))
            parents = leaf_parent[leaves]
            runs = np.flatnonzero(np.diff(parents, prepend=-1))
            parts.append(Part(leaves, start, work.leaves[order[leaves]], parents[runs], runs))
    inner_levels = [slice(*np.searchsorted(inner, (level.start, level.stop))) for level in work.levels]
    return Layout(work, tangents, order, width, parts, inner, inner_levels, index[work.parent[inner]], leaf_parent)


@dataclass(frozen=True, eq=False)
class Sides:
    """Right-hand sides of a Newton step: z ds + s dz = s, y dv + v dy = v, Z dm + m dZ = m, D dr + r dD = r and
    mu dv0 + v0 dmu = mu, one entry per pair; C_leaf - sum_i z is brought to 0 from `potential` [m]."""

    s: Array
    v: Array
    m: Array
    r: Array
    mu: Array
    potential: Array

    @classmethod
    def empty(cls, point: Point, residual: Array) -> Sides:
        """Uninitialised sides of the shape of the point's pairs."""
        s, v, m, r, mu = (np.empty_like(x) for x in (point.s, point.v, point.m, point.r, point.mu))
        return cls(s, v, m, r, mu, residual)


class Stalled(RuntimeError):
    """The Newton step cannot be computed any more; the last point stands."""


class Newton:
    """One factorised Newton matrix; `step` solves it for a right-hand side in two walks over the tree.

    slack = m/Z and stiff = D/r of the nodes, give = 1/(s/z + v/y) and pull = give v/y of the leaf-tangent pairs.
    Of every subtree there remains a quadratic form in dC(parent), dphi(parent) and the border dM: b, a, chi, B, G.
    """

    def __init__(self, layout: Layout, point: Point) -> None:
        self.layout, self.point = layout, point
        count, inner = len(point.mu), len(layout.inner)
        self.slack, self.stiff = point.m / point.Z, point.D / point.r
        self.give, self.pull = np.empty_like(point.s), np.empty_like(point.s)
        self.weight, self.one, self.own_leaf = (np.empty(len(point.kappa)) for _ in range(3))
        self.b, self.a, self.chi = (np.zeros(inner) for _ in range(3))
        self.s1, self.x, self.tau, self.own = (np.ones(inner) for _ in range(4))
        self.B, self.G = (np.zeros((inner, count + 1)) for _ in range(2))
        hessian, diagonal = np.zeros((count + 1, count + 1)), point.spare / point.mu
        for part in layout.parts:
            self._eliminate_leaves(part, hessian, diagonal)
        for level in reversed(layout.inner_levels[1:]):
            if level.start < level.stop:
                self._eliminate_level(level, hessian)
        self.factor = _factorised(hessian[:count, :count] + _in_cumulative_basis(diagonal))

    def _eliminate_leaves(self, part: Part, hessian: Array, diagonal: Array) -> None:
        point, work, leaves, parents = self.point, self.layout.work, part.leaves, part.parents
        lower = point.s[:, leaves] / point.z[:, leaves]
        upper = point.v[:, leaves] / point.y[:, leaves]
        give = 1.0 / (lower + upper)
        pull = give * upper
        weight = give.sum(0)
        slack, stiff, p = self.slack[part.nodes], self.stiff[part.nodes], work.p[part.nodes]
        one = 1.0 + slack * weight
        own = weight / one + stiff
        self.give[:, leaves], self.pull[:, leaves], self.weight[leaves] = give, pull, weight
        self.one[leaves], self.own_leaf[leaves] = one, own
        diagonal[part.first : part.first + len(give)] += (pull * lower).sum(1)
        row = _border_row(pull)
        columns = slice(part.first, part.first + len(row))
        up = slack / one + 1.0 / (one * one * own)
        scaled = row * up
        hessian[columns, columns] += scaled @ row.T
        self.b[parents] += np.add.reduceat(up, part.runs)
        self.B[parents, columns] -= np.add.reduceat(scaled, part.runs, axis=1).T
        if not work.transport:
            side = stiff * p / (own * one)
            self.a[parents] += np.add.reduceat(side * p * weight, part.runs)
            self.G[parents, columns] -= np.add.reduceat(row * side, part.runs, axis=1).T
            self.chi[parents] += np.add.reduceat(side, part.runs)

    def _eliminate_level(self, level: slice, hessian: Array) -> None:
        work, node = self.layout.work, self.layout.inner[level]
        slack, stiff, p = self.slack[node], self.stiff[node], work.p[node]
        b, a, chi, B, G = self.b[level], self.a[level], self.chi[level], self.B[level], self.G[level]
        s1, x = b + slack, chi - 1.0
        rest = a + x * x / s1
        own = rest + stiff
        tau = (b + chi * slack) / s1
        G -= (x / s1)[:, None] * B
        self.s1[level], self.x[level], self.tau[level], self.own[level] = s1, x, tau, own
        hessian += (G / own[:, None]).T @ G - (B / s1[:, None]).T @ B
        parents, runs = _runs(self.layout.inner_parent[level])
        self.b[parents] += np.add.reduceat(slack * b / s1 + tau * tau / own, runs)
        self.B[parents] += np.add.reduceat((slack / s1)[:, None] * B + (tau / own)[:, None] * G, runs, axis=0)
        if not work.transport:
            side = stiff * p / own
            self.a[parents] += np.add.reduceat(side * p * rest, runs)
            self.G[parents] += np.add.reduceat(side[:, None] * G, runs, axis=0)
            self.chi[parents] += np.add.reduceat(side * tau, runs)

    def step(self, sides: Sides) -> Point:
        """The step for one right-hand side; see `Sides` for the equations."""
        point, layout, work = self.point, self.layout, self.layout.work
        count, inner, leaves = len(point.mu), len(layout.inner), len(point.kappa)
        self.sides, self.alm, self.gm = sides, sides.m / point.Z, sides.r / point.r
        self.om, self.ep_leaf = np.empty(leaves), np.empty(leaves)
        self.ec, self.ef, self.ep = (np.zeros(inner) for _ in range(3))
        windows, border = -sides.mu / point.mu, np.zeros(count + 1)
        for part in layout.parts:
            self._collect_leaves(part, windows, border)
        for level in reversed(layout.inner_levels[1:]):
            if level.start < level.stop:
                self._collect_level(level, border)
        border[:count] += np.diff(windows, prepend=0.0)
        self.cumulative = np.append(-cho_solve(self.factor, border[:count]), 0.0)
        step = Point(*(np.empty_like(getattr(point, field.name)) for field in fields(point)))
        for values in (step.phi, step.r, step.m, step.D, step.Z):
            values[0] = 0.0
        step.mu[:] = -np.diff(self.cumulative)
        step.spare[:] = (sides.mu - point.spare * step.mu) / point.mu
        self.df, self.dc = np.zeros(inner), np.zeros(inner)
        for level in layout.inner_levels[1:]:
            if level.start < level.stop:
                self._expand_level(level, step)
        for part in layout.parts:
            self._expand_leaves(part, step)
        step.m[1:] = (sides.m[1:] - point.m[1:] * step.Z[1:]) / point.Z[1:]
        step.r[1:] = work.p[1:] * step.phi[work.parent[1:]] - step.phi[1:]
        step.D[1:] = (sides.r[1:] - point.D[1:] * step.r[1:]) / point.r[1:]
        return step

    def _collect_leaves(self, part: Part, windows: Array, border: Array) -> None:
        point, sides, work, leaves = self.point, self.sides, self.layout.work, part.leaves
        alm, gm = self.alm[part.nodes], self.gm[part.nodes]
        slack, stiff, p = self.slack[part.nodes], self.stiff[part.nodes], work.p[part.nodes]
        weight, one, own, pull = self.weight[leaves], self.one[leaves], self.own_leaf[leaves], self.pull[:, leaves]
        be = sides.v[:, leaves] / point.y[:, leaves]
        difference = sides.s[:, leaves] / point.z[:, leaves] - be
        om = (self.give[:, leaves] * difference).sum(0) - sides.potential[leaves]
        q = -(om + weight * alm) / one
        ep = q - gm
        force = (om * slack - alm) / one - ep / (own * one)
        self.om[leaves], self.ep_leaf[leaves] = om, ep
        last = part.first + len(pull)
        windows[part.first : last] += pull @ force - (be + pull * difference).sum(1)
        border[last] += force.sum()
        self.ec[part.parents] += np.add.reduceat(alm + slack * q + ep / (one * own), part.runs)
        self.ef[part.parents] += np.add.reduceat(p * (gm + stiff * ep / own), part.runs)

    def _collect_level(self, level: slice, border: Array) -> None:
        work, node = self.layout.work, self.layout.inner[level]
        alm, gm, slack, stiff, p = self.alm[node], self.gm[node], self.slack[node], self.stiff[node], work.p[node]
        q = (self.ec[level] - alm) / self.s1[level]
        ep = self.ef[level] - gm - self.x[level] * q
        self.ep[level] = ep
        border += self.G[level].T @ (ep / self.own[level]) - self.B[level].T @ q
        parents, runs = _runs(self.layout.inner_parent[level])
        up = alm + slack * q + self.tau[level] * ep / self.own[level]
        self.ec[parents] += np.add.reduceat(up, runs)
        self.ef[parents] += np.add.reduceat(p * (gm + stiff * ep / self.own[level]), runs)

    def _expand_level(self, level: slice, step: Point) -> None:
        node, parent = self.layout.inner[level], self.layout.inner_parent[level]
        f_above, c_above = self.df[parent], self.dc[parent]
        p, stiff, tau, own = self.layout.work.p[node], self.stiff[node], self.tau[level], self.own[level]
        f = (self.G[level] @ self.cumulative + self.ep[level] + stiff * p * f_above + tau * c_above) / own
        pressure = self.B[level] @ self.cumulative + self.ec[level] - self.alm[node]
        dz = -(pressure + (self.chi[level] - 1.0) * f + self.b[level] * c_above) / self.s1[level]
        self.df[level], self.dc[level] = f, c_above + dz
        step.phi[node], step.Z[node] = f, dz

    def _expand_leaves(self, part: Part, step: Point) -> None:
        point, sides, work, leaves, node = self.point, self.sides, self.layout.work, part.leaves, part.nodes
        parent = self.layout.leaf_parent[leaves]
        f_above, c_above = self.df[parent], self.dc[parent]
        slack, stiff, p, alm = self.slack[node], self.stiff[node], work.p[node], self.alm[node]
        weight, one, own, om = self.weight[leaves], self.one[leaves], self.own_leaf[leaves], self.om[leaves]
        pull, s, v = self.pull[:, leaves], point.s[:, leaves], point.v[:, leaves]
        z, y = point.z[:, leaves], point.y[:, leaves]
        last = part.first + len(pull)
        dmu = step.mu[part.first : last]
        moved = dmu @ pull + self.cumulative[last]
        f = ((c_above - moved) / one + self.ep_leaf[leaves] + stiff * p * f_above) / own
        step.phi[node] = f
        step.Z[node] = (moved + om + weight * (alm + f) - c_above) / one
        kappa = (slack * (c_above - moved - om) + alm + f) / one
        step.kappa[leaves] = kappa
        al, be = sides.s[:, leaves] / z, sides.v[:, leaves] / y
        dz = pull * dmu[:, None] + self.give[:, leaves] * (al - be + kappa)
        dy = dmu[:, None] - dz
        step.z[:, leaves], step.y[:, leaves] = dz, dy
        step.s[:, leaves], step.v[:, leaves] = al - s / z * dz, be - v / y * dy


def _border_row(pull: Array) -> Array:
    """[width + 1, leaves] derivative of C_leaf in the cumulative multipliers M of its window and the one after."""
    row = np.empty((len(pull) + 1, pull.shape[1]))
    row[0], row[-1] = pull[0], 1.0 - pull[-1]
    np.subtract(pull[1:], pull[:-1], out=row[1:-1])
    return row


def _in_cumulative_basis(diagonal: Array) -> Array:
    """[T, T] the diagonal form in mu written in M, mu_i = M_i - M_(i+1)."""
    off = np.diag(-diagonal[:-1], 1)
    return np.diag(diagonal + np.append(0.0, diagonal[:-1])) + off + off.T


def _runs(parents: Array) -> tuple[Array, Array]:
    """The distinct values of a sorted array and where each starts."""
    starts = np.flatnonzero(np.diff(parents, prepend=-1))
    return parents[starts], starts


def _factorised(hessian: Array) -> tuple[Array, bool]:
    """Cholesky factor; raises Stalled if the matrix is not positive definite."""
    try:
        return cho_factor(hessian)
    except (LinAlgError, ValueError):
        raise Stalled("the border matrix lost positive definiteness") from None


# ---------------------------------------------------------------------- the method


@dataclass(frozen=True, eq=False)
class Weights:
    """Aims of the central path: product of a pair = mu * weight; leaf [m] (each of its pairs), node [n], spare [T]."""

    leaf: Array
    node: Array
    spare: Array
    total: float


def solve(layout: Layout, point: Point, gap: float, max_steps: int = 200) -> int:
    """Move `point` along the central path until the duality gap of the tangent LP is at most `gap`; steps taken.

    Stops early, without an error, when no further progress is possible: the caller certifies whatever was reached.
    """
    weights, length = path_weights(layout), 1.0
    for count in range(max_steps):
        if complementarity(point) <= gap and np.abs(leaf_residual(layout, point)).max() <= RESIDUAL:
            return count
        before = length
        try:
            with np.errstate(all="ignore"):
                length = _advance(layout, point, weights, centre=before < SHORT)
        except Stalled:
            return count
        if max(before, length) < SHORT:
            return count
    return max_steps


def path_weights(layout: Layout) -> Weights:
    """Leaf pairs in proportion to Q + 1/m, largest 1; nodes by `WorkTree.scale`."""
    work = layout.work
    draft = work.draft[layout.order]
    leaf = draft + 1.0 / len(draft)
    leaf /= leaf.max()
    total = 2 * layout.width * leaf.sum() + 2 * work.scale[1:].sum() + len(layout.tangents.t)
    return Weights(leaf, work.scale, np.ones(len(layout.tangents.t)), float(total))


def complementarity(point: Point) -> float:
    """Sum over all pairs of primal times dual: the duality gap of the tangent LP, once C_leaf = sum z."""
    return sum(float(np.vdot(x, y)) for x, y in _pairs(point))


def potential(layout: Layout, point: Point) -> Array:
    """[n] C, the sums of Z along the paths."""
    result = np.zeros(len(point.Z))
    for level in layout.work.levels[1:]:
        result[level] = result[layout.work.parent[level]] + point.Z[level]
    return result


def leaf_residual(layout: Layout, point: Point) -> Array:
    """[m] C_leaf - sum_i z, the one linear equation a start need not satisfy."""
    residual = potential(layout, point)[layout.work.leaves[layout.order]] - point.z.sum(0)
    cumulative = np.append(np.cumsum(point.mu[::-1])[::-1], 0.0)
    for part in layout.parts:
        residual[part.leaves] -= cumulative[part.first + layout.width]
    return residual


def _advance(layout: Layout, point: Point, weights: Weights, centre: bool = False) -> float:
    """One predictor-corrector step, or one towards the centre only; the longer of its two step lengths."""
    newton = Newton(layout, point)
    mu, residual = complementarity(point) / weights.total, leaf_residual(layout, point)
    sides = Sides.empty(point, residual)
    affine = newton.step(_aim_at(sides, point, weights, 0.0))
    ahead = _complementarity_after(point, affine, *_longest(point, affine, weights))
    aim = mu if centre else mu * float(np.clip((ahead / (mu * weights.total)) ** 3, 1e-6, 0.7))
    step = newton.step(_aim_at(sides, point, weights, aim, None if centre else affine))
    lengths = _longest(point, step, weights)
    for _ in range(EXTRA_CORRECTORS):
        sides.potential[:] = 0.0
        extra = newton.step(_pull_back(sides, point, step, weights, aim, *lengths))
        for field in fields(step):
            getattr(extra, field.name)[...] += getattr(step, field.name)
        longer = _longest(point, extra, weights)
        if not sum(longer) >= sum(lengths) + 0.02:
            break
        step, lengths = extra, longer
    primal, dual = _kept_central(point, step, weights, TO_BOUNDARY * lengths[0], TO_BOUNDARY * lengths[1])
    if not np.isfinite(_complementarity_after(point, step, primal, dual)):
        raise Stalled("a step is not finite")
    point.move(step, primal, dual)
    return max(primal, dual)


def _pairs(point: Point) -> list[tuple[Array, Array]]:
    """The complementary pairs: (s, z), (v, y), (m, Z), (r, D), (v0, mu), the root left out."""
    nodes = [(point.m[1:], point.Z[1:]), (point.r[1:], point.D[1:])]
    return [(point.s, point.z), (point.v, point.y), *nodes, (point.spare, point.mu)]


def _targets(sides: Sides) -> list[Array]:
    return [sides.s, sides.v, sides.m[1:], sides.r[1:], sides.mu]


def _pieces(weights: Weights) -> Iterator[tuple[int, Any, Array]]:
    """Which pair, which block of its last axis, and the weights there: blocks stay in the processor's cache."""
    for kind, weight in enumerate([weights.leaf, weights.leaf, weights.node[1:], weights.node[1:], weights.spare]):
        for begin in range(0, len(weight), CHUNK):
            yield kind, np.s_[..., begin : begin + CHUNK], weight[begin : begin + CHUNK]


def _aim_at(sides: Sides, point: Point, weights: Weights, aim: float, affine: Point | None = None) -> Sides:
    """Fill in aim * weight - product of every pair, less the product of an earlier step's changes."""
    targets, pairs, changes = _targets(sides), _pairs(point), None if affine is None else _pairs(affine)
    for kind, block, weight in _pieces(weights):
        side, (x, y) = targets[kind][block], pairs[kind]
        np.multiply(x[block], y[block], out=side)
        np.subtract(aim * weight, side, out=side)
        if changes is not None:
            side -= changes[kind][0][block] * changes[kind][1][block]
    return sides


def _pull_back(
    sides: Sides, point: Point, step: Point, weights: Weights, aim: float, primal: float, dual: float
) -> Sides:
    """Gondzio's corrector: pull the products of a longer trial step back into [0.1, 10] times their aim."""
    primal, dual = min(1.0, 1.3 * primal + 0.1), min(1.0, 1.3 * dual + 0.1)
    targets, pairs, changes = _targets(sides), _pairs(point), _pairs(step)
    for kind, block, weight in _pieces(weights):
        (x, y), (dx, dy) = pairs[kind], changes[kind]
        trial = (x[block] + primal * dx[block]) * (y[block] + dual * dy[block])
        pulled = np.clip(trial, 0.1 * aim * weight, 10.0 * aim * weight)
        pulled -= trial
        np.maximum(pulled, -10.0 * aim * weight, out=targets[kind][block])
    return sides


def _longest(point: Point, step: Point, weights: Weights) -> tuple[float, float]:
    """Largest primal and dual step lengths in [0, 1] that keep every slack nonnegative."""
    steepest, pairs, changes = [1.0, 1.0], _pairs(point), _pairs(step)
    for kind, block, _ in _pieces(weights):
        for side in range(2):
            fall = -float((changes[kind][side][block] / pairs[kind][side][block]).min())
            if not fall <= steepest[side]:
                steepest[side] = fall
    return 1.0 / steepest[0], 1.0 / steepest[1]


def _complementarity_after(point: Point, step: Point, primal: float, dual: float) -> float:
    total = 0.0
    for (x, y), (dx, dy) in zip(_pairs(point), _pairs(step), strict=True):
        total += float(
            np.vdot(x, y) + primal * np.vdot(dx, y) + dual * np.vdot(x, dy) + primal * dual * np.vdot(dx, dy)
        )
    return total


def _kept_central(point: Point, step: Point, weights: Weights, primal: float, dual: float) -> tuple[float, float]:
    """Shorten the step until no product falls below CENTRALITY times its aim (or half of where the worst is now)."""
    floor = min(CENTRALITY, 0.5 * _worst_product(point, step, weights, 0.0, 0.0))
    for _ in range(60):
        if _worst_product(point, step, weights, primal, dual) >= floor:
            break
        primal, dual = 0.85 * primal, 0.85 * dual
    return primal, dual


def _worst_product(point: Point, step: Point, weights: Weights, primal: float, dual: float) -> float:
    """Smallest product of a pair after the step, over mu * weight."""
    average = _complementarity_after(point, step, primal, dual) / weights.total
    worst, pairs, changes = np.inf, _pairs(point), _pairs(step)
    for kind, block, weight in _pieces(weights):
        (x, y), (dx, dy) = pairs[kind], changes[kind]
        product = (x[block] + primal * dx[block]) * (y[block] + dual * dy[block])
        worst = min(worst, float((product / weight).min()))
    return worst / average


def start(layout: Layout, guess: Guess) -> Point:
    """A strictly feasible point near the guess, every pair of products as equal as it can be made.

    kappa goes a part `guess.mix` of the way to 0.4 Q, which opens all slacks; then phi by the recursion of single-path
    verification, shrunk; the worth 1 + sum p D of a node is split between Z and D in inverse proportion to m and r,
    and mu between z and y to s and v. With multipliers from an earlier solution Z and mu are mixed with those.
    """
    work, mix = layout.work, guess.mix
    size, count = len(work.parent), len(layout.tangents.t)
    kappa = ((1.0 - mix) * guess.kappa + mix * 0.4 * work.draft)[layout.order]
    mass = np.zeros(size)
    mass[work.leaves[layout.order]] = kappa
    for level in reversed(work.levels[1:]):
        mass += np.bincount(work.parent[level], mass[level], minlength=size)
    phi, room, limit = np.ones(size), 0.1 * mix / len(kappa), work.cap.copy()
    for level in work.levels[1:]:
        if not work.transport:
            limit[level] = work.p[level] * phi[work.parent[level]]
        phi[level] = (1.0 - 0.2 * mix) * np.minimum(mass[level], limit[level]) - room
    r, m = limit - phi, mass - phi
    D, Z = np.ones(size), np.ones(size)
    for level in reversed(work.levels[1:]):
        part = np.clip(m[level] / (m[level] + r[level]), 0.01, 0.99)
        Z[level] = (1.0 - part) * D[level]
        D[level] *= part
        D += np.bincount(work.parent[level], work.p[level] * D[level], minlength=size)
    if guess.Z is not None and guess.D is not None:
        Z, D = mix * Z + (1.0 - mix) * guess.Z, mix * D + (1.0 - mix) * guess.D
    for values in (r, m, Z, D):
        values[0] = 1.0
    s, v, spare = _shared_slack(layout, kappa, mix)
    point = Point(phi, r, m, D, Z, kappa, s, v, v.copy(), s.copy(), np.empty(count), spare)
    least = mix * (0.2 * (len(work.levels) - 1) + 0.1 / layout.tangents.height) / count
    point.mu[:] = (_multipliers(layout, point) if guess.mu is None else guess.mu) + least
    for part in layout.parts:
        mu = point.mu[part.first : part.first + layout.width, None]
        point.z[:, part.leaves] *= mu / (s[:, part.leaves] + v[:, part.leaves])
        point.y[:, part.leaves] *= mu / (s[:, part.leaves] + v[:, part.leaves])
    return point


def _multipliers(layout: Layout, point: Point) -> Array:
    """[T] mu such that the leaves between two slopes have the right C on average."""
    slope, work = layout.tangents.slope, layout.work
    draft = work.draft[layout.order]
    rank = np.searchsorted(-slope, -point.kappa / draft)
    reached = potential(layout, point)[work.leaves[layout.order]]
    total, weight = (np.bincount(rank, w, minlength=len(slope) + 1)[:-1] for w in (draft * reached, draft))
    cumulative = np.divide(total, weight, out=np.zeros(len(slope)), where=weight > 0)
    cumulative = np.maximum.accumulate(cumulative[::-1])[::-1]
    return -np.diff(cumulative, append=0.0)


def _shared_slack(layout: Layout, kappa: Array, mix: float) -> tuple[Array, Array, Array]:
    """s, v and v0 for a kappa strictly inside: every tangent's slack is shared among its leaves."""
    tangents, width, draft = layout.tangents, layout.width, layout.work.draft[layout.order]
    share = 0.85 * draft + 0.15 / len(draft)
    free, shares = tangents.height.copy(), np.zeros(len(tangents.t))
    v = np.empty((width, len(kappa)))
    s = np.empty_like(v)
    decided = np.zeros((len(tangents.t) + 1, 2))
    for part in layout.parts:
        window, leaves = slice(part.first, part.first + width), part.leaves
        excess = kappa[leaves] - tangents.slope[window, None] * draft[leaves]
        v[:, leaves], s[:, leaves] = np.maximum(excess, 0.0), np.maximum(-excess, 0.0)
        free[window] -= v[:, leaves].sum(1)
        shares[window] += share[leaves].sum()
        decided[part.first + width] += kappa[leaves].sum(), draft[leaves].sum()
    passed = np.cumsum(decided, axis=0)[:-1]
    free -= passed[:, 0] - tangents.slope * passed[:, 1]
    spare = np.where(shares > 0, 0.05, 1.0) * free
    rate = (free - spare) / np.maximum(shares, 1e-300)
    for part in layout.parts:
        extra = rate[part.first : part.first + width, None] * share[part.leaves]
        v[:, part.leaves] += extra
        s[:, part.leaves] += extra
    return s, v, spare


def _add_scaled(values: Array, change: Array, length: float) -> None:
    for begin in range(0, values.shape[-1], CHUNK):
        block = np.s_[..., begin : begin + CHUNK]
        values[block] += length * change[block]
