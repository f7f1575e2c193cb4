"""Hierarchical speculative decoding as its public code has it: block verification but for the last step. Lossy.

    c_i = min(1, c_{i-1} target(x_i) / draft(x_i)),   h_i = s_i / (s_i + 1 - c_i) for i < L    as in block verification
    h_L = min(1, product of all target(x_i) / draft(x_i))                                      instead of c_L

The paper's final algorithm, as read, is block verification itself (h_L = c_L). The uncapped product forgets how much of
earlier surplus was cut off, and keeps whole blocks too rarely or too often.

B requests, L drafted tokens, V vocabulary. Source: HSD, arXiv:2601.05724, its public implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.block_rule import ratios_and_thresholds
from ..parts.single_path import at, emitted_row, only_path
from ..registry import register
from ..verdict import Batch, Verdict


def uncapped(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor) -> Tensor:
    """min(1, P(x) / Q(x)) of the whole draft [B]; tokens [B, L], rows [B, L, V] and [B, L+1, V]."""
    target, draft = at(target_probs[:, :-1], tokens), at(draft_probs, tokens)
    steps = torch.where(draft > 0, target.log() - draft.log(), torch.zeros_like(draft))
    return steps.sum(dim=1).clamp_max(0).exp()


@register(
    "hsd",
    summary="block verification, but whole blocks are kept by the uncapped joint ratio; lossy",
    source="HSD, arXiv:2601.05724, public implementation",
    paths="single",
    lossless=False,
)
def verify_hsd(batch: Batch, draws: Draws) -> Verdict:
    """Keep the whole draft with probability min(1, P / Q), else the longest block whose coin comes up."""
    tokens, draft_probs, target_probs = only_path(batch)
    ratios, thresholds = ratios_and_thresholds(tokens, draft_probs, target_probs)
    whole = uncapped(tokens, draft_probs, target_probs)
    kept = draws.accept_last(torch.cat([thresholds[:, :-1], whole.unsqueeze(1)], dim=1))
    token = draws.choose(emitted_row(at(ratios, kept), kept, draft_probs, target_probs))
    return Verdict(torch.zeros_like(kept), kept, token)
