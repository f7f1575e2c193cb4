"""transformers' `_speculative_sampling` with a verifier of ours."""

from __future__ import annotations

import torch
from torch import Tensor

from ._requests import emitted


def speculative_sampling(
    candidate_input_ids: Tensor,
    candidate_logits: Tensor,
    candidate_length: int,
    new_logits: Tensor,
    verifier: str = "block",
) -> tuple[Tensor, int]:
    """(emitted tokens [1, n], how many of them were drafted).

    Args:
        candidate_input_ids [1, context + L]; candidate_logits [1, L, V]; candidate_length L; new_logits [1, L+1, V].
    """
    drafted = candidate_input_ids[0, candidate_input_ids.shape[1] - candidate_length :]
    draft, target = candidate_logits[0].softmax(-1), new_logits[0].softmax(-1)
    block = emitted(verifier, drafted, draft, target)
    return torch.tensor([block], device=candidate_input_ids.device), len(block) - 1
