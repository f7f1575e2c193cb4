"""Block verification: keep the longest block, not the longest run of tokens.

B requests, L drafted tokens, V vocabulary. [BV] arXiv:2403.10444, Algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.block_rule import block_ratios, ratios_and_thresholds
from ..parts.single_path import at, emitted_row, only_path
from ..registry import register
from ..verdict import Batch, Verdict


def kept_by_block(batch: Batch) -> Tensor:
    """[B, L] probability c_i that at least i = 1..L tokens of the given draft are kept."""
    return block_ratios(*only_path(batch))[:, 1:]


@register(
    "block",
    summary="keep the longest block that the joint probabilities allow; optimal for one path",
    source="Block Verification, arXiv:2403.10444, Algorithm 2",
    paths="single",
    closed_form="block",
    kernel="single_path:verify_block_laws",
    kept=kept_by_block,
)
def verify_block(batch: Batch, draws: Draws) -> Verdict:
    """Keep the longest prefix whose coin h_i comes up, then draw from max(0, c target - draft)."""
    tokens, draft_probs, target_probs = only_path(batch)
    ratios, thresholds = ratios_and_thresholds(tokens, draft_probs, target_probs)
    kept = draws.accept_last(thresholds)
    token = draws.choose(emitted_row(at(ratios, kept), kept, draft_probs, target_probs))
    return Verdict(torch.zeros_like(kept), kept, token)
