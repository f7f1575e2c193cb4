"""The acceptance profile of SpecTr-GBV, realised exactly: race of keys, greedy thresholds, carried layers.

SpecTr-GBV aims at keeping a prefix w of some of K independent drafts with probability

    F(w) = P(w) g(min(1, Q(w) / P(w))),   g(t) = 1 - (1 - t)^K

Its published sequential algorithm misses it for K >= 2 (`spectr_gbv_published`). This construction meets it:

1. Every path draws a key. At each node the children are served in parallel at rates p until each has used up its
   draft mass q; a path's key is the moment at which its own share is served, traced from its leaf up to the root.
   The path with the smallest key wins. A prefix w is then on the winner with probability phi_sel(w) >= F(w).
2. Along the winner, the longest prefix whose coin comes up is kept:  h(w) = (F(w) - S) / (phi_sel(w) - S),
   S = sum_x F(wx) (0 at the end of the block).
3. The correction and the later positions of the block follow the layer with exponent K (`runtime.carry`); for K = 1
   all this is greedy block verification.

The key is an increasing, piecewise linear function of one uniform at the leaf, so the race is one question
(`Draws.smallest_image`): production computes K keys in O(K L V); an exact replay integrates between the knots of the
same functions. phi_sel needs the knots on the winner's path only: O(L V log V). Of more than `MOST` knots, runs that
bend a curve by less than the rounding of the arithmetic are left out.

B requests, K paths, L drafted tokens, V vocabulary; p target row in force, q draft row, P and Q their products,
R = P / Q, rows are nodes. SpecTr-GBV: arXiv:2604.25925 (for F); the construction is this project's.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..carry import Layers
from ..draws import Draws
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic
from .greedy_block import carried_layers, emit, next_log_ratio, usable_length, within_block

RUN = 8  # neighbouring knots that may be left out together
MOST = 256  # knots that are all kept


def coverage_slope(share: Tensor, paths: int) -> Tensor:
    """g(t) / t = (1 - (1 - t)^K) / t for t in [0, 1]; K at t = 0. At t = Q(w): Pr(w drafted) / Q(w)."""
    if paths == 1:
        return torch.ones_like(share)
    covered = -torch.expm1(paths * torch.log1p(-share))
    return torch.where(share > 0, covered / share, torch.full_like(share, paths))


def profile(log_ratio: Tensor, paths: int) -> Tensor:
    """F(w) / Q(w) = min(1, R) g(y) / y,  y = min(1, 1 / R), from log R [B]."""
    return log_ratio.clamp_max(0).exp() * coverage_slope((-log_ratio.clamp_min(0)).exp(), paths)


def children_profile(log_ratio: Tensor, target_row: Tensor, draft_row: Tensor, paths: int) -> Tensor:
    """S / Q(w) = sum_x F(wx) / Q(w) = sum_x min(q, R p) g(y) / y,  y = min(1, q / (R p)).

    Args:
        log_ratio [B], log R at w; target_row, draft_row [B, V] at w.
    Returns:
        [B].
    """
    scaled = log_ratio.exp().clamp_max(torch.finfo(target_row.dtype).max).unsqueeze(-1) * target_row
    share = torch.where(scaled > draft_row, draft_row / scaled, torch.ones_like(scaled))
    return (torch.minimum(draft_row, scaled) * coverage_slope(share, paths)).sum(dim=-1)


def served(time: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """Draft mass served by a moment: sum_z min(p(z) time, q(z)); time [...], rows [..., V]."""
    return torch.minimum(target_row * time.unsqueeze(-1), draft_row).sum(dim=-1)


def finish_time(target: Tensor, draft: Tensor) -> Tensor:
    """Moment q / p at which a token has used up its draft mass, kept finite; for p = 0 it comes after all others."""
    return torch.where(target > 0, draft / target, torch.inf).clamp_max(torch.finfo(target.dtype).max)


def keys(uniform: Tensor, tokens: Tensor, target_rows: Tensor, draft_rows: Tensor) -> Tensor:
    """Keys of the paths from a uniform at each leaf, up to the root: u <- sum_z min(p(z) t, q(z)),  t = u q(x) / p(x).

    A token with p(x) = 0 is served after all that have p > 0: u <- q_pos + u (1 - q_pos), q_pos their draft mass.

    Args:
        uniform [B, K]; tokens [B, K, L]; target_rows (in force), draft_rows [B, K, L, V].
    Returns:
        [B, K] in [0, 1], uniform if the tokens are drawn from the draft.
    """
    key = uniform
    for place in range(tokens.shape[2] - 1, -1, -1):
        target_row, draft_row, token = target_rows[:, :, place], draft_rows[:, :, place], tokens[:, :, place]
        target = at(target_row, token)
        mass = served(key * finish_time(target, at(draft_row, token)), target_row, draft_row)
        before = (draft_row * (target_row > 0)).sum(dim=-1)
        key = torch.where(target > 0, mass, before + key * (1 - before))
    return key


def packed(mask: Tensor, *values: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The marked entries of each row, in their order, with filling behind them: [N, J'+1] for each of `values`.

    Args:
        mask [N, J]; values: entries [N, J] with their filling [N, 1].
    Returns:
        J' the most marked entries of any row.
    """
    counts = mask.sum(dim=-1)
    row, column = mask.nonzero(as_tuple=True)
    before = counts.cumsum(dim=0) - counts
    place = torch.arange(len(row), device=mask.device) - before[row]
    index = torch.zeros(len(mask), int(counts.max()) + 1 if len(mask) else 1, dtype=torch.int64, device=mask.device)
    index[row, place] = column
    filling = torch.arange(index.shape[1], device=mask.device) >= counts.unsqueeze(-1)
    return [torch.where(filling, fill, entries.gather(1, index)) for entries, fill in values]


