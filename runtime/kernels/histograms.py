# mypy: disable-error-code="no-untyped-def"
"""Rows seen through their target/draft ratios, in one read: what the walks down several paths go on.

A token's ratio is 2^e, e = (target logit - draft logit) / (t log 2), up to the rows' normalisers: these are known only
behind the last logit, and shift e by a number per node. The grid of ratios 0 and 2^o (1 + s/16), s = 0..15, is the same
from octave to octave, so a shift by whole octaves moves whole bins. Each token's draft mass is shared between the two
grid points around its ratio, in proportion, as in `specbound.runtime.parts.ratio_knots`.

    row_histograms   reads every row once: sums of its chunks as `row_masses`; per *span* of chunks the draft mass and
                     the part of it that goes to the upper point, in SLOTS bins of a window of 32 octaves
    knots_at         merges a node's spans: the masses at its KNOTS = 258 knots, 0 and 2^-8 .. 2^8 around target/draft
                     1, rounded to whole octaves of e; for laws those of the tensor versions
    knot_of          where a token stands on them, by the same arithmetic: a law that is linear between knots then sums
                     to 1 as its masses do

The window of a span is centred at the octave of (sum of target) / (sum of draft) over its first tile with logits of
both, and again when that has moved by more than CARRY octaves. All tokens before count as one class from then on: of
ratio 0 if the window moved up, of its highest ratio if it moved down. Ratios below a window count as 0 unless its end
is below the lowest knot too, those above as its highest. All this is a function of the rows, told to the law as to
the masses, so it costs acceptance length at most, never losslessness. Rows of probabilities keep the window around 1.

Weights are added by products with one-hot matrices, in a fixed order and without atomics: in float32 a weight goes in
as two float16 numbers, which hold 22 of its 24 bits.

Letters: B requests, K paths, W walks, L drafted tokens, V vocabulary, C chunks, S spans of a row.
"""

import math
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from torch import Tensor

from ..parts import ratio_knots
from .rows import inverse_temperature, kernel, node_at, norms_of, read_row

if TYPE_CHECKING:
    from .buffers import Workspace

SLOTS = tl.constexpr(512)  # bins of a window, and places for knots in a power of two
LAST = tl.constexpr(ratio_knots.LAST)  # index of the highest knot
KNOTS = tl.constexpr(ratio_knots.LAST + 1)
REACH = tl.constexpr(ratio_knots.OCTAVES)  # octaves from the lowest knot to the middle
BELOW = tl.constexpr(16)  # octaves from a window's lowest ratio to its centre
CARRY = tl.constexpr(8)  # octaves by which the sums may leave the centre
SHIFT = tl.constexpr(ratio_knots.SHIFT)
LOWEST = tl.constexpr((127 - 16) << 23 >> ratio_knots.SHIFT)  # leading bits of 2^-BELOW as a float32
MOST = tl.constexpr(2.0**20)  # octaves beyond which ratios are not told apart
LOG2E = tl.constexpr(math.log2(math.e))
UNIT = tl.constexpr(2.0**15)  # what float16 counts the largest weight as


@triton.jit
def log_ratio_of(ahead, drawn, inverse):
    """e = log2 of target/draft from logits, not normalised; -inf without target mass, 0 without draft mass."""
    octaves = tl.minimum(tl.maximum((ahead - drawn) * inverse * LOG2E, -MOST), MOST)
    octaves = tl.where(ahead == float("-inf"), float("-inf"), octaves)
    return tl.where(drawn == float("-inf"), 0.0, octaves)


@triton.jit
def window_knot(slot):
    """Ratio of a window's slot over 2^centre, float32: 0, then 16 to an octave from 2^-BELOW."""
    return tl.where(slot > 0, ((slot - 1 + LOWEST) << SHIFT).to(tl.float32, bitcast=True), 0.0)


