"""The prefix tree of K drafted paths, so that one target pass computes shared prefixes once.

B rows, K paths of L tokens. A tree's tail of slots is: the last known token (place 0), then the distinct prefixes of
the row's paths: those of path 0, shorter ones first, then those of path 1 that are new, and so on. So path 0 lies in
its own order and need not be moved when it is kept. Rows with fewer distinct prefixes are filled up with repetitions of
token 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
        lines: `place` as lists.
    """

    tokens: Tensor
    depth: Tensor
    sees: Tensor
    place: Tensor
    lines: list[list[list[int]]]

    def in_order(self, path: Sequence[int], kept: Sequence[int]) -> bool:
        """Whether the first `kept` [B] tokens of each row's `path` [B] stand in the first places anyway."""
        chosen = zip(self.lines, path, kept, strict=True)
        return all(lines[k][count] == count for lines, k, count in chosen)  # places ascend along a path


def merge_paths(last: Tensor, tokens: Tensor) -> MergedPaths:
    """Merge the drafted paths `tokens` [B, K, L] that follow the known tokens `last` [B]; on the host."""
    trees = [_distinct(paths) for paths in tokens.tolist()]
    rows, size = len(trees), 1 + max(len(nodes) for nodes, _ in trees)
    numbers = np.zeros((2, rows, size), np.int64)
    sees = np.zeros((rows, size, size), np.bool_)
    sees[:, :, 0] = True
    for (nodes, _), token_of, depth, seen in zip(trees, *numbers, sees, strict=True):
        for node, (parent, token) in enumerate(nodes, start=1):
            token_of[node], depth[node] = token, depth[parent] + 1
            seen[node] |= seen[parent]
            seen[node, node] = True
    lines = [own for _, own in trees]
    arrays = numbers, sees, np.array(lines)
    (merged, depths), visible, place = (torch.from_numpy(part).to(tokens.device, non_blocking=True) for part in arrays)
    merged[:, 0] = last
    return MergedPaths(merged, depths, visible, place, lines)


def _distinct(paths: list[list[int]]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """The nodes 1, 2, .. of a row's tree as (parent, token), and the nodes along each path from node 0 on."""
    nodes: dict[tuple[int, int], int] = {}
    lines = []
    for path in paths:
        line = [0]
        for token in path:
            line.append(nodes.setdefault((line[-1], token), len(nodes) + 1))
        lines.append(line)
    return list(nodes), lines