def ascending(times: Tensor) -> Tensor:
    """[N, J] int64, the order of times that are at least 0.

    Their bits as integers sort faster; a float32 on the CPU by its lower and then by its upper half, each in one pass.
    """
    if times.dtype == torch.float64 or times.device.type != "cpu":
        return times.view(torch.int64 if times.dtype == torch.float64 else torch.int32).argsort(dim=-1)
    bits = times.numpy().view(np.uint32)
    low = np.argsort(bits.astype(np.uint16), axis=-1, kind="stable")
    high = np.take_along_axis(bits >> 16, low, axis=-1).astype(np.uint16)
    return torch.from_numpy(np.take_along_axis(low, np.argsort(high, axis=-1, kind="stable"), axis=-1))


def service_curve(token: Tensor, target_row: Tensor, draft_row: Tensor) -> tuple[Tensor, Tensor]:
    """How the service of one child proceeds while its parent's draft mass is served: knots of a linear curve.

    Args:
        token [N]; target_row, draft_row [N, V].
    Returns:
        parent, child [N, J], ascending: fractions served of the parent's and of the child's draft mass; J - 2 is the
        most tokens that any row finishes before the child.
    """
    target = at(target_row, token).unsqueeze(-1)
    last = finish_time(target, at(draft_row, token).unsqueeze(-1))
    finish = finish_time(target_row, draft_row)
    finished = finish < last
    none = torch.zeros_like(last)
    parts = packed(finished, (finish, last), (draft_row, none), (target_row, none))
    order = ascending(parts[0])
    times, mass, rates = (part.gather(-1, order) for part in parts)
    mass = mass.cumsum(dim=-1)
    later = torch.nn.functional.pad(rates[:, 1:].flip(-1).cumsum(dim=-1).flip(-1), (0, 1))
    unfinished = torch.where(finished, none, target_row).sum(dim=-1, keepdim=True)
    parent = mass + times * (later + unfinished)
    child = torch.where(last > 0, times / last, torch.ones_like(times))
    before = (draft_row * (target_row > 0)).sum(dim=-1, keepdim=True)
    possible = target > 0
    start = torch.where(possible, none, before)
    parent = torch.where(possible, parent, torch.ones_like(parent))
    child = torch.where(possible, child, torch.ones_like(child))
    return thinned(torch.cat([start, parent], dim=-1), torch.cat([torch.zeros_like(start), child], dim=-1))


def thinned(parent: Tensor, child: Tensor) -> tuple[Tensor, Tensor]:
    """The curve without runs of knots that bend it by less than the rounding of the arithmetic, relative to 1.

    Args:
        parent, child [N, J], ascending.
    Returns:
        parent, child [N, J'], the same curve up to that.
    """
    runs = (parent.shape[1] - 1) // RUN
    if runs < MOST // RUN:
        return parent, child
    size = runs * RUN
    ends = [knots[:, : size + 1 : RUN] for knots in (parent, child)]
    height, width = (end.diff(dim=-1) for end in ends)
    slope = torch.where(width > 0, height / width, torch.zeros_like(width))
    rise, run = (
        knots[:, :size].unflatten(1, (runs, RUN)) - end[:, :-1].unsqueeze(-1)
        for knots, end in zip((parent, child), ends, strict=True)
    )
    bend = (rise - slope.unsqueeze(-1) * run).abs().amax(dim=-1, keepdim=True)
    kept = torch.ones_like(parent, dtype=torch.bool)
    kept[:, :size].unflatten(1, (runs, RUN))[..., 1:] = bend > torch.finfo(parent.dtype).eps
    parent, child = packed(kept, (parent, parent[:, -1:]), (child, child[:, -1:]))
    return parent, child


