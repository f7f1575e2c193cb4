"""Passes over rows of V tokens: what `parts.ratio_knots` computes with tensors, a token at a time.

A token's step is the fixed knot at or below its ratio target/draft, read off the bits of a float32 as in
`ratio_knots.knot_below`. Sums are taken in float64.

Letters: N rows, V vocabulary, M fixed knots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .jit import inner, outer

Rows = NDArray[Any]  # float32 or float64
Array = NDArray[np.float64]
Steps = NDArray[np.uint64]

PIECE = 1024  # tokens whose steps are found before they are used


@inner
def find_steps(target: Rows, draft: Rows, shift: int, before: int, last: int, step: Steps) -> None:
    """The index of the step, 0 to `last`, of each token: ratio bits >> `shift`, less `before`, clipped."""
    for v in range(len(draft)):
        leading = (np.float32(target[v] / draft[v]).view(np.int32) >> np.int32(shift)) - np.int32(before)
        step[v] = np.uint64(min(max(leading, np.int32(0)), np.int32(last)))


@inner
def add_row(target: Rows, draft: Rows, shift: int, before: int, step: Steps, sums: Array) -> None:
    """Draft and target mass of one row by step, in turn, into `sums` [2M]."""
    sums[:] = 0.0
    last = len(sums) // 2 - 1
    for start in range(0, len(draft), PIECE):
        target_piece, draft_piece = target[start : start + PIECE], draft[start : start + PIECE]
        find_steps(target_piece, draft_piece, shift, before, last, step)
        for v in range(len(draft_piece)):
            place = np.uint64(2) * step[v]
            sums[place] += draft_piece[v]
            sums[place + np.uint64(1)] += target_piece[v]


@outer
def step_masses(target: Rows, draft: Rows, shift: int, before: int, sums: Array) -> None:
    """`ratio_knots.step_masses` of rows [N, L, V], into `sums` [N, L, M, 2]; a target's further rows are not read."""
    step, flat = np.empty(PIECE, np.uint64), np.empty(2 * sums.shape[2])
    for n in range(draft.shape[0]):
        for i in range(draft.shape[1]):
            add_row(target[n, i], draft[n, i], shift, before, step, flat)
            for m in range(sums.shape[2]):
                sums[n, i, m, 0], sums[n, i, m, 1] = flat[2 * m], flat[2 * m + 1]


@outer
def knot_masses(
    target: Rows, draft: Rows, shift: int, before: int, knots: Array, mass: Array, total: Array
) -> None:  # fmt: skip
    """Draft mass of rows [N, L, V] at the knots [M], each token's shared by the two around it, into `mass` [N, L, M].

    It is divided by its sum over the row, which goes into `total` [N, L]. A target's further rows are not read.
    """
    step, sums, last = np.empty(PIECE, np.uint64), np.empty(2 * len(knots)), len(knots) - 1
    for n in range(draft.shape[0]):
        for i in range(draft.shape[1]):
            add_row(target[n, i], draft[n, i], shift, before, step, sums)
            carried, all_mass = 0.0, 0.0
            for m in range(last + 1):
                here, upper = sums[2 * m], 0.0
                if m < last:
                    upper = min(max((sums[2 * m + 1] - knots[m] * here) / (knots[m + 1] - knots[m]), 0.0), here)
                mass[n, i, m] = here - upper + carried
                carried = upper
                all_mass += mass[n, i, m]
            for m in range(last + 1):
                mass[n, i, m] /= all_mass
            total[n, i] = all_mass


@inner
def lines_of(table: Array, knots: Array, lines: Array) -> None:
    """The table [M] between the knots as level + slope ratio, into `lines` [2M]; flat above the last knot."""
    last = len(knots) - 1
    for m in range(last):
        slope = (table[m + 1] - table[m]) / (knots[m + 1] - knots[m])
        lines[2 * m], lines[2 * m + 1] = table[m] - slope * knots[m], slope
    lines[2 * last], lines[2 * last + 1] = table[last], 0.0


