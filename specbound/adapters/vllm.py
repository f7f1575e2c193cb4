"""vLLM V1's `rejection_sample` with a verifier of ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._requests import emitted, one_hot, padded


def rejection_sample(
    draft_token_ids: Tensor,
    num_draft_tokens: list[int],
    max_spec_len: int,
    cu_num_draft_tokens: Tensor,
    draft_probs: Tensor | None,
    target_probs: Tensor,
    bonus_token_ids: Tensor,
    sampling_metadata: Any,
    verifier: str = "block",
) -> Tensor:
    """int32 [B, max_spec_len + 1]: emitted tokens, -1 padded.

    Args:
        draft_token_ids [N]; num_draft_tokens: one per request; cu_num_draft_tokens [B]; draft_probs [N, V], None for
        greedy drafts; target_probs [N, V]; bonus_token_ids [B, 1], drawn by the caller behind a full draft.
    """
    blocks = []
    ends = cu_num_draft_tokens.tolist()
    generators = getattr(sampling_metadata, "generators", None) or {}
    for request, (count, end) in enumerate(zip(num_draft_tokens, ends, strict=True)):
        tokens, target = draft_token_ids[end - count : end], target_probs[end - count : end]
        draft = one_hot(tokens, target) if draft_probs is None else draft_probs[end - count : end]
        bonus = one_hot(bonus_token_ids[request].reshape(1), target_probs)
        rows = torch.cat([target, bonus])
        blocks.append(emitted(verifier, tokens, draft, rows, generators.get(request)))
    return padded(blocks, max_spec_len + 1, draft_token_ids.device)
