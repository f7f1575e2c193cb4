"""What the fuzz tests share: how many cases, a limit on the time of each, documents that are almost right.

Every case either works or raises ValueError (a command: exits 2 with one line); never another exception, a warning of
numpy's about a number, a hang, or a result that breaks an invariant. `make fuzz` runs at least 2,000 cases of every
entry with fresh randomness; the normal suite runs a few, always the same.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES

CASES = int(os.environ.get("FUZZ_CASES", "0"))
SHRINK = os.environ.get("FUZZ_SHRINK", "1") == "1"
SECONDS = 20.0
Result = TypeVar("Result")


def fuzz(short: int, slow: int = 1) -> settings:
    """Settings of a fuzz test: `short` cases in the normal suite, FUZZ_CASES / `slow` of them in `make fuzz`."""
    return settings(
        max_examples=max(short, CASES // slow),
        deadline=None,
        derandomize=not CASES,
        database=None,
        phases=tuple(Phase) if SHRINK else (Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


class TookTooLong(Exception):
    """A case that would count as a hang."""


@contextlib.contextmanager
def case(seconds: float = SECONDS) -> Iterator[None]:
    """Run one case in so many CPU seconds and ten times as much time; numpy's warnings are errors."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"more than {seconds:g} seconds")

    clocks = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before = [signal.signal(number, ring) for number, _, _ in clocks]
    try:
        for _, clock, limit in clocks:
            signal.setitimer(clock, limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            yield
    finally:
        for (number, clock, _), handler in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(number, handler)


def attempt(entry: Callable[..., Result], *arguments: Any, **named: Any) -> Result | None:
    """What the entry returns, or None if it raises ValueError with a message."""
    try:
        return entry(*arguments, **named)
    except ValueError as error:
        if not str(error).strip():
            raise AssertionError("a refusal says why") from error
        return None


# ---------------------------------------------------------------------- values

NUMBERS: list[Any] = [0, 1, -1, 2, 3, 64, 2**31, 2**63, -(2**70), 10**400, 0.0, -0.0, 0.1, 0.5, 1.0, 1e-9, 5e-324]
NUMBERS += [1e-300, -1e-12, 1e18, 1e308, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "1/3", "1", "0.5", "-1/2", "1/0", "2/0.5", "1e-400", "1e5000", "1e999999999999", "nan", "inf", "x", "\x00"]
TEXTS += ["١/٢", "\ud800", "1_0", " 1/2 ", "lossless", "token", "specbound.prefix-tree", "[", "9" * 5000]
odd_values = st.one_of(
    st.sampled_from([*NUMBERS, *TEXTS, None, True, False]),
    st.floats(0, 1),
    st.integers(-2, 9),
    st.recursive(st.sampled_from([0, 1, 0.5, "1/2", None]), lambda inner: st.lists(inner, max_size=3), max_leaves=4),
    st.just({}),
    st.just({"a": [1]}),
)


def places(document: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The place of every value inside a JSON document."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [found for key in keys for found in ((*at, key), *places(document[key], (*at, key)))]


@st.composite
def almost(draw: st.DrawFn, documents: st.SearchStrategy[Any], most: int = 3) -> str:
    """JSON text of a document with up to `most` places changed, removed or repeated; or no such thing at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.text(max_size=20) | st.just("[" * 3000) | st.just('{"a":' * 3000) | st.just("1" * 5000))
    document = copy.deepcopy(draw(documents))
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.sampled_from(places(document) or [()]))
        if not place:
            return json.dumps(draw(odd_values))
        holder = document
        for key in place[:-1]:
            holder = holder[key]
        kind = draw(st.sampled_from(["change", "change", "remove", "repeat", "swap"]))
        if kind == "change":
            holder[place[-1]] = copy.deepcopy(draw(odd_values))
        elif kind == "remove":
            del holder[place[-1]]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from([*holder, "other", "", "format"]))] = copy.deepcopy(holder[place[-1]])
        elif kind == "repeat":
            holder.insert(place[-1], copy.deepcopy(holder[place[-1]]))
        else:
            other = draw(st.integers(0, len(holder) - 1))
            holder[place[-1]], holder[other] = holder[other], holder[place[-1]]
    text = json.dumps(document)
    return draw(st.sampled_from([text, text, text, text[:-1], text + "x", "\ufeff" + text]))


# ---------------------------------------------------------------------- trees


@st.composite
def rows(draw: st.DrawFn, vocab: int) -> list[float]:
    """A law on V tokens: spread out, one-hot, with zeros, with tiny entries; sums to 1 within rounding."""
    weights = draw(
        st.lists(
            st.sampled_from([0.0, 5e-324, 1e-300, 1e-17, 1e-9, 0.1, 1.0, 1.0, 3.0]), min_size=vocab, max_size=vocab
        )
    )
    if not sum(weights) > 1e-9:
        weights[draw(st.integers(0, vocab - 1))] = 1.0
    total = sum(weights)
    return [weight / total for weight in weights]


@st.composite
def float_trees(draw: st.DrawFn, vocab: int = 3, length: int = 3) -> PrefixTree:
    """Full float trees whose rows have zeros and tiny entries."""
    v, depth = draw(st.integers(1, vocab)), draw(st.integers(1, length))
    laws: dict[Any, list[float]] = {}

    def law(*key: Any) -> list[float]:
        if key not in laws:
            laws[key] = draw(rows(v))
        return laws[key]

    return PrefixTree.from_conditionals(lambda w: law(0, w), lambda w: law(1, w), v, depth)


def one_of(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the values, by its number (which keeps the descriptions of failing cases short)."""
    return st.integers(0, len(values) - 1).map(lambda number: values[number])


known_trees = one_of([*INSTANCES.values(), *DEGENERATE.values()])
seeded_trees = st.builds(
    PrefixTree.random,
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 5),
    st.sampled_from([1e-3, 0.1, 0.5, 3.0]),
)
some_trees = st.one_of(known_trees, seeded_trees, float_trees())
