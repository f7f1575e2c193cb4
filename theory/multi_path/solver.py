"""Optimal multi-path verification, K independent drafts: choose the law of ONE draft, then verify it alone.

    lossless          maximise sum over nodes of phi(w),  phi(wy) = min(kappa(wy), p(y|w) phi(w)),  phi(root) = 1
    block-transport   maximise sum over nodes of min(kappa(w), P(w))
    over              B = {kappa >= 0 on full drafts : kappa(S) <= g(Q(S)) for every set S},  g(t) = 1 - (1-t)^K

kappa is the law of the selected draft; p, q are the conditionals of target and draft, P, Q their joints. The
accepted prefix W lies on some draft, so "pick such a draft" has a law in B and phi(w) <= kappa(w); conversely every
kappa in B is the law of a selection rule (`verifier_table`), and block verification against kappa attains phi. So
the antichain LP over all prefixes (`feasibility`) becomes a concave program over the law of one draft.

Method: g is replaced by tangents (an LP), solved by `interior_point`; tangents are added where the solution violates
g, until the exact bounds of `certificates` meet. Only those bounds are ever reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..duality import increments, kept_mass, upper_bound
from ..feasibility import coverage, selected_mass
from ..numbers import Array
from ..prefix_tree import PrefixTree
from ..solution import CertificateError, Solution, check_paths
from . import interior_point
from .certificates import PathObjective, check_objective, monotone, selectable, verify_certificate
from .interior_point import Guess, Tangents, WorkTree

FIRST_COVERAGES = (0.09, 0.2, 0.36, 0.58, 0.78, 0.95, 1.0)
SMALLEST_TANGENT, SMALLEST_COVERAGE = 1e-6, 6.4e-5
SMALLEST_GAP = 1e-9
WIDTH = 8
NOTEWORTHY = 0.03
TIE = 0.02
FARTHEST, NEAREST = 0.1, 0.003
RETREATS = (0.03, 0.1, 0.3, 1.0)
SOLVER = "interior point on tangents"


@dataclass(frozen=True)
class Progress:
    """Progress after one round: certified bounds so far, number of tangents, Newton steps of the round, seconds."""

    value: float
    bound: float
    tangents: int
    steps: int
    seconds: float


def lossless_optimum(
    tree: PrefixTree,
    paths: int,
    tol: float = 1e-6,
    max_rounds: int = 20,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """The largest expected acceptance length of a stateless lossless verifier of K independent drafts.

    Args:
        paths: K >= 1. tol: largest certified gap, in tokens per round. max_rounds: rounds of adding tangents.
        progress: called after every round.
    Returns:
        value <= optimum <= bound, both evaluated exactly; phi of a verifier that attains value; kappa and C.
    Raises:
        ValueError: paths, tol or max_rounds out of range.
        CertificateError: the bounds did not meet; says how close they came and what to try.
    """
    return _optimum(tree, paths, "lossless", tol, max_rounds, progress)


def transport_optimum(
    tree: PrefixTree,
    paths: int,
    tol: float = 1e-6,
    max_rounds: int = 20,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """The largest E[longest common prefix of a target block with any of K independent drafts] over all couplings.

    Arguments, result and errors as in `lossless_optimum`. No stateless lossless verifier exceeds it, and in general
    none attains it; `lossless` is False.
    """
    return _optimum(tree, paths, "block-transport", tol, max_rounds, progress)


def _optimum(
    tree: PrefixTree,
    paths: int,
    objective: PathObjective,
    tol: float,
    max_rounds: int,
    progress: Callable[[Progress], None] | None,
) -> Solution:
    check_paths(paths)
    check_objective(objective)
    if not 0 < tol < np.inf:
        raise ValueError(f"tol is {tol}; want a positive number, e.g. 1e-6")
    if max_rounds < 1:
        raise ValueError(f"max_rounds is {max_rounds}; want at least 1")
    tree = tree.as_float() if tree.exact else tree
    bounds = Bounds(tree, paths, objective)
    draft = tree.draft_joint[tree.leaves]
    bounds.offer(draft, best_response(tree, draft, objective))
    if paths > 1 and bounds.gap > tol:
        _close(bounds, tol, max_rounds, progress)
    if bounds.gap > tol:
        reached = f"the bounds [{bounds.value:.9g}, {bounds.bound:.9g}] are {bounds.gap:.3g} apart"
        status = f"{reached}, the tolerance is {tol:.3g}"
        raise CertificateError(SOLVER, status, "raise max_rounds, or ask for a larger tolerance")
    return verify_certificate(
        tree,
        paths,
        bounds.kappa,
        bounds.potential,
        objective,
        solver=SOLVER if paths > 1 else "closed form",
        seconds=time.perf_counter() - bounds.begin,
        tolerance=tol,
    )


class Bounds:
    """The best witnesses so far; whatever is offered is evaluated exactly before it counts."""

    def __init__(self, tree: PrefixTree, paths: int, objective: PathObjective) -> None:
        self.tree, self.paths, self.objective = tree, paths, objective
        self.value, self.bound = -np.inf, np.inf
        self.kappa, self.potential = np.zeros(len(tree.bonus)), np.zeros(tree.size)
        self.begin = time.perf_counter()

    @property
    def gap(self) -> float:
        return self.bound - self.value

    def offer(self, kappa: Array, potential: Array) -> None:
        """Keep kappa if its value is larger, the potential if its dual value is smaller."""
        tree = self.tree
        kappa = selectable(kappa, tree.draft_joint[tree.leaves], self.paths)
        value = float(kept_mass(tree, selected_mass(tree, kappa), self.objective)[1:].sum())
        if value > self.value:
            self.value, self.kappa = value, kappa
        potential = monotone(tree, potential)
        bound = upper_bound(tree, self.paths, self.objective, increments(tree, potential))
        if bound < self.bound:
            self.bound, self.potential = bound, potential


def best_response(tree: PrefixTree, kappa: Array, objective: PathObjective) -> Array:
    """[n] the potential that proves kappa optimal when nothing else may be selected (K = 1: kappa = Q).

    Block transport: C grows by 1 where kappa(w) < P(w). Lossless: with D(w) the worth of raising phi(w)'s limit
    p phi(parent), C grows by 1 + sum_y p(y|w) D(wy) where kappa(w) < p phi(parent), and D(w) is that sum elsewhere.
    """
    mass = selected_mass(tree, kappa)
    phi = kept_mass(tree, mass, objective)
    if objective == "block-transport":
        growth = (mass < tree.target_joint).astype(float)
    else:
        worth, growth = np.ones(tree.size), np.zeros(tree.size)
        for level in reversed(tree.levels[1:]):
            held = mass[level] < tree.target[level] * phi[tree.parent[level]]
            growth[level] = np.where(held, worth[level], 0.0)
            passed = np.where(held, 0.0, tree.target[level] * worth[level])
            worth += np.bincount(tree.parent[level], passed, minlength=tree.size)
    potential = np.zeros(tree.size)
    for level in tree.levels[1:]:
        potential[level] = potential[tree.parent[level]] + growth[level]
    return potential


# ---------------------------------------------------------------------- rounds


def _close(bounds: Bounds, tol: float, max_rounds: int, progress: Callable[[Progress], None] | None) -> None:
    """Solve the tangent LP, evaluate, add tangents where g is violated, and again until the gap is at most tol."""
    work = work_tree(bounds.tree, bounds.paths, bounds.objective, tol)
    least = min(SMALLEST_TANGENT, SMALLEST_COVERAGE / bounds.paths)
    points = np.unique(-np.expm1(np.log1p(-np.array(FIRST_COVERAGES[:-1])) / bounds.paths))
    points = np.append(np.maximum(points, least), 1.0)
    width, wider, aim = len(points), WIDTH, 2e-4
    guess = Guess(ratio_priority(work, bounds.paths), FARTHEST)
    density = guess.kappa / work.draft
    for _ in range(max_rounds):
        tangents = tangents_at(points, bounds.paths)
        layout = interior_point.plan(work, tangents, density, width)
        for mix in (guess.mix, *RETREATS):
            point = interior_point.start(layout, replace(guess, mix=mix))
            steps = interior_point.solve(layout, point, aim)
            if steps >= 3:
                break
        kappa, potential = np.empty(len(work.leaves)), interior_point.potential(layout, point)
        kappa[layout.order] = point.kappa
        bounds.offer(*_on_tree(bounds.tree, work, kappa, potential))
        if progress is not None:
            seconds = time.perf_counter() - bounds.begin
            progress(Progress(bounds.value, bounds.bound, len(points), steps, seconds))
        if bounds.gap <= tol:
            return
        density = located(kappa / work.draft, potential[work.leaves], tangents, point.mu)
        profile = Profile.of(work, kappa)
        violation = profile.kappa - coverage(profile.t, bounds.paths)
        if profile.excess(tangents) > 0.1 * violation.max():
            wider += WIDTH // 2
        else:
            points = refined(points, profile, violation, least)
        width = wider
        mu = np.where(np.isin(points, tangents.t), np.interp(points, tangents.t, point.mu), 0.0)
        mix = float(np.clip(3 * np.sqrt(bounds.gap), NEAREST, FARTHEST))
        guess = Guess(selectable(np.maximum(kappa, 0.0), work.draft, bounds.paths), mix, point.Z, point.D, mu)
        aim = max(SMALLEST_GAP, min(2e-4, 0.03 * bounds.gap, max(0.3 * tol, 0.02 * bounds.gap)))


def ratio_priority(work: WorkTree, paths: int) -> Array:
    """[m] a good law to start from: always select the draft with the largest sum of min(K, P/Q) along its path."""
    mass = np.zeros(len(work.parent))
    mass[work.leaves] = work.draft
    for level in reversed(work.levels[1:]):
        mass += np.bincount(work.parent[level], mass[level], minlength=len(mass))
    priority = np.minimum(paths, work.cap / mass)
    for level in work.levels[1:]:
        priority[level] += priority[work.parent[level]]
    order = np.argsort(-priority[work.leaves], kind="stable")
    result = np.empty(len(work.leaves))
    result[order] = np.diff(coverage(np.minimum(np.cumsum(work.draft[order]), 1.0), paths), prepend=0.0)
    return result


def tangents_at(points: Array, paths: int) -> Tangents:
    """Tangents of g at the points in (0, 1]: slope K (1-t)^(K-1), height g(t) - t slope."""
    with np.errstate(divide="ignore"):
        slope = paths * np.exp((paths - 1) * np.log1p(-points))
    return Tangents(points, slope, coverage(points, paths) - points * slope)


@dataclass(frozen=True, eq=False)
class Profile:
    """Leaves by falling density kappa/Q [m], and of each first so many of them: draft mass t and kappa, both [m]."""

    density: Array
    t: Array
    kappa: Array

    @classmethod
    def of(cls, work: WorkTree, kappa: Array) -> Profile:
        density = kappa / work.draft
        order = np.argsort(-density, kind="stable")
        return cls(density[order], np.minimum(np.cumsum(work.draft[order]), 1.0), np.cumsum(kappa[order]))

    def excess(self, tangents: Tangents) -> float:
        """max over tangents of sum (kappa - lam_i Q)+ - h_i: above 0 only as far as windows were misplaced."""
        last = np.searchsorted(-self.density, -tangents.slope) - 1
        over = np.where(last >= 0, self.kappa[last] - tangents.slope * self.t[last], 0.0) - tangents.height
        return float(over.max())


def refined(points: Array, profile: Profile, violation: Array, least: float) -> Array:
    """These tangent points and 1, and in every arc between two of them the worst violation of g, at `least`."""
    points = np.union1d(points, 1.0)
    arc = np.minimum(np.searchsorted(points, profile.t), len(points) - 1)
    worst = np.full(len(points), -np.inf)
    np.maximum.at(worst, arc, violation)
    bad = (violation == worst[arc]) & (violation > max(NOTEWORTHY * violation.max(), 0.0))
    return np.union1d(points, np.maximum(profile.t[bad], least))


def located(density: Array, potential: Array, tangents: Tangents, mu: Array) -> Array:
    """[m] where on the slope axis each leaf belongs: kappa/Q, corrected by what its potential C says.

    A leaf with kappa/Q above slope i collects mu_i, mu_(i+1), ..., so C below that sum means kappa/Q <= slope i, and
    C above the next sum means kappa/Q >= slope i. For leaves that drafts hardly reach C is the more accurate of both.
    """
    collected = -np.cumsum(mu[::-1])[::-1]
    above = np.searchsorted(collected, -(potential + TIE))
    below = np.searchsorted(collected, -(potential - TIE), side="right")
    slope = np.append(2 * tangents.slope[0], tangents.slope)
    return np.clip(density, slope[below], slope[above])


# ---------------------------------------------------------------------- the tree that is solved


def work_tree(tree: PrefixTree, paths: int, objective: PathObjective, tol: float) -> WorkTree:
    """The tree without the nodes that drafts reach so rarely that they cannot matter: L g(Q) below tol/100 in all."""
    negligible = 0.01 * tol / (paths * tree.length * tree.size)
    kept = np.flatnonzero(tree.draft_joint > negligible)
    index = np.zeros(tree.size, dtype=np.int64)
    index[kept] = np.arange(len(kept))
    parent = index[np.maximum(tree.parent[kept], 0)]
    transport = objective == "block-transport"
    P, Q = tree.target_joint[kept], tree.draft_joint[kept]
    p = np.zeros(len(kept)) if transport else tree.target[kept].copy()
    levels = [slice(*np.searchsorted(kept, (level.start, level.stop)).tolist()) for level in tree.levels]
    levels = [level for level in levels if level.start < level.stop]
    childless = np.ones(len(kept), dtype=bool)
    childless[parent] = False
    leaves = np.flatnonzero(childless)
    single = np.minimum(P, Q)
    for level in levels[1:]:
        if not transport:
            single[level] = np.minimum(Q[level], p[level] * single[parent[level]])
    scale = np.sqrt(single + 1.0 / len(leaves))
    return WorkTree(kept, parent, p, P, leaves, Q[leaves], levels, scale / scale[1:].max(), transport)


def _on_tree(tree: PrefixTree, work: WorkTree, kappa: Array, potential: Array) -> tuple[Array, Array]:
    """kappa [leaves] and C [n] on the whole tree: mass spread in proportion to Q, and L more for omitted nodes."""
    density, full = np.full(tree.size, -1.0), np.full(tree.size, -1.0)
    density[work.kept] = 0.0
    density[work.kept[work.leaves]] = np.maximum(kappa, 0.0) / work.draft
    full[work.kept] = potential
    for level in tree.levels[1:]:
        above, omitted = tree.parent[level], full[level] < 0
        density[level] = np.where(omitted, density[above], density[level])
        full[level] = np.where(omitted, full[above] + tree.length, full[level])
    leaves = tree.leaves
    return density[leaves] * tree.draft_joint[leaves], full
