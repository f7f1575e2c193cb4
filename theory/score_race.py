"""The score race: every draft competes with a score of its own, and block verification checks the winner.

Each of K drafts draws a score, uniform on [0, 1] over all drafts; the smallest wins. Node w carries the measure

    m_w(ds) = Pr(a draft passes through w with its score in ds),   m_root(ds) = ds
    kappa(w) = integral of g'(s) m_w(ds) = Pr(the winner passes through w),   g(t) = 1 - (1-t)^K

and a rule splits m_w = sum_y m_wy, |m_wy| = Q(wy), with nothing but the rows on the path. Block verification against
kappa is lossless for every split, phi(wy) = min(kappa(wy), p(y|w) phi(w)), and every law that a selection of one draft
can have is the law of some split. The rules here cut m_w into a lower and an upper part and give token y the share
`level_y` of the lower one; u1, u0 are the means of g' over the parts, d_y = phi(w) p(y|w), c_y = Q(wy):

    two parts     the smallest cut with sum_y clip(d_y, u0 c_y, u1 c_y) <= kappa(w); level_y = (d_y/c_y - u0)/(u1 - u0)
    best set      S, the tokens of highest d/c, minimises G_w(c(S)) - d(S), G_w(x) the value of the lowest-score mass x;
                  S takes the lowest-score mass c(S), the others the rest, and both are cut as above
    reserve       b_y = phi of block verification at wy: the lower bound is u0 c_y + b_y (1 - u0)^+, the cut never
                  passes u1 = 1. Keeps G_w(b_w) >= b_w, hence phi >= phi of block verification at every node
    safe          best set, unless that could cost more further down than it gains here; then the reserve at slope sigma

Letters: p, q rows of target and draft; P, Q joint laws; N nodes of a level, M children, J knots of a measure.
Everything is per draft through w: masses are divided by Q(w), so that a node's measure has mass 1.
Source: this project's own; block verification, arXiv:2403.10444.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from .numbers import Array
from .prefix_tree import PrefixTree
from .solution import check_paths

Rule = Literal["two-part", "best-set", "safe", "two-part-reserved", "best-set-reserved", "best-set-soft"]
SLACK = 8 * float(np.finfo(float).eps)
HALVINGS = 60
LARGEST_RATIO = 1e300  # of tokens that drafts all but never hold: times K it is still a number
FULL_RESERVE_LEVELS = 3


@dataclass(frozen=True)
class Measure:
    """Laws of a draft's score, one per node: uniform between knots.

    Attributes:
        score [N, J]: the knots, ascending from 0 to 1.
        below [N, J]: probability of a score below each knot, ascending from 0 to 1.
        paths: K.
    """

    score: Array
    below: Array
    paths: int

    @cached_property
    def worth(self) -> Array:
        """[N, J] value of the scores below each knot."""
        steps = np.diff(self.below, axis=1) * mean_slope(self.score[:, :-1], self.score[:, 1:], self.paths)
        return np.concatenate([np.zeros((len(steps), 1)), steps.cumsum(axis=1)], axis=1)

    def at(self, mass: Array) -> tuple[Array, Array]:
        """For lowest-score mass [N, ...] in [0, 1]: the score that bounds it, and its value G(mass)."""
        shape = mass.shape
        mass = mass.reshape(len(mass), -1)
        piece = (self.below[:, None, 1:-1] <= mass[:, :, None]).sum(axis=2)
        row = np.arange(len(mass))[:, None]
        start, end, before, value = (
            array[row, piece] for array in (self.score, self.score[:, 1:], self.below, self.worth)
        )
        step = self.below[row, piece + 1] - before
        inside = np.clip(mass - before, 0, step)
        score = start + (end - start) * np.divide(inside, step, out=np.zeros_like(inside), where=step > 0)
        value = value + inside * mean_slope(start, score, self.paths)
        return score.reshape(shape), value.reshape(shape)

    def value(self, mass: Array) -> Array:
        """G [N, ...]: the value of the lowest-score mass [N, ...]."""
        return self.at(mass)[1]


def mean_slope(start: Array, end: Array, paths: int) -> Array:
    """Mean of g'(s) = K (1-s)^(K-1) over start <= s <= end, without cancellation."""
    left, gap = 1 - start, end - start
    narrow = np.divide(gap, left, out=np.zeros_like(gap), where=left > 0)
    with np.errstate(divide="ignore"):
        part = -np.expm1(paths * np.log1p(-np.minimum(narrow, 1)))
    point = paths * left ** (paths - 1)
    return np.where(narrow > 0, left ** (paths - 1) * np.divide(part, narrow, out=part.copy(), where=narrow > 0), point)


