# mypy: disable-error-code="no-untyped-def"
"""Rows of logits in chunks: how they are read, which path holds them, their normalisers.

A row of V logits is cut into C chunks of BLOCK; one program handles one chunk of one row. Law of a row at temperature
t, with m its largest logit and s the sum of exp((x - m) / t): exp((x - m) / t - log s). Chunk sums are added in
float64.

A *walk* goes down one path of a request's tree: there is one per path (block, token, key-race), or one per request
that chooses its path on the way (two-level, gbv-bucketed). nodes[w, i] is the path that holds the rows of the node at
depth i of walk w, paths counted over all requests; walks that share a node name the same path, and what is computed
from the node's rows alone is stored under it. SHARED: walk w is path w, and only the path a node names reads its rows.

Letters: B requests, K paths, W walks, L drafted tokens, V vocabulary, C chunks; REAL the dtype of the arithmetic on
rows.
"""

from functools import partial

import triton
import triton.language as tl

# What is launched: compiled once for all values of these, which differ from call to call and between captures.
kernel = partial(triton.jit, do_not_specialize=("start", "depth", "requests", "paths", "length"))


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
