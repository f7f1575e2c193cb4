# mypy: disable-error-code="no-untyped-def"
"""gbv-bucketed verification of K paths, from logits: down the first path of the highest bucket, then its block.

At each node of the walk, and only there, both models' rows are read: once for their normalisers, once for the draft
mass of every bucket of target/draft, and once more where the residual matters. The rule has no randomness of its own.

Letters: B requests, K paths, L drafted tokens, V vocabulary, C chunks; bucket, count and density as in
`specbound.runtime.verifiers.gbv`, whose rule this is. A ratio halfway between two buckets goes to the higher one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Batch, Verdict
from .buffers import Workspace, law_arguments, uniforms_for
from .passes import WIDTH, bucket_of, inverse_temperature, kernel, log_law, node_at, node_log_laws, read_row
from .single_path import log_law_at
from .walk import go_down, offered_tokens, path_slots, shifted, verify_by_walk


@kernel
def bucket_masses(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    norms,  # [B K, 2, L+1, 2] float64
    sums,  # [B, C, WIDTH] float64
    depth,  # scalar
    length,  # L
    vocab,  # V
    chunks,  # C
    BLOCK: tl.constexpr,  # entries of a row per program
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Draft mass of each bucket in each chunk, one after the other between the lowest and the highest. Grid (C, B)."""
    chunk, walk = tl.program_id(0), tl.program_id(1)
    if depth >= tl.load(lengths + walk):
        return
    log_target, log_draft = node_log_laws(
        target, draft, temperatures, nodes, norms,
        walk, depth, chunk * BLOCK + tl.arange(0, BLOCK), length, vocab, IS_LAW, REAL,
    )  # fmt: skip
    mine, draft_law = bucket_of(log_target, log_draft), tl.exp(log_draft)
    which = tl.min(tl.where(draft_law > 0, mine, WIDTH), axis=0)
    highest = tl.max(tl.where(draft_law > 0, mine, 0), axis=0)
    bucket = tl.arange(0, WIDTH)
    masses = tl.full([WIDTH], 0.0, REAL)
    while which <= highest:
        masses = tl.where(bucket == which, tl.sum(tl.where(mine == which, draft_law, 0.0), axis=0), masses)
        which += 1
    tl.store(sums + (walk * chunks + chunk) * WIDTH + bucket, masses.to(tl.float64))


@triton.jit
def bucket_densities(count, walk, below, upto, paths, PATHS: tl.constexpr):
    """Selected law over draft law: sum_n count_n sum_{i+j=n-1} below^i upto^j, float64; see `selection_densities`."""
    lowest = upto * 0.0
    higher = lowest
    for i in range(PATHS):
        n = PATHS - 1 - i
        lowest = lowest * below + tl.load(count + walk * paths + n, mask=n < paths, other=0.0)
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
def take_highest(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    norms,  # [B K, 2, L+1, 2] float64
    ratios,  # [W, L+1] float64
    count,  # [B, K] float64
    sums,  # [B, C, WIDTH] float64
    selection,  # [B, L, WIDTH] float64
    alive,  # [B, K] int32
    tokens,  # [B, K, L] int64
    valid,  # [W] int32
    depth,  # scalar
    paths,  # K
    length,  # L
    vocab,  # V
    chunks,  # C
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Density of every bucket; then go down with the first alive path of the highest bucket. Grid (B,)."""
    walk = tl.program_id(0)
    if depth >= tl.load(lengths + walk):
        return
    bucket = tl.arange(0, WIDTH)
    chunk = tl.arange(0, CHUNKS)[:, None]
    parts = tl.load(sums + (walk * chunks + chunk) * WIDTH + bucket[None, :], mask=chunk < chunks, other=0.0)
    upto = tl.cumsum(tl.sum(parts, axis=0), axis=0)
    total = tl.max(upto, axis=0)
    upto = upto / total
    below = shifted(upto, WIDTH)
    density = bucket_densities(count, walk, below, upto, paths, PATHS)
    tl.store(selection + (walk * length + depth) * WIDTH + bucket, density)

    path = tl.arange(0, PATHS)
    token, known, arrived = offered_tokens(tokens, alive, valid, walk, depth, paths, length, vocab, path)
    node = node_at(nodes, walk, depth, length)
    ahead, drawn = node * (length + 1) + depth, node * length + depth
    slot = node * 2 * (length + 1) + depth
    inverse = inverse_temperature(temperatures, walk, REAL)
    place = tl.where(known, token, vocab)
    log_target = log_law(read_row(target, ahead, place, vocab, IS_LAW, REAL), inverse, norms, slot, REAL)
    log_draft = log_law(read_row(draft, drawn, place, vocab, IS_LAW, REAL), inverse, norms, slot + length + 1, REAL)
    mine = tl.where(arrived, bucket_of(log_target, log_draft), -1)
    highest = tl.max(mine, axis=0)
    chosen = path == tl.min(tl.where(arrived & (mine == highest), path, PATHS - 1), axis=0)

    double = inverse.to(tl.float64)
    logs = log_law_at(target, ahead + path * 0, token, norms, slot + path * 0, known, double, vocab, IS_LAW, REAL)
    target_mass = tl.sum(tl.where(chosen, tl.exp(logs), 0.0), axis=0)
    slots = slot + length + 1 + path * 0
    logs = log_law_at(draft, drawn + path * 0, token, norms, slots, known, double, vocab, IS_LAW, REAL)
    mass = tl.sum(tl.where(chosen, tl.exp(logs), 0.0), axis=0)
    here = tl.sum(tl.where(bucket == highest, density, 0.0), axis=0)
    lower = tl.sum(tl.where(bucket == highest, below, 0.0), axis=0)
    reached = tl.sum(tl.where(bucket == highest, upto, 0.0), axis=0)
    counts = tl.load(count + walk * paths + path, mask=path < paths, other=0.0)
    go_down(
        nodes, ratios, alive, count, walk, depth, paths, length,
        path, chosen, token, arrived, target_mass, mass * here,
        count_through(counts, lower, reached, mass / total, here, PATHS),
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

    def descend(rows: tuple[Tensor, ...], out: Workspace, depth: int) -> None:
        _descend(rows, tokens, out, depth, laws)

    return verify_by_walk(
        target_logits, draft_logits, temperatures, tokens, lengths, coin_uniforms, choice_uniforms, out, laws,
        selected=2,
        descend=descend,
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


def _descend(rows: tuple[Tensor, ...], tokens: Tensor, out: Workspace, depth: int, laws: bool) -> None:
    """Find the buckets' densities at the node of this depth and go down to the next."""
    requests, paths, length, vocab = out.shape
    common = out.constants | {"IS_LAW": laws}
    bucket_masses[(out.chunks, requests)](
        *rows, out.nodes, out.norms, out.sums, depth, length, vocab, out.chunks,
        BLOCK=out.block, num_warps=8, **common,
    )  # fmt: skip
    take_highest[(requests,)](
        *rows, out.nodes, out.norms, out.ratios, out.count, out.sums, out.selection, out.alive, tokens, out.valid,
        depth, paths, length, vocab, out.chunks,
        PATHS=path_slots(paths), CHUNKS=triton.next_power_of_2(out.chunks), num_warps=4, **common,
    )  # fmt: skip
