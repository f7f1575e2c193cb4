"""The exact law of foreign code, unchanged, by answering its random questions in every possible way.

While an `Interception` is in force, `random`, `numpy.random` and torch's samplers hand out `Lazy` numbers and forked
choices instead of drawn ones. `outcomes(call)` then runs the code once per decision string, as `ReplayDraws` does
for our own verifiers: a comparison with a uniform forks with its exact probability, a categorical draw over its
support. Uniforms in float32 and float64 are continuous here: u < h and u <= h are the same question. Those drawn in
bfloat16 and float16 have the 2^8 and 2^11 values that torch gives them.

Generators that are seeded inside the call give the same numbers in every call; see `generators`. Code that hides
randomness (a compiled kernel) is found out by running outcomes twice and by looking at the generators' states; it
raises `NotExact`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import random
import sys
import weakref
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from specbound.runtime import compiled

from ..hidden_state import OutlivesCall
from .coins import REFINEMENTS, RESOLUTION, CoinTree, ConcreteQuestions
from .formats import BITS, coarser
from .generators import (
    INTERCEPTED,
    LIBRARIES,
    LegacySampler,
    NumpySampler,
    Streams,
    intercept_numpy,
    intercept_python,
    intercept_system,
    kept_generators,
)
from .lazy import SEED, Decision, Lazy, NotExact, Questions, Unlikely
from .lazy_arrays import LazyArray, numbers
from .lazy_tensors import (
    STEPS,
    LazyTensor,
    fill_in_place,
    number_format,
    random_tensor,
    recognised,
    start_run,
    tensor_of,
    write_into,
)
from .sandbox import alive
from .triton_coins import intercept_triton

T = TypeVar("T")
R = TypeVar("R")
Route = Callable[[Callable[[], Any]], dict[Any, float]]
MAX_OUTCOMES = 10_000
ENOUGH = 300
LEFT_OUT = 1e-10
STATED = 1e-3
RUN_TWICE = 8
FEW = 5
COINS = "Found with concrete coins, whose breakpoints are exact to 2^-24."
NEEDS_COINS: weakref.WeakSet[Any] = weakref.WeakSet()


class Interception:
    """Context in which the randomness of foreign code is enumerated.

    Args:
        functions: the code to be run. Names such as those of `from random import random` are replaced in every loaded
            module that is not a library's, generators that the functions can reach where they are kept.

    Attributes:
        notes: what a reader of the law has to know: formats of uniforms, mass left out.
        left_out: the largest probability that was not enumerated in one call of `outcomes`.
        resolution: total variation below which the laws say nothing, rounding apart.
        arithmetic: the coarsest number format that the code was seen to compute in.
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self.functions = functions
        self.questions = Questions()
        self.streams = Streams(lambda: self.questions)
        self.restore = contextlib.ExitStack()
        self.run_twice = RUN_TWICE
        self.notes: dict[str, None] = {}
        self.left_out = 0.0
        self.coins = 0
        self.trees: list[CoinTree] = []
        self.arithmetic = torch.float64

    @property
    def resolution(self) -> float:
        """What was left out, and the resolution of all concrete coins."""
        return self.left_out + self.coins * RESOLUTION

    def __enter__(self) -> Interception:
        try:
            self._intercept()
        except BaseException:
            self.restore.close()
            raise
        return self

    def _intercept(self) -> None:
        self.restore.callback(random._inst.setstate, random._inst.getstate())
        self.restore.callback(torch.set_rng_state, torch.get_rng_state())
        self.states = _generator_states()
        self.streams.know(torch.default_generator)
        named: dict[int, Any] = {}

        def replace(owner: Any, name: str, new: Any) -> None:
            if isinstance(owner, ModuleType):
                named[id(getattr(owner, name, None))] = new
            self._replace(owner, name, new)

        bound = {
            name: value for name, value in vars(random).items() if getattr(value, "__self__", None) is random._inst
        }
        intercept_python(self.streams, replace)
        for name in bound:
            replace(random, name, getattr(random._inst, name))
        intercept_numpy(self.streams, replace)
        intercept_system(self.streams, replace)
        intercept_triton(lambda: self.questions, replace)
        for name in ("log", "exp"):
            replace(math, name, _of_lazy(getattr(math, name), name))
        for module, name, value in _imported(frozenset(named), len(sys.modules)):
            if getattr(module, name, None) is value:
                self._replace(module, name, named[id(value)])
        for function in self.functions:
            for owner, name, generator in kept_generators(function, _package_of(function)):
                self._keep(owner, name, generator)
        self._replace(compiled, "usable", lambda device="cpu": False)  # numba would compile what is replaced here
        if "torch._dynamo" in sys.modules:
            self.restore.enter_context(torch.compiler.set_stance("force_eager"))

    def _keep(self, owner: Any, name: str, generator: Any) -> None:
        """Put a sampler in the place of a generator that is kept by an object; torch's are known by their state."""
        if isinstance(generator, torch.Generator):
            self.streams.know(generator)
            return
        if isinstance(generator, NumpySampler | LegacySampler):
            return
        kind = NumpySampler if isinstance(generator, np.random.Generator) else LegacySampler
        attribute, _, place = name.partition(".")
        new: Any = kind(self.streams)
        if place:
            old = getattr(owner, attribute)
            new = (*old[: int(place)], new, *old[int(place) + 1 :])
        with contextlib.suppress(AttributeError, TypeError):
            self._replace(owner, attribute, new)

    def _replace(self, owner: Any, name: str, new: Any) -> None:
        if isinstance(owner, type) and name not in vars(owner):
            self.restore.callback(delattr, owner, name)
        else:
            self.restore.callback(
                setattr, owner, name, vars(owner)[name] if isinstance(owner, type) else getattr(owner, name)
            )
        setattr(owner, name, new)

    def __exit__(self, *error: object) -> None:
        self.restore.close()

    def outcomes(self, call: Callable[[], T]) -> list[tuple[T, float]]:
        """Every result of `call` with its exact probability; results must be comparable with ==.

        The likeliest decisions first, because a loop of rejections never ends: what has less than 1e-10 together is
        left out, or less than 1e-3 after 300 outcomes; `left_out` says how much.

        Raises:
            NotExact: if randomness is used in a way that cannot be enumerated, or is hidden from interception.
            Exception: whatever the code raises.
        """
        if not self.streams.warm:
            with contextlib.suppress(Exception, Unlikely):
                self._run(call, ())
            self.streams.warm = True
        tie = itertools.count()
        pending: list[tuple[float, int, tuple[Decision, ...]]] = [(-1.0, next(tie), ())]
        left = 1.0
        found: list[tuple[T, float]] = []
        taken: list[tuple[Decision, ...]] = []
        while pending and left > LEFT_OUT:
            with contextlib.suppress(Unlikely):
                found.append((self._run(call, heapq.heappop(pending)[2]), self.questions.weight))
                taken.append(self.questions.decisions)
            left = 1 - math.fsum(weight for _, weight in found)
            for decisions in self.questions.alternatives:
                weight = math.prod(decision.probability for decision in decisions)
                heapq.heappush(pending, (-weight, next(tie), decisions))
            if len(found) > ENOUGH and left < STATED:
                break
            if len(found) > MAX_OUTCOMES:
                raise NotExact(f"more than {MAX_OUTCOMES} outcomes of one call; use the sampled audit for this code")
        if pending:
            self.left_out = max(self.left_out, left)
            if left > LEFT_OUT:
                self.notes["Outcomes of a small probability were left out; see the tolerance."] = None
        again = itertools.islice(itertools.cycle(zip(found, taken, strict=True)), self.run_twice)
        if any(self._run(call, decisions) != result for (result, _), decisions in again):
            raise NotExact(HIDDEN)
        self.run_twice = 1
        if not self.streams.ever_seeded and _generator_states() != self.states:
            raise NotExact(HIDDEN)
        return found

    def symbolic(self, call: Callable[[], T]) -> dict[T, float]:
        """The law of the result of `call` by `outcomes`."""
        law: dict[T, float] = {}
        for result, probability in self.outcomes(call):
            law[result] = law.get(result, 0.0) + probability
        return law

    def law(self, call: Callable[[], T], rows: int = 0) -> dict[T, float]:
        """The law of the result of `call` by concrete coins (see `coins`).

        Args:
            rows: length of a row of uniforms that may be turned into Gumbel noise; 0 if there is none.

        Raises:
            NotExact: if the result is not constant on cells of its coins, or races of rows.
            Exception: whatever the code raises.
        """
        if not self.streams.warm:
            with contextlib.suppress(Exception):
                self._ask(call, ConcreteQuestions())
            self.streams.warm = True
        self.notes[COINS] = None
        tree = CoinTree(lambda questions: self._ask(call, questions))
        try:
            law = tree.law(refinements=FEW if rows else REFINEMENTS)
        except NotExact:
            if not rows:
                raise
            tree = CoinTree(lambda questions: self._ask(call, questions), rows)
            law = tree.law()
        self.coins = max(self.coins, tree.coins)
        self.trees.append(tree)
        return law  # type: ignore[return-value]

    def look_again(self) -> None:
        """Run some of the concrete runs again, the last calls first.

        Raises:
            OutlivesCall: if one gives another result.
        """
        if any(tree.depends_on_calls() for tree in reversed(self.trees)):
            raise OutlivesCall("a request's result on the same coins depends on what was asked before it")

    def by_either_route(self, ask: Callable[[Route], R], rows: int) -> R:
        """What `ask` makes of symbolic numbers, or, where these are refused once, of concrete coins from then on.

        Args:
            ask: is given a function from a call to the law of its result.
            rows: see `law`.

        Raises:
            NotExact: if both routes refuse; names both reasons.
        """
        ways: list[Route] = [self.symbolic, lambda call: self.law(call, rows)]
        reasons: list[str] = []
        for way in ways[self.functions[0] in NEEDS_COINS :]:
            try:
                return ask(way)
            except NotExact as error:
                reasons.append(str(error))
                with contextlib.suppress(TypeError):
                    NEEDS_COINS.add(self.functions[0])
        raise NotExact("; with concrete coins: ".join(reasons))

    def answered(self, call: Callable[[], T], questions: Questions) -> T:
        """The result of one call under these questions.

        Raises:
            NotExact: if it uses a random number in a way that they do not follow.
            Exception: whatever the code raises.
        """
        if not self.streams.warm:
            with contextlib.suppress(Exception, Unlikely):
                self._run(call, ())
            self.streams.warm = True
        return self._ask(call, questions)

    def _run(self, call: Callable[[], T], decisions: tuple[Decision, ...]) -> T:
        return self._ask(call, Questions(decisions))

    def _ask(self, call: Callable[[], T], questions: Questions) -> T:
        alive()
        self.questions = questions
        start_run(self.questions)
        self.streams.start_run()
        try:
            INTERCEPTED[0] = True
            with TorchSampler(self):
                result = call()
        except Exception as error:
            if self.questions.refusal is None and self.questions.weight < 1:
                error.add_note(f"on a branch of probability {self.questions.weight:.3g} of this call")
            raise self.questions.refusal or error from None
        finally:
            INTERCEPTED[0] = False
        self.streams.end_run()
        if self.questions.derived:
            self.questions.refuse("Triton's randint was drawn for something else than a seed")
        if self.questions.refusal:
            raise self.questions.refusal
        if self.streams.torch_moved():
            raise NotExact(HIDDEN)
        return result


