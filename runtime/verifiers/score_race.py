"""The score race: every path draws a score, the least wins, and block verification checks the winner.

Each path draws its score from a law of its own, which its rows alone decide, such that scores are uniform over all
drafts. With Q(w) Pr(score in ds | the draft passes w) = m_w(ds), the winner passes w with probability

    kappa(w) = integral of g'(s) m_w(ds),   g'(s) = K (1-s)^(K-1)

and block verification against kappa is lossless for every way of splitting m_w among the tokens y, |m_wy| = Q(wy). At
a node the rules cut the lowest-score mass of m_w into parts; y takes share i of its scores from part i. u1 and u0 are
the mean values of g' below and above a cut, d_y = phi(w) p(y|w) what block verification wants, c_y = Q(wy):

    two parts     the smallest cut with sum_y clip(d_y, u0 c_y, u1 c_y) <= kappa(w), y's share below it is
                  level_y = (d_y/c_y - u0) / (u1 - u0); afterwards the cut moves to the mass that the levels take
    best set      S, the tokens of highest d/c, minimises G_w(c(S)) - d(S), G_w(x) the value of the lowest-score mass x;
                  S takes the lowest mass c(S), the others the rest, and both are cut in two
    reserve       b_y = phi of block verification at wy: at least u0 c_y + b_y (sigma - u0)^+, no cut past u1 = sigma
    safe          best set, unless it could cost more further down than it gains here; there the reserve

With the reserve no prefix is kept less often than by block verification, with the safe rule the acceptance length is
not shorter. All masses are per draft through the node (divided by Q(w)).

Rows are read twice: once as histograms (`parts.ratio_knots`), on which the race is run, on the host; and once for the
block verification of the winner, the winner's rows only.

Letters: B requests, K paths, N = B K, L drafted tokens, V vocabulary, M knots, P parts; p target row, q draft row.
Source: specbound (own); block verification of the winner, arXiv:2403.10444.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from .. import compiled
from ..draws import Draws
from ..parts.ratio_knots import Knots, histograms
from ..parts.roots import STEPS, sectioned_root
from ..parts.score_law import Array, Indices, ScoreLaw, count_below, entries, over
from ..parts.selected_path import verify_selected
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic

Rule = Literal["two-part", "best-set", "safe", "two-part-reserved", "best-set-reserved"]
WALKED = 32  # a knot's share of a race, in numbers that a pass over rows could read meanwhile


@dataclass(frozen=True)
class Node:
    """N nodes on their paths, everything per draft through the node.

    Attributes:
        scores: the law of the score given the node.
        wanted [N]: phi(w) / Q(w); kept [N]: block verification's phi(w) / Q(w); density [N]: kappa(w) / Q(w).
        slope [N]: sigma, the value per mass that the safe rule still owes to block verification.
    """

    scores: ScoreLaw
    wanted: Array
    kept: Array
    density: Array
    slope: Array

    def some(self, rows: NDArray[np.bool_]) -> Node:
        """Some of the nodes."""
        scores = self.scores.some(rows)
        return Node(scores, self.wanted[rows], self.kept[rows], self.density[rows], self.slope[rows])


class Windows(NamedTuple):
    """W stretches of the scores at N nodes, each to be cut once among the tokens whose draft mass it has.

    Attributes:
        begin, end [N, W]: the tokens are those at knots begin <= m < end.
        first, last [N, W]: masses at which the stretch begins and ends; bottom, top [N, W]: the values of these masses.
        owed [N, W]: sigma of the reserve, 0 without.
    """

    begin: Indices
    end: Indices
    first: Array
    last: Array
    bottom: Array
    top: Array
    owed: Array

    def some(self, rows: NDArray[np.bool_] | slice, columns: slice) -> Windows:
        """Some windows at some of the nodes."""
        return Windows._make(part[rows, columns] for part in self)


@dataclass(frozen=True)
class Split:
    """How the tokens at N nodes share the score law: in one window of it or two, each cut once.

    Attributes:
        edges [N, P+1]: masses at which the law is cut, from 0 to 1; P = 2 for one window, 4 for two.
        values [N, P+1]: the values of these masses.
        level [N, M]: what each knot takes from the part below the cut of its window; the rest is from above.
        upper [N, M] bool: the knot is in the first window.
    """

    edges: Array
    values: Array
    level: Array
    upper: NDArray[np.bool_]

    @cached_property
    def worth(self) -> Array:
        """[N, P] mean of g' in each part."""
        return over(self.values[:, 1:] - self.values[:, :-1], self.edges[:, 1:] - self.edges[:, :-1])

    @cached_property
    def high_and_low(self) -> tuple[Array, Array]:
        """The same of the part below the cut and of that above it, in each knot's window; [N, M] or [N, 1]."""
        high, low, *_ = self._of_knots(self.worth)
        return high, low

    @cached_property
    def densities(self) -> Array:
        """[N, M] kappa(wy) / Q(wy) of tokens at the knots."""
        high, low = self.high_and_low
        return low + self.level * (high - low)

    def value(self, scores: ScoreLaw, mass: Array) -> Array:
        """[N, M] value of the lowest-score mass [N, M] of the child at each knot."""
        deep = mass > self.level
        above = self.level * deep
        share = np.abs(deep - self.level)
        parts = np.stack([self.edges[:, :-1], self.values[:, :-1], self.edges[:, 1:] - self.edges[:, :-1]])
        start, before, length = entries(parts, deep + 2 * ~self.upper)
        taken = np.minimum(over(mass - above, share), 1)
        worth = over(share * (scores.value(start + taken * length) - before), length)
        return worth + above * self.high_and_low[0]

    def shares(self, near: Indices, part: Array) -> Array:
        """[N, P] what a token takes from each part, `part` [N] of the way from knot near[:, 0] to near[:, 1]."""
        rows, single = np.arange(len(part))[:, None], self.edges.shape[1] == 3
        weight = np.stack([1 - part, part], axis=1)
        below, first = self.level[rows, near] * weight, 0 if single else 2 * ~self.upper[rows, near]
        shares = np.zeros((len(part), 2, self.edges.shape[1] - 1))
        shares[rows, [0, 1], first], shares[rows, [0, 1], first + 1] = below, weight - below
        return shares.sum(axis=1)

    def _of_knots(self, values: Array) -> list[Array]:
        """Of numbers [N, I] per part or edge, those of each knot's window, each [N, M] or [N, 1]."""
        columns = [values[:, i : i + 1] for i in range(values.shape[1])]
        if self.edges.shape[1] == 3:
            return columns
        return [np.where(self.upper, *pair) for pair in zip(columns, columns[2:], strict=False)]


