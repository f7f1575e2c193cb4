"""Where the laws of an audited target are computed: in this process, or, for foreign code, in a sandbox."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from specbound.theory.prefix_tree import Prefix, PrefixTree

from ..laws.deviation import Deviation
from ..laws.judge import Evidence
from .foreign.sandbox import Died, Raised, Sandbox, message_of
from .large import LargeLaw
from .subject import facts_of, load, subject_of

DRIVERS = "active drivers"
NO_GPU = (
    ": there is no GPU for this Triton kernel. Name it as package.module:function, and the audit has Triton interpret "
    "it, or set TRITON_INTERPRET=1 before its module is imported"
)
RECORDS = (Evidence, LargeLaw, Deviation)
KINDS = {
    "NotExact": "not exact",
    "TooLarge": "too large",
    "Stateful": "stateful",
    "InvalidResult": "invalid result",
    "OutlivesCall": "invalid result",
}


class Broken(Exception):
    """There is no law on an instance; `kind` as in `report.Breakdown`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Laboratory:
    """Where the target is run: in this process, or in a sandbox; `call(request, ...)` asks its subject.

    Attributes:
        way, paths, declared, stateful, families, sharper: see `subject.facts_of`.
        precise: whether laws are asked for with rows in float64.
    """

    way: str
    paths: str
    declared: bool | None
    stateful: bool
    families: tuple[str, ...]
    sharper: bool
    call: Callable[..., Any]
    precise: bool = False

    def in_float64(self) -> Laboratory | None:
        """The same with rows in float64; None if they are, or cannot be."""
        return replace(self, precise=True) if self.sharper else None

    def evidence(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = False) -> Evidence:
        """The exact law on one instance (see `Subject.evidence`).

        Raises:
            Broken: if the code gives none.
        """
        with _breakdowns():
            return self.call("precise" if self.precise else "evidence", tree, paths, stateful, thorough)

    def sample(self, tree: PrefixTree, paths: int, count: int, seed: int, device: str) -> dict[Prefix, int]:
        """Counts of emitted blocks (see `Subject.sample`).

        Raises:
            Broken: if the code breaks down.
        """
        with _breakdowns():
            return self.call("sample", tree.as_float(), paths, count, seed, device)

    def real(self, tree: PrefixTree, paths: int, count: int, seed: int) -> dict[Prefix, int]:
        """Counts of the first L+1 tokens of real calls (see `Subject.real`).

        Raises:
            Broken: if the code breaks down.
        """
        with _breakdowns():
            return self.call("real", tree.as_float(), paths, count, seed)

    def large(self, vocab: int, length: int, seed: int) -> LargeLaw:
        """The exact law on an instance of a large vocabulary (see `Subject.large`).

        Raises:
            Broken: if the code gives none.
        """
        with _breakdowns():
            return self.call("large", vocab, length, seed)

    def stream(self, tree: PrefixTree, paths: int, count: int, seed: int, tokens: int) -> dict[Prefix, int]:
        """Counts of the first tokens of streams (see `Subject.stream`).

        Raises:
            Broken: if the code breaks down.
        """
        with _breakdowns():
            return self.call("stream", tree.as_float(), paths, count, seed, tokens)


@contextlib.contextmanager
def _breakdowns() -> Iterator[None]:
    """Whatever the code or its process does to us becomes `Broken`."""
    try:
        yield
    except Died as error:
        raise Broken(error.kind, str(error)) from None
    except Raised as error:
        kind = KINDS.get(error.name, "exception")
        what = f"{error.name}: {error} ({error.line})" if kind == "exception" else str(error)
        raise Broken(kind, what) from None
    except Exception as error:
        name, said = type(error).__name__, message_of(error)
        kind = KINDS.get(name, "exception")
        raise Broken(kind, f"{name}: {said}{NO_GPU * (DRIVERS in said)}" if kind == "exception" else said) from error


@contextlib.contextmanager
def laboratory(target: Any, seconds: float, memory: int | None) -> Iterator[Laboratory]:
    """Registered verifiers and objects are run in this process, `package.module:attribute` in a sandbox.

    Without a GPU the sandbox has Triton interpret its kernels.

    A target that ends or hangs its process as soon as it is imported or called is audited all the same: that is what
    its laboratory answers to every question.

    Raises:
        ValueError: if there is no such target, or it cannot be loaded.
    """
    if not isinstance(target, str) or ":" not in target:
        subject = load(target) if isinstance(target, str) else subject_of(target)
        with _one_thread():
            yield Laboratory(*facts_of(subject), lambda request, *arguments: getattr(subject, request)(*arguments))
        return
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    loader = "specbound.proofs_checks.audit.subject:serve"
    with Sandbox(loader, target, seconds, memory, records=RECORDS, environment=interpreted) as sandbox:
        try:
            way, paths, declared, stateful, families, sharper = sandbox.call("facts")
        except Raised as error:
            raise ValueError(str(error) if error.name == "ValueError" else f"{error.name}: {error}") from None
        except Died as error:
            yield _fatal(error)
            return
        yield Laboratory(way, paths, declared, stateful, families, sharper, sandbox.call)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """On tensors of a few numbers torch's threads only wait for each other; a sandbox has one as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fatal(error: Died) -> Laboratory:
    """The laboratory of code that ended its process at the first touch."""

    def died(*_: Any) -> Any:
        raise error

    return Laboratory("replay", "single", None, False, (), False, died)
