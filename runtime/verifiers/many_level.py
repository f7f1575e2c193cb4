"""Many-level path selection by a race of drafts, then block verification with the selected path's law.

At each node the tokens are grouped into up to 64 levels by target/draft ratio (each token its own level where V is at
most 64), and a race of the drafts selects the path so that its law covers as much as possible of a p: the best law that
any rule can give to these levels at this node. No coin is hidden: the winner is one draw over the K paths.

Given that y won with score s, every other draft has a score above s: it goes on through y with draft mass
q(y) left(s), left(s) the share of y's scores above s, and elsewhere with 1 - s - q(y) left(s). So

    count'_(m+1) proportional to the s^m coefficient, integrated over y's scores, of
                                 sum_n n count_n (1 - s - q(y) left(s) (1 - z))^(n-1),   z marking the drafts through y

a polynomial of degree K - 1 in the score between two entries, which Gauss-Legendre points integrate exactly.

Letters: B requests, K paths, L drafted tokens, V vocabulary, M levels; p target row, q draft row, a acceptance ratio.
Source: specbound (own); selection before Block Verification, arXiv:2403.10444.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..draws import Draws
from ..parts.count_law import count_at_root, times
from ..parts.draft_race import entry_scores, leaving, optimal_slopes, race_weights, running
from ..parts.draft_tree import target_ratio
from ..parts.selected_path import SelectedPath
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict

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


@register(
    "many-level",
    summary="select a path by a race over up to 64 levels of target/draft, then block verification with its law",
    source="specbound (own); selection before Block Verification, arXiv:2403.10444",
    paths="many",
    cost="O(L V + L M K^3), M = 64 levels",
)
def verify_many_level(batch: Batch, draws: Draws) -> Verdict:
    """Walk down the tree choosing a path by a race at each node, then verify it against its exact law."""
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
        draft = draft / total
        wanted = level_masses(level, target_row)
        wanted = walk.ratio.unsqueeze(1) * wanted / wanted.sum(dim=1, keepdim=True)
        order = by_ratio(wanted, draft)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        draft, wanted = draft.gather(1, order), wanted.gather(1, order)
        slopes, _ = optimal_slopes(wanted, draft, count)
        entry = entry_scores(slopes, draft, count, steps=60 if walk.dtype == torch.float64 else 25)
        gone = leaving(entry, draft)
        law = draft_row * slopes.gather(1, rank).to(walk.dtype).gather(1, level)

        places = rank.gather(1, level.gather(1, tokens))
        path = draws.choose(race_weights(gone.gather(1, places), walk.alive))
        token = walk.select(path, depth, target_row, law)
        place = at(places, path)
        mass = at(draft_row, token).double() / total.squeeze(1)
        count = count_after_race(count, entry, gone, draft, place, mass, at(slopes, place))
    return walk.verdict(draws)
