"""What is audited: a registered verifier, a tensor verifier of somebody else's, or foreign scalar code.

A target is a registered name or `package.module:attribute`. The attribute may be a function `verify(batch, draws)`
(audited by replay), a `Foreign` adapter, or a function of drafted tokens and probabilities whose parameters' names
say what they take (both audited by interception).
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
import torch

from specbound.runtime import registry
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.theory.contexts import Prefix
from specbound.theory.prefix_tree import PrefixTree

from ..laws import judge
from ..laws.judge import Evidence
from ..laws.law import batch_of
from ..laws.replay import Stateful, Verify, replay
from .foreign import conventions
from .foreign.adapters import KNOWN, Foreign, call_of, enumerated, foreign
from .foreign.drafting import DraftAndVerify, draft_and_verify, joint_law, takes_laws
from .foreign.lazy import NotExact
from .foreign.sandbox import alive
from .foreign.triton_coins import repair_interpreter
from .hidden_state import look_for_state, only_its_draws
from .large import LargeLaw, large_instance, large_law
from .reality import continued, real_streams

BATCH = 8192
NO_LARGE = "exact laws at large vocabularies want a foreign function that is given its drafts"


class Subject(Protocol):
    """Something that can be audited exactly."""

    way: Literal["replay", "interception"]
    paths: Literal["single", "many"]
    lossless: bool | None
    stateful: bool
    families: tuple[str, ...]

    def evidence(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = True) -> Evidence:
        """Its exact law on an instance, over several calls if it is `stateful` or returns a carry.

        Args:
            thorough: also look for requests that influence each other.
        """

    def precise(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = True) -> Evidence:
        """The same with rows in float64."""

    def sample(self, tree: PrefixTree, paths: int, count: int, seed: int, device: str) -> dict[Prefix, int]:
        """Counts of the blocks emitted in `count` real calls on drafts drawn from the draft law."""

    def real(self, tree: PrefixTree, paths: int, count: int, seed: int) -> dict[Prefix, int]:
        """Counts of the first L+1 tokens of `count` real calls, continued by the target that it was given."""

    def large(self, vocab: int, length: int, seed: int) -> LargeLaw:
        """Its exact law on an instance of a large vocabulary (see `large`)."""

    def stream(self, tree: PrefixTree, paths: int, count: int, seed: int, tokens: int) -> dict[Prefix, int]:
        """Counts of the first tokens of `count` real streams, call after call, the carry passed on."""


@dataclass(frozen=True)
class TensorSubject:
    """A verifier written against `Draws`; `lossless` and `stateful` are what it declares, None and False if nothing."""

    verify: Verify
    paths: Literal["single", "many"]
    lossless: bool | None
    stateful: bool = False
    way: Literal["replay", "interception"] = "replay"
    families: tuple[str, ...] = ()
    sharper: bool = False

    def evidence(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = True) -> Evidence:
        """Exact law by replay (see `judge.evidence`).

        Raises:
            OutlivesCall: if a request's verdict depends on what was asked before it, or beside it in a batch.
            NotExact: if it takes random numbers from elsewhere than its draws.
            ValueError: see `judge.evidence`.
        """
        if not thorough:
            return judge.evidence(self.verify, tree, paths, stateful)

        def verify(batch: Batch, draws: Draws) -> Verdict:
            return only_its_draws(lambda: self.verify(batch, draws))

        _look_for_state(verify, tree.as_float(), paths)
        return judge.evidence(verify, tree, paths, stateful)

    def precise(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = True) -> Evidence:
        """As `evidence`: its rows are in float64."""
        return self.evidence(tree, paths, stateful, thorough)

    def sample(self, tree: PrefixTree, paths: int, count: int, seed: int, device: str) -> dict[Prefix, int]:
        """Run in batches with a generator on the device, as in production; the drafts are drawn on the CPU.

        Raises:
            Stateful: it returns a carry, and one sampled call says nothing about the calls after it.
        """
        generator = torch.Generator(device).manual_seed(seed)
        counts: Counter[Prefix] = Counter()
        for leaves in _drafts(tree, paths, count, seed):
            batch = batch_of(tree, leaves)
            moved = Batch(batch.tokens.to(device), batch.draft_probs.to(device), batch.target_probs.to(device))
            verdict = self.verify(moved, Draws(generator))
            if verdict.carry is not None:
                raise Stateful("it returns a carry, and the sampled audit looks at one call; audit it exactly")
            winner = batch.tokens.numpy()[np.arange(len(leaves)), verdict.path.cpu().numpy()]
            for path, kept, token in zip(
                winner.tolist(), verdict.accepted.tolist(), verdict.token.tolist(), strict=True
            ):
                counts[(*path[:kept], token)] += 1
        return dict(counts)

    def real(self, tree: PrefixTree, paths: int, count: int, seed: int) -> dict[Prefix, int]:
        """See `Subject.real`."""
        return continued(tree, self.sample(tree, paths, count, seed, "cpu"), seed)

    def large(self, vocab: int, length: int, seed: int) -> LargeLaw:
        """Not asked: a tensor verifier is replayed on small vocabularies."""
        raise NotExact(NO_LARGE)

    def stream(self, tree: PrefixTree, paths: int, count: int, seed: int, tokens: int) -> dict[Prefix, int]:
        """Real streams of different requests in one batch, on the two models of `judge.looped_pair`."""
        return real_streams(self.verify, judge.looped_pair(tree), tree.length, paths, count, seed, tokens)


@dataclass(frozen=True)
class ForeignSubject:
    """Scalar code behind an adapter."""

    code: Foreign
    way: Literal["replay", "interception"] = "interception"
    lossless: bool | None = None
    stateful: bool = False

    @property
    def paths(self) -> Literal["single", "many"]:
        """ "single" if it takes one drafted path."""
        return self.code.paths

    @property
    def families(self) -> tuple[str, ...]:
        """Families of instances that its audit must hold."""
        return self.code.families

    def evidence(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = True) -> Evidence:
        """Exact law by interception (see `enumerated`)."""
        found = enumerated(self.code, tree, paths, thorough)
        law = found.law
        return Evidence(
            law.blocks, found.wanted, law.acceptance_length, law.outcomes, False, found.resolution, found.notes
        )

    @property
    def sharper(self) -> bool:
        """Whether its rows are in a coarser format, and it can be asked with rows in float64 (`precise`)."""
        return self.code.precise is not None

    def precise(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = True) -> Evidence:
        """See `Subject.precise`."""
        code = self.code.precise() if self.code.precise else self.code
        return ForeignSubject(code).evidence(tree, paths, stateful, thorough)

    def sample(self, tree: PrefixTree, paths: int, count: int, seed: int, device: str) -> dict[Prefix, int]:
        """Call it once per draft with its own randomness; the global generators are seeded first, and put back."""
        counts: Counter[Prefix] = Counter()
        tree = self.code.handed(tree)
        call = cache(lambda *leaves: call_of(tree, leaves))
        with _seeded(seed):
            for leaves in _drafts(tree, paths, count, seed):
                for row in leaves.tolist():
                    alive()
                    counts[self.code(call(*row))] += 1
        return dict(counts)

    def real(self, tree: PrefixTree, paths: int, count: int, seed: int) -> dict[Prefix, int]:
        """See `Subject.real`."""
        return continued(self.code.handed(tree), self.sample(tree, paths, count, seed, "cpu"), seed)

    def large(self, vocab: int, length: int, seed: int) -> LargeLaw:
        """See `Subject.large`; with rows in float64 if it runs with them."""
        if self.code.precise is not None:
            code = self.code.precise()
            with contextlib.suppress(TypeError, RuntimeError, AssertionError):
                return large_law(code, large_instance(vocab, length, seed, code.row))
        return large_law(self.code, large_instance(vocab, length, seed, self.code.row))

    def stream(self, tree: PrefixTree, paths: int, count: int, seed: int, tokens: int) -> dict[Prefix, int]:
        """Not asked: foreign code returns no carry."""
        raise Stateful("foreign code returns no carry; its calls are independent")


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators of Python, NumPy and torch, seeded; afterwards as they were."""
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the code under audit may use it
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_cpu)


