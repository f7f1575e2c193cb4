"""From failing cases to a minimal counterexample, told in five lines with exact fractions, and its likely cause.

Letters: V vocabulary size, L draft length, K paths.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from specbound.theory import block_transport, multi_path, single_path
from specbound.theory.prefix_tree import PrefixTree

from ..laws.deviation import Deviation, as_fractions, distance, find_deviation, marginal
from ..laws.instances import Instance
from .laboratory import Broken, Laboratory
from .mistakes import MISTAKES
from .report import Breakdown, Case, Counterexample
from .sampled import Sampled
from .shrink import Shrunk, rows_of, shrink
from .subject import Evidence

SAME_LAW = 1e-9
COMPARED = 2
STORY_GAP = 1e-3


def optimum(tree: PrefixTree, paths: int, stateful: bool = False) -> float:
    """The largest acceptance length of a lossless verifier: the lossless optimum, or, for one that may change the
    target of later positions, the block-transport optimum."""
    if paths == 1:
        return float((block_transport if stateful else single_path).optimum(tree).value)
    solver = multi_path.transport_optimum if stateful else multi_path.lossless_optimum
    return float(solver(tree.as_float(), paths).value)


def explain(lab: Laboratory, failed: list[Case], tolerance: float) -> tuple[Counterexample, tuple[str, ...]]:
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
    """The known mistakes whose law equals the code's on every instance given.

    Those of many paths are compared only if one of the instances has more than one, the others only if none has.
    """
    laws = [lab.evidence(tree, paths).blocks for tree, paths in compared]

    def explains(law: Callable[[PrefixTree, int], dict[Any, float]], single: bool) -> bool:
        if single != all(paths == 1 for _, paths in compared):
            return False
        return all(distance(law(*case), blocks) < SAME_LAW for case, blocks in zip(compared, laws, strict=True))

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
        _enumerated(found, evidence, lab.stateful),
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


def _enumerated(found: Shrunk, evidence: Evidence, stateful: bool) -> str:
    best = optimum(found.tree, found.paths, stateful)
    return (
        f"All {evidence.outcomes} outcomes of drafts and random choices: {evidence.acceptance_length:.6g} tokens "
        f"accepted per call, the {'block-transport' if stateful else 'lossless'} optimum is {best:.6g}."
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


def smallest_breakdown(lab: Laboratory, breakdown: Breakdown, case: Instance) -> Counterexample:
    """The smallest instance on which the code raises, or returns nonsense, in the same way."""

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
