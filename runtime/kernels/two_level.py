# mypy: disable-error-code="no-untyped-def"
"""Two-level verification of K paths, from logits: a walk down the selected path, then its block verification.

At each node of the walk, and only there, both models' rows are read: once for their normalisers, `steps` times to
find the success mass b, once for the levels' draft mass, and once more where the residual matters. Rows off the walk
are never read, however many paths there are, and a prefix that paths share is one node. All reads of a node but the
first follow it at once, and 2 V logits per request stay in the L2 cache.

Each step looks at 16 values of b at once and narrows its bracket 16-fold: 2^-16 in 4 steps for float32 arithmetic,
2^-32 in 8 for float64. Only the acceptance length depends on b; the output law does not.

Letters: B requests, K paths, L drafted tokens, V vocabulary, C chunks; p target, q draft, c acceptance ratio; level,
k1, k2 and count as in `specbound.runtime.verifiers.two_level`, whose rule this is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from specbound.runtime.kernels.passes import (
    draft_row,
    first_above,
    inverse_temperature,
    law,
    open_depths,
    read_row,
    target_row,
)
from specbound.runtime.kernels.single_path import finish, log_law_at, normalise_rows
from specbound.runtime.kernels.workspace import Workspace, check_arguments, workspace
from specbound.runtime.verdict import Verdict


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
def node_laws(
    target, draft, temperatures, nodes, norms, request, depth, offsets, paths, length, vocab,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Target and draft law at `offsets` of the request's node at `depth`."""
    inverse = inverse_temperature(temperatures, request, REAL)
    slot = request * 2 * (length + 1) + depth
    ahead = read_row(target, target_row(nodes, request, depth, paths, length), offsets, vocab, IS_LAW, REAL)
    drawn = read_row(draft, draft_row(nodes, request, depth, paths, length), offsets, vocab, IS_LAW, REAL)
    return law(ahead, inverse, norms, slot, REAL), law(drawn, inverse, norms, slot + length + 1, REAL)