@dataclass(frozen=True)
class PairSubject:
    """Drafter and verifier in one function (see `foreign.drafting`)."""

    code: DraftAndVerify
    way: Literal["replay", "interception"] = "interception"
    lossless: bool | None = None
    stateful: bool = False
    families: tuple[str, ...] = ()

    @property
    def paths(self) -> Literal["single", "many"]:
        """ "single" if it takes no number of paths."""
        return self.code.paths

    def evidence(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = True) -> Evidence:
        """Exact joint law, of which the emitted tokens are judged and the drafts reported."""
        found = joint_law(self.code, tree, paths)
        law = found.law
        notes = [*found.notes, "Drafter and verifier are audited together, all their coins enumerated jointly."]
        if found.draft_distance is not None:
            apart = found.draft_distance > 1e-9
            notes.append(f"The drafts do {'not ' if apart else ''}follow the draft law.")
        return Evidence(
            law.blocks,
            found.wanted,
            law.acceptance_length,
            law.outcomes,
            False,
            found.resolution,
            tuple(notes),
            bounded=False,
        )

    @property
    def sharper(self) -> bool:
        """Whether its rows are in a coarser format, and it can be asked with rows in float64 (`precise`)."""
        return self.code.precise is not None

    def precise(self, tree: PrefixTree, paths: int, stateful: bool = False, thorough: bool = True) -> Evidence:
        """See `Subject.precise`."""
        code = self.code.precise() if self.code.precise else self.code
        return PairSubject(code).evidence(tree, paths, stateful, thorough)

    def sample(self, tree: PrefixTree, paths: int, count: int, seed: int, device: str) -> dict[Prefix, int]:
        """Call it with its own randomness; the global generators are seeded first, and put back."""
        counts: Counter[Prefix] = Counter()
        tree = self.code.handed(tree)
        with _seeded(seed):
            for _ in range(count):
                alive()
                counts[self.code(tree, paths)[0]] += 1
        return dict(counts)

    def real(self, tree: PrefixTree, paths: int, count: int, seed: int) -> dict[Prefix, int]:
        """See `Subject.real`."""
        return continued(self.code.handed(tree), self.sample(tree, paths, count, seed, "cpu"), seed)

    def large(self, vocab: int, length: int, seed: int) -> LargeLaw:
        """Not asked: its drafts cannot be held to few tokens."""
        raise NotExact(NO_LARGE)

    def stream(self, tree: PrefixTree, paths: int, count: int, seed: int, tokens: int) -> dict[Prefix, int]:
        """Not asked: foreign code returns no carry."""
        raise Stateful("foreign code returns no carry; its calls are independent")


