"""One path, judged token by token with the rule's own coins and corrections: what lossy rules of engines share.

A rule gives every drafted token a coin and, for the case that it is the first to fail, the weights of the token in its
place. After a whole draft the bonus token is drawn from the target.

B requests, L drafted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..draws import Draws
from ..registry import Verify
from ..verdict import Batch, Verdict
from .single_path import only_path, row_at

# tokens [B, L], draft and target rows [B, L, V] -> coins [B, L] in [0, 1], weights of the correction [B, L, V]
Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def by_token(rule: Rule) -> Verify:
    """The verifier of that rule; where its correction has no weight at all the target's row stands in."""

    def verify(batch: Batch, draws: Draws) -> Verdict:
        tokens, draft_probs, target_probs = only_path(batch)
        length = tokens.shape[1]
        coins, weights = rule(tokens, draft_probs, target_probs[:, :-1])
        kept = draws.accept_while(coins)
        weights = row_at(weights, kept.clamp_max(length - 1))
        corrected = (kept < length).unsqueeze(1) & (weights.sum(dim=1, keepdim=True) > 0)
        token = draws.choose(torch.where(corrected, weights, row_at(target_probs, kept)))
        return Verdict(torch.zeros_like(kept), kept, token)

    return verify


def coin(wanted: Tensor, drafted: Tensor) -> Tensor:
    """min(1, wanted / drafted), 1 where nothing can have been drafted; any shape."""
    return torch.where(wanted >= drafted, torch.ones_like(wanted), wanted / drafted)


def entropy(rows: Tensor) -> Tensor:
    """Entropy in nats of each row, over the last axis."""
    return -torch.special.xlogy(rows, rows).sum(dim=-1)
