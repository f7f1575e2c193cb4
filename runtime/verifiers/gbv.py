"""Greedy multi-path block verification: take the path whose tokens the target favours most, then verify its block.

At each node keep the paths whose token has the highest target/draft ratio (ties: the larger token id), so that one
path is left; its law is the draft law skewed towards high ratios. Then block verification with that law. Lossless;
but the highest path over-concentrates, so it can accept less than one path does.

`gbv-bucketed` compares only the bucket of the ratio and lets the first path of the highest bucket go on. No sort, and
as the skew is the same within a bucket, it keeps close to one path where draft and target agree.

Letters: B requests, K paths, L drafted tokens, V vocabulary. State of `gbv` at a node w, scaled to r + e = 1: r the
draft mass of paths ranked below those through w, e the draft mass of w itself.
Source: [GBV] arXiv:2602.16961.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.count_law import count_at_root, counts_after, selection_densities
from ..parts.draft_tree import first_path, target_ratio
from ..parts.ratio_knots import LAST, knot_below
from ..parts.selected_path import SelectedPath
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict

PER_BUCKET = 16  # knots: an octave
BUCKETS = (LAST + PER_BUCKET // 2) // PER_BUCKET + 1  # centred at equality; the outermost take everything beyond


def power_sum(a: Tensor, b: Tensor, terms: int) -> Tensor:
    """a^(K-1) + a^(K-2) b + .. + b^(K-1) for K = `terms`, in O(log K) operations without cancellation.

    Equals (a^K - b^K) / (a - b). From the sums S_m: S_2m = S_m (a^m + b^m), S_(m+1) = a S_m + b^m.
    """
    total, power_a, power_b = torch.zeros_like(a), torch.ones_like(a), torch.ones_like(b)
    for bit in bin(terms)[2:]:
        total, power_a, power_b = total * (power_a + power_b), power_a * power_a, power_b * power_b
        if bit == "1":
            total, power_a, power_b = a * total + power_b, power_a * a, power_b * b
    return total


def highest(score: Tensor, tokens: Tensor, alive: Tensor) -> Tensor:
    """[B] the first alive path whose token has the highest score, ties to the larger token id.

    Args:
        score, tokens [B, K]; alive [B, K] bool.
    """
    best = score.masked_fill(~alive, -1)
    tied = best == best.amax(dim=1, keepdim=True)
    largest = tokens.masked_fill(~tied, -1)
    return first_path(largest == largest.amax(dim=1, keepdim=True))


def increasing(ratio: Tensor) -> Tensor:
    """int64 [B, V] tokens of each row by increasing ratio >= 0, ties by id.

    Non-negative floats sort like their bit patterns. float32 patterns leave room for the row's number above them, and
    one sort of flat integers is several times faster than a sort of rows of floats.
    """
    if ratio.dtype == torch.float64:
        return ratio.sort(dim=1, stable=True).indices
    requests, vocab = ratio.shape
    row = torch.arange(requests, device=ratio.device).unsqueeze(1)
    keys = ratio.view(torch.int32).long() + (row << 32)
    return keys.flatten().sort(stable=True).indices.view(requests, vocab) - row * vocab


def ranked_masses(ratio: Tensor, draft_row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens in increasing order of ratio (ties: by id), with the draft mass strictly below each and up to it.

    Returns:
        order [B, V] int64; below, upto [B, V] float64, in that order and in units of the row's sum.
    """
    order = increasing(ratio)
    upto = draft_row.gather(1, order).cumsum(dim=1, dtype=torch.float64)
    upto = upto / upto[:, -1:]
    return order, torch.cat([torch.zeros_like(upto[:, :1]), upto[:, :-1]], dim=1), upto


