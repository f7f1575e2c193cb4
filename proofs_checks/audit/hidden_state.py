"""State that outlives a call: does the answer to a request depend on what was asked before, or beside it?

A verifier's verdict may depend on its request and on its draws, on nothing else. What breaks this is looked for on
purpose: counters, caches, a generator that is kept between calls, seeds set inside, answers that read another row of
the batch. The same requests are asked

    alone; once more; in the reverse order; together in a batch; in the batch turned round; twice in one batch

and every exact law of a request must be the same. A verifier that moves a global generator asks for randomness that
its `Draws` do not give: its replay is no law.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .foreign.lazy import NotExact

SAME = 1e-9
REQUESTS = 3

Laws = Sequence[Mapping[Hashable, float]]


class OutlivesCall(ValueError):
    """The answer to a request depends on earlier calls or on other requests."""


def look_for_state(ask: Callable[[Sequence[int]], Laws], requests: int, batches: bool = True) -> None:
    """Ask the same requests in several orders and compounds.

    Args:
        ask: exact laws of the requests with these numbers (0..requests-1), in one batch of that order.
        requests: how many there are; the first three are asked.
        batches: whether more than one may be asked at a time.

    Raises:
        OutlivesCall: if two laws of one request differ; says what they depend on.
    """
    numbers = list(range(min(requests, REQUESTS)))
    first = {number: ask([number])[0] for number in numbers}
    ways: list[tuple[str, list[list[int]]]] = [
        ("on how often it was asked before", [[number] for number in numbers]),
        ("on what was asked before it", [[number] for number in reversed(numbers)]),
    ]
    if batches:
        ways += [
            ("on the other requests in its batch", [numbers]),
            ("on its place in the batch", [numbers[::-1]]),
            ("on its place in a batch that holds it twice", [[number, *numbers] for number in numbers[:1]]),
        ]
    for what, questions in ways:
        for batch in questions:
            for number, law in zip(batch, ask(batch), strict=True):
                if _far(law, first[number]):
                    raise OutlivesCall(f"the verdict of a request depends {what}: {_shown(first[number], law)}")


def _far(law: Mapping[Hashable, float], other: Mapping[Hashable, float]) -> bool:
    return any(abs(law.get(key, 0.0) - other.get(key, 0.0)) > SAME for key in law.keys() | other.keys())


def _shown(law: Mapping[Any, float], other: Mapping[Any, float]) -> str:
    key = max(law.keys() | other.keys(), key=lambda key: abs(law.get(key, 0.0) - other.get(key, 0.0)))
    return f"outcome {key} has probability {law.get(key, 0.0):.6g} there and {other.get(key, 0.0):.6g} here"


def only_its_draws(call: Callable[[], Any]) -> Any:
    """The result of a call that must leave the global generators of Python, NumPy and torch alone.

    Raises:
        NotExact: if it drew from one of them, or set its state.
    """
    random.random()
    np.random.random()  # noqa: NPY002 - the state of the global generator is what is watched
    torch.rand(())
    before = _states()
    result = call()
    if _states() != before:
        raise NotExact(
            "it drew from the global generator of random, numpy or torch, or set its state: take all randomness "
            "from the draws that are passed in, or sample it"
        )
    return result


def _states() -> tuple[Any, ...]:
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return (
        random.getstate(),
        legacy["state"]["pos"],
        legacy["state"]["key"].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )
