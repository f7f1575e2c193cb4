"""The audit: is this verifier lossless, and if not, where, by how much, on which smallest instance, and why?

Exact for tensor verifiers (replay of `Draws`) and for foreign scalar code (interception of its randomness); for
opaque code see `sampled`. Foreign code runs in a process of its own (`sandbox`), so that a hang, a crash or an exit
is a finding.

Letters: V vocabulary size, L draft length, K paths, p target row, q draft row, tau accepted tokens per call.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from specbound.proofs_checks.adapters import Foreign, InvalidResult
from specbound.proofs_checks.deviation import Deviation, as_fractions, distance, find_deviation, marginal
from specbound.proofs_checks.instances import Instance, instances
from specbound.proofs_checks.lazy import NotExact
from specbound.proofs_checks.mistakes import MISTAKES
from specbound.proofs_checks.sandbox import Died, Raised, Sandbox
from specbound.proofs_checks.shrink import Shrunk, rows_of, shrink
from specbound.proofs_checks.subject import Evidence, load, subject_of
from specbound.theory import single_path
from specbound.theory.prefix_tree import PrefixTree

TOLERANCE = 1e-9
MAX_TUPLES = {"replay": 400, "interception": 400, "stateful": 30}
MAX_BREAKDOWNS = 3
COMPARED = 4
STORY_GAP = 1e-3


@dataclass(frozen=True)
class Breakdown:
    """The code gave no law at all.

    Attributes:
        kind: "hang", "crash", "exit", "memory", "exception", "invalid result" or "not exact".
        message: what happened.
        vocab, length, paths: size of the instance it happened on.
    """

    kind: str
    message: str
    vocab: int
    length: int
    paths: int


@dataclass(frozen=True)
class Case:
    """One instance and what was found on it; `deviation` is None if the law is the target's."""

    instance: Instance
    deviation: Deviation | None
    acceptance_length: float
    optimum: float | None


@dataclass(frozen=True)
class Counterexample:
    """The smallest instance found on which the failure remains.

    Attributes:
        instance: the prefix tree as JSON (fractions), paths K.
        deviation: what goes wrong there; None if the code breaks down on it.
        emitted, wanted: the wrong probability and the right one as fractions; `emitted` is None if no fraction could
            be recovered from the computed float.
        story: five lines for people.
        trials: instances tried to find it.
    """

    instance: str
    paths: int
    deviation: Deviation | None
    emitted: Fraction | None
    wanted: Fraction | None
    story: tuple[str, ...]
    trials: int


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        target: what was audited; way: "replay", "interception" or "sampled".
        verdict: "lossless", "not lossless", "broken" (it crashed, hung, ...) or "undecided" (not exactly auditable).
        declared: what a registered verifier declares about itself, None if nothing.
        cases: number of instances audited; skipped: sizes that were too large to enumerate.
        worst: the deviation of largest total variation; position: the first wrong position over all cases.
        acceptance: mean and smallest ratio to the lossless optimum, and the largest excess over it.
        breakdowns: crashes and the like.
        counterexample: the minimal one; causes: known mistakes whose law equals the code's on every case compared.
        limits: what the audit does not say.
        seconds: time taken.
    """

    target: str
    way: str
    verdict: str
    declared: bool | None
    cases: int
    skipped: tuple[str, ...]
    tolerance: float
    largest_total_variation: float
    worst: Deviation | None
    position: int | None
    acceptance: dict[str, float]
    breakdowns: tuple[Breakdown, ...]
    counterexample: Counterexample | None
    causes: tuple[str, ...]
    limits: str
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def lossless(self) -> bool:
        """True if no case showed a deviation or a breakdown."""
        return self.verdict == "lossless"

    @property
    def exit_code(self) -> int:
        """0 lossless, 1 not lossless or broken, 2 if the code cannot be audited this way."""
        return {"lossless": 0, "undecided": 2}.get(self.verdict, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; fractions as strings."""
        found = self.counterexample
        counterexample = found and {
            "instance": found.instance,
            "paths": found.paths,
            "deviation": found.deviation and found.deviation.to_dict(),
            "emitted": None if found.emitted is None else str(found.emitted),
            "wanted": None if found.wanted is None else str(found.wanted),
            "story": list(found.story),
            "trials": found.trials,
        }
        return {
            "target": self.target,
            "way": self.way,
            "verdict": self.verdict,
            "lossless": self.lossless,
            "declared": self.declared,
            "cases": self.cases,
            "skipped": list(self.skipped),
            "tolerance": self.tolerance,
            "largest_total_variation": self.largest_total_variation,
            "worst": self.worst and self.worst.to_dict(),
            "position": self.position,
            "acceptance": self.acceptance,
            "breakdowns": [vars(breakdown) for breakdown in self.breakdowns],
            "counterexample": counterexample,
            "causes": list(self.causes),
            "limits": self.limits,
            "seconds": self.seconds,
            **self.details,
        }


