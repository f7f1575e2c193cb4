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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

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

    def select(self, rows: Tensor) -> Node:
        """Some of the nodes, or some more than once; rows [I]."""
        scores = ScoreLaw(self.scores.score[rows], self.scores.below[rows], self.scores.paths)
        return Node(scores, *(part[rows] for part in (self.wanted, self.kept, self.density, self.slope)))


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


Rows = tuple[Tensor, Tensor, Tensor]  # mass, d/c, b/c [N, M] of the knots


def two_part(node: Node, rows: Rows, reserved: bool, dtype: torch.dtype) -> Split:
    """All tokens share the whole law, cut once."""
    first, last = torch.zeros_like(node.wanted), torch.ones_like(node.wanted)
    level, cut = _cut(node, rows, first, last, reserved, dtype)
    return Split(torch.stack([first, cut, last], dim=1), torch.stack([level, 1 - level], dim=2))


def best_set(node: Node, rows: Rows, reserved: bool, dtype: torch.dtype) -> Split:
    """The best set takes the lowest scores, the other tokens the rest; both are cut once."""
    mass, wanted, kept = rows
    size = torch.cat([mass.flip(1).cumsum(dim=1).flip(1), torch.zeros_like(mass[:, :1])], dim=1).clamp_max(1)
    gain = torch.cat([(mass * wanted).flip(1).cumsum(dim=1).flip(1), torch.zeros_like(mass[:, :1])], dim=1)
    value = node.scores.value(size)
    loss = value - gain
    if reserved:
        owed = torch.cat([torch.zeros_like(mass[:, :1]), (mass * kept).cumsum(dim=1)], dim=1)
        served = node.scores.value((size + owed).clamp_max(1)) - value
        loss = loss.masked_fill(served < node.slope.unsqueeze(1) * owed - _slack(torch.float64), torch.inf)
    # the smallest of equally good sets: it begins at the last knot
    begin = size.shape[1] - 1 - loss.flip(1).argmin(dim=1, keepdim=True)
    inside = torch.arange(mass.shape[1], device=mass.device) >= begin
    border = size.gather(1, begin).squeeze(1)
    zero, one = torch.zeros_like(border), torch.ones_like(border)
    halves = torch.cat([mass * inside, mass * ~inside]), wanted.repeat(2, 1), kept.repeat(2, 1)
    twice = node.select(torch.arange(len(mass), device=mass.device).repeat(2))
    level, cut = _cut(twice, halves, torch.cat([zero, border]), torch.cat([border, one]), reserved, dtype)
    high, low = level.chunk(2)
    nothing = torch.zeros_like(high)
    upper = torch.stack([high, 1 - high, nothing, nothing], dim=2)
    lower = torch.stack([nothing, nothing, low, 1 - low], dim=2)
    edges = torch.stack([zero, *cut.chunk(2), one], dim=1)
    edges = torch.cat([edges[:, :2], border.unsqueeze(1), edges[:, 2:]], dim=1)
    return Split(edges, torch.where(inside.unsqueeze(2), upper, lower))


def safe(node: Node, rows: Rows, below: int, dtype: torch.dtype) -> tuple[Split, Tensor]:
    """Best set where what it may cost further down is covered by what it gains here, else the reserve.

    Returns:
        the split, and [N] bool where it is the best set.
    """
    mass, wanted, kept = rows
    bold = best_set(node, rows, False, dtype)
    slope = node.slope.unsqueeze(1)
    short = (slope * kept - bold.value(node.scores, kept)).clamp_min(0)
    gain = torch.minimum(bold.densities(node.scores), wanted) - slope * kept
    brave = below * (short * mass).sum(dim=1) <= (gain * mass).sum(dim=1) + _slack(dtype)
    timid = (~brave).nonzero().squeeze(1)
    careful = two_part(node.select(timid), (mass[timid], wanted[timid], kept[timid]), True, dtype)
    one = careful.edges[:, -1:]
    edges = bold.edges.index_copy(0, timid, torch.cat([careful.edges, one, one], dim=1))
    padded = torch.cat([careful.shares, torch.zeros_like(careful.shares)], dim=2)
    return Split(edges, bold.shares.index_copy(0, timid, padded)), brave


def _slack(dtype: torch.dtype) -> float:
    return 8 * torch.finfo(dtype).eps


