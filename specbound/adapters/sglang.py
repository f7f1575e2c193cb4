"""SGLang's chain of speculative sampling with a verifier of ours, coins from its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers.token import verify_token


class GivenCoins(Draws):
    """Answers from uniforms that the engine drew: `coins` [L] for acceptance, `last` for the final draw."""

    def __init__(self, coins: Tensor, last: Tensor) -> None:
        super().__init__(None)
        self.coins, self.last = coins, last

    def accept(self, probability: Tensor) -> Tensor:
        """One coin per drafted token."""
        return self.coins[: probability.shape[-1]].expand_as(probability) < probability

    def choose(self, weights: Tensor) -> Tensor:
        """Inverse transform of the last coin."""
        sums = weights.double().cumsum(dim=-1)
        return (sums <= self.last * sums[..., -1:]).sum(dim=-1).clamp_max(weights.shape[-1] - 1)


def tree_speculative_sampling_target_only(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """Token verification of a chain; writes predicts, accept_index and accept_token_num.

    A zeroed `draft_probs` stands for deterministic drafts, whose draft probability is 1.

    Raises:
        ValueError: for thresholds below 1, which are lossy, or for a tree with siblings.
    """
    if threshold_single < 1 or threshold_acc < 1:
        raise ValueError(f"thresholds are {threshold_single} and {threshold_acc}; below 1 the output law is not kept")
    if bool((retrive_next_sibling >= 0).any()):
        raise ValueError("the tree has siblings; want a chain")
    for b in range(len(candidates)):
        length = int((retrive_next_token[b] >= 0).sum())
        tokens = candidates[b, 1 : length + 1].long()
        draft = draft_probs[b, :length]
        if not bool(draft.any()):
            draft = torch.nn.functional.one_hot(tokens, target_probs.shape[-1]).to(target_probs.dtype)
        coins = GivenCoins(uniform_samples[b], uniform_samples_for_final_sampling[b])
        verdict = verify_token(
            Batch(tokens[None, None], draft[None, None], target_probs[b, : length + 1][None, None]), coins
        )
        kept = int(verdict.accepted)
        places = retrive_index[b, : kept + 1]
        accept_index[b, : kept + 1] = places.to(accept_index.dtype)
        accept_token_num[b] = kept
        predicts[places] = torch.cat([tokens[:kept], verdict.token]).to(predicts.dtype)
