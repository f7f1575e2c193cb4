"""Drafting: K independent paths of L tokens per row, each token drawn from the processed law of the draft.

B rows, K paths, L tokens, V vocabulary. The K paths of a row share the draft's slots of everything known; their
drafted tokens lie behind them in the order (token 1 of paths 1..K), (token 2 of paths 1..K), ...
"""

from __future__ import annotations

import torch
from torch import Tensor

from specbound.runtime.cache import CachedModel, causal
from specbound.runtime.draws import Draws
from specbound.runtime.sampling import Sampler


def draft_paths(
    model: CachedModel,
    sampler: Sampler,
    draws: Draws,
    known: list[Tensor],
    recent: Tensor,
    place: Tensor,
    paths: int,
    lengths: list[int],
) -> tuple[Tensor, Tensor]:
    """Draw `paths` drafts of L = max(lengths) tokens; each token is drawn from the very row returned for it.

    Args:
        model: the draft; holds all known tokens except the last ones of `recent`.
        known: for each row its padded prompt and the tokens after it (read by processors only).
        recent [B, n]: the tokens the draft has not seen yet, up to the last known one.
        place [B]: position of the last known token.
        lengths: for each row how many tokens are drawn from the draft; the others are token 0 for sure.
    Returns:
        tokens [B, K, L] int64 and draft_probs [B, K, L, V].
    """
    count, length = recent.shape[1], max(lengths)
    positions = place[:, None] - torch.arange(count - 1, -1, -1, device=place.device)
    tail = None if count == 1 and len(recent) == 1 else causal(count, place.device)
    logits = model.extend(recent, positions, tail, last_only=True)[:, -1:]
    model.forget_tail([base + count for base in model.base])
    logits = logits.expand(-1, paths, -1)
    tokens = recent.new_empty(len(recent), paths, length)
    laws = []
    own = torch.eye(paths, dtype=torch.bool, device=place.device)
    for i in range(length):
        law = sampler.next_laws(logits, known, tokens[:, :, :i])
        if min(lengths) <= i:
            short = torch.tensor([own_length <= i for own_length in lengths], device=law.device)
            law = torch.where(
                short[:, None, None], torch.eye(1, law.shape[-1], dtype=law.dtype, device=law.device), law
            )
        tokens[:, :, i] = draws.choose(law)
        laws.append(law)
        if i + 1 < length:
            positions = (place + 1 + i)[:, None].expand(-1, paths)
            tail = None if paths == 1 and len(recent) == 1 else own.repeat(1, i + 1)
            logits = model.extend(tokens[:, :, i], positions, tail)
    return tokens, torch.stack(laws, dim=2)
