"""The exact law of foreign code, unchanged, by answering its random questions in every possible way.

While an `Interception` is in force, `random`, `numpy.random` and torch's samplers hand out `Lazy` numbers and forked
choices instead of drawn ones. `outcomes(call)` then runs the code once per decision string, as `ReplayDraws` does
for our own verifiers: a comparison with a uniform forks with its exact probability, a categorical draw over its
support. Random numbers are continuous here: u < h and u <= h are the same question.

Code that hides randomness from this (a compiled kernel, a generator kept inside an object) is found out by running
outcomes twice and by looking at the generators' states; it raises `NotExact`: the sampled audit is the way in.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from .lazy import Decision, Lazy, NotExact, Questions
from .lazy_arrays import LazyArray, LazyTensor, fill_in_place, lazy_array, lazy_tensor, start_run, tensor_of
from .sandbox import alive

T = TypeVar("T")
NUMPY_GENERATORS = (np.random.Generator, np.random.RandomState)
PYTHON_GENERATOR = random.Random
MAX_OUTCOMES = 100_000
RUN_TWICE = 8


class Interception:
    """Context in which the randomness of foreign code is enumerated.

    Args:
        functions: the code to be run. Names such as those of `from random import random`, and generators kept in
            global variables, are replaced in the modules these functions come from and in the rest of their packages.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.modules = [module for function in functions for module in _package_of(function)]
        self.questions = Questions()
        self.restore = contextlib.ExitStack()
        self.run_twice = RUN_TWICE

    def __enter__(self) -> Interception:
        self.states = _generator_states()
        stand_ins = _stand_ins(self)
        known = {id(getattr(owner, name)): new for owner, name, new in stand_ins}
        for owner, name, new in stand_ins:
            self._replace(owner, name, new)
        for module in self.modules:
            for name, value in list(vars(module).items()):
                if id(value) in known:
                    self._replace(module, name, known[id(value)])
                elif isinstance(value, NUMPY_GENERATORS):
                    self._replace(module, name, NumpySampler(self))
                elif isinstance(value, PYTHON_GENERATOR):
                    self._replace(module, name, PythonSampler(self))
        return self

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        self.restore.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, new)

    def __exit__(self, *error: object) -> None:
        self.restore.close()

    def outcomes(self, call: Callable[[], T]) -> list[tuple[T, float]]:
        """Every result of `call` with its exact probability; results must be comparable with ==.

        Raises:
            NotExact: if randomness is used in a way that cannot be enumerated, or is hidden from interception.
            Exception: whatever the code raises.
        """
        pending: list[tuple[Decision, ...]] = [()]
        found: list[tuple[T, float]] = []
        taken: list[tuple[Decision, ...]] = []
        while pending:
            result = self._run(call, pending.pop())
            found.append((result, self.questions.weight))
            taken.append(self.questions.decisions)
            pending += self.questions.alternatives
            if len(found) > MAX_OUTCOMES:
                raise NotExact(f"more than {MAX_OUTCOMES} outcomes of one call; use the sampled audit for this code")
        again = itertools.islice(itertools.cycle(zip(found, taken, strict=True)), self.run_twice)
        if any(self._run(call, decisions) != result for (result, _), decisions in again):
            raise NotExact(HIDDEN)
        self.run_twice = 1
        if _generator_states() != self.states:
            raise NotExact(HIDDEN)
        return found

    def _run(self, call: Callable[[], T], decisions: tuple[Decision, ...]) -> T:
        alive()
        self.questions = Questions(decisions)
        start_run(self.questions)
        try:
            with TorchSampler(self):
                result = call()
        except Exception as error:
            raise self.questions.refusal or error from None
        if self.questions.refusal:
            raise self.questions.refusal
        return result


HIDDEN = (
    "the code gave different results on the same random choices, or drew from a generator that is not intercepted; "
    "pass it its generator as an argument, or use the sampled audit for this code"
)


def _generator_states() -> tuple[Any, ...]:
    legacy = np.random.mtrand._rand.get_state(legacy=False)["state"]
    return random._inst.getstate(), legacy["pos"], legacy["key"].tobytes(), torch.get_rng_state().numpy().tobytes()


