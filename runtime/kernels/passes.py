# mypy: disable-error-code="no-untyped-def"
"""Passes over logits that the fused verifiers share: normalisers, residual masses, the verdict.

A row of V logits is cut into C chunks of BLOCK; one program handles one chunk of one row. Law of a row at temperature
t, with m its largest logit and s the sum of exp((x - m) / t): exp((x - m) / t - log s). Logits are read

    once   in `row_masses`, for m and s of every row;
    twice  in `surplus_masses`, only the rows that can still decide: a residual max(0, c target - draft) needs m, s
           and c, which are known only when the whole rows before it have been read;
    and one chunk of one row per request in `emit_verdict`, for the token.

The order of the launches makes every other dependency; nothing waits, allocates or returns to the host.

A *walk* goes down one path of a request's tree: there is one per path (block, token, key-race), or one per request
that chooses its path on the way (two-level, gbv-bucketed). nodes[w, i] is the path that holds the rows of the node at
depth i of walk w, paths counted over all requests; walks that share a node name the same path, and what is computed
from the node's rows alone is stored under it. SHARED: walk w is path w, and only the path a node names reads its rows.

Letters: B requests, K paths, W walks, L drafted tokens, V vocabulary, C chunks; c acceptance ratio of the kept prefix;
REAL the dtype of the arithmetic on rows. Chunk sums are added, and tokens drawn, in float64.
Source: [BV] arXiv:2403.10444, Algorithm 2; arXiv:2211.17192, Algorithm 1.
"""

import math
from functools import partial

import triton
import triton.language as tl

from ..verifiers.gbv import BUCKET_WIDTH, BUCKETS

# What is launched: compiled once for all values of these, which differ from call to call and between captures.
kernel = partial(triton.jit, do_not_specialize=("start", "depth", "step", "requests", "paths", "length"))

