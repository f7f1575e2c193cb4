"""Minimal counterexamples: the smallest and simplest instance on which a verifier still goes wrong.

From a failing case the number of paths, the draft length and the vocabulary are made smaller one by one, then the
probabilities simple fractions, and the same failure must remain at every step. First a short list of textbook
instances (the same two rows at every prefix, denominators 2 to 6) is tried at every smaller size, because an
instance from it is easier to follow than any other.

Letters: V vocabulary size, L draft length, K paths, p target row, q draft row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from specbound.theory.prefix_tree import Prefix, PrefixTree

Row = tuple[Fraction, ...]
Fails = Callable[[PrefixTree, int], bool]
Measure = tuple[int, ...]

DENOMINATORS = (1, 2, 3, 4, 6, 8, 10, 12, 24, 60, 120, 720)
MAX_TRIALS = 400


@dataclass(frozen=True)
class Rows:
    """An instance as two tables of rows; the target's has a row for prefixes of length L too (the bonus token)."""

    vocab: int
    length: int
    target: dict[Prefix, Row]
    draft: dict[Prefix, Row]

    def tree(self) -> PrefixTree:
        """The prefix tree, in fractions."""
        return PrefixTree.from_conditionals(self.target.__getitem__, self._draft_row, self.vocab, self.length)

    def _draft_row(self, prefix: Prefix) -> Row:
        return self.draft[prefix]

    @property
    def measure(self) -> Measure:
        """What counts as simpler: different rows, prefixes where draft and target differ, sizes of denominators."""
        rows = {*self.target.values(), *self.draft.values()}
        different = sum(self.target[w] != row for w, row in self.draft.items())
        weight = sum(entry.denominator + abs(2 * entry.numerator - entry.denominator) for row in rows for entry in row)
        return len(set(self.target.values())) + len(set(self.draft.values())), different, weight


def rows_of(tree: PrefixTree) -> Rows:
    """The rows of a full V-ary tree; floats are taken at their exact binary value and rescaled to sum to 1."""
    target, draft = {}, {}
    for node in range(tree.size):
        children = tree.children[node]
        prefix = tree.prefix(node)
        if len(prefix) == tree.length:
            target[prefix] = _normalised(tree.bonus[node - tree.leaves.start])
        elif children.stop - children.start == tree.vocab:
            target[prefix], draft[prefix] = _normalised(tree.target[children]), _normalised(tree.draft[children])
        else:
            raise ValueError(f"node {node} has {children.stop - children.start} children; shrinking wants full trees")
    return Rows(tree.vocab, tree.length, target, draft)


def _normalised(row: Any) -> Row:
    entries = [Fraction(entry) for entry in row]
    total = sum(entries)
    return tuple(entry / total for entry in entries)


@dataclass(frozen=True)
class Shrunk:
    """The simplest failing instance found, with the number of instances tried on the way."""

    tree: PrefixTree
    paths: int
    trials: int


def shrink(tree: PrefixTree, paths: int, fails: Fails, max_trials: int = MAX_TRIALS) -> Shrunk:
    """The simplest instance found on which `fails(tree, paths)` still holds; exact fractions (see `simplest`).

    Raises:
        ValueError: if the case itself does not fail.
    """
    if not fails(tree, paths):
        raise ValueError("the case to shrink does not fail")
    return simplest(tree, paths, fails, max_trials)


def simplest(tree: PrefixTree, paths: int, fails: Fails, max_trials: int = MAX_TRIALS) -> Shrunk:
    """The simplest instance found, from a case that is known to fail.

    Args:
        tree, paths: a failing case with a full V-ary tree.
        fails: the check; called with trees of Fractions, at most `max_trials` times in each of the four phases
            (smaller sizes, textbook instances, all rows rounded alike, simpler rows).
    """
    search = _Search(fails, max_trials)
    rows = rows_of(tree)
    rows, paths = search.smaller(rows, paths)
    simple = search.textbook(rows, paths)
    if simple is None:
        simple = search.simpler(search.rounded(rows, paths), paths), paths
    return Shrunk(simple[0].tree(), simple[1], search.trials)


class _Search:
    """Counts trials, over all phases and within one."""

    def __init__(self, fails: Fails, max_trials: int) -> None:
        self.fails, self.max_trials, self.trials, self.left = fails, max_trials, 0, max_trials

    def failing(self, rows: Rows, paths: int) -> bool:
        if self.left == 0:
            return False
        self.trials += 1
        self.left -= 1
        return self.fails(rows.tree(), paths)

    def smaller(self, rows: Rows, paths: int) -> tuple[Rows, int]:
        """Fewer paths, shorter drafts, fewer tokens, as long as any of these still fails."""
        while True:
            for candidate, count in _smaller(rows, paths):
                if self.failing(candidate, count):
                    rows, paths = candidate, count
                    break
            else:
                return rows, paths

    def textbook(self, rows: Rows, paths: int) -> tuple[Rows, int] | None:
        """The first failing textbook instance of this size or smaller."""
        self.left = self.max_trials
        sizes = itertools.product(range(1, paths + 1), range(1, rows.length + 1), range(1, rows.vocab + 1))
        for k, length, vocab in sorted(sizes, key=lambda size: (size[0] * size[1], size[2])):
            for target, draft in textbook_pairs(vocab):
                candidate = _iid(target, draft, length)
                if self.failing(candidate, k):
                    return candidate, k
        return None

    def rounded(self, rows: Rows, paths: int) -> Rows:
        """All rows rounded to one denominator, the smallest with which the case still fails."""
        self.left = self.max_trials
        for denominator in DENOMINATORS:
            target, draft = (
                {w: _nearest(row, denominator) for w, row in table.items()} for table in (rows.target, rows.draft)
            )
            candidate = Rows(rows.vocab, rows.length, target, draft)
            if self.failing(candidate, paths):
                return candidate
        return rows

    def simpler(self, rows: Rows, paths: int) -> Rows:
        """The same size with simpler rows, until no move helps."""
        self.left = self.max_trials
        improved = True
        while improved:
            improved = False
            for candidate in _simpler(rows):
                if candidate.measure < rows.measure and self.failing(candidate, paths):
                    rows, improved = candidate, True
                    break
        return rows