def _package_of(function: Callable[..., Any]) -> list[ModuleType]:
    """The loaded modules of the function's top-level package, this one excepted."""
    name = getattr(function, "__module__", None) or type(function).__module__
    top = name.partition(".")[0]
    loaded = [(key, module) for key, module in sys.modules.items() if module and key != __name__]
    return [module for key, module in loaded if key == top or key.startswith(f"{top}.")]


# ---------------------------------------------------------------------- random and numpy.random


class _Sampler:
    """A stand-in generator; samplers that it does not define cannot be treated exactly."""

    def __init__(self, interception: Interception) -> None:
        self._interception = interception

    @property
    def _questions(self) -> Questions:
        return self._interception.questions

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise self._questions.refuse(f"{name} was drawn")

    def seed(self, *_: Any, **__: Any) -> None:
        """Nothing: every outcome is visited."""

    def _order(self, count: int, taken: int) -> list[int]:
        """`taken` of `count` places in random order."""
        left = list(range(count))
        return [left.pop(self._questions.ask([1.0] * len(left))) for _ in range(taken)]


class PythonSampler(_Sampler):
    """The samplers of Python's `random`."""

    def random(self) -> Lazy:
        return self._questions.uniform()

    def uniform(self, a: float = 0.0, b: float = 1.0) -> Any:
        return a + (b - a) * self._questions.uniform()

    def expovariate(self, lambd: float = 1.0) -> Any:
        return self._questions.exponential() / lambd

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        values = range(start)[::step] if stop is None else range(start, stop, step)
        return values[self._questions.ask([1.0] * len(values))]

    def randint(self, a: int, b: int) -> int:
        return self.randrange(a, b + 1)

    def choice(self, seq: Sequence[Any]) -> Any:
        return seq[self.randrange(len(seq))]

    def choices(
        self, population: Sequence[Any], weights: Any = None, *, cum_weights: Any = None, k: int = 1
    ) -> list[Any]:
        if cum_weights is not None:
            weights = np.diff([0, *cum_weights])
        law = [1.0] * len(population) if weights is None else [float(weight) for weight in weights]
        return [population[self._questions.ask(law)] for _ in range(k)]

    def sample(self, population: Sequence[Any], k: int) -> list[Any]:
        return [population[i] for i in self._order(len(population), k)]

    def shuffle(self, x: Any) -> None:
        x[:] = [x[i] for i in self._order(len(x), len(x))]


