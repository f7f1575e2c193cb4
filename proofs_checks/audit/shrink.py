"""Minimal counterexamples: the smallest and simplest instance on which a verifier still goes wrong.

From a failing case the number of paths, the draft length and the vocabulary are made smaller one by one, then the
probabilities simple fractions, and the same failure must remain at every step. First a short list of textbook
instances (the same two rows at every prefix, denominators 2 to 6) is tried at every smaller size, because an
instance from it is easier to follow than any other.

Letters: V vocabulary size, L draft length, K paths, p target row, q draft row.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from specbound.theory.contexts import ContextModel, ModelPair
from specbound.theory.numbers import Number, to_array
from specbound.theory.prefix_tree import PrefixTree

Row = tuple[Fraction, ...]
Fails = Callable[[PrefixTree, int], bool]
Measure = tuple[int, ...]

DENOMINATORS = (1, 2, 3, 4, 6, 8, 10, 12, 24, 60, 120, 720)
MAX_TRIALS = 400
PATIENCE = 60.0


@dataclass(frozen=True, eq=False)
class Case:
    """An instance: a pair of models in fractions, looked at `length` tokens deep from its start.

    Contexts that no prefix of that length reaches do not count.
    """

    pair: ModelPair
    length: int

    def tree(self) -> PrefixTree:
        """The prefix tree, in fractions."""
        return PrefixTree.unrolled(self.pair, self.length)

    @property
    def vocab(self) -> int:
        """V."""
        return self.pair.vocab

    @cached_property
    def target(self) -> dict[int, Row]:
        """The target's rows in use, by context; the bonus token's too."""
        return {context: _fractions(self.pair.target.row(context)) for context in self._reached(self.length)}

    @cached_property
    def draft(self) -> dict[int, Row]:
        """The draft's rows in use, by context."""
        return {context: _fractions(self.pair.draft.row(context)) for context in self._reached(self.length - 1)}

    def _reached(self, depth: int) -> list[int]:
        """Contexts of the prefixes of length 0..depth, in order of first appearance."""
        found = layer = [self.pair.start]
        for _ in range(depth):
            layer = list(dict.fromkeys(after for context in layer for after in self.pair.target.following[context]))
            found = list(dict.fromkeys([*found, *layer]))
        return found

    def with_rows(self, target: Mapping[int, Row], draft: Mapping[int, Row]) -> Case:
        """The same case with these rows in these contexts."""
        models = []
        for model, rows in ((self.pair.target, target), (self.pair.draft, draft)):
            table = model.rows.copy()
            for context, row in rows.items():
                table[context] = row
            models.append(ContextModel(table, model.successor, model.start))
        return Case(ModelPair(*models), self.length)

    @property
    def measure(self) -> Measure:
        """What counts as simpler: different rows, contexts where draft and target differ, sizes of denominators."""
        rows = {*self.target.values(), *self.draft.values()}
        different = sum(self.target[context] != row for context, row in self.draft.items())
        weight = sum(entry.denominator + abs(2 * entry.numerator - entry.denominator) for row in rows for entry in row)
        return len(set(self.target.values())) + len(set(self.draft.values())), different, weight


def case_of(tree: PrefixTree) -> Case:
    """A full V-ary tree as a case; floats are taken at their exact binary value and rescaled to sum to 1."""
    for node in range(tree.leaves.start):
        children = tree.children[node]
        if children.stop - children.start != tree.vocab:
            raise ValueError(f"node {node} has {children.stop - children.start} children; shrinking wants full trees")
    pair = ModelPair.from_tree(tree)
    models = []
    for model in (pair.target, pair.draft):
        table = to_array([_normalised(row) for row in model.table])
        models.append(ContextModel(table, model.successor, model.start))
    return Case(ModelPair(*models), tree.length)


def _normalised(row: Sequence[Number]) -> Row:
    entries = _fractions(row)
    total = sum(entries)
    return tuple(entry / total for entry in entries) if total else entries


