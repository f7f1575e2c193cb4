"""Optimal single-step transport: at each node, the largest probability that any lossless rule keeps one of n drafts.

With g(t) = 1 - (1 - t)^n the chance that a set of tokens of draft mass t is hit, the optimum at a node is

    1 + min over S of ( g(draft(S)) - target(S) ),   S a set of tokens of highest target/draft ratio.

It is attained by selecting a draft whose token has the law min(target, k1 draft) on S and max(target, k2 draft) off
S, keeping it with probability min(1, target / that law), and correcting from max(0, target - k1 draft).

The selection is a race. Every draft has a hidden score, uniform on (0, 1) over a random draft, and the smallest
wins: score s wins with density g'(s). Tokens enter the race in the order of their ratios. With T, F the running sums
of the draft law and of the selected law (F concave, F <= g), the token after T_j, of slope d = selected/draft, enters
at the s where g(s) = F_j + d (s - T_j). From then on it leaves the race at the same rate 1 / (T - s) as every token
in it, T the draft mass entered so far. That gives each token exactly its slope, and as all drafts in the race are
equally likely to be next, the winner's law given the drafts is a short sum in the order of entering.

Letters: B requests, K paths, n paths through the node, L drafted tokens, V vocabulary.
Source: the value: optimal transport for K drafts, SpecTr, arXiv:2310.15141; the race: specbound (own).
"""

from __future__ import annotations

import torch
from torch import Tensor

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers.by_level import Round, verify_by_level
from specbound.runtime.verifiers.registry import register

CERTAIN = 800.0  # exp(-CERTAIN) is 0 in float64


def optimal_slopes(target: Tensor, draft: Tensor, offers: Tensor) -> tuple[Tensor, Tensor]:
    """Selected law over draft law, for tokens in the order of decreasing target/draft.

    Args:
        target, draft [B, V] float64, sorted by that ratio, rows sum to 1; offers [B, 1] = n.
    Returns:
        slopes [B, V], non-increasing; k1 [B, 1], their cap on S.
    """
    zero = torch.zeros_like(target[:, :1])
    mass, goal = (torch.cat([zero, row.cumsum(dim=1)], dim=1) for row in (draft, target))
    hit = hit_chance(mass, offers)
    split = (hit - goal).argmin(dim=1, keepdim=True)
    inside = torch.arange(mass.shape[1], device=mass.device) <= split
    room = hit.gather(1, split) - goal.gather(1, split)
    infinity = torch.full_like(mass, torch.inf)
    cap = torch.where(inside & (mass > 0), (room + goal) / mass, -infinity).amax(dim=1, keepdim=True)
    cap = torch.where(torch.isfinite(cap), cap, offers)
    rest = 1 - mass
    floor = torch.where(~inside | (mass == mass.gather(1, split)), (1 - room - goal) / rest, infinity)
    floor = torch.where(rest > 0, floor, infinity).amin(dim=1, keepdim=True)
    ratio = torch.where(draft > 0, target / draft, cap)
    return torch.where(inside[:, 1:], torch.minimum(ratio, cap), torch.maximum(ratio, floor)), cap


def hit_chance(mass: Tensor, offers: Tensor) -> Tensor:
    """g(t) = 1 - (1 - t)^n for mass [B, N] = t and offers [B, 1] = n."""
    return -torch.expm1(offers * torch.log1p(-mass.clamp_max(1)))


