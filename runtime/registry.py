"""The one list of verifiers: the command line, the decoder, the kernels, the checks and the tests all read it.

What an entry declares (lossless, stateful, closed form) is a claim like any other: the checks measure it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from .draws import Draws
from .verdict import Batch, Verdict

Verify = Callable[[Batch, Draws], Verdict]
Paths = Literal["single", "many"]
Drafts = Literal["independent", "any"]
DEFAULTS: Mapping[Paths, str] = MappingProxyType({"single": "block", "many": "score-race"})


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
        drafts: what it wants of the drafted paths: "independent" ones, each drawn token by token from its draft rows;
            or "any", such as the best block of a beam search.
        reads_after: True if it wants the draft's row after the whole path, `Batch.draft_after`.
        closed_form: the name of its exact value in `specbound.theory.known_values`, None if none is known.
        kernel: "module:function" in `specbound.runtime.kernels`, a fused version `function(batch, generator) ->
            Verdict` that takes its uniforms in the order of the tensor version's questions; None if there is none.
        kept: for single paths, from a batch to [B, L], Pr(at least i tokens of the given draft are kept) for
            i = 1..L, where that does not depend on how many more are drafted; None if it does, or is not known.
        make: makes the algorithm with other settings, `make(**options) -> Verify`; None if there are none.
        options: the settings that `make` takes.
        settings: those that were given to `make`.
        needs: what must be provided before `verify` can run, for people; "" if nothing.
    """

    name: str
    verify: Verify
    summary: str
    source: str
    paths: Paths
    lossless: bool
    stateful: bool
    cost: str
    drafts: Drafts = "independent"
    reads_after: bool = False
    closed_form: str | None = None
    kernel: str | None = None
    kept: Callable[[Batch], Tensor] | None = field(default=None, repr=False)
    make: Callable[..., Verify] | None = field(default=None, repr=False)
    options: tuple[str, ...] = ()
    needs: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def requires(self) -> str:
        """What it wants of the drafts, for people."""
        if self.drafts == "any":
            return "one path, however chosen" if self.paths == "single" else "paths, however chosen"
        return "one path" if self.paths == "single" else "independent paths"

    def configured(self, **options: Any) -> Verifier:
        """The same verifier with these settings; those it was given before stay.

        Raises:
            ValueError: it does not have such a setting, or not with that value.
        """
        unknown = sorted(options.keys() - set(self.options))
        if unknown or self.make is None:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"verifier {self.name!r} has no setting {', '.join(unknown)}; it has {known}")
        settings = {**self.settings, **options}
        return replace(self, verify=self.make(**settings), settings=settings)


_VERIFIERS: dict[str, Verifier] = {}


def register(
    name: str,
    *,
    summary: str,
    source: str,
    paths: Paths,
    lossless: bool = True,
    stateful: bool = False,
    cost: str = "O(L V)",
    drafts: Drafts = "independent",
    reads_after: bool = False,
    closed_form: str | None = None,
    kernel: str | None = None,
    kept: Callable[[Batch], Tensor] | None = None,
    make: Callable[..., Verify] | None = None,
    options: tuple[str, ...] = (),
    needs: str = "",
) -> Callable[[Verify], Verify]:
    """Decorator that enters a verifier in the registry under `name`; the facts are those of `Verifier`."""

    def enter(verify: Verify) -> Verify:
        if name in _VERIFIERS:
            raise ValueError(f"verifier {name!r} is registered twice; choose another name")
        _VERIFIERS[name] = Verifier(
            name=name,
            verify=verify,
            summary=summary,
            source=source,
            paths=paths,
            lossless=lossless,
            stateful=stateful,
            cost=cost,
            drafts=drafts,
            reads_after=reads_after,
            closed_form=closed_form,
            kernel=kernel,
            kept=kept,
            make=make,
            options=options,
            needs=needs,
        )
        return verify

    return enter


def names() -> list[str]:
    """Registered names, in the order of registration."""
    return list(_VERIFIERS)


def entries() -> list[Verifier]:
    """All entries, in the order of registration."""
    return list(_VERIFIERS.values())


def get(name: str) -> Verifier:
    """The entry of that name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in _VERIFIERS:
        raise ValueError(f"verifier is {name!r}; known are {', '.join(_VERIFIERS)}")
    return _VERIFIERS[name]


def default(paths: int) -> Verifier:
    """The entry to use for K = `paths` where nobody asked for another."""
    return get(DEFAULTS["single" if paths == 1 else "many"])


def of_closed_form(name: str) -> Verifier:
    """The entry whose exact value `specbound.theory.known_values` gives under that name.

    Raises:
        ValueError: if there is none.
    """
    for entry in _VERIFIERS.values():
        if entry.closed_form == name:
            return entry
    raise ValueError(f"closed form {name!r} belongs to no registered verifier")


@torch.no_grad()
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
