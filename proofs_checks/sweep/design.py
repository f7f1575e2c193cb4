"""The design of a sweep: which cases there are, in which order, what each is called and how it is seeded.

    instance   a random tree (V, L, concentration, replicate), or the tree of a pair of models at a context (top-k, L);
               its target rows are raised to the power 1/T and normalised again, its draft rows to the power 1/S
    case       an instance, K drafted paths and one method (a verifier or an optimum): one row of the sweep
    grid       every combination of the listed values; cases that share an instance share its random rows
    sample     so many combinations drawn at random, each with random rows of its own

An instance's rows are those of `PrefixTree.random(V, L, instance_seed, concentration)`; the seed is the first word of
SeedSequence([seed of the sweep, SHA-256 of "V L concentration replicate"]). It depends on nothing else: not on K, T, S
or the method, not on the other cases, not on the order or the number of workers.

Letters: V vocabulary, L draft length, K paths, T and S temperature of target and draft.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

OPTIMA = {"lossless-optimum": "lossless", "block-transport-optimum": "block-transport"}
CLOSED = "closed:"
MAX_CASES = 1_000_000


@dataclass(frozen=True)
class Between:
    """A range to draw from in a sample, uniformly in the logarithm, to four digits; 0 < low < high."""

    low: float
    high: float


Reals = tuple[float, ...] | Between


@dataclass(frozen=True, kw_only=True)
class Design:
    """Everything that decides the rows of a sweep (limits of time and size, and the workers, do not).

    Attributes:
        vocab, length, paths: values of V, L, K.
        concentration: of the Dirichlet rows of random instances.
        temperature, draft_temperature: T and S; S None means S = T.
        replicates: random instances per (V, L, concentration); 0 leaves random instances out.
        sample: number of combinations to draw; None for the grid.
        contexts: prompts at which trees of the pair are taken; empty leaves them out.
        top_k: tokens kept in each row of the models.
        target, draft, device: the pair, None for the shipped one, and where it runs.
        methods: registered verifiers and "package.module:function" (exact law), "closed:NAME" (acceptance length from
            theory), "lossless-optimum" and "block-transport-optimum" (certified).
        tolerance: largest certified gap of an optimum.
        seed: of the sweep. version: of specbound.

    Raises:
        ValueError: naming the field that is out of range.
    """

    methods: tuple[str, ...]
    version: str
    vocab: tuple[int, ...] = (2, 3)
    length: tuple[int, ...] = (1, 2)
    paths: tuple[int, ...] = (1, 2, 3)
    concentration: Reals = (0.5,)
    temperature: Reals = (1.0,)
    draft_temperature: Reals | None = None
    replicates: int = 2
    sample: int | None = None
    contexts: tuple[str, ...] = ()
    top_k: tuple[int, ...] = (3,)
    target: str | None = None
    draft: str | None = None
    device: str = "cpu"
    tolerance: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("vocab", "length", "paths", "top_k", "concentration", "temperature", "draft_temperature"):
            _check_values(name, getattr(self, name), self.sample is not None)
        _check_values("methods", self.methods, False)
        if self.replicates < 0 or (self.sample is not None and self.sample < 1) or self.seed < 0:
            raise ValueError(
                f"replicates is {self.replicates}, sample {self.sample} and seed {self.seed}; want >= 0, >= 1 and >= 0"
            )
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; want a small positive number, e.g. 1e-6")
        if not self.replicates and not self.contexts:
            raise ValueError("the design has no instances: replicates is 0 and there are no contexts")
        if self.size > MAX_CASES:
            raise ValueError(f"the design has {self.size} cases, more than {MAX_CASES}; sample it, or split it")

    @property
    def size(self) -> int:
        """Number of cases."""
        if self.sample is not None:
            return len(self.methods) * self.sample * (bool(self.replicates) + bool(self.contexts))
        shared = (self.length, _listed(self.temperature), _listed(self.draft_temperature), self.paths, self.methods)
        random = len(self.vocab) * len(_listed(self.concentration)) * self.replicates
        return math.prod(map(len, shared)) * (random + len(self.contexts) * len(self.top_k))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Design:
        """The inverse of `to_dict`.

        Raises:
            ValueError: for a missing or unknown field.
        """
        if missing := {field.name for field in fields(cls)} ^ set(data):
            raise ValueError(f"field {min(missing)!r} of the design is missing or unknown")
        return cls(**{name: _read(value) for name, value in data.items()})


@dataclass(frozen=True)
class Case:
    """One row to compute. Fields that its kind of instance does not have are None; see `results.COLUMNS`."""

    number: int
    id: str
    instance: str
    vocab: int | None
    length: int
    concentration: float | None
    replicate: int | None
    instance_seed: int | None
    context: int | None
    top_k: int | None
    temperature: float
    draft_temperature: float
    paths: int
    method: str


def cases(design: Design) -> list[Case]:
    """The cases of a design in their order: instance by instance, in each by K, then by method."""
    drawn = _grid(design) if design.sample is None else _sampled(design)
    pairs = itertools.product(drawn, design.methods)
    return [
        Case(number=number, id=_id(values, method), method=method, **values)
        for number, (values, method) in enumerate(pairs)
    ]


def _grid(design: Design) -> Iterator[dict[str, Any]]:
    shared = list(itertools.product(_listed(design.temperature), _listed(design.draft_temperature), design.paths))
    replicates = range(design.replicates)
    for v, ell, c, r in itertools.product(design.vocab, design.length, _listed(design.concentration), replicates):
        for t, s, k in shared:
            yield _random(design, v, ell, c, r, t, s, k)
    for number, top_k, ell in itertools.product(range(len(design.contexts)), design.top_k, design.length):
        for t, s, k in shared:
            yield _context(number, top_k, ell, t, s, k)


def _sampled(design: Design) -> Iterator[dict[str, Any]]:
    for i in range(design.sample or 0 if design.replicates else 0):
        rng = np.random.default_rng(_seed(design.seed, f"random sample {i}"))
        v, ell, c = (_pick(rng, values) for values in (design.vocab, design.length, design.concentration))
        yield _random(design, v, ell, c, i, *_pick_shared(rng, design))
    for i in range(design.sample or 0 if design.contexts else 0):
        rng = np.random.default_rng(_seed(design.seed, f"context sample {i}"))
        number, top_k, ell = (_pick(rng, v) for v in (tuple(range(len(design.contexts))), design.top_k, design.length))
        yield _context(number, top_k, ell, *_pick_shared(rng, design)) | {"replicate": i}


def _pick_shared(rng: np.random.Generator, design: Design) -> tuple[float, float | None, int]:
    t = _pick(rng, design.temperature)
    s = None if design.draft_temperature is None else _pick(rng, design.draft_temperature)
    return t, s, _pick(rng, design.paths)


def _pick(rng: np.random.Generator, values: tuple[Any, ...] | Between) -> Any:
    if isinstance(values, Between):
        drawn = np.exp(rng.uniform(np.log(values.low), np.log(values.high)))
        return min(max(float(f"{drawn:.4g}"), values.low), values.high)
    return values[int(rng.integers(len(values)))]


def _random(
    design: Design, vocab: int, length: int, concentration: float, replicate: int, t: float, s: float | None, k: int
) -> dict[str, Any]:
    seed = _seed(design.seed, f"{vocab} {length} {concentration!r} {replicate}")
    return {
        "instance": "random",
        "vocab": vocab,
        "length": length,
        "concentration": concentration,
        "replicate": replicate,
        "instance_seed": seed,
        "context": None,
        "top_k": None,
        "temperature": t,
        "draft_temperature": t if s is None else s,
        "paths": k,
    }


def _context(number: int, top_k: int, length: int, t: float, s: float | None, k: int) -> dict[str, Any]:
    return {
        "instance": "context",
        "vocab": None,
        "length": length,
        "concentration": None,
        "replicate": None,
        "instance_seed": None,
        "context": number,
        "top_k": top_k,
        "temperature": t,
        "draft_temperature": t if s is None else s,
        "paths": k,
    }


def _id(values: Mapping[str, Any], method: str) -> str:
    if values["instance"] == "random":
        where = f"V{values['vocab']}-L{values['length']}-c{values['concentration']!r}-r{values['replicate']}"
    else:
        where = f"context{values['context']}-top{values['top_k']}-L{values['length']}"
        where += "" if values["replicate"] is None else f"-r{values['replicate']}"
    return f"{where}-T{values['temperature']!r}:{values['draft_temperature']!r}-K{values['paths']}-{method}"


def _seed(seed: int, identity: str) -> int:
    """53 bits (exact in every number format) from the sweep's seed and what identifies the draw."""
    word = int.from_bytes(hashlib.sha256(identity.encode()).digest(), "big")
    return int(np.random.SeedSequence([seed, word]).generate_state(1, np.uint64)[0] >> np.uint64(11))


def _listed(values: Reals | None) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)


def _check_values(name: str, values: Any, sampled: bool) -> None:
    if isinstance(values, Between):
        if not sampled:
            span = f"{values.low:g}..{values.high:g}"
            raise ValueError(f"{name} is a range, {span}; a grid wants a list (a sample draws from a range)")
        if not 0 < values.low < values.high < math.inf:
            raise ValueError(f"{name} is {values.low:g}..{values.high:g}; want 0 < from < to")
        return
    if values is None and name == "draft_temperature":
        return
    if not values:
        raise ValueError(f"{name} is empty; give at least one value")
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{name} lists {twice[0]} twice")
    if name != "methods" and (bad := [value for value in values if not 0 < value < math.inf]):
        raise ValueError(f"{name} is {bad[0]}; want a positive number")


def _read(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Between(**value)
    return tuple(value) if isinstance(value, list) else value
