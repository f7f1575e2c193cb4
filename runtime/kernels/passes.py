# mypy: disable-error-code="no-untyped-def"
"""What ends every fused verification: residual masses where they can matter, then the verdict.

Logits are read once for the normalisers of every row (`rows`, or `histograms` where a path is to be selected); again in
`surplus_masses`, only the rows that can still decide: a residual max(0, c target - draft) needs m, s and c, which are
known only when the whole rows before it have been read; and one chunk of one row per request in `emit_verdict`, for the
token. The order of the launches makes every other dependency; nothing waits, allocates or returns to the host.

Letters as in `rows`; c acceptance ratio of the kept prefix. Tokens are drawn in float64.
Source: [BV] arXiv:2403.10444, Algorithm 2; arXiv:2211.17192, Algorithm 1.
"""

import triton
import triton.language as tl

from .histograms import SLOTS, knot_of, log_ratio_of, octave_between, window_at
from .rows import inverse_temperature, kernel, log_law, node_at, read_row


@triton.jit
def selected_density(
    ahead, drawn, inverse, norms, selection, windows, walk, node, depth, chunk, offsets, length,
    SELECTED: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Selected path's law over the draft's, from its values at the node's knots.

    SELECTED: 1 linear between knots, 2 constant from each to the next.
    """
    slot = node * 2 * (length + 1) + depth
    shift = tl.load(norms + 2 * slot) - tl.load(norms + 2 * (slot + length + 1))
    log_sum = tl.load(norms + 2 * slot + 1) - tl.load(norms + 2 * (slot + length + 1) + 1)
    octave, _ = octave_between(shift, log_sum, inverse.to(tl.float64))
    centre, before = window_at(windows, node, depth, length, chunk // SPAN, SPANS)
    knot, part = knot_of(log_ratio_of(ahead, drawn, inverse), offsets // TILE, centre, before, octave, REAL)
    place = selection + (walk * length + depth).to(tl.int64) * SLOTS
    density = tl.load(place + knot).to(REAL)
    if SELECTED == 1:
        density += part * (tl.load(place + knot + 1).to(REAL) - density)
    return density


@triton.jit
def surplus(
    target, draft, temperatures, nodes, norms, ratios, selection, windows, walk, depth, chunk, length, vocab,
    BLOCK: tl.constexpr, SELECTED: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, TILE: tl.constexpr,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """max(0, c target - draft) over a chunk of the walk's node at `depth`; the selected path's law for the draft's.

    SELECTED: 0 there is one path; else see `selected_density`.
    """
    offsets = chunk * BLOCK + tl.arange(0, BLOCK)
    inverse = inverse_temperature(temperatures, walk, REAL)
    node = node_at(nodes, walk, depth, length)
    slot = node * 2 * (length + 1) + depth
    ahead = read_row(target, node * (length + 1) + depth, offsets, vocab, IS_LAW, REAL)
    drawn = read_row(draft, node * length + depth, offsets, vocab, IS_LAW, REAL)
    target_law = tl.exp(log_law(ahead, inverse, norms, slot, REAL))
    draft_law = tl.exp(log_law(drawn, inverse, norms, slot + length + 1, REAL))
    if SELECTED:
        draft_law *= selected_density(
            ahead, drawn, inverse, norms, selection, windows, walk, node, depth, chunk, offsets, length,
            SELECTED, SPANS, SPAN, TILE, REAL,
        )  # fmt: skip
    return tl.maximum(tl.load(ratios + walk * (length + 1) + depth).to(REAL) * target_law - draft_law, 0.0)


@kernel
def surplus_masses(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    nodes,  # [W, L+1] int32
    norms,  # [B K, 2, L+1, 2] float64
    ratios,  # [W, L+1] float64
    selection,  # [B, L, SLOTS]
    windows,  # [B K, L, S, 2] int32
    first,  # [W] int32
    stop,  # [W] int32
    masses,  # [W, L+1, C]
    paths,  # K
    length,  # L
    vocab,  # V
    chunks,  # C
    BLOCK: tl.constexpr,  # entries of a row per program
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    SELECTED: tl.constexpr,  # how the path was selected, see `surplus`
    SPANS: tl.constexpr,  # S
    SPAN: tl.constexpr,  # chunks per histogram
    TILE: tl.constexpr,  # entries at a time where the histogram was made
    SHARED: tl.constexpr,  # walks share nodes
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Residual mass of each chunk where it can matter: the second read of those rows.

    That is at the depths first <= i < stop of a walk. Grid (C, N, W), N the largest number of such depths; if nodes are
    shared N = L, and a node's mass is computed once for all walks through it, whose ratio there is the same. The last
    walks come first: their rows are the ones that the L2 cache may still hold.
    """
    chunk, walk = tl.program_id(0), tl.num_programs(2) - 1 - tl.program_id(2)
    if SHARED:
        depth = tl.program_id(1)
        path = tl.arange(0, PATHS)
        others = walk // paths * paths + path
        there = path < paths
        through = tl.load(nodes + others * (length + 1) + depth, mask=there, other=-1) == walk
        begin = tl.load(first + others, mask=there, other=0)
        end = tl.load(stop + others, mask=there, other=0)
        if tl.sum((through & (begin <= depth) & (depth < end)).to(tl.int32), axis=0) == 0:
            return
    else:
        depth = tl.load(first + walk) + tl.program_id(1)
        if depth >= tl.load(stop + walk):
            return
    weights = surplus(
        target, draft, temperatures, nodes, norms, ratios, selection, windows, walk, depth, chunk, length, vocab,
        BLOCK, SELECTED, SPANS, SPAN, TILE, IS_LAW, REAL,
    )  # fmt: skip
    node = node_at(nodes, walk, depth, length)
    tl.store(masses + (node * (length + 1) + depth) * chunks + chunk, tl.sum(weights, axis=0))


@triton.jit
def open_depths(lengths, coins, ratio, first, stop, walk, depth, length):
    """Store first <= i < stop, the depths whose residual mass can matter, from the ratios c_i at `depth` = 0, 1, ..

    A prefix with c_i = 1 is kept whatever its coin (h_i = s_i / s_i), so no shorter one can be the last that is kept.
    One whose coin is at or above c_i is not kept by it (s_i <= c_i, so h_i <= c_i), so none behind the last other one
    is the last. If the coin of the whole draft comes up it is kept, and no residual matters.
    """
    last = tl.load(lengths + walk)
    inside = (depth > 0) & (depth <= last)
    coin = tl.load(coins + walk * length + depth - 1, mask=inside, other=1.0).to(tl.float64)
    whole = tl.max(((depth == last) & (coin < ratio)).to(tl.int32), axis=0) > 0
    sure = tl.max(tl.where((depth < last) & (ratio == 1), depth, 0), axis=0)
    likely = tl.max(tl.where((depth < last) & (coin < ratio), depth, 0), axis=0)
    tl.store(first + walk, tl.where(whole, last, sure))
    tl.store(stop + walk, tl.where(whole, last, tl.minimum(tl.maximum(sure, likely) + 1, last)))


@triton.jit
def last_accepted(
    coins, nodes, ratios, masses, walk, first, stop, last, length, chunks, DEPTHS: tl.constexpr, CHUNKS: tl.constexpr
):
    """The largest i in first..last whose coin is below h_i: h_last = c_last, h_i = s_i / (s_i + 1 - c_i), 0/0 = 1.

    From `stop` to last - 1 no coin is: s_i is not known there, and 0 stands in.
    """
    depth = tl.arange(0, DEPTHS)
    chunk = tl.arange(0, CHUNKS)
    inner = (depth >= first) & (depth < stop)
    node = tl.load(nodes + walk * (length + 1) + depth, mask=inner, other=0).to(tl.int64)
    places = masses + (node * (length + 1) + depth)[:, None] * chunks + chunk[None, :]
    parts = tl.load(places, mask=inner[:, None] & (chunk[None, :] < chunks), other=0.0).to(tl.float64)
    left = tl.sum(parts, axis=1)
    reached = (depth >= first) & (depth <= last)
    ratio = tl.load(ratios + walk * (length + 1) + depth, mask=reached, other=0.0)
    total = left + (1.0 - ratio)
    threshold = tl.where(depth == last, ratio, tl.where(total > 0, left / tl.where(total > 0, total, 1.0), 1.0))
    coin = tl.load(coins + walk * length + depth - 1, mask=reached & (depth > 0), other=1.0)
    return tl.maximum(tl.max(tl.where(reached & (coin < threshold), depth, 0), axis=0), first)


@triton.jit
def first_above(weights, goal, SIZE: tl.constexpr):
    """Smallest index whose running sum of `weights` exceeds `goal`; the last with any weight if rounding left none."""
    index = tl.arange(0, SIZE)
    above = (tl.cumsum(weights, axis=0) > goal) & (weights > 0)
    found = tl.min(tl.where(above, index, SIZE), axis=0)
    return tl.where(found < SIZE, found, tl.max(tl.where(weights > 0, index, 0), axis=0))


@kernel
def emit_verdict(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    chunk_max,  # [B K, 2, L+1, C]
    chunk_sum,  # [B K, 2, L+1, C]
    norms,  # [B K, 2, L+1, 2] float64
    ratios,  # [W, L+1] float64
    selection,  # [B, L, SLOTS]
    windows,  # [B K, L, S, 2] int32
    first,  # [W] int32
    stop,  # [W] int32
    valid,  # [W] int32
    masses,  # [W, L+1, C]
    coins,  # [W, L] uniforms
    choice,  # [W] uniforms
    path,  # [W] int64
    accepted,  # [W] int64
    token,  # [W] int64
    paths,  # K
    length,  # L
    vocab,  # V
    chunks,  # C
    DECIDED: tl.constexpr,  # `first` is the accepted length
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    BLOCK: tl.constexpr,  # entries of a row per program
    SELECTED: tl.constexpr,  # how the path was selected, see `surplus`
    SPANS: tl.constexpr,  # S
    SPAN: tl.constexpr,  # chunks per histogram
    TILE: tl.constexpr,  # entries at a time where the histogram was made
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Accepted length and the token after it, by inversion: first the chunk, then the token inside it. Grid (W,).

    DECIDED: `first` is the accepted length. SELECTED: `path` is known. An invalid walk gets accepted 0 and token -1.
    """
    walk = tl.program_id(0)
    if tl.load(valid + walk) == 0:
        tl.store(path + walk, 0)
        tl.store(accepted + walk, 0)
        tl.store(token + walk, -1)
        return
    last = tl.load(lengths + walk)
    kept = tl.load(first + walk)
    if not DECIDED:
        known = tl.load(stop + walk)
        kept = last_accepted(coins, nodes, ratios, masses, walk, kept, known, last, length, chunks, DEPTHS, CHUNKS)

    chunk = tl.arange(0, CHUNKS)
    inverse = inverse_temperature(temperatures, walk, REAL)
    node = node_at(nodes, walk, kept, length)
    slot = node * 2 * (length + 1) + kept
    residual = (kept < last) & (chunk < chunks)
    weights = tl.load(masses + (node * (length + 1) + kept) * chunks + chunk, mask=residual, other=0.0)
    corrected = tl.sum(weights, axis=0) > 0
    if not corrected:
        largest = tl.load(chunk_max + slot * chunks + chunk, mask=chunk < chunks, other=float("-inf"))
        sums = tl.load(chunk_sum + slot * chunks + chunk, mask=chunk < chunks, other=0.0)
        weights = tl.where(sums == 0, 0.0, sums * tl.exp(log_law(largest, inverse, norms, slot, REAL)))
    weights = weights.to(tl.float64)
    goal = tl.load(choice + walk).to(tl.float64) * tl.sum(weights, axis=0)
    chosen = first_above(weights, goal, CHUNKS)
    goal -= tl.sum(tl.where(chunk < chosen, weights, 0.0), axis=0)

    if corrected:
        inside = surplus(
            target, draft, temperatures, nodes, norms, ratios, selection, windows, walk, kept, chosen, length, vocab,
            BLOCK, SELECTED, SPANS, SPAN, TILE, IS_LAW, REAL,
        )  # fmt: skip
    else:
        offsets = chosen * BLOCK + tl.arange(0, BLOCK)
        entries = read_row(target, node * (length + 1) + kept, offsets, vocab, IS_LAW, REAL)
        inside = tl.exp(log_law(entries, inverse, norms, slot, REAL))
    if not SELECTED:
        tl.store(path + walk, 0)
    tl.store(accepted + walk, kept.to(tl.int64))
    tl.store(token + walk, (chosen * BLOCK + first_above(inside.to(tl.float64), goal, BLOCK)).to(tl.int64))