def whole(node: Node, knots: Knots, reserved: bool) -> Windows:
    """All tokens share the whole law."""
    zero = np.zeros((len(node.slope), 1))
    begin = np.zeros(zero.shape, dtype=np.int64)
    owed = node.slope[:, None] if reserved else zero
    return Windows(begin, begin + knots.mass.shape[1], zero, zero + 1, zero, node.density[:, None], owed)


def best_set(node: Node, knots: Knots, reserved: bool) -> Windows:
    """The best set takes the lowest scores, the other tokens the rest."""
    size, gain = knots.rests
    value = node.scores.value(np.minimum(size, 1))
    loss = value - node.wanted[:, None] * gain
    if reserved:
        owed = np.pad((knots.mass * kept_at(node, knots)).cumsum(axis=1), ((0, 0), (1, 0)))
        served = node.scores.value(np.minimum(size + owed, 1)) - value
        loss = np.where(served < node.slope[:, None] * owed - _slack(torch.float64), np.inf, loss)
    last, rows = knots.mass.shape[1], np.arange(len(loss))
    least = last - loss[:, ::-1].argmin(axis=1)  # of equally good sets the smallest
    begin, end = np.zeros((2, len(loss), 2), dtype=np.int64)
    begin[:, 0], end[:, 0], end[:, 1] = least, last, least
    first, stop, bottom, top, owed = np.zeros((5, len(loss), 2))
    first[:, 1] = stop[:, 0] = np.minimum(size[rows, least], 1)
    bottom[:, 1] = top[:, 0] = value[rows, least]
    stop[:, 1], top[:, 1] = 1, node.density
    if reserved:
        owed[:] = node.slope[:, None]
    return Windows(begin, end, first, stop, bottom, top, owed)


def kept_at(node: Node, knots: Knots) -> Array:
    """[N, M] b/c of tokens at the knots: what block verification keeps, per draft."""
    return np.minimum(node.kept[:, None] * knots.ratio, 1)


def _slack(dtype: torch.dtype) -> float:
    return 8 * torch.finfo(dtype).eps


