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

The elimination is derived, equation by equation, on the page "The interior point" of the documentation
(docs/interior-point.md); the numbers in the comments, (N1) and so on, are those of the page.

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
    """Right-hand sides of a Newton step, (N1)-(N4) and (N9), one entry per pair; C_leaf - sum_i z is brought to 0 from
    `potential` [m]."""

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


# ---------------------------------------------------------------------- elimination (docs/interior-point.md)


@dataclass(frozen=True, eq=False)
class Response:
    """What the children of inner nodes answer to dC = c and dphi = f of their parent, and to the border dM, (E1)-(E2):

        sum of dkappa   =  mass_0  + mass_M dM  + mass_c c + cross f
        sum of p dD     =  worth_0 + worth_M dM + cross c - worth_f f

    Attributes:
        mass_c, worth_f, cross [nodes]; mass_M, worth_M [nodes, T+1]. The constants are those of a `Load`.
    """

    mass_c: Array
    worth_f: Array
    cross: Array
    mass_M: Array
    worth_M: Array

    @classmethod
    def zero(cls, nodes: int, tangents: int) -> Response:
        """No children yet."""
        mass_c, worth_f, cross = (np.zeros(nodes) for _ in range(3))
        return cls(mass_c, worth_f, cross, np.zeros((nodes, tangents + 1)), np.zeros((nodes, tangents + 1)))


@dataclass(frozen=True, eq=False)
class LeafPivots:
    """Of the leaves of a part: give, pull [width, k] of their pairs (L1), weight = sum of give, spread = 1 + slack
    weight (L3), pivot of dphi (L4)."""

    part: Part
    give: Array
    pull: Array
    weight: Array
    spread: Array
    pivot: Array


@dataclass(frozen=True, eq=False)
class LevelPivots:
    """Of the inner nodes of one level: pivots of dZ (V1) and of dphi (V2), lean = cross - 1, turn (V3), and the
    response of their children, worth_M with dZ eliminated."""

    level: slice
    pivot_c: Array
    pivot_f: Array
    lean: Array
    turn: Array
    mass_c: Array
    mass_M: Array
    worth_M: Array


@dataclass(frozen=True, eq=False)
class Elimination:
    """A factorised Newton matrix: the pivots from the leaves up, and the Cholesky factor of the border that remains.

    slack = m/Z and stiff = D/r of the nodes.
    """

    layout: Layout
    point: Point
    slack: Array
    stiff: Array
    leaves: list[LeafPivots]
    levels: list[LevelPivots]
    factor: tuple[Array, bool]


def eliminate(layout: Layout, point: Point) -> Elimination:
    """Eliminate leaves, then the levels of inner nodes from below; what remains is a border of T multipliers.

    Raises:
        Stalled: the border is not positive definite.
    """
    count, inner = len(point.mu), len(layout.inner)
    slack, stiff = point.m / point.Z, point.D / point.r
    response, border = Response.zero(inner, count), np.zeros((count + 1, count + 1))
    diagonal = point.spare / point.mu
    leaves = [_eliminate_leaves(layout, point, slack, stiff, part, response, border, diagonal) for part in layout.parts]
    levels = [
        _eliminate_level(layout, slack, stiff, level, response, border)
        for level in reversed(layout.inner_levels[1:])
        if level.start < level.stop
    ]
    factor = _factorised(border[:count, :count] + _in_cumulative_basis(diagonal))
    return Elimination(layout, point, slack, stiff, leaves, levels, factor)


def _eliminate_leaves(
    layout: Layout,
    point: Point,
    slack: Array,
    stiff: Array,
    part: Part,
    response: Response,
    border: Array,
    diagonal: Array,
) -> LeafPivots:
    """The pivots of a part; adds its response to the parents' and its share to the border."""
    work, leaves, parents, runs = layout.work, part.leaves, part.parents, part.runs
    lower = point.s[:, leaves] / point.z[:, leaves]
    upper = point.v[:, leaves] / point.y[:, leaves]
    give = 1.0 / (lower + upper)  # (L1)
    pull = give * upper
    weight = give.sum(0)
    slack, stiff, p = slack[part.nodes], stiff[part.nodes], work.p[part.nodes]
    spread = 1.0 + slack * weight  # (L3)
    pivot = weight / spread + stiff  # (L4)
    diagonal[part.first : part.first + len(give)] += (pull * lower).sum(1)  # (B2)
    row = _border_row(pull)
    columns = slice(part.first, part.first + len(row))
    up = slack / spread + 1.0 / (spread * spread * pivot)  # (L6)
    scaled = row * up
    border[columns, columns] += scaled @ row.T  # (B3)
    response.mass_c[parents] += np.add.reduceat(up, runs)
    response.mass_M[parents, columns] -= np.add.reduceat(scaled, runs, axis=1).T
    if not work.transport:
        side = stiff * p / (pivot * spread)  # (L7)
        response.cross[parents] += np.add.reduceat(side, runs)
        response.worth_f[parents] += np.add.reduceat(side * p * weight, runs)  # (L8)
        response.worth_M[parents, columns] -= np.add.reduceat(row * side, runs, axis=1).T
    return LeafPivots(part, give, pull, weight, spread, pivot)


