# mypy: disable-error-code="no-untyped-def"
"""One node of the score race on vectors of knots: how the tokens share the law of a path's score, and the law below.

Device functions only, in float64. A law of the score is a tuple (score, below, inner, worth, rate, weight, slope) of
vectors over J slots: knots of the score, ascending from 0 to 1, and the probability of a score below each, also with
infinity for the knots that begin no piece; then, of the piece from each knot to the next, what its value takes. Knots
not yet used lie at 1. A node's state is a tuple (wanted, kept, density, slope) of scalars, everything per draft through
the node. A split is a tuple (level, upper, edges, values): over the M knots, what each takes below the cut of its
window and whether that is the first; over 8 slots, the five masses at which the two windows and their cuts cut the law,
and the values of these masses.

The knots are 0 and 16 to an octave (see `histograms`); the last of the M slots is beyond them, without mass.

Letters: K paths, M knots, J slots of a score law, S sections of a bracket; u1 and u0 the mean values of g' below and
above a cut. The rule is "safe" of `specbound.runtime.verifiers.score_race`, whose comments say what is computed here.
"""

import triton
import triton.language as tl

from ..parts.ratio_knots import LAST

EDGES = tl.constexpr(8)  # slots for the five edges of a split
KNOTS = tl.constexpr(LAST + 1)  # of the M slots
BEFORE = tl.constexpr((1023 << 4) - 2)  # what the leading bits of a float64 say at 1, less the knots up to the lowest


@triton.jit
def over(value, mass):
    """value / mass, 0 where there is no mass."""
    return tl.where(mass > 0, value / tl.where(mass > 0, mass, 1.0), 0.0)


@triton.jit
def clipped(value, low, high):
    """Between low and high."""
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def entry(vector, place, SIZE: tl.constexpr):
    """The number at `place`; 0 beyond the vector."""
    return tl.sum(tl.where(tl.arange(0, SIZE) == place, vector, 0.0), axis=0)


@triton.jit
def winning_share(mass, PATHS: tl.constexpr):
    """1 - (1 - mass)^K = mass (1 + left + .. + left^(K-1)), left = 1 - mass, without cancellation."""
    left = 1.0 - mass
    total = left * 0.0 + 1.0
    for _ in range(1, PATHS):
        total = 1.0 + left * total
    return mass * total


@triton.jit
def steepness(score, PATHS: tl.constexpr):
    """g'(s) = K (1-s)^(K-1)."""
    left = 1.0 - score
    power = left * 0.0 + 1.0
    for _ in range(1, PATHS):
        power *= left
    return PATHS * power


@triton.jit
def law_of(score, below, used, PATHS: tl.constexpr, SLOTS: tl.constexpr):
    """The law with these knots, `used` of them."""
    slot = tl.arange(0, SLOTS)
    inner = tl.where((slot > 0) & (slot < used - 1), below, float("inf"))
    after = tl.minimum(slot + 1, SLOTS - 1)
    width, mass = tl.gather(score, after, 0) - score, tl.gather(below, after, 0) - below
    left, steep = 1.0 - score, steepness(score, PATHS)
    spread = (width > 0) & (mass > 0)
    rate = tl.where(spread, over(width, mass * left), 0.0)
    weight = tl.where(spread, over(mass, width) * left * steep / PATHS, 0.0)
    slope = tl.where(spread, 0.0, steep)
    value = slope * mass + weight * winning_share(tl.minimum(rate * mass, 1.0), PATHS)
    return score, below, inner, tl.cumsum(value, axis=0) - value, rate, weight, slope


@triton.jit
def piece_of(mass, inner):
    """The piece that holds the last of each `mass`."""
    index = tl.zeros(mass.shape, tl.int32)
    for i in tl.static_range(16):
        if (inner.shape[0] >> (i + 1)) > 0:
            probe = index + (inner.shape[0] >> (i + 1))
            index = tl.where(tl.gather(inner, probe, 0) <= mass, probe, index)
    return index


