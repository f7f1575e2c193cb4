# mypy: disable-error-code="no-untyped-def"
"""Two-level verification of K paths, from logits: a walk down the selected path, then its block verification.

At each node of the walk, and only there, both models' rows are read: once for their normalisers, `steps` times to
find the success mass b, once for the levels' draft mass, and once more where the residual matters. All reads of a node
but the first and the last follow it at once: the 2 V logits per request can come from the L2 cache while they fit.

Each step looks at 16 values of b at once and narrows its bracket 16-fold: 2^-16 in 4 steps for float32 arithmetic,
2^-32 in 8 for float64. Only the acceptance length depends on b; the output law does not.

Letters: B requests, K paths, L drafted tokens, V vocabulary, C chunks; p target, q draft, c acceptance ratio; level,
k1, k2 and count as in `specbound.runtime.verifiers.two_level`, whose rule this is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Batch, Verdict
from .buffers import Workspace, law_arguments, uniforms_for
from .passes import WIDTH, first_above, inverse_temperature, kernel, node_at, node_laws
from .single_path import log_law_at
from .walk import go_down, offered_tokens, path_slots, paths_workspace, shifted, verify_by_walk


@triton.jit
def densities(count, request, fails, paths, PATHS: tl.constexpr):
    """Selected law over draft law at level 1 and at level 0, when coins fail with draft mass x, float64:

    k1 = sum_n count_n (1 + x + .. + x^(n-1)),   k2 = sum_n count_n x^(n-1)
    """
    high = fails * 0.0
    low = high
    at_least = tl.sum(high, axis=0)
    for i in range(PATHS):
        n = PATHS - 1 - i
        term = tl.load(count + request * paths + n, mask=n < paths, other=0.0)
        at_least += term
        high = high * fails + at_least
        low = low * fails + term
    return high, low


@triton.jit
def bracket_after(
    brackets, sums, request, step, steps, requests, chunks,
    CHUNKS: tl.constexpr, SLACK: tl.constexpr,
):  # fmt: skip
    """Low and high of b after `step` steps: [0, 1], then the sixteenth of the last bracket where the sum falls to 1.

    SLACK: what rounding may leave of a sum of 1. (A constant near 1 would itself be rounded to float32.)
    """
    before = brackets + (request * (steps + 1) + step - 1) * 2
    low = tl.load(before, mask=step > 0, other=0.0)
    high = tl.load(before + 1, mask=step > 0, other=1.0)
    if step > 0:
        chunk = tl.arange(0, CHUNKS)
        trial = tl.arange(0, 16)
        parts = sums + ((((step - 1) % 2) * requests + request) * chunks + chunk[:, None]) * 16 + trial[None, :]
        total = tl.sum(tl.load(parts, mask=(chunk < chunks)[:, None], other=0.0), axis=0)
        found = tl.min(tl.where((total - 1.0 <= SLACK) | (trial == 15), trial, 15), axis=0)
        width = (high - low) / 16
        high = tl.where(found == 15, high, low + width * (found + 1))
        low = low + width * found
    return low, high


@kernel
def clipped_masses(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    norms,  # [B K, 2, L+1, 2] float64
    ratios,  # [W, L+1] float64
    count,  # [B, K] float64
    brackets,  # [B, steps + 1, 2] float64
    sums,  # [B, C, WIDTH] float64
    depth,  # scalar
    step,  # scalar
    steps,  # scalar
    requests,  # B
    paths,  # K
    length,  # L
    vocab,  # V
    chunks,  # C
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    BLOCK: tl.constexpr,  # entries of a row per program
    TILE: tl.constexpr,  # entries at a time
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    SLACK: tl.constexpr,  # of the sum of a law
    TINY: tl.constexpr,  # smallest normal number
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """sum_y q clip(c p/q, k2(b), k1(b)) over each chunk, for 16 values of b in the bracket. Grid (C, B)."""
    chunk, request = tl.program_id(0), tl.program_id(1)
    if depth >= tl.load(lengths + request):
        return
    low, high = bracket_after(brackets, sums, request, step, steps, requests, chunks, CHUNKS, SLACK)
    if chunk == 0:
        tl.store(brackets + (request * (steps + 1) + step) * 2, low)
        tl.store(brackets + (request * (steps + 1) + step) * 2 + 1, high)
    trial = tl.arange(0, 16)
    most, least = densities(count, request, 1.0 - (low + (high - low) * (trial + 1) / 16), paths, PATHS)
    ratio = tl.load(ratios + request * (length + 1) + depth).to(REAL)
    upper, lower = most.to(REAL)[:, None], least.to(REAL)[:, None]
    parts = tl.full([16, TILE], 0.0, REAL)
    for tile in range(BLOCK // TILE):
        offsets = chunk * BLOCK + tile * TILE + tl.arange(0, TILE)
        target_law, draft_law = node_laws(
            target, draft, temperatures, nodes, norms, request, depth, offsets, length, vocab, IS_LAW, REAL
        )
        lifted = (ratio * (target_law / tl.maximum(draft_law, TINY)))[None, :]
        parts += tl.minimum(tl.maximum(lifted, lower), upper) * draft_law[None, :]
    total = tl.sum(parts, axis=1).to(tl.float64)
    tl.store(sums + (((step % 2) * requests + request) * chunks + chunk) * 16 + trial, total)


@triton.jit
def level_of(target_law, draft_law, ratio, high, low, TINY: tl.constexpr):
    """clip((c p/q - k2) / (k1 - k2)) to [0, 1]."""
    level = (ratio * (target_law / tl.maximum(draft_law, TINY)) - low) / tl.maximum(high - low, TINY)
    return tl.minimum(tl.maximum(level, 0.0), 1.0)


@kernel
def failing_masses(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    norms,  # [B K, 2, L+1, 2] float64
    ratios,  # [W, L+1] float64
    count,  # [B, K] float64
    brackets,  # [B, steps + 1, 2] float64
    sums,  # [B, C, WIDTH] float64
    selection,  # [B, L, WIDTH] float64
    depth,  # scalar
    steps,  # scalar
    requests,  # B
    paths,  # K
    length,  # L
    vocab,  # V
    chunks,  # C
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    BLOCK: tl.constexpr,  # entries of a row per program
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    SLACK: tl.constexpr,  # of the sum of a law
    TINY: tl.constexpr,  # smallest normal number
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Draft mass of each chunk whose coin fails, sum_y q (1 - level), at the b that was found. Grid (C, B)."""
    chunk, request = tl.program_id(0), tl.program_id(1)
    if depth >= tl.load(lengths + request):
        return
    _, high = bracket_after(brackets, sums, request, steps, steps, requests, chunks, CHUNKS, SLACK)
    most, least = densities(count, request, tl.full([1], 1.0, tl.float64) - high, paths, PATHS)
    most, least = tl.sum(most, axis=0), tl.sum(least, axis=0)
    if chunk == 0:
        place = selection + (request * length + depth) * WIDTH
        tl.store(place, most)
        tl.store(place + 1, least)
    offsets = chunk * BLOCK + tl.arange(0, BLOCK)
    target_law, draft_law = node_laws(
        target, draft, temperatures, nodes, norms, request, depth, offsets, length, vocab, IS_LAW, REAL
    )
    ratio = tl.load(ratios + request * (length + 1) + depth).to(REAL)
    level = level_of(target_law, draft_law, ratio, most.to(REAL), least.to(REAL), TINY)
    mass = tl.sum((1.0 - level) * draft_law, axis=0).to(tl.float64)
    tl.store(sums + (((steps % 2) * requests + request) * chunks + chunk) * 16, mass)


