"""Is it lossless, and how far off? The one place that answers, for the audit, the registry, sweeps, claims and demo.

    stateless   the exact law of one call, its block continued from the target to L+1 tokens
    stateful    the exact law of the first max(L+2, 4) tokens of a stream, call after call, the carry passed on: one
                call says nothing about the next. A carry returned for any outcome makes a verifier stateful.

Verdicts
    lossless       no law is further than the tolerance from the target's
    not lossless   one is
    broken         the code gave no law on some instance: it raised, hung, ended, or answered out of range
    undecided      nothing was looked at, or something could not be enumerated, or two exact results contradict each
                   other; the reason says what to change

Consistency: a lossless verifier keeps at most the certified optimum (of lossless verification, or, if it is stateful,
of block transport). One that seems lossless and keeps more is no discovery but a contradiction: see `contradiction`.

Letters: L draft length, K paths, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from specbound.runtime import registry
from specbound.theory import block_transport, multi_path, single_path
from specbound.theory.contexts import ContextModel, ModelPair, Prefix
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import Solution

from .deviation import distance
from .law import Law, exact_law
from .replay import TooLarge, Verify, function_of
from .stream import stream_law

Word = Literal["lossless", "not lossless", "broken", "undecided"]
Case = tuple[PrefixTree, int]
LOSSLESS_TOLERANCE = 1e-12
CONSISTENT = 1e-9
NOTHING = "no instance was looked at; give at least one"
UNDECIDED = ("not exact", "too large", "stateful", "contradiction")
VOID = "disagrees"
EXIT_CODES: dict[str, int] = {"lossless": 0, "not lossless": 1, "broken": 1, "undecided": 3}


@dataclass(frozen=True)
class Evidence:
    """The exact law of what a verifier emits on an instance, next to the target's law of the same tokens.

    Attributes:
        blocks, wanted: both laws: of L+1 tokens after one call, or, if it is stateful, of the first tokens of a stream.
        acceptance_length: expected tokens kept in the first call, the correction excluded.
        outcomes: number of outcomes of that call.
        stateful: it returned a carry, or declares that it does.
        resolution: total variation below which the law says nothing: rounding of the code's number format, the
            resolution of concrete coins, probability left out. 0 if it is exact in float64.
        notes: what a reader of the law has to know.
        bounded: whether no lossless verifier keeps more than the optimum here; False if it draws its own drafts.
    """

    blocks: dict[Prefix, float]
    wanted: dict[Prefix, float]
    acceptance_length: float
    outcomes: int
    stateful: bool
    resolution: float = 0.0
    notes: tuple[str, ...] = ()
    bounded: bool = True

    @property
    def total_variation(self) -> float:
        """Distance of the two laws, in [0, 1]."""
        return distance(self.blocks, self.wanted)


def evidence(
    verifier: str | Verify | registry.Verifier,
    tree: PrefixTree,
    paths: int = 1,
    stateful: bool = False,
    law: Law | None = None,
) -> Evidence:
    """The exact law of a tensor verifier on an instance, over as many calls as it takes to judge it.

    Args:
        verifier: a registered name, an entry of the registry, or a function `verify(batch, draws)`.
        stateful: follow several calls although this instance may show no carry.
        law: of one call, if it is known already.

    Raises:
        TooLarge: there are too many outcomes to enumerate.
        InvalidResult: it returned no verdict, or one that is out of range.
    """
    law = law or exact_law(verifier, tree, paths)
    if not (law.stateful or stateful):
        wanted = {block: float(probability) for block, probability in tree.target_law().items()}
        return Evidence(law.blocks, wanted, law.acceptance_length, law.outcomes, False)
    pair, tokens = looped_pair(tree), max(tree.length + 2, 4)
    try:
        stream = stream_law(verifier, pair, tree.length, tokens, paths)
    except TooLarge as error:
        error.acceptance_length = law.acceptance_length
        raise
    return Evidence(stream.tokens, pair.target_law(tokens), law.acceptance_length, law.outcomes, True)


def looped_pair(tree: PrefixTree) -> ModelPair:
    """The tree as two models for an endless stream: where it ends it continues at depth 1 with the same token, or, if
    it knows nothing behind that either, at the root."""
    tree = tree.as_float()
    inner = tree.leaves.start
    child = np.zeros((tree.size, tree.vocab), dtype=np.int64)
    child[tree.parent[1:], tree.token[1:]] = np.arange(1, tree.size)
    known = np.zeros(tree.size, dtype=bool)
    known[tree.parent[1:]] = True
    again = np.where(known[child[0]], child[0], 0)
    follow = np.where(known[child[:inner]] & (child[:inner] > 0), child[:inner], again)
    target, draft = (ContextModel(tree.rows(law)[:inner], follow) for law in (tree.target, tree.draft))
    return ModelPair(target, draft)


@lru_cache(maxsize=64)
def optimum(tree: PrefixTree, paths: int, stateful: bool = False) -> Solution:
    """The certified optimum that a lossless verifier keeps at most: of lossless verification, or, for one that may
    change the target of later positions, of block transport."""
    if paths == 1:
        return (block_transport if stateful else single_path).optimum(tree)
    solver = multi_path.transport_optimum if stateful else multi_path.lossless_optimum
    return solver(tree.as_float(), paths)


def contradiction(acceptance_length: float, bound: float) -> str | None:
    """Why a law that equals the target's cannot be right: it keeps more than any lossless verifier; None if it can.

    Args:
        acceptance_length: of a verifier whose law equals the target's.
        bound: certified upper bound of the optimum on the same instance.
    """
    if acceptance_length <= bound + CONSISTENT:
        return None
    return (
        f"its law seems to be the target's, but it keeps {acceptance_length:.6g} tokens per call where no "
        f"lossless verifier keeps more than {bound:.6g}: either it is not lossless over several calls (does it keep "
        "state outside its carry?), or this is a defect of specbound, which please report"
    )


def verdict(total_variations: Collection[float], troubles: Collection[str], tolerance: float) -> Word:
    """The verdict on instances with these distances, and with these kinds of trouble where there is no distance.

    Exact laws that real calls disagree with decide nothing.
    """
    if VOID in troubles:
        return "undecided"
    if any(not value <= tolerance for value in total_variations):
        return "not lossless"
    if any(kind not in UNDECIDED for kind in troubles):
        return "broken"
    return "lossless" if total_variations and not troubles else "undecided"


def lossless(word: str) -> bool | None:
    """What a verdict says of losslessness; None if it leaves it open."""
    return {"lossless": True, "not lossless": False, "broken": False}.get(word)


@dataclass(frozen=True)
class Judgement:
    """The verdict on a verifier over several instances.

    Attributes:
        verdict: see the module's opening.
        total_variation: the largest distance, None if there is none.
        reason: why it is broken or undecided, and then what to change.
    """

    verdict: Word
    total_variation: float | None
    reason: str | None = None

    @property
    def lossless(self) -> bool | None:
        """True or False if decided."""
        return lossless(self.verdict)


def judge(
    verifier: str | Verify | registry.Verifier, cases: Sequence[Case], tolerance: float = LOSSLESS_TOLERANCE
) -> Judgement:
    """Judge a tensor verifier on instances (tree, number of paths).

    If it returns a carry on one of them, it is followed over several calls on all.
    """
    stateful = isinstance(verifier, registry.Verifier) and verifier.stateful
    stateful = stateful or (isinstance(verifier, str) and registry.get(verifier).stateful)
    found, troubles = _examine(function_of(verifier), cases, stateful)
    if not stateful and any(entry.stateful for entry in found):
        found, troubles = _examine(function_of(verifier), cases, True)
    distances = [entry.total_variation for entry in found]
    word = verdict(distances, [kind for kind, _ in troubles], tolerance)
    reasons = [message for _, message in troubles] or [NOTHING]
    return Judgement(word, max(distances, default=None), reasons[0] if word in ("broken", "undecided") else None)


def combined(parts: Sequence[Judgement]) -> Judgement:
    """The verdict on one thing that was judged in several parts: the worst of theirs."""
    order = ("not lossless", "broken", "undecided", "lossless")
    worst = min(parts, key=lambda part: order.index(part.verdict), default=Judgement("undecided", None, NOTHING))
    distances = [part.total_variation for part in parts if part.total_variation is not None]
    return replace(worst, total_variation=max(distances, default=None))


def _examine(verify: Verify, cases: Sequence[Case], stateful: bool) -> tuple[list[Evidence], list[tuple[str, str]]]:
    """The evidence on each instance, or the kind of trouble and what it says."""
    found: list[Evidence] = []
    troubles: list[tuple[str, str]] = []
    for tree, paths in cases:
        try:
            entry = evidence(verify, tree, paths, stateful)
        except TooLarge as error:
            troubles.append(("too large", str(error)))
            continue
        except Exception as error:
            troubles.append(("exception", f"{type(error).__name__}: {error}"))
            continue
        found.append(entry)
        if entry.total_variation <= CONSISTENT:
            odd = contradiction(entry.acceptance_length, optimum(tree, paths, entry.stateful).bound)
            troubles += [("contradiction", odd)] if odd else []
    return found, troubles
