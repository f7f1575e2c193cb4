"""Generators under interception: which of them give random numbers, and which the same numbers in every call.

A generator that was made and seeded inside the call gives every call the same numbers: it is let through, so that
the law is the one that users see. The same holds for a shared generator that is seeded before anything is drawn from
it. Seeding it later, restoring its state or copying it ties calls to each other, and raises `NotExact`.

`random.Random` is intercepted by its methods, so that every instance is, wherever it is kept. NumPy's generators are
replaced by `NumpySampler` and `LegacySampler` where they are found. Torch's are recognised by their state, which is
moved on with every answered draw: a state that is not the one that was left has been set by the code.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .lazy import Lazy, NotExact, Questions
from .lazy_arrays import numbers

Replace = Callable[[Any, str, Any], None]
FIRST_SEED = 7_000_000_000
SEEDS = 1 << 20
APART = 4096
INTERCEPTED = [False]
TIED = "a generator's state was {}, which ties random numbers to each other"


def given_seed() -> int:
    """A seed that the code is given as an argument: the same in every intercepted call, where its stream is followed,
    another one in every real call. The next 4095 numbers belong to it."""
    return FIRST_SEED + (0 if INTERCEPTED[0] else APART * random.randrange(2**40))


class Streams:
    """Which generators are fixed in this run: each of them is known by its identity.

    Args:
        questions: the questions of the present run.
    """

    def __init__(self, questions: Callable[[], Questions]) -> None:
        self._questions = questions
        self.made: dict[int, Any] = {}
        self.fixed: dict[int, Any] = {}
        self.drawn: dict[int, Any] = {}
        self.ever_drawn: dict[int, Any] = {}
        self.ever_seeded: dict[int, Any] = {}
        self.torch_states: dict[int, tuple[torch.Generator, torch.Tensor]] = {}
        self.handed: dict[int, torch.Generator] = {}
        self.warm = False

    @property
    def questions(self) -> Questions:
        """The questions of the present run."""
        return self._questions()

    def start_run(self) -> None:
        """Forget what was made, seeded and drawn in the run before."""
        for generator in self.handed.values():
            self.torch_states.pop(id(generator), None)
        self.made, self.fixed, self.drawn, self.handed = {}, {}, {}, {}

    def end_run(self) -> None:
        """Check that no shared generator was seeded in one run and free in another.

        Raises:
            NotExact: if so.
        """
        if self.ever_drawn.keys() & self.ever_seeded.keys():
            raise self.tied("set in some calls only")

    def tied(self, how: str) -> NotExact:
        """The refusal of a state that was seeded late, restored or copied."""
        return self.questions.refuse(TIED.format(how))

    def seeded(self, generator: Any) -> None:
        """Note that the code gave the generator a seed; from now on its numbers are fixed."""
        if id(generator) not in self.made:
            if id(generator) in self.drawn:
                raise self.tied("set after numbers were drawn from it")
            self.ever_seeded[id(generator)] = generator
        self.fixed[id(generator)] = generator

    def free(self, generator: Any) -> bool:
        """Whether the generator's next number is random; notes the draw."""
        if id(generator) in self.fixed:
            return False
        if id(generator) not in self.made:
            self.drawn[id(generator)] = self.ever_drawn[id(generator)] = generator
        return True

    # ------------------------------------------------------------------ torch

    def torch_free(self, generator: torch.Generator | None) -> bool:
        """Whether a torch generator's next number is random (see the module's opening)."""
        generator = torch.default_generator if generator is None else generator
        known = self.torch_states.get(id(generator))
        if known is None:
            if FIRST_SEED <= generator.initial_seed() < FIRST_SEED + SEEDS:
                return self._handed_free(generator)
            if self.warm:
                return False
            self.know(generator)
        elif not torch.equal(known[1], generator.get_state()) and id(generator) not in self.fixed:
            self.seeded(generator)
        return self.free(generator)

    def _handed_free(self, generator: torch.Generator) -> bool:
        """A generator that the code seeded with a seed that it was given as an argument: its numbers are random."""
        seed = generator.initial_seed()
        if seed in self.handed:
            raise self.tied("set twice with the seed that it was given")
        self.handed[seed] = self.made[id(generator)] = generator
        self.know(generator)
        return self.free(generator)

    def know(self, generator: torch.Generator) -> None:
        """Register a torch generator that lives longer than a call, and move its state on."""
        torch.rand((), generator=generator, device=generator.device)
        self.torch_states[id(generator)] = generator, generator.get_state()

    def torch_drawn(self, generator: torch.Generator | None, real: bool) -> None:
        """Move the state on after a draw; a real draw did so itself."""
        generator = torch.default_generator if generator is None else generator
        if not real:
            self.know(generator)
        elif id(generator) in self.torch_states:
            self.torch_states[id(generator)] = generator, generator.get_state()

    def torch_moved(self) -> bool:
        """Whether torch's default generator was drawn from or set without being seen."""
        known = self.torch_states[id(torch.default_generator)][1]
        if torch.equal(known, torch.default_generator.get_state()):
            return False
        if id(torch.default_generator) in self.fixed:
            self.torch_drawn(torch.default_generator, real=True)
            return False
        return True