def textbook_pairs(vocab: int) -> list[tuple[Row, Row]]:
    """Pairs (target row, draft row) with small denominators, simplest first; a fixed choice per vocabulary size."""
    pools: dict[int, list[tuple[int, ...]]] = {
        1: [(1,)],
        2: [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 0), (0, 1)],
        3: [
            (1, 1, 1),
            (1, 1, 2),
            (2, 1, 1),
            (1, 2, 3),
            (2, 3, 1),
            (3, 2, 1),
            (1, 1, 0),
            (0, 1, 1),
            (2, 1, 0),
            (1, 0, 0),
        ],
    }
    pool = pools.get(vocab, [(1,) * vocab, tuple(range(1, vocab + 1)), tuple(range(vocab, 0, -1))])
    rows = [tuple(Fraction(part, sum(parts)) for part in parts) for parts in pool]
    pairs = list(itertools.product(rows, rows))
    return sorted(pairs, key=lambda pair: (sum(entry.denominator for row in pair for entry in row), pair[0] == pair[1]))


def _iid(target: Row, draft: Row, length: int) -> Rows:
    vocab = len(target)
    prefixes = [w for depth in range(length + 1) for w in itertools.product(range(vocab), repeat=depth)]
    return Rows(
        vocab, length, dict.fromkeys(prefixes, target), dict.fromkeys((w for w in prefixes if len(w) < length), draft)
    )


def _smaller(rows: Rows, paths: int) -> Iterator[tuple[Rows, int]]:
    if paths > 1:
        yield rows, paths - 1
    if rows.length > 1:
        yield _cut(rows), paths
        for token in range(rows.vocab):
            yield _below(rows, token), paths
    if rows.vocab > 1:
        for token in range(rows.vocab):
            yield _without(rows, token), paths


def _cut(rows: Rows) -> Rows:
    """Drafts one token shorter."""
    shorter = rows.length - 1
    return Rows(
        rows.vocab,
        shorter,
        {w: row for w, row in rows.target.items() if len(w) <= shorter},
        {w: row for w, row in rows.draft.items() if len(w) < shorter},
    )


def _below(rows: Rows, token: int) -> Rows:
    """The instance that starts after `token`."""
    target, draft = (
        {w[1:]: row for w, row in table.items() if w[:1] == (token,)} for table in (rows.target, rows.draft)
    )
    return Rows(rows.vocab, rows.length - 1, target, draft)


def _without(rows: Rows, token: int) -> Rows:
    """The instance without one token; its probability goes to the others in proportion, or evenly if they had none."""

    def table(old: dict[Prefix, Row]) -> dict[Prefix, Row]:
        kept = {w: row for w, row in old.items() if token not in w}
        return {tuple(y - (y > token) for y in w): _dropped(row, token) for w, row in kept.items()}

    return Rows(rows.vocab - 1, rows.length, table(rows.target), table(rows.draft))


def _dropped(row: Row, token: int) -> Row:
    rest = row[:token] + row[token + 1 :]
    total = sum(rest)
    return tuple(entry / total if total else Fraction(1, len(rest)) for entry in rest)


def _simpler(rows: Rows) -> Iterator[Rows]:
    """Candidates: the same rows everywhere, draft = target at a prefix, a row replaced by a simple one everywhere."""
    for target, draft in itertools.product(set(rows.target.values()), set(rows.draft.values())):
        yield _iid(target, draft, rows.length)
    for prefix, row in rows.draft.items():
        yield Rows(rows.vocab, rows.length, rows.target, {**rows.draft, prefix: rows.target[prefix]})
        yield Rows(rows.vocab, rows.length, {**rows.target, prefix: row}, rows.draft)
    for old in {*rows.target.values(), *rows.draft.values()}:
        for new in _rounded(old):
            tables = ({w: new if row == old else row for w, row in t.items()} for t in (rows.target, rows.draft))
            yield Rows(rows.vocab, rows.length, *tables)
    for prefix, row in rows.target.items():
        uniform = tuple(Fraction(1, rows.vocab) for _ in row)
        for new in {uniform, *rows.target.values(), *_rounded(row)} - {row}:
            yield Rows(rows.vocab, rows.length, {**rows.target, prefix: new}, rows.draft)
    for prefix, row in rows.draft.items():
        for new in {*rows.draft.values(), *_rounded(row)} - {row}:
            yield Rows(rows.vocab, rows.length, rows.target, {**rows.draft, prefix: new})


def _rounded(row: Row) -> list[Row]:
    """The row rounded to small denominators, smallest first."""
    candidates = dict.fromkeys(_nearest(row, denominator) for denominator in DENOMINATORS)
    return [candidate for candidate in candidates if candidate != row]


def _nearest(row: Row, denominator: int) -> Row:
    """The row with that denominator by largest remainders."""
    parts = [int(entry * denominator) for entry in row]
    remainders = sorted(range(len(row)), key=lambda y: parts[y] - row[y] * denominator)
    for y in remainders[: denominator - sum(parts)]:
        parts[y] += 1
    return tuple(Fraction(part, denominator) for part in parts)
