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
    return trees_along(target, draft, context, [len(context)], length, top_k, temperature, decode)[0]


def trees_along(
    target: Any,
    draft: Any,
    text: Tensor,
    starts: Sequence[int],
    length: int,
    top_k: int,
    temperature: float = 1.0,
    decode: Callable[[int], str] | None = None,
    bonus: bool = True,
) -> list[PrefixTree]:
    """The prefix trees below the first `starts` tokens of a text [T], which each model reads once.

    Args:
        starts: numbers of tokens in 1..T; where one is below T the models' caches must be such that they can be cut.
        bonus: False leaves out the target's laws behind whole drafts, which no acceptance depends on: uniform rows
            stand in their place.
        Everything else as for `from_models`.

    Raises:
        ValueError: as `from_models`, or a start outside 1..T.
    """
    if text.ndim != 1 or len(text) == 0:
        raise ValueError(f"context has shape {tuple(text.shape)}; want [T], at least one token")
    if length < 1 or top_k < 1:
        raise ValueError(f"length is {length} and top_k {top_k}; both want at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; want a positive number")
    if 2 * top_k * sum(top_k**d for d in range(length)) > MAX_NODES:
        raise ValueError(f"length {length} and top_k {top_k} make too large a tree; lower one of them")
    if not all(1 <= start <= len(text) for start in starts):
        raise ValueError(f"starts are {list(starts)}; want numbers in 1..{len(text)}")
    of_target, of_draft = (_Reader(model, text, top_k, temperature) for model in (target, draft))
    return [_tree(of_target.after(start), of_draft.after(start), length, bonus, decode) for start in starts]


def _tree(
    target_rows: Rows, draft_rows: Rows, length: int, with_bonus: bool, decode: Callable[[int], str] | None
) -> PrefixTree:
    """The tree of two models' rows; nodes that no draft reaches have no children."""
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
    last = np.array([-1] + [prefix[-1] for prefix in prefixes[1:]])
    vocabulary = np.unique(last[1:])
    if with_bonus:
        rows = target_rows([prefixes[node] for node in level])
        vocabulary = np.union1d(vocabulary, np.flatnonzero((rows > 0).any(axis=0)))
        bonus = rows[:, vocabulary]
    else:
        bonus = np.full((len(level), len(vocabulary)), 1 / len(vocabulary))
    return PrefixTree(
        len(vocabulary),
        length,
        np.array(parent),
        np.append(-1, np.searchsorted(vocabulary, last[1:])),
        np.array([p for p, _ in probability]),
        np.array([q for _, q in probability]),
        bonus,
        tuple((decode or str)(int(token)) for token in vocabulary),
    )


class _Reader:
    """A model that has read a text once, and its rows behind every beginning of it."""

    def __init__(self, model: Any, text: Tensor, top_k: int, temperature: float) -> None:
        self.model, self.top_k, self.temperature = model, top_k, temperature
        with torch.inference_mode():
            seen = model(text[None].to(model.device), use_cache=True)
        self.logits, self.cache, self.length = seen.logits[0], seen.past_key_values, len(text)

    def after(self, start: int) -> Rows:
        """A function from prefixes of equal length to the rows [N, V] after `start` tokens and the prefix, float64.

        The cache is copied for every group of prefixes.
        """
        cache = self.cache
        if start < self.length:
            cache = copy.deepcopy(cache)
            cache.crop(start - self.length)

        @torch.inference_mode()
        def rows(prefixes: Sequence[tuple[int, ...]]) -> np.ndarray:
            if prefixes[0] == ():
                return _top_k_law(self.logits[start - 1][None], self.top_k, self.temperature)
            groups = []
            for begin in range(0, len(prefixes), 64):
                group = torch.tensor(prefixes[begin : begin + 64], device=self.model.device)
                past = copy.deepcopy(cache)
                past.batch_repeat_interleave(len(group))
                logits = self.model(group, past_key_values=past).logits[:, -1]
                groups.append(_top_k_law(logits, self.top_k, self.temperature))
            return np.concatenate(groups)

        return rows


def _top_k_law(logits: Tensor, top_k: int, temperature: float) -> np.ndarray:
    """Softmax of the k largest logits of each row of [N, V]; the others have probability exactly 0."""
    scaled = logits.double() / temperature
    kept, index = scaled.topk(min(top_k, scaled.shape[-1]), dim=-1)
    return torch.zeros_like(scaled).scatter(-1, index, kept.softmax(dim=-1)).cpu().numpy()
