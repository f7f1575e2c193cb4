"""One request of an engine as a batch of ours."""

from __future__ import annotations

import torch
from torch import Tensor

from specbound.runtime import registry
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch


def emitted(
    verifier: str, tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, generator: torch.Generator | None = None
) -> list[int]:
    """The tokens that a verifier of one path emits for one request.

    Args:
        tokens [L], L may be 0; draft_probs [L, V]; target_probs [L+1, V].

    Raises:
        ValueError: if the verifier keeps state between calls, which these signatures have no place for.
    """
    entry = registry.get(verifier)
    if entry.stateful:
        raise ValueError(f"verifier is {verifier!r}, which keeps a carry between calls; want a stateless one")
    if len(tokens) == 0:
        return [int(Draws(generator).choose(target_probs))]
    batch = Batch(tokens.long()[None, None], draft_probs[None, None], target_probs[None, None])
    verdict = entry.verify(batch, Draws(generator))
    return [*tokens[: int(verdict.accepted)].tolist(), int(verdict.token)]


def one_hot(tokens: Tensor, like: Tensor) -> Tensor:
    """Rows of draft probability 1 at the drafted tokens, for engines that give none."""
    return torch.nn.functional.one_hot(tokens.long(), like.shape[-1]).to(like.dtype)


def padded(blocks: list[list[int]], width: int, device: torch.device) -> Tensor:
    """int32 [B, width], -1 behind the emitted tokens."""
    rows = [[*block, *[-1] * (width - len(block))] for block in blocks]
    return torch.tensor(rows, dtype=torch.int32, device=device).reshape(len(blocks), width)
