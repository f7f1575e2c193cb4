"""The exact law of code that cannot be followed symbolically: concrete coins, and the cells between their breakpoints.

The code gets real numbers for its random ones, chosen by us, so that anything runs: compiled code, kernels,
`torch.where`, `cumprod`, `float(u)`. Its result is a function of the coins u_1, u_2, ... in the order of drawing, and
for a verifier a piecewise constant one. The function is found as a decision tree of axis-aligned cells:

    at coin i, with coins before it in given cells, the unit interval is cut where the result changes, for any of a few
    choices of the later coins ("policies"); each cut is found by bisection down to 2^-26

    a row of exponentials (or a row of uniforms that is turned into Gumbel noise) has no such cells: it is a race,
    argmin E_j / w_j; the ratios of the w are found by bisection on two runners with all others out of the race

    categorical draws fork with their exact probabilities, as in the symbolic route

Two things are then checked: every cut must stay where it is when the coins before it move within their cells, and
random points must have the result that the tree predicts. Where either fails, the point becomes a policy and the tree
is built again. A tree that still fails is no law, and `NotExact` is raised. What comes out is exact to the resolution
of the cuts, but for cells that no policy and no probe met: of probability 0.1, say, with a chance of 0.9^128 = 1e-6.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .lazy import MAX_VALUES, SEED, WAY_OUT, NotExact, Questions
from .sandbox import alive

RESOLUTION = 2.0**-24
CUT = 2.0**-26
GRID = (0.0009765, 0.126, 0.3335, 0.501, 0.667, 0.876, 0.9990235)
LOW, HIGH = 1e-3, 1 - 1e-3
FAR = 60.0
MAX_CELLS = 64
MAX_RUNS = 40_000
REFINEMENTS = 16
PROBES = 128
FIRST_PROBE = 1000
AGAIN = 8
BESIDE = 2.0**-20


@dataclass(frozen=True)
class Event:
    """One random question of a run.

    Attributes:
        kind: "uniform", "race" (a row of exponentials) or "choice".
        size: number of runners of a race, of options of a choice.
        law: probabilities of a choice's options.
        steps: number of values of a uniform in half precision.
    """

    kind: str
    size: int = 1
    law: tuple[float, ...] = ()
    steps: int | None = None


@dataclass(frozen=True)
class Policy:
    """Answers to the events that a node does not fix: for event i a number in (0, 1), and from it a row of them."""

    seed: int
    answers: tuple[Any, ...] = ()

    def answer(self, place: int, event: Event) -> Any:
        """A uniform, a row of exponentials, or an option."""
        if place < len(self.answers) and self.answers[place] is not None:
            given = self.answers[place]
            if event.kind == "race" and isinstance(given, tuple) and len(given) == event.size:
                return given
            if event.kind == "uniform" and isinstance(given, float):
                return given
            if event.kind == "choice" and isinstance(given, int) and given < event.size and event.law[given] > 0:
                return given
        rng = np.random.Generator(np.random.Philox(key=[self.seed, place]))
        if event.kind == "race":
            return tuple(rng.standard_exponential(event.size).tolist())
        u = float(rng.random())
        if self.seed in (0, 1) and event.kind == "uniform":
            return (LOW, HIGH)[self.seed]
        if event.kind == "uniform":
            return u
        return int(np.searchsorted(np.cumsum(event.law), u * sum(event.law) * (1 - 1e-12), side="right"))


class ConcreteQuestions(Questions):
    """The questions of one run, answered with real numbers: first those that are given, then by a policy.

    Args:
        given: answers to the first events; policy: for the others.
        rows: length of a row of uniforms that is treated as a race; 0 if none is.
    """

    concrete = True

    def __init__(self, given: Sequence[Any] = (), policy: Policy | None = None, rows: int = 0) -> None:
        super().__init__()
        self.given, self.policy, self.rows = given, policy or Policy(2), rows
        self.events: list[Event] = []
        self.answers: list[Any] = []
        self.counted: dict[tuple[int, int], float] = {}

    def _next(self, event: Event) -> Any:
        place = len(self.events)
        answer = self.given[place] if place < len(self.given) else self.policy.answer(place, event)
        self.events.append(event)
        self.answers.append(answer)
        return answer

    def ask(self, weights: Sequence[float] | np.ndarray) -> int:
        """See `Questions.ask`."""
        values = [float(weight) for weight in weights]
        total = sum(values)
        if not (0 < total < math.inf) or min(values) < 0:
            raise ValueError(f"a draw was asked for from the weights {values}")
        law = tuple(value / total for value in values)
        return int(self._next(Event("choice", len(law), law))) if max(law) < 1 else law.index(max(law))

    def integer(self, count: int) -> int:
        """See `Questions.integer`."""
        if count > MAX_VALUES:
            raise self.refuse(SEED)
        return self.ask([1.0] * count)

    def numbers(self, basis: str, shape: tuple[int, ...], steps: int | None = None) -> np.ndarray:
        """Uniforms ("u") or exponentials ("e") of a shape."""
        row = shape[-1] if shape else 1
        count = math.prod(shape)
        if row > 1 and (basis == "e" or row == self.rows):
            noise = np.array([self._next(Event("race", row)) for _ in range(count // row)], dtype=float).reshape(shape)
            return noise if basis == "e" else np.exp(-noise)
        drawn = np.array([self._next(Event("uniform", steps=steps)) for _ in range(count)], dtype=float).reshape(shape)
        if steps:
            drawn = np.floor(drawn * steps) / steps
        return drawn if basis == "u" else -np.log(drawn)

    def counter_based(self, keys: Sequence[tuple[int, int]]) -> np.ndarray:
        """See `Questions.counter_based`; a block of new ones is a row, and a race if rows are."""
        new = list(dict.fromkeys(key for key in keys if key not in self.counted))
        if len(new) > 1 and self.rows:
            drawn = np.exp(-np.array(self._next(Event("race", len(new))), dtype=float))
        else:
            drawn = self.numbers("u", (len(new),))
        self.counted.update(zip(new, drawn.tolist(), strict=True))
        return np.array([self.counted[key] for key in keys])

    def uniform(self, steps: int | None = None) -> Any:
        """See `Questions.uniform`."""
        return float(self.numbers("u", (), steps))

    def exponential(self) -> Any:
        """See `Questions.exponential`."""
        return float(self.numbers("e", ()))


Run = Callable[[ConcreteQuestions], Hashable]


class _Missed(Exception):
    """The tree is not right yet: a policy that shows it."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy


