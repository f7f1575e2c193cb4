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
not shorter. All masses are per draft through the node (divided by Q(w)). Rows are read through `parts.ratio_knots`.

Letters: B requests, K paths, N = B K, L drafted tokens, V vocabulary, M knots, P parts; p target row, q draft row.
Source: specbound (own); block verification of the winner, arXiv:2403.10444.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.block_rule import block_ratios, block_thresholds
from ..parts.ratio_knots import Knots, linear_law, own_ratio
from ..parts.score_law import ScoreLaw, over
from ..parts.single_path import at, emitted_row
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic

Rule = Literal["two-part", "best-set", "safe", "two-part-reserved", "best-set-reserved"]
SECTIONS = {torch.float64: 4, torch.float32: 16}  # by which a root's bracket is divided in each round
ROUNDS = {torch.float64: 27, torch.float32: 4}


@dataclass(frozen=True)
class Node:
    """N nodes on their paths, everything per draft through the node.

    Attributes:
        scores: the law of the score given the node.
        wanted [N]: phi(w) / Q(w); kept [N]: block verification's phi(w) / Q(w); density [N]: kappa(w) / Q(w).
        slope [N]: sigma, the value per mass that the safe rule still owes to block verification.
    """

    scores: ScoreLaw
    wanted: Tensor
    kept: Tensor
    density: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Split:
    """How the tokens at N nodes share the score law.

    Attributes:
        edges [N, P+1]: masses at which the law is cut, from 0 to 1.
        shares [N, M, P]: what each knot takes from each part; sums to 1 over the parts.
    """

    edges: Tensor
    shares: Tensor

    def means(self, scores: ScoreLaw) -> Tensor:
        """[N, P] mean of g' over each part."""
        return over(scores.value(self.edges).diff(dim=1), self.edges.diff(dim=1))

    def densities(self, scores: ScoreLaw) -> Tensor:
        """[N, M] kappa(wy) / Q(wy) of tokens at the knots."""
        return (self.shares * self.means(scores).unsqueeze(1)).sum(dim=2)

    def value(self, scores: ScoreLaw, mass: Tensor) -> Tensor:
        """[N, M] value of the lowest-score mass [N, M] of the child at each knot."""
        before = self.shares.cumsum(dim=2) - self.shares
        taken = over(torch.minimum((mass.unsqueeze(2) - before).clamp_min(0), self.shares), self.shares)
        start, length = self.edges[:, None, :-1], self.edges.diff(dim=1).unsqueeze(1)
        worth = scores.value(start + taken * length) - scores.value(self.edges[:, :-1]).unsqueeze(1)
        return (self.shares * over(worth, length)).sum(dim=2)


class Window(NamedTuple):
    """A stretch of the scores at N nodes, to be cut once among some tokens whose draft mass it has.

    Attributes:
        mass [N, M]: draft mass of the knots, 0 of those that have no part in it.
        first, last [N]: where the stretch begins and ends.
        owed [N]: sigma of the reserve, 0 without.
    """

    mass: Tensor
    first: Tensor
    last: Tensor
    owed: Tensor


Cut = tuple[Tensor, Tensor]  # level [N, M] of the knots, cut [N]


def whole(node: Node, knots: Knots, reserved: bool) -> Window:
    """All tokens share the whole law."""
    zero = torch.zeros_like(node.slope)
    return Window(knots.mass, zero, zero + 1, node.slope if reserved else zero)


def two_part(window: Window, cut: Cut) -> Split:
    """The whole law, cut once."""
    level, where = cut
    return Split(torch.stack([window.first, where, window.last], dim=1), torch.stack([level, 1 - level], dim=2))


def best_set(node: Node, knots: Knots, reserved: bool) -> tuple[Window, Window]:
    """The best set takes the lowest scores, the other tokens the rest."""
    none = torch.zeros_like(knots.mass[:, :1])
    mass, gain = knots.mass, knots.mass * node.wanted.unsqueeze(1) * knots.ratio
    size, gain = (torch.cat([part.flip(1).cumsum(dim=1).flip(1), none], dim=1) for part in (mass, gain))
    size = size.clamp_max(1)
    value = node.scores.value(size)
    loss = value - gain
    if reserved:
        owed = torch.cat([none, (mass * kept_at(node, knots)).cumsum(dim=1)], dim=1)
        served = node.scores.value((size + owed).clamp_max(1)) - value
        loss = loss.masked_fill(served < node.slope.unsqueeze(1) * owed - _slack(torch.float64), torch.inf)
    begin = size.shape[1] - 1 - loss.flip(1).argmin(dim=1, keepdim=True)  # of equally good sets the smallest
    inside = torch.arange(mass.shape[1], device=mass.device) >= begin
    border, zero = size.gather(1, begin).squeeze(1), torch.zeros_like(node.slope)
    slope = node.slope if reserved else zero
    return Window(mass * inside, zero, border, slope), Window(mass * ~inside, border, zero + 1, slope)