@triton.jit
def bracket_after(
    brackets, sums, request, step, steps, requests, chunks,
    CHUNKS: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """Low and high of b after `step` steps: [0, 1], then the sixteenth of the last bracket where the sum falls to 1."""
    before = brackets + (request * (steps + 1) + step - 1) * 2
    low = tl.load(before, mask=step > 0, other=0.0)
    high = tl.load(before + 1, mask=step > 0, other=1.0)
    if step > 0:
        chunk = tl.arange(0, CHUNKS)
        trial = tl.arange(0, 16)
        parts = sums + ((((step - 1) % 2) * requests + request) * chunks + chunk[:, None]) * 16 + trial[None, :]
        total = tl.sum(tl.load(parts, mask=(chunk < chunks)[:, None], other=0.0), axis=0)
        found = tl.min(tl.where((total <= ONE) | (trial == 15), trial, 15), axis=0)
        width = (high - low) / 16
        high = tl.where(found == 15, high, low + width * (found + 1))
        low = low + width * found
    return low, high


@triton.jit
def clipped_masses(
    target, draft, temperatures, lengths, nodes, norms, ratios, count, brackets, sums,
    depth, step, steps, requests, paths, length, vocab, chunks,
    PATHS: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr, CHUNKS: tl.constexpr, ONE: tl.constexpr,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """sum_y clip(c p, k2(b) q, k1(b) q) over each chunk, for 16 values of b in the bracket. Grid (C, B)."""
    chunk, request = tl.program_id(0), tl.program_id(1)
    if depth >= tl.load(lengths + request):
        return
    low, high = bracket_after(brackets, sums, request, step, steps, requests, chunks, CHUNKS, ONE)
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
            target, draft, temperatures, nodes, norms, request, depth, offsets, paths, length, vocab, IS_LAW, REAL
        )
        lifted, drawn = (ratio * target_law)[None, :], draft_law[None, :]
        parts += tl.minimum(tl.maximum(lifted, lower * drawn), upper * drawn)
    total = tl.sum(parts, axis=1).to(tl.float64)
    tl.store(sums + (((step % 2) * requests + request) * chunks + chunk) * 16 + trial, total)


@triton.jit
def level_of(target_law, draft_law, ratio, high, low, TINY: tl.constexpr):
    """clip((c p/q - k2) / (k1 - k2)) to [0, 1]."""
    level = (ratio * (target_law / tl.maximum(draft_law, TINY)) - low) / tl.maximum(high - low, TINY)
    return tl.minimum(tl.maximum(level, 0.0), 1.0)


@triton.jit
def failing_masses(
    target, draft, temperatures, lengths, nodes, norms, ratios, count, brackets, sums, selection,
    depth, steps, requests, paths, length, vocab, chunks,
    PATHS: tl.constexpr, BLOCK: tl.constexpr, CHUNKS: tl.constexpr, ONE: tl.constexpr, TINY: tl.constexpr,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Draft mass of each chunk whose coin fails, sum_y q (1 - level), at the b that was found. Grid (C, B)."""
    chunk, request = tl.program_id(0), tl.program_id(1)
    if depth >= tl.load(lengths + request):
        return
    _, high = bracket_after(brackets, sums, request, steps, steps, requests, chunks, CHUNKS, ONE)
    most, least = densities(count, request, tl.full([1], 1.0, tl.float64) - high, paths, PATHS)
    most, least = tl.sum(most, axis=0), tl.sum(least, axis=0)
    if chunk == 0:
        place = selection + (request * length + depth) * 4
        tl.store(place, most)
        tl.store(place + 1, least)
    offsets = chunk * BLOCK + tl.arange(0, BLOCK)
    target_law, draft_law = node_laws(
        target, draft, temperatures, nodes, norms, request, depth, offsets, paths, length, vocab, IS_LAW, REAL
    )
    ratio = tl.load(ratios + request * (length + 1) + depth).to(REAL)
    level = level_of(target_law, draft_law, ratio, most.to(REAL), least.to(REAL), TINY)
    mass = tl.sum((1.0 - level) * draft_law, axis=0).to(tl.float64)
    tl.store(sums + (((steps % 2) * requests + request) * chunks + chunk) * 16, mass)


@triton.jit
def shifted(polynomial, SIZE: tl.constexpr):
    """The polynomial times s: coefficient m moves to m + 1 (the highest is 0 by construction)."""
    index = tl.arange(0, SIZE)
    return tl.where(index > 0, tl.gather(polynomial, tl.maximum(index - 1, 0), 0), 0.0)


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


@triton.jit
def select_path(
    target, draft, temperatures, lengths, nodes, norms, ratios, count, sums, selection, alive, tokens, valid, select,
    depth, steps, requests, paths, length, vocab, chunks,
    PATHS: tl.constexpr, CHUNKS: tl.constexpr, TINY: tl.constexpr, IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
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
    place = selection + (request * length + depth) * 4
    tl.store(place + 2, most)
    tl.store(place + 3, least)

    path = tl.arange(0, PATHS)
    there = path < paths
    token = tl.load(tokens + (request.to(tl.int64) * paths + path) * length + depth, mask=there, other=0)
    known = there & (token >= 0) & (token < vocab)
    if tl.sum((there & ~known).to(tl.int32), axis=0) > 0:
        tl.store(valid + request, 0)
    slot = request * 2 * (length + 1) + depth + path * 0
    inverse = inverse_temperature(temperatures, request, REAL).to(tl.float64)
    ahead, drawn = (
        target_row(nodes, request, depth, paths, length),
        draft_row(nodes, request, depth, paths, length),
    )
    target_law = tl.exp(log_law_at(target, ahead, token, norms, slot, known, inverse, vocab, IS_LAW, REAL))
    draft_law = tl.exp(log_law_at(draft, drawn, token, norms, slot + length + 1, known, inverse, vocab, IS_LAW, REAL))
    ratio = tl.load(ratios + request * (length + 1) + depth)
    level = level_of(target_law, draft_law, ratio, tl.load(place), tl.load(place + 1), TINY)

    arrived = there & (tl.load(alive + request * paths + path, mask=there, other=0) != 0)
    none_so_far = tl.cumprod(tl.where(arrived, 1.0 - level, 1.0), axis=0)
    none_before = tl.where(path > 0, tl.gather(none_so_far, tl.maximum(path - 1, 0), 0), 1.0)
    first = tl.min(tl.where(arrived, path, PATHS - 1), axis=0)
    none = tl.min(none_so_far, axis=0)
    weights = tl.where(arrived, none_before * level, 0.0) + tl.where(path == first, none, 0.0)
    goal = tl.load(select + request * length + depth).to(tl.float64) * tl.sum(weights, axis=0)
    chosen = path == first_above(weights, goal, PATHS)

    chosen_token = tl.sum(tl.where(chosen, token, 0), axis=0)
    chosen_level = tl.sum(tl.where(chosen, level, 0.0), axis=0)
    mass = tl.sum(tl.where(chosen, draft_law, 0.0), axis=0)
    selected = mass * (least + chosen_level * (most - least))
    step = tl.sum(tl.where(chosen, target_law, 0.0), axis=0) / tl.where(selected > 0, selected, 1.0)
    after = request * (length + 1) + depth + 1
    tl.store(ratios + after, tl.minimum(ratio * tl.where(selected > 0, step, 1.0), 1.0))
    tl.store(nodes + after, tl.sum(tl.where(chosen, path, 0), axis=0))
    counts = tl.load(count + request * paths + path, mask=there, other=0.0)
    tl.debug_barrier()
    tl.store(alive + request * paths + path, (arrived & (token == chosen_token)).to(tl.int32), mask=there)
    below = count_below(counts, chosen_level, mass, fails, most, least, PATHS)
    tl.store(count + request * paths + path, below, mask=there)


@triton.jit
def open_walk(lengths, coins, ratios, first, stop, length, DEPTHS: tl.constexpr):
    """Depths of the selected path whose residual mass can matter. Grid (B,)."""
    request = tl.program_id(0)
    depth = tl.arange(0, DEPTHS)
    ratio = tl.load(ratios + request * (length + 1) + depth, mask=depth <= length, other=0.0)
    open_depths(lengths, coins, ratio, first, stop, request, depth, length)


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
    if draft_logits.ndim != 4:
        raise ValueError(f"draft_logits has shape {tuple(draft_logits.shape)}; want [B, K, L, V]")
    requests, paths, length, vocab = draft_logits.shape
    if out is None:
        dtype = torch.promote_types(target_logits.dtype, draft_logits.dtype)
        out = workspace(requests, paths, length, vocab, draft_logits.device, dtype)
    lengths = out.lengths if lengths is None else lengths
    others = {
        "temperatures": (temperatures, (requests,)),
        "lengths": (lengths, (requests,)),
        "select_uniforms": (select_uniforms, (requests, length)),
        "coin_uniforms": (coin_uniforms, (requests, length)),
        "choice_uniforms": (choice_uniforms, (requests,)),
    }
    check_arguments(target_logits, draft_logits, tokens, others, out)
    if requests == 0:
        return out.verdict
    for tensor, value in ((out.valid, 1), (out.nodes, 0), (out.ratios, 1), (out.alive, 1), (out.count, 0)):
        tensor.fill_(value)
    out.count[:, -1].fill_(1)
    rows = (target_logits, draft_logits, temperatures, lengths)
    for depth in range(length + 1):
        normalise_rows(*rows, out, depth, 1, laws)
        if depth < length:
            _descend(rows, tokens, select_uniforms, out, depth, laws)
    depths = triton.next_power_of_2(length + 1)
    open_walk[(requests,)](lengths, coin_uniforms, out.ratios, out.first, out.stop, length, DEPTHS=depths, num_warps=1)
    finish(*rows, coin_uniforms, choice_uniforms, out, False, True, laws)
    return out.verdict


def _descend(rows: tuple[Tensor, ...], tokens: Tensor, select: Tensor, out: Workspace, depth: int, laws: bool) -> None:
    """Find the levels at the node of this depth and go down to the next."""
    requests, paths, length, vocab = out.shape
    sizes = (requests, paths, length, vocab, out.chunks)
    common = out.constants | {
        "PATHS": max(2, triton.next_power_of_2(paths)),
        "CHUNKS": triton.next_power_of_2(out.chunks),
        "IS_LAW": laws,
    }
    rule = {"BLOCK": out.block, "ONE": 1 + 8 * torch.finfo(out.dtype).eps}
    node = (*rows, out.nodes, out.norms, out.ratios, out.count)
    for step in range(out.steps):
        clipped_masses[(out.chunks, requests)](
            *node, out.brackets, out.sums, depth, step, out.steps, *sizes,
            TILE=min(out.block, 512), num_warps=8, **common, **rule,
        )  # fmt: skip
    failing_masses[(out.chunks, requests)](
        *node, out.brackets, out.sums, out.selection, depth, out.steps, *sizes,
        num_warps=8, TINY=out.tiny, **common, **rule,
    )  # fmt: skip
    select_path[(requests,)](
        *node, out.sums, out.selection, out.alive, tokens, out.valid, select, depth, out.steps, *sizes,
        num_warps=1, TINY=out.tiny, **common,
    )  # fmt: skip
