"""Two-level path selection, then block verification with the selected path's law.

At each node every token has a level in [0, 1]; each path flips a coin with the level of its token, and the first
path (in draft order) whose coin comes up goes on, or the first path if none does. That lifts the draft law q(y) to
q(y) (level k1 + (1 - level) k2), k1 >= k2, and the levels are set so that this law is as close as it can be to
max(k2 q, min(a p, k1 q)) with a the acceptance ratio of block verification. Lossless whatever the levels are: the
law of the selected path is known exactly, and block verification is lossless against it.

Letters: B requests, K paths, L drafted tokens, V vocabulary; p target row, q draft row, a acceptance ratio, x the
draft mass whose coin fails. Source: the project's own; any selection rule may precede block verification
(arXiv:2403.10444), and the best rule attains the lossless optimum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.count_law import count_at_root, counts_after
from ..parts.draft_tree import target_ratio
from ..parts.roots import falling_root
from ..parts.selected_path import SelectedPath
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict


def level_densities(count: Tensor, fails: Tensor) -> tuple[Tensor, Tensor]:
    """Selected law over draft law at level 1 and at level 0, when coins fail with draft mass x:

        k1 = sum_n count_n (1 + x + .. + x^(n-1)),   k2 = sum_n count_n x^(n-1)

    Args:
        count [B, K] (see `count_law`); fails [B] in [0, 1].
    Returns:
        k1, k2 [B], k1 >= k2 >= 0.
    """
    powers = fails.unsqueeze(1) ** torch.arange(count.shape[1], device=count.device)
    at_least = count.flip(1).cumsum(dim=1).flip(1)
    return (at_least * powers).sum(dim=1), (count * powers).sum(dim=1)


def levels(ratio: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Level of each token, (a p/q - k2) / (k1 - k2) clipped to [0, 1]. (Where k1 = k2 any level gives the same law.)

    Args:
        ratio [B, N] = a p/q; high = k1, low = k2 [B].
    """
    span = (high - low).unsqueeze(1).to(ratio.dtype).clamp_min(torch.finfo(ratio.dtype).tiny)
    return (ratio - low.unsqueeze(1).to(ratio.dtype)).div_(span).clamp_(0, 1)


def success_mass(ratio: Tensor, draft_row: Tensor, count: Tensor) -> Tensor:
    """The smallest b in [0, 1] with sum_y q(y) clip(a p/q, k2(b), k1(b)) <= 1, where coins fail with mass 1 - b.

    Where the sum is 1 on an interval, its left end is the better choice. Only the acceptance length depends on the
    accuracy of b. Args: ratio, draft_row [B, V]; count [B, K]. Returns [B] float64.
    """
    one = 1 + 8 * torch.finfo(ratio.dtype).eps

    def excess(mass: Tensor) -> Tensor:
        high, low = (bound.unsqueeze(1).to(ratio.dtype) for bound in level_densities(count, 1 - mass))
        return torch.maximum(ratio, low).minimum(high).mul_(draft_row).sum(dim=1) - one

    zero = torch.zeros_like(count[:, 0])
    return falling_root(excess, zero, zero + 1)


def selection_weights(level: Tensor, alive: Tensor) -> Tensor:
    """Law of the selected path: the first alive path whose coin comes up, else the first alive path.

    Args:
        level [B, K]: coin of each path; alive [B, K] bool.
    Returns:
        [B, K], rows sum to 1.
    """
    fail = torch.where(alive, 1 - level, torch.ones_like(level))
    none_before = torch.cat([torch.ones_like(fail[:, :1]), fail.cumprod(dim=1)], dim=1)
    first = alive & (alive.cumsum(dim=1) == 1)
    return none_before[:, :-1] * (1 - fail) + none_before[:, -1:] * first


def count_below(count: Tensor, level: Tensor, mass: Tensor, fails: Tensor) -> Tensor:
    """The law of the number of paths through the chosen token, given that it was chosen.

    Args:
        count [B, K] at the node; level, mass [B]: level and draft probability of the chosen token; fails [B].
    Returns:
        [B, K], rows sum to 1; `count` itself where the choice had probability 0 or below 1e-300.
    """
    high, low = level_densities(count, fails)
    failing = mass * (1 - level)
    lowest, higher = counts_after(count, ((fails - failing).clamp_min(0), failing), (1 - mass, mass))
    density = torch.lerp(low, high, level).unsqueeze(1)
    return torch.where(density > 0, torch.lerp(lowest, higher, level.unsqueeze(1)) / density, count)


@register(
    "two-level",
    summary="select a path by soft levels of target/draft, then block verification with its law",
    source="specbound (own); selection before Block Verification, arXiv:2403.10444",
    paths="many",
    cost="O(L V), a dozen passes per node, + O(L K^2)",
    closed_form="two-level",
    kernel="two_level:verify_two_level_laws",
)
def verify_two_level(batch: Batch, draws: Draws) -> Verdict:
    """Walk down the tree choosing a path level by level, then verify it against its exact law."""
    walk = SelectedPath(batch)
    count = count_at_root(batch.tokens)
    _, paths, length = batch.tokens.shape
    for depth in range(length):
        target_row, draft_row = walk.target_row(depth), walk.draft_row(depth)
        tokens = batch.tokens[:, :, depth]
        ratio = target_ratio(target_row, draft_row).mul_(walk.ratio.unsqueeze(1).to(walk.dtype))
        high, low = level_densities(count, 1 - success_mass(ratio, draft_row, count))
        level = levels(ratio, high, low)
        offered = level.gather(1, tokens)
        total = draft_row.sum(dim=1).double()
        fails = ((1 - level).mul_(draft_row).sum(dim=1).double() / total).clamp(0, 1)
        high, low = (density.unsqueeze(1).to(walk.dtype) for density in level_densities(count, fails))
        law = level.mul_(high - low).add_(low).mul_(draft_row)

        path = draws.choose(selection_weights(offered, walk.alive)) if paths > 1 else walk.path
        token = walk.select(path, depth, target_row, law)
        count = count_below(count, at(offered, path).double(), at(draft_row, token).double() / total, fails)
    return walk.verdict(draws)