class Broken(Exception):
    """A breakdown on one instance."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Laboratory:
    """Where the laws of the target are computed: in this process, or in a sandbox."""

    way: str
    paths: str
    declared: bool | None
    stateful: bool
    ask: Callable[[PrefixTree, int, bool], Evidence]

    def evidence(self, tree: PrefixTree, paths: int, thorough: bool = False) -> Evidence:
        """The exact law on one instance (see `Subject.evidence`).

        Raises:
            Broken: if the code gives none.
        """
        try:
            return self.ask(tree, paths, thorough)
        except Died as error:
            raise Broken(error.kind, str(error)) from None
        except Raised as error:
            kind = {"NotExact": "not exact", "InvalidResult": "invalid result"}.get(error.name, "exception")
            what = f"{error.name}: {error} ({error.line})" if kind == "exception" else str(error)
            raise Broken(kind, what) from None
        except NotExact as error:
            raise Broken("not exact", str(error)) from None
        except InvalidResult as error:
            raise Broken("invalid result", str(error)) from None
        except Exception as error:
            raise Broken("exception", f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def laboratory(target: Any, seconds: float, memory: int) -> Iterator[Laboratory]:
    """Registered verifiers and objects are run in this process, `package.module:attribute` in a sandbox.

    Raises:
        ValueError: if there is no such target, or it cannot be loaded.
    """
    if not isinstance(target, str) or ":" not in target:
        subject = load(target) if isinstance(target, str) else subject_of(target)
        yield Laboratory(subject.way, subject.paths, subject.lossless, subject.stateful, subject.evidence)
        return
    with Sandbox("specbound.proofs_checks.subject:serve", target, seconds, memory) as sandbox:
        try:
            way, paths, declared, stateful = sandbox.call("facts")
        except Raised as error:
            raise ValueError(str(error) if error.name == "ValueError" else f"{error.name}: {error}") from None
        except Died as error:
            raise ValueError(f"target {target!r} could not be loaded: {error}") from None
        yield Laboratory(way, paths, declared, stateful, lambda *case: sandbox.call("evidence", *case))


def audit(
    target: str | Foreign | Callable[..., Any],
    vocab: range = range(2, 4),
    length: range = range(1, 4),
    paths: range = range(1, 3),
    cases: int = 120,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    seconds: float = 60.0,
    memory: int = 4096,
) -> AuditReport:
    """Audit a verifier exactly on random and degenerate instances.

    Args:
        target: a registered name, "package.module:attribute" (run in a sandbox), or a function or adapter (run here).
        vocab, length, paths: sizes V, L, K of the instances; a target that takes one path is audited with K = 1 only.
        cases: number of instances, spread over the sizes.
        seed: names the instances.
        tolerance: largest total variation that counts as rounding.
        seconds, memory: limits of the sandbox, per instance, in seconds and MiB.

    Raises:
        ValueError: for an unknown target, empty ranges, or code that cannot be loaded.
    """
    started = time.perf_counter()
    with laboratory(target, seconds, memory) as lab:
        counts = paths if lab.paths == "many" else range(1, 2)
        wanted = list(instances(vocab, length, counts, cases, seed))
        possible = [case for case in wanted if _tuples(case) <= MAX_TUPLES["stateful" if lab.stateful else lab.way]]
        skipped = sorted({case.size for case in wanted} - {case.size for case in possible})
        found, breakdowns = _examine(lab, possible, tolerance)
        failed = [case for case in found if case.deviation is not None]
        counterexample, causes = None, ()
        if failed:
            counterexample, causes = _explain(lab, failed, tolerance)
        elif breakdowns and breakdowns[0][0].kind not in ("hang", "not exact"):
            counterexample = _smallest_breakdown(lab, *breakdowns[0])
    deviations = [case.deviation for case in failed if case.deviation is not None]
    return AuditReport(
        target=target if isinstance(target, str) else _name(target),
        way=lab.way,
        verdict=_verdict(failed, [breakdown for breakdown, _ in breakdowns]),
        declared=lab.declared,
        cases=len(found),
        skipped=tuple(f"V={v} L={ell} K={k}" for v, ell, k in skipped),
        tolerance=tolerance,
        largest_total_variation=max((deviation.total_variation for deviation in deviations), default=0.0),
        worst=max(deviations, key=lambda deviation: deviation.total_variation, default=None),
        position=min((deviation.position for deviation in deviations), default=None),
        acceptance=_acceptance(found),
        breakdowns=tuple(breakdown for breakdown, _ in breakdowns),
        counterexample=counterexample,
        causes=causes,
        limits=_limits(lab, found, tolerance),
        seconds=time.perf_counter() - started,
    )


def _name(target: Any) -> str:
    function = target.function if isinstance(target, Foreign) else target
    return f"{function.__module__}:{getattr(function, '__qualname__', function)}"


def _tuples(case: Instance) -> int:
    return int((case.tree.draft_joint[case.tree.leaves] > 0).sum()) ** case.paths


def _examine(
    lab: Laboratory, cases: list[Instance], tolerance: float
) -> tuple[list[Case], list[tuple[Breakdown, Instance]]]:
    found: list[Case] = []
    breakdowns: list[tuple[Breakdown, Instance]] = []
    for case in cases:
        try:
            evidence = lab.evidence(case.tree, case.paths, thorough=True)
        except Broken as error:
            breakdowns.append((Breakdown(error.kind, str(error), *case.size), case))
            if error.kind in ("hang", "not exact") or len(breakdowns) >= MAX_BREAKDOWNS:
                break
            continue
        deviation = find_deviation(evidence.blocks, evidence.wanted, tolerance)
        found.append(Case(case, deviation, evidence.acceptance_length, optimum(case.tree, case.paths)))
    return found, breakdowns


def optimum(tree: PrefixTree, paths: int) -> float | None:
    """The largest acceptance length that a lossless verifier can have; None where no solver is at hand."""
    if paths == 1:
        return float(single_path.optimum(tree).value)
    try:
        from specbound.theory.multi_path import lossless_optimum
    except ImportError:
        return None
    return float(lossless_optimum(tree.as_float(), paths).value)


def _verdict(failed: list[Case], breakdowns: list[Breakdown]) -> str:
    if failed:
        return "not lossless"
    if not breakdowns:
        return "lossless"
    return "undecided" if all(breakdown.kind == "not exact" for breakdown in breakdowns) else "broken"


def _acceptance(found: list[Case]) -> dict[str, float]:
    pairs = [(case.acceptance_length, case.optimum) for case in found if case.optimum is not None]
    ratios = [length / best if best > 0 else 1.0 for length, best in pairs]
    if not ratios:
        return {}
    return {
        "mean_length": sum(length for length, _ in pairs) / len(pairs),
        "mean_optimum": sum(best for _, best in pairs) / len(pairs),
        "mean_ratio": sum(ratios) / len(ratios),
        "smallest_ratio": min(ratios),
        "largest_excess": max(length - best for length, best in pairs),
    }


def _limits(lab: Laboratory, found: list[Case], tolerance: float) -> str:
    sizes = sorted({case.instance.size for case in found})
    if not sizes:
        return "Nothing was audited."
    span = ", ".join(
        f"{letter} {min(values)}..{max(values)}" for letter, values in zip("VLK", zip(*sizes, strict=True), strict=True)
    )
    taken = " Random numbers are taken as continuous." if lab.way == "interception" else ""
    return (
        f"Exact on {len(found)} instances with {span}, in float64, to {tolerance:g} in total variation.{taken} "
        "Not looked at: larger sizes, other number formats and devices, rarer special cases."
    )


# ---------------------------------------------------------------------- explanations


def _explain(lab: Laboratory, failed: list[Case], tolerance: float) -> tuple[Counterexample, tuple[str, ...]]:
    first = min(case.deviation.position for case in failed if case.deviation)
    start = max(
        (case for case in failed if case.deviation and case.deviation.position == first),
        key=lambda case: case.deviation.excess if case.deviation else 0.0,
    )
    assert start.deviation is not None
    gap = min(STORY_GAP, start.deviation.excess / 10)

    def fails(tree: PrefixTree, paths: int) -> bool:
        try:
            evidence = lab.evidence(tree, paths)
        except Broken:
            return False
        deviation = find_deviation(evidence.blocks, evidence.wanted, tolerance)
        return (
            deviation is not None
            and deviation.excess >= gap
            and deviation.position == (first if lab.stateful else min(first, tree.length + 1))
        )

    found = shrink(start.instance.tree, start.instance.paths, fails)
    evidence = lab.evidence(found.tree, found.paths)
    deviation = find_deviation(evidence.blocks, evidence.wanted, tolerance)
    assert deviation is not None
    others = sorted(
        failed, key=lambda case: (case.instance.tree.size * case.instance.paths, -case.instance.tree.length)
    )
    compared = [(found.tree, found.paths), *((case.instance.tree, case.instance.paths) for case in others[-COMPARED:])]
    causes = () if lab.stateful else likely_causes(lab, compared)
    return _counterexample(lab, found, evidence, deviation, causes), causes


def likely_causes(lab: Laboratory, compared: list[tuple[PrefixTree, int]]) -> tuple[str, ...]:
    """The known mistakes, and registered lossy verifiers, whose law equals the code's on every instance given."""
    laws = [lab.evidence(tree, paths).blocks for tree, paths in compared]

    def explains(law: Callable[[PrefixTree, int], dict[Any, float]], single: bool) -> bool:
        if single and any(paths > 1 for _, paths in compared):
            return False
        return all(distance(law(*case), blocks) < TOLERANCE for case, blocks in zip(compared, laws, strict=True))

    causes = [
        mistake.cause
        for mistake in MISTAKES.values()
        if explains(lambda tree, paths, m=mistake: m.law(tree, paths).blocks, mistake.paths == "single")  # type: ignore[misc]
    ]
    return tuple(causes)


