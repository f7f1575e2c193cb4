"""flashinfer's `chain_speculative_sampling` with a verifier of ours."""

from __future__ import annotations

import torch
from torch import Tensor

from ._requests import emitted, padded


def chain_speculative_sampling(
    draft_probs: Tensor,
    draft_token_ids: Tensor,
    target_probs: Tensor,
    maybe_output_accepted_token_num: Tensor | None = None,
    maybe_output_emitted_draft_token_num: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    verifier: str = "block",
) -> tuple[Tensor, Tensor, Tensor]:
    """(emitted tokens [B, n+1], -1 padded; accepted [B]; emitted draft tokens [B]); given counters are added to.

    Args:
        draft_probs [B, n, V]; draft_token_ids [B, n]; target_probs [B, n+1, V].
    """
    rows = zip(draft_token_ids, draft_probs, target_probs, strict=True)
    blocks = [emitted(verifier, tokens, draft, target, generator) for tokens, draft, target in rows]
    kept = torch.tensor([len(block) - 1 for block in blocks], dtype=torch.int32, device=draft_probs.device)
    counters = []
    for given in (maybe_output_accepted_token_num, maybe_output_emitted_draft_token_num):
        counters.append(kept.clone() if given is None else given.add_(kept.to(given.dtype)))
    return padded(blocks, draft_token_ids.shape[1] + 1, draft_probs.device), counters[0], counters[1]
