"""The rule of block verification on one drafted path of each request: what `parts.block_rule` computes with tensors.

Letters: B requests, L drafted tokens, V vocabulary. [BV] arXiv:2403.10444, Algorithm 2.
"""

from __future__ import annotations

import numpy as np

from .jit import outer
from .rows import Array, Rows


@outer
def ratios(target: Rows, draft: Rows, found: Rows) -> None:
    """`block_rule.ratios_of`: ratios from the tokens' probabilities [B, L], into `found` [B, L+1]."""
    for b in range(len(draft)):
        log_ratio = 0.0
        found[b, 0] = 1.0
        for i in range(draft.shape[1]):
            if draft[b, i] > 0:
                log_ratio = min(0.0, log_ratio + np.log(np.float64(target[b, i])) - np.log(np.float64(draft[b, i])))
            found[b, i + 1] = np.exp(log_ratio)


@outer
def thresholds(ratio: Rows, target: Rows, draft: Rows, found: Rows) -> None:
    """`block_rule.block_thresholds` of ratios [B, L+1], rows [B, L+1, V] and [B, L, V], into `found` [B, L]."""
    length = draft.shape[1]
    for b in range(len(draft)):
        for i in range(1, length):
            left = 0.0
            for v in range(draft.shape[2]):
                left += max(ratio[b, i] * target[b, i, v] - draft[b, i, v], 0.0)
            total = left + (1.0 - ratio[b, i])
            found[b, i - 1] = left / total if total > 0 else 1.0
        found[b, length - 1] = ratio[b, length]


@outer
def emitted_rows(scale: Rows, kept: Array, target: Rows, draft: Rows, weights: Rows) -> None:
    """`single_path.emitted_row` for `scale`, `kept` [B], rows [B, L+1, V] and [B, L, V], into `weights` [B, V]."""
    for b in range(len(draft)):
        i, mass = kept[b], 0.0
        if i < draft.shape[1]:
            for v in range(draft.shape[2]):
                weights[b, v] = max(scale[b] * target[b, i, v] - draft[b, i, v], 0.0)
                mass += weights[b, v]
        if not mass > 0:
            weights[b] = target[b, i]