# ---------------------------------------------------------------------- random


class PythonSampler:
    """The samplers of Python's `random`; those that are not here cannot be treated exactly."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions

    def random(self) -> Lazy:
        return self.questions.uniform()

    def uniform(self, a: float = 0.0, b: float = 1.0) -> Any:
        return a + (b - a) * self.questions.uniform()

    def expovariate(self, lambd: float = 1.0) -> Any:
        return self.questions.exponential() / lambd

    def getrandbits(self, k: int) -> int:
        return self.questions.integer(1 << k)

    def _randbelow(self, n: int) -> int:
        return self.questions.integer(n)

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        values = range(start)[::step] if stop is None else range(start, stop, step)
        return values[self.questions.integer(len(values))]

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
        return [population[self.questions.ask(law)] for _ in range(k)]

    def sample(self, population: Sequence[Any], k: int) -> list[Any]:
        return [population[i] for i in order(self.questions, len(population), k)]

    def shuffle(self, x: Any) -> None:
        x[:] = [x[i] for i in order(self.questions, len(x), len(x))]


def order(questions: Questions, count: int, taken: int) -> list[int]:
    """`taken` of `count` places in random order."""
    left = list(range(count))
    return [left.pop(questions.ask([1.0] * len(left))) for _ in range(taken)]


OTHER_SAMPLERS = (
    "gauss normalvariate lognormvariate betavariate triangular gammavariate paretovariate weibullvariate "
    "vonmisesvariate binomialvariate randbytes"
)
PYTHON_NAMES = (*(name for name in vars(PythonSampler) if name != "__init__" and name[0] + name[-1] != "__"),)


def intercept_python(streams: Streams, replace: Replace) -> None:
    """Replace the methods of `random.Random` and of `SystemRandom`, so that every instance of them is intercepted."""
    for owner in (random.Random, random.SystemRandom):
        for name in (*PYTHON_NAMES, *OTHER_SAMPLERS.split()):
            if hasattr(owner, name) and (owner is random.Random or name in vars(owner)):
                replace(owner, name, _python_method(streams, name, getattr(random.Random, name)))
    seed, start, set_state = random.Random.seed, random.Random.__init__, random.Random.setstate

    def seeding(self: random.Random, a: Any = None, version: int = 2) -> None:
        if isinstance(self, random.SystemRandom) or a is None:
            return
        if isinstance(a, Lazy):
            raise streams.questions.refuse("a random number was used as a seed")
        streams.seeded(self)
        seed(self, a, version)

    def starting(self: random.Random, x: Any = None) -> None:
        streams.made[id(self)] = self
        start(self, x)

    def setting(self: random.Random, state: Any) -> None:
        if id(self) not in streams.fixed:
            raise streams.tied("restored or copied")
        set_state(self, state)

    replace(random.Random, "seed", seeding)
    replace(random.Random, "__init__", starting)
    replace(random.Random, "setstate", setting)


def _python_method(streams: Streams, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: random.Random, *args: Any, **kwargs: Any) -> Any:
        if id(self) in streams.fixed or not _plain(self):
            return original(self, *args, **kwargs)
        streams.free(self)
        if name not in PYTHON_NAMES:
            raise streams.questions.refuse(f"{name} was drawn")
        return getattr(PythonSampler(streams.questions), name)(*args, **kwargs)

    return functools.wraps(original)(method) if hasattr(original, "__name__") else method


def _plain(generator: random.Random) -> bool:
    """Whether its class draws as `random.Random` does, without a `random` of its own."""
    kind = type(generator)
    return kind.random in (random.Random.random, random.SystemRandom.random)


# ---------------------------------------------------------------------- numpy.random


class _NumpySamplers:
    """The samplers of `numpy.random`, of its legacy functions and of `Generator`."""

    _streams: Streams

    @property
    def _questions(self) -> Questions:
        return self._streams.questions

    def random(self, size: Any = None, dtype: Any = float, out: Any = None) -> Any:
        drawn = numbers(self._questions, "u", size if out is None else out.shape)
        if out is not None and not self._questions.concrete:
            raise self._questions.refuse("random numbers were written into an array of floats")
        if out is not None:
            out[...] = drawn
        return drawn if out is None else out

    def random_sample(self, size: Any = None) -> Any:
        return self.random(size)

    def rand(self, *shape: int) -> Any:
        return self.random(shape or None)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        shape = np.broadcast_shapes(np.shape(low), np.shape(high)) or None if size is None else size
        return self.random(shape) * (high - low) + low

    def standard_exponential(self, size: Any = None, *_: Any, **__: Any) -> Any:
        return numbers(self._questions, "e", size)

    def exponential(self, scale: Any = 1.0, size: Any = None) -> Any:
        return self.standard_exponential(np.shape(scale) or None if size is None else size) * scale

    def gumbel(self, loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
        shape = np.broadcast_shapes(np.shape(loc), np.shape(scale)) or None if size is None else size
        return -np.log(self.standard_exponential(shape)) * scale + loc

    def integers(
        self, low: int, high: int | None = None, size: Any = None, dtype: Any = int, endpoint: bool = False
    ) -> Any:
        first, last = (0, low) if high is None else (low, high)
        return self._repeat(lambda: first + self._questions.integer(int(last - first + int(endpoint))), size)

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
        return items[order(self._questions, len(items), len(items))]

    def shuffle(self, x: Any) -> None:
        x[:] = self.permutation(np.array(x))

    @staticmethod
    def _repeat(draw: Callable[[], int], size: Any) -> Any:
        if size is None:
            return draw()
        return np.array([draw() for _ in range(int(np.prod(size)))], dtype=np.int64).reshape(size)


class NumpySampler(_NumpySamplers, np.random.Generator):  # type: ignore[misc]
    """A `numpy.random.Generator` whose numbers are never drawn."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(np.random.PCG64(0))
        self._streams = streams

    def spawn(self, n_children: int) -> list[NumpySampler]:  # type: ignore[override]
        """Generators as random as this one."""
        return [NumpySampler(self._streams) for _ in range(n_children)]