def _cut(
    node: Node, rows: Rows, first: Tensor, last: Tensor, reserved: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cut the masses first .. last among tokens of that mass.

    Args:
        rows: with mass 0 for the knots that have no part in it; first, last [N]; dtype: accuracy of the cut.
    Returns:
        level [N, M], cut [N].
    """
    mass, wanted, kept = rows
    ends = node.scores.value(torch.stack([first, last], dim=1))
    bottom, top = ends[:, :1], ends[:, 1:]
    steepest = node.scores.paths * (1 - node.scores.score_at(first.unsqueeze(1))) ** (node.scores.paths - 1)
    start, end, owed = first.unsqueeze(1), last.unsqueeze(1), node.slope.unsqueeze(1)
    none, total = torch.zeros_like(mass[:, :1]), mass.sum(dim=1, keepdim=True)
    full = torch.cat([none, (mass * wanted).cumsum(dim=1)], dim=1)
    rest = torch.cat([mass.flip(1).cumsum(dim=1).flip(1), none], dim=1)
    wanted, weight = wanted.to(dtype), mass.to(dtype)
    reserve = (kept if reserved else torch.zeros_like(kept[:, :1])).to(dtype)

    def means(cut: Tensor) -> tuple[Tensor, Tensor]:
        """u1, u0 [N, I] for cut [N, I]."""
        middle = node.scores.value(cut)
        high = torch.where(cut > start, (middle - bottom) / (cut - start), steepest)
        low = torch.where(cut < end, (top - middle) / (end - cut), 0.0)
        return high, torch.minimum(low, high)

    def bounds(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        """The least that a token must get, and its clipped law, over c: [N, I, M] for u1, u0 [N, I]."""
        excess = (owed - low).clamp_min(0).to(dtype).unsqueeze(2)
        high, low = high.to(dtype).unsqueeze(2), low.to(dtype).unsqueeze(2)
        least = torch.minimum(low + reserve.unsqueeze(1) * excess, high) if reserved else low
        return least, torch.maximum(torch.minimum(wanted.unsqueeze(1), high), least)

    def served(high: Tensor, low: Tensor) -> Tensor:
        """[N, I]: sum of the clipped law over the tokens."""
        if reserved:
            return torch.matmul(bounds(high, low)[1], weight.unsqueeze(2)).squeeze(2)
        above, below = capped(torch.cat([high, low], dim=1)).chunk(2, dim=1)
        return above - below + low * total

    def capped(cap: Tensor) -> Tensor:
        """[N, I]: sum of min(d, cap c) over the tokens, from sums over the knots below cap and above."""
        place = torch.searchsorted(wanted.contiguous(), cap.to(dtype).contiguous())
        return full.gather(1, place) + cap * rest.gather(1, place)

    def far_enough(cut: Tensor) -> Tensor:
        high, low = means(cut)
        enough = served(high, low) <= (top - bottom) * (1 + _slack(dtype))
        return enough | (high < owed * (1 - _slack(dtype))) if reserved else enough

    cut = _smallest(far_enough, first, last, dtype).unsqueeze(1)
    high, low = means(cut)
    least, clipped = (bound.double().squeeze(1) for bound in bounds(high, low))
    least, level = (over(bound - low, high - low).clamp(0, 1) for bound in (least, clipped))
    if reserved:
        must, used = (mass * least).sum(dim=1, keepdim=True), (mass * level).sum(dim=1, keepdim=True)
        room = torch.where(used > must, (cut - start - must) / (used - must), 1.0).clamp(0, 1)
        level = least + room * (level - least)
    taken = over((mass * level).sum(dim=1), total.squeeze(1))
    return level, first + (last - first) * taken


def _smallest(holds: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """[N]: the smallest x in [low, high] from which on the condition holds (high if nowhere), as exact as dtype."""
    steps = torch.arange(1, SECTIONS[dtype], dtype=low.dtype, device=low.device) / SECTIONS[dtype]
    for _ in range(ROUNDS[dtype]):
        width = (high - low).unsqueeze(1)
        points = torch.cat([low.unsqueeze(1), low.unsqueeze(1) + width * steps, high.unsqueeze(1)], dim=1)
        before = (~holds(points[:, 1:-1])).long().cumprod(dim=1).sum(dim=1)
        low, high = at(points, before), at(points, before + 1)
    return high


def split_rule(rule: Rule, node: Node, rows: Rows, below: int, dtype: torch.dtype) -> tuple[Split, Tensor | None]:
    """The split of a rule; for the safe one also where it is bold. `below`: levels below the children."""
    if rule == "safe":
        return safe(node, rows, below, dtype)
    split = two_part if rule.startswith("two-part") else best_set
    return split(node, rows, rule.endswith("reserved"), dtype), None


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
        wanted, kept = node.wanted.unsqueeze(1) * knots.ratio, (node.kept.unsqueeze(1) * knots.ratio).clamp_max(1)
        split, bold = split_rule(rule, node, (knots.mass, wanted, kept), length - depth - 1, dtype)
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
    summary="every path draws a score, the least wins and is verified against its law; near-optimal for many paths",
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