@outer
def path_ratios(ratio: Array, shift: int, before: int, knots: Array, tables: Array, ratios: Array) -> None:
    """`block_rule.ratios_of` against such laws, into `ratios` [B, L+1].

    Args:
        ratio [B, L]: target/draft of the drafted tokens; tables [B, L, M]: law/draft at the knots [M].
    """
    step, last = np.empty(1, np.uint64), len(knots) - 1
    one = np.ones(1)
    for b in range(len(ratio)):
        found = 0.0
        ratios[b, 0] = 1.0
        for i in range(ratio.shape[1]):
            find_steps(ratio[b, i : i + 1], one, shift, before, last, step)
            near = step[0]
            further = min(near + np.uint64(1), np.uint64(last))
            density = tables[b, i, near]
            if further > near:
                slope = (tables[b, i, further] - density) / (knots[further] - knots[near])
                density += slope * (ratio[b, i] - knots[near])
            if density > 0:
                found = min(found + np.log(ratio[b, i]) - np.log(density), 0.0)
            ratios[b, i + 1] = np.exp(found)


@outer
def surpluses(
    target: Rows, draft: Rows, shift: int, before: int, knots: Array, tables: Array, scale: Array, left: Array
) -> None:  # fmt: skip
    """sum max(0, scale target - law) over rows [N, V], into `left` [N]; the law is draft times the table [N, M]."""
    step, lines, last = np.empty(PIECE, np.uint64), np.empty(2 * len(knots)), len(knots) - 1
    for n in range(len(draft)):
        lines_of(tables[n], knots, lines)
        total = 0.0
        for start in range(0, draft.shape[1], PIECE):
            target_piece, draft_piece = target[n, start : start + PIECE], draft[n, start : start + PIECE]
            find_steps(target_piece, draft_piece, shift, before, last, step)
            for v in range(len(draft_piece)):
                place = np.uint64(2) * step[v]
                law = lines[place] * draft_piece[v] + lines[place + np.uint64(1)] * target_piece[v]
                total += max(scale[n] * target_piece[v] - max(law, 0.0), 0.0)
        left[n] = total


@outer
def correction(
    target: Rows, draft: Rows, shift: int, before: int, knots: Array, table: Array, scale: float, weights: Array
) -> None:  # fmt: skip
    """`single_path.correction_weights` of one row [V] with such a law, into `weights` [V]."""
    step, lines, last = np.empty(PIECE, np.uint64), np.empty(2 * len(knots)), len(knots) - 1
    lines_of(table, knots, lines)
    total = 0.0
    for start in range(0, len(draft), PIECE):
        target_piece, draft_piece = target[start : start + PIECE], draft[start : start + PIECE]
        find_steps(target_piece, draft_piece, shift, before, last, step)
        for v in range(len(draft_piece)):
            place = np.uint64(2) * step[v]
            law = lines[place] * draft_piece[v] + lines[place + np.uint64(1)] * target_piece[v]
            weights[start + v] = max(scale * target_piece[v] - max(law, 0.0), 0.0)
            total += weights[start + v]
    if not total > 0:
        for v in range(len(draft)):
            weights[v] = target[v]


@outer
def least_score(score: Array, below: Array, uniform: Array, winner: NDArray[np.int64]) -> None:
    """`Draws.smallest_score` for knots [B, K, J] and uniforms [B, K], into `winner` [B]."""
    for b in range(len(score)):
        least = np.inf
        for k in range(score.shape[1]):
            knot = 0
            while knot < score.shape[2] - 2 and below[b, k, knot + 1] <= uniform[b, k]:
                knot += 1
            start, mass = score[b, k, knot], below[b, k, knot + 1] - below[b, k, knot]
            inside = (uniform[b, k] - below[b, k, knot]) / mass if mass > 0 else 0.0
            found = start + inside * (score[b, k, knot + 1] - start)
            if found < least:
                least, winner[b] = found, k