class Cuts(NamedTuple):
    """Where W windows at N nodes are cut.

    Attributes:
        place, high, low [N, W]: the cut, and the mean of g' in the window below and above it.
    """

    place: Array
    high: Array
    low: Array

    def some(self, rows: NDArray[np.bool_] | slice, columns: slice) -> Cuts:
        """The cuts of some windows at some of the nodes."""
        return Cuts._make(part[rows, columns] for part in self)


def cuts(node: Node, knots: Knots, windows: Windows, reserved: bool, dtype: torch.dtype) -> Cuts:
    """Cut every window at the smallest place where the clipped law fits; dtype sets the accuracy."""
    begin, end = windows.begin[:, :, None], windows.end[:, :, None]
    start, stop, bottom, top, owed = (part[:, :, None] for part in windows[2:])
    scores, wanted, kept = node.scores, node.wanted[:, None, None], node.kept[:, None, None]
    steepest = scores.paths * (1 - scores.score_at(start)) ** (scores.paths - 1)
    first = entries(knots.sums, begin)
    total = entries(knots.sums[:1], end)[0] - first[0]
    budget, least_high = (top - bottom) * (1 + _slack(dtype)), owed * (1 - _slack(dtype))

    def means(cut: Array) -> tuple[Array, Array]:
        """u1, u0 [N, W, I] for cut [N, W, I]."""
        middle = scores.value(cut)
        high = np.fmin((middle - bottom) / (cut - start), steepest)
        return high, np.minimum(over(top - middle, stop - cut), high)

    def below(*ratios: Array) -> Iterator[Array]:
        """For ratios [N, W, I] the draft and the target mass [2, N, W, I] of the window's tokens below each."""
        places = np.concatenate(ratios, axis=2)
        index = np.minimum(np.maximum(count_below(knots.ratio, places), begin), end)
        sums = entries(knots.sums, index) - first
        return (sums[..., i : i + ratios[0].shape[2]] for i in range(0, sums.shape[3], ratios[0].shape[2]))

    def excess(cut: Array) -> Array:
        """[N, W, I]: sum over the tokens of the wanted law clipped between u0 and u1, beyond what there is."""
        high, low = means(cut)
        (least, least_sum), (free, free_sum) = below(low / wanted, high / wanted)
        return low * least + wanted * np.maximum(free_sum - least_sum, 0) + high * (total - free) - budget

    def excess_with_reserve(cut: Array) -> Array:
        """The same with at least u0 + (sigma - u0)^+ b/c, or above 0 as long as u1 is above sigma.

        The least is concave in the ratio and the wanted law linear, so it is the larger up to one ratio only.
        """
        high, low = means(cut)
        lift = np.maximum(owed - low, 0)
        rise = wanted - kept * lift
        equal = np.minimum((low + lift) / wanted, np.where(rise > 0, low / rise, np.inf))
        (least, least_sum), (linear, linear_sum), (free, free_sum) = below(
            equal, np.minimum(equal, 1 / kept), high / wanted
        )
        served = low * least + lift * (kept * linear_sum + least - linear) + high * (total - free)
        served += wanted * np.maximum(free_sum - least_sum, 0)
        return np.minimum(served - budget, high - least_high)

    place = sectioned_root(excess_with_reserve if reserved else excess, windows.first, windows.last, dtype)
    high, low = means(place[:, :, None])
    return Cuts(place, high[..., 0], low[..., 0])