@dataclass(frozen=True)
class Rows:
    """What a rule sees at N nodes; everything per draft through the node.

    Attributes:
        draft [N, M]: q(y|w), 0 where there is no token.
        wanted [N, M]: d/c = phi(w) p(y|w) / Q(wy), 0 where there is no token.
        kept [N, M]: b/c, block verification's ratio phi(wy) / Q(wy), in [0, 1].
        slope [N]: sigma, the value per mass that the reserve is owed.
    """

    draft: Array
    wanted: Array
    kept: Array
    slope: Array


@dataclass(frozen=True)
class Split:
    """Shares of the children in their node's measure: token y takes its scores from the masses first .. last.

    Attributes:
        level [N, M]: share of y's mass that comes from first .. cut; the rest from cut .. last.
        first, cut, last [N, M].
    """

    level: Array
    first: Array
    cut: Array
    last: Array

    def where(self, mask: Array, other: Split) -> Split:
        """This split where the mask (broadcast to [N, M]) holds, the other one elsewhere."""
        pairs = ((self.level, other.level), (self.first, other.first), (self.cut, other.cut), (self.last, other.last))
        return Split(*(np.where(mask, mine, theirs) for mine, theirs in pairs))


def acceptance(tree: PrefixTree, paths: int, rule: Rule = "safe") -> Array:
    """[n] phi of the score race with K = `paths` drafts: phi(wy) = min(kappa(wy), p(y|w) phi(w)), in float64.

    Raises:
        ValueError: paths is not a positive integer, or there is no such rule.
    """
    return acceptances([tree], paths, rule)[0]


def acceptances(trees: Sequence[PrefixTree], paths: int, rule: Rule = "safe") -> list[Array]:
    """`acceptance` of many trees of one length at once, in a fraction of the time.

    Raises:
        ValueError: no trees or trees of different lengths; otherwise as `acceptance`.
    """
    return [phi for phi, _ in _races(trees, paths, rule)]


def phi_and_selection(tree: PrefixTree, paths: int, rule: Rule = "safe") -> tuple[Array, Array]:
    """[n] phi, and [n] kappa, the law of the selected draft."""
    return _races([tree], paths, rule)[0]


def _races(trees: Sequence[PrefixTree], paths: int, rule: Rule) -> list[tuple[Array, Array]]:
    """phi and kappa of each tree; all trees are one forest, their roots the first level."""
    check_paths(paths)
    if rule not in get_args(Rule):
        raise ValueError(f"rule is {rule!r}; want one of {', '.join(get_args(Rule))}")
    if len({tree.length for tree in trees}) != 1:
        raise ValueError(f"the trees have lengths {sorted({tree.length for tree in trees})}; want one length")
    trees, length = [tree.as_float() for tree in trees], trees[0].length
    ends = np.cumsum([tree.size for tree in trees])
    roots = ends - [tree.size for tree in trees]
    below = [
        (own.start + root, own.stop + root) for tree, root in zip(trees, roots, strict=True) for own in tree.children
    ]
    slices = np.array(below, dtype=np.int64).reshape(-1, 2)
    target_of, draft_of = (np.concatenate([getattr(tree, name) for tree in trees]) for name in ("target", "draft"))
    density, ratio, kept = (np.zeros(len(slices)) for _ in range(3))  # kappa, phi and block's phi over Q
    density[roots] = ratio[roots] = kept[roots] = 1.0
    whole = np.tile([0.0, 1.0], (len(trees), 1))
    measure, slope, nodes = Measure(whole, whole, paths), np.ones(len(trees)), roots
    for depth in range(length):
        child = _children(slices, nodes)
        if child.size == 0:
            break
        there = child >= 0
        draft, target = (np.where(there, row[child], 0.0) for row in (draft_of, target_of))
        with np.errstate(over="ignore"):
            likely = np.divide(target, draft, out=np.zeros_like(draft), where=draft > 0)
        likely = np.minimum(likely, LARGEST_RATIO)
        block = np.minimum(1, kept[nodes, None] * likely)
        rows = Rows(draft, ratio[nodes, None] * likely, block, slope)
        split, slopes = _split(measure, rows, rule, length - depth - 1)
        law = densities(measure, split)
        density[child[there]] = law[there]
        ratio[child[there]] = np.minimum(law, rows.wanted)[there]
        kept[child[there]] = block[there]
        alive = there & (draft > 0)
        measure, slope, nodes = children(measure, split, alive), slopes[alive], child[alive]
    joint = np.concatenate([tree.draft_joint for tree in trees])
    phis, kappas = (np.split(values * joint, ends[:-1]) for values in (ratio, density))
    return list(zip(phis, kappas, strict=True))