def four_part(upper: Window, lower: Window, high: Cut, low: Cut) -> Split:
    """The two stretches of the best set and the others, each cut once."""
    (lift, first), (level, second) = high, low
    inside, nothing = (upper.mass > 0).unsqueeze(2), torch.zeros_like(level)
    shares = torch.where(
        inside,
        torch.stack([lift, 1 - lift, nothing, nothing], dim=2),
        torch.stack([nothing, nothing, level, 1 - level], dim=2),
    )
    return Split(torch.stack([upper.first, first, lower.first, second, lower.last], dim=1), shares)


def safe(node: Node, knots: Knots, bold: Split, careful: Split, below: int, slack: float) -> tuple[Split, Tensor]:
    """The bold split where what it may cost further down is covered by what it gains here, else the careful one.

    Args:
        below: levels below the children.
    Returns:
        the split, and [N] bool where it is the bold one.
    """
    kept, slope = kept_at(node, knots), node.slope.unsqueeze(1)
    short = (slope * kept - bold.value(node.scores, kept)).clamp_min(0)
    wanted = node.wanted.unsqueeze(1) * knots.ratio
    gain = torch.minimum(bold.densities(node.scores), wanted) - slope * kept
    brave = below * (short * knots.mass).sum(dim=1) <= (gain * knots.mass).sum(dim=1) + slack
    one = careful.edges[:, -1:]
    edges = torch.where(brave.unsqueeze(1), bold.edges, torch.cat([careful.edges, one, one], dim=1))
    padded = torch.cat([careful.shares, torch.zeros_like(careful.shares)], dim=2)
    return Split(edges, torch.where(brave.view(-1, 1, 1), bold.shares, padded)), brave


def kept_at(node: Node, knots: Knots) -> Tensor:
    """[N, M] b/c of tokens at the knots: what block verification keeps, per draft."""
    return (node.kept.unsqueeze(1) * knots.ratio).clamp_max(1)


def _slack(dtype: torch.dtype) -> float:
    return 8 * torch.finfo(dtype).eps


def cuts(node: Node, knots: Knots, windows: Sequence[Window], dtype: torch.dtype) -> list[Cut]:
    """Cut every window at the smallest place where the clipped law fits; dtype sets the accuracy."""
    times = len(windows)
    mass, first, last, owed = (torch.cat(parts) for parts in zip(*windows, strict=True))
    scores, ratio = node.scores.repeated(times), knots.ratio.repeat(times, 1)
    wanted, kept = node.wanted.repeat(times).unsqueeze(1), node.kept.repeat(times).unsqueeze(1)
    start, end, owed = first.unsqueeze(1), last.unsqueeze(1), owed.unsqueeze(1)
    bottom, top = scores.value(torch.stack([first, last], dim=1)).split(1, dim=1)
    steepest = scores.paths * (1 - scores.score_at(start)) ** (scores.paths - 1)
    total = mass.sum(dim=1, keepdim=True)
    sums = torch.stack([mass, mass * ratio], dim=2).cumsum(dim=1)
    sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)

    def means(cut: Tensor) -> tuple[Tensor, Tensor]:
        """u1, u0 [N, I] for cut [N, I]."""
        middle = scores.value(cut)
        high = torch.where(cut > start, (middle - bottom) / (cut - start), steepest)
        low = torch.where(cut < end, (top - middle) / (end - cut), 0.0)
        return high, torch.minimum(low, high)

    def served(high: Tensor, low: Tensor) -> Tensor:
        """[N, I]: sum over the tokens of the law clipped between its least, u0 + (sigma - u0)^+ b/c, and u1.

        The least is concave in the ratio and the wanted law linear, so it is the larger up to one ratio only.
        """
        excess = (owed - low).clamp_min(0)
        equal = torch.minimum(
            (low + excess) / wanted, torch.where(wanted > kept * excess, low / (wanted - kept * excess), torch.inf)
        )
        places = torch.cat([equal, torch.minimum(equal, 1 / kept), high / wanted], dim=1)
        index = torch.searchsorted(ratio, places.contiguous())
        below = sums.gather(1, index.unsqueeze(2).expand(-1, -1, 2))
        (least, least_sum), (linear, linear_sum), (free, free_sum) = (
            part.unbind(dim=2) for part in below.chunk(3, dim=1)
        )
        reserve = kept * linear_sum + (least - linear)
        return low * least + excess * reserve + wanted * (free_sum - least_sum).clamp_min(0) + high * (total - free)

    def far_enough(cut: Tensor) -> Tensor:
        high, low = means(cut)
        return (served(high, low) <= (top - bottom) * (1 + _slack(dtype))) | (high < owed * (1 - _slack(dtype)))

    cut = _smallest(far_enough, first, last, dtype).unsqueeze(1)
    high, low = means(cut)
    least = torch.minimum(low + (kept * ratio).clamp_max(1) * (owed - low).clamp_min(0), high)
    clipped = torch.maximum(torch.minimum(wanted * ratio, high), least)
    least, level = (over(bound - low, high - low).clamp(0, 1) for bound in (least, clipped))
    must, used = (mass * least).sum(dim=1, keepdim=True), (mass * level).sum(dim=1, keepdim=True)
    room = torch.where(used > must, (cut - start - must) / (used - must), 1.0).clamp(0, 1)
    level = torch.where(owed > 0, least + room * (level - least), level)
    cut = start + (end - start) * over((mass * level).sum(dim=1, keepdim=True), total)
    return list(zip(level.chunk(times), cut.squeeze(1).chunk(times), strict=True))


