"""Many-level path selection by a race of drafts, then block verification with the selected path's law.

At each node the tokens are grouped into levels by target/draft ratio (each token its own level where V is at most 64,
64 levels up to 256, above 258 steps, 16 to a factor of two), and a race of the drafts selects the path so that its law
covers as much as possible of a p: the best law that any rule can give to these levels at this node. No coin is hidden:
the winner is one draw over the K paths. Above 256 tokens the selected path's rows are read twice, whatever M is: once
for the masses of all levels, and once for its block verification.

Given that y won with score s, every other draft has a score above s: it goes on through y with draft mass
q(y) left(s), left(s) the share of y's scores above s, and elsewhere with 1 - s - q(y) left(s). So

    count'_(m+1) proportional to the s^m coefficient, integrated over y's scores, of
                                 sum_n n count_n (1 - s - q(y) left(s) (1 - z))^(n-1),   z marking the drafts through y

a polynomial of degree K - 1 in the score between two entries, which Gauss-Legendre points integrate exactly.

Letters: B requests, K paths, L drafted tokens, V vocabulary, M levels; p target row, q draft row, a acceptance ratio.
Source: specbound (own); selection before Block Verification, arXiv:2403.10444.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..draws import Draws
from ..parts.count_law import count_at_root, times
from ..parts.draft_race import entry_scores, leaving, optimal_slopes, race_weights, running
from ..parts.draft_tree import target_ratio
from ..parts.ratio_knots import LAST, MOST, drafted_rows, knot_below, step_masses, stepped_law
from ..parts.selected_path import SelectedPath, next_ratio, verify_against
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic

LEVELS = 64
PER_OCTAVE = 6  # levels per factor of two in the ratio


def level_of(ratio: Tensor) -> Tensor:
    """int64 [B, V] level of each token, 0 for the highest ratios.

    Where V is at most LEVELS every token has its own; else the log ratio is rounded to steps of 1 / PER_OCTAVE, the
    middle level at equality, and the outermost levels take everything beyond.
    """
    vocab = ratio.shape[1]
    if vocab <= LEVELS:
        order = ratio.argsort(dim=1, descending=True, stable=True)
        return torch.empty_like(order).scatter_(1, order, torch.arange(vocab, device=ratio.device).expand_as(order))
    middle = LEVELS // 2
    return middle - (ratio.log2() * PER_OCTAVE).round().clamp(middle - LEVELS + 1, middle).long()


def level_masses(level: Tensor, row: Tensor) -> Tensor:
    """[B, M] float64 sum of `row` [B, V] over the tokens of each level."""
    masses = torch.zeros(len(row), min(row.shape[1], LEVELS), dtype=torch.float64, device=row.device)
    return masses.scatter_add_(1, level, row.double())


def by_ratio(wanted: Tensor, draft: Tensor) -> Tensor:
    """[B, M] the levels in decreasing order of wanted/draft, those that only the target has first, empty ones last."""
    ratio = torch.where(wanted > 0, wanted / draft, torch.where(draft > 0, 0.0, -1.0))
    return ratio.argsort(dim=1, descending=True, stable=True)


def count_after_race(
    count: Tensor, entry: Tensor, gone: Tensor, draft: Tensor, place: Tensor, mass: Tensor, slope: Tensor
) -> Tensor:
    """The law of the number of paths through the winning token, given that it won; [B, K].

    Args:
        count [B, K]; entry, gone, draft [B, M] in race order; place [B]: the token's level in that order;
        mass, slope [B]: its draft probability and selected/draft ratio.
    """
    paths = count.shape[1]
    nodes, weights = (
        torch.as_tensor(array, device=count.device) for array in np.polynomial.legendre.leggauss((paths + 1) // 2)
    )
    ends = torch.cat([entry, torch.ones_like(entry[:, :1])], dim=1)
    width = (ends[:, 1:] - ends[:, :-1]).unsqueeze(2)
    score = entry.unsqueeze(2) + width * (1 + nodes) / 2
    entered = running(draft)[:, 1:].unsqueeze(2)
    racing = torch.arange(entry.shape[1], device=entry.device) >= place.unsqueeze(1)
    share = (torch.exp((at(gone, place).unsqueeze(1) - gone).clamp_max(0)) * racing).unsqueeze(2)
    span = torch.where(width > 0, entered - entry.unsqueeze(2), torch.ones_like(width))
    left = share * (entered - score).clamp_min(0) / span
    density = (width * weights / 2 * share / span).flatten(1)
    through = (mass.view(-1, 1, 1) * left).flatten(1)
    elsewhere = ((1 - score).flatten(1) - through).clamp_min(0)
    requests, points = through.shape
    polynomial = torch.zeros(requests * points, paths, dtype=count.dtype, device=count.device)
    for n in range(paths, 0, -1):
        polynomial = times(polynomial, (elsewhere.flatten(), through.flatten()))
        polynomial[:, 0] += (n * count[:, n - 1 : n]).expand(requests, points).flatten()
    law = torch.einsum("bp,bpk->bk", density, polynomial.view(requests, points, paths))
    return torch.where(slope.unsqueeze(1) > 0, law / slope.unsqueeze(1), count)


class Race(NamedTuple):
    """The race at B nodes.

    Attributes:
        rank [B, M]: where each level stands in the order of the race; what follows is in that order.
        draft, slopes [B, M]: draft mass, and selected law over draft law; entry, gone [B, M]: see `draft_race`.
    """

    rank: Tensor
    draft: Tensor
    slopes: Tensor
    entry: Tensor
    gone: Tensor

    @property
    def of_levels(self) -> Tensor:
        """[B, M] the slope of each level."""
        return self.slopes.gather(1, self.rank)


def race_of(wanted: Tensor, draft: Tensor, count: Tensor, dtype: torch.dtype) -> Race:
    """The best race for levels of mass wanted, draft [B, M], when count [B, K] is the law of the number of paths."""
    order = by_ratio(wanted, draft)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    draft, wanted = draft.gather(1, order), wanted.gather(1, order)
    slopes, _ = optimal_slopes(wanted, draft, count)
    entry = entry_scores(slopes, draft, count, steps=60 if dtype == torch.float64 else 25)
    return Race(rank, draft, slopes, entry, leaving(entry, draft))


@register(
    "many-level",
    summary="select a path by a race over levels of target/draft, then block verification with its law",
    source="specbound (own); selection before Block Verification, arXiv:2403.10444",
    paths="many",
    cost="O(L V), two passes, + O(L M K^3)",
)
def verify_many_level(batch: Batch, draws: Draws) -> Verdict:
    """Walk down the tree choosing a path by a race at each node, then verify it against its exact law."""
    if batch.shape[3] > MOST:
        return verify_by_steps(batch, draws)
    walk = SelectedPath(batch)
    count = count_at_root(batch.tokens)
    _, paths, length = batch.tokens.shape
    for depth in range(length):
        target_row, draft_row = walk.target_row(depth), walk.draft_row(depth)
        if paths == 1:
            walk.select(walk.path, depth, target_row, draft_row)
            continue
        tokens = batch.tokens[:, :, depth]
        level = level_of(target_ratio(target_row, draft_row))
        draft = level_masses(level, draft_row)
        total = draft.sum(dim=1, keepdim=True)
        wanted = level_masses(level, target_row)
        wanted = walk.ratio.unsqueeze(1) * wanted / wanted.sum(dim=1, keepdim=True)
        race = race_of(wanted, draft / total, count, walk.dtype)
        law = draft_row * race.of_levels.to(walk.dtype).gather(1, level)

        places = race.rank.gather(1, level.gather(1, tokens))
        path = draws.choose(race_weights(race.gone.gather(1, places), walk.alive))
        token = walk.select(path, depth, target_row, law)
        place = at(places, path)
        mass = at(draft_row, token).double() / total.squeeze(1)
        count = count_after_race(count, race.entry, race.gone, race.draft, place, mass, at(race.slopes, place))
    return walk.verdict(draws)


def verify_by_steps(batch: Batch, draws: Draws) -> Verdict:
    """The same with the steps between fixed knots as levels, their masses from one read of a node's rows."""
    requests, paths, length, _ = batch.shape
    dtype, device = arithmetic(batch), batch.tokens.device
    (target_rows, draft_rows), tokens = drafted_rows(batch), batch.tokens.flatten(0, 1)
    target, draft = (at(rows, tokens).to(dtype) for rows in (target_rows, draft_rows))
    level = knot_below(target, draft)
    first = torch.arange(0, requests * paths, paths, device=device)
    path, ratio = torch.zeros_like(first), torch.ones(requests, dtype=torch.float64, device=device)
    alive, count = torch.ones_like(batch.tokens[:, :, 0], dtype=torch.bool), count_at_root(batch.tokens)
    tables = torch.ones(requests, length, LAST + 1, dtype=torch.float64, device=device)
    if paths > 1:
        offers = first.unsqueeze(1) + torch.arange(paths, device=device)
        for depth in range(length):
            own = first + path
            here = step_masses(target_rows[own, depth, None], draft_rows[own, depth, None], dtype)
            draft_mass, target_mass = here[:, 0].unbind(dim=2)
            total = draft_mass.sum(dim=1)
            wanted = target_mass * (ratio / target_mass.sum(dim=1)).unsqueeze(1)
            race = race_of(wanted, draft_mass / total.unsqueeze(1), count, dtype)
            tables[:, depth] = race.of_levels

            places = race.rank.gather(1, level[offers, depth])
            path = draws.choose(race_weights(race.gone.gather(1, places), alive))
            own, place = first + path, at(places, path)
            slope, mass = at(race.slopes, place), draft[own, depth].double()
            ratio = next_ratio(ratio, target[own, depth], mass * slope)
            alive = alive & (tokens[offers, depth] == tokens[own, depth].unsqueeze(1))
            count = count_after_race(count, race.entry, race.gone, race.draft, place, mass / total, slope)

    def law(where: Tensor, deep: Tensor, target_rows: Tensor, draft_rows: Tensor) -> Tensor:
        return stepped_law(tables[where, deep], target_rows, draft_rows)

    return verify_against(batch, draws, path, law)
