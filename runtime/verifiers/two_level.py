"""Two-level path selection, then block verification with the selected path's law.

At each node every token has a level in [0, 1]; each path flips a coin with the level of its token, and the first
path (in draft order) whose coin comes up goes on, or the first path if none does. That lifts the draft law q(y) to
q(y) (level k1 + (1 - level) k2), k1 >= k2, and the levels are set so that this law is as close as it can be to
max(k2 q, min(a p, k1 q)) with a the acceptance ratio of block verification. Lossless whatever the levels are: the
law of the selected path is known exactly, and block verification is lossless against it.

Of the K paths only the selected one's rows are read, twice: once as histograms (`parts.ratio_knots`), on which the walk
down the tree goes, on the host; and once for the block verification of that path. (Where all paths' rows fit in the
cache their histograms are taken together.)

Letters: B requests, K paths, L drafted tokens, V vocabulary, M knots, I places; p target row, q draft row, r = p/q, a
acceptance ratio, x the draft mass whose coin fails. Source: the project's own; any selection rule may precede block
verification (arXiv:2403.10444), and the best rule attains the lossless optimum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .. import compiled
from ..draws import Draws
from ..parts.count_law import counts_after
from ..parts.ratio_knots import Knots, at_nodes, between, drafted_rows, fit_in_cache
from ..parts.roots import STEPS, sectioned_root
from ..parts.score_law import Array, count_below, entries, over
from ..parts.selected_path import verify_selected
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic


def level_densities(count: Array, fails: Array) -> tuple[Array, Array]:
    """Selected law over draft law at level 1 and at level 0, when coins fail with draft mass x:

        k1 = sum_n count_n (1 + x + .. + x^(n-1)),   k2 = sum_n count_n x^(n-1)

    Args:
        count [B, K] (see `count_law`); fails [B, I] in [0, 1].
    Returns:
        k1, k2 [B, I], k1 >= k2 >= 0.
    """
    high = low = np.zeros_like(fails)
    at_least = np.zeros_like(count[:, :1])
    for n in range(count.shape[1], 0, -1):
        term = count[:, n - 1 : n]
        at_least = at_least + term
        high, low = high * fails + at_least, low * fails + term
    return high, low


def levels(ratio: Array, high: Array, low: Array) -> Array:
    """Level of each token, (a r - k2) / (k1 - k2) clipped to [0, 1]. (Where k1 = k2 any level gives the same law.)

    Args:
        ratio [B, M] = a r; high = k1, low = k2 [B, 1].
    """
    return np.clip(over(ratio - low, high - low), 0, 1)


def _slack(dtype: torch.dtype) -> float:
    return 8 * torch.finfo(dtype).eps


def success_mass(knots: Knots, accept: Array, count: Array, dtype: torch.dtype) -> Array:
    """The smallest b in [0, 1] with sum_y q(y) clip(a r, k2(b), k1(b)) <= 1, where coins fail with mass 1 - b.

    Where the sum is 1 on an interval, its left end is the better choice. Only the acceptance length depends on the
    accuracy of b, which dtype sets. Args: knots of rows [B, M]; accept [B] = a; count [B, K]. Returns [B].
    """
    accept = accept[:, None]
    one = 1 + _slack(dtype)

    def excess(mass: Array) -> Array:
        high, low = level_densities(count, 1 - mass)
        index = count_below(knots.ratio, np.concatenate([low / accept, high / accept], axis=1))
        sums, places = entries(knots.sums, index), mass.shape[1]
        (least, least_sum), (free, free_sum) = sums[:, :, :places], sums[:, :, places:]
        return low * least + accept * (free_sum - least_sum) + high * (1 - free) - one

    zero = np.zeros(len(count))
    return sectioned_root(excess, zero, zero + 1, dtype)


def selection_weights(level: Array, alive: NDArray[np.bool_]) -> Array:
    """Law of the selected path: the first alive path whose coin comes up, else the first alive path.

    Args:
        level [B, K]: coin of each path; alive [B, K] bool.
    Returns:
        [B, K], rows sum to 1.
    """
    none = np.ones((len(alive), alive.shape[1] + 1))
    np.cumprod(np.where(alive, 1 - level, 1.0), axis=1, out=none[:, 1:])
    weights = np.where(alive, none[:, :-1] * level, 0.0)
    weights[np.arange(len(alive)), alive.argmax(axis=1)] += none[:, -1]
    return weights


def counts_below(count: Array, level: Array, mass: Array, fails: Array) -> Array:
    """The law of the number of paths through the chosen token, given that it was chosen.

    Args:
        count [B, K] at the node; level, mass [B]: level and draft probability of the chosen token; fails [B].
    Returns:
        [B, K], rows sum to 1; `count` itself where the choice had probability 0 or below 1e-300.
    """
    if compiled.usable():
        from ..compiled.walks import count_nodes

        after = np.empty_like(count)
        count_nodes(count, level, mass, fails, after)
        return after
    high, low = level_densities(count, fails[:, None])
    failing, level = mass * (1 - level), level[:, None]
    lowest, higher = counts_after(count, (np.maximum(fails - failing, 0), failing), (1 - mass, mass))
    density = low + level * (high - low)
    return np.where(density > 0, over(lowest + level * (higher - lowest), density), count)


class Offers(NamedTuple):
    """What the paths offer at B nodes.

    Attributes:
        table [B, M]: selected law over draft law at the knots; fails [B]: draft mass whose coin fails.
        level, density [B, K]: level of each path's token, and selected law over draft law there.
        weight [B, K]: law of the selected path.
    """

    table: Array
    fails: Array
    level: Array
    density: Array
    weight: Array


@np.errstate(all="ignore")
def offers_at(
    knots: Knots, accept: Array, count: Array, alive: NDArray[np.bool_], offered: Array, dtype: torch.dtype
) -> Offers:
    """The selection rule at B nodes.

    Args:
        knots: of rows [B, M]; accept [B]; count [B, K]; alive [B, K]: the paths through the node; offered [B, K]:
            target/draft of their tokens.
    """
    if compiled.usable():
        from ..compiled.walks import offer_nodes

        ratio, mass = np.array(knots.ratio), np.array(knots.mass)  # in order, and not read-only
        found = Offers(np.empty_like(mass), np.empty_like(accept), *np.empty((3, *count.shape)))
        offer_nodes(ratio, mass, accept, count, alive, offered, _slack(dtype), STEPS[dtype], *found)
        return found
    high, low = level_densities(count, 1 - success_mass(knots, accept, count, dtype)[:, None])
    level = levels(accept[:, None] * knots.ratio, high, low)
    fails = np.clip((knots.mass * (1 - level)).sum(axis=1), 0, 1)
    high, low = level_densities(count, fails[:, None])
    table = low + level * (high - low)
    near, part = knots.between(offered)
    own = between(level, near, part)
    return Offers(table, fails, own, between(table, near, part), selection_weights(own, alive))


@register(
    "two-level",
    summary="select a path by soft levels of target/draft, then block verification with its law",
    source="specbound (own); selection before Block Verification, arXiv:2403.10444",
    paths="many",
    cost="O(L V), two passes, + O(L K^2)",
    closed_form="two-level",
    kernel="two_level:verify_two_level_laws",
)
@np.errstate(all="ignore")
def verify_two_level(batch: Batch, draws: Draws) -> Verdict:
    """Walk down the tree choosing a path level by level, then verify it against its exact law."""
    requests, paths, length, _ = batch.shape
    dtype, device = arithmetic(batch), batch.tokens.device
    (target_rows, draft_rows), drafted = drafted_rows(batch), batch.tokens.flatten(0, 1)
    target, draft = (at(rows, drafted).double().cpu().numpy() for rows in (target_rows, draft_rows))
    ratio, tokens = over(target, draft), drafted.cpu().numpy()
    request, first = np.arange(requests), np.arange(0, requests * paths, paths)
    count = np.tile(np.arange(1, paths + 1) == paths, (requests, 1)).astype(float)
    alive, accept, path = np.ones((requests, paths), dtype=bool), np.ones(requests), np.zeros_like(first)
    offers = first[:, None] + np.arange(paths)
    ratios, tables = [], []
    everywhere = Knots.of(target_rows, draft_rows, dtype) if fit_in_cache(draft_rows) else None
    for depth in range(length):
        node = first + path
        if everywhere is not None:
            here = everywhere[node, depth]
        else:
            here = Knots.of(at_nodes(target_rows, node, depth), at_nodes(draft_rows, node, depth), dtype)[:, 0]
        offer = offers_at(here, accept, count, alive, ratio[offers, depth], dtype)
        ratios.append(here.ratio)
        tables.append(offer.table)
        if paths > 1:
            path = draws.choose(torch.from_numpy(offer.weight).to(device)).cpu().numpy()
        own, density = first + path, offer.density[request, path]
        step = np.where(density * draft[own, depth] > 0, over(ratio[own, depth], density), 1.0)
        accept = np.minimum(accept * step, 1)
        alive &= tokens[offers, depth] == tokens[own, depth][:, None]
        mass = draft[own, depth] / here.total
        count = counts_below(count, offer.level[request, path], mass, offer.fails)
    chosen = torch.from_numpy(path).to(device)
    return verify_selected(
        batch, draws, chosen, np.stack(ratios, axis=1), np.stack(tables, axis=1), ratio[first + path]
    )