MIDDLE = tl.constexpr(BUCKETS // 2)
PER_STEP = tl.constexpr(1 / (BUCKET_WIDTH * math.log(2)))  # steps of a bucket's width per unit of a log ratio
WIDTH = tl.constexpr(64)  # numbers per node that say how the path was selected: 4 for levels, or one per bucket


@triton.jit
def read_row(rows, row, offsets, vocab, IS_LAW: tl.constexpr, REAL: tl.constexpr):
    """Logits of row `row` at `offsets`, -inf beyond the vocabulary; logarithms if the rows hold probabilities."""
    if IS_LAW:
        entries = tl.log(tl.load(rows + row * vocab + offsets, mask=offsets < vocab, other=0.0).to(REAL))
    else:
        entries = tl.load(rows + row * vocab + offsets, mask=offsets < vocab, other=float("-inf")).to(REAL)
    return entries


@triton.jit
def inverse_temperature(temperatures, walk, REAL: tl.constexpr):
    """1/t; at t = 0 so large that only the largest logits keep mass."""
    return 1.0 / tl.maximum(tl.load(temperatures + walk).to(REAL), 1e-30)


@triton.jit
def node_at(nodes, walk, depth, length):
    """Path that holds the rows of the walk's node at `depth`: row node (L+1) + depth, the draft's node L + depth."""
    return tl.load(nodes + walk * (length + 1) + depth).to(tl.int64)


@triton.jit
def log_law(entries, inverse, norms, slot, REAL: tl.constexpr):
    """(x - m) / t - log s of logits, with m and log s of the row at `norms[slot]`."""
    largest = tl.load(norms + 2 * slot).to(REAL)
    return (entries - largest) * inverse - tl.load(norms + 2 * slot + 1).to(REAL)


@kernel
def row_masses(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    valid,  # [W] int32
    chunk_max,  # [B K, 2, L+1, C]
    chunk_sum,  # [B K, 2, L+1, C]
    start,  # first depth
    length,  # L
    vocab,  # V
    chunks,  # C
    BLOCK: tl.constexpr,  # entries of a row per program
    SHARED: tl.constexpr,  # walks share nodes
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Largest logit of each chunk, and the sum of exp((x - largest) / t): the first read of every row.

    Grid (C, 2 N, W): N depths from `start`, for the target's rows and then for the draft's.
    """
    chunk, place, walk = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    depths = tl.num_programs(1) // 2
    model = place // depths
    depth = start + place % depths
    if (chunk == 0) & (place == 0) & (start == 0):
        tl.store(valid + walk, 1)
    if depth + model > tl.load(lengths + walk):
        return
    node = node_at(nodes, walk, depth, length)
    if SHARED:  # noqa: SIM102 (known when compiling; the next one is not)
        if node != walk:
            return
    offsets = chunk * BLOCK + tl.arange(0, BLOCK)
    if model == 0:
        entries = read_row(target, node * (length + 1) + depth, offsets, vocab, IS_LAW, REAL)
    else:
        entries = read_row(draft, node * length + depth, offsets, vocab, IS_LAW, REAL)
    largest = tl.max(entries, axis=0)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    scaled = (entries - shift) * inverse_temperature(temperatures, walk, REAL)
    slot = ((node * 2 + model) * (length + 1) + depth) * chunks + chunk
    tl.store(chunk_max + slot, largest)
    tl.store(chunk_sum + slot, tl.sum(tl.exp(scaled), axis=0))


@triton.jit
def norms_of(
    chunk_max, chunk_sum, temperatures, walk, slots, mask, chunks,
    CHUNKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """m and log s, float64, of the rows at `slots` (a vector) from their chunks."""
    chunk = tl.arange(0, CHUNKS)[None, :]
    places = slots[:, None] * chunks + chunk
    there = mask[:, None] & (chunk < chunks)
    largest = tl.load(chunk_max + places, mask=there, other=float("-inf"))
    sums = tl.load(chunk_sum + places, mask=there, other=0.0)
    shift = tl.max(largest, axis=1)
    inverse = inverse_temperature(temperatures, walk, REAL).to(tl.float64)
    log_sum = tl.log(tl.sum(tl.where(sums == 0, 0.0, sums * tl.exp((largest - shift[:, None]) * inverse)), axis=1))
    return shift.to(tl.float64), log_sum


@triton.jit
def store_norms(norms, slots, shift, log_sum, mask, valid, walk):
    """m and log s at `slots`; a row without a law (NaN, no finite logit) makes the walk invalid."""
    tl.store(norms + 2 * slots, shift, mask=mask)
    tl.store(norms + 2 * slots + 1, log_sum, mask=mask)
    lawless = mask & ((log_sum - log_sum != 0) | (shift - shift != 0))
    if tl.max(lawless.to(tl.int32), axis=0) > 0:
        tl.store(valid + walk, 0)


@kernel
def row_norms(
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    chunk_max,  # [B K, 2, L+1, C]
    chunk_sum,  # [B K, 2, L+1, C]
    norms,  # [B K, 2, L+1, 2] float64
    valid,  # [W] int32
    start,  # first depth
    length,  # L
    chunks,  # C
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """m and log s of each row from its chunks, where no rule needs them at once. Grid (2 N, W) as for `row_masses`."""
    place, walk = tl.program_id(0), tl.program_id(1)
    depths = tl.num_programs(0) // 2
    model = place // depths
    depth = start + place % depths
    if depth + model > tl.load(lengths + walk):
        return
    node = node_at(nodes, walk, depth, length)
    slots = (node * 2 + model) * (length + 1) + depth + tl.arange(0, 1)
    mask = slots >= 0
    shift, log_sum = norms_of(chunk_max, chunk_sum, temperatures, walk, slots, mask, chunks, CHUNKS, REAL)
    store_norms(norms, slots, shift, log_sum, mask, valid, walk)


@triton.jit
def selected_law(target, draft, ratio, selection, TINY: tl.constexpr, REAL: tl.constexpr):
    """Law of the selected path, draft (level k1' + (1 - level) k2'), level = clip((c target/draft - k2) / (k1 - k2)).

    `selection` points to k1, k2 (which set the levels) and k1', k2' (the densities at level 1 and 0).
    """
    low = tl.load(selection + 1).to(REAL)
    span = tl.maximum(tl.load(selection).to(REAL) - low, TINY)
    level = tl.minimum(tl.maximum((ratio * (target / tl.maximum(draft, TINY)) - low) / span, 0.0), 1.0)
    base = tl.load(selection + 3).to(REAL)
    return draft * (level * (tl.load(selection + 2).to(REAL) - base) + base)


@triton.jit
def bucket_of(log_target, log_draft):
    """Bucket 0..2 MIDDLE of target/draft: log2 in steps of the width, rounded, MIDDLE at equality."""
    steps = tl.floor((log_target - log_draft) * PER_STEP + 0.5)
    steps = tl.where(steps == steps, tl.minimum(tl.maximum(steps, -MIDDLE), MIDDLE), 0.0)
    return steps.to(tl.int32) + MIDDLE


@triton.jit
def bucketed_law(log_target, log_draft, selection, REAL: tl.constexpr):
    """Law of the path selected by bucket: the draft law times the density of the bucket, at `selection`."""
    return tl.exp(log_draft) * tl.load(selection + bucket_of(log_target, log_draft)).to(REAL)


@triton.jit
def surplus(
    target, draft, temperatures, nodes, norms, ratios, selection,
    walk, depth, offsets, length, vocab,
    SELECTED: tl.constexpr, IS_LAW: tl.constexpr, TINY: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """max(0, c target - draft) at `offsets` of the walk's node at `depth`; the selected path's law for the draft's.

    SELECTED: 0 by nothing, 1 by levels, 2 by buckets.
    """
    log_target, log_draft = node_log_laws(
        target, draft, temperatures, nodes, norms, walk, depth, offsets, length, vocab, IS_LAW, REAL
    )
    target_law, draft_law = tl.exp(log_target), tl.exp(log_draft)
    ratio = tl.load(ratios + walk * (length + 1) + depth).to(REAL)
    place = selection + (walk * length + depth) * WIDTH
    if SELECTED == 1:
        draft_law = selected_law(target_law, draft_law, ratio, place, TINY, REAL)
    if SELECTED == 2:
        draft_law = bucketed_law(log_target, log_draft, place, REAL)
    return tl.maximum(ratio * target_law - draft_law, 0.0)


@triton.jit
def node_laws(
    target, draft, temperatures, nodes, norms, walk, depth, offsets, length, vocab,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Target and draft law at `offsets` of the walk's node at `depth`."""
    log_target, log_draft = node_log_laws(
        target, draft, temperatures, nodes, norms, walk, depth, offsets, length, vocab, IS_LAW, REAL
    )
    return tl.exp(log_target), tl.exp(log_draft)


@triton.jit
def node_log_laws(
    target, draft, temperatures, nodes, norms, walk, depth, offsets, length, vocab,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Their logarithms."""
    inverse = inverse_temperature(temperatures, walk, REAL)
    node = node_at(nodes, walk, depth, length)
    slot = node * 2 * (length + 1) + depth
    ahead = read_row(target, node * (length + 1) + depth, offsets, vocab, IS_LAW, REAL)
    drawn = read_row(draft, node * length + depth, offsets, vocab, IS_LAW, REAL)
    return log_law(ahead, inverse, norms, slot, REAL), log_law(drawn, inverse, norms, slot + length + 1, REAL)


@kernel
def surplus_masses(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    nodes,  # [W, L+1] int32
    norms,  # [B K, 2, L+1, 2] float64
    ratios,  # [W, L+1] float64
    selection,  # [B, L, WIDTH] float64
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
    SHARED: tl.constexpr,  # walks share nodes
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    TINY: tl.constexpr,  # smallest normal number
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
        target, draft, temperatures, nodes, norms, ratios, selection,
        walk, depth, chunk * BLOCK + tl.arange(0, BLOCK), length, vocab,
        SELECTED, IS_LAW, TINY, REAL,
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
    selection,  # [B, L, WIDTH] float64
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
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    TINY: tl.constexpr,  # smallest normal number
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Accepted length and the token after it, by inversion: first the chunk, then the token inside it. Grid (W,).

    DECIDED: `first` is the accepted length. An invalid walk gets accepted 0 and token -1.
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

    offsets = chosen * BLOCK + tl.arange(0, BLOCK)
    if corrected:
        inside = surplus(
            target, draft, temperatures, nodes, norms, ratios, selection,
            walk, kept, offsets, length, vocab,
            SELECTED, IS_LAW, TINY, REAL,
        )  # fmt: skip
    else:
        entries = read_row(target, node * (length + 1) + kept, offsets, vocab, IS_LAW, REAL)
        inside = tl.exp(log_law(entries, inverse, norms, slot, REAL))
    tl.store(path + walk, node_at(nodes, walk, last, length) - walk * paths)
    tl.store(accepted + walk, kept.to(tl.int64))
    tl.store(token + walk, (chosen * BLOCK + first_above(inside.to(tl.float64), goal, BLOCK)).to(tl.int64))