def _counterexample(
    lab: Laboratory, found: Shrunk, evidence: Evidence, deviation: Deviation, causes: tuple[str, ...]
) -> Counterexample:
    block = (*deviation.prefix, deviation.token)
    law = as_fractions(evidence.blocks)
    emitted = None if law is None else Fraction(marginal(law, deviation.position)[block])
    exact = marginal(found.tree.target_law(), deviation.position).get(block, 0)
    wanted = Fraction(exact) if len(evidence.wanted) and _one_call(found.tree, evidence) else None
    if wanted is None:
        law = as_fractions(evidence.wanted)
        wanted = None if law is None else Fraction(marginal(law, deviation.position).get(block, 0))
    story = (
        _setting(found.tree, found.paths),
        _enumerated(found, evidence),
        _place(found.tree, deviation),
        _wrong(deviation, emitted, wanted),
        _why(causes, lab.declared),
    )
    return Counterexample(found.tree.to_json(), found.paths, deviation, emitted, wanted, story, found.trials)


def _why(causes: tuple[str, ...], declared: bool | None) -> str:
    if causes:
        return f"Likely cause: {'; or: '.join(causes)}."
    if declared is False:
        return "The verifier is declared lossy, and this shows how."
    return "Likely cause: unknown; no known mistake has this law on every case compared."