class LegacySampler(_NumpySamplers, np.random.RandomState):  # type: ignore[misc]
    """A `numpy.random.RandomState` whose numbers are never drawn, until the code seeds it."""

    def __init__(self, streams: Streams) -> None:
        super().__init__(0)
        self._streams = streams
        self._same: np.random.RandomState | None = None

    def seed(self, seed: Any = None) -> None:
        """From now on the numbers of a real generator with this seed, which are the same in every call."""
        if seed is None:
            return
        if isinstance(seed, Lazy):
            raise self._questions.refuse("a random number was used as a seed")
        self._streams.seeded(self)
        self._same = _RANDOM_STATE(seed)


_RANDOM_STATE = np.random.RandomState


def _public(kind: type) -> Iterator[str]:
    return (name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name)))


def _followed(kind: type, base: type, name: str) -> Callable[..., Any]:
    """The sampler `name` of `kind`: a real generator's once it is seeded; refused if `kind` has none of its own."""
    own = next((vars(part)[name] for part in (kind, _NumpySamplers) if name in vars(part)), None)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        same = getattr(self, "_same", None) if id(self) in self._streams.fixed else None
        if same is not None:
            return getattr(same, name)(*args, **kwargs)
        if own is None:
            raise self._questions.refuse(f"{name} was drawn")
        self._streams.free(self)
        return own(self, *args, **kwargs)

    return method


def _copied(self: Any, *_: Any, **__: Any) -> Any:
    raise self._streams.tied("restored or copied")