def _drafts(tree: PrefixTree, paths: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Leaves [N, K] drawn from the draft law, in batches."""
    rng = np.random.default_rng(seed)
    law = tree.draft_joint[tree.leaves].astype(float)
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        yield rng.choice(len(law), size=(size, paths), p=law / law.sum()) + tree.leaves.start


def _look_for_state(verify: Verify, tree: PrefixTree, paths: int) -> None:
    """Compare the laws of three requests alone, in batches and in several orders (see `hidden_state`)."""
    drafted = np.flatnonzero(tree.draft_joint[tree.leaves] > 0) + tree.leaves.start
    leaves = np.stack([drafted[[place] * paths] for place in (0, -1, len(drafted) // 2)])

    def ask(requests: Sequence[int]) -> list[dict[Hashable, float]]:
        return _verdicts(verify, batch_of(tree, leaves[list(requests)]))

    look_for_state(ask, len(leaves))


def _verdicts(verify: Verify, batch: Batch) -> list[dict[Hashable, float]]:
    """The exact law of the verdict of each request."""
    laws: list[dict[Hashable, float]] = [{} for _ in batch.tokens]
    for outcome in replay(verify, batch):
        for row, *verdict, chance in zip(
            outcome.row, outcome.path, outcome.accepted, outcome.token, outcome.probability, strict=True
        ):
            key = tuple(int(value) for value in verdict)
            laws[row][key] = laws[row].get(key, 0.0) + float(chance)
    return laws


# ---------------------------------------------------------------------- targets


def load(target: str) -> TensorSubject | ForeignSubject | PairSubject:
    """The subject named by a target, `name`, `module:attribute` or `module:attribute@convention,dtype`.

    Raises:
        ValueError: if there is no such name, module or attribute, or it cannot be called as a verifier.
    """
    target, _, called = target.partition("@")
    if ":" not in target:
        entry = registry.get(target)
        if entry.needs:
            raise ValueError(f"target is {target!r}, which needs {entry.needs}; audit `VERIFIER = ...` of a module")
        return _registered(entry)
    module_name, _, attribute = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"target is {target!r}: {error}; want a registered name or package.module:function") from None
    repair_interpreter()
    if called and called != "ours":
        return subject_of(conventions.subject(found, *called.split(",")))
    if target in KNOWN:
        return ForeignSubject(KNOWN[target](found))
    return subject_of(found)


def subject_of(found: Any) -> TensorSubject | ForeignSubject | PairSubject:
    """The subject for a verifier, an adapter or a function (see the module's opening).

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(found, DraftAndVerify):
        return PairSubject(found)
    if isinstance(found, Foreign):
        return ForeignSubject(found)
    if isinstance(found, registry.Verifier):
        return _registered(found)
    for name in registry.names():
        if registry.get(name).verify is found:
            return _registered(registry.get(name))
    if not callable(found):
        raise ValueError(f"the target is {found!r}; want a function or a Foreign adapter")
    if _takes_draws(found):
        return TensorSubject(found, "many", None)
    return PairSubject(draft_and_verify(found)) if takes_laws(found) else ForeignSubject(foreign(found))


def facts_of(
    subject: TensorSubject | ForeignSubject | PairSubject,
) -> tuple[str, str, bool | None, bool, tuple[str, ...], bool]:
    """What a laboratory knows of a subject without asking it for a law."""
    return subject.way, subject.paths, subject.lossless, subject.stateful, subject.families, subject.sharper


def _registered(verifier: registry.Verifier) -> TensorSubject:
    return TensorSubject(verifier.verify, verifier.paths, verifier.lossless, verifier.stateful)


def _takes_draws(function: Callable[..., Any]) -> bool:
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return len(required) == 2 and required[0].endswith("batch") and required[1].endswith("draws")


def serve(target: str) -> Callable[..., Any]:
    """What a sandbox asks of a target: `("facts",)`, `("evidence", ...)` or `("sample", ...)`."""
    subject = load(target)

    def answer(request: str, *arguments: Any) -> Any:
        if request == "facts":
            return facts_of(subject)
        return getattr(subject, request)(*arguments)

    return answer
