"""Rounding or bias: the same code asked again in float64, where rounding goes away and a bias stays.

A law found with rows in float32 or bfloat16 is off by what the format explains (see `foreign.formats`), and a bias
below that bound would pass as rounding. So the cases that are furthest off are asked again in float64. If the law is
wrong there as well it is a bias, however small, and is explained in float64; if it is the target's, what was seen is
rounding, also where it is larger than the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..laws.deviation import distance, find_deviation
from .laboratory import Broken, Laboratory
from .report import Case

ASKED_AGAIN = 2


@dataclass(frozen=True)
class ToldApart:
    """What float64 made of the cases.

    Attributes:
        cases: all of them; those asked again with what float64 says of them.
        biased: whether a law is wrong in float64 as well.
        note: for the report, empty if nothing was asked.
    """

    cases: list[Case]
    biased: bool = False
    note: str = ""


def told_apart(lab: Laboratory, cases: Sequence[Case], dtype: str, tolerance: float) -> ToldApart:
    """Ask the cases that are furthest off again in float64; all failing ones, if the first of them are cleared.

    Args:
        lab: its code runs with rows in `dtype`.
        tolerance: total variation that counts as rounding in float64.
    """
    sharp = lab.in_float64()
    order = sorted(range(len(cases)), key=lambda place: -_off(cases[place]))
    if sharp is None or not order or _off(cases[order[0]]) <= tolerance:
        return ToldApart(list(cases))
    found = list(cases)
    seen = 0.0
    for turn, place in enumerate(order):
        if turn >= ASKED_AGAIN and cases[place].deviation is None:
            break
        case = cases[place]
        try:
            evidence = sharp.evidence(case.instance.tree, case.instance.paths)
        except Broken as error:
            return ToldApart(list(cases), note=f"It does not run with rows in float64 ({error}).")
        deviation = find_deviation(evidence.blocks, evidence.wanted, max(tolerance, evidence.resolution))
        off = distance(evidence.blocks, evidence.wanted)
        if deviation is not None:
            found[place] = replace(case, deviation=deviation, evidence=evidence)
            note = f"With rows in {dtype} its law is {_off(case):.2g} off, in float64 {off:.2g}: a bias, no rounding."
            return ToldApart(found, True, note)
        found[place] = replace(case, deviation=None)
        seen = max(seen, off)
    note = f"With rows in {dtype} its law is up to {_off(cases[order[0]]):.2g} off, in float64 {seen:.2g}: rounding."
    return ToldApart(found, False, note)


def _off(case: Case) -> float:
    assert case.evidence is not None
    return case.evidence.total_variation