def _fractions(row: Sequence[Number]) -> Row:
    return tuple(Fraction(entry) for entry in row)


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
            (smaller sizes, textbook instances, all rows rounded alike, simpler rows), and not after a minute.
    """
    search = _Search(fails, max_trials)
    case = case_of(tree)
    case, paths = search.smaller(case, paths)
    simple = search.textbook(case, paths)
    if simple is None:
        simple = search.simpler(search.rounded(case, paths), paths), paths
    return Shrunk(simple[0].tree(), simple[1], search.trials)


class _Search:
    """Counts trials, over all phases and within one."""

    def __init__(self, fails: Fails, max_trials: int) -> None:
        self.fails, self.max_trials, self.trials, self.left = fails, max_trials, 0, max_trials
        self.until = time.monotonic() + PATIENCE

    def failing(self, case: Case, paths: int) -> bool:
        if self.left == 0 or time.monotonic() > self.until:
            return False
        self.trials += 1
        self.left -= 1
        return self.fails(case.tree(), paths)

    def smaller(self, case: Case, paths: int) -> tuple[Case, int]:
        """Fewer paths, shorter drafts, fewer tokens, as long as any of these still fails."""
        while True:
            for candidate, count in _smaller(case, paths):
                if self.failing(candidate, count):
                    case, paths = candidate, count
                    break
            else:
                return case, paths

    def textbook(self, case: Case, paths: int) -> tuple[Case, int] | None:
        """The first failing textbook instance of this size or smaller."""
        self.left = self.max_trials
        sizes = itertools.product(range(1, paths + 1), range(1, case.length + 1), range(1, case.vocab + 1))
        for k, length, vocab in sorted(sizes, key=lambda size: (size[0] * size[1], size[2])):
            for target, draft in textbook_pairs(vocab):
                candidate = _iid(target, draft, length)
                if self.failing(candidate, k):
                    return candidate, k
        return None

    def rounded(self, case: Case, paths: int) -> Case:
        """All rows rounded to one denominator, the smallest with which the case still fails."""
        self.left = self.max_trials
        for denominator in DENOMINATORS:
            target, draft = (
                {c: _nearest(row, denominator) for c, row in rows.items()} for rows in (case.target, case.draft)
            )
            candidate = case.with_rows(target, draft)
            if self.failing(candidate, paths):
                return candidate
        return case

    def simpler(self, case: Case, paths: int) -> Case:
        """The same size with simpler rows, until no move helps."""
        self.left = self.max_trials
        improved = True
        while improved:
            improved = False
            for candidate in _simpler(case):
                if candidate.measure < case.measure and self.failing(candidate, paths):
                    case, improved = candidate, True
                    break
        return case


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


def _iid(target: Row, draft: Row, length: int) -> Case:
    return Case(ModelPair.iid(target, draft), length)


def _smaller(case: Case, paths: int) -> Iterator[tuple[Case, int]]:
    if paths > 1:
        yield case, paths - 1
    if case.length > 1:
        yield Case(case.pair, case.length - 1), paths
        for token in range(case.vocab):
            yield _below(case, token), paths
    if case.vocab > 1:
        for token in range(case.vocab):
            yield _without(case, token), paths


def _below(case: Case, token: int) -> Case:
    """The instance that starts after `token`."""
    pair = case.pair
    start = pair.target.following[pair.start][token]
    target, draft = (ContextModel(model.rows, model.successor, start) for model in (pair.target, pair.draft))
    return Case(ModelPair(target, draft), case.length - 1)


def _without(case: Case, token: int) -> Case:
    """The instance without one token; its probability goes to the others in proportion, or evenly if they had none."""
    models = []
    for model in (case.pair.target, case.pair.draft):
        table = to_array([_dropped(_fractions(row), token) if any(row) else row[1:] for row in model.table])
        models.append(ContextModel(table, np.delete(case.pair.successor, token, axis=1), model.start))
    return Case(ModelPair(*models), case.length)


def _dropped(row: Row, token: int) -> Row:
    rest = row[:token] + row[token + 1 :]
    total = sum(rest)
    return tuple(entry / total if total else Fraction(1, len(rest)) for entry in rest)


def _simpler(case: Case) -> Iterator[Case]:
    """Candidates: the same rows everywhere, draft = target in a context, a row replaced by a simple one everywhere."""
    for target, draft in itertools.product(set(case.target.values()), set(case.draft.values())):
        yield _iid(target, draft, case.length)
    for context, row in case.draft.items():
        yield case.with_rows({}, {context: case.target[context]})
        yield case.with_rows({context: row}, {})
    for old in {*case.target.values(), *case.draft.values()}:
        for new in _rounded(old):
            yield case.with_rows(
                {context: new for context, row in case.target.items() if row == old},
                {context: new for context, row in case.draft.items() if row == old},
            )
    for context, row in case.target.items():
        uniform = tuple(Fraction(1, case.vocab) for _ in row)
        for new in {uniform, *case.target.values(), *_rounded(row)} - {row}:
            yield case.with_rows({context: new}, {})
    for context, row in case.draft.items():
        for new in {*case.draft.values(), *_rounded(row)} - {row}:
            yield case.with_rows({}, {context: new})


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