HIDDEN = (
    "the code gave different results on the same random choices, or drew from a generator that is not intercepted; "
    "pass it its generator as an argument, or use the sampled audit for this code"
)
REAL_LEGACY = np.random.mtrand._rand


def _generator_states() -> tuple[Any, ...]:
    legacy = REAL_LEGACY.get_state(legacy=False)["state"]
    return random._inst.getstate(), legacy["pos"], legacy["key"].tobytes()


OURS = __name__.rpartition(".")[0]


def _users_modules() -> list[ModuleType]:
    """The loaded modules of neither the standard library nor NumPy, torch and this package."""
    loaded = [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    return [m for name, m in loaded if name.partition(".")[0] not in LIBRARIES and not name.startswith(OURS)]


@lru_cache(maxsize=8)
def _imported(identities: frozenset[int], loaded: int) -> list[tuple[ModuleType, str, Any]]:
    """(module, name, value) for the names under which users' modules hold one of the values; `loaded` makes it fresh
    when modules were loaded meanwhile."""
    found = [(module, name, value) for module in _users_modules() for name, value in list(vars(module).items())]
    return [place for place in found if id(place[2]) in identities]


def _package_of(function: Callable[..., Any]) -> list[ModuleType]:
    """The users' modules of the function's top-level package."""
    name = getattr(function, "__module__", None) or type(function).__module__
    top = name.partition(".")[0]
    return [] if name.startswith(OURS) else _modules_below(top, len(sys.modules))


@lru_cache(maxsize=64)
def _modules_below(top: str, loaded: int) -> list[ModuleType]:
    return [module for module in _users_modules() if module.__name__.partition(".")[0] == top]


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
        recognised(args)
        recognised(kwargs.values())
        if name in TORCH_SAMPLERS or name in NOT_ENUMERABLE:
            return self._drawn(name, func, args, kwargs)
        if name in ("tensor", "as_tensor", "from_numpy", "asarray"):
            return tensor_of(func, *args, **kwargs)
        if name == "new_tensor":
            return tensor_of(lambda *values: func(args[0], *values, **kwargs), *args[1:])
        if any(isinstance(arg, Lazy | LazyArray) for arg in args):
            args = tuple(tensor_of(torch.as_tensor, arg) if isinstance(arg, Lazy | LazyArray) else arg for arg in args)
        result = func(*args, **kwargs)
        if type(result) is torch.Tensor and result.dtype in BITS and result.numel() and name in ROUNDING:
            self.interception.arithmetic = coarser(self.interception.arithmetic, result.dtype)
        return result

    def _drawn(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        streams, questions = self.interception.streams, self.interception.questions
        generator = kwargs.get("generator")
        if not streams.torch_free(generator):
            if any(isinstance(arg, LazyTensor) for arg in args):
                raise questions.refuse(f"torch's {name} with a fixed seed was drawn beside random numbers")
            result = func(*args, **kwargs)
            streams.torch_drawn(generator, real=True)
            return result
        streams.torch_drawn(generator, real=False)
        if name in NOT_ENUMERABLE:
            raise questions.refuse(f"torch's {name} was drawn")
        out = kwargs.get("out")
        others = {key: value for key, value in kwargs.items() if key not in ("generator", "out")}
        result = TORCH_SAMPLERS[name](self.interception, *args, **others)
        return result if out is None else write_into(out, result)


ROUNDING = frozenset(
    [
        "float",
        "to",
        "type",
        "div",
        "true_divide",
        "__truediv__",
        "__rtruediv__",
        "div_",
        "__itruediv__",
        "mul",
        "__mul__",
        "__rmul__",
        "mul_",
        "sub",
        "__sub__",
        "softmax",
        "log_softmax",
        "exp",
        "cumsum",
        "sum",
    ]
)
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


def _uniforms(interception: Interception, shape: Any, kind: torch.dtype) -> Any:
    """Uniforms in a number format."""
    steps = STEPS.get(kind)
    if steps:
        name = str(kind).removeprefix("torch.")
        interception.notes[f"Uniforms drawn in {name} have 2^{steps.bit_length() - 1} values."] = None
    return numbers(interception.questions, "u", tuple(shape), steps)


def _rand(interception: Interception, *size: Any, **kwargs: Any) -> torch.Tensor:
    kind = kwargs.get("dtype") or torch.get_default_dtype()
    like = torch.empty(_shape(size, kwargs), device=kwargs.get("device"))
    return random_tensor(_uniforms(interception, like.shape, kind), like, kind)


def _rand_like(interception: Interception, tensor: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    kind = kwargs.get("dtype") or number_format(tensor)
    return random_tensor(_uniforms(interception, tensor.shape, kind), tensor, kind)


def _uniform_(interception: Interception, tensor: torch.Tensor, *ends: float, **kwargs: Any) -> Any:
    low, high = kwargs.get("from", (*ends, 0.0)[0]), kwargs.get("to", ends[1] if len(ends) > 1 else 1.0)
    if number_format(tensor) in STEPS and (low, high) != (0, 1):
        raise interception.questions.refuse("uniforms on another interval were drawn in half precision")
    return fill_in_place(tensor, _uniforms(interception, tensor.shape, number_format(tensor)) * (high - low) + low)


def _exponential_(interception: Interception, tensor: torch.Tensor, lambd: float = 1.0) -> torch.Tensor:
    if number_format(tensor) in STEPS and not interception.questions.concrete:
        raise interception.questions.refuse("exponentials were drawn in half precision")
    return fill_in_place(tensor, numbers(interception.questions, "e", tuple(tensor.shape)) / lambd)


def _bernoulli(interception: Interception, tensor: torch.Tensor, p: float | None = None, **_: Any) -> torch.Tensor:
    chances = tensor if p is None else torch.full_like(tensor, p)
    if chances.numel() and not bool(((chances >= 0) & (chances <= 1)).all()):
        raise RuntimeError("Expected p_in >= 0 && p_in <= 1 to be true")
    heads = [float(interception.questions.coin(chance)) for chance in chances.reshape(-1).tolist()]
    return torch.tensor(heads, dtype=tensor.dtype, device=tensor.device).reshape(tensor.shape)


def _bernoulli_(interception: Interception, tensor: torch.Tensor, p: Any = 0.5, **_: Any) -> torch.Tensor:
    chances = p if isinstance(p, torch.Tensor) else torch.full(tensor.shape, float(p), dtype=torch.float64)
    return tensor.copy_(_bernoulli(interception, chances.expand_as(tensor).double()))


def _multinomial(
    interception: Interception, tensor: torch.Tensor, num_samples: int, replacement: bool = False, **_: Any
) -> torch.Tensor:
    if isinstance(tensor, LazyTensor):
        raise interception.questions.refuse("torch's multinomial was drawn from random weights")
    rows = tensor.detach().double().cpu().reshape(-1, tensor.shape[-1]).numpy().copy()
    drawn = np.zeros((len(rows), num_samples), dtype=np.int64)
    for row, places in zip(rows, drawn, strict=True):
        for i in range(num_samples):
            places[i] = interception.questions.ask(row)
            if not replacement:
                row[places[i]] = 0.0
    return torch.as_tensor(drawn, device=tensor.device).reshape(*tensor.shape[:-1], num_samples)


def _randint(interception: Interception, *args: Any, **kwargs: Any) -> torch.Tensor:
    ends = [int(value) for value in args if isinstance(value, int)]
    ends += [int(kwargs[name]) for name in ("low", "high") if name in kwargs]
    size = kwargs.get("size", next((value for value in args if not isinstance(value, int)), ()))
    low, high = ends if len(ends) == 2 else (0, ends[0])
    count = math.prod(size)
    drawn = [low + interception.questions.integer(high - low) for _ in range(count)]
    return torch.tensor(drawn, dtype=kwargs.get("dtype") or torch.int64, device=kwargs.get("device")).reshape(*size)


def _randint_like(interception: Interception, tensor: torch.Tensor, *ends: int, **kwargs: Any) -> torch.Tensor:
    return _randint(
        interception, *ends, tuple(tensor.shape), dtype=kwargs.pop("dtype", number_format(tensor)), **kwargs
    )


def _random_(interception: Interception, tensor: torch.Tensor, *ends: int, **kwargs: Any) -> torch.Tensor:
    ends = (*ends, *(kwargs[name] for name in ("from", "to") if name in kwargs))
    if not ends:
        raise interception.questions.refuse(SEED)
    return tensor.copy_(_randint(interception, *ends, tuple(tensor.shape)))


def _randperm(interception: Interception, n: int, **_: Any) -> torch.Tensor:
    left = list(range(n))
    return torch.tensor([left.pop(interception.questions.ask([1.0] * len(left))) for _ in range(n)])


TORCH_SAMPLERS: dict[str, Callable[..., Any]] = {
    "rand": _rand,
    "rand_like": _rand_like,
    "uniform_": _uniform_,
    "exponential_": _exponential_,
    "bernoulli": _bernoulli,
    "bernoulli_": _bernoulli_,
    "multinomial": _multinomial,
    "randint": _randint,
    "randint_like": _randint_like,
    "random_": _random_,
    "randperm": _randperm,
}