def _children(slices: Array, nodes: Array) -> Array:
    """[N, M] the children of each node, -1 where there are fewer than M; slices [n, 2]: the first, behind the last."""
    first, stop = slices[nodes].T
    places = np.arange((stop - first).max(initial=0))
    return np.where(places < (stop - first)[:, None], first[:, None] + places, -1)


# ---------------------------------------------------------------------- rules


def _split(measure: Measure, rows: Rows, rule: Rule, levels_below: int) -> tuple[Split, Array]:
    """The split of a rule, and sigma [N, M] of the children."""
    slopes = np.repeat(rows.slope[:, None], rows.draft.shape[1], axis=1)
    none = np.zeros_like(rows.kept)
    if rule == "two-part":
        return two_parts(measure, rows, none), slopes
    if rule == "two-part-reserved":
        return two_parts(measure, rows, rows.kept), slopes
    if rule == "best-set":
        return best_set(measure, rows, none), slopes
    if rule == "best-set-reserved":
        return best_set(measure, rows, rows.kept), slopes
    if rule == "best-set-soft":
        return best_set(measure, rows, rows.kept * min(1.0, levels_below / FULL_RESERVE_LEVELS)), slopes
    bold, careful = best_set(measure, rows, none), two_parts(measure, rows, rows.kept)
    kept = densities(measure, bold)
    worth = np.divide(children_value(measure, bold, rows.kept), rows.kept, out=slopes.copy(), where=rows.kept > 0)
    after = np.minimum(slopes, worth)
    risk = levels_below * ((slopes - after) * rows.kept * rows.draft).sum(axis=1)
    gain = ((np.minimum(kept, rows.wanted) - slopes * rows.kept) * rows.draft).sum(axis=1)
    safe = (risk <= gain + SLACK)[:, None]
    return bold.where(safe, careful), np.where(safe, after, slopes)


def two_parts(measure: Measure, rows: Rows, reserve: Array) -> Split:
    """All tokens share the whole measure, cut once."""
    whole = np.zeros(len(rows.draft)), np.ones(len(rows.draft))
    return _cut(measure, rows, reserve, np.ones(rows.draft.shape, dtype=bool), *whole)


def best_set(measure: Measure, rows: Rows, reserve: Array) -> Split:
    """The best set takes the lowest scores, the others the rest; each is cut once."""
    order = np.argsort(-rows.wanted, axis=1, kind="stable")
    draft, wanted, held = (
        np.take_along_axis(array, order, axis=1)
        for array in (rows.draft, rows.draft * rows.wanted, rows.draft * reserve)
    )
    mass, share, reserved = (
        np.concatenate([np.zeros((len(array), 1)), array.cumsum(axis=1)], axis=1) for array in (draft, wanted, held)
    )
    mass = np.minimum(mass / mass[:, -1:], 1)
    value = measure.value(mass)
    owed = reserved[:, -1:] - reserved
    kept = measure.value(np.minimum(mass + owed, 1)) - value >= rows.slope[:, None] * owed - SLACK
    size = np.where(kept, value - share, np.inf).argmin(axis=1)
    rank = np.argsort(order, axis=1)
    inside = rank < size[:, None]
    border = np.take_along_axis(mass, size[:, None], axis=1)[:, 0]
    low = _cut(measure, rows, reserve, inside, np.zeros_like(border), border)
    high = _cut(measure, rows, reserve, ~inside, border, np.ones_like(border))
    return low.where(inside, high)