def _smallest(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """[N]: the smallest x in [low, high] from which on the condition holds (high if nowhere), as exact as dtype."""
    steps = torch.arange(1, SECTIONS[dtype], dtype=low.dtype, device=low.device) / SECTIONS[dtype]
    for _ in range(ROUNDS[dtype]):
        width = (high - low).unsqueeze(1)
        points = torch.cat([low.unsqueeze(1), low.unsqueeze(1) + width * steps, high.unsqueeze(1)], dim=1)
        before = (~holds(points[:, 1:-1])).long().cumprod(dim=1).sum(dim=1)
        low, high = at(points, before), at(points, before + 1)
    return high


def split_rule(rule: Rule, node: Node, knots: Knots, below: int, dtype: torch.dtype) -> tuple[Split, Tensor | None]:
    """The split of a rule; for the safe one also where it is bold. `below`: levels below the children."""
    if rule == "safe":
        windows = *best_set(node, knots, reserved=False), whole(node, knots, reserved=True)
        high, low, single = cuts(node, knots, windows, dtype)
        bold, careful = four_part(*windows[:2], high, low), two_part(windows[2], single)
        return safe(node, knots, bold, careful, below, _slack(dtype))
    reserved = rule.endswith("reserved")
    if rule.startswith("two-part"):
        window = whole(node, knots, reserved)
        return two_part(window, *cuts(node, knots, [window], dtype)), None
    upper, lower = best_set(node, knots, reserved)
    return four_part(upper, lower, *cuts(node, knots, [upper, lower], dtype)), None


def verify_score_race(batch: Batch, draws: Draws, rule: Rule) -> Verdict:
    """Every path works out the law of its score, the least score wins, the winner is verified against kappa."""
    requests, paths, length, vocab = batch.shape
    dtype, device, rows = arithmetic(batch), batch.tokens.device, requests * paths
    one = torch.ones(rows, dtype=torch.float64, device=device)
    node = Node(ScoreLaw.uniform(rows, paths, device), one, one, one, one)
    tables: list[tuple[Tensor, Tensor]] = []
    for depth in range(length):
        target_row, draft_row = (
            probs[:, :, depth].reshape(rows, vocab).to(dtype) for probs in (batch.target_probs, batch.draft_probs)
        )
        knots = Knots.of(target_row, draft_row)
        split, bold = split_rule(rule, node, knots, length - depth - 1, dtype)
        densities = split.densities(node.scores)
        tables.append((knots.ratio, densities / node.density.unsqueeze(1)))

        token = batch.tokens[:, :, depth].reshape(rows)
        ratio = own_ratio(at(target_row, token).double(), at(draft_row, token).double())
        scores = node.scores.rearranged(split.edges, knots.at(ratio, split.shares))
        kept = (node.kept * ratio).clamp_max(1)
        density = knots.at(ratio, densities)
        slope = node.slope
        if bold is not None:
            worth = torch.where(kept > 0, scores.value(kept.unsqueeze(1)).squeeze(1) / kept, slope)
            slope = torch.where(bold, torch.minimum(slope, worth), slope)
        node = Node(scores, torch.minimum(density, node.wanted * ratio), kept, density, slope)

    law = [part.unflatten(0, (requests, paths)) for part in (node.scores.score, node.scores.below)]
    path = draws.smallest_score(*law) if paths > 1 else torch.zeros_like(batch.tokens[:, 0, 0])
    return _verified(batch, draws, path, tables)


def _verified(batch: Batch, draws: Draws, path: Tensor, tables: list[tuple[Tensor, Tensor]]) -> Verdict:
    """Block verification of `path` [B] against its law: draft times the table at the token's ratio, depth by depth."""
    requests, paths, _, _ = batch.shape
    row = torch.arange(requests, device=path.device)
    dtype = arithmetic(batch)
    tokens = batch.tokens[row, path]
    target_probs, laws = (probs[row, path].to(dtype) for probs in (batch.target_probs, batch.draft_probs))
    for depth, (ratio, table) in enumerate(tables):
        own = row * paths + path
        laws[:, depth] = linear_law(table[own], ratio[own], target_probs[:, depth], laws[:, depth])
    ratios = block_ratios(tokens, laws, target_probs)
    kept = draws.accept_last(block_thresholds(ratios, laws, target_probs))
    token = draws.choose(emitted_row(at(ratios, kept), kept, laws, target_probs))
    return Verdict(path, kept, token)


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
