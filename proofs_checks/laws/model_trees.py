"""Real instances: the prefix tree of two language models at a real context, under top-k sampling.

Under top-k sampling each law has at most k tokens, so a node has at most 2k children (the union of both supports)
and a tree a few levels deep is small enough to solve exactly. Nodes that no draft reaches are not looked into.
The trees below many beginnings of a text grow together, a level at a time: a model reads up to `AT_ONCE` prefixes in
one pass, each of which sees its own beginning of the text and its own ancestors only.

Letters: T tokens of a text, N nodes of one level (of all trees), k tokens kept in a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbound.runtime.states import hold
from specbound.theory.numbers import Array
from specbound.theory.prefix_tree import MAX_NODES, PrefixTree

AT_ONCE = 256


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
        target, draft: the models; one without key/value slots reads every path for itself.
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
        starts: numbers of tokens in 1..T.
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
    if not starts:
        return []
    readers = [_Reader(model, text, min(starts), top_k, temperature) for model in (target, draft)]
    levels = [_Level.roots(np.array(starts))]
    for _ in range(length):
        levels.append(levels[-1].below(*readers))
    rows = readers[0].rows(levels[-1].starts, levels[-1].prefixes) if bonus else None
    return [_tree(levels, number, rows, decode or str) for number in range(len(starts))]


Rows = tuple[Array, Array]  # tokens [N, k] and their probabilities [N, k]


@dataclass(frozen=True)
class _Level:
    """The nodes of one depth d in all trees, in order of their trees and breadth-first.

    Attributes:
        tree [N]: whose they are; starts [N]: tokens of the text before the tree.
        prefixes [N, d]: their tokens.
        parent [N]: place in the level above.
        target, draft [N]: conditional probabilities; reached [N]: the draft's joint one.
    """

    tree: Array
    starts: Array
    prefixes: Array
    parent: Array
    target: Array
    draft: Array
    reached: Array

    @classmethod
    def roots(cls, starts: Array) -> _Level:
        count = len(starts)
        one = np.ones(count)
        return cls(np.arange(count), starts, np.zeros((count, 0), int), np.full(count, -1), one, one, one)

    def below(self, target: _Reader, draft: _Reader) -> _Level:
        """The next level: the tokens that either model may write behind a node that a draft reaches."""
        nodes = np.flatnonzero(self.reached > 0)
        found = [reader.rows(self.starts[nodes], self.prefixes[nodes]) for reader in (target, draft)]
        vocab = 1 + max(int(tokens.max()) for tokens, _ in found)
        possible = [probabilities > 0 for _, probabilities in found]
        keys = [(nodes[:, None] * vocab + tokens)[kept] for (tokens, _), kept in zip(found, possible, strict=True)]
        union = np.union1d(*keys)
        p, q = np.zeros((2, len(union)))
        for row, key, (_, probabilities), kept in zip((p, q), keys, found, possible, strict=True):
            row[np.searchsorted(union, key)] = probabilities[kept]
        parent, token = np.divmod(union, vocab)
        prefixes = np.column_stack([self.prefixes[parent], token])
        return _Level(self.tree[parent], self.starts[parent], prefixes, parent, p, q, self.reached[parent] * q)

    def of(self, tree: int) -> slice:
        """Where a tree's nodes are."""
        return slice(*np.searchsorted(self.tree, [tree, tree + 1]))