def interpolate(x: Tensor, knots: Tensor, values: Tensor, right: Tensor | None = None) -> Tensor:
    """Piecewise linear function through (knots, values) [N, J], ascending, at x [N, I]; constant outside.

    Args:
        right [N, I] int64: how many knots lie below each x, those equal to it counted or not; sought if not given.
    """
    if right is None:
        right = torch.searchsorted(knots.contiguous(), x.contiguous())
    right = right.clamp(1, knots.shape[-1] - 1)
    x0, x1 = knots.gather(-1, right - 1), knots.gather(-1, right)
    y0, y1 = values.gather(-1, right - 1), values.gather(-1, right)
    part = torch.where(x1 > x0, (x - x0) / (x1 - x0), torch.ones_like(x)).clamp(0, 1)
    return y0 + part * (y1 - y0)


def descend(key: Tensor, share: Tensor, token: Tensor, target_row: Tensor, draft_row: Tensor) -> tuple[Tensor, Tensor]:
    """Law of a path's key given that it goes through the child, from its law given the parent.

    Laws are lists of knots: `share` is Pr(path's key <= `key` | it goes through the node), linear between knots. The
    parent's knots within the service of the child and the knots of that service are merged, both being in order.

    Args:
        key, share [N, J], ascending; token [N]; target_row, draft_row [N, V] at the parent.
    Returns:
        key, share [N, J'] of the child.
    """
    parent, child = service_curve(token, target_row, draft_row)
    ends = parent[:, [0, -1]]
    first, last = interpolate(ends, share, key).split(1, dim=-1)
    between = (share > ends[:, :1]) & (share < ends[:, 1:])
    inner, inner_key = packed(between, (share, ends[:, 1:]), (key, last))
    above = torch.searchsorted(inner, parent)
    beyond = torch.zeros_like(inner, dtype=torch.int64).scatter_add_(1, above, torch.ones_like(above)).cumsum(dim=-1)
    own, own_key = torch.cat([ends[:, :1], inner], dim=-1), torch.cat([first, inner_key], dim=-1)
    count = parent.shape[1] + inner.shape[1]
    at_parent = above + torch.arange(parent.shape[1], device=above.device)
    at_inner = beyond + torch.arange(inner.shape[1], device=above.device)

    def merged(of_parent: Tensor, of_inner: Tensor) -> Tensor:
        return parent.new_empty(len(parent), count).scatter_(1, at_parent, of_parent).scatter_(1, at_inner, of_inner)

    return thinned(
        merged(interpolate(parent, own, own_key, above + 1), inner_key),
        merged(child, interpolate(inner, parent, child, beyond)),
    )


