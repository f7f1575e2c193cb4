"""Multi-token joint speculative decoding: keep the longest prefix that is jointly likely enough. Lossy by design.

    accepted = the largest i with  P(x_1..x_i) >= threshold Q(x_1..x_i),   0 if there is none
    then one token from the target's row there (no residual)

P and Q are joint probabilities of target and draft; shorter prefixes may fail the test. threshold 0 keeps every
draft, threshold 1 keeps none and is plain decoding with the target. The draft is meant to be the best block of a
beam search under the draft model, not a sample.

What is guaranteed: the kept prefix x has P(x) >= threshold Q(x); if the draft is the most likely block under Q and
all of it is kept, P(x) >= threshold (Q(y) / P(y)) max P with y the target's most likely block.

Greedy decoding (`generate` with temperature 0) drafts by beam search, compares the joint probabilities at temperature
1, and takes the target's most likely token after the kept prefix.

B requests, L drafted tokens, V vocabulary. [MJSD] arXiv:2407.09722, joint-likelihood verification.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.single_path import at, only_path, row_at
from ..registry import Verify, register
from ..verdict import Batch, Verdict

DEFAULT_THRESHOLD = 0.5


def longest_valid_prefix(tokens: Tensor, draft_probs: Tensor, target_probs: Tensor, threshold: float) -> Tensor:
    """max{i : P(x_1..i) >= threshold Q(x_1..i)}, 0 if none, from sums of logarithms.

    Equality up to rounding counts as passing: the logarithms are compared with a slack of a few units in the last
    place.

    Args:
        tokens [B, L]; draft_probs [B, L, V]; target_probs [B, L+1, V]; threshold in [0, 1].
    Returns:
        [B] in 0..L; 0 for threshold 1, L for threshold 0.
    """
    length = tokens.shape[1]
    if threshold in (0, 1):
        return torch.full_like(tokens[:, 0], 0 if threshold else length)
    target = at(target_probs[:, :-1], tokens).log().cumsum(dim=1)
    draft = at(draft_probs, tokens).log().cumsum(dim=1)
    places = torch.arange(1, length + 1, device=tokens.device)
    wanted = math.log(threshold) + draft
    slack = 8 * torch.finfo(wanted.dtype).eps * (1 - wanted)
    return ((target >= wanted - slack) * places).amax(dim=1)


def mjsd(threshold: float = DEFAULT_THRESHOLD, token: Literal["sample", "argmax"] = "sample") -> Verify:
    """A verifier with that threshold, to be used as `mjsd(0.1)(batch, draws)`.

    Args:
        threshold: in [0, 1], the published tau.
        token: how the token after the kept prefix is found: drawn from the target's row, or its most likely token
            (ties go to the smaller id).

    Raises:
        ValueError: argument out of range.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; want a number in [0, 1]")
    if token not in ("sample", "argmax"):
        raise ValueError(f"token is {token!r}; want 'sample' or 'argmax'")

    def verify(batch: Batch, draws: Draws) -> Verdict:
        tokens, draft_probs, target_probs = only_path(batch)
        kept = longest_valid_prefix(tokens, draft_probs, target_probs, threshold)
        row = row_at(target_probs, kept)
        return Verdict(torch.zeros_like(kept), kept, draws.choose(row) if token == "sample" else row.argmax(dim=-1))

    return verify


@register(
    "mjsd",
    summary=f"keep the longest prefix with P >= {DEFAULT_THRESHOLD} Q (joint probabilities); lossy, for beam drafts",
    source="MJSD, arXiv:2407.09722",
    paths="single",
    lossless=False,
    cost="O(L + V)",
    drafts="any",
    make=mjsd,
    options=("threshold", "token"),
)
def verify_mjsd(batch: Batch, draws: Draws) -> Verdict:
    """Joint-likelihood acceptance at the default threshold; `mjsd(threshold)` makes others."""
    return mjsd()(batch, draws)