def cut_in_windows(node: Node, knots: Knots, windows: Windows, found: Cuts, reserved: bool) -> Split:
    """Levels of the tokens for the cuts found, and the cuts moved to the mass that the levels take."""
    single = found.place.shape[1] == 1
    upper = np.arange(knots.mass.shape[1]) >= windows.begin[:, :1]

    def of_knots(values: Array) -> Array:
        """[N, M] or [N, 1] from [N, W]."""
        return values if single else np.where(upper, values[:, :1], values[:, 1:])

    def sums(level: Array) -> Array:
        """[N, W] draft mass that the tokens of each window take at `level` [N, M]."""
        if single:
            return np.einsum("nm,nm->n", knots.mass, level)[:, None]
        taken = knots.mass * level
        return np.stack([np.einsum("nm,nm->n", taken, part) for part in (upper, ~upper)], axis=1)

    if reserved:
        high, low, owed = (of_knots(part) for part in (found.high, found.low, windows.owed))
        least = np.minimum(low + kept_at(node, knots) * np.maximum(owed - low, 0), high)
        wanted = np.maximum(node.wanted[:, None] * knots.ratio, least)
        level, least = (np.clip(over(part - low, high - low), 0, 1) for part in (wanted, least))
        must, used = sums(least), sums(level)
        room = np.where(used > must, np.clip(over(found.place - windows.first - must, used - must), 0, 1), 1.0)
        level = np.where(owed > 0, least + of_knots(room) * (level - least), level)
    else:
        span = found.high - found.low
        level = of_knots(over(node.wanted[:, None], span)) * knots.ratio - of_knots(over(found.low, span))
        level = np.minimum(np.maximum(level, 0), 1)
    begin, end = entries(knots.sums[:1], np.stack([windows.begin, windows.end], axis=1))[0].swapaxes(0, 1)
    where = windows.first + (windows.last - windows.first) * over(sums(level), end - begin)
    edges = np.empty((len(where), 2 * where.shape[1] + 1))
    edges[:, 0], edges[:, 1::2], edges[:, 2::2] = 0, where, windows.last
    return Split(edges, node.scores.value(edges), level, upper)


def brave(node: Node, knots: Knots, split: Split, below: int, slack: float) -> NDArray[np.bool_]:
    """[N]: what the split may cost further down, where `below` levels follow, is covered by what it gains here."""
    kept = kept_at(node, knots)
    owed = kept * node.slope[:, None]
    gain = np.minimum(split.densities, node.wanted[:, None] * knots.ratio) - owed
    short = below * np.maximum(owed - split.value(node.scores, kept), 0) if below else 0.0
    covered: NDArray[np.bool_] = np.einsum("nm,nm->n", gain - short, knots.mass) >= -slack
    return covered


def split_rule(rule: Rule, node: Node, knots: Knots, below: int, dtype: torch.dtype) -> tuple[Split, NDArray[np.bool_]]:
    """The split of a rule, and [N] whether block verification is owed nothing for it.

    Args:
        below: levels below the children.
    """
    reserved, every = rule.endswith("reserved"), slice(None)
    windows = (whole if rule.startswith("two-part") else best_set)(node, knots, reserved)
    if rule != "safe":
        found = cuts(node, knots, windows, reserved, dtype)
        return cut_in_windows(node, knots, windows, found, reserved), np.zeros(len(node.slope), dtype=bool)
    pairs = zip(windows, whole(node, knots, reserved=True), strict=True)
    windows = Windows._make(np.concatenate(pair, axis=1) for pair in pairs)
    found = cuts(node, knots, windows, True, dtype)
    split = cut_in_windows(node, knots, windows.some(every, slice(2)), found.some(every, slice(2)), reserved=False)
    bold = brave(node, knots, split, below, _slack(dtype))
    if not bold.all():
        rest = ~bold
        their_windows, their_cuts = windows.some(rest, slice(2, 3)), found.some(rest, slice(2, 3))
        careful = cut_in_windows(node.some(rest), knots[rest,], their_windows, their_cuts, reserved=True)
        split = replace(split)  # what is cached goes
        split.edges[rest], split.values[rest] = careful.edges[:, [0, 1, 2, 2, 2]], careful.values[:, [0, 1, 2, 2, 2]]
        split.level[rest], split.upper[rest] = careful.level, careful.upper
    return split, bold


def race(
    knots: Knots, ratio: Array, paths: int, rule: Rule, dtype: torch.dtype, stem: int = 0
) -> tuple[ScoreLaw, Array]:
    """The law of each path's score, and of the winner's tokens, from histograms alone.

    Args:
        knots: of the rows [N, L] on N paths; ratio [N, L]: target/draft of the drafted tokens.
        stem: how many first tokens all paths of a request share, drawn once; the race is between what follows them,
            and begins with what block verification keeps of them.
    Returns:
        the laws; [N, L, M] the winner's law over the draft's at the knots of each path, if that path wins.
    """
    return (compiled_race if compiled.usable() else race_by_depth)(knots, ratio, paths, rule, dtype, stem)