def _one_call(tree: PrefixTree, evidence: Evidence) -> bool:
    return max(map(len, evidence.wanted)) <= tree.length + 1


def _row(row: tuple[Fraction, ...]) -> str:
    return f"({', '.join(str(entry) for entry in row)})"


def _setting(tree: PrefixTree, paths: int) -> str:
    rows = rows_of(tree)
    size = f"{tree.vocab} tokens 0..{tree.vocab - 1}" if tree.vocab > 1 else "1 token, 0"
    head = f"{size}, drafts of length {tree.length}, {paths} path{'s' if paths > 1 else ''}: "
    if len(set(rows.target.values())) == len(set(rows.draft.values())) == 1:
        return f"{head}everywhere draft {_row(rows.draft[()])}, target {_row(rows.target[()])}."
    lines = []
    for prefix, target in rows.target.items():
        after = "at the start" if not prefix else f"after {' '.join(map(str, prefix))}"
        draft = f"draft {_row(rows.draft[prefix])}, " if prefix in rows.draft else ""
        lines.append(f"{after} {draft}target {_row(target)}")
    return head + "; ".join(lines) + "."


def _enumerated(found: Shrunk, evidence: Evidence) -> str:
    best = optimum(found.tree, found.paths)
    against = "" if best is None else f", the lossless optimum is {best:.6g}"
    return (
        f"All {evidence.outcomes} outcomes of drafts and random choices: "
        f"{evidence.acceptance_length:.6g} tokens accepted per call{against}."
    )