def whole_key_law(rows: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """At the root every key is uniform: knots (0, 0), (1, 1) for each of N rows."""
    ends = torch.arange(2, dtype=like.dtype, device=like.device).expand(rows, 2)
    return ends, ends


@cache
def gauss(count: int) -> list[tuple[float, float]]:
    """Nodes on [-1, 1] and weights of Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return list(zip(nodes.tolist(), weights.tolist(), strict=True))


def selection_slope(key: Tensor, share: Tensor, paths: int) -> Tensor:
    """phi_sel(w) / Q(w) = mean of K (1 - key)^(K-1) over the paths through w.

    Between knots the key is linear in the share and Gauss-Legendre quadrature with ceil(K/2) nodes is exact.

    Args:
        key, share [B, J], the law of the key given w.
    Returns:
        [B] in (0, K]; 1 for K = 1.
    """
    left, width = key[:, :-1], key.diff(dim=-1)
    mean = torch.zeros_like(left)
    for node, weight in gauss(math.ceil(paths / 2)):
        mean += weight / 2 * (1 - left - (1 + node) / 2 * width).clamp_min(0).pow(paths - 1)
    return paths * (mean * share.diff(dim=-1)).sum(dim=-1)


def threshold(above: Tensor, children: Tensor, selected: Tensor) -> Tensor:
    """h = (F - S) / (phi_sel - S), all [B] divided by Q(w); 1 where 0/0."""
    rest = selected - children
    return torch.where(rest > 0, ((above - children) / rest).clamp(0, 1), torch.ones_like(rest))


def follow_layers(
    carry: Layers, tokens: Tensor, target_rows: Tensor, draft_rows: Tensor
) -> tuple[list[Layers], Tensor]:
    """The layers at prefix 0..L of each path, and the target rows in force [N, L, V] along it.

    Args:
        carry: of N paths; tokens [N, L]; target_rows, draft_rows [N, L, V].
    """
    states, in_force = [carry], []
    for place, token in enumerate(tokens.unbind(dim=1)):
        laws = states[-1].laws(target_rows[:, place], draft_rows[:, place])
        in_force.append(laws[-1])
        states.append(states[-1].advance(token, laws, draft_rows[:, place]))
    if not any(bool(state.remaining.any()) for state in states[:-1]):
        return states, target_rows
    return states, torch.stack(in_force, dim=1)


def leaf_knots(tokens: Tensor, target_rows: Tensor, draft_rows: Tensor) -> Tensor:
    """[B, K, J] uniforms at the leaf between which `keys` is linear: the shares of the key's law given the path."""
    key, share = whole_key_law(tokens[..., 0].numel(), target_rows)
    for place, token in enumerate(tokens.unbind(dim=2)):
        target_row, draft_row = (rows[:, :, place].flatten(0, 1) for rows in (target_rows, draft_rows))
        key, share = descend(key, share, token.flatten(), target_row, draft_row)
    return share.unflatten(0, tokens.shape[:2])


def path_thresholds(
    tokens: Tensor, target_rows: Tensor, draft_rows: Tensor, usable: Tensor, paths: int
) -> tuple[Tensor, Tensor]:
    """Thresholds h of prefix 1..L of the winning path, and log R of prefix 0..L.

    Args:
        tokens [B, L]; target_rows (in force), draft_rows [B, L, V]; usable [B].
    Returns:
        [B, L] in [0, 1], [B, L+1].
    """
    key, share = whole_key_law(len(tokens), target_rows)
    log_ratio = torch.zeros_like(target_rows[:, 0, 0])
    log_ratios, inner, last = [log_ratio], [], []
    for place, token in enumerate(tokens.unbind(dim=1)):
        target_row, draft_row = target_rows[:, place], draft_rows[:, place]
        inner.append(children_profile(log_ratio, target_row, draft_row, paths))
        log_ratio = next_log_ratio(log_ratio, token, target_row, draft_row)
        log_ratios.append(log_ratio)
        if paths > 1:
            key, share = descend(key, share, token, target_row, draft_row)
        last.append(selection_slope(key, share, paths))
    children = torch.stack([*inner[1:], torch.zeros_like(log_ratio)], dim=1)
    ratios = torch.stack(log_ratios, dim=1)
    above, selected = profile(ratios[:, 1:], paths), torch.stack(last, dim=1)
    ends = threshold(above, torch.zeros_like(children), selected)
    start = torch.zeros_like(ends[:, :1])
    inside = torch.cat([start, threshold(above, children, selected)], dim=1)
    return within_block(inside, torch.cat([start, ends], dim=1), usable)[:, 1:], ratios


@register(
    "spectr-gbv",
    summary="realises SpecTr-GBV's acceptance profile with a race of keys; later positions follow a modified law",
    source="profile: SpecTr-GBV, arXiv:2604.25925; construction: this project",
    paths="many",
    stateful=True,
    cost="O(K L^2 V + L V log V)",
    closed_form="spectr-gbv",
)
def verify_spectr_gbv(batch: Batch, draws: Draws) -> Verdict:
    """Race the keys, then keep the longest prefix of the winner whose coin comes up.

    All requests of a batch draft the same number L of tokens (no padding); L may change between calls, as long as
    it does not depend on the drafted tokens, K may not.
    """
    requests, paths, length, _ = batch.shape
    dtype = arithmetic(batch)
    carry = carried_layers(batch, dtype)
    usable = usable_length(carry, length)
    index = torch.arange(requests, device=usable.device)
    draft_rows = batch.draft_probs.to(dtype)
    states, in_force = follow_layers(
        carry.select(index.repeat_interleave(paths)),
        batch.tokens.flatten(0, 1),
        batch.target_probs[:, :, :-1].to(dtype).flatten(0, 1),
        draft_rows.flatten(0, 1),
    )
    target_rows = in_force.unflatten(0, (requests, paths))
    winner = torch.zeros_like(usable)
    if paths > 1:
        race = (batch.tokens, target_rows, draft_rows)
        winner = draws.smallest_image(target_rows[:, :, 0, 0], lambda u: keys(u, *race), lambda: leaf_knots(*race))
    thresholds, log_ratios = path_thresholds(
        batch.tokens[index, winner], target_rows[index, winner], draft_rows[index, winner], usable, paths
    )
    kept = draws.accept_last(thresholds)
    return emit(
        [state.select(index * paths + winner) for state in states], log_ratios, kept, usable, batch, winner, draws
    )
