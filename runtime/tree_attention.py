"""The prefix tree of K drafted paths, so that one target pass computes shared prefixes once.

B rows, K paths of L tokens. A tree's tail of slots is: the last known token (place 0), then the distinct prefixes of
the row's paths, shorter ones first. Rows with fewer distinct prefixes are filled up with repetitions of token 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MergedPaths:
    """Distinct prefixes of the paths, in the order of their slots (N = most of any row, the known token included).

    Attributes:
        tokens [B, N] int64: the last token of each prefix; place 0 is the last known token.
        depth [B, N] int64: its length; 0 for the known token.
        sees [B, N, N] bool: the prefix's own ancestors and itself.
        place [B, K, L+1] int64: where the prefix of length i of path k stands; 0 for i = 0.
    """

    tokens: Tensor
    depth: Tensor
    sees: Tensor
    place: Tensor


def merge_paths(last: Tensor, tokens: Tensor) -> MergedPaths:
    """Merge the drafted paths `tokens` [B, K, L] that follow the known tokens `last` [B]."""
    rows, paths, length = tokens.shape
    device = tokens.device
    same = (tokens[:, :, None] == tokens[:, None]).cumprod(dim=-1)
    owner = same.argmax(dim=2)
    distinct = owner == torch.arange(paths, device=device)[None, :, None]
    by_depth = distinct.transpose(1, 2).reshape(rows, -1)
    rank = by_depth.cumsum(dim=1).reshape(rows, length, paths).transpose(1, 2)
    place = torch.nn.functional.pad(rank.gather(1, owner), (1, 0))
    size = int(place.max()) + 1
    row = torch.arange(rows, device=device)[:, None, None]
    merged = tokens.new_zeros(rows, size)
    merged[:, 0] = last
    merged[row, place[:, :, 1:]] = tokens
    depth = torch.zeros_like(merged)
    depth[row, place] = torch.arange(length + 1, device=device)
    sees = torch.zeros(rows, size, size, dtype=torch.bool, device=device)
    sees[:, :, 0] = True
    for i in range(1, length + 1):
        sees[row, place[:, :, i:], place[:, :, i : i + 1]] = True
    return MergedPaths(merged, depth, sees, place)
