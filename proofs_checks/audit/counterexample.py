"""From failing cases to a minimal counterexample, told in five lines with exact fractions, and its likely cause.

Letters: V vocabulary size, L draft length, K paths.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from specbound.runtime import registry
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.theory.prefix_tree import PrefixTree

from ..laws.deviation import Deviation, as_fractions, distance, find_deviation, marginal
from ..laws.instances import Instance, is_greedy
from ..laws.judge import UNDECIDED, Evidence, optimum
from ..laws.judge import evidence as evidence_of
from ..laws.replay import Verify
from .foreign.formats import BITS, BOUND, name_of, rounding
from .foreign.interception import Interception
from .laboratory import Broken, Laboratory
from .mistakes import FAMILIES, MISTAKES, Mistake
from .report import Breakdown, Case, Counterexample
from .sampled import Sampled
from .shrink import Shrunk, case_of, simplest

Compared = tuple[PrefixTree, int, Evidence]
SAME_LAW = 1e-9
COMPARED = 2
STORY_GAP = 1e-3
SIGNIFICANT = 100
FATAL = ("hang", "crash", "exit", "memory", "open files", "changed")


@dataclass(frozen=True)
class Explained:
    """Why an audit failed: the smallest counterexample, likely causes, and breakdowns met while looking for it."""

    counterexample: Counterexample | None = None
    causes: tuple[str, ...] = ()
    breakdowns: tuple[Breakdown, ...] = ()


def significant(failed: list[Case], tolerance: float) -> tuple[list[Case], float]:
    """The failing cases by what is at least a hundredth of the largest deviation, and that tolerance.

    Rounding in front of a mistake, or a small mistake in front of a large one, would else be what is explained.
    """
    coarse = max(tolerance, max(case.total_variation for case in failed) / SIGNIFICANT)
    found = []
    for case in failed:
        assert case.evidence is not None
        deviation = find_deviation(case.evidence.blocks, case.evidence.wanted, coarse)
        found += [] if deviation is None else [replace(case, deviation=deviation)]
    return found, coarse


def explain(lab: Laboratory, failed: list[Case], stateful: bool, tolerance: float) -> Explained:
    """Shrink the failing case of largest excess at the first wrong position, and look for its cause.

    If the code breaks down on a smaller instance, or answers otherwise than before, that is part of what is found.
    """
    first = min(case.deviation.position for case in failed if case.deviation)
    start = max(
        (case for case in failed if case.deviation and case.deviation.position == first),
        key=lambda case: case.deviation.excess if case.deviation else 0.0,
    )
    assert start.deviation is not None
    assert start.evidence is not None
    search = _Failing(lab, stateful, tolerance, first, min(STORY_GAP, start.deviation.excess / 10))
    search.greedy = all(is_greedy(case.instance.tree) for case in failed)
    tree, paths = start.instance.tree, start.instance.paths
    if search.fails(tree, paths):
        found = simplest(tree, paths, search.fails)
        search.fails(found.tree, found.paths)
        evidence, deviation = search.last
    else:
        again = "asked again about an instance on which it went wrong, the code answers otherwise"
        search.breakdowns.setdefault("changed", Breakdown("changed", again, *start.instance.size))
        found, evidence, deviation = Shrunk(tree, paths, 1), start.evidence, start.deviation
    compared = [(found.tree, found.paths, evidence), *_largest(failed, lab)]
    causes = carry_missing(compared[0]) if stateful else likely_causes(compared)
    story = _counterexample(lab, found, evidence, deviation, causes)
    return Explained(story, causes, tuple(search.breakdowns.values()))


class _Failing:
    """The check that shrinking asks: does the same failure remain? It keeps the last failure, and what broke down."""

    def __init__(self, lab: Laboratory, stateful: bool, tolerance: float, position: int, gap: float) -> None:
        self.lab, self.stateful, self.tolerance, self.position, self.gap = lab, stateful, tolerance, position, gap
        self.greedy = False
        self.breakdowns: dict[str, Breakdown] = {}
        self.last: tuple[Evidence, Deviation]

    def fails(self, tree: PrefixTree, paths: int) -> bool:
        if self.breakdowns.keys() & set(FATAL) or (self.greedy and not is_greedy(tree)):
            return False
        try:
            evidence = self.lab.evidence(tree, paths, self.stateful)
        except Broken as error:
            if error.kind not in UNDECIDED:
                size = tree.vocab, tree.length, paths
                said = f"{error}, on an instance made from one where its law is wrong"
                self.breakdowns.setdefault(error.kind, Breakdown(error.kind, said, *size))
            return False
        deviation = find_deviation(evidence.blocks, evidence.wanted, max(self.tolerance, evidence.resolution))
        wanted = self.position if self.stateful else min(self.position, tree.length + 1)
        if deviation is None or deviation.excess < self.gap or deviation.position != wanted:
            return False
        self.last = evidence, deviation
        return True


def _largest(failed: list[Case], lab: Laboratory) -> list[Compared]:
    """The largest failing cases; with their laws in float64 if these are to be had."""
    order = sorted(failed, key=lambda case: (case.instance.tree.size * case.instance.paths, -case.instance.tree.length))
    compared = [(case.instance.tree, case.instance.paths, case.evidence) for case in order[-COMPARED:]]
    if lab.precise:
        with contextlib.suppress(Broken):
            compared = [(tree, paths, lab.evidence(tree, paths)) for tree, paths, _ in compared]
    return [(tree, paths, evidence) for tree, paths, evidence in compared if evidence is not None]


def likely_causes(compared: list[Compared]) -> tuple[str, ...]:
    """The known mistakes whose law equals the code's on every instance given; else what number format could explain it.

    Those of many paths are compared only if one of the instances has more than one, the others only if none has.
    """
    single = all(paths == 1 for _, paths, _ in compared)
    with Interception() as interception:

        def explains(mistake: Mistake) -> bool:
            laws = ((mistake.law(tree, paths, interception).blocks, found) for tree, paths, found in compared)
            return all(distance(known, found.blocks) < max(SAME_LAW, found.resolution) for known, found in laws)

        known = [mistake for mistake in MISTAKES.values() if (mistake.paths == "single") == single]
        groups: dict[str, str] = {}
        for mistake in known:
            if mistake.group not in groups and explains(mistake):
                groups[mistake.group] = mistake.cause
        causes = tuple(groups.values())
        if not causes and single:
            lengths = [(tree, found.acceptance_length) for tree, _, found in compared]
            fitted = (family.member(lengths, interception) for family in FAMILIES.values())
            causes = tuple(mistake.cause for mistake in fitted if mistake is not None and explains(mistake))
    return causes or _within_a_format(compared)


def _within_a_format(compared: list[Compared]) -> tuple[str, ...]:
    """The finest number format whose rounding could explain every deviation; nothing beyond half precision."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        bounds = [rounding(tree.vocab, tree.length, dtype) for tree, _, _ in compared]
        if all(found.total_variation <= bound for bound, (_, _, found) in zip(bounds, compared, strict=True)):
            unit = f"2^-{BITS[dtype]}"
            return (
                f"perhaps a number format: every deviation compared is within {BOUND} {unit}, what rounding in "
                f"{name_of(dtype)} can do",
            )
    return ()