@dataclass
class Node:
    """A part of the decision tree.

    Attributes:
        result: at a leaf.
        event: the event that is asked here.
        cuts: ends of the cells of a uniform, from 0 to 1; rates: weights of the runners of a race.
        children: one per cell, runner or option, None where the probability is 0.
    """

    result: Hashable = None
    event: Event | None = None
    cuts: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    children: list[Node | None] = field(default_factory=list)

    def law(self, weight: float, into: dict[Hashable, float]) -> None:
        """Add the probabilities of all leaves, times a weight."""
        if self.event is None:
            into[self.result] = into.get(self.result, 0.0) + weight
            return
        for child, share in zip(self.children, self.shares(), strict=True):
            if child is not None:
                child.law(weight * share, into)

    def shares(self) -> list[float]:
        """Probabilities of the children."""
        assert self.event is not None
        if self.event.kind == "uniform":
            return np.diff(self.cuts).tolist()
        weights = self.rates or self.event.law
        return [weight / sum(weights) for weight in weights]

    def place(self, answer: Any) -> int:
        """The child that an answer leads to."""
        assert self.event is not None
        if self.event.kind == "choice":
            return int(answer)
        if self.event.kind == "uniform":
            return int(np.searchsorted(self.cuts[1:-1], answer, side="right"))
        keys = [value / rate if rate > 0 else math.inf for value, rate in zip(answer, self.rates, strict=True)]
        return int(np.argmin(keys))


