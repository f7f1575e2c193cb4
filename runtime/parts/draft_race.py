"""The race of drafts: an exact rule that selects one of the drafts at a node with any law that selection can have.

Let count_n be the probability that n drafts are at the node and g(t) = sum_n count_n (1 - (1 - t)^n) the chance that a
set of tokens of draft mass t is hit. A law of the selected token is possible if no set has more than its chance.

Every draft has a hidden score, uniform on (0, 1) over a random draft, and the smallest wins: score s wins with density
g'(s). Tokens enter the race in the order of decreasing slope = selected law / draft law. With T, F the running sums of
the draft law and of the selected law (F concave, F <= g), the token after T_j, of slope d, enters at the s where
g(s) = F_j + d (s - T_j). From then on it leaves the race at the same rate 1 / (T - s) as every token in it, T the
draft mass entered so far: that gives each token exactly its slope. As all drafts in the race are equally likely to be
next, the winner's law given the drafts is a short sum in the order of entering.

Letters: B requests, K paths, M tokens (or groups of tokens with one slope) in order; everything is float64.
Source: specbound (own); that such laws can be selected: optimal transport for K drafts, SpecTr, arXiv:2310.15141.
"""

from __future__ import annotations

import torch
from torch import Tensor

CERTAIN = 800.0  # exp(-CERTAIN) is 0 in float64


def hit_chance(mass: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """g(t) and g'(t) for mass [B, N] = t and count [B, K]; sums of positive terms."""
    missed = (1 - mass).clamp_min(0)
    at_least = count.flip(1).cumsum(dim=1).flip(1)
    chance = slope = torch.zeros_like(mass)
    for n in range(count.shape[1], 0, -1):
        chance = torch.addcmul(at_least[:, n - 1 : n], missed, chance)
        slope = torch.addcmul(n * count[:, n - 1 : n], missed, slope)
    return mass * chance, slope


def running(values: Tensor) -> Tensor:
    """[B, M+1] sums of the first 0..M values [B, M]."""
    return torch.cat([values.new_zeros(len(values), 1), values.cumsum(dim=1)], dim=1)


def remaining(values: Tensor) -> Tensor:
    """[B, M+1] sums of the last M..0 values [B, M]: what `running` leaves, without cancellation."""
    return running(values.flip(1)).flip(1)


def optimal_slopes(wanted: Tensor, draft: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The selected law that covers most of `wanted`, as slopes: it maximises sum min(wanted, selected).

        selected = min(wanted, k1 draft) on S, max(wanted, k2 draft) off S, S minimising g(draft(S)) - wanted(S)

    Args:
        wanted, draft [B, M], sorted by decreasing wanted/draft; draft sums to 1, wanted to at most 1; count [B, K].
    Returns:
        slopes [B, M], non-increasing; k1 [B, 1], their cap on S.
    """
    mass, rest = running(draft), remaining(draft)
    hit, steepness = hit_chance(mass, count)
    places = torch.arange(mass.shape[1], device=mass.device)
    split = (hit - running(wanted)).argmin(dim=1, keepdim=True)
    inside, infinity = places <= split, torch.full_like(mass, torch.inf)
    kept = remaining(wanted * inside[:, 1:])
    cap = torch.where(inside & (mass > 0), (hit.gather(1, split) - kept) / mass, -infinity).amax(dim=1, keepdim=True)
    cap = torch.where(torch.isfinite(cap), cap, steepness[:, :1])
    powers = torch.arange(1, count.shape[1] + 1, device=count.device)
    missed = (count * rest.gather(1, split).pow(powers)).sum(dim=1, keepdim=True)
    given = running(wanted * ~inside[:, 1:])
    floor = torch.where((places >= split) & (rest > 0), (missed - given) / rest, infinity).amin(dim=1, keepdim=True)
    floor = torch.where(torch.isfinite(floor), floor, 0)
    ratio = torch.where(draft > 0, wanted / draft, cap)
    return torch.where(inside[:, 1:], torch.minimum(ratio, cap), torch.maximum(ratio, floor)), cap


def entry_scores(slopes: Tensor, draft: Tensor, count: Tensor, steps: int) -> Tensor:
    """[B, M] score at which each token enters: g(s) = F_j + d (s - T_j), 0 <= s <= T_j; non-decreasing.

    Newton's method from the left, where g minus the line is concave, never passes the root.

    Args:
        slopes, draft [B, M] in race order; count [B, K]; steps of Newton's method.
    """
    before = running(draft)[:, :-1]
    intercept = running(slopes * draft)[:, :-1] - slopes * before
    entry = torch.zeros_like(before)
    for _ in range(steps):
        hit, steepness = hit_chance(entry, count)
        gap, climb = intercept + slopes * entry - hit, steepness - slopes
        entry = torch.where((gap > 0) & (climb > 0), entry + gap / climb, entry)
        entry = torch.minimum(entry, before)
    return entry.cummax(dim=1).values


def leaving(entry: Tensor, draft: Tensor) -> Tensor:
    """[B, M] how much leaving, as -log(share left of a token there from the start), precedes each token's entry."""
    entered = running(draft)[:, 1:-1]
    left = (entered - entry[:, 1:]).clamp_min(0)
    phase = torch.log((entered - entry[:, :-1]) / left).clamp(0, CERTAIN)
    return running(torch.where(entry[:, 1:] > entry[:, :-1], phase, torch.zeros_like(phase)))


def race_weights(leaving: Tensor, alive: Tensor) -> Tensor:
    """Law of the winner among the drafts of a node: while m drafts are in the race each is the next with rate 1.

    Args:
        leaving [B, K]: value of `leaving` of the drafts' tokens; alive [B, K] bool: drafts at the node.
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