def carry_missing(case: Compared) -> tuple[str, ...]:
    """The registered stateful verifiers whose stream is the code's if they are not given their carry."""
    tree, paths, found = case

    def explains(verify: Verify) -> bool:
        def without(batch: Batch, draws: Draws) -> Verdict:
            return verify(Batch(batch.tokens, batch.draft_probs, batch.target_probs), draws)

        try:
            made = evidence_of(without, tree, paths, stateful=True)
        except Exception:
            return False
        return distance(made.blocks, found.blocks) < SAME_LAW

    entries = [registry.get(name) for name in registry.names()]
    candidates = [entry for entry in entries if entry.stateful and (paths == 1 or entry.paths == "many")]
    return tuple(
        f"the carry is missing: the stream is that of {entry.name} if its carry is not read in the next call"
        for entry in candidates
        if explains(entry.verify)
    )


def _counterexample(
    lab: Laboratory, found: Shrunk, evidence: Evidence, deviation: Deviation, causes: tuple[str, ...]
) -> Counterexample:
    block = (*deviation.prefix, deviation.token)
    law = as_fractions(evidence.blocks)
    emitted = None if law is None else Fraction(marginal(law, deviation.position)[block])
    exact = marginal(found.tree.target_law(), deviation.position).get(block, 0)
    wanted = None if evidence.stateful else Fraction(exact)
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