@triton.jit
def worth_of(mass, law, PATHS: tl.constexpr):
    """G of `mass`, a vector: the value of the lowest scores of that probability."""
    _, below, inner, worth, rate, weight, slope = law
    piece = piece_of(mass, inner)
    inside = mass - tl.gather(below, piece, 0)
    won = winning_share(tl.minimum(tl.gather(rate, piece, 0) * inside, 1.0), PATHS)
    return tl.gather(worth, piece, 0) + tl.gather(slope, piece, 0) * inside + tl.gather(weight, piece, 0) * won


@triton.jit
def score_at(mass, law):
    """The score below which lies each `mass`, a vector."""
    score, below, inner, _, _, _, _ = law
    piece = piece_of(mass, inner)
    start, before = tl.gather(score, piece, 0), tl.gather(below, piece, 0)
    length, span = tl.gather(score, piece + 1, 0) - start, tl.gather(below, piece + 1, 0) - before
    return start + length * over(mass - before, span)


@triton.jit
def means(cut, start, stop, bottom, top, steepest, law, PATHS: tl.constexpr):
    """u1, u0 of windows from mass `start` to `stop`, worth `bottom` and `top`, for each cut."""
    middle = worth_of(cut, law, PATHS)
    high = tl.where(cut > start, (middle - bottom) / (cut - start), steepest)
    low = tl.where(cut < stop, (top - middle) / (stop - cut), 0.0)
    return high, tl.minimum(low, high)


@triton.jit
def mass_below(ratios, begin, end, knots):
    """Draft and target mass of the knots below each ratio, of all before `begin` and none from `end`; from its bits."""
    lowest, draft_before, target_before = knots
    index = ((ratios / lowest).to(tl.int64, bitcast=True) >> 48) - BEFORE
    index = tl.minimum(tl.maximum(index, 1), KNOTS).to(tl.int32)
    index = tl.minimum(tl.maximum(index, begin), end)
    return tl.gather(draft_before, index, 0), tl.gather(target_before, index, 0)


@triton.jit
def cut_windows(
    knots, law, node, begin, border, worth, PATHS: tl.constexpr,
    SLACK: tl.constexpr, SECTIONS: tl.constexpr, ROUNDS: tl.constexpr,
    SIZE: tl.constexpr, SLOTS: tl.constexpr, RESERVED: tl.constexpr,
):  # fmt: skip
    """Cut both windows, which part at mass `border` and knot `begin`, at the smallest place where the law fits.

    Returns place, u1 and u0 of the first window and then of the second.
    """
    wanted, kept, density, slope = node
    slot = tl.arange(0, 4 * SECTIONS)
    second, step = slot >= 2 * SECTIONS, slot % (2 * SECTIONS)
    first_knot, end_knot = tl.where(second, 0, begin), tl.where(second, begin, SIZE - 1)
    start, stop = tl.where(second, border, 0.0), tl.where(second, 1.0, border)
    bottom, top = tl.where(second, worth, 0.0), tl.where(second, density, worth)
    steepest = steepness(score_at(start, law), PATHS)
    zero, zero_sum = tl.gather(knots[1], first_knot, 0), tl.gather(knots[2], first_knot, 0)
    total = tl.gather(knots[1], end_knot, 0)
    budget = (top - bottom) + (top - bottom) * SLACK
    low_place, high_place = start, stop
    left, right = start * 0.0, start * 0.0
    for _ in range(ROUNDS):
        point = low_place + (high_place - low_place) * (step.to(tl.float64) / SECTIONS)
        point = tl.where(step >= SECTIONS, high_place, point)
        high, low = means(point, start, stop, bottom, top, steepest, law, PATHS)
        if RESERVED:
            lift = tl.maximum(slope - low, 0.0)
            rise = wanted - kept * lift
            equal = tl.minimum((low + lift) / wanted, tl.where(rise > 0, low / rise, float("inf")))
            linear, linear_sum = mass_below(tl.minimum(equal, 1.0 / kept), first_knot, end_knot, knots)
        else:
            equal = low / wanted
        least, least_sum = mass_below(equal, first_knot, end_knot, knots)
        free, free_sum = mass_below(high / wanted, first_knot, end_knot, knots)
        served = low * (least - zero) + wanted * tl.maximum(free_sum - least_sum, 0.0) + high * (total - free)
        if RESERVED:
            served += lift * (kept * (linear_sum - zero_sum) + least - linear)
            excess = tl.minimum(served - budget, high - (slope - slope * SLACK))
        else:
            excess = served - budget
        fits = (step >= SECTIONS) | ~(excess > 0)
        one = tl.min(tl.where(fits & ~second, step, SECTIONS), axis=0)
        two = tl.min(tl.where(fits & second, step, SECTIONS), axis=0)
        after = tl.where(second, two + 2 * SECTIONS, one)
        before = tl.where(second, tl.maximum(two - 1, 0) + 2 * SECTIONS, tl.maximum(one - 1, 0))
        low_place, left = tl.gather(point, before, 0), tl.gather(excess, before, 0)
        high_place, right = tl.gather(point, after, 0), tl.gather(excess, after, 0)
    part = tl.where(left > 0, left / tl.where(left > right, left - right, 1.0), 0.0)
    place = low_place + (high_place - low_place) * tl.where(right > 0, 1.0, part)
    high, low = means(place, start, stop, bottom, top, steepest, law, PATHS)
    other = 2 * SECTIONS
    return (
        entry(place, 0, 4 * SECTIONS), entry(high, 0, 4 * SECTIONS), entry(low, 0, 4 * SECTIONS),
        entry(place, other, 4 * SECTIONS), entry(high, other, 4 * SECTIONS), entry(low, other, 4 * SECTIONS),
    )  # fmt: skip


