"""The one list of verifiers: the command line, the decoder, the checks and the tests all read it.

What an entry declares (lossless, stateful) is a claim like any other: the checks measure it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .draws import Draws
from .verdict import Batch, Verdict

Verify = Callable[[Batch, Draws], Verdict]


@dataclass(frozen=True)
class Verifier:
    """A verification algorithm and the facts it declares.

    Attributes:
        name: how the command line and `verify` call it.
        verify: the algorithm, `verify(batch, draws) -> Verdict`.
        summary: one line for people.
        source: paper, theorem or equation.
        paths: "single" (K = 1) or "many" (K >= 1).
        lossless: True if the emitted stream has exactly the target's law.
        stateful: True if `Verdict.carry` must be passed on to the next call.
        cost: operations per request in the letters K, L, V.
    """

    name: str
    verify: Verify
    summary: str
    source: str
    paths: Literal["single", "many"]
    lossless: bool
    stateful: bool
    cost: str


_VERIFIERS: dict[str, Verifier] = {}


def register(
    name: str,
    *,
    summary: str,
    source: str,
    paths: Literal["single", "many"],
    lossless: bool = True,
    stateful: bool = False,
    cost: str = "O(L V)",
) -> Callable[[Verify], Verify]:
    """Decorator that enters a verifier in the registry under `name`."""

    def enter(verify: Verify) -> Verify:
        if name in _VERIFIERS:
            raise ValueError(f"verifier {name!r} is registered twice; choose another name")
        _VERIFIERS[name] = Verifier(name, verify, summary, source, paths, lossless, stateful, cost)
        return verify

    return enter


def names() -> list[str]:
    """Registered names, in the order of registration."""
    return list(_VERIFIERS)


def get(name: str) -> Verifier:
    """The entry of that name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in _VERIFIERS:
        raise ValueError(f"verifier is {name!r}; known are {', '.join(_VERIFIERS)}")
    return _VERIFIERS[name]


def verify(name: str, batch: Batch, draws: Draws, *, validate: bool = True) -> Verdict:
    """Run the verifier `name` on a batch.

    Args:
        validate: check shapes, devices and rows first; False saves reading the rows (production).

    Raises:
        ValueError: unknown name, malformed batch, or more paths than the verifier takes.
    """
    verifier = get(name)
    if validate:
        batch.validate()
    paths = batch.draft_probs.shape[1]
    if verifier.paths == "single" and paths != 1:
        raise ValueError(f"verifier {name!r} takes one path; the batch has {paths}")
    return verifier.verify(batch, draws)