_kind: Any
for _kind, _base in ((NumpySampler, np.random.Generator), (LegacySampler, np.random.RandomState)):
    for _name in {*_public(_base)} - {"seed", "spawn"}:
        setattr(_kind, _name, _followed(_kind, _base, _name))
    for _name in ("get_state", "set_state", "__reduce__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__"):
        setattr(_kind, _name, _copied)
    _kind.bit_generator = property(_copied)


class _AnyRandomState(type):
    """Makes `isinstance(x, numpy.random.RandomState)` true for what it is true for."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _RANDOM_STATE)


def intercept_numpy(streams: Streams, replace: Replace) -> None:
    """Replace NumPy's legacy functions, `default_rng`, `RandomState`, and bit generators without a seed."""
    shared = LegacySampler(streams)
    for name, value in list(vars(np.random).items()):
        if getattr(value, "__self__", None) is np.random.mtrand._rand:
            replace(np.random, name, getattr(shared, "random_sample" if name in ("sample", "ranf") else name))
    replace(np.random, "sample", shared.random_sample)
    replace(np.random, "ranf", shared.random_sample)
    replace(np.random, "seed", shared.seed)
    replace(np.random.mtrand, "_rand", shared)
    default_rng = np.random.default_rng

    def rng(seed: Any = None) -> Any:
        if isinstance(seed, Lazy):
            raise streams.questions.refuse("a random number was used as a seed")
        return NumpySampler(streams) if seed is None else seed if isinstance(seed, NumpySampler) else default_rng(seed)

    class RandomState(_RANDOM_STATE, metaclass=_AnyRandomState):
        def __new__(cls, seed: Any = None) -> Any:
            return LegacySampler(streams) if seed is None else _RANDOM_STATE(seed)

    replace(np.random, "default_rng", rng)
    replace(np.random, "RandomState", RandomState)
    for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64", "SeedSequence"):
        replace(np.random, name, _only_seeded(streams, getattr(np.random, name)))


def _only_seeded(streams: Streams, kind: type) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        if not args and not kwargs:
            raise streams.questions.refuse(f"{kind.__name__} took its seed from the system")
        return kind(*args, **kwargs)

    return make


def intercept_system(streams: Streams, replace: Replace) -> None:
    """Refuse random bytes of the system."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise streams.questions.refuse("random bytes of the system were read")

    replace(os, "urandom", refuse)


# ---------------------------------------------------------------------- generators that are kept somewhere

LIBRARIES = frozenset({"builtins", "numpy", "torch", *sys.stdlib_module_names})
KEPT = (np.random.Generator, np.random.RandomState, torch.Generator)


def kept_generators(function: Any, modules: Sequence[Any]) -> list[tuple[Any, str, Any]]:
    """(owner, attribute, generator) for the NumPy and torch generators that a function can reach: global variables of
    its modules, attributes of objects kept there, of its own object, of its closure and of its default arguments."""
    found: list[tuple[Any, str, Any]] = []
    seen: set[int] = set()
    for module in modules:
        _kept_in(module, found, seen, depth=2)
    _kept_in(function, found, seen, depth=4)
    return found


def _kept_in(owner: Any, found: list[tuple[Any, str, Any]], seen: set[int], depth: int) -> None:
    if id(owner) in seen or depth == 0:
        return
    seen.add(id(owner))
    places = [(owner, name, value) for name, value in list(getattr(owner, "__dict__", {}).items())]
    for cell in getattr(owner, "__closure__", None) or ():
        with contextlib.suppress(ValueError):
            places.append((cell, "cell_contents", cell.cell_contents))
    for place, value in enumerate(getattr(owner, "__defaults__", None) or ()):
        places.append((owner, f"__defaults__.{place}", value))
    places += [(owner, name, getattr(owner, name)) for name in ("__self__", "func") if hasattr(owner, name)]
    for holder, name, value in places:
        if isinstance(value, KEPT):
            found.append((holder, name, value))
        elif not isinstance(value, type | ModuleType) and not _library(value):
            _kept_in(value, found, seen, depth - 1)


def _library(value: Any) -> bool:
    name = getattr(value, "__module__", None) or type(value).__module__
    return str(name).partition(".")[0] in LIBRARIES
