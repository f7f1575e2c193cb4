# mypy: disable-error-code="no-untyped-def"
"""gbv-bucketed verification of K paths, from logits: down the first path of the highest bucket, then its block.

The walk is one program per request and sees histograms: a bucket of target/draft is an octave of knots. The rule has no
randomness of its own.

Letters: B requests, K paths, L drafted tokens, V vocabulary, C chunks, S spans; bucket, count and density as in
`specbound.runtime.verifiers.gbv`, whose rule this is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Batch, Verdict
from .buffers import Workspace, law_arguments, uniforms_for
from .histograms import KNOTS, SLOTS, masses_at
from .rows import kernel, node_at
from .walk import end_walk, keep_norms, next_ratio, offered_tokens, shifted, verify_by_walk


@triton.jit
def bucket_of(knot):
    """Bucket of the ratios from a knot up to the next: an octave, with ratio 1 in its middle one."""
    return (knot + 8) // 16


@triton.jit
def bucket_densities(counts, below, upto, PATHS: tl.constexpr):
    """Selected law over draft law: sum_n count_n sum_{i+j=n-1} below^i upto^j, float64; see `selection_densities`."""
    path = tl.arange(0, PATHS)
    lowest = upto * 0.0
    higher = lowest
    for i in range(PATHS):
        lowest = lowest * below + tl.sum(tl.where(path == PATHS - 1 - i, counts, 0.0), axis=0)
        higher = higher * upto + lowest
    return higher


@triton.jit
def count_through(counts, below, reached, drafted, density, PATHS: tl.constexpr):
    """Law of the number of paths through the chosen token, drafted with mass `drafted`: see `counts_after`."""
    path = tl.arange(0, PATHS)
    others = tl.maximum(reached - drafted, 0.0)
    lowest = tl.full([PATHS], 0.0, tl.float64)
    higher = lowest
    for i in range(PATHS):
        term = tl.sum(tl.where(path == PATHS - 1 - i, counts, 0.0), axis=0)
        lowest = lowest * below + tl.where(path == 0, term, 0.0)
        higher = higher * others + shifted(higher, PATHS) * drafted + lowest
    return tl.where(density > 0, higher / tl.where(density > 0, density, 1.0), counts)


@kernel
def walk_by_buckets(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [B] float
    lengths,  # [B] int32
    tokens,  # [B, K, L] int64
    path_nodes,  # [B K, L+1] int32
    chunk_max,  # [B K, 2, L+1, C]
    chunk_sum,  # [B K, 2, L+1, C]
    histograms,  # [B K, L, S, 2, SLOTS]
    windows,  # [B K, L, S, 2] int32
    coins,  # [B, L] uniforms
    norms,  # [B K, 2, L+1, 2] float64
    selection,  # [B, L, SLOTS]
    nodes,  # [W, L+1] int32
    ratios,  # [W, L+1] float64
    first,  # [W] int32
    stop,  # [W] int32
    valid,  # [W] int32
    chosen_path,  # [B] int64
    paths,  # K
    length,  # L
    vocab,  # V
    chunks,  # C
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    SPANS: tl.constexpr,  # S
    SPAN: tl.constexpr,  # chunks per histogram
    BLOCK: tl.constexpr,  # entries of a row per chunk
    TILE: tl.constexpr,  # entries at a time where the histogram was made
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Down the first path of the highest bucket at each node. Grid (B,)."""
    request = tl.program_id(0)
    last = tl.load(lengths + request)
    path, places, index = tl.arange(0, PATHS), tl.arange(0, DEPTHS), tl.arange(0, SLOTS)
    node = node_at(path_nodes, request * paths, 0, length)
    arrived = path < paths
    counts = (path == paths - 1).to(tl.float64)
    ratio = tl.sum(tl.where(path == 0, 1.0, 0.0).to(tl.float64), axis=0)
    walk_nodes = (places * 0).to(tl.int64) + node
    walk_ratios = tl.where(places == 0, ratio, 0.0)
    chosen_index = last * 0
    fine = last * 0 + 1
    depth = last * 0
    while depth < last:
        _, mass, _, octave, shift, log_sum = masses_at(
            histograms, windows, chunk_max, chunk_sum, temperatures, request, node, depth, length, chunks,
            CHUNKS, SPANS, SPAN, REAL,
        )  # fmt: skip
        slots = (node * 2 + tl.arange(0, 2)) * (length + 1) + depth
        fine = fine * keep_norms(norms, slots, shift, log_sum, slots >= 0)
        running = tl.cumsum(mass, axis=0)
        bucket = bucket_of(index)
        upto = tl.gather(running, tl.minimum(16 * bucket + 7, SLOTS - 1), 0)
        below = tl.where(bucket > 0, tl.gather(running, tl.maximum(16 * bucket - 9, 0), 0), 0.0)
        density = bucket_densities(counts, below, upto, PATHS)
        law = selection + (request * length + depth).to(tl.int64) * SLOTS + index
        tl.store(law, density, mask=index < KNOTS)

        token, known, knot, _, target_law, draft_law = offered_tokens(
            target, draft, tokens, windows, temperatures, request, node, depth, paths, length, vocab,
            octave, shift, log_sum, path, SPANS, SPAN, BLOCK, TILE, IS_LAW, REAL,
        )  # fmt: skip
        fine = fine * known
        mine = tl.where(arrived, bucket_of(knot), -1)
        chosen_index = tl.min(tl.where(arrived & (mine == tl.max(mine, axis=0)), path, PATHS - 1), axis=0)
        chosen = path == chosen_index
        drafted = tl.sum(tl.where(chosen, draft_law, 0.0), axis=0)
        wanted = tl.sum(tl.where(chosen, target_law, 0.0), axis=0)
        place = index == tl.sum(tl.where(chosen, knot, 0), axis=0)
        here = tl.sum(tl.where(place, density, 0.0), axis=0)
        lower = tl.sum(tl.where(place, below, 0.0), axis=0)
        reached = tl.sum(tl.where(place, upto, 0.0), axis=0)
        ratio = next_ratio(ratio, wanted, drafted * here)
        counts = count_through(counts, lower, reached, drafted, here, PATHS)
        arrived = arrived & (token == tl.sum(tl.where(chosen, token, 0), axis=0))
        depth += 1
        node = node_at(path_nodes, request * paths + chosen_index, depth, length)
        walk_nodes = tl.where(places == depth, node, walk_nodes)
        walk_ratios = tl.where(places == depth, ratio, walk_ratios)
    end_walk(
        norms, chunk_max, chunk_sum, temperatures, lengths, coins, nodes, ratios, first, stop, valid, chosen_path,
        request, node, walk_nodes, walk_ratios, chosen_index, fine, places, length, chunks, CHUNKS, REAL,
    )  # fmt: skip