@triton.jit
def edges_of(first, border, second):
    """The edges 0, first, border, second, 1, and 1 in the slots behind them."""
    slot = tl.arange(0, EDGES)
    edges = tl.where(slot == 1, first, tl.where(slot == 2, border, tl.where(slot == 3, second, 1.0)))
    return tl.where(slot == 0, 0.0, edges)


@triton.jit
def moved_cuts(level, upper, mass, border):
    """The edges after each cut has moved to the mass that the levels of its window take."""
    ours, theirs = tl.where(upper, mass, 0.0), tl.where(upper, 0.0, mass)
    first = border * over(tl.sum(ours * level, axis=0), tl.sum(ours, axis=0))
    second = border + (1.0 - border) * over(tl.sum(theirs * level, axis=0), tl.sum(theirs, axis=0))
    return edges_of(first, border, second)


@triton.jit
def bold_split(
    ratio, mass, knots, law, node, PATHS: tl.constexpr,
    SLACK: tl.constexpr, SECTIONS: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The best set takes the lowest scores, the other tokens the rest; both are cut in two."""
    wanted, _, _, _ = node
    knot = tl.arange(0, SIZE)
    size = tl.minimum(tl.cumsum(mass, axis=0, reverse=True), 1.0)
    value = worth_of(size, law, PATHS)
    loss = value - wanted * tl.cumsum(mass * ratio, axis=0, reverse=True)
    least = tl.min(loss, axis=0)
    begin = tl.where(least < 0, tl.max(tl.where(loss == least, knot, 0), axis=0), SIZE - 1)
    border, worth = entry(size, begin, SIZE), entry(value, begin, SIZE)
    _, high, low, _, next_high, next_low = cut_windows(
        knots, law, node, begin, border, worth, PATHS, SLACK, SECTIONS, ROUNDS, SIZE, SLOTS, RESERVED=False
    )
    upper = knot >= begin
    high, low = tl.where(upper, high, next_high), tl.where(upper, low, next_low)
    level = clipped(over(wanted * ratio - low, high - low), 0.0, 1.0)
    edges = moved_cuts(level, upper, mass, border)
    return level, upper, edges, worth_of(edges, law, PATHS)


@triton.jit
def careful_split(
    ratio, mass, knots, law, node, PATHS: tl.constexpr,
    SLACK: tl.constexpr, SECTIONS: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """All tokens share the whole law, cut once, with a reserve for what block verification keeps."""
    wanted, kept, density, slope = node
    place, high, low, _, _, _ = cut_windows(
        knots, law, node, 0, density * 0.0 + 1.0, density, PATHS,
        SLACK, SECTIONS, ROUNDS, SIZE, SLOTS, RESERVED=True,
    )  # fmt: skip
    least = tl.minimum(low + tl.minimum(kept * ratio, 1.0) * tl.maximum(slope - low, 0.0), high)
    level = clipped(over(tl.maximum(wanted * ratio, least) - low, high - low), 0.0, 1.0)
    least = clipped(over(least - low, high - low), 0.0, 1.0)
    must, taken = tl.sum(mass * least, axis=0), tl.sum(mass * level, axis=0)
    room = tl.where(taken > must, clipped(over(place - must, taken - must), 0.0, 1.0), 1.0)
    level = tl.where(slope > 0, least + room * (level - least), level)
    upper = tl.arange(0, SIZE) >= 0
    edges = moved_cuts(level, upper, mass, density * 0.0 + 1.0)
    return level, upper, edges, worth_of(edges, law, PATHS)


@triton.jit
def of_knots(vector, upper, first):
    """Of a vector over the edges, for each knot the number at `first` of its window."""
    return tl.where(upper, entry(vector, first, EDGES), entry(vector, first + 2, EDGES))


@triton.jit
def densities_of(split):
    """kappa(wy) / Q(wy) of tokens at the knots."""
    level, upper, edges, values = split
    after = tl.minimum(tl.arange(0, EDGES) + 1, EDGES - 1)
    means = over(tl.gather(values, after, 0) - values, tl.gather(edges, after, 0) - edges)
    high, low = of_knots(means, upper, 0), of_knots(means, upper, 1)
    return low + level * (high - low)


@triton.jit
def child_worth(mass, split, law, PATHS: tl.constexpr):
    """Value of the lowest-score `mass` of the child at each knot."""
    level, upper, edges, values = split
    first, cut, last = of_knots(edges, upper, 0), of_knots(edges, upper, 1), of_knots(edges, upper, 2)
    first_value, cut_value = of_knots(values, upper, 0), of_knots(values, upper, 1)
    deep = mass > level
    share = tl.where(deep, 1.0 - level, level)
    start, start_value = tl.where(deep, cut, first), tl.where(deep, cut_value, first_value)
    length = tl.where(deep, last, cut) - start
    taken = tl.minimum(over(tl.where(deep, mass - level, mass), share), 1.0)
    worth = over(share * (worth_of(start + taken * length, law, PATHS) - start_value), length)
    return worth + tl.where(deep, over(level * (cut_value - first_value), cut - first), 0.0)


@triton.jit
def is_covered(ratio, mass, split, densities, law, node, levels, SLACK: tl.constexpr, PATHS: tl.constexpr):
    """What the split may cost further down, where `levels` follow, is covered by what it gains here."""
    wanted, kept, _, slope = node
    keeps = tl.minimum(kept * ratio, 1.0)
    owed = keeps * slope
    gain = tl.minimum(densities, wanted * ratio) - owed
    short = levels * tl.maximum(owed - child_worth(keeps, split, law, PATHS), 0.0)
    return tl.sum((gain - short) * mass, axis=0) >= -SLACK


@triton.jit
def inserted(vector, number, SLOTS: tl.constexpr):
    """An ascending vector with one more number in its place; the last of its slots falls out."""
    slot = tl.arange(0, SLOTS)
    rank = tl.sum((vector <= number).to(tl.int32), axis=0)
    moved = tl.gather(vector, tl.maximum(slot - 1, 0), 0)
    return tl.where(slot < rank, vector, tl.where(slot == rank, number, moved))


@triton.jit
def child_law(law, used, edges, shares, PATHS: tl.constexpr, SLOTS: tl.constexpr):
    """The law, of `used` knots, of a child that takes share i from the part between edge i and the next.

    Args: edges, shares: vectors over the edges, shares 0 from the last on.
    """
    score, below, _, _, _, _, _ = law
    places = score_at(edges, law)
    for i in tl.static_range(1, 4):
        below = inserted(below, entry(edges, i, EDGES), SLOTS)
        score = inserted(score, entry(places, i, EDGES), SLOTS)
    length = tl.gather(edges, tl.minimum(tl.arange(0, EDGES) + 1, EDGES - 1), 0) - edges
    taken = over(clipped(below[:, None] - edges[None, :], 0.0, length[None, :]), length[None, :])
    below = tl.sum(taken * shares[None, :], axis=1)
    slot = tl.arange(0, SLOTS)
    below = tl.max(tl.where(slot[None, :] <= slot[:, None], below[None, :], 0.0), axis=1)
    return law_of(score, over(below, tl.max(below, axis=0)), used, PATHS, SLOTS)


@triton.jit
def between(table, near, part, SIZE: tl.constexpr):
    """A table over the knots, `part` of the way from knot `near` to the next."""
    low = entry(table, near, SIZE)
    return low + part * (entry(table, tl.minimum(near + 1, SIZE - 1), SIZE) - low)


@triton.jit
def split_node(
    ratio, mass, law, node, levels, PATHS: tl.constexpr,
    SLACK: tl.constexpr, SECTIONS: tl.constexpr, ROUNDS: tl.constexpr, SIZE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The split of the safe rule at a node with the knots ratio, mass and `levels` levels below its children.

    Returns level, upper and edges of the split, kappa(wy) / Q(wy) of tokens at the knots, and whether block
    verification is owed nothing for the split.
    """
    target = mass * ratio
    knots = entry(ratio, 1, SIZE), tl.cumsum(mass, axis=0) - mass, tl.cumsum(target, axis=0) - target
    level, upper, edges, values = bold_split(ratio, mass, knots, law, node, PATHS, SLACK, SECTIONS, ROUNDS, SIZE, SLOTS)
    densities = densities_of((level, upper, edges, values))
    bold = is_covered(ratio, mass, (level, upper, edges, values), densities, law, node, levels, SLACK, PATHS)
    if not bold:
        level, upper, edges, values = careful_split(
            ratio, mass, knots, law, node, PATHS, SLACK, SECTIONS, ROUNDS, SIZE, SLOTS
        )
        densities = densities_of((level, upper, edges, values))
    return (level, upper, edges), densities, bold


@triton.jit
def shares_at(knot, split, SIZE: tl.constexpr):
    """What tokens at a knot take from each part of the law, over the edges."""
    level, upper, _ = split
    own, first = entry(level, knot, SIZE), entry(upper.to(tl.float64), knot, SIZE)
    part = tl.arange(0, EDGES)
    share = tl.where(part < 2, first, 1.0 - first) * tl.where(part % 2 == 0, own, 1.0 - own)
    return tl.where(part < 4, share, 0.0)


@triton.jit
def go_to_token(
    split, density, bold, law, used, node, near, part, own,
    PATHS: tl.constexpr, SIZE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """The score's law, of `used` knots, and the state at the child of a token of ratio `own` and this density.

    The token lies `part` of the way from knot `near` to the next.
    """
    wanted, kept, _, slope = node
    shares = shares_at(near, split, SIZE)
    shares += part * (shares_at(tl.minimum(near + 1, SIZE - 1), split, SIZE) - shares)
    below = child_law(law, used, split[2], shares, PATHS, SLOTS)
    keeps = tl.minimum(kept * own, 1.0)
    value = entry(worth_of(shares * 0.0 + keeps, below, PATHS), 0, EDGES)
    least = tl.where(keeps > 0, tl.minimum(slope, over(value, keeps)), slope)
    return below, (tl.minimum(density, wanted * own), keeps, density, tl.where(bold, least, slope))
