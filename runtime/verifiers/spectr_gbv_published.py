"""SpecTr-GBV as its public code has it: drafts tested one after another. Declared not lossless.

    acc = ();  seen = {}
    for path j = 1..K:
        for i = |acc|+1 .. L-1 (range fixed on entering):   w = first i tokens of path j
            w in seen: skip;   else with probability h(w): acc = w,   otherwise add w to seen
        with probability h(whole path): acc = whole path, stop
    correction after acc: p(y) (1 - min(1, q(y) / (R p(y)))^K), normalised; bonus from p after a whole path

    h(w) = (F(w) - S) / (g(Q(w)) - S),  S = sum_x F(wx) (0 for a whole path),  F(w) = P(w) g(min(1, Q(w)/P(w))),
    g(t) = 1 - (1 - t)^K

For K = 1 it is one call of greedy block verification, without the modified law of later positions: right for L = 1
only. For K >= 2 it keeps prefixes too seldom or too often (sometimes more often than the target allows), because h
is right for a prefix that is always tested, while earlier paths keep some from being tested; and its correction law
is not the remainder P - F. Where that law is 0/0 (equal models, an event of probability 1/9 for p = q = (1/2, 1/2),
K = 2) the public code has no answer; here the target row stands in.

B requests, K paths, L drafted tokens, V vocabulary. SpecTr-GBV: arXiv:2604.25925, public implementation by its
authors, described in this project's own words. `spectr_gbv` realises F exactly. A second entry adds the modified laws
of later positions that the paper speaks of, so that K = 1 is right for every L; for K >= 2 nothing is mended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.single_path import at, row_at
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic
from .greedy_block import carried_layers, emit, next_log_ratio, usable_length, within_block
from .spectr_gbv import children_profile, coverage_slope, follow_layers, profile, threshold


def sequential_thresholds(
    tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, paths: int, usable: Tensor
) -> tuple[Tensor, Tensor]:
    """h of prefix 1..L of each of N paths, and log R of prefix 0..L.

    Args:
        tokens [N, L]; draft_probs [N, L, V]; target_probs [N, L or more, V]; paths: K, the exponent.
        usable [N]: how many of the L tokens are the whole path; behind them h is 0.
    Returns:
        [N, L] in [0, 1], [N, L+1].
    """
    length = tokens.shape[1]
    log_ratio = torch.zeros_like(target_probs[:, 0, 0])
    none = torch.zeros_like(log_ratio)
    log_draft = none
    log_ratios, inner, last = [log_ratio], [none], [none]
    for place, token in enumerate(tokens.unbind(dim=1)):
        log_draft = log_draft + at(draft_probs[:, place], token).log()
        log_ratio = next_log_ratio(log_ratio, token, target_probs[:, place], draft_probs[:, place])
        log_ratios.append(log_ratio)
        drafted = coverage_slope(log_draft.exp(), paths)
        above = profile(log_ratio, paths)
        last.append(threshold(above, none, drafted))
        if place + 1 < length:
            children = children_profile(log_ratio, target_probs[:, place + 1], draft_probs[:, place + 1], paths)
            inner.append(threshold(above, children, drafted))
    inner.append(none)
    thresholds = within_block(torch.stack(inner, dim=1), torch.stack(last, dim=1), usable)
    return thresholds[:, 1:], torch.stack(log_ratios, dim=1)


def published_residual(log_ratio: Tensor, target_row: Tensor, draft_row: Tensor, paths: int) -> Tensor:
    """Weights of the published correction, p (1 - min(1, q / (R p))^K); the target row where all are 0.

    Args:
        log_ratio [B], log R at the kept prefix; target_row, draft_row [B, V] there.
    """
    inverse = (-log_ratio).exp().clamp_max(torch.finfo(target_row.dtype).max).unsqueeze(-1)
    scaled = draft_row * inverse
    share = torch.where(target_row > scaled, scaled / target_row, torch.ones_like(target_row))
    weights = target_row * (1 - share.pow(paths))
    return torch.where(weights.sum(dim=-1, keepdim=True) > 0, weights, target_row)


def same_prefix(tokens: Tensor) -> Tensor:
    """bool [B, K, K, L]: whether paths j and k agree in their first i+1 tokens."""
    return (tokens.unsqueeze(2) == tokens.unsqueeze(1)).long().cumprod(dim=-1).bool()


def sequential_search(tokens: Tensor, thresholds: Tensor, usable: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """The loop over paths and prefixes: owner [B] and length [B] of the prefix accepted last.

    Args:
        tokens [B, K, L]; thresholds [B, K, L]; usable [B]: the length of a whole path.
    """
    requests, paths, length = tokens.shape
    same = same_prefix(tokens)
    seen = torch.zeros(requests, paths, length, dtype=torch.bool, device=tokens.device)
    owner = torch.zeros(requests, dtype=torch.int64, device=tokens.device)
    kept = torch.zeros_like(owner)
    for path in range(paths):
        first = kept
        for place in range(length):
            whole = usable == place + 1
            again = (place < first) | (seen & same[:, path])[:, :, place].any(dim=1)
            open_ = (kept < usable) & (place < usable) & (whole | ~again)
            coin = draws.accept(thresholds[:, path, place] * open_)
            seen[:, path, place] = open_ & ~coin
            owner = torch.where(coin, path, owner)
            kept = torch.where(coin, place + 1, kept)
    return owner, kept


@register(
    "spectr-gbv-published",
    summary="SpecTr-GBV's sequential algorithm as its public code has it; not lossless",
    source="SpecTr-GBV, arXiv:2604.25925, public implementation",
    paths="many",
    lossless=False,
    cost="O(K L V)",
)
def verify_spectr_gbv_published(batch: Batch, draws: Draws) -> Verdict:
    """Test the prefixes of one path after another; then draw from the published correction law."""
    requests, paths, length, _ = batch.shape
    dtype = arithmetic(batch)
    draft_probs, target_probs = batch.draft_probs.to(dtype), batch.target_probs.to(dtype)
    usable = torch.full((requests,), length, device=batch.tokens.device)
    thresholds, log_ratios = sequential_thresholds(
        batch.tokens.flatten(0, 1),
        draft_probs.flatten(0, 1),
        target_probs.flatten(0, 1),
        paths,
        usable.repeat_interleave(paths),
    )
    owner, kept = sequential_search(batch.tokens, thresholds.unflatten(0, (requests, paths)), usable, draws)
    index = torch.arange(requests, device=kept.device)
    target_row = row_at(target_probs[index, owner], kept)
    draft_row = row_at(draft_probs[index, owner], kept.clamp_max(length - 1))
    log_ratio = row_at(log_ratios.unflatten(0, (requests, paths))[index, owner].unsqueeze(-1), kept).squeeze(-1)
    residual = published_residual(log_ratio, target_row, draft_row, paths)
    token = draws.choose(torch.where((kept < length).unsqueeze(-1), residual, target_row))
    return Verdict(owner, kept, token)


@register(
    "spectr-gbv-published-later-laws",
    summary="the same search, and behind it the modified law of later positions; not lossless for several paths",
    source="SpecTr-GBV, arXiv:2604.25925, public implementation; later laws as this project derives them",
    paths="many",
    lossless=False,
    stateful=True,
    cost="O(K L^2 V)",
)
def verify_with_later_laws(batch: Batch, draws: Draws) -> Verdict:
    """The published search, and behind it the modified laws of later positions that SpecTr-GBV speaks of.

    The rows in force, the correction and what is carried are those of `spectr_gbv`. For one path this is greedy block
    verification, lossless over several calls; for more the search has kept the wrong prefixes before any later law is
    drawn. All requests of a batch draft the same number L of tokens; L may change between calls.
    """
    requests, paths, length, _ = batch.shape
    dtype = arithmetic(batch)
    carry = carried_layers(batch, dtype)
    usable = usable_length(carry, length)
    index = torch.arange(requests, device=usable.device)
    of_path = index.repeat_interleave(paths)
    tokens, draft_rows = batch.tokens.flatten(0, 1), batch.draft_probs.to(dtype).flatten(0, 1)
    target_rows = batch.target_probs[:, :, :-1].to(dtype).flatten(0, 1)
    states, in_force = follow_layers(carry.select(of_path), tokens, target_rows, draft_rows)
    thresholds, log_ratios = sequential_thresholds(tokens, draft_rows, in_force, paths, usable[of_path])
    owner, kept = sequential_search(batch.tokens, thresholds.unflatten(0, (requests, paths)), usable, draws)
    ratios = log_ratios.unflatten(0, (requests, paths))[index, owner]
    return emit([state.select(index * paths + owner) for state in states], ratios, kept, usable, batch, owner, draws)
