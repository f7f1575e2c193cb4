"""The audit: is this verifier lossless, and if not, where, by how much, on which smallest instance, and why?

Three ways in: tensor verifiers are replayed exactly, foreign scalar code is run exactly by intercepting its
randomness, and opaque code is sampled with a stated resolution. Code named as `package.module:attribute` runs in a
process of its own, so that a hang, a crash or an exit is a finding.

Letters: V vocabulary size, L draft length, K paths.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from specbound.runtime.device import check_device

from ..laws.deviation import find_deviation
from ..laws.instances import Instance, greedy, instances
from ..laws.judge import VOID, contradiction, optimum, verdict
from .counterexample import Explained, explain, sampled_counterexample, significant, smallest_breakdown
from .foreign import conventions
from .foreign.adapters import Foreign
from .foreign.drafting import DraftAndVerify
from .laboratory import Broken, Laboratory, laboratory
from .large import LARGE, LargeLaw
from .precision import told_apart
from .price import price
from .reality import CALLS, disagreement
from .report import AuditReport, Breakdown, Case, report_text
from .sampled import LOOKS, Sampled, plan, sample_law
from .schemes import why_lossless

__all__ = ["AuditReport", "audit", "report_text"]

TOLERANCE = 1e-9
MAX_TUPLES = {"replay": 400, "interception": 400, "stateful": 30}
MAX_BREAKDOWNS = 3
MAX_LEAVES = 1024
THOROUGH = 3
NOT_LARGE = (
    "Nothing was sampled. Not looked at: draft rows of more tokens, several paths, other number formats; look for "
    "causes at small sizes."
)


def audit(
    target: str | Foreign | Callable[..., Any],
    vocab: range = range(2, 4),
    length: range = range(1, 4),
    paths: range = range(1, 4),
    cases: int | None = None,
    *,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    resolution: float | None = None,
    false_alarm: float = 1e-9,
    miss: float = 1e-6,
    device: str = "cpu",
    seconds: float = 60.0,
    memory: int = 4096,
    convention: str | None = None,
    dtype: str = "float32",
    temperature_0: bool = False,
    progress: Callable[[int, int], None] | None = None,
    pace: Callable[[float], None] | None = None,
) -> AuditReport:
    """Audit a verifier on random and degenerate instances, exactly, or sampled if a resolution is given.

    Args:
        target: a registered name, "package.module:attribute" (run in a sandbox), or a function or adapter (run here).
        vocab, length, paths: sizes V, L, K of the instances; a target that takes one path is audited with K = 1 only.
        cases: number of instances, spread over the sizes; default 120 exact or 12 sampled ones.
        seed: names the instances.
        tolerance: largest total variation that counts as rounding.
        resolution, false_alarm, miss, device: of the sampled audit (see `sampled`); the device is that of the tensors.
        seconds, memory: limits of the sandbox, in seconds without a sign of progress and MiB.
        convention, dtype: how a foreign function is called, and the number format of its rows (see
            `foreign.conventions`); None to go by its parameters' names, in float64.
        temperature_0: whether the target's rows are one-hot at their largest entry, as where it decodes greedily;
            for an exact audit.
        progress: called before each instance as progress(instances done, instances in all).
        pace: called after each instance of an exact audit with the seconds that the others are likely to take.

    Raises:
        ValueError: for an unknown target, empty ranges, impossible settings, or code that cannot be loaded.
    """
    for name, value in (("tolerance", tolerance), ("seconds", seconds), ("memory", memory)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name} is {value!r}; want a positive number")
    tell = progress or _silent
    if convention is not None:
        target = _called(target, convention, dtype)
    if temperature_0 and resolution is not None:
        raise ValueError("temperature_0 is set, and a resolution too; a sampled audit is at temperature 1")
    if resolution is not None:
        count, rates = 12 if cases is None else cases, (resolution, false_alarm, miss)
        sizes = (vocab, length, paths)
        return _audit_sampled(target, sizes, count, seed, rates, device, seconds, memory, tell)
    started = time.perf_counter()
    with laboratory(target, seconds, memory) as lab:
        if lab.way == "interception" and min(vocab) > LARGE:
            return _audit_large(target, lab, (vocab, length), cases or 1, seed, tell)
        counts = _path_counts(lab, paths)
        count = 120 if cases is None else cases
        wanted = list(instances(vocab, length, counts, count, seed, lab.families, MAX_LEAVES))
        beyond = [size for size in itertools.product(vocab, length, counts) if size[0] ** size[1] > MAX_LEAVES]
        if temperature_0:
            wanted = [greedy(case) for case in wanted]
        looked = _examine(lab, wanted, lab.stateful, tolerance, tell, pace or _silent)
        if looked.stateful and not lab.stateful:
            looked = _examine(lab, wanted, True, tolerance, tell, pace or _silent)
        apart = told_apart(lab, looked.found, dtype, tolerance)
        looked = replace(looked, found=apart.cases, skipped=[*looked.skipped, *beyond])
        failed = [case for case in looked.found if case.deviation is not None]
        troubles = [breakdown for breakdown, _ in looked.breakdowns]
        real = _held_against_reality(lab, looked, seed)
        troubles += real
        if any(trouble.kind == VOID for trouble in real):
            failed = []
        shown: list[Case] = []
        explained = Explained()
        if failed:
            shown, coarse = significant(failed, tolerance)
            sharp = lab.in_float64() if apart.biased else None
            explained = explain(sharp or lab, shown, looked.stateful, coarse)
        elif looked.breakdowns and troubles[0].kind in ("exception", "invalid result"):
            explained = Explained(smallest_breakdown(lab, *looked.breakdowns[0], looked.stateful))
    troubles += explained.breakdowns
    word = verdict([case.total_variation for case in looked.found], [trouble.kind for trouble in troubles], tolerance)
    deviations = [case.deviation for case in failed if case.deviation is not None]
    if explained.counterexample is not None and explained.counterexample.deviation is not None:
        deviations.append(explained.counterexample.deviation)
    return AuditReport(
        target=_name(target),
        way=lab.way,
        verdict=word,
        why=why_lossless(looked.found) if word == "lossless" else "",
        declared=lab.declared,
        optimum="block-transport" if looked.stateful else "lossless",
        cases=len(looked.found),
        skipped=tuple(f"V={v} L={ell} K={k}" for v, ell, k in dict.fromkeys(looked.skipped)),
        tolerance=max([tolerance, *(case.evidence.resolution for case in looked.found if case.evidence)]),
        largest_total_variation=max((deviation.total_variation for deviation in deviations), default=0.0),
        worst=max(deviations, key=lambda deviation: deviation.total_variation, default=None),
        position=min((case.deviation.position for case in shown if case.deviation is not None), default=None),
        failed=_families(failed, looked.found),
        acceptance={} if any(trouble.kind == "contradiction" for trouble in troubles) else _acceptance(looked.found),
        frontier=_frontier(failed, looked.stateful),
        breakdowns=tuple(troubles),
        counterexample=explained.counterexample,
        causes=explained.causes,
        limits=_limits(lab, looked.found, tolerance, apart.note),
        advice=_advice(troubles, looked.skipped) if word == "undecided" else None,
        seconds=time.perf_counter() - started,
    )


def _audit_large(
    target: Any,
    lab: Laboratory,
    sizes: tuple[range, range],
    cases: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> AuditReport:
    """Exact laws at large vocabularies, `cases` instances of every size, one path (see `large`)."""
    started = time.perf_counter()
    wanted = [(v, ell, seed * cases + i) for v, ell in itertools.product(*sizes) for i in range(cases)]
    found: list[LargeLaw] = []
    troubles: list[Breakdown] = []
    for number, (v, ell, which) in enumerate(wanted):
        progress(number, len(wanted))
        try:
            found.append(lab.large(v, ell, which))
        except Broken as error:
            troubles.append(Breakdown(error.kind, str(error), v, ell, 1))
            break
    deviations = [law.deviation for law in found if law.deviation is not None]
    word = verdict([float(law.deviation is not None) for law in found], [t.kind for t in troubles], 0.5)
    notes = dict.fromkeys(note for law in found for note in law.notes)
    return AuditReport(
        target=_name(target),
        way="conditional",
        verdict=word,
        declared=lab.declared,
        optimum="lossless",
        cases=len(found),
        skipped=(),
        tolerance=max((law.resolution for law in found), default=TOLERANCE),
        largest_total_variation=max((deviation.total_variation for deviation in deviations), default=0.0),
        worst=max(deviations, key=lambda deviation: deviation.total_variation, default=None),
        position=min((deviation.position for deviation in deviations), default=None),
        failed={},
        acceptance={},
        frontier=None,
        breakdowns=tuple(troubles),
        counterexample=None,
        causes=(),
        limits=" ".join([*notes, NOT_LARGE]),
        advice=_advice(troubles, []) if word == "undecided" else None,
        seconds=time.perf_counter() - started,
    )


def _audit_sampled(
    target: Any,
    sizes: tuple[range, range, range],
    cases: int,
    seed: int,
    rates: tuple[float, float, float],
    device: str,
    seconds: float,
    memory: int,
    progress: Callable[[int, int], None],
) -> AuditReport:
    check_device("device", device)
    started = time.perf_counter()
    results: list[tuple[Case, Sampled]] = []
    breakdowns: list[Breakdown] = []
    vocab, length, paths = sizes
    with laboratory(target, seconds, memory if device == "cpu" else None) as lab:
        if lab.stateful:
            raise ValueError("the sampled audit looks at one call; a stateful verifier wants the exact audit")
        counts = _path_counts(lab, paths)
        for number, case in enumerate(instances(vocab, length, counts, cases, seed, lab.families)):
            progress(number, cases)
            planned = plan(case.tree.vocab, case.tree.length, *rates, instances=cases)
            first_seed = (seed * cases + number) * len(LOOKS)
            try:
                found = sample_law(
                    lambda count, step, c=case, s=first_seed: lab.sample(c.tree, c.paths, count, s + step, device),  # type: ignore[misc]
                    case.tree,
                    planned,
                )
            except Broken as error:
                breakdowns.append(Breakdown(error.kind, str(error), *case.size))
                break
            best = optimum(case.tree, case.paths)
            results.append((Case(case, found.deviation, found.acceptance_length, best.value, best.bound), found))
            if found.deviation is not None:
                break
    failed = [(case, found) for case, found in results if case.deviation is not None]
    worst = failed[0][0].deviation if failed else None
    draws = [found.draws for _, found in results]
    word = verdict([float(case.deviation is not None) for case, _ in results], [t.kind for t in breakdowns], 0.5)
    return AuditReport(
        target=_name(target),
        way="sampled",
        verdict="not rejected" if word == "lossless" else word,
        declared=lab.declared,
        optimum="lossless",
        cases=len(results),
        skipped=(),
        tolerance=rates[0],
        largest_total_variation=worst.total_variation if worst else 0.0,
        worst=worst,
        position=worst.position if worst else None,
        failed=_families([case for case, _ in failed], [case for case, _ in results]),
        acceptance=_acceptance([case for case, _ in results]),
        frontier=None,
        breakdowns=tuple(breakdowns),
        counterexample=sampled_counterexample(*failed[0]) if failed else None,
        causes=(),
        limits=_unseen(rates, results),
        advice=_advice(breakdowns, []) if word == "undecided" else None,
        seconds=time.perf_counter() - started,
        details={"resolution": rates[0], "false_alarm": rates[1], "miss": rates[2], "draws": draws, "device": device},
    )


def _frontier(failed: list[Case], stateful: bool) -> dict[str, float] | None:
    found = None if stateful else price(failed)
    return None if found is None else vars(found)


def _unseen(rates: tuple[float, float, float], results: list[tuple[Case, Sampled]]) -> str:
    resolution, false_alarm, miss = rates
    return (
        f"Sampled, {sum(found.draws for _, found in results)} calls on {len(results)} instances: a total variation of "
        f"{resolution:g} or more on one of them is found with probability at least 1 - {miss:g}, a lossless verifier "
        f"is rejected with probability at most {false_alarm:g}. A smaller deviation, or one that shows only on other "
        "instances, can pass unseen; an early position may be wrong by less than the resolution."
    )


def _path_counts(lab: Laboratory, paths: range) -> range:
    """The numbers of paths to audit with: those asked for, or one for a verifier that takes one.

    Raises:
        ValueError: one path is not among those asked for.
    """
    if lab.paths == "many":
        return paths
    if 1 not in paths:
        raise ValueError(f"paths is {paths.start}..{paths.stop - 1}, but the target takes one path; include 1")
    return range(1, 2)


def _called(target: Any, convention: str, dtype: str) -> Any:
    """The target called by a convention.

    Raises:
        ValueError: for an unknown convention or number format, or a target that is no function.
    """
    if convention != "ours" and (isinstance(target, Foreign) or (isinstance(target, str) and ":" not in target)):
        raise ValueError(f"convention is {convention!r}, for a function or package.module:function; got {target!r}")
    if not isinstance(target, str):
        return target if convention == "ours" else conventions.subject(target, convention, dtype)
    return target if convention == "ours" else f"{target}@{convention},{dtype}"


def _name(target: Any) -> str:
    if isinstance(target, str):
        return target.replace("@", " as ").replace(",", ", ")
    function = target.function if isinstance(target, Foreign | DraftAndVerify) else target
    inner = getattr(function, "func", function)
    return f"{inner.__module__}:{getattr(inner, '__qualname__', inner)}"


def _tuples(case: Instance) -> int:
    return int((case.tree.draft_joint[case.tree.leaves] > 0).sum()) ** case.paths


def _silent(*_: float) -> None:
    """Progress that nobody wants to see."""


@dataclass(frozen=True)
class Looked:
    """What was found on the instances: cases, breakdowns with their instances, sizes too large, any carry."""

    found: list[Case]
    breakdowns: list[tuple[Breakdown, Instance]]
    skipped: list[tuple[int, int, int]]
    stateful: bool


def _examine(
    lab: Laboratory,
    wanted: list[Instance],
    stateful: bool,
    tolerance: float,
    progress: Callable[[int, int], None],
    pace: Callable[[float], None],
) -> Looked:
    """Look at the instances one by one; stop at a hang or a crash, or where a first carry shows that it is stateful.

    State that outlives a call is looked for on the first two instances of every size and every third one.
    """
    possible = [case for case in wanted if _tuples(case) <= MAX_TUPLES["stateful" if stateful else lab.way]]
    looked = Looked([], [], sorted({case.size for case in wanted} - {case.size for case in possible}), stateful)
    asked: Counter[tuple[int, int, int]] = Counter()
    work = [_tuples(case) * case.tree.vocab * (case.tree.length + 1) for case in possible]
    started = time.perf_counter()
    for number, case in enumerate(possible):
        if number:
            pace((time.perf_counter() - started) * sum(work[number:]) / sum(work[:number]))
        progress(number, len(possible))
        asked[case.size] += 1
        thorough = asked[case.size] < THOROUGH or asked[case.size] % THOROUGH == 0
        try:
            evidence = lab.evidence(case.tree, case.paths, stateful, thorough)
        except Broken as error:
            if error.kind == "too large":
                looked.skipped.append(case.size)
                continue
            looked.breakdowns.append((Breakdown(error.kind, str(error), *case.size), case))
            if error.kind not in ("exception", "invalid result") or len(looked.breakdowns) >= MAX_BREAKDOWNS:
                break
            continue
        if evidence.stateful and not stateful:
            return replace(looked, stateful=True)
        deviation = find_deviation(evidence.blocks, evidence.wanted, max(tolerance, evidence.resolution))
        best = optimum(case.tree, case.paths, stateful)
        looked.found.append(Case(case, deviation, evidence.acceptance_length, best.value, best.bound, evidence))
        slack = evidence.resolution * (case.tree.length + 1) if evidence.bounded else math.inf
        if deviation is None and (odd := contradiction(evidence.acceptance_length - slack, best.bound)):
            looked.breakdowns.append((Breakdown("contradiction", odd, *case.size), case))
            break
    return looked


def _held_against_reality(lab: Laboratory, looked: Looked, seed: int) -> list[Breakdown]:
    """Compare exact laws with real calls, on the case of most outcomes and the one that is furthest off.

    Where they disagree, state that outlives a call is looked for; if there is some, that is what is found.
    """
    cases = [case for case in looked.found if case.evidence is not None]
    chosen = {id(case): case for case in (max(cases, key=_outcomes), max(cases, key=_distance))} if cases else {}
    for case in chosen.values():
        tree, paths, evidence = case.instance.tree, case.instance.paths, case.evidence
        assert evidence is not None
        try:
            if evidence.stateful:
                tokens = max(map(len, evidence.wanted))
                seen = lab.stream(tree, paths, CALLS, seed, tokens)
            else:
                seen = lab.real(tree, paths, CALLS, seed)
        except Broken as error:
            return [Breakdown(error.kind, f"{error} (in real calls)", *case.instance.size)]
        if odd := disagreement(evidence.blocks, seen):
            try:
                lab.evidence(tree, paths, evidence.stateful, thorough=True)
            except Broken as error:
                return [Breakdown(error.kind, str(error), *case.instance.size)]
            return [Breakdown(VOID, str(odd), *case.instance.size)]
    return []


def _outcomes(case: Case) -> int:
    return case.evidence.outcomes if case.evidence else 0


def _distance(case: Case) -> float:
    return case.total_variation


def _advice(troubles: list[Breakdown], skipped: list[tuple[int, int, int]]) -> str:
    """What to change so that the audit can decide."""
    kinds = {trouble.kind for trouble in troubles}
    if VOID in kinds:
        return "take all random numbers from the draws, or from generators that can be intercepted; or sample it."
    if "contradiction" in kinds:
        return "return what the verifier keeps between calls as its carry, so that several calls can be followed."
    if "stateful" in kinds:
        return "leave out --resolution: a verifier that returns a carry is audited exactly, over several calls."
    if "not exact" in kinds:
        return "sample it (--resolution 0.05), or let it take its random numbers from what can be intercepted."
    if skipped or "too large" in kinds:
        return "take instances small enough to enumerate (--vocab, --length, --paths), or sample (--resolution 0.05)."
    return "look at one instance at least."


def _families(failed: list[Case], found: list[Case]) -> dict[str, tuple[int, int]]:
    """For every family of instances that fails: how many of it fail, of how many."""
    wrong = Counter(case.instance.family for case in failed)
    looked = Counter(case.instance.family for case in found)
    return {family: (count, looked[family]) for family, count in wrong.most_common()}


def _acceptance(found: list[Case]) -> dict[str, float]:
    pairs = [(case.acceptance_length, case.optimum) for case in found]
    ratios = [case.share for case in found]
    if not ratios:
        return {}
    return {
        "mean_length": sum(length for length, _ in pairs) / len(pairs),
        "mean_optimum": sum(best for _, best in pairs) / len(pairs),
        "mean_ratio": sum(ratios) / len(ratios),
        "smallest_ratio": min(ratios),
        "largest_excess": max(length - best for length, best in pairs),
    }


def _limits(lab: Laboratory, found: list[Case], tolerance: float, note: str) -> str:
    sizes = sorted({case.instance.size for case in found})
    if not sizes:
        return "Nothing was audited."
    span = ", ".join(
        f"{letter} {min(values)}..{max(values)}" for letter, values in zip("VLK", zip(*sizes, strict=True), strict=True)
    )
    taken = " Random numbers are taken as continuous." if lab.way == "interception" else ""
    evidence = [case.evidence for case in found if case.evidence]
    told = dict.fromkeys([note for entry in evidence for note in entry.notes] + [note] * bool(note))
    notes = "".join(f" {said}" for said in told)
    where = "" if any(entry.resolution > tolerance for entry in evidence) else ", in float64"
    tolerance = max([tolerance, *(entry.resolution for entry in evidence)])
    return (
        f"Exact on {len(found)} instances with {span}{where}, to {tolerance:.2g} in total variation."
        f"{taken}{notes} Not looked at: larger sizes, other number formats and devices, rarer special cases."
    )