def compiled_race(
    knots: Knots, ratio: Array, paths: int, rule: Rule, dtype: torch.dtype, stem: int
) -> tuple[ScoreLaw, Array]:
    """`race` by compiled loops, a path after the other."""
    from ..compiled.walks import race_paths

    ratios, masses = np.array(knots.ratio), np.array(knots.mass)  # in order, and not read-only
    score, below = np.empty((2, len(ratio), 2 + 3 * (ratio.shape[1] - stem)))
    tables = np.ones_like(masses)
    best, reserved, safe = not rule.startswith("two-part"), rule.endswith("reserved"), rule == "safe"

    def run(some: slice) -> None:
        race_paths(
            ratios[some], masses[some], ratio[some], paths, best, reserved, safe, _slack(dtype), STEPS[dtype], stem,
            score[some], below[some], tables[some],
        )  # fmt: skip

    compiled.spread(run, len(ratio), WALKED * masses.size)
    return ScoreLaw(score, below, paths), tables


@np.errstate(all="ignore")
def race_by_depth(
    knots: Knots, ratio: Array, paths: int, rule: Rule, dtype: torch.dtype, stem: int
) -> tuple[ScoreLaw, Array]:
    """`race` by arrays, all paths at once."""
    near, part = knots.between(ratio)
    knots = knots.by_depth()
    one, length = np.ones(len(ratio)), ratio.shape[1]
    begun = one
    for own in ratio.T[:stem]:
        begun = np.minimum(begun * own, 1)
    node = Node(ScoreLaw.uniform(len(one), paths), begun, begun, one, one)
    tables = np.ones((*ratio.shape, knots.mass.shape[2]))
    for depth in range(stem, length):
        split, bold = split_rule(rule, node, knots[depth,], length - depth - 1, dtype)
        tables[:, depth] = over(split.densities, node.density[:, None])

        own, shares = ratio[:, depth], split.shares(near[:, depth], part[:, depth])
        scores = node.scores.rearranged(split.edges, shares)
        kept = np.minimum(node.kept * own, 1)
        density = (shares * split.worth).sum(axis=1)
        slope = node.slope
        if bold.any():
            worth = np.where(kept > 0, over(scores.value(kept[:, None])[:, 0], kept), slope)
            slope = np.where(bold, np.minimum(slope, worth), slope)
        node = Node(scores, np.minimum(density, node.wanted * own), kept, density, slope)
    return node.scores, tables


def verify_score_race(batch: Batch, draws: Draws, rule: Rule, stem: int = 0) -> Verdict:
    """Every path works out the law of its score, the least score wins, the winner is verified against kappa.

    Args:
        stem: how many first tokens the paths share, see `race`; 0 for independent paths.
    """
    requests, paths, _, _ = batch.shape
    dtype, device = arithmetic(batch), batch.tokens.device
    knots, target, draft = histograms(batch, dtype)
    ratio = over(target, draft)
    law, tables = race(knots, ratio, paths, rule, dtype, stem)

    score, below = (
        torch.from_numpy(part).to(device).unflatten(0, (requests, paths)) for part in (law.score, law.below)
    )
    path = draws.smallest_score(score, below) if paths > 1 else torch.zeros_like(batch.tokens[:, 0, 0])
    own = np.arange(requests) * paths + path.cpu().numpy()
    return verify_selected(batch, draws, path, knots.ratio[own], tables[own], ratio[own])


def score_race(rule: Rule = "safe") -> Callable[[Batch, Draws], Verdict]:
    """The score race with another rule.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule is {rule!r}; want one of {', '.join(get_args(Rule))}")
    return partial(verify_score_race, rule=rule)


@register(
    "score-race",
    summary="every path draws a score, the least wins and is verified against its law; the default",
    source="specbound (own); selection before Block Verification, arXiv:2403.10444",
    paths="many",
    cost="O(K L V), two passes",
    closed_form="score-race",
    kernel="score_race:verify_score_race_laws",
    make=score_race,
    options=("rule",),
)
def verify_safe_race(batch: Batch, draws: Draws) -> Verdict:
    """The safe rule: never shorter than block verification."""
    return verify_score_race(batch, draws, "safe")


@register(
    "score-race-2",
    summary="the score race with one cut per node: the simplest rule, without a guarantee against block verification",
    source="specbound (own); selection before Block Verification, arXiv:2403.10444",
    paths="many",
    cost="O(K L V), two passes",
    closed_form="score-race-2",
)
def verify_two_part_race(batch: Batch, draws: Draws) -> Verdict:
    """Two parts, no reserve."""
    return verify_score_race(batch, draws, "two-part")
