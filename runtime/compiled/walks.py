"""Walks on histograms: what `verifiers.score_race` and `verifiers.two_level` compute, a path at a time.

The formulas, and the reasons for them, stand there; here they are loops over one path's knots. Everything is float64.

Letters: J knots and J-1 pieces of a score law, M knots of a row, P parts, K paths, L drafted tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..parts.score_law import NOTHING
from .jit import inner, outer

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Window = tuple[float, float, float, float, float]

FIRST, WIDTH, BEFORE, WORTH, RATE, UNIT = range(6)  # columns of a piece, see `ScoreLaw.pieces`
CLOSE, TINY = 2.0**-52, 2.0**-49
NUDGE, WASTED = 0.8, 2  # of the secant's point, and steps that it may waste against bisection, see `parts.roots`


@inner
def over(value: float, mass: float) -> float:
    """value / mass, 0 where there is no mass."""
    return value / mass if mass > 0 else 0.0


@inner
def below(ascending: Array, value: float) -> int:
    """How many of the numbers lie below `value`."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def upto(ascending: Array, value: float) -> int:
    """How many of the numbers lie at or below `value`."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] <= value:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def between(ascending: Array, value: float) -> tuple[int, int, float]:
    """The places of the numbers around `value`, and how far between them it lies (`Knots.between`)."""
    near = max(upto(ascending, value) - 1, 0)
    further = min(near + 1, len(ascending) - 1)
    return near, further, over(max(value - ascending[near], 0.0), ascending[further] - ascending[near])


@inner
def next_point(low: float, left: float, high: float, right: float, reach: float) -> float:
    """Where to look next for the root of a falling function, left > 0 at `low` and right <= 0 at `high`.

    The secant's point, moved a little towards the middle, and nearer to it than `reach` (ITP, see `parts.roots`).
    """
    middle, half = (low + high) / 2, (high - low) / 2
    secant = high - right * (high - low) / (right - left)
    towards = np.sign(middle - secant)
    nudge = NUDGE * half * half
    point = secant + towards * nudge if nudge <= abs(middle - secant) else middle
    return point if abs(point - middle) <= reach else middle - towards * reach


def root_of(excess: Any) -> Any:
    """A function for the smallest x in [first, last] with excess(x, given) <= 0, or `last` where there is none."""

    @inner
    def root(given: Any, first: float, last: float, steps: int) -> float:
        """In `steps` evaluations and two; in the last bracket the excess counts as linear."""
        low, high, left, right, point = first, last, 0.0, 0.0, first
        for step in range(steps + 2):
            value = excess(point, given)
            if value > 0:
                if step == 1:
                    return last
                low, left = point, value
            else:
                if step == 0:
                    return first
                high, right = point, value
            if step == 0:
                point = last
            elif high - low <= CLOSE or right == 0:
                break
            else:
                reach = (last - first) * 2.0 ** (WASTED - step) - (high - low) / 2
                point = next_point(low, left, high, right, reach)
        return low + (high - low) * left / (left - right)

    return root


# ---------------------------------------------------------------- score laws


@inner
def powers_below(left: float, paths: int) -> float:
    """1 + left + .. + left^(K-1)."""
    total = 1.0
    for _ in range(paths - 1):
        total = 1 + left * total
    return total


@inner
def pieces_of(score: Array, mass: Array, paths: int) -> Array:
    """[J-1, 6]: `ScoreLaw.pieces` of the law with probability mass [J] below the scores [J]."""
    pieces = np.empty((len(score) - 1, 6))
    worth = 0.0
    for j in range(len(pieces)):
        inside, left = mass[j + 1] - mass[j], 1 - score[j]
        width = over(score[j + 1] - score[j], inside if inside > NOTHING else 0.0)
        rate, unit = over(width, left), left ** (paths - 1)
        piece = pieces[j]
        piece[FIRST], piece[WIDTH], piece[BEFORE], piece[WORTH] = score[j], width, mass[j], worth
        piece[RATE], piece[UNIT] = rate, unit
        worth += inside * unit * powers_below(max(1 - rate * inside, 0.0), paths)
    return pieces


@inner
def piece_at(pieces: Array, mass: float) -> Array:
    """[6]: the piece that holds the last of `mass`."""
    low, high = 0, len(pieces) - 1
    while low < high:
        middle = (low + high) // 2
        if pieces[middle + 1, BEFORE] <= mass:
            low = middle + 1
        else:
            high = middle
    return pieces[low]


@inner
def value_of(pieces: Array, mass: float, paths: int) -> float:
    """G of `mass` in [0, 1]: the value of the lowest scores of that probability."""
    piece = piece_at(pieces, mass)
    inside = mass - piece[BEFORE]
    return piece[WORTH] + inside * piece[UNIT] * powers_below(max(1 - piece[RATE] * inside, 0.0), paths)


@inner
def score_at(pieces: Array, mass: float) -> float:
    """The score below which lies `mass`."""
    piece = piece_at(pieces, mass)
    return piece[FIRST] + (mass - piece[BEFORE]) * piece[WIDTH]


@inner
def insert(ascending: Array, count: int, value: float) -> None:
    """Put `value` among the first `count` of the numbers."""
    place = count
    while place > 0 and ascending[place - 1] > value:
        ascending[place] = ascending[place - 1]
        place -= 1
    ascending[place] = value


@inner
def rearranged(score: Array, mass: Array, pieces: Array, edges: Array, shares: Array) -> tuple[Array, Array]:
    """`ScoreLaw.rearranged` of one law: scores and masses [J + P - 1]."""
    count, added = len(mass), len(edges) - 2
    scores, masses = np.empty(count + added), np.empty(count + added)
    for j in range(count):
        scores[j], masses[j] = score[j], mass[j]
    for p in range(added):
        insert(scores, count + p, score_at(pieces, edges[p + 1]))
        insert(masses, count + p, edges[p + 1])
    reached = 0.0
    for j in range(len(masses)):
        taken = 0.0
        for p in range(len(shares)):
            length = edges[p + 1] - edges[p]
            taken += min(max(masses[j] - edges[p], 0.0), length) * over(shares[p], length)
        reached = max(reached, taken)
        masses[j] = reached
    for j in range(len(masses)):
        masses[j] = over(masses[j], reached)
    return scores, masses


# ---------------------------------------------------------------- the score race


@inner
def means(cut: float, window: Window, pieces: Array, paths: int) -> tuple[float, float]:
    """u1, u0: the mean of g' in a window (first and last mass, their values, steepest g') below and above a cut."""
    first, last, bottom, top, steepest = window
    middle = value_of(pieces, cut, paths)
    high = min((middle - bottom) / (cut - first), steepest) if cut > first else steepest
    return high, min(over(top - middle, last - cut), high)


@inner
def prefix_sums(ratio: Array, mass: Array, sums: Array) -> None:
    """Draft and target mass of the knots before each, into `sums` [2, M+1]."""
    for m in range(len(mass)):
        sums[0, m + 1] = sums[0, m] + mass[m]
        sums[1, m + 1] = sums[1, m] + mass[m] * ratio[m]


@inner
def sums_below(place: float, ratio: Array, sums: Array, begin: int, end: int) -> tuple[float, float]:
    """Draft and target mass of the knots begin <= m < end whose ratio is below `place`."""
    index = min(max(below(ratio, place), begin), end)
    return sums[0, index] - sums[0, begin], sums[1, index] - sums[1, begin]


@inner
def race_excess(cut: float, given: Any) -> float:
    """What the tokens of a window want of its scores at a cut, beyond what there is; see `score_race.cuts`."""
    window, pieces, paths, ratio, sums, begin, end, wanted, kept, owed, budget, least_high = given
    high, low = means(cut, window, pieces, paths)
    lift = max(owed - low, 0.0)
    rise = wanted - kept * lift
    equal = (low + lift) / wanted if wanted > 0 else np.inf
    if rise > 0:
        equal = min(equal, low / rise)
    linear = min(equal, 1 / kept) if kept > 0 else equal
    most = high / wanted if wanted > 0 else np.inf
    least, least_sum = sums_below(equal, ratio, sums, begin, end)
    free, free_sum = sums_below(most, ratio, sums, begin, end)
    total = sums[0, end] - sums[0, begin]
    served = low * least + high * (total - free) + wanted * max(free_sum - least_sum, 0.0) - budget
    if owed > 0:
        mass, mass_sum = sums_below(linear, ratio, sums, begin, end)
        served = min(served + lift * (kept * mass_sum + least - mass), high - least_high)
    return served


cut_place = root_of(race_excess)


@inner
def cut_window(
    level: Array, ratio: Array, mass: Array, sums: Array, begin: int, end: int,
    window: Window, pieces: Array, paths: int,
    wanted: float, kept: float, owed: float, slack: float, steps: int,
) -> float:  # fmt: skip
    """Cut a window where the clipped law fits, into `level` [M] at its knots; the mass that they take from below it."""
    first, last, bottom, top, _ = window
    budget, least_high = (top - bottom) * (1 + slack), owed * (1 - slack)
    given = (window, pieces, paths, ratio, sums, begin, end, wanted, kept, owed, budget, least_high)
    place = cut_place(given, first, last, steps)
    high, low = means(place, window, pieces, paths)
    span, lift = high - low, max(owed - low, 0.0)
    must, used = 0.0, 0.0
    for m in range(begin, end):
        least = min(low + min(kept * ratio[m], 1.0) * lift, high) if owed > 0 else low
        level[m] = min(max(over(max(wanted * ratio[m], least) - low, span), 0.0), 1.0)
        used += mass[m] * level[m]
        must += mass[m] * min(max(over(least - low, span), 0.0), 1.0)
    if owed > 0 and used > must:
        room = min(max(over(place - first - must, used - must), 0.0), 1.0)
        used = 0.0
        for m in range(begin, end):
            least = min(low + min(kept * ratio[m], 1.0) * lift, high)
            least = min(max(over(least - low, span), 0.0), 1.0)
            level[m] = least + room * (level[m] - least)
            used += mass[m] * level[m]
    return first + (last - first) * over(used, sums[0, end] - sums[0, begin])


@inner
def best_set(
    ratio: Array, mass: Array, pieces: Array, paths: int, wanted: float, kept: float, owed: float
) -> tuple[int, float]:  # fmt: skip
    """The first knot of the best set, and its draft mass; with `owed` = sigma only sets that serve the reserve."""
    held = np.zeros(len(mass) + 1)  # draft mass times what block verification keeps, of the knots before each
    if owed > 0:
        for m in range(len(mass)):
            held[m + 1] = held[m] + mass[m] * min(kept * ratio[m], 1.0)
    least, size, smallest = len(mass), 0.0, np.inf
    reach, gain = 0.0, 0.0
    for m in range(len(mass), -1, -1):
        if m < len(mass):
            reach += mass[m]
            gain += mass[m] * ratio[m]
        value = value_of(pieces, min(reach, 1.0), paths)
        loss = value - wanted * gain
        if loss < smallest:
            if owed > 0:
                served = value_of(pieces, min(reach + held[m], 1.0), paths) - value
                if served < owed * held[m] - TINY:
                    continue
            least, size, smallest = m, min(reach, 1.0), loss
    return least, size


@inner
def split_node(
    ratio: Array, mass: Array, sums: Array, pieces: Array, paths: int, best: bool, reserved: bool,
    wanted: float, kept: float, density: float, slope: float, slack: float, steps: int, level: Array,
) -> tuple[int, Array, Array]:  # fmt: skip
    """How the tokens at a node share its scores, see `score_race.Split`: into `level` [M].

    Returns:
        the first knot of the first window (the second holds those before it); edges and their values [P+1], P = 4, of
            which two parts are empty where there is one window.
    """
    owed, count = slope if reserved else 0.0, len(mass)
    begin, size = best_set(ratio, mass, pieces, paths, wanted, kept, owed) if best else (0, 1.0)
    edges = np.array([0.0, 0.0, size, 1.0, 1.0])
    middle = value_of(pieces, size, paths) if best else density
    for second in range(2 if best else 1):
        first, bottom, top = (size, middle, density) if second else (0.0, 0.0, middle)
        lowest, end = (0, begin) if second else (begin, count)
        steepest = paths * (1 - score_at(pieces, first)) ** (paths - 1)
        window = first, edges[2 * second + 2], bottom, top, steepest
        edges[2 * second + 1] = cut_window(
            level, ratio, mass, sums, lowest, end, window, pieces, paths, wanted, kept, owed, slack, steps
        )
    values = np.empty(5)
    for p in range(5):
        values[p] = value_of(pieces, edges[p], paths)
    return begin, edges, values


@inner
def child_value(
    mass: float, level: float, part: int, edges: Array, values: Array, worth: Array, pieces: Array, paths: int
) -> float:  # fmt: skip
    """The value of the child's lowest-score `mass`; its scores below the cut are from `part`, others from the next."""
    above = level if mass > level else 0.0
    share = 1 - level if mass > level else level
    from_part = part + 1 if mass > level else part
    length = edges[from_part + 1] - edges[from_part]
    taken = min(over(mass - above, share), 1.0)
    gained = value_of(pieces, edges[from_part] + taken * length, paths) - values[from_part]
    return over(share * gained, length) + above * worth[part]