def leaving_times(slopes: Tensor, draft: Tensor, offers: Tensor, steps: int) -> Tensor:
    """How much leaving, in units of -log(survival), has happened in the race before each token enters it.

    The entry s solves g(s) = F_j + d (s - T_j), 0 <= s <= T_j: Newton's method from the left, where g minus the line
    is concave, never passes the root.

    Args:
        slopes, draft [B, V] float64 in race order; offers [B, 1]; steps of Newton's method.
    Returns:
        [B, V], non-decreasing.
    """
    zero = torch.zeros_like(draft[:, :1])
    mass = torch.cat([zero, draft.cumsum(dim=1)], dim=1)
    before = mass[:, :-1]
    intercept = torch.cat([zero, (slopes * draft).cumsum(dim=1)], dim=1)[:, :-1] - slopes * before
    entry = torch.zeros_like(before)
    for _ in range(steps):
        gap = intercept + slopes * entry - hit_chance(entry, offers)
        climb = offers * (1 - entry) ** (offers - 1) - slopes
        entry = torch.where((gap > 0) & (climb > 0), entry + gap / climb, entry)
        entry = torch.minimum(entry, before)
    entry = entry.cummax(dim=1).values
    left = (mass[:, 1:-1] - entry[:, 1:]).clamp_min(0)
    phase = torch.log((mass[:, 1:-1] - entry[:, :-1]) / left).clamp(0, CERTAIN)
    phase = torch.where(entry[:, 1:] > entry[:, :-1], phase, torch.zeros_like(phase))
    return torch.cat([zero, phase.cumsum(dim=1)], dim=1)


def race_weights(leaving: Tensor, alive: Tensor) -> Tensor:
    """Law of the winner among the drafts of a node: while m drafts are in the race each is the next with rate 1.

    Args:
        leaving [B, K]: `leaving_times` of the drafts' tokens; alive [B, K] bool.
    Returns:
        [B, K], rows sum to 1.
    """
    times, order = leaving.masked_fill(~alive, torch.inf).sort(dim=1, stable=True)
    following = torch.cat([times[:, 1:], torch.full_like(times[:, :1], torch.inf)], dim=1)
    racing = torch.arange(1, times.shape[1] + 1, device=times.device, dtype=times.dtype)
    stay = torch.where(torch.isfinite(following), torch.exp(-racing * (following - times)), torch.zeros_like(times))
    reach = torch.cat([torch.ones_like(stay[:, :1]), stay.cumprod(dim=1)], dim=1)
    each = (reach[:, :-1] - reach[:, 1:]) / racing
    return torch.zeros_like(each).scatter_(1, order, each.flip(1).cumsum(dim=1).flip(1))


def offer_optimally(target_row: Tensor, draft_row: Tensor, tokens: Tensor, alive: Tensor) -> Round:
    """Select a draft by the race and keep it with probability min(1, target / selected law), as coins in turn."""
    target, draft = (
        row.double() / row.sum(dim=1, keepdim=True, dtype=torch.float64) for row in (target_row, draft_row)
    )
    offers = alive.sum(dim=1, keepdim=True).double()
    ratio = torch.where(target > 0, target / draft, torch.zeros_like(target))
    order = ratio.sort(dim=1, descending=True, stable=True).indices
    target, draft = target.gather(1, order), draft.gather(1, order)
    slopes, cap = optimal_slopes(target, draft, offers)
    steps = 60 if target_row.dtype == torch.float64 else 25
    leaving = leaving_times(slopes, draft, offers, steps)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    place = place.gather(1, tokens)
    selected = slopes.gather(1, place) * draft.gather(1, place)
    keep = torch.where(selected > 0, target.gather(1, place) / selected, torch.ones_like(selected)).clamp_max(1)
    law = race_weights(leaving.gather(1, place), alive) * keep
    none_before = (1 - law.cumsum(dim=1) + law).clamp_min(0)
    coins = torch.where(law < none_before, law / none_before, (law > 0).double())
    totals = target_row.sum(dim=1, dtype=torch.float64) / draft_row.sum(dim=1, dtype=torch.float64)
    excess = cap.squeeze(1) * totals
    return Round(coins.to(target_row.dtype), excess, torch.zeros_like(excess))


@register(
    "single-step-optimal",
    summary="optimal transport of the drafts of each node, one token at a time",
    source="SpecTr, arXiv:2310.15141 (optimal transport); realised by a race, specbound (own)",
    paths="many",
    cost="O(L V log V), some hundred passes per node; for small supports",
)
def verify_single_step_optimal(batch: Batch, draws: Draws) -> Verdict:
    """The single-step optimum at each node of the tree, n the number of paths through it."""
    return verify_by_level(batch, draws, offer_optimally)