def verify_gbv_bucketed_logits(
    target_logits: Tensor,
    draft_logits: Tensor,
    temperatures: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    coin_uniforms: Tensor,
    choice_uniforms: Tensor,
    out: Workspace | None = None,
    laws: bool = False,
) -> Verdict:
    """gbv-bucketed verification of K paths from logits: see `specbound.runtime.verifiers.gbv`.

    Args:
        target_logits [B, K, L+1, V], draft_logits [B, K, L, V], tokens [B, K, L] int64: paths that share a prefix hold
            the same rows there; the row is read from one of them.
        lengths [B] int32: length of all the request's paths, 0..L; None for L.
        coin_uniforms [B, L], choice_uniforms [B]: of the block verification of the selected path.
        temperatures, out, laws: as for `verify_block_logits`.
    Returns:
        the verdict; accepted 0 and token -1 for a request with a row that is no law, or an unknown token, on the walk.

    Raises:
        ValueError: wrong shape, dtype, device or layout.
    """
    return verify_by_walk(
        target_logits, draft_logits, temperatures, tokens, lengths, coin_uniforms, choice_uniforms, out, laws,
        rule=walk_by_buckets,
        selected=2,
        others={},
    )  # fmt: skip


def verify_gbv_bucketed_laws(batch: Batch, generator: torch.Generator | None) -> Verdict:
    """gbv-bucketed verification of probabilities, the uniforms drawn in the order of the tensor version's questions.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    requests, _, length, _ = batch.shape
    target, draft, temperatures, tokens = law_arguments(batch)
    uniforms = uniforms_for(batch, generator)
    coins, choice = uniforms(requests, length), uniforms(requests)
    return verify_gbv_bucketed_logits(target, draft, temperatures, tokens, None, coins, choice, laws=True)
