"""Random numbers that are never drawn: a uniform stays an interval, and every comparison forks with its exact
probability.

A `Lazy` stands for a * X(U) + b with U uniform on (0, 1) and X one of a few monotone functions of U. Comparing it
with a number asks `Questions` whether U lies below a threshold; the answer narrows U's interval, so that several
comparisons against one uniform are answered consistently. A use that cannot be treated this way raises `NotExact`.

Letters: U a uniform, E = -log U (or -log(1 - U)) a standard exponential.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .simplex import Cone, share

NEGLIGIBLE = 1e-13
SAME = 1e-12
UNLIKELY = 1e-16
MAX_VALUES = 100_000
SEED = f"an integer of more than {MAX_VALUES} values was drawn, which is a seed"


class Unlikely(BaseException):
    """A run became too unlikely to go on: a loop of rejections, say."""


WAY_OUT = "Use the sampled audit for this code"


class NotExact(Exception):
    """The code used a random number in a way whose law cannot be enumerated."""


class Decision(NamedTuple):
    """A recorded answer and the probability it had when it was first met."""

    answer: int
    probability: float


class Questions:
    """The random questions of one run: recorded decisions first, then the first possible answer.

    Attributes:
        weight: probability of the answers given so far.
        alternatives: for each new question the decision strings not taken, to be replayed.
        refusal: the first use that cannot be treated exactly, also if the code swallowed the exception.
        steps: per random number its count of equally likely values, None where it is taken as continuous.
        concrete: whether the numbers are real ones (see `coins`).
        cones: per exponential that was compared with others, what these comparisons said.
        derived: integers drawn by a kernel that were not yet used as seeds (see `triton_coins`).
    """

    concrete = False

    def __init__(self, decisions: tuple[Decision, ...] = ()) -> None:
        self.decisions = decisions
        self.asked = 0
        self.weight = 1.0
        self.alternatives: list[tuple[Decision, ...]] = []
        self.refusal: NotExact | None = None
        self.intervals: list[tuple[float, float]] = []
        self.steps: list[int | None] = []
        self.cones: dict[int, Cone] = {}
        self.turned: dict[int, bool] = {}
        self.derived: set[int] = set()

    def ask(self, weights: Sequence[float] | np.ndarray) -> int:
        """An index drawn with probability weights / their sum, the likeliest first; below 1e-13 they are impossible.

        Raises:
            ValueError: if the weights are negative, not finite or all zero, as the real samplers do.
            NotExact: if the same earlier answers led to another question before.
        """
        values = [float(weight) for weight in weights]
        total = sum(values)
        if not (0 < total < math.inf) or min(values) < 0:
            raise ValueError(f"a draw was asked for from the weights {values}")
        law = [value / total for value in values]
        options = [place for place, probability in enumerate(law) if probability > NEGLIGIBLE]
        if len(options) == 1:
            return options[0]
        if self.asked < len(self.decisions):
            decision = self.decisions[self.asked]
            if decision.answer >= len(law) or abs(law[decision.answer] - decision.probability) > SAME:
                raise self.refuse(
                    "after the same answers it asked another question than before; "
                    "it keeps state between calls or uses randomness that is not intercepted"
                )
        else:
            made = [Decision(option, law[option]) for option in sorted(options, key=lambda option: -law[option])]
            self.alternatives += [(*self.decisions, other) for other in made[1:]]
            decision = made[0]
            self.decisions = (*self.decisions, decision)
        self.asked += 1
        self.weight *= decision.probability
        if self.weight < UNLIKELY:
            raise Unlikely
        return decision.answer

    def coin(self, probability: float) -> bool:
        """True with the given probability, clipped to [0, 1]; NaN fails like a comparison with NaN."""
        clipped = min(max(float(probability), 0.0), 1.0) if probability == probability else 0.0
        return self.ask([1 - clipped, clipped]) == 1

    def integer(self, count: int) -> int:
        """One of 0..count-1, evenly.

        Raises:
            NotExact: for more than 1e5 values: such a number is a seed, and what is drawn with it is hidden.
        """
        if count > MAX_VALUES:
            raise self.refuse(SEED)
        return self.ask([1.0] * count)

    def uniform(self, steps: int | None = None) -> Lazy:
        """A fresh uniform on (0, 1), or on {0, 1/steps, ..., 1 - 1/steps}."""
        return self._fresh("u", steps)

    def exponential(self) -> Lazy:
        """A fresh standard exponential."""
        return self._fresh("e", None)

    def _fresh(self, basis: str, steps: int | None) -> Lazy:
        self.intervals.append((0.0, 1.0))
        self.steps.append(steps)
        return Lazy(self, len(self.intervals) - 1, basis, 1.0, 0.0)

    def less(self, index: int, threshold: float, strict: bool) -> bool:
        """Whether uniform number `index` lies below the threshold (or at it, if not strict); narrows its interval."""
        if threshold <= 0 or threshold >= 1:
            return threshold >= 1
        if index in self.cones:
            raise self.refuse("a random number was used again after an argmax or argmin over it")
        low, high = self.intervals[index]
        steps = self.steps[index]
        if steps is not None and math.isfinite(threshold):
            threshold = (math.ceil(threshold * steps) if strict else math.floor(threshold * steps) + 1) / steps
        if threshold <= low or threshold >= high:
            return threshold >= high
        below = self.coin((threshold - low) / (high - low))
        self.intervals[index] = (low, threshold) if below else (threshold, high)
        return below

    def first(self, rates: Mapping[int, float]) -> int:
        """Which of the exponentials E_i / rates[i] is the smallest, rates of 0 apart; i is the answer.

        On fresh exponentials Pr(i) = rates[i] / sum of rates; on exponentials that were compared before, the share of
        their polytope in which E_i / rates[i] is the smallest (see `simplex`).
        """
        runners = [i for i, rate in rates.items() if rate > 0]
        if any(self.intervals[i] != (0.0, 1.0) or self.steps[i] is not None for i in rates):
            raise self.refuse("an argmax or argmin over random numbers that were compared with numbers before")
        cone = Cone.joined([self.cones.get(i, Cone((i,))) for i in rates])
        wins = [cone.where_first(runner, rates) for runner in runners]
        if any(i in self.cones for i in rates):
            whole = share(cone)
            weights = [share(win) / whole for win in wins]
        else:
            weights = [rates[runner] for runner in runners]
        place = self.ask(weights)
        for i in wins[place].names:
            self.cones[i] = wins[place]
        return runners[place]

    def mixed(self, turned: Mapping[int, bool]) -> bool:
        """Whether -log U and -log(1 - U) of one U would race; `turned` says by index which of them is the second."""
        return any(self.turned.setdefault(index, second) != second for index, second in turned.items())

    def counter_based(self, keys: Sequence[tuple[int, int]]) -> np.ndarray:
        """Uniforms of a counter-based generator, one for each different (seed, offset).

        Raises:
            NotExact: unless the numbers are real ones.
        """
        raise self.refuse("a Triton kernel drew random numbers")

    def refuse(self, reason: str) -> NotExact:
        """The exception to raise; remembered, because the code under audit may catch it."""
        error = NotExact(f"cannot be treated exactly: {reason}. {WAY_OUT}")
        self.refusal = self.refusal or error
        return error


@dataclass(frozen=True)
class Basis:
    """A monotone function X(U): its inverse, whether it rises in U, and the basis of 1/X and log X if there is one."""

    inverse: Callable[[float], float]
    rising: bool
    reciprocal: str = ""
    logarithm: str = ""


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))


def _one_over(x: float) -> float:
    return math.inf if x <= 0 else 1 / x


BASES = {
    "u": Basis(lambda x: x, True, "1/u"),
    "1/u": Basis(_one_over, False, "u"),
    "e": Basis(lambda x: _exp(-max(x, 0.0)), False, "1/e", "log e"),
    "1/e": Basis(lambda x: _exp(-_one_over(x)), True, "e"),
    "log e": Basis(lambda x: _exp(-_exp(x)), False),
    "e'": Basis(lambda x: -math.expm1(-max(x, 0.0)), True, "1/e'", "log e'"),
    "1/e'": Basis(lambda x: -math.expm1(-_one_over(x)), False, "e'"),
    "log e'": Basis(lambda x: -math.expm1(-_exp(x)), True),
}


class Lazy:
    """scale * X(U) + shift, U uniform on (0, 1) narrowed by the comparisons made so far."""

    __slots__ = ("basis", "index", "questions", "scale", "shift")

    def __init__(self, questions: Questions, index: int, basis: str, scale: float, shift: float) -> None:
        self.questions, self.index, self.basis, self.scale, self.shift = questions, index, basis, scale, shift

    def _with(self, basis: str, scale: float, shift: float) -> Lazy:
        return Lazy(self.questions, self.index, basis, scale, shift)

    def below(self, bound: float, strict: bool = True) -> bool:
        """Whether the value is below `bound` (or at it, if not strict): one question about U."""
        if math.isnan(bound):
            return False
        basis = BASES[self.basis]
        rising = basis.rising == (self.scale > 0)
        threshold = basis.inverse((bound - self.shift) / self.scale)
        return self.questions.less(self.index, threshold, strict == rising) == rising

    # ------------------------------------------------------------------ comparisons

    def __lt__(self, other: Any) -> Any:
        return self._compare(other, operator.lt, below=True, strict=True)

    def __le__(self, other: Any) -> Any:
        return self._compare(other, operator.le, below=True, strict=False)

    def __gt__(self, other: Any) -> Any:
        return self._compare(other, operator.gt, below=False, strict=False)

    def __ge__(self, other: Any) -> Any:
        return self._compare(other, operator.ge, below=False, strict=True)

    def _compare(self, other: Any, function: Callable[[Any, Any], Any], below: bool, strict: bool) -> Any:
        if other is self:
            return not strict if below else strict
        if isinstance(other, Lazy):
            return (race([self, other], largest=False) == 0) == below
        if hasattr(other, "__torch_function__"):
            return function(self._as_tensor(other), other)
        if not isinstance(other, numbers.Real):
            return NotImplemented
        bound = float(other)
        return False if math.isnan(bound) else self.below(bound, strict) == below

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        return True

    # ------------------------------------------------------------------ arithmetic with constants

    def __add__(self, other: Any) -> Any:
        if hasattr(other, "__torch_function__"):
            return self._as_tensor(other) + other
        if not self._constant(other):
            return NotImplemented
        term = float(other)
        return self._with(self.basis, self.scale, self.shift + term) if math.isfinite(term) else term

    def __mul__(self, other: Any) -> Any:
        if hasattr(other, "__torch_function__"):
            return self._as_tensor(other) * other
        if not self._constant(other):
            return NotImplemented
        factor = float(other)
        if factor == 0 or not math.isfinite(factor):
            return factor * self.shift if factor == 0 else math.copysign(math.inf, self._sign() * factor)
        return self._with(self.basis, self.scale * factor, self.shift * factor)

    def __truediv__(self, other: Any) -> Any:
        if hasattr(other, "__torch_function__"):
            return self._as_tensor(other) / other
        if not self._constant(other):
            return NotImplemented
        if float(other) == 0:
            raise ZeroDivisionError("float division by zero")
        divisor = float(other)
        return 0.0 if math.isinf(divisor) else self._with(self.basis, self.scale / divisor, self.shift / divisor)

    def __rtruediv__(self, other: Any) -> Any:
        if hasattr(other, "__torch_function__"):
            return other / self._as_tensor(other)
        if not self._constant(other):
            return NotImplemented
        if float(other) == 0:
            return 0.0
        if self.shift != 0 or not BASES[self.basis].reciprocal:
            raise self.questions.refuse("the reciprocal of a shifted random number was taken")
        return self._with(BASES[self.basis].reciprocal, float(other) / self.scale, 0.0)

    def __sub__(self, other: Any) -> Any:
        tensor = hasattr(other, "__torch_function__")
        return self + (-other) if tensor or self._constant(other) else NotImplemented

    def __rsub__(self, other: Any) -> Any:
        tensor = hasattr(other, "__torch_function__")
        return -self + other if tensor or self._constant(other) else NotImplemented

    def __neg__(self) -> Lazy:
        return self._with(self.basis, -self.scale, -self.shift)

    def __pos__(self) -> Lazy:
        return self

    __radd__, __rmul__ = __add__, __mul__

    def __abs__(self) -> Lazy:
        return -self if self.below(0.0) else self

    def __pow__(self, exponent: Any) -> Any:
        if exponent == 1:
            return self
        if exponent == -1:
            return 1 / self
        raise self.questions.refuse(f"a random number was raised to the power {exponent!r}")

    def __floor__(self) -> int:
        if self.basis != "u":
            raise self.questions.refuse("an unbounded random number was rounded to an integer")
        ends = sorted((self.shift, self.shift + self.scale))
        whole = math.floor(ends[0])
        while whole + 1 < ends[1] and not self.below(whole + 1):
            whole += 1
        return whole

    def __int__(self) -> int:
        return -math.floor(-self) if self.below(0.0) else math.floor(self)

    __trunc__ = __int__

    def _sign(self) -> float:
        return -1.0 if self.below(0.0) else 1.0

    def _constant(self, other: Any) -> bool:
        if isinstance(other, Lazy):
            raise self.questions.refuse("two random numbers were combined")
        return isinstance(other, numbers.Real)

    def _as_tensor(self, beside: Any) -> Any:
        return beside.new_tensor(self)

    # ------------------------------------------------------------------ functions

    def log(self) -> Lazy:
        """The natural logarithm, of scale * X or of scale * (1 - U)."""
        basis = BASES[self.basis]
        if self.shift == 0 and self.scale > 0:
            if self.basis == "u":
                return self._with("e", -1.0, math.log(self.scale))
            if self.basis == "1/u":
                return self._with("e", 1.0, math.log(self.scale))
            if basis.logarithm:
                return self._with(basis.logarithm, 1.0, math.log(self.scale))
            if self.basis.startswith("1/e"):
                return self._with(BASES[basis.reciprocal].logarithm, -1.0, math.log(self.scale))
        if self.basis == "u" and self.scale < 0 and self.shift == -self.scale:
            return self._with("e'", -1.0, math.log(self.shift))
        raise self.questions.refuse("the logarithm of a shifted random number was taken")

    def exp(self) -> Lazy:
        """The exponential, of b - E or of b + log E or b - log E."""
        factor = math.exp(self.shift)
        if self.basis == "e" and self.scale == -1:
            return self._with("u", factor, 0.0)
        if self.basis == "e'" and self.scale == -1:
            return self._with("u", -factor, factor)
        if self.basis.startswith("log") and abs(self.scale) == 1:
            power = self.basis.removeprefix("log ")
            return self._with(power if self.scale > 0 else f"1/{power}", factor, 0.0)
        raise self.questions.refuse("the exponential of this random number was taken")

    def item(self) -> Lazy:
        """Itself, as a numpy scalar would."""
        return self

    def __format__(self, spec: str) -> str:
        return "<random number>"

    __repr__ = __str__ = lambda self: "<random number>"

    def __float__(self) -> float:
        raise self.questions.refuse("the value of a random number was read as a float")

    def __index__(self) -> int:
        raise self.questions.refuse("a random number was used as an index")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.questions.refuse(f"{name} of a random number was taken")


def _refused(name: str) -> Callable[..., Any]:
    def operation(self: Lazy, *_: Any) -> Any:
        raise self.questions.refuse(f"{name} of a random number was taken")

    return operation


for _name in (
    "__mod__",
    "__rmod__",
    "__floordiv__",
    "__rfloordiv__",
    "__divmod__",
    "__rdivmod__",
    "__rpow__",
    "__round__",
    "__ceil__",
    "__complex__",
):
    setattr(Lazy, _name, _refused(_name.strip("_")))


def race(values: Sequence[Any], largest: bool) -> int:
    """Index of the largest (or smallest) of the values, some of them random: a race of exponentials.

        Pr(E_i / w_i is the smallest) = w_i / sum of w     for independent standard exponentials E_i

    The random values must be w/E, E/w, or log w - log E in all entries (Gumbel noise is -log E), each on a random
    number of its own; they may have raced before. Two fresh uniforms are as likely to be in either order. Plain
    numbers among the values must be sure to lose.

    Raises:
        NotExact: otherwise.
    """
    runners = [(i, value) for i, value in enumerate(values) if isinstance(value, Lazy)]
    if not runners:
        numbers_only = np.asarray(values, dtype=float)
        return int(numbers_only.argmax() if largest else numbers_only.argmin())
    questions = runners[0][1].questions
    if len({value.index for _, value in runners}) < len(runners):
        raise questions.refuse("an argmax or argmin over random numbers that depend on each other")
    turned = not largest and len(runners) == 2 and all(value.basis == "u" for _, value in runners)
    rates = [_rate(value, largest or turned) for _, value in runners]
    others = [float(value) for value in values if not isinstance(value, Lazy)]
    sure = 0.0 if runners[0][1].basis.startswith("1/e") else -math.inf
    hopeless = all(value <= sure if largest else value == math.inf for value in others)
    if None in rates or not hopeless or len({value.basis.rstrip("'") for _, value in runners}) > 1:
        raise questions.refuse("an argmax or argmin over random numbers that is not a race of exponentials")
    if runners[0][1].basis.startswith("log") and len({value.scale for _, value in runners}) > 1:
        raise questions.refuse("an argmax or argmin over Gumbel noise of different scales")
    if questions.mixed({value.index: value.basis.endswith("'") for _, value in runners}):
        raise questions.refuse("an argmax or argmin over random numbers that depend on each other")
    place = {value.index: i for i, value in runners}
    winner = place[questions.first({value.index: rate or 0.0 for (_, value), rate in zip(runners, rates, strict=True)})]
    return next(i for i, _ in runners if i != winner) if turned else winner


def _rate(value: Lazy, largest: bool) -> float | None:
    """w such that the value wins exactly if E / w is the smallest; None if it is of another kind."""
    basis = value.basis.rstrip("'")
    if basis == "u":
        return 1.0 if largest and (value.scale, value.shift) == (1, 0) else None
    if basis == "log e":
        exponent = value.shift / -value.scale
        return _exp(exponent) if (value.scale < 0) == largest else None
    if value.shift != 0:
        return None
    if basis == "1/e":
        return value.scale if largest == (value.scale > 0) and value.scale > 0 else None
    if basis == "e":
        small_wins = largest == (value.scale < 0)
        return 1 / abs(value.scale) if small_wins else None
    return None