def _tree(levels: Sequence[_Level], number: int, rows: Rows | None, name: Callable[[int], str]) -> PrefixTree:
    """One of the trees; `rows`: the target's behind the deepest level, uniform ones stand in where they are missing."""
    own = [level.of(number) for level in levels]
    before = np.cumsum([0] + [part.stop - part.start for part in own[:-1]])
    shift = [at - part.start for at, part in zip(before, own, strict=True)]
    below = list(zip(levels[1:], own[1:], strict=True))
    parent = [level.parent[part] + by for (level, part), by in zip(below, shift[:-1], strict=True)]
    last = np.concatenate([level.prefixes[part, -1] for level, part in below])
    vocabulary = np.unique(last)
    leaves = own[-1].stop - own[-1].start
    if rows is None:
        bonus = np.full((leaves, len(vocabulary)), 1 / len(vocabulary))
    else:
        tokens, probabilities = (part[own[-1]] for part in rows)
        vocabulary = np.union1d(vocabulary, tokens[probabilities > 0])
        bonus = np.zeros((leaves, len(vocabulary)))
        leaf, place = np.nonzero(probabilities > 0)
        bonus[leaf, np.searchsorted(vocabulary, tokens[leaf, place])] = probabilities[leaf, place]
    return PrefixTree(
        len(vocabulary),
        len(levels) - 1,
        np.concatenate([[-1], *parent]),
        np.append(-1, np.searchsorted(vocabulary, last)),
        np.concatenate([level.target[part] for level, part in zip(levels, own, strict=True)]),
        np.concatenate([level.draft[part] for level, part in zip(levels, own, strict=True)]),
        bonus,
        tuple(name(int(token)) for token in vocabulary),
    )


class _Reader:
    """A model that has read a text once, and its rows behind every beginning of at least `first` tokens."""

    @torch.inference_mode()
    def __init__(self, model: Any, text: Tensor, first: int, top_k: int, temperature: float) -> None:
        self.first, self.top_k, self.temperature = first, top_k, temperature
        self.held = hold(model, 1)
        logits = [self.held.read(text[None, :first], last=1)[0]]
        self.held.forget_tail([first])
        if first < len(text):
            logits.append(self.held.read(text[None, first:])[0])
        self.logits, self.later = torch.cat(logits), len(text) - first

    @torch.inference_mode()
    def rows(self, starts: Array, prefixes: Array) -> Rows:
        """The laws behind the text's first `starts` [N] tokens and a prefix [N, d]."""
        if prefixes.shape[1] == 0:
            return self._law(self.logits[torch.from_numpy(starts - self.first)])
        groups = [slice(begin, begin + AT_ONCE) for begin in range(0, len(starts), AT_ONCE)]
        found = [self._law(self._logits(starts[group], prefixes[group])) for group in groups]
        tokens, probabilities = zip(*found, strict=True)
        return np.concatenate(tokens), np.concatenate(probabilities)

    def _logits(self, starts: Array, prefixes: Array) -> Tensor:
        """[N, V], from one pass over the distinct beginnings of all prefixes, shorter ones first."""
        words = np.column_stack([starts, prefixes])
        size, depth = self.later, prefixes.shape[1]
        tokens, positions, places = [], [], []
        for i in range(1, depth + 1):
            distinct, index = np.unique(words[:, : i + 1], axis=0, return_inverse=True)
            tokens.append(distinct[:, i])
            positions.append(distinct[:, 0] + i - 1)
            places.append(size + index.reshape(-1))
            size += len(distinct)
        sees = np.zeros((size, size), dtype=bool)
        for i, place in enumerate(places):
            sees[place, : self.later] = np.arange(self.later) < (starts - self.first)[:, None]
            for above in places[: i + 1]:
                sees[place, above] = True
        fed, where = (torch.from_numpy(np.concatenate(part))[None] for part in (tokens, positions))
        logits = self.held.extend(fed, where, torch.from_numpy(sees[self.later :]), last=len(tokens[-1]))
        return logits[0, torch.from_numpy(places[-1] - (size - len(tokens[-1])))]

    def _law(self, logits: Tensor) -> Rows:
        """The k largest of each row of logits [N, V], and their softmax."""
        scaled = logits.double() / self.temperature
        kept, index = scaled.topk(min(self.top_k, scaled.shape[-1]), dim=-1)
        return index.cpu().numpy(), kept.softmax(dim=-1).cpu().numpy()
