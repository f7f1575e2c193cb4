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
from ..parts.block_rule import ratios_and_thresholds
from ..parts.single_path import at, emitted_row
from ..registry import register
from ..verdict import Batch, Verdict, arithmetic


def key_bounds(ratios: Tensor, target: Tensor, draft: Tensor) -> Tensor:
    """Largest key t_0..t_L with which each prefix of a path is kept.

        t_0 = 1,   t_i = t_{i-1} min(1, draft(x_i) / (c_{i-1} target(x_i)))

    Args:
        ratios [.., L+1] = c; target, draft [.., L]: probabilities of the tokens x_1..x_L.
    Returns:
        [.., L+1] in [0, 1].
    """
    wanted = ratios[..., :-1] * target
    steps = torch.where(wanted > draft, draft / wanted, torch.ones_like(wanted))
    return torch.cat([torch.ones_like(ratios[..., :1]), steps], dim=-1).cumprod(dim=-1)


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
    """Verify each path by itself; the path with the smallest key wins.

    The key of a path is uniform on [low, high] given the prefix kept and the token behind it.
    """
    (requests, paths, length, _), dtype = batch.shape, arithmetic(batch)
    tokens = batch.tokens.flatten(0, 1)
    draft_rows, target_rows = (probs.flatten(0, 1).to(dtype) for probs in (batch.draft_probs, batch.target_probs))
    ratios, thresholds = ratios_and_thresholds(tokens, draft_rows, target_rows)
    bounds = key_bounds(ratios, at(target_rows[:, :length], tokens), at(draft_rows, tokens))
    results = []
    for k in range(paths):
        path = torch.arange(requests, device=tokens.device) * paths + k
        kept = draws.accept_last(thresholds[k::paths])
        ratio, high = ratios[path, kept], bounds[path, kept]
        token = draws.choose(emitted_row(ratio, kept, draft_rows, target_rows, path))
        wanted, drawn = ratio * target_rows[path, kept, token], draft_rows[path, kept.clamp_max(length - 1), token]
        low = torch.where((kept < length) & (wanted > drawn), high * drawn / wanted, high)
        results.append((kept, token, torch.where(kept < length, low, 0.0), high))
    kept, token, low, high = (torch.stack(parts, dim=1) for parts in zip(*results, strict=True))
    winner = torch.zeros_like(kept[:, 0]) if paths == 1 else draws.smallest_key(low, high)
    return Verdict(winner, at(kept, winner), at(token, winner))
