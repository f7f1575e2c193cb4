"""The rule of block verification on one drafted path of each request: what `parts.block_rule` computes with tensors.

Letters: B requests, L drafted tokens, V vocabulary. [BV] arXiv:2403.10444, Algorithm 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import outer
from .rows import Rows

Tokens = NDArray[np.int64]


@outer
def ratios_and_thresholds(tokens: Tokens, target: Rows, draft: Rows, ratio: Rows, found: Rows) -> None:
    """`block_rule.ratios_and_thresholds` of tokens [B, L], rows [B, L+1, V] and [B, L, V].

    Args:
        ratio [B, L+1], found [B, L]: where they go.
    """
    length = draft.shape[1]
    for b in range(len(draft)):
        log_ratio = 0.0
        ratio[b, 0] = 1.0
        for i in range(length):
            wanted, drawn = np.float64(target[b, i, tokens[b, i]]), np.float64(draft[b, i, tokens[b, i]])
            if drawn > 0:
                log_ratio = min(0.0, log_ratio + np.log(wanted) - np.log(drawn))
            ratio[b, i + 1] = np.exp(log_ratio)
        for i in range(1, length):
            left = 0.0
            for v in range(draft.shape[2]):
                left += max(ratio[b, i] * target[b, i, v] - draft[b, i, v], 0.0)
            total = left + (1.0 - ratio[b, i])
            found[b, i - 1] = left / total if total > 0 else 1.0
        found[b, length - 1] = ratio[b, length]


@outer
def emitted_rows(scale: Rows, kept: Tokens, path: Tokens, target: Rows, draft: Rows, weights: Rows) -> None:
    """`single_path.emitted_row` for scale, kept, path [B], rows [N, L+1, V] and [N, L, V], into `weights` [B, V]."""
    for b in range(len(kept)):
        i, n, mass = kept[b], path[b], 0.0
        if i < draft.shape[1]:
            for v in range(draft.shape[2]):
                weights[b, v] = max(scale[b] * target[n, i, v] - draft[n, i, v], 0.0)
                mass += weights[b, v]
        if not mass > 0:
            weights[b] = target[n, i]