@triton.jit
def slot_of(log_ratio, centre, REAL: tl.constexpr):
    """Slot of each e at or below its ratio, how far it lies towards the next, and ratio / 2^centre in the window."""
    ratio = tl.exp2(tl.minimum(log_ratio - centre, 32.0))
    leading = ratio.to(tl.float32).to(tl.int32, bitcast=True) >> SHIFT
    slot = tl.minimum(tl.maximum(leading - LOWEST + 1, 0), SLOTS - 1)
    low, high = window_knot(slot).to(REAL), window_knot(slot + 1).to(REAL)
    part = tl.minimum(tl.maximum((ratio - low) / (high - low), 0.0), 1.0)
    top = slot == SLOTS - 1
    return slot, tl.where(top, 0.0, part), tl.where(top, low, ratio)


@triton.jit
def merged_sums(largest, total, other, more, inverse):
    """Largest logit, and sum of exp((x - largest) / t), of two parts of a row."""
    most = tl.maximum(largest, other)
    shift = tl.where(most == float("-inf"), 0.0, most)
    return most, total * tl.exp((largest - shift) * inverse) + more * tl.exp((other - shift) * inverse)


@triton.jit
def tile_weights(entries, inverse):
    """exp((x - largest) / t) of a tile, and the largest logit."""
    largest = tl.max(entries, axis=0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    return tl.exp((entries - shift) * inverse), largest


@triton.jit
def halves(numbers):
    """Two float16 numbers whose sum is each of `numbers` (0..2^15, float32) to 22 bits, or to 2^-25."""
    high = numbers.to(tl.float16)
    return high, (numbers - high.to(tl.float32)).to(tl.float16)


@triton.jit
def added_weights(slot, weights, parts):
    """[32, 32]: sums over tokens of `weights` at [slot // 16, slot % 16], of weights * parts 16 columns further."""
    index = tl.arange(0, 32)
    column = index[None, :]
    numbers = tl.where(column < 16, weights[:, None], (weights * parts)[:, None])
    numbers = tl.where((slot % 16)[:, None] == column % 16, numbers, 0.0)
    rows = index[:, None] == (slot // 16)[None, :]
    if numbers.dtype == tl.float64:
        sums = tl.dot(rows.to(tl.float64), numbers, out_dtype=tl.float64)
    else:
        high, low = halves(numbers * UNIT)
        sums = (tl.dot(rows.to(tl.float16), high) + tl.dot(rows.to(tl.float16), low)) / UNIT
    return sums


@kernel
def row_histograms(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    chunk_max,  # [B K, 2, L+1, C]
    chunk_sum,  # [B K, 2, L+1, C]
    histograms,  # [B K, L, S, 2, SLOTS]
    windows,  # [B K, L, S, 2] int32
    length,  # L
    vocab,  # V
    chunks,  # C
    BLOCK: tl.constexpr,  # entries of a row per chunk
    SPAN: tl.constexpr,  # chunks per histogram
    TILE: tl.constexpr,  # entries at a time
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Chunk sums of the rows of every node, and its histograms: one read of every row. Grid (S, L+1, W).

    Only the path that a node names reads its rows; behind a draft's last token there is the target's row only. A window
    is its centre and the number of tiles that are one class, negative if that is the class of the highest ratio.
    """
    span, depth, walk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    last = tl.load(lengths + walk)
    if depth > last:
        return
    node = node_at(nodes, walk, depth, length)
    if node != walk:
        return
    inverse = inverse_temperature(temperatures, walk, REAL)
    slot = (node * 2 * (length + 1) + depth) * chunks
    drawn_slot = slot + (length + 1) * chunks
    nothing = tl.full([], 0.0, REAL)
    without = tl.full([], float("-inf"), REAL)
    if depth == last:
        for step in range(SPAN):
            chunk = span * SPAN + step
            largest, total = without, nothing
            for tile in range(BLOCK // TILE):
                offsets = chunk * BLOCK + tile * TILE + tl.arange(0, TILE)
                ahead = read_row(target, node * (length + 1) + depth, offsets, vocab, IS_LAW, REAL)
                weights, most = tile_weights(ahead, inverse)
                largest, total = merged_sums(largest, total, most, tl.sum(weights, axis=0), inverse)
            tl.store(chunk_max + slot + chunk, largest, mask=chunk < chunks)
            tl.store(chunk_sum + slot + chunk, total, mask=chunk < chunks)
        return

    index = tl.arange(0, 32)
    cell = index[:, None] * 16 + index[None, :] % 16
    mass = index[None, :] < 16
    table = tl.zeros([32, 32], REAL)
    target_max, target_sum, draft_max, draft_sum = without, nothing, without, nothing
    centre, before, begun = 0, 0, 0
    for step in range(SPAN):
        chunk = span * SPAN + step
        chunk_target, chunk_target_sum, chunk_draft, chunk_draft_sum = without, nothing, without, nothing
        for tile in range(BLOCK // TILE):
            offsets = chunk * BLOCK + tile * TILE + tl.arange(0, TILE)
            ahead = read_row(target, node * (length + 1) + depth, offsets, vocab, IS_LAW, REAL)
            drawn = read_row(draft, node * length + depth, offsets, vocab, IS_LAW, REAL)
            weights, most = tile_weights(ahead, inverse)
            added = tl.sum(weights, axis=0)
            chunk_target, chunk_target_sum = merged_sums(chunk_target, chunk_target_sum, most, added, inverse)
            target_max, target_sum = merged_sums(target_max, target_sum, most, added, inverse)

            weights, most = tile_weights(drawn, inverse)
            added = tl.sum(weights, axis=0)
            chunk_draft, chunk_draft_sum = merged_sums(chunk_draft, chunk_draft_sum, most, added, inverse)
            new_max, new_sum = merged_sums(draft_max, draft_sum, most, added, inverse)
            shift = tl.where(new_max == float("-inf"), 0.0, new_max)
            kept = tl.exp((draft_max - shift) * inverse)
            if not IS_LAW:
                there = (target_sum > 0) & (new_sum > 0)
                octave = log_ratio_of(target_max, new_max, inverse)
                octave += tl.log2(tl.where(there, target_sum, 1.0)) - tl.log2(tl.where(there, new_sum, 1.0))
                now = tl.where(there, tl.floor(octave + 0.5), 0.0).to(tl.int32)
                moved = there & ((begun == 0) | (tl.abs(now - centre) > CARRY))
                rising = (begun == 0) | (now > centre)
                whole = mass & (cell == tl.where(rising, 0, SLOTS - 1))
                table = tl.where(moved, tl.where(whole, draft_sum, 0.0), table)
                tiles = chunk * (BLOCK // TILE) + tile
                before = tl.where(moved, tl.where(rising, tiles, -tiles), before)
                centre = tl.where(moved, now, centre)
                begun = tl.where(there, 1, begun)
            bins, parts, _ = slot_of(log_ratio_of(ahead, drawn, inverse), centre, REAL)
            weights *= tl.exp((most - shift) * inverse)
            table = table * kept + added_weights(bins, weights, parts)
            draft_max, draft_sum = new_max, new_sum
        tl.store(chunk_max + slot + chunk, chunk_target, mask=chunk < chunks)
        tl.store(chunk_sum + slot + chunk, chunk_target_sum, mask=chunk < chunks)
        tl.store(chunk_max + drawn_slot + chunk, chunk_draft, mask=chunk < chunks)
        tl.store(chunk_sum + drawn_slot + chunk, chunk_draft_sum, mask=chunk < chunks)
    place = (node * length + depth) * tl.num_programs(0) + span
    tl.store(histograms + place * 2 * SLOTS + tl.where(mass, 0, SLOTS) + cell, table)
    tl.store(windows + 2 * place, centre)
    tl.store(windows + 2 * place + 1, before)


@triton.jit
def window_at(windows, node, depth, length, span, SPANS: tl.constexpr):
    """Centre, and tiles that are one class, of the windows of the node's `span`s."""
    place = windows + ((node * length + depth) * SPANS + span) * 2
    return tl.load(place), tl.load(place + 1)


@triton.jit
def knot_of(log_ratio, tile, centre, before, octave, REAL: tl.constexpr):
    """Knot at or below each token's ratio, int32 0..LAST, and how far in [0, 1] towards the next its ratio lies.

    Args:
        log_ratio: `log_ratio_of` its logits; tile: its index // TILE; centre, before: `window_at` of its span.
        octave: of the knots, from `knots_at`.
    """
    slot, part, ratio = slot_of(log_ratio, centre, REAL)
    early = tile < tl.abs(before)
    end = tl.where(before > 0, 0, SLOTS - 1)
    slot = tl.where(early, end, slot)
    part = tl.where(early, 0.0, part)
    ratio = tl.where(early, window_knot(end).to(REAL), ratio)
    knot = slot + 16 * (centre - BELOW - octave + REACH)
    low = (slot == 0) | (knot <= 0)
    high = (knot >= LAST) & (slot > 0)
    lowest = tl.exp2(tl.minimum(centre - octave + REACH, BELOW).to(REAL))
    beneath = tl.where((slot == 0) & (centre - BELOW > octave - REACH), 0.0, ratio * lowest)
    return tl.where(low, 0, tl.where(high, LAST, knot)), tl.where(low, beneath, tl.where(high, 0.0, part))


@triton.jit
def merged_span(histogram, centre, octave, scale):
    """Masses of one span on the node's knots [SLOTS]: that of the tokens from each knot on, and its part for the next.

    Every number of the histogram is read once.
    """
    index = tl.arange(0, SLOTS)
    moved = 16 * (centre - BELOW - octave + REACH)
    slot = index - moved
    inside = (slot >= 1) & (slot < SLOTS) & (index >= 1) & (index < LAST)
    lower = tl.load(histogram + slot, mask=inside, other=0.0).to(tl.float64)
    upper = tl.load(histogram + SLOTS + slot, mask=inside, other=0.0).to(tl.float64)

    low = (index == 0) | (index + moved <= 0)
    outside = low | (index + moved >= LAST)
    mass = tl.load(histogram + index, mask=outside, other=0.0).to(tl.float64)
    part = tl.load(histogram + SLOTS + index, mask=outside, other=0.0).to(tl.float64)
    knot, after = window_knot(index).to(tl.float64), window_knot(index + 1).to(tl.float64)
    lowest = tl.exp2(tl.minimum(centre - octave + REACH, BELOW).to(tl.float64))
    beneath = low & ((index > 0) | (centre - BELOW <= octave - REACH))
    ratio_mass = tl.sum(tl.where(beneath, knot * mass + (after - knot) * part, 0.0), axis=0) * lowest
    lower += tl.where(index == 0, tl.sum(tl.where(low, mass, 0.0), axis=0), 0.0)
    lower += tl.where(index == LAST, tl.sum(tl.where(outside & ~low, mass, 0.0), axis=0), 0.0)
    upper += tl.where(index == 0, ratio_mass, 0.0)
    return lower * scale, upper * scale


@triton.jit
def octave_between(shift, log_sum, inverse):
    """The octave of e that is nearest to target/draft = 1, int32, and e there.

    Args: shift, log_sum: m and log s of the target's row less those of the draft's, float64.
    """
    gap = (shift * inverse + log_sum) * LOG2E
    gap = tl.where(gap == gap, tl.minimum(tl.maximum(gap, -MOST), MOST), 0.0)
    return tl.floor(gap + 0.5).to(tl.int32), gap


@triton.jit
def masses_at(
    histograms, windows, chunk_max, chunk_sum, temperatures, walk, node, depth, length, chunks,
    CHUNKS: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """As `knots_at`, but `lower`, `upper` for `mass`: the tokens from each knot on, and what of it goes to the next."""
    model = tl.arange(0, 2)
    slots = (node * 2 + model) * (length + 1) + depth
    shift, log_sum = norms_of(chunk_max, chunk_sum, temperatures, walk, slots, slots >= 0, chunks, CHUNKS, REAL)
    inverse = inverse_temperature(temperatures, walk, REAL).to(tl.float64)
    sign = 1.0 - 2.0 * model
    octave, gap = octave_between(tl.sum(sign * shift, axis=0), tl.sum(sign * log_sum, axis=0), inverse)

    index = tl.arange(0, SLOTS)
    step = tl.maximum(index - 1, 0)
    ratio = tl.exp2(octave - gap + (step // 16 - REACH)) * (1.0 + (step % 16) / 16.0)

    lower = tl.full([SLOTS], 0.0, tl.float64)
    upper = lower
    draft_shift = tl.sum(tl.where(model == 1, shift, 0.0), axis=0)
    chunk = tl.arange(0, CHUNKS)
    largest = chunk_max + ((node * 2 + 1) * (length + 1) + depth) * chunks
    for span in tl.static_range(SPANS):
        mine = (chunk >= span * SPAN) & (chunk < (span + 1) * SPAN) & (chunk < chunks)
        most = tl.max(tl.load(largest + chunk, mask=mine, other=float("-inf")), axis=0).to(tl.float64)
        centre, _ = window_at(windows, node, depth, length, span, SPANS)
        histogram = histograms + ((node * length + depth) * SPANS + span) * 2 * SLOTS
        here, further = merged_span(histogram, centre, octave, tl.exp((most - draft_shift) * inverse))
        lower += here
        upper += further
    total = tl.sum(lower, axis=0)
    total = tl.where(total > 0, total, 1.0)
    return tl.where(index > 0, ratio, 0.0), lower / total, upper / total, octave, shift, log_sum


@triton.jit
def knots_at(
    histograms, windows, chunk_max, chunk_sum, temperatures, walk, node, depth, length, chunks,
    CHUNKS: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """A node's rows at its knots, all in float64 but `octave`.

    Args:
        CHUNKS: C, rounded up to a power of 2; SPANS: S; SPAN: chunks of each.
    Returns:
        ratio [SLOTS]: target/draft, ascending; mass [SLOTS]: draft mass, sums to 1, 0 from KNOTS on; octave int32:
        of target/draft = 1 in e, for `knot_of`; shift [2], log_sum [2]: m and log s of the target's and of the draft's
        row, as `norms_of`. A row without a law gives NaN.
    """
    ratio, lower, upper, octave, shift, log_sum = masses_at(
        histograms, windows, chunk_max, chunk_sum, temperatures, walk, node, depth, length, chunks,
        CHUNKS, SPANS, SPAN, REAL,
    )  # fmt: skip
    index = tl.arange(0, SLOTS)
    mass = lower - upper + tl.where(index > 0, tl.gather(upper, tl.maximum(index - 1, 0), 0), 0.0)
    return ratio, mass, octave, shift, log_sum


def histogram_rows(
    target: Tensor, draft: Tensor, temperatures: Tensor, lengths: Tensor, out: "Workspace", laws: bool
) -> None:
    """Fill `chunk_max`, `chunk_sum`, `histograms` and `windows` of the rows that `out.path_nodes` names; W = B K walks.

    Args:
        temperatures, lengths [B K]: of each path.
    """
    walks, (_, _, length, vocab) = len(lengths), out.shape
    row_histograms[(out.spans, length + 1, walks)](
        target, draft, temperatures, lengths, out.path_nodes, out.chunk_max, out.chunk_sum, out.histograms,
        out.windows, length, vocab, out.chunks,
        BLOCK=out.block, SPAN=out.span, TILE=out.tile, IS_LAW=laws, num_warps=4, **out.constants,
    )  # fmt: skip


def knot_sizes(out: "Workspace") -> dict[str, Any]:
    """Compile-time arguments of a kernel that calls `knots_at`."""
    return {"CHUNKS": triton.next_power_of_2(out.chunks), "SPANS": out.spans, "SPAN": out.span}
