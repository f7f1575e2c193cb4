"""TensorRT-LLM's `rejection_sampling_one_model` with a verifier of ours."""

from __future__ import annotations

import torch
from torch import Tensor

from ._requests import emitted


def rejection_sampling_one_model(
    draft_probs: Tensor,
    draft_token_ids: Tensor,
    target_probs: Tensor,
    deterministic: bool = True,
    seed: int = 0,
    offset: int = 0,
    verifier: str = "block",
) -> tuple[Tensor, Tensor]:
    """(emitted tokens [B, K+1], counts [B]); request b uses the stream of seed + offset * B + b.

    Args:
        draft_probs [B, K, V]; draft_token_ids [B, K]; target_probs [B, K+1, V].
    """
    requests = len(draft_token_ids)
    tokens = torch.zeros(requests, draft_token_ids.shape[1] + 1, dtype=torch.int32, device=draft_probs.device)
    counts = torch.zeros(requests, dtype=torch.int32, device=draft_probs.device)
    for b in range(requests):
        generator = torch.Generator(draft_probs.device).manual_seed(seed + offset * requests + b)
        block = emitted(verifier, draft_token_ids[b], draft_probs[b], target_probs[b], generator)
        tokens[b, : len(block)] = torch.tensor(block, dtype=torch.int32)
        counts[b] = len(block)
    return tokens, counts