class CoinTree:
    """Builds and checks the decision tree of one call.

    Args:
        run: runs the code on given questions, and returns its result.
        rows: see `ConcreteQuestions`.

    Attributes:
        coins: the largest number of coins of a run.
    """

    def __init__(self, run: Run, rows: int = 0) -> None:
        self.run, self.rows = run, rows
        self.policies = [Policy(0), Policy(1), Policy(2)]
        self.runs = 0
        self.coins = 0
        self.memory: dict[Any, tuple[Hashable, tuple[Event, ...]]] = {}

    def law(self, probes: int = PROBES, refinements: int = REFINEMENTS) -> dict[Hashable, float]:
        """The law of the result.

        Raises:
            NotExact: if the result is not constant on cells and races, or needs too many runs.
        """
        for turn in range(refinements):
            try:
                tree = self._node([], [])
                self._probe(tree, range(turn * probes, (turn + 1) * probes))
            except _Missed as missed:
                self.policies.append(missed.policy)
                continue
            law: dict[Hashable, float] = {}
            tree.law(1.0, law)
            return {result: probability for result, probability in law.items() if probability > 0}
        raise NotExact("cannot be treated exactly: its result is not constant on cells of its coins")

    def depends_on_calls(self) -> bool:
        """Whether some of the runs give other results when they are run again."""
        some = list(self.memory.items())[:: max(1, len(self.memory) // AGAIN)]
        return any(
            self.run(ConcreteQuestions(given, policy, self.rows)) != result for (given, policy), (result, _) in some
        )

    # ------------------------------------------------------------------ runs

    def _run(self, given: Sequence[Any], policy: Policy) -> tuple[Hashable, tuple[Event, ...]]:
        key = (tuple(given), policy)
        if key not in self.memory:
            self.runs += 1
            if self.runs > MAX_RUNS:
                raise NotExact(f"cannot be treated exactly: more than {MAX_RUNS} runs of one call")
            alive()
            questions = ConcreteQuestions(given, policy, self.rows)
            result = self.run(questions)
            if questions.refusal:
                raise questions.refusal
            self.memory[key] = result, tuple(questions.events)
            self.coins = max(self.coins, len(questions.events))
        return self.memory[key]

    def _sight(self, given: Sequence[Any]) -> tuple[Any, ...]:
        """What the policies see behind the given answers."""
        return tuple(self._seen(given, policy) for policy in self.policies)

    def _seen(self, given: Sequence[Any], policy: Policy) -> tuple[Any, ...]:
        result, events = self._run(given, policy)
        later = events[len(given) :]
        return result, tuple((e.kind, e.size, tuple(round(p, 6) for p in e.law)) for e in later)

    # ------------------------------------------------------------------ the tree

    def _node(self, given: list[Any], spans: list[Any]) -> Node:
        """The tree behind given answers; `spans` are their cells, and the weights of races."""
        asked = [self._run(given, policy)[1] for policy in self.policies]
        if len({events[: len(given) + 1] for events in asked}) > 1:
            raise NotExact("cannot be treated exactly: after the same answers it asked another question than before")
        if len(asked[0]) <= len(given):
            return Node(result=self._run(given, self.policies[0])[0])
        event = asked[0][len(given)]
        if event.kind == "choice":
            options = [self._node([*given, i], [*spans, None]) if p > 0 else None for i, p in enumerate(event.law)]
            return Node(event=event, children=options)
        if event.kind == "race":
            rates = self._rates(given, event.size)
            rows = [_won(i, rates) if rate > 0 else None for i, rate in enumerate(rates)]
            below = [
                None if row is None else self._node([*given, row], [*spans, (i, rates)]) for i, row in enumerate(rows)
            ]
            return Node(event=event, rates=rates, children=below)
        cuts = (0.0, *self._cuts(given), 1.0)
        self._steady(given, spans, cuts[1:-1])
        cells = list(itertools.pairwise(cuts))
        return Node(
            event=event,
            cuts=cuts,
            children=[self._node([*given, (low + high) / 2], [*spans, (low, high)]) for low, high in cells],
        )

    def _steady(self, given: list[Any], spans: list[Any], cuts: Sequence[float]) -> None:
        """Check that the cuts are where they are for other answers of the same cells: what is no cell moves them."""
        for edge in (0.03, 0.97):
            other = [_moved(value, span, edge) for value, span in zip(given, spans, strict=True)]
            for cut, beside in itertools.product(cuts if other != given else (), (-BESIDE, BESIDE)):
                if not 0 < cut + beside < 1:
                    continue
                for policy in self.policies:
                    if self._seen([*other, cut + beside], policy) != self._seen([*given, cut + beside], policy):
                        events = self._run([*other, cut + beside], policy)[1]
                        tail = [policy.answer(i, event) for i, event in enumerate(events)][len(given) + 1 :]
                        raise _Missed(Policy(policy.seed, (*other, cut + beside, *tail)))

    def _cuts(self, given: list[Any]) -> list[float]:
        """Where the sight changes along the next coin."""
        extra = [float(p.answers[len(given)]) for p in self.policies if _has_uniform(p, len(given))]
        grid = sorted({RESOLUTION, *GRID, *extra, 1 - RESOLUTION})
        cuts = [cut for low, high in itertools.pairwise(grid) for cut in self._between(given, low, high)]
        checked = 0
        while checked < len(cuts) + 1 <= MAX_CELLS:
            low, high = [0.0, *cuts][checked], [*cuts, 1.0][checked]
            inside = next((point for point in grid if low < point < high), None)
            middle = (low + high) / 2
            more = [] if inside is None else self._between(given, *sorted((inside, middle)))
            cuts = sorted({*cuts, *more})
            checked += not more
        if len(cuts) > MAX_CELLS:
            raise NotExact("cannot be treated exactly: its result is not constant on cells of its coins")
        return cuts

    def _between(self, given: list[Any], low: float, high: float) -> list[float]:
        cuts: list[float] = []
        end = self._sight([*given, high])
        start = self._sight([*given, low])
        while start != end and len(cuts) <= MAX_CELLS:
            policy = next(i for i, (a, b) in enumerate(zip(start, end, strict=True)) if a != b)
            below, above = low, high
            while above - below > CUT:
                middle = (below + above) / 2
                if self._seen([*given, middle], self.policies[policy]) == start[policy]:
                    below = middle
                else:
                    above = middle
            cuts.append((below + above) / 2)
            low, start = above, self._sight([*given, above])
        return sorted(set(cuts))

    def _rates(self, given: list[Any], size: int) -> tuple[float, ...]:
        """Weights w of a race argmin E_j / w_j; even ones if the row does not matter."""
        alone = [self._sight([*given, _row(size, {j: 1.0})]) for j in range(size)]
        if len(set(alone)) == 1:
            return (1.0,) * size
        reference = max(range(size), key=lambda j: sum(sight != alone[j] for sight in alone))
        rates = [0.0] * size
        rates[reference] = 1.0
        for j in range(size):
            if j != reference and alone[j] != alone[reference]:
                rates[j] = self._ratio(given, size, reference, j, alone[reference])
        known = max((j for j in range(size) if j != reference), key=lambda j: rates[j])
        for j in range(size):
            if j != reference and alone[j] == alone[reference] and rates[known] > 0:
                rates[j] = rates[known] * self._ratio(given, size, known, j, alone[known])
        return tuple(rates)

    def _ratio(self, given: list[Any], size: int, one: int, other: int, sight: Any) -> float:
        """w_other / w_one: the value of E_other, beside E_one = 1, at which `one` begins to win."""

        def one_wins(value: float) -> bool:
            return self._sight([*given, _row(size, {one: 1.0, other: value})]) == sight

        low, high = math.log(FAR) - 40 * math.log(2), math.log(FAR)
        if one_wins(math.exp(low)):
            return 0.0
        while high - low > CUT:
            middle = (low + high) / 2
            low, high = (low, middle) if one_wins(math.exp(middle)) else (middle, high)
        return math.exp((low + high) / 2)

    # ------------------------------------------------------------------ probes

    def _probe(self, tree: Node, numbers: range) -> None:
        """Compare random runs with the tree.

        Raises:
            NotExact: if a run gives another result when it is run again.
        """
        for number in numbers:
            policy = Policy(FIRST_PROBE + number)
            questions = ConcreteQuestions((), policy, self.rows)
            result = self.run(questions)
            if number % 8 == 0 and self.run(ConcreteQuestions((), policy, self.rows)) != result:
                raise NotExact(f"cannot be treated exactly: it gave different results on the same coins. {WAY_OUT}")
            node: Node | None = tree
            near = False
            for answer in questions.answers:
                if node is None or node.event is None:
                    break
                near = near or _near(node, answer)
                node = node.children[node.place(answer)]
            if not near and (node is None or node.event is not None or node.result != result):
                raise _Missed(Policy(policy.seed, tuple(questions.answers)))


def _moved(value: Any, span: Any, edge: float) -> Any:
    """Another answer of the same cell, or with the same winner."""
    if span is None:
        return value
    if isinstance(value, tuple):
        winner, rates = span
        return tuple((0.4 if j == winner else 1 + edge * (j + 1)) * (rate or 1.0) for j, rate in enumerate(rates))
    return span[0] + edge * (span[1] - span[0])


def _has_uniform(policy: Policy, place: int) -> bool:
    return place < len(policy.answers) and isinstance(policy.answers[place], float)


def _near(node: Node, answer: Any) -> bool:
    """Whether an answer is too close to a cut to tell its side."""
    assert node.event is not None
    if node.event.kind == "uniform":
        return min((abs(answer - cut) for cut in node.cuts[1:-1]), default=1.0) < 4 * RESOLUTION
    if node.event.kind == "race":
        keys = sorted(value / rate for value, rate in zip(answer, node.rates, strict=True) if rate > 0)
        return len(keys) > 1 and keys[1] - keys[0] < 1e-5 * keys[1]
    return False


def _row(size: int, values: dict[int, float]) -> tuple[float, ...]:
    """A row of exponentials in which all others are out of the race."""
    return tuple(values.get(j, FAR * 2.0**40) for j in range(size))


def _won(winner: int, rates: Sequence[float]) -> tuple[float, ...]:
    """A row that one runner wins by far."""
    return tuple((0.25 if j == winner else 16.0) * (rate or 1.0) for j, rate in enumerate(rates))
