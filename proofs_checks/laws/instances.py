"""Families of small instances on which verifiers are audited: random, rational and degenerate prefix trees.

Each family draws the target row and the draft row of every prefix independently. The degenerate ones are where
verifiers break: zeros in one law only, one-hot rows, rows that agree, rows with nothing in common.

Letters: V vocabulary size, L draft length, p target row, q draft row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from specbound.theory.prefix_tree import Prefix, PrefixTree

Row = Sequence[Fraction]
RowPair = tuple[Row, Row]
Family = Callable[[np.random.Generator, int], RowPair]

DENOMINATOR = 720
TINY = Fraction(1, 10**6)
MAX_SIZES = 10_000


@dataclass(frozen=True)
class Instance:
    """One case of an audit: a prefix tree, the number of drafted paths, and the family it was drawn from."""

    family: str
    tree: PrefixTree
    paths: int

    @property
    def size(self) -> tuple[int, int, int]:
        """(V, L, K)."""
        return self.tree.vocab, self.tree.length, self.paths


def rational_row(rng: np.random.Generator, vocab: int, support: Sequence[int] | None = None) -> Row:
    """A row with denominator 720 (of more than 360 tokens, twice their number), positive exactly on `support`
    (default: every token)."""
    places = list(range(vocab)) if support is None else list(support)
    whole = max(DENOMINATOR, 2 * len(places))
    weights = rng.dirichlet(np.ones(len(places)))
    parts = np.floor(weights * (whole - len(places))).astype(int) + 1
    parts[rng.integers(len(places))] += whole - parts.sum()
    row = [Fraction(0)] * vocab
    for token, part in zip(places, parts, strict=True):
        row[token] = Fraction(int(part), whole)
    return tuple(row)


def one_hot_row(vocab: int, token: int) -> Row:
    """All mass on one token."""
    return tuple(Fraction(int(y == token)) for y in range(vocab))


def _subset(rng: np.random.Generator, vocab: int) -> list[int]:
    """A random non-empty set of tokens, not all of them if there are two or more."""
    size = int(rng.integers(1, max(vocab, 2)))
    return sorted(rng.choice(vocab, size=size, replace=False).tolist())


def independent(rng: np.random.Generator, vocab: int) -> RowPair:
    """p and q unrelated, all entries positive."""
    return rational_row(rng, vocab), rational_row(rng, vocab)


def close(rng: np.random.Generator, vocab: int) -> RowPair:
    """q within a few percent of p: half of it is p, the rest an even mixture with a random row."""
    target, other = rational_row(rng, vocab), rational_row(rng, vocab)
    return target, tuple((9 * p + r) / 10 for p, r in zip(target, other, strict=True))


def zeros_in_target(rng: np.random.Generator, vocab: int) -> RowPair:
    """The draft proposes tokens that the target never emits."""
    return rational_row(rng, vocab, _subset(rng, vocab)), rational_row(rng, vocab)


def zeros_in_draft(rng: np.random.Generator, vocab: int) -> RowPair:
    """The target emits tokens that the draft never proposes."""
    return rational_row(rng, vocab), rational_row(rng, vocab, _subset(rng, vocab))


def one_hot_target(rng: np.random.Generator, vocab: int) -> RowPair:
    """A greedy target."""
    return one_hot_row(vocab, int(rng.integers(vocab))), rational_row(rng, vocab)


def one_hot_draft(rng: np.random.Generator, vocab: int) -> RowPair:
    """A greedy draft."""
    return rational_row(rng, vocab), one_hot_row(vocab, int(rng.integers(vocab)))


def equal(rng: np.random.Generator, vocab: int) -> RowPair:
    """p = q: nothing should ever be rejected, and the residual is 0/0."""
    row = rational_row(rng, vocab)
    return row, row


def disjoint(rng: np.random.Generator, vocab: int) -> RowPair:
    """p and q have no token in common, so that nothing can be accepted (p = q if V = 1)."""
    if vocab == 1:
        return equal(rng, vocab)
    support = _subset(rng, vocab)
    rest = [y for y in range(vocab) if y not in support]
    return rational_row(rng, vocab, support), rational_row(rng, vocab, rest)


def partly_equal(rng: np.random.Generator, vocab: int) -> RowPair:
    """p and q agree on one token and differ on the others."""
    target = rational_row(rng, vocab)
    kept = int(rng.integers(vocab))
    others = [target[y] for y in range(vocab) if y != kept]
    turned = iter([*others[1:], *others[:1]])
    return target, tuple(target[y] if y == kept else next(turned) for y in range(vocab))


def tiny(rng: np.random.Generator, vocab: int) -> RowPair:
    """Each row has a token of probability 10^-6, not the same one: a ratio clamped at 10^-5 shows here."""
    places = rng.permutation(vocab)
    return _with_tiny(rational_row(rng, vocab), int(places[0])), _with_tiny(rational_row(rng, vocab), int(places[-1]))


def _with_tiny(row: Row, token: int) -> Row:
    if len(row) == 1:
        return row
    rest = (1 - TINY) / (1 - row[token])
    return tuple(TINY if y == token else entry * rest for y, entry in enumerate(row))


def ties(rng: np.random.Generator, vocab: int) -> RowPair:
    """Weights 1 and 2 only, so that probabilities and ratios p/q tie exactly."""
    rows = rng.integers(1, 3, (2, vocab)).tolist()
    target, draft = (tuple(Fraction(weight, sum(row)) for weight in row) for row in rows)
    return target, draft


NODE_FAMILIES: dict[str, Family] = {
    "independent": independent,
    "close": close,
    "zeros in target": zeros_in_target,
    "zeros in draft": zeros_in_draft,
    "one-hot target": one_hot_target,
    "one-hot draft": one_hot_draft,
    "equal": equal,
    "disjoint": disjoint,
    "partly equal": partly_equal,
}
RARE_FAMILIES: dict[str, Family] = {"tiny": tiny, "ties": ties}
GENERIC = ("independent", "mixed", "Dirichlet")
SPECIAL = ("close", "mixed, iid", *RARE_FAMILIES, *list(NODE_FAMILIES)[2:])
FAMILIES = (*GENERIC, *SPECIAL)


def random_tree(family: str, vocab: int, length: int, seed: int) -> PrefixTree:
    """The tree of the given family, size and seed; exact fractions except for "Dirichlet".

    Families: those of `NODE_FAMILIES` and `RARE_FAMILIES` (every prefix of that kind); "mixed" (every prefix of a kind
    of its own); "mixed, iid" (one pair of rows for every prefix); "Dirichlet" (`PrefixTree.random`, float64).

    Raises:
        ValueError: for an unknown family or an impossible size.
    """
    if family == "Dirichlet":
        return PrefixTree.random(vocab, length, seed)
    rng = np.random.default_rng(seed)
    kinds = list(NODE_FAMILIES.values())
    if family in NODE_FAMILIES | RARE_FAMILIES:
        kinds = [(NODE_FAMILIES | RARE_FAMILIES)[family]]
    elif family not in ("mixed", "mixed, iid"):
        raise ValueError(f"family is {family!r}; known are {', '.join(FAMILIES)}")
    if family == "mixed, iid":
        return PrefixTree.iid(*kinds[int(rng.integers(len(kinds)))](rng, vocab), length)
    pairs: dict[Prefix, RowPair] = {}

    def pair(prefix: Prefix) -> RowPair:
        if prefix not in pairs:
            pairs[prefix] = kinds[int(rng.integers(len(kinds)))](rng, vocab)
        return pairs[prefix]

    return PrefixTree.from_conditionals(lambda w: pair(w)[0], lambda w: pair(w)[1], vocab, length)


def instances(
    vocab: range,
    length: range,
    paths: range,
    cases: int,
    seed: int = 0,
    families: Sequence[str] = (),
    max_leaves: float = math.inf,
) -> Iterator[Instance]:
    """`cases` instances, small sizes first: every (V, L, K) of the ranges in turn, each with its next family.

    Every second instance of a size is of a generic family, where most mistakes show; the others go through the special
    ones, and every size starts at another one; `families` come before them all. The i-th instance depends on the
    ranges, the families, `seed` and i only, so that a case can be named and drawn again. Trees of more than
    `max_leaves` leaves are not grown, and left out.

    Raises:
        ValueError: for an empty or non-positive range, or cases < 1.
    """
    for name, values in (("vocab", vocab), ("length", length), ("paths", paths)):
        if not isinstance(values, range) or not values or min(values[0], values[-1]) < 1:
            raise ValueError(f"{name} is {values}; want a non-empty range of positive integers")
    for name, value, least in (("cases", cases, 1), ("seed", seed, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}; want an integer of at least {least}")
    if len(vocab) * len(length) * len(paths) > MAX_SIZES:
        raise ValueError(f"vocab {vocab}, length {length}, paths {paths}: more than {MAX_SIZES} sizes; narrow them")
    sizes = sorted(itertools.product(vocab, length, paths), key=lambda size: size[0] ** (size[1] * size[2]))
    for place, (v, ell, k) in enumerate(sizes):
        for turn, i in enumerate(range(place, cases, len(sizes))):
            family = families[turn] if turn < len(families) else _family(place, turn - len(families))
            if v**ell <= max_leaves:
                yield Instance(family, random_tree(family, v, ell, 100_003 * seed + i), k)


def greedy(instance: Instance) -> Instance:
    """The instance at temperature 0: every row of the target is one-hot at its first largest entry."""
    tree = instance.tree

    def one_hot(row: Any) -> list[Fraction]:
        return list(one_hot_row(tree.vocab, int(np.argmax([float(entry) for entry in row]))))

    rows = np.array([one_hot(row) for row in tree.rows(tree.target)], dtype=object)
    target = tree.target.astype(object)
    target[1:] = rows[tree.parent[1:], tree.token[1:]]
    bonus = np.array([one_hot(row) for row in tree.bonus], dtype=object)
    if not tree.exact:
        target, bonus = target.astype(float), bonus.astype(float)
    return replace(instance, tree=replace(tree, target=target, bonus=bonus))


def is_greedy(tree: PrefixTree) -> bool:
    """Whether every row of the target is one-hot."""
    return {float(entry) for entry in [*tree.target[1:], *tree.bonus.ravel()]} <= {0.0, 1.0}


def _family(place: int, turn: int) -> str:
    """The family of the `turn`-th instance of the size at `place`."""
    half, special = divmod(turn, 2)
    families = SPECIAL if special else GENERIC
    return families[(place + half) % len(families)]
