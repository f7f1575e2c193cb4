"""Instances to check claims on, from the simplest on or at random, and how an instance reads in one line."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from fractions import Fraction
from typing import Any

from specbound.theory.prefix_tree import PrefixTree

Size = tuple[int, int, int]


def rational_rows(vocab: int, denominator: int) -> list[tuple[Fraction, ...]]:
    """All rows of V probabilities with the given common denominator (not in lowest terms necessarily)."""
    cuts = itertools.product(range(denominator + 1), repeat=vocab - 1)
    return [
        tuple(Fraction(part, denominator) for part in (*head, denominator - sum(head)))
        for head in cuts
        if sum(head) <= denominator
    ]


def simple_instances(max_vocab: int, max_length: int, max_denominator: int) -> Iterator[PrefixTree]:
    """iid instances from the simplest on: by V, then L, then denominator. For smallest counterexamples."""
    for vocab in range(1, max_vocab + 1):
        for length in range(1, max_length + 1):
            seen: set[tuple[tuple[Fraction, ...], tuple[Fraction, ...]]] = set()
            for denominator in range(1, max_denominator + 1):
                rows = rational_rows(vocab, denominator)
                for target, draft in itertools.product(rows, rows):
                    if (target, draft) not in seen:
                        seen.add((target, draft))
                        yield PrefixTree.iid(target, draft, length)


def random_instances(count: int, max_vocab: int = 3, max_length: int = 3) -> Iterator[PrefixTree]:
    """Context-dependent random instances, shapes and concentrations in turn, seeds 0, 1, ..."""
    shapes = [(v, d) for v in range(2, max_vocab + 1) for d in range(1, max_length + 1)]
    for seed in range(count):
        vocab, length = shapes[seed % len(shapes)]
        yield PrefixTree.random(vocab, length, seed, concentration=(0.2, 0.5, 1.0, 3.0)[seed // len(shapes) % 4])


def without_ties(tree: PrefixTree) -> bool:
    """Are the ratios target/draft of the children of every node all different? (Rules by ratio need no tie-break.)"""
    for below in tree.children:
        ratios = [_ratio(tree, node) for node in range(below.start, below.stop)]
        if len(set(ratios)) < len(ratios):
            return False
    return True


def _ratio(tree: PrefixTree, node: int) -> Any:
    return tree.target[node] / tree.draft[node] if tree.draft[node] else None


def sizes_run(sizes: Collection[Size]) -> str:
    """The sizes (V, L, K) of the cases that were run: "78 cases: L 1..2 with every V 1..3, K 1..3; L 3 with V 2, K 2".

    A pair (V, K) is named only where it was run at every L it is named with.
    """
    pairs: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for vocab, length, paths in sizes:
        pairs[length].add((vocab, paths))
    lengths: dict[frozenset[tuple[int, int]], list[int]] = defaultdict(list)
    for length in sorted(pairs):
        lengths[frozenset(pairs[length])].append(length)
    shown = [f"L {_range(values)} with {_pairs(found)}" for found, values in lengths.items()]
    return f"{len(sizes)} cases: {'; '.join(shown)}"


def _pairs(pairs: Collection[tuple[int, int]]) -> str:
    vocabs, paths = (sorted(set(values)) for values in zip(*pairs, strict=True))
    if len(set(pairs)) == len(vocabs) * len(paths):
        return f"{'every ' * (len(vocabs) > 1 and len(paths) > 1)}V {_range(vocabs)}, K {_range(paths)}"
    return "V/K " + ", ".join(f"{vocab}/{count}" for vocab, count in sorted(set(pairs)))


def _range(values: list[int]) -> str:
    if values == list(range(values[0], values[-1] + 1)):
        return str(values[0]) if len(values) == 1 else f"{values[0]}..{values[-1]}"
    return ", ".join(map(str, values))


def described(tree: PrefixTree) -> str:
    """An instance in one line, in fractions: iid, or row by row, with what most prefixes have said once at the end."""

    def row(values: Any, node: int) -> str:
        children = tree.children[node]
        return f"({','.join(str(value) for value in values[children.start : children.stop])})"

    inner = [node for node in range(tree.size) if tree.children[node].start < tree.children[node].stop]
    laws = {node: f"target {row(tree.target, node)}, draft {row(tree.draft, node)}" for node in inner}
    common, times = Counter(laws.values()).most_common(1)[0]
    sizes = f"V={tree.vocab}, L={tree.length}"
    if times == len(laws):
        return f"{sizes}, iid {common}"
    listed = [f"after {tree.prefix(node)} {law}" for node, law in laws.items() if times == 1 or law != common]
    return "; ".join([f"{sizes}, {listed[0]}", *listed[1:], *([f"otherwise {common}"] if times > 1 else [])])