def _eliminate_level(
    layout: Layout, slack: Array, stiff: Array, level: slice, response: Response, border: Array
) -> LevelPivots:
    """The pivots of a level; adds its response to the parents' and its share to the border."""
    node = layout.inner[level]
    slack, stiff, p = slack[node], stiff[node], layout.work.p[node]
    mass_c, cross, mass_M = response.mass_c[level], response.cross[level], response.mass_M[level]
    pivot_c, lean = mass_c + slack, cross - 1.0  # (V1)
    rest = response.worth_f[level] + lean * lean / pivot_c
    pivot_f = rest + stiff  # (V2)
    turn = (mass_c + cross * slack) / pivot_c  # (V3)
    worth_M = response.worth_M[level] - (lean / pivot_c)[:, None] * mass_M  # (V4)
    border += (worth_M / pivot_f[:, None]).T @ worth_M - (mass_M / pivot_c[:, None]).T @ mass_M  # (B4)
    parents, runs = _runs(layout.inner_parent[level])
    response.mass_c[parents] += np.add.reduceat(slack * mass_c / pivot_c + turn * turn / pivot_f, runs)  # (V6)
    up = (slack / pivot_c)[:, None] * mass_M + (turn / pivot_f)[:, None] * worth_M
    response.mass_M[parents] += np.add.reduceat(up, runs, axis=0)
    if not layout.work.transport:
        side = stiff * p / pivot_f  # (V7)
        response.cross[parents] += np.add.reduceat(side * turn, runs)
        response.worth_f[parents] += np.add.reduceat(side * p * rest, runs)  # (V8)
        response.worth_M[parents] += np.add.reduceat(side[:, None] * worth_M, runs, axis=0)
    return LevelPivots(level, pivot_c, pivot_f, lean, turn, mass_c, mass_M, worth_M)


# ---------------------------------------------------------------------- one step


@dataclass(frozen=True, eq=False)
class Load:
    """Constants of the right-hand side at the children's answer: mass_0, worth_0 [inner nodes], and of the nodes'
    own pairs push = side/Z of (N1) and press = side/r of (N2), both [n]."""

    mass_0: Array
    worth_0: Array
    push: Array
    press: Array


def newton_step(newton: Elimination, sides: Sides) -> Point:
    """The step for one right-hand side: its constants up the tree, the border, the changes down the tree."""
    point, layout, work = newton.point, newton.layout, newton.layout.work
    count, inner = len(point.mu), len(layout.inner)
    load = Load(np.zeros(inner), np.zeros(inner), sides.m / point.Z, sides.r / point.r)
    windows, border = -sides.mu / point.mu, np.zeros(count + 1)
    leaf_loads = [_collect_leaves(newton, pivots, sides, load, windows, border) for pivots in newton.leaves]
    level_loads = [_collect_level(newton, pivots, load, border) for pivots in newton.levels]
    border[:count] += np.diff(windows, prepend=0.0)
    cumulative = np.append(-cho_solve(newton.factor, border[:count]), 0.0)  # (B1)
    step = Point(*(np.empty_like(getattr(point, field.name)) for field in fields(point)))
    for values in (step.phi, step.r, step.m, step.D, step.Z):
        values[0] = 0.0
    step.mu[:] = -np.diff(cumulative)
    step.spare[:] = (sides.mu - point.spare * step.mu) / point.mu  # (N9)
    change_c = np.zeros(inner)
    for levels, drive in zip(reversed(newton.levels), reversed(level_loads), strict=True):
        _expand_level(newton, levels, drive, load, cumulative, change_c, step)
    for pivots, constants in zip(newton.leaves, leaf_loads, strict=True):
        _expand_leaves(newton, pivots, constants, sides, load, cumulative, change_c, step)
    step.m[1:] = (sides.m[1:] - point.m[1:] * step.Z[1:]) / point.Z[1:]  # (N1)
    step.r[1:] = work.p[1:] * step.phi[work.parent[1:]] - step.phi[1:]  # (N5)
    step.D[1:] = (sides.r[1:] - point.D[1:] * step.r[1:]) / point.r[1:]  # (N2)
    return step


def _collect_leaves(
    newton: Elimination, pivots: LeafPivots, sides: Sides, load: Load, windows: Array, border: Array
) -> tuple[Array, Array]:
    """(offer, drive) [k] of the leaves of a part, (L2) and (L5); adds their constants to the parents and the border."""
    point, part, leaves = newton.point, pivots.part, pivots.part.leaves
    push, press = load.push[part.nodes], load.press[part.nodes]
    slack, stiff, p = newton.slack[part.nodes], newton.stiff[part.nodes], newton.layout.work.p[part.nodes]
    weight, spread, pivot, pull = pivots.weight, pivots.spread, pivots.pivot, pivots.pull
    upper_side = sides.v[:, leaves] / point.y[:, leaves]
    difference = sides.s[:, leaves] / point.z[:, leaves] - upper_side
    offer = (pivots.give * difference).sum(0) - sides.potential[leaves]  # (L2)
    eased = -(offer + weight * push) / spread
    drive = eased - press  # (L5)
    force = (offer * slack - push) / spread - drive / (pivot * spread)
    last = part.first + len(pull)
    windows[part.first : last] += pull @ force - (upper_side + pull * difference).sum(1)
    border[last] += force.sum()
    load.mass_0[part.parents] += np.add.reduceat(push + slack * eased + drive / (spread * pivot), part.runs)  # (L6)
    load.worth_0[part.parents] += np.add.reduceat(p * (press + stiff * drive / pivot), part.runs)  # (L7)
    return offer, drive


