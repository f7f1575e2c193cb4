"""Exact conditional laws on large vocabularies: what is decided next, given the drafts and the decisions before.

A draw over 32000 tokens cannot be followed outcome by outcome. Its law is known all the same where the code asks for it
as a whole: the weights of a categorical draw or of a race of exponentials, or the thresholds that one uniform is
compared with. Such a *wide* question is answered once and its law is kept as a row; decisions with few answers fork as
always. Two other answers are tried, to see that the emitted token is the answer (up to a constant shift): then

    Pr(kept w, then y | draft) = sum over the decisions that keep w of Pr(decisions) * row(y)

is exact. What is not of this form raises `NotExact`.

Letters: w kept tokens, y the token behind them, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specbound.theory.prefix_tree import Prefix

from .interception import Interception
from .lazy import NEGLIGIBLE, Decision, NotExact, Questions

NARROW = 64
MAX_RUNS = 2000


@dataclass
class Wide:
    """A question with many answers: its law and the answer given."""

    law: np.ndarray
    answer: int


class TooWide(BaseException):
    """A uniform was compared with many thresholds and was followed one by one so far."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index


class WideQuestions(Questions):
    """Questions of which those with more than 64 answers are answered once.

    Args:
        decisions: of the narrow ones.
        picks: answers of the wide ones, by their number; the likeliest where none is given.
        uniforms: thresholds that each uniform was seen to be compared with, of those that are wide.
    """

    def __init__(
        self, decisions: tuple[Decision, ...], picks: Mapping[int, int], uniforms: Mapping[int, np.ndarray | None]
    ) -> None:
        super().__init__(decisions)
        self.picks, self.uniforms = picks, uniforms
        self.wide: list[Wide] = []
        self.values: dict[int, float] = {}
        self.thresholds: dict[int, list[float]] = defaultdict(list)
        self.raced: set[int] = set()

    def ask(self, weights: Sequence[float] | np.ndarray) -> int:
        """See `Questions.ask`."""
        if len(weights) <= NARROW:
            return super().ask(weights)
        law = np.asarray(weights, dtype=float)
        if not 0 < law.sum() < np.inf or law.min() < 0:
            raise ValueError("a draw was asked for from weights that are negative, not finite or all zero")
        return self._answered(law / law.sum())

    def first(self, rates: Mapping[int, float]) -> int:
        """See `Questions.first`; the answers are the numbers of the exponentials."""
        if len(rates) <= NARROW:
            return super().first(rates)
        if self.raced & rates.keys() or any(self.intervals[i] != (0.0, 1.0) for i in rates):
            raise self.refuse("many random numbers raced twice")
        self.raced |= rates.keys()
        start = min(rates)
        law = np.zeros(max(rates) - start + 1)
        law[[i - start for i in rates]] = list(rates.values())
        return start + self._answered(law / law.sum())

    def less(self, index: int, threshold: float, strict: bool) -> bool:
        """See `Questions.less`; a wide uniform has a value, in the middle of the cell that is picked."""
        seen = self.thresholds[index]
        seen.append(threshold)
        if index not in self.uniforms:
            if len(seen) > NARROW:
                raise TooWide(index)
            return super().less(index, threshold, strict)
        return self._value(index) < threshold

    def _value(self, index: int) -> float:
        known = self.uniforms[index]
        if known is None:
            return 0.5
        if index not in self.values:
            ends = np.clip(np.concatenate([[0.0], known, [1.0]]), 0.0, 1.0)
            law = np.diff(ends)
            if law.min() < -NEGLIGIBLE:
                raise self.refuse("a random number was compared with many numbers that do not rise")
            cell = self._answered(law.clip(0.0))
            self.values[index] = float(ends[cell : cell + 2].mean())
        return self.values[index]

    def _answered(self, law: np.ndarray) -> int:
        likely = np.flatnonzero(law > NEGLIGIBLE)
        if len(likely) == 1:
            return int(likely[0])
        answer = self.picks.get(len(self.wide), int(law.argmax()))
        self.wide.append(Wide(law, answer))
        return answer


Rows = dict[Prefix, np.ndarray]


def emitted_rows(interception: Interception, call: Callable[[], Prefix], vocab: int) -> Rows:
    """kept prefix w -> [V], Pr(w is kept, then y) for one draft.

    Raises:
        NotExact: if the emitted token is not the answer of one wide question, or there are too many decisions.
    """
    rows: Rows = defaultdict(lambda: np.zeros(vocab))
    pending: list[tuple[Decision, ...]] = [()]
    for _ in range(MAX_RUNS):
        if not pending:
            return dict(rows)
        decisions = pending.pop()
        block, questions, run = _wide_run(interception, call, decisions)
        pending += questions.alternatives
        row = _row_of(block, questions, run, vocab)
        rows[block[:-1]] += questions.weight * row
    raise NotExact(f"cannot be treated exactly: more than {MAX_RUNS} decisions of one call")


Run = Callable[[Mapping[int, int]], tuple[Prefix, WideQuestions]]


def _wide_run(
    interception: Interception, call: Callable[[], Prefix], decisions: tuple[Decision, ...]
) -> tuple[Prefix, WideQuestions, Run]:
    """A run, with a function to run it again with other answers to its wide questions."""
    uniforms: dict[int, np.ndarray | None] = {}

    def again(picks: Mapping[int, int]) -> tuple[Prefix, WideQuestions]:
        questions = WideQuestions(decisions, picks, uniforms)
        return interception.answered(call, questions), questions

    while True:
        try:
            block, questions = again({})
        except TooWide as wide:
            uniforms[wide.index] = None
            continue
        new = [index for index, known in uniforms.items() if known is None]
        if not new:
            return block, questions, again
        uniforms.update({index: np.array(questions.thresholds[index]) for index in new})


def _row_of(block: Prefix, questions: WideQuestions, run: Run, vocab: int) -> np.ndarray:
    """The law of the token behind the kept ones, given the narrow decisions."""
    deciding = [number for number in range(len(questions.wide)) if _changes(block, questions, run, number)]
    row = np.zeros(vocab)
    if not deciding:
        row[block[-1]] = 1.0
        return row
    if len(deciding) > 1:
        raise NotExact("cannot be treated exactly: the emitted token depends on several draws over many tokens")
    wide = questions.wide[deciding[0]]
    shift = block[-1] - wide.answer
    for answer in _others(wide):
        if run({deciding[0]: answer})[0] != (*block[:-1], answer + shift):
            raise NotExact("cannot be treated exactly: the emitted token is not the one that was drawn")
    tokens = np.flatnonzero(wide.law > 0) + shift
    if tokens.min() < 0 or tokens.max() >= vocab:
        beyond = wide.law[wide.law > 0][(tokens < 0) | (tokens >= vocab)].sum()
        if beyond > NEGLIGIBLE:
            raise NotExact("cannot be treated exactly: a draw over many tokens has answers beyond the vocabulary")
    inside = (tokens >= 0) & (tokens < vocab)
    row[tokens[inside]] = wide.law[tokens[inside] - shift]
    return row


def _changes(block: Prefix, questions: WideQuestions, run: Run, number: int) -> bool:
    return any(run({number: answer})[0] != block for answer in _others(questions.wide[number])[:1])


def _others(wide: Wide) -> list[int]:
    """Two other answers: the likeliest of the rest, and the last possible one."""
    rest = wide.law.copy()
    rest[wide.answer] = 0.0
    return list(dict.fromkeys([int(rest.argmax()), int(np.flatnonzero(rest > NEGLIGIBLE)[-1])]))