def _cut(measure: Measure, rows: Rows, reserve: Array, inside: Array, first: Array, last: Array) -> Split:
    """Cut the masses first .. last [N] among the tokens `inside` [N, M] (their draft mass is last - first)."""
    draft = np.where(inside, rows.draft, 0.0)
    owed = rows.slope[:, None]
    bottom, top = measure.value(first), measure.value(last)
    steepest = mean_slope(measure.at(first)[0], measure.at(first)[0], measure.paths)

    def means(cut: Array) -> tuple[Array, Array]:
        """u1 and u0, [N, 1] each."""
        middle = measure.value(cut)
        high = np.divide(middle - bottom, cut - first, out=steepest.copy(), where=cut > first)
        low = np.divide(top - middle, last - cut, out=np.zeros_like(cut), where=last > cut)
        return high[:, None], np.minimum(low, high)[:, None]

    def bounds(cut: Array) -> tuple[Array, Array]:
        """The least that every token must get, and the clipped law, over c."""
        high, low = means(cut)
        least = np.minimum(low + reserve * np.maximum(owed - low, 0), high)
        return least, np.maximum(np.minimum(rows.wanted, high), least)

    def far_enough(cut: Array) -> Array:
        served = (bounds(cut)[1] * draft).sum(axis=1) <= (top - bottom) * (1 + SLACK)
        return served | (held & (measure.value(cut) - bottom < rows.slope * (cut - first) * (1 - SLACK)))

    held: Array = np.asarray(reserve.any(axis=1))
    cut = _bisect(far_enough, first, last)
    high, low = means(cut)
    least, level = (np.clip(_per(bound - low, high - low), 0, 1) for bound in bounds(cut))
    must, used = (draft * least).sum(axis=1), (draft * level).sum(axis=1)
    room = np.clip(np.divide(cut - first - must, used - must, out=np.ones_like(used), where=used > must), 0, 1)
    level = np.where(held[:, None], least + room[:, None] * (level - least), level)
    cut = first + (last - first) * _per((draft * level).sum(axis=1), draft.sum(axis=1))
    return Split(level, *(np.broadcast_to(mass[:, None], draft.shape) for mass in (first, cut, last)))


def _bisect(holds: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The smallest x in [low, high] from which on the condition holds (high if nowhere)."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        there = holds(middle)
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return high


# ---------------------------------------------------------------------- what a split makes of the measures


def _parts(measure: Measure, split: Split) -> tuple[Array, Array, Array]:
    """Value of the masses up to first, cut and last: [N, M] each."""
    return measure.value(split.first), measure.value(split.cut), measure.value(split.last)


def _per(value: Array, mass: Array) -> Array:
    """value / mass, 0 where there is no mass."""
    value, mass = np.broadcast_arrays(value, mass)
    return np.divide(value, mass, out=np.zeros_like(value), where=mass > 0)


def densities(measure: Measure, split: Split) -> Array:
    """[N, M] kappa(wy) / Q(wy) = level u1 + (1 - level) u0."""
    bottom, middle, top = _parts(measure, split)
    low = _per(middle - bottom, split.cut - split.first)
    return split.level * low + (1 - split.level) * _per(top - middle, split.last - split.cut)


def children_value(measure: Measure, split: Split, mass: Array) -> Array:
    """[N, M] value of the lowest-score mass [N, M] of each child's measure."""
    bottom, middle, _ = _parts(measure, split)
    lower, upper = split.cut - split.first, split.last - split.cut
    low = np.minimum(mass, split.level)
    high = np.clip(mass - split.level, 0, 1 - split.level)
    below = measure.value(split.first + lower * _per(low, split.level)) - bottom
    above = measure.value(split.cut + upper * _per(high, 1 - split.level)) - middle
    return split.level * _per(below, lower) + (1 - split.level) * _per(above, upper)


def children(measure: Measure, split: Split, alive: Array) -> Measure:
    """Measures of the children marked in `alive` [N, M], in order: one law per child."""
    node, place = np.nonzero(alive)
    level, first, cut, last = (part[node, place][:, None] for part in (split.level, split.first, split.cut, split.last))
    bounds = [bound for bound in (first, cut, last) if ((bound > 0) & (bound < 1)).any()]
    parent = Measure(measure.score[node], measure.below[node], measure.paths)
    mass = np.concatenate([parent.below, *bounds], axis=1)
    score = np.concatenate([parent.score, *(parent.at(bound)[0] for bound in bounds)], axis=1)
    order = np.lexsort((mass, score), axis=1)
    score, mass = np.take_along_axis(score, order, axis=1), np.take_along_axis(mass, order, axis=1)
    low, high = (
        _per(np.clip(mass - first, 0, cut - first), cut - first),
        _per(np.clip(mass - cut, 0, last - cut), last - cut),
    )
    below = np.maximum.accumulate(level * low + (1 - level) * high, axis=1)
    return Measure(score, below / below[:, -1:], measure.paths)
