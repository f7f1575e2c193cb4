"""Number formats: which rows can be handed over exactly, and how far rounding can move a law.

Rows are made representable before they are handed over: probabilities become multiples of 2^-24 (float32) or 2^-8
(bfloat16, float16: 2^-11) that sum to 1, logits are rounded and the rows become their softmax. The law wanted is that
of the rows handed over, so that only the code's own arithmetic is left to round.

How far that moves the law, to first order in the unit roundoff u (2^-53, 2^-24, 2^-11, 2^-8): a call makes at most L+1
decisions. A coin's chance is made of two probabilities, each through at most V+1 roundings (a softmax), a ratio and a
running product: an error of (2V+4) u. A draw is made from weights (c p - q)+, whose errors sum to at most
2 (V+3) u, half of which is total variation, and from their running sum, V+1 roundings: (2V+4) u; the residual's
normalisation does not count, because what is drawn from it is drawn with the probability of its mass. Together

    total variation <= (L+1) (4V+8) u.

Source of the error model: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 2.2 and 3.1.

Letters: V vocabulary, L draft length, u unit roundoff.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from specbound.theory.prefix_tree import PrefixTree

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
BITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
BOUND = "(L+1)(4V+8)"


def rounding(vocab: int, length: int, dtype: torch.dtype) -> float:
    """Total variation that arithmetic in a number format explains (see the module's opening)."""
    return (length + 1) * (4 * vocab + 8) * 2.0 ** -BITS[dtype]


def coarser(*dtypes: torch.dtype) -> torch.dtype:
    """The format of fewest bits."""
    return min(dtypes, key=lambda dtype: BITS[dtype])


def name_of(dtype: torch.dtype) -> str:
    """As in `--dtype`."""
    return str(dtype).removeprefix("torch.")


def representable_row(row: np.ndarray, dtype: torch.dtype, logits: bool) -> np.ndarray:
    """The row that a number format can hold, in float64.

    Args:
        row: [V] probabilities, or zeros.
        logits: it is handed over as logarithms relative to its largest entry.
    """
    return (_from_logits if logits else _on_grid)(row, dtype)


def representable(tree: PrefixTree, row_of: Callable[[np.ndarray], np.ndarray]) -> PrefixTree:
    """The tree with every row replaced by what `row_of` makes of it, in float64."""
    tree = tree.as_float()
    target, draft = (
        np.stack([row_of(row) for row in tree.rows(conditional)]) for conditional in (tree.target, tree.draft)
    )
    bonus = np.stack([row_of(row) for row in tree.bonus])
    inner, parent, token = slice(1, None), tree.parent[1:], tree.token[1:]
    new_target, new_draft = tree.target.copy(), tree.draft.copy()
    new_target[inner], new_draft[inner] = target[parent, token], draft[parent, token]
    return replace(tree, target=new_target, draft=new_draft, bonus=bonus)


def _on_grid(row: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Multiples of 2^-bits that sum to 1, by largest remainders."""
    if dtype == torch.float64 or not row.any():
        return row
    count = 2 ** BITS[dtype]
    parts = np.floor(row * count)
    missing = round(float(row.sum())) * count - int(parts.sum())
    parts[np.argsort(parts - row * count, kind="stable")[:missing]] += 1
    return parts / count


def _from_logits(row: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The softmax of the rounded logarithms."""
    if not row.any():
        return row
    with np.errstate(divide="ignore"):
        values = torch.from_numpy(np.log(row / row.max())).to(dtype).double().numpy()
    weights = np.exp(values)
    return weights / weights.sum()
