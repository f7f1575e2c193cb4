"""Instances with known values, and random trees of every shape, shared by the tests of theory.

I1..I7 are the instances of the project's notes on multi-path verifiers; their exact values there were found by
enumerating every branch of every verifier in rational arithmetic.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from specbound.theory.prefix_tree import Prefix, PrefixTree


def fractions(text: str) -> list[Fraction]:
    """ "1/3 2/3" -> [1/3, 2/3]."""
    return [Fraction(entry) for entry in text.split()]


def by_prefix(rows: dict[Prefix, str], otherwise: str):
    """A conditional law from the rows of some prefixes and one row for all others."""
    return lambda prefix: fractions(rows.get(prefix, otherwise))


def iid(target: str, draft: str, length: int) -> PrefixTree:
    return PrefixTree.iid(fractions(target), fractions(draft), length)


INSTANCES = {
    "I1": iid("1/3 2/3", "2/3 1/3", 2),
    "I2": iid("1/3 2/3", "2/3 1/3", 3),
    "I3": iid("1/2 1/2", "1/2 1/2", 2),
    "I4": iid("1/6 1/3 1/2", "1/2 1/6 1/3", 1),
    "I5": iid("1/6 1/3 1/2", "1/2 1/6 1/3", 2),
    "I6": PrefixTree.from_conditionals(
        by_prefix({(0,): "1/8 7/8"}, "1/2 1/2"), by_prefix({(): "7/8 1/8"}, "1/2 1/2"), 2, 2
    ),
    "I7": PrefixTree.from_conditionals(
        by_prefix({(): "3/5 1/5 1/5", (0,): "1/4 1/2 1/4", (1,): "1/2 1/2 0"}, "1/3 1/3 1/3"),
        by_prefix({(): "2/5 2/5 1/5", (0,): "1/2 1/4 1/4", (1,): "1/4 1/4 1/2", (2,): "3/5 1/5 1/5"}, "1/3 1/3 1/3"),
        3,
        2,
    ),
}


def ragged(seed: int, vocab: int = 4, length: int = 3) -> PrefixTree:
    """A random float tree: nodes have different numbers of children, some rows have zeros, and some subtrees that no
    draft reaches end early."""
    rng = np.random.default_rng(seed)
    parent, token, target, draft, depth, reached = [-1], [-1], [1.0], [1.0], [0], [True]
    node = 0
    while node < len(parent):
        if depth[node] < length and (reached[node] or rng.random() < 0.5):
            tokens = rng.permutation(vocab)[: rng.integers(1, vocab + 1)]
            rows = [_sparse_row(rng, len(tokens)) for _ in range(2)]
            for y, p, q in zip(tokens, *rows, strict=True):
                parent.append(node)
                token.append(int(y))
                target.append(p)
                draft.append(q)
                depth.append(depth[node] + 1)
                reached.append(reached[node] and q > 0)
        node += 1
    leaves = sum(level == length for level in depth)
    bonus = rng.dirichlet(np.ones(vocab), size=leaves).reshape(leaves, vocab)
    arrays = np.array(parent), np.array(token), np.array(target), np.array(draft), bonus
    return PrefixTree(vocab, length, *arrays)


def _sparse_row(rng: np.random.Generator, size: int) -> np.ndarray:
    row = rng.dirichlet(np.full(size, 0.5)) * (rng.random(size) < 0.7)
    return row / row.sum() if row.sum() > 0 else np.eye(size)[rng.integers(size)]


def small_trees(count: int) -> list[PrefixTree]:
    """Random trees of a few shapes and concentrations, ragged ones among them."""
    shapes = [(2, 1), (2, 2), (3, 1), (3, 2), (2, 3), (4, 1)]
    trees = []
    for seed in range(count):
        vocab, length = shapes[seed % len(shapes)]
        concentration = [0.1, 0.5, 2.0][seed % 3]
        trees.append(
            ragged(seed, vocab, length) if seed % 4 == 3 else PrefixTree.random(vocab, length, seed, concentration)
        )
    return trees


TINY = 1e-300
DEGENERATE = {
    "disjoint supports": iid("0 1", "1 0", 2),
    "identical models": iid("1/2 1/3 1/6", "1/2 1/3 1/6", 2),
    "one-hot draft": iid("1/2 1/2", "1 0", 2),
    "one-hot target": iid("1 0", "1/3 2/3", 2),
    "one-hot both": iid("1 0", "1 0", 3),
    "one child": iid("1", "1", 3),
    "depth one": iid("1/6 1/3 1/2", "1/2 1/6 1/3", 1),
    "tiny target": PrefixTree.iid([TINY, 1.0], [0.5, 0.5], 2),
    "tiny draft": PrefixTree.iid([0.5, 0.5], [TINY, 1.0], 2),
    "tiny both": PrefixTree.iid([TINY, 0.5, 0.5], [TINY, 1.0, 0.0], 2),
    "near tie": PrefixTree.iid([0.5, 0.5], [0.5 + 1e-13, 0.5 - 1e-13], 2),
    "subtrees ending early": ragged(11),
}


def decoy(share: float, rare: float, length: int) -> PrefixTree:
    """A rare branch that the target likes less than the draft, and below it one sure token: two parts give it away.

    root p=(share rare, rest), q=(rare, rest); after 0 p=(1,0), q=(share,..); then both sure; after 1 disjoint.
    """

    def target(prefix):
        return [share * rare, 1 - share * rare] if not prefix else [1, 0]

    def draft(prefix):
        if not prefix:
            return [rare, 1 - rare]
        return [0, 1] if prefix[0] == 1 else [share, 1 - share] if prefix == (0,) else [1, 0]

    return PrefixTree.from_conditionals(target, draft, 2, length)


def sparse(vocab: int, length: int, seed: int) -> PrefixTree:
    """Rows with zeros, sure rows, equal rows and ratios of many sizes, one after another at random."""
    rng = np.random.default_rng(seed)
    rows: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def both(prefix):
        if prefix not in rows:
            weights = rng.exponential(size=(2, vocab)) ** rng.choice([0.3, 1, 6])
            weights *= rng.random((2, vocab)) < rng.choice([0.5, 0.8, 1])
            weights[np.arange(2), rng.integers(vocab, size=2)] += rng.choice([1e-9, 0.1, 1])
            if rng.random() < 0.2:
                weights[1] = weights[0]
            rows[prefix] = tuple(weights / weights.sum(axis=1, keepdims=True))
        return rows[prefix]

    return PrefixTree.from_conditionals(lambda w: both(w)[0], lambda w: both(w)[1], vocab, length)