@triton.jit
def count_below(counts, level, mass, fails, high, low, PATHS: tl.constexpr):
    """Law of the number of paths through the chosen token: see `count_below` and `counts_after` of the reference."""
    path = tl.arange(0, PATHS)
    failing = mass * (1.0 - level)
    others = tl.maximum(fails - failing, 0.0)
    lowest = tl.full([PATHS], 0.0, tl.float64)
    higher = lowest
    for i in range(PATHS):
        term = tl.sum(tl.where(path == PATHS - 1 - i, counts, 0.0), axis=0)
        lowest = lowest * others + shifted(lowest, PATHS) * failing + tl.where(path == 0, term, 0.0)
        higher = higher * (1.0 - mass) + shifted(higher, PATHS) * mass + lowest
    density = low + level * (high - low)
    chosen = (lowest + level * (higher - lowest)) / tl.where(density > 0, density, 1.0)
    return tl.where(density > 0, chosen, counts)


@kernel
def select_path(
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
    select,  # [B, L] uniforms
    depth,  # scalar
    steps,  # scalar
    requests,  # B
    paths,  # K
    length,  # L
    vocab,  # V
    chunks,  # C
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    TINY: tl.constexpr,  # smallest normal number
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Go down with the first alive path whose coin comes up, or the first alive one if none does. Grid (B,).

    The K coins are one draw: path k has weight level_k prod_{alive j < k} (1 - level_j).
    """
    request = tl.program_id(0)
    if depth >= tl.load(lengths + request):
        return
    chunk = tl.arange(0, CHUNKS)
    parts = sums + (((steps % 2) * requests + request) * chunks + chunk) * 16
    fails = tl.sum(tl.load(parts, mask=chunk < chunks, other=0.0), axis=0)
    fails = tl.minimum(tl.maximum(fails, 0.0), 1.0)
    most, least = densities(count, request, tl.full([1], 0.0, tl.float64) + fails, paths, PATHS)
    most, least = tl.sum(most, axis=0), tl.sum(least, axis=0)
    place = selection + (request * length + depth) * WIDTH
    tl.store(place + 2, most)
    tl.store(place + 3, least)

    path = tl.arange(0, PATHS)
    token, known, arrived = offered_tokens(tokens, alive, valid, request, depth, paths, length, vocab, path)
    node = node_at(nodes, request, depth, length) + path * 0
    slot = node * 2 * (length + 1) + depth
    inverse = inverse_temperature(temperatures, request, REAL).to(tl.float64)
    ahead, drawn = node * (length + 1) + depth, node * length + depth
    target_law = tl.exp(log_law_at(target, ahead, token, norms, slot, known, inverse, vocab, IS_LAW, REAL))
    draft_law = tl.exp(log_law_at(draft, drawn, token, norms, slot + length + 1, known, inverse, vocab, IS_LAW, REAL))
    ratio = tl.load(ratios + request * (length + 1) + depth)
    level = level_of(target_law, draft_law, ratio, tl.load(place), tl.load(place + 1), TINY)

    none_so_far = tl.cumprod(tl.where(arrived, 1.0 - level, 1.0), axis=0)
    none_before = tl.where(path > 0, tl.gather(none_so_far, tl.maximum(path - 1, 0), 0), 1.0)
    first = tl.min(tl.where(arrived, path, PATHS - 1), axis=0)
    none = tl.min(none_so_far, axis=0)
    weights = tl.where(arrived, none_before * level, 0.0) + tl.where(path == first, none, 0.0)
    goal = tl.load(select + request * length + depth).to(tl.float64) * tl.sum(weights, axis=0)
    chosen = path == first_above(weights, goal, PATHS)

    chosen_level = tl.sum(tl.where(chosen, level, 0.0), axis=0)
    mass = tl.sum(tl.where(chosen, draft_law, 0.0), axis=0)
    counts = tl.load(count + request * paths + path, mask=path < paths, other=0.0)
    go_down(
        nodes, ratios, alive, count, request, depth, paths, length,
        path, chosen, token, arrived,
        tl.sum(tl.where(chosen, target_law, 0.0), axis=0),
        mass * (least + chosen_level * (most - least)),
        count_below(counts, chosen_level, mass, fails, most, least, PATHS),
    )  # fmt: skip


def verify_two_level_logits(
    target_logits: Tensor,
    draft_logits: Tensor,
    temperatures: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    select_uniforms: Tensor,
    coin_uniforms: Tensor,
    choice_uniforms: Tensor,
    out: Workspace | None = None,
    laws: bool = False,
) -> Verdict:
    """Two-level verification of K paths from logits: see `specbound.runtime.verifiers.two_level`.

    The path taken at depth i is the first whose cumulative weight exceeds the i-th selection uniform; coins and choice
    are those of block verification of the selected path.

    Args:
        target_logits [B, K, L+1, V], draft_logits [B, K, L, V], tokens [B, K, L] int64: paths that share a prefix hold
            the same rows there; the row is read from one of them.
        lengths [B] int32: length of all the request's paths, 0..L; None for L.
        select_uniforms [B, L], coin_uniforms [B, L], choice_uniforms [B]: in [0, 1), float64.
        temperatures, out, laws: as for `verify_block_logits`.
    Returns:
        the verdict; accepted 0 and token -1 for a request with a row that is no law, or an unknown token, on the walk.

    Raises:
        ValueError: wrong shape, dtype, device or layout.
    """
    out = paths_workspace(target_logits, draft_logits, out)

    def descend(rows: tuple[Tensor, ...], out: Workspace, depth: int) -> None:
        _descend(rows, tokens, select_uniforms, out, depth, laws)

    return verify_by_walk(
        target_logits, draft_logits, temperatures, tokens, lengths, coin_uniforms, choice_uniforms, out, laws,
        selected=1,
        descend=descend,
        others={"select_uniforms": (select_uniforms, (out.shape[0], out.shape[2]))},
    )  # fmt: skip


def verify_two_level_laws(batch: Batch, generator: torch.Generator | None) -> Verdict:
    """Two-level verification of probabilities, the uniforms drawn in the order of the tensor version's questions.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    requests, paths, length, _ = batch.shape
    target, draft, temperatures, tokens = law_arguments(batch)
    uniforms = uniforms_for(batch, generator)
    select = [uniforms(requests) for _ in range(length if paths > 1 else 0)]
    selected = torch.stack(select, dim=1) if select else batch.draft_probs.new_zeros(requests, length).double()
    coins, choice = uniforms(requests, length), uniforms(requests)
    return verify_two_level_logits(target, draft, temperatures, tokens, None, selected, coins, choice, laws=True)


def _descend(rows: tuple[Tensor, ...], tokens: Tensor, select: Tensor, out: Workspace, depth: int, laws: bool) -> None:
    """Find the levels at the node of this depth and go down to the next."""
    requests, paths, length, vocab = out.shape
    sizes = (requests, paths, length, vocab, out.chunks)
    common = out.constants | {
        "PATHS": path_slots(paths),
        "CHUNKS": triton.next_power_of_2(out.chunks),
        "TINY": out.tiny,
        "IS_LAW": laws,
    }
    rule = {"BLOCK": out.block, "SLACK": 8 * torch.finfo(out.dtype).eps}
    node = (*rows, out.nodes, out.norms, out.ratios, out.count)
    for step in range(out.steps):
        clipped_masses[(out.chunks, requests)](
            *node, out.brackets, out.sums, depth, step, out.steps, *sizes,
            TILE=min(out.block, 512), num_warps=8, **common, **rule,
        )  # fmt: skip
    failing_masses[(out.chunks, requests)](
        *node, out.brackets, out.sums, out.selection, depth, out.steps, *sizes,
        num_warps=8, **common, **rule,
    )  # fmt: skip
    select_path[(requests,)](
        *node, out.sums, out.selection, out.alive, tokens, out.valid, select, depth, out.steps, *sizes,
        num_warps=1, **common,
    )  # fmt: skip