def _place(tree: PrefixTree, deviation: Deviation) -> str:
    before = f" after {' '.join(map(str, deviation.prefix))}" if deviation.prefix else ""
    bonus = ", behind a full draft" if deviation.position == tree.length + 1 else ""
    right = "" if deviation.position == 1 else f"The first {deviation.position - 1} emitted are right. "
    return f"{right}Position {deviation.position}{bonus} is wrong: token {deviation.token}{before} comes too often."


def _wrong(deviation: Deviation, emitted: Fraction | None, wanted: Fraction | None) -> str:
    if emitted is None or wanted is None:
        amounts = (f"{value:.10g}" for value in (deviation.emitted, deviation.wanted, deviation.excess))
    else:
        amounts = (str(value) for value in (emitted, wanted, emitted - wanted))
    got, right, excess = amounts
    block = " ".join(map(str, (*deviation.prefix, deviation.token)))
    return f"It emits {block} with probability {got} where the target has {right}: {excess} too much."


def _smallest_breakdown(lab: Laboratory, breakdown: Breakdown, case: Instance) -> Counterexample:
    """The smallest instance on which the code breaks down in the same way."""

    def breaks(tree: PrefixTree, paths: int) -> bool:
        try:
            lab.evidence(tree, paths, thorough=True)
        except Broken as error:
            return error.kind == breakdown.kind
        return False

    found = shrink(case.tree, case.paths, breaks, max_trials=60)
    story = (
        _setting(found.tree, found.paths),
        f"On this instance the code breaks down: {breakdown.kind}.",
        breakdown.message,
        f"{found.trials} instances were tried to find it.",
        "There is no law to compare with the target's.",
    )
    return Counterexample(found.tree.to_json(), found.paths, None, None, None, story, found.trials)