@inner
def covered(
    ratio: Array, mass: Array, level: Array, begin: int, edges: Array, values: Array, worth: Array, pieces: Array,
    paths: int, wanted: float, kept: float, slope: float, deeper: int,
) -> float:  # fmt: skip
    """What the split gains here less what it may cost in `deeper` levels further down, see `score_race.brave`."""
    gain = 0.0
    for m in range(len(mass)):
        part = 0 if m >= begin else 2
        held = min(kept * ratio[m], 1.0)
        density = worth[part + 1] + level[m] * (worth[part] - worth[part + 1])
        short = 0.0
        if deeper > 0 and held > 0:
            found = child_value(held, level[m], part, edges, values, worth, pieces, paths)
            short = deeper * max(held * slope - found, 0.0)
        gain += mass[m] * (min(density, wanted * ratio[m]) - held * slope - short)
    return gain


@inner
def race_path(
    ratios: Array, masses: Array, own: Array, paths: int, best: bool, reserved: bool, safe: bool, slack: float,
    steps: int, stem: int, tables: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """`score_race.race` of one path.

    Args:
        ratios, masses [L, M]: knots of the path's rows; own [L]: target/draft of its tokens; tables [L, M]: the result.
    Returns:
        the law of its score: scores and masses [J].
    """
    score, mass = np.array([0.0, 1.0]), np.array([0.0, 1.0])
    pieces = pieces_of(score, mass, paths)
    begun = 1.0
    for depth in range(stem):
        begun = min(begun * own[depth], 1.0)
    wanted, kept, density, slope = begun, begun, 1.0, 1.0
    count = masses.shape[1]
    level, sums, worth, shares = np.empty(count), np.zeros((2, count + 1)), np.empty(4), np.empty(4)
    for depth in range(stem, len(own)):
        row, weight, table = ratios[depth], masses[depth], tables[depth]
        prefix_sums(row, weight, sums)
        for careful in range(2):
            begin, edges, values = split_node(
                row, weight, sums, pieces, paths, best and not careful, reserved or careful == 1,
                wanted, kept, density, slope, slack, steps, level,
            )  # fmt: skip
            for p in range(len(worth)):
                worth[p] = over(values[p + 1] - values[p], edges[p + 1] - edges[p])
            bold = safe and not careful and -slack <= covered(
                row, weight, level, begin, edges, values, worth, pieces, paths,
                wanted, kept, slope, len(own) - depth - 1,
            )  # fmt: skip
            if bold or not safe:
                break
        for m in range(count):
            part = 0 if m >= begin else 2
            table[m] = over(worth[part + 1] + level[m] * (worth[part] - worth[part + 1]), density)

        shares[:] = 0.0
        near, further, beyond = between(row, own[depth])
        for m, portion in ((near, 1 - beyond), (further, beyond)):
            part = 0 if m >= begin else 2
            shares[part] += level[m] * portion
            shares[part + 1] += (1 - level[m]) * portion
        score, mass = rearranged(score, mass, pieces, edges, shares)
        pieces = pieces_of(score, mass, paths)
        kept = min(kept * own[depth], 1.0)
        density = 0.0
        for p in range(len(worth)):
            density += shares[p] * worth[p]
        if bold and kept > 0:
            slope = min(slope, over(value_of(pieces, kept, paths), kept))
        wanted = min(density, wanted * own[depth])
    return score, mass


@outer
def race_paths(
    ratios: Array, masses: Array, own: Array, paths: int, best: bool, reserved: bool, safe: bool, slack: float,
    steps: int, stem: int, score: Array, mass: Array, tables: Array,
) -> None:  # fmt: skip
    """The same of paths [N, ..], their score laws into `score` and `mass` [N, J]."""
    for n in range(len(own)):
        scores, masses_below = race_path(
            ratios[n], masses[n], own[n], paths, best, reserved, safe, slack, steps, stem, tables[n]
        )
        for j in range(len(scores)):
            score[n, j], mass[n, j] = scores[j], masses_below[j]


# ---------------------------------------------------------------- two-level selection


@inner
def densities(count: Array, fails: float) -> tuple[float, float]:
    """`two_level.level_densities` for count [K]: selected law over draft law at level 1 and at level 0."""
    high, low, at_least = 0.0, 0.0, 0.0
    for n in range(len(count) - 1, -1, -1):
        at_least += count[n]
        high, low = high * fails + at_least, low * fails + count[n]
    return high, low


@inner
def level_excess(mass: float, given: Any) -> float:
    """What the clipped law has beyond 1 where coins come up with `mass`; see `two_level.success_mass`."""
    ratio, sums, accept, count, one = given
    high, low = densities(count, 1 - mass)
    most = len(ratio)
    least, least_sum = sums_below(low / accept if accept > 0 else np.inf, ratio, sums, 0, most)
    free, free_sum = sums_below(high / accept if accept > 0 else np.inf, ratio, sums, 0, most)
    return low * least + accept * (free_sum - least_sum) + high * (1 - free) - one


success_mass = root_of(level_excess)


@outer
def offer_nodes(
    ratio: Array, mass: Array, accept: Array, count: Array, alive: Flags, offered: Array, slack: float, steps: int,
    table: Array, fails: Array, level: Array, density: Array, weight: Array,
) -> None:  # fmt: skip
    """`two_level.offers_at` of nodes with knots ratio, mass [B, M] and offered ratios [B, K], into the last five."""
    most, paths = ratio.shape[1], offered.shape[1]
    levels, sums = np.empty(most), np.zeros((2, most + 1))
    for b in range(len(ratio)):
        prefix_sums(ratio[b], mass[b], sums)
        found = success_mass((ratio[b], sums, accept[b], count[b], 1 + slack), 0.0, 1.0, steps)
        high, low = densities(count[b], 1 - found)
        failing = 0.0
        for m in range(most):
            levels[m] = min(max(over(accept[b] * ratio[b, m] - low, high - low), 0.0), 1.0)
            failing += mass[b, m] * (1 - levels[m])
        fails[b] = min(max(failing, 0.0), 1.0)
        high, low = densities(count[b], fails[b])
        for m in range(most):
            table[b, m] = low + levels[m] * (high - low)
        first, none = -1, 1.0
        for k in range(paths):
            near, further, part = between(ratio[b], offered[b, k])
            level[b, k] = levels[near] + part * (levels[further] - levels[near])
            density[b, k] = table[b, near] + part * (table[b, further] - table[b, near])
            weight[b, k] = 0.0
            if alive[b, k]:
                first = k if first < 0 else first
                weight[b, k] = none * level[b, k]
                none *= 1 - level[b, k]
        weight[b, first] += none


@inner
def times(polynomial: Array, others: float, token: float) -> None:
    """polynomial [K] times (others + s token), in its place; the degree stays below K."""
    for m in range(len(polynomial) - 1, 0, -1):
        polynomial[m] = polynomial[m] * others + polynomial[m - 1] * token
    polynomial[0] *= others


@outer
def count_nodes(count: Array, level: Array, mass: Array, fails: Array, after: Array) -> None:
    """`two_level.counts_below` of nodes [B], into `after` [B, K]."""
    paths = count.shape[1]
    lowest, higher = np.empty(paths), np.empty(paths)
    for b in range(len(count)):
        high, low = densities(count[b], fails[b])
        density = low + level[b] * (high - low)
        failing = mass[b] * (1 - level[b])
        lowest[:], higher[:] = 0.0, 0.0
        for n in range(paths - 1, -1, -1):
            times(lowest, max(fails[b] - failing, 0.0), failing)
            lowest[0] += count[b, n]
            times(higher, 1 - mass[b], mass[b])
            for m in range(paths):
                higher[m] += lowest[m]
        for m in range(paths):
            mixed = lowest[m] + level[b] * (higher[m] - lowest[m])
            after[b, m] = mixed / density if density > 0 else count[b, m]
