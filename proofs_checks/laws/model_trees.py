"""Real instances: the prefix tree of two language models at a real context, under top-k sampling.

Under top-k sampling each law has at most k tokens, so a node has at most 2k children (the union of both supports)
and a tree a few levels deep is small enough to solve exactly. Nodes that no draft reaches are not looked into.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbound.theory.prefix_tree import MAX_NODES, PrefixTree

Rows = Callable[[Sequence[tuple[int, ...]]], np.ndarray]


def from_models(
    target: Any,
    draft: Any,
    context: Tensor,
    length: int,
    top_k: int,
    temperature: float = 1.0,
    decode: Callable[[int], str] | None = None,
) -> PrefixTree:
    """The prefix tree below `context` of two Hugging Face causal language models.

    Tokens are renumbered 0..V-1 (V = the tokens that occur in the tree, in the models' order); `symbols` keeps
    their names.

    Args:
        target, draft: models called as `model(input_ids, past_key_values=..., use_cache=True)`.
        context [T] int64: the tokens before the draft, at least one.
        length: L, the draft length.
        top_k: tokens kept in each row (both models).
        temperature: divides both models' logits before the cut; positive.
        decode: names a token id; its number if not given.

    Raises:
        ValueError: naming the argument that is out of range, or if the tree would exceed 2e7 nodes.
    """
    if context.ndim != 1 or len(context) == 0:
        raise ValueError(f"context has shape {tuple(context.shape)}; want [T], at least one token")
    if length < 1 or top_k < 1:
        raise ValueError(f"length is {length} and top_k {top_k}; both want at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; want a positive number")
    if 2 * top_k * sum(top_k**d for d in range(length)) > MAX_NODES:
        raise ValueError(f"length {length} and top_k {top_k} make too large a tree; lower one of them")
    target_rows, draft_rows = (_rows(model, context, top_k, temperature) for model in (target, draft))
    prefixes: list[tuple[int, ...]] = [()]
    parent, probability = [-1], [(1.0, 1.0)]
    level, reached = [0], [1.0]
    for _ in range(length):
        open_nodes = [node for node in level if reached[node] > 0]
        inside = [prefixes[node] for node in open_nodes]
        level = []
        for node, p, q in zip(open_nodes, target_rows(inside), draft_rows(inside), strict=True):
            for token in np.flatnonzero((p > 0) | (q > 0)):
                level.append(len(prefixes))
                prefixes.append((*prefixes[node], int(token)))
                parent.append(node)
                probability.append((p[token], q[token]))
                reached.append(reached[node] * q[token])
    bonus = target_rows([prefixes[node] for node in level])
    last = np.array([-1] + [prefix[-1] for prefix in prefixes[1:]])
    vocabulary = np.union1d(last[1:], np.flatnonzero((bonus > 0).any(axis=0)))
    return PrefixTree(
        len(vocabulary),
        length,
        np.array(parent),
        np.append(-1, np.searchsorted(vocabulary, last[1:])),
        np.array([p for p, _ in probability]),
        np.array([q for _, q in probability]),
        bonus[:, vocabulary],
        tuple((decode or str)(int(token)) for token in vocabulary),
    )


def _rows(model: Any, context: Tensor, top_k: int, temperature: float) -> Rows:
    """A function from prefixes of equal length to the model's rows [N, V] after context + prefix, float64.

    The context is read once; its cache is copied for every group of prefixes.
    """
    with torch.inference_mode():
        seen = model(context[None].to(model.device), use_cache=True)
    first, cache = seen.logits[0, -1], seen.past_key_values

    @torch.inference_mode()
    def rows(prefixes: Sequence[tuple[int, ...]]) -> np.ndarray:
        if prefixes[0] == ():
            return _top_k_law(first[None], top_k, temperature)
        groups = []
        for begin in range(0, len(prefixes), 64):
            group = torch.tensor(prefixes[begin : begin + 64], device=model.device)
            past = copy.deepcopy(cache)
            past.batch_repeat_interleave(len(group))
            groups.append(_top_k_law(model(group, past_key_values=past).logits[:, -1], top_k, temperature))
        return np.concatenate(groups)

    return rows


def _top_k_law(logits: Tensor, top_k: int, temperature: float) -> np.ndarray:
    """Softmax of the k largest logits of each row of [N, V]; the others have probability exactly 0."""
    scaled = logits.double() / temperature
    kept, index = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1)
    return torch.zeros_like(scaled).scatter(-1, index, kept.softmax(dim=-1)).cpu().numpy()