def _collect_level(newton: Elimination, pivots: LevelPivots, load: Load, border: Array) -> Array:
    """drive [k] of the nodes of a level, (V5); adds their constants to the parents and the border."""
    layout, level = newton.layout, pivots.level
    node = layout.inner[level]
    push, press = load.push[node], load.press[node]
    slack, stiff, p = newton.slack[node], newton.stiff[node], layout.work.p[node]
    eased = (load.mass_0[level] - push) / pivots.pivot_c
    drive = load.worth_0[level] - press - pivots.lean * eased  # (V5)
    border += pivots.worth_M.T @ (drive / pivots.pivot_f) - pivots.mass_M.T @ eased
    parents, runs = _runs(layout.inner_parent[level])
    up = push + slack * eased + pivots.turn * drive / pivots.pivot_f
    load.mass_0[parents] += np.add.reduceat(up, runs)  # (V6)
    load.worth_0[parents] += np.add.reduceat(p * (press + stiff * drive / pivots.pivot_f), runs)  # (V7)
    return drive


def _expand_level(
    newton: Elimination,
    pivots: LevelPivots,
    drive: Array,
    load: Load,
    cumulative: Array,
    change_c: Array,
    step: Point,
) -> None:
    """dphi and dZ of a level from those above; `change_c` takes dC of its nodes."""
    layout, level = newton.layout, pivots.level
    node, parent = layout.inner[level], layout.inner_parent[level]
    f_above, c_above = step.phi[layout.inner[parent]], change_c[parent]
    tied = newton.stiff[node] * layout.work.p[node] * f_above
    f = (pivots.worth_M @ cumulative + drive + tied + pivots.turn * c_above) / pivots.pivot_f  # (V2)
    pressure = pivots.mass_M @ cumulative + load.mass_0[level] - load.push[node]
    dz = -(pressure + pivots.lean * f + pivots.mass_c * c_above) / pivots.pivot_c  # (V1)
    change_c[level] = c_above + dz  # (N7)
    step.phi[node], step.Z[node] = f, dz


def _expand_leaves(
    newton: Elimination,
    pivots: LeafPivots,
    constants: tuple[Array, Array],
    sides: Sides,
    load: Load,
    cumulative: Array,
    change_c: Array,
    step: Point,
) -> None:
    """All changes at the leaves of a part from those of their parents and of the border."""
    point, layout, part = newton.point, newton.layout, pivots.part
    leaves, node, (offer, drive) = part.leaves, part.nodes, constants
    parent = layout.leaf_parent[leaves]
    f_above, c_above = step.phi[layout.inner[parent]], change_c[parent]
    slack, push, pull, spread = newton.slack[node], load.push[node], pivots.pull, pivots.spread
    last = part.first + len(pull)
    dmu = step.mu[part.first : last]
    moved = dmu @ pull + cumulative[last]
    tied = newton.stiff[node] * layout.work.p[node] * f_above
    f = ((c_above - moved) / spread + drive + tied) / pivots.pivot  # (L4)
    step.phi[node] = f
    step.Z[node] = (moved + offer + pivots.weight * (push + f) - c_above) / spread  # (L3)
    kappa = (slack * (c_above - moved - offer) + push + f) / spread
    step.kappa[leaves] = kappa
    s, v, z, y = (values[:, leaves] for values in (point.s, point.v, point.z, point.y))
    lower_side, upper_side = sides.s[:, leaves] / z, sides.v[:, leaves] / y
    dz = pull * dmu[:, None] + pivots.give * (lower_side - upper_side + kappa)  # (L1)
    dy = dmu[:, None] - dz  # (N8)
    step.z[:, leaves], step.y[:, leaves] = dz, dy
    step.s[:, leaves], step.v[:, leaves] = lower_side - s / z * dz, upper_side - v / y * dy  # (N3), (N4)


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
    newton = eliminate(layout, point)
    mu, residual = complementarity(point) / weights.total, leaf_residual(layout, point)
    sides = Sides.empty(point, residual)
    affine = newton_step(newton, _aim_at(sides, point, weights, 0.0))
    ahead = _complementarity_after(point, affine, *_longest(point, affine, weights))
    aim = mu if centre else mu * float(np.clip((ahead / (mu * weights.total)) ** 3, 1e-6, 0.7))
    step = newton_step(newton, _aim_at(sides, point, weights, aim, None if centre else affine))
    lengths = _longest(point, step, weights)
    for _ in range(EXTRA_CORRECTORS):
        sides.potential[:] = 0.0
        extra = newton_step(newton, _pull_back(sides, point, step, weights, aim, *lengths))
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