@register(
    "gbv",
    summary="select the path of highest target/draft ratios, then block verification with its skewed law",
    source="Greedy Multi-Path Block Verification, arXiv:2602.16961",
    paths="many",
    cost="O(L V log V) for the sort",
    closed_form="gbv",
)
def verify_gbv(batch: Batch, draws: Draws) -> Verdict:
    """Walk down the highest path; its token t has law q(t) S_K(r + e upto, r + e below) / S_K(1, r)."""
    walk = SelectedPath(batch)
    paths = batch.tokens.shape[1]
    own = torch.ones(len(batch.tokens), 1, dtype=torch.float64, device=batch.tokens.device)
    rest = torch.zeros_like(own)
    for depth in range(batch.tokens.shape[2]):
        target_row, draft_row = walk.target_row(depth), walk.draft_row(depth)
        tokens = batch.tokens[:, :, depth]
        ratio = target_ratio(target_row, draft_row)
        order, below, upto = ranked_masses(ratio, draft_row)
        below, upto = rest + own * below, rest + own * upto
        density = power_sum(upto, below, paths) / power_sum(torch.ones_like(rest), rest, paths)
        law = draft_row * torch.empty_like(draft_row).scatter_(1, order, density.to(walk.dtype))

        path = highest(ratio.gather(1, tokens), tokens, walk.alive)
        token = walk.select(path, depth, target_row, law).unsqueeze(1)
        place = (order == token).long().argmax(dim=1, keepdim=True)
        total = draft_row.sum(dim=1, keepdim=True, dtype=torch.float64)
        scale = upto.gather(1, place).clamp_min(torch.finfo(upto.dtype).tiny)
        rest, own = below.gather(1, place) / scale, own * draft_row.gather(1, token) / total / scale
    return walk.verdict(draws)


def ratio_bucket(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """int64 [B, V] bucket of each token's ratio, 0..BUCKETS-1, an octave each: from 23/16 2^i up to 23/16 2^(i+1)."""
    return (knot_below(target_row, draft_row) + PER_BUCKET // 2) // PER_BUCKET


@register(
    "gbv-bucketed",
    summary="gbv with the ratio rounded to buckets, first path of the highest bucket; no sort",
    source="specbound (own), after arXiv:2602.16961",
    paths="many",
    cost="O(L V + L K^2)",
    closed_form="gbv-bucketed",
    kernel="gbv_bucketed:verify_gbv_bucketed_laws",
)
def verify_gbv_bucketed(batch: Batch, draws: Draws) -> Verdict:
    """Walk down the first path of the highest bucket; its law is the draft law times a density per bucket."""
    walk = SelectedPath(batch)
    count = count_at_root(batch.tokens)
    for depth in range(batch.tokens.shape[2]):
        target_row, draft_row = walk.target_row(depth), walk.draft_row(depth)
        tokens = batch.tokens[:, :, depth]
        bucket = ratio_bucket(target_row, draft_row)
        mass = torch.zeros(len(bucket), BUCKETS, dtype=torch.float64, device=bucket.device)
        mass.scatter_add_(1, bucket, draft_row.double())
        upto = mass.cumsum(dim=1)
        total = upto[:, -1:]
        upto = upto / total
        below = torch.cat([torch.zeros_like(total), upto[:, :-1]], dim=1)
        _, density = selection_densities(count, below, upto)
        law = draft_row * density.to(walk.dtype).gather(1, bucket)

        mine = bucket.gather(1, tokens).masked_fill(~walk.alive, -1)
        path = first_path(mine == mine.amax(dim=1, keepdim=True))
        token = walk.select(path, depth, target_row, law)
        place = at(bucket, token)
        drafted = at(draft_row, token) / total.squeeze(1)
        reached = at(upto, place)
        nothing = torch.zeros_like(drafted)
        _, further = counts_after(count, (at(below, place), nothing), ((reached - drafted).clamp_min(0), drafted))
        chosen = at(density, place).unsqueeze(1)
        count = torch.where(chosen > 0, further / chosen, count)
    return walk.verdict(draws)
