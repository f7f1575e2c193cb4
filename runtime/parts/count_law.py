"""How many of the K paths pass through the node that a selection rule reaches, and what that makes of the draft law.

A selection rule sorts the tokens at a node into levels, takes the first path (in draft order) whose token has the
highest level, and keeps all paths through the chosen token. What the rule needs to remember is one law:

    count[n-1] = Pr(n paths pass through w | w was reached), n = 1..K; at the root n = K.

If n paths arrive, a token drafted with probability x lies below the winning level, and with probability y not above
it, then a token of that level with draft probability q wins with probability q sum_{i+j=n-1} x^i y^j. Every term
is positive, so nothing cancels. Theory: iid drafts; section 7 of the project's notes on multi-path verifiers.

Letters: B requests, K paths; all laws are float64.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = TypeVar("Numbers", Tensor, NDArray[Any])


def count_at_root(tokens: Tensor) -> Tensor:
    """[B, K] float64: all K paths pass through the root."""
    requests, paths, _ = tokens.shape
    count = torch.zeros(requests, paths, dtype=torch.float64, device=tokens.device)
    count[:, -1] = 1
    return count


def selection_densities(count: Tensor, below: Tensor, upto: Tensor) -> tuple[Tensor, Tensor]:
    """Selected law over draft law, for a token of the lowest level and for one of a higher level.

        lowest = sum_n count_n below^(n-1),   higher = sum_n count_n sum_{i+j=n-1} below^i upto^j

    Args:
        count [B, K]; below, upto [B, M] masses in [0, 1], below <= upto.
    Returns:
        two tensors [B, M], lowest <= higher.
    """
    lowest = higher = torch.zeros_like(below)
    for n in range(count.shape[1] - 1, -1, -1):
        lowest = torch.addcmul(count[:, n : n + 1], below, lowest)
        higher = torch.addcmul(lowest, upto, higher)
    return lowest, higher


def counts_after(
    count: Numbers, below: tuple[Numbers, Numbers], upto: tuple[Numbers, Numbers]
) -> tuple[Numbers, Numbers]:
    """The two sums of `selection_densities` as polynomials in s, which counts the paths through the chosen token.

    Args:
        count [B, K]; below = (others, token), upto = (others, token): each mass [B], split into that of other
            tokens and that of the chosen one; it stands for others + s token.
    Returns:
        two tensors [B, K]: coefficient m belongs to s^m, that is to m further paths through the chosen token.
    """
    lowest = higher = 0 * count
    for n in range(count.shape[1] - 1, -1, -1):
        lowest = times(lowest, below)
        lowest[:, 0] += count[:, n]
        higher = times(higher, upto) + lowest
    return lowest, higher


def times(polynomial: Numbers, factor: tuple[Numbers, Numbers]) -> Numbers:
    """polynomial [B, K] times (others + s token); the degree stays below K by construction."""
    others, token = factor
    product = polynomial * others[:, None]
    product[:, 1:] += polynomial[:, :-1] * token[:, None]
    return product
