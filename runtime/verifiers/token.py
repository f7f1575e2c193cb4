"""Token verification: keep drafted tokens one by one until the first rejection.

B requests, L drafted tokens, V vocabulary. Leviathan et al. 2023 (arXiv:2211.17192), Algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.single_path import at, emitted_row, only_path
from ..registry import register
from ..verdict import Batch, Verdict


def token_acceptance(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Acceptance probability of each token given that all before it were kept: min(1, target(x_i) / draft(x_i)).

    Args:
        tokens [B, L]; draft_probs [B, L, V]; target_probs [B, L+1, V].
    Returns:
        [B, L] in [0, 1]. A token that the draft cannot have drawn, draft(x_i) = 0, is accepted.
    """
    target, draft = at(target_probs[:, :-1], tokens), at(draft_probs, tokens)
    return torch.where(target >= draft, torch.ones_like(target), target / draft)


def kept_by_token(batch: Batch) -> Tensor:
    """[B, L] probability that at least i = 1..L tokens of the given draft are kept."""
    return token_acceptance(*only_path(batch)).cumprod(dim=1)


@register(
    "token",
    summary="keep drafted tokens until the first rejection",
    source="Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1",
    paths="single",
    closed_form="token",
    kernel="single_path:verify_token_laws",
    kept=kept_by_token,
)
def verify_token(batch: Batch, draws: Draws) -> Verdict:
    """Accept x_i with probability min(1, target/draft); after a rejection draw from max(0, target - draft)."""
    tokens, draft_probs, target_probs = only_path(batch)
    kept = draws.accept_while(token_acceptance(tokens, draft_probs, target_probs))
    one = torch.ones_like(kept, dtype=target_probs.dtype)
    token = draws.choose(emitted_row(one, kept, draft_probs, target_probs))
    return Verdict(torch.zeros_like(kept), kept, token)