class NumpySampler(_Sampler):
    """The samplers of `numpy.random`, of its legacy functions and of `Generator`."""

    __class__ = property(lambda self: np.random.Generator)

    def random(self, size: Any = None, *_: Any, **__: Any) -> Any:
        return lazy_array(self._questions.uniform, size)

    random_sample = sample = ranf = random

    def rand(self, *shape: int) -> Any:
        return self.random(shape or None)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        shape = np.broadcast_shapes(np.shape(low), np.shape(high)) or None if size is None else size
        return self.random(shape) * (high - low) + low

    def standard_exponential(self, size: Any = None, *_: Any, **__: Any) -> Any:
        return lazy_array(self._questions.exponential, size)

    def exponential(self, scale: Any = 1.0, size: Any = None) -> Any:
        return self.standard_exponential(np.shape(scale) or None if size is None else size) * scale

    def gumbel(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        shape = np.broadcast_shapes(np.shape(loc), np.shape(scale)) or None if size is None else size
        return -np.log(self.standard_exponential(shape)) * scale + loc

    def integers(
        self, low: int, high: int | None = None, size: Any = None, dtype: Any = int, endpoint: bool = False
    ) -> Any:
        first, last = (0, low) if high is None else (low, high)
        count = last - first + int(endpoint)
        return self._repeat(lambda: first + self._questions.ask([1.0] * count), size)

    def randint(self, low: int, high: int | None = None, size: Any = None, dtype: Any = int) -> Any:
        return self.integers(low, high, size)

    def choice(self, a: Any, size: Any = None, replace: bool = True, p: Any = None, *_: Any, **__: Any) -> Any:
        items = np.arange(a) if np.ndim(a) == 0 else np.asarray(a)
        weights = np.ones(len(items)) if p is None else np.array(p, dtype=float)
        if len(weights) != len(items):
            raise ValueError("'a' and 'p' must have same size")
        if p is not None and not abs(weights.sum() - 1) < 1e-6:
            raise ValueError("probabilities do not sum to 1")

        def draw() -> int:
            place = self._questions.ask(weights)
            if not replace:
                weights[place] = 0.0
            return place

        return items[self._repeat(draw, size)]

    def multinomial(self, n: int, pvals: Any, size: Any = None) -> np.ndarray:
        law = np.array(pvals, dtype=float)
        if (law[:-1].sum() > 1 + 1e-12) or np.isnan(law).any():
            raise ValueError("sum(pvals[:-1]) > 1.0")
        law[-1] = max(0.0, 1 - law[:-1].sum())
        draws = 1 if size is None else int(np.prod(size))
        counts = np.zeros((draws, len(law)), dtype=np.int64)
        for row in counts:
            for _ in range(n):
                row[self._questions.ask(law)] += 1
        return counts[0] if size is None else counts.reshape(*np.atleast_1d(size), len(law))

    def binomial(self, n: int, p: Any, size: Any = None) -> Any:
        chances = np.broadcast_to(np.asarray(p, dtype=float), np.shape(p) if size is None else size)
        heads = [sum(self._questions.coin(chance) for _ in range(n)) for chance in chances.ravel()]
        return np.array(heads).reshape(chances.shape) if chances.ndim else heads[0]

    def permutation(self, x: Any) -> np.ndarray:
        items = np.arange(x) if np.ndim(x) == 0 else np.asarray(x)
        return items[self._order(len(items), len(items))]

    def shuffle(self, x: Any) -> None:
        x[:] = self.permutation(np.array(x))

    @staticmethod
    def _repeat(draw: Callable[[], int], size: Any) -> Any:
        if size is None:
            return draw()
        return np.array([draw() for _ in range(int(np.prod(size)))], dtype=np.int64).reshape(size)


def _stand_ins(interception: Interception) -> list[tuple[Any, str, Any]]:
    """(module, name, replacement) for every public sampler of `random` and `numpy.random`, and log and exp of math."""
    python, numpy = PythonSampler(interception), NumpySampler(interception)
    owned = [name for name, value in vars(random).items() if getattr(value, "__self__", None) is random._inst]
    found = [(random, name, _method(python, name)) for name in owned]
    legacy = [
        name for name, value in vars(np.random).items() if getattr(value, "__self__", None) is np.random.mtrand._rand
    ]
    found += [(np.random, name, _method(numpy, name)) for name in [*legacy, "sample", "ranf"]]
    found += [(np.random, name, lambda *_, **__: NumpySampler(interception)) for name in ("default_rng", "RandomState")]
    found += [(random, name, lambda *_: PythonSampler(interception)) for name in ("Random", "SystemRandom")]
    found += [(math, name, _of_lazy(getattr(math, name), name)) for name in ("log", "exp")]
    return found


def _method(sampler: _Sampler, name: str) -> Callable[..., Any]:
    """The sampler of that name, or one that refuses when it is called (states and seeds are left alone)."""
    if hasattr(type(sampler), name):
        return getattr(sampler, name)

    def refuse(*_: Any, **__: Any) -> Any:
        raise sampler._questions.refuse(f"{name} was drawn")

    return refuse


def _of_lazy(function: Callable[..., float], name: str) -> Callable[..., Any]:
    def of_any(x: Any, *base: Any) -> Any:
        return getattr(x, name)() if isinstance(x, Lazy) and not base else function(x, *base)

    return of_any


# ---------------------------------------------------------------------- torch


class TorchSampler(TorchFunctionMode):
    """Answers torch's samplers; every other call goes through, with random Python numbers made into tensors."""

    def __init__(self, interception: Interception) -> None:
        super().__init__()
        self.interception = interception

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in TORCH_SAMPLERS:
            return TORCH_SAMPLERS[name](self.interception.questions, *args, **kwargs)
        if name in NOT_ENUMERABLE:
            raise self.interception.questions.refuse(f"torch's {name} was drawn")
        if name in ("tensor", "as_tensor", "from_numpy", "asarray"):
            return tensor_of(func, *args, **kwargs)
        if name == "new_tensor":
            return tensor_of(lambda *values: func(args[0], *values, **kwargs), *args[1:])
        if any(isinstance(arg, Lazy | LazyArray) for arg in args):
            args = tuple(tensor_of(torch.as_tensor, arg) if isinstance(arg, Lazy | LazyArray) else arg for arg in args)
        return func(*args, **kwargs)


NOT_ENUMERABLE = frozenset(
    [
        "randn",
        "randn_like",
        "normal",
        "normal_",
        "cauchy_",
        "log_normal_",
        "geometric_",
        "poisson",
        "rrelu",
        "dropout",
        "random_",
        "randint_like",
        "feature_dropout",
        "alpha_dropout",
        "binomial",
        "_standard_gamma",
        "_sample_dirichlet",
    ]
)


def _shape(size: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    shape = kwargs.get("size", size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
    return tuple(int(n) for n in shape)


def _rand(questions: Questions, *size: Any, **kwargs: Any) -> torch.Tensor:
    return lazy_tensor(questions.uniform, torch.empty(_shape(size, kwargs), device=kwargs.get("device")))


def _rand_like(questions: Questions, tensor: torch.Tensor, **_: Any) -> torch.Tensor:
    return lazy_tensor(questions.uniform, tensor)


def _uniform_(questions: Questions, tensor: torch.Tensor, low: float = 0.0, high: float = 1.0, **kwargs: Any) -> Any:
    low, high = kwargs.get("from", low), kwargs.get("to", high)
    return fill_in_place(tensor, lambda: questions.uniform() * (high - low) + low)


def _exponential_(questions: Questions, tensor: torch.Tensor, lambd: float = 1.0, **_: Any) -> torch.Tensor:
    return fill_in_place(tensor, lambda: questions.exponential() / lambd)


def _bernoulli(questions: Questions, tensor: torch.Tensor, p: float | None = None, **_: Any) -> torch.Tensor:
    chances = tensor if p is None else torch.full_like(tensor, p)
    if chances.numel() and not bool(((chances >= 0) & (chances <= 1)).all()):
        raise RuntimeError("Expected p_in >= 0 && p_in <= 1 to be true")
    heads = [float(questions.coin(chance)) for chance in chances.reshape(-1).tolist()]
    return torch.tensor(heads, dtype=tensor.dtype, device=tensor.device).reshape(tensor.shape)


def _bernoulli_(questions: Questions, tensor: torch.Tensor, p: Any = 0.5, **_: Any) -> torch.Tensor:
    chances = p if isinstance(p, torch.Tensor) else torch.full(tensor.shape, float(p), dtype=torch.float64)
    return tensor.copy_(_bernoulli(questions, chances.expand_as(tensor).double()))


def _multinomial(
    questions: Questions, tensor: torch.Tensor, num_samples: int, replacement: bool = False, **_: Any
) -> torch.Tensor:
    if isinstance(tensor, LazyTensor):
        raise questions.refuse("torch's multinomial was drawn from random weights")
    rows = tensor.detach().double().cpu().reshape(-1, tensor.shape[-1]).numpy().copy()
    drawn = np.zeros((len(rows), num_samples), dtype=np.int64)
    for row, places in zip(rows, drawn, strict=True):
        for i in range(num_samples):
            places[i] = questions.ask(row)
            if not replacement:
                row[places[i]] = 0.0
    return torch.as_tensor(drawn, device=tensor.device).reshape(*tensor.shape[:-1], num_samples)


def _randint(questions: Questions, *args: Any, **kwargs: Any) -> torch.Tensor:
    ends = [int(value) for value in args if isinstance(value, int)]
    ends += [int(kwargs[name]) for name in ("low", "high") if name in kwargs]
    size = kwargs.get("size", next((value for value in args if not isinstance(value, int)), ()))
    low, high = ends if len(ends) == 2 else (0, ends[0])
    count = math.prod(size)
    drawn = [low + questions.ask([1.0] * (high - low)) for _ in range(count)]
    return torch.tensor(drawn, dtype=kwargs.get("dtype") or torch.int64, device=kwargs.get("device")).reshape(*size)


def _randperm(questions: Questions, n: int, **_: Any) -> torch.Tensor:
    left = list(range(n))
    return torch.tensor([left.pop(questions.ask([1.0] * len(left))) for _ in range(n)])


TORCH_SAMPLERS: dict[str, Callable[..., Any]] = {
    "rand": _rand,
    "rand_like": _rand_like,
    "uniform_": _uniform_,
    "exponential_": _exponential_,
    "bernoulli": _bernoulli,
    "bernoulli_": _bernoulli_,
    "multinomial": _multinomial,
    "randint": _randint,
    "randperm": _randperm,
}
