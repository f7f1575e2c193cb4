"""Key race: block verification of each path on its own, and a lottery between the K results.

Each path's block verification is a target stream and an independent key, uniform on (0, 1), that decides how far the
stream is kept: x_1..x_i is kept if the key is at most t(x_1..x_i) = min over its prefixes of min(1, draft/target).
The smallest key wins. That favours long blocks and says nothing about the stream, so the output is the target's.

Letters: B requests, K paths, L drafted tokens, V vocabulary; c ratios and t key bounds of the prefixes of a path.
Source: the project's own construction (C2); [BV] arXiv:2403.10444 for each path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.block_rule import block_ratios, block_thresholds
from ..parts.single_path import at, emitted_row, row_at
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic


def key_bounds(ratios: Tensor, tokens: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Largest key t_0..t_L with which each prefix of the path is kept.

        t_0 = 1,   t_i = t_{i-1} min(1, draft(x_i) / (c_{i-1} target(x_i)))

    Args:
        ratios [B, L+1] = c; tokens [B, L]; draft_probs [B, L, V]; target_probs [B, L+1, V].
    Returns:
        [B, L+1] in [0, 1].
    """
    draft, target = at(draft_probs, tokens), ratios[:, :-1] * at(target_probs[:, :-1], tokens)
    steps = torch.where(target > draft, draft / target, torch.ones_like(target))
    return torch.cat([torch.ones_like(ratios[:, :1]), steps], dim=1).cumprod(dim=1)


def verify_with_key(
    tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, draws: Draws
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Block verification of one path, with the interval of the key that decided it.

    Args:
        tokens [B, L]; draft_probs [B, L, V]; target_probs [B, L+1, V].
    Returns:
        kept [B], token [B], and low, high [B]: the key is uniform on [low, high] given the rest.
    """
    ratios = block_ratios(tokens, draft_probs, target_probs)
    kept = draws.accept_last(block_thresholds(ratios, draft_probs, target_probs))
    ratio = at(ratios, kept)
    token = draws.choose(emitted_row(ratio, kept, draft_probs, target_probs))
    high = at(key_bounds(ratios, tokens, draft_probs, target_probs), kept)
    length = tokens.shape[1]
    draft = at(row_at(draft_probs, kept.clamp_max(length - 1)), token) * (kept < length)
    target = ratio * at(row_at(target_probs, kept), token)
    low = torch.where(target > draft, high * draft / target, high)
    return kept, token, low, high


@register(
    "key-race",
    summary="block verification of every path, and a lottery that favours the longer result",
    source="specbound (own); Block Verification, arXiv:2403.10444, for each path",
    paths="many",
    cost="O(K L V)",
    closed_form="key-race",
    kernel="key_race:verify_key_race_laws",
)
def verify_key_race(batch: Batch, draws: Draws) -> Verdict:
    """Verify each path by itself; the path with the smallest key wins."""
    dtype = arithmetic(batch)
    results = []
    for k in range(batch.tokens.shape[1]):
        draft_probs, target_probs = batch.draft_probs[:, k].to(dtype), batch.target_probs[:, k].to(dtype)
        results.append(verify_with_key(batch.tokens[:, k], draft_probs, target_probs, draws))
    kept, token, low, high = (torch.stack(parts, dim=1) for parts in zip(*results, strict=True))
    winner = torch.zeros_like(kept[:, 0]) if kept.shape[1] == 1 else draws.smallest_key(low, high)
    return Verdict(winner, at(kept, winner), at(token, winner))