def _row(row: tuple[Fraction, ...]) -> str:
    return f"({', '.join(str(entry) for entry in row)})"


def _setting(tree: PrefixTree, paths: int) -> str:
    case = case_of(tree)
    size = f"{tree.vocab} tokens 0..{tree.vocab - 1}" if tree.vocab > 1 else "1 token, 0"
    head = f"{size}, drafts of length {tree.length}, {paths} path{'s' if paths > 1 else ''}: "
    if len(set(case.target.values())) == len(set(case.draft.values())) == 1:
        return f"{head}everywhere draft {_row(case.draft[0])}, target {_row(case.target[0])}."
    lines = []
    for node, target in case.target.items():
        prefix = tree.prefix(node)
        after = "at the start" if not prefix else f"after {' '.join(map(str, prefix))}"
        draft = f"draft {_row(case.draft[node])}, " if node in case.draft else ""
        lines.append(f"{after} {draft}target {_row(target)}")
    return head + "; ".join(lines) + "."


def _enumerated(found: Shrunk, evidence: Evidence) -> str:
    best = optimum(found.tree, found.paths, evidence.stateful).value
    return (
        f"All {evidence.outcomes} outcomes of drafts and random choices: {evidence.acceptance_length:.6g} tokens "
        f"accepted per call, the {'block-transport' if evidence.stateful else 'lossless'} optimum is {best:.6g}."
    )


def _place(tree: PrefixTree, deviation: Deviation) -> str:
    before = f" after {' '.join(map(str, deviation.prefix))}" if deviation.prefix else ""
    bonus = ", behind a full draft" if deviation.position == tree.length + 1 else ""
    right = ("", "The first token is right. ", f"The first {deviation.position - 1} tokens are right. ")
    start = right[min(deviation.position - 1, 2)]
    return f"{start}Position {deviation.position}{bonus} is wrong: token {deviation.token}{before} comes too often."


def _wrong(deviation: Deviation, emitted: Fraction | None, wanted: Fraction | None) -> str:
    if emitted is None or wanted is None:
        amounts = (f"{value:.10g}" for value in (deviation.emitted, deviation.wanted, deviation.excess))
    else:
        amounts = (str(value) for value in (emitted, wanted, emitted - wanted))
    got, right, excess = amounts
    block = " ".join(map(str, (*deviation.prefix, deviation.token)))
    return f"It emits {block} with probability {got} where the target has {right}: {excess} too much."


def smallest_breakdown(lab: Laboratory, breakdown: Breakdown, case: Instance, stateful: bool) -> Counterexample:
    """The smallest instance on which the code raises, or returns nonsense, in the same way; the one on which it did if
    it does not do so again."""

    fatal = False

    def breaks(tree: PrefixTree, paths: int) -> bool:
        nonlocal fatal
        if fatal:
            return False
        try:
            lab.evidence(tree, paths, stateful, thorough=True)
        except Broken as error:
            fatal = error.kind in FATAL
            return error.kind == breakdown.kind
        return False

    again = breaks(case.tree, case.paths)
    found = simplest(case.tree, case.paths, breaks, max_trials=60) if again else Shrunk(case.tree, case.paths, 1)
    story = (
        _setting(found.tree, found.paths),
        f"On this instance the code breaks down: {breakdown.kind}.",
        breakdown.message,
        f"{found.trials} instances were tried to find it." if again else "Asked again, it did not break down.",
        "There is no law to compare with the target's.",
    )
    return Counterexample(found.tree.to_json(), found.paths, None, None, None, story, found.trials)


def sampled_counterexample(case: Case, found: Sampled) -> Counterexample:
    deviation = case.deviation
    assert deviation is not None
    tree, paths = case.instance.tree, case.instance.paths
    calls = f"{found.draws} calls on drafts drawn from the draft law"
    story = (
        _setting(tree, paths),
        f"{calls}: {case.acceptance_length:.4g} tokens accepted per call.",
        _place(tree, deviation),
        _wrong(deviation, None, None).replace("It emits", "It emitted").replace("with probability", "at the rate"),
        "Sampled laws are not shrunk and not compared with known mistakes; audit exactly if you can.",
    )
    return Counterexample(tree.to_json(), paths, deviation, None, None, story, 1)
