# mypy: disable-error-code="no-untyped-def"
"""A walk down one of K paths, from logits, that a rule chooses node by node; then its block verification.

Five launches: `begin_race`, `row_histograms`, the rule's walk (one program per request, on histograms alone), and the
two of block verification, which read the rows of the walk's nodes again where a residual can matter. A prefix that
paths share is one node. What a rule adds is in `two_level` and `gbv_bucketed`.

Letters: B requests (one walk each), K paths, L drafted tokens, V vocabulary; c acceptance ratio; alive the paths
through the node reached, count the law of how many they are (see `specbound.runtime.parts.count_law`).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Verdict
from .buffers import Workspace, check_arguments, workspace
from .histograms import histogram_rows, knot_of, knot_sizes, log_ratio_of, window_at
from .passes import open_depths
from .rows import inverse_temperature, kernel, norms_of, read_row
from .single_path import finish


@kernel
def begin_race(
    temperatures,  # [B] float
    lengths,  # [B] int32
    tokens,  # [B, K, L] int64
    path_temperatures,  # [B K] float64
    path_lengths,  # [B K] int32
    nodes,  # [W, L+1] int32
    paths,  # K
    length,  # L
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
):
    """The node of each prefix is held by the first path that has it. Grid (W,)."""
    walk = tl.program_id(0)
    request, mine = walk // paths, walk % paths
    last = tl.load(lengths + request)
    path, depth = tl.arange(0, PATHS)[:, None], tl.arange(0, DEPTHS)[None, :]
    drafted = (path < paths) & (depth < last)
    other = tl.load(tokens + (request.to(tl.int64) * paths + path) * length + depth, mask=drafted, other=0)
    own = tl.load(tokens + walk.to(tl.int64) * length + depth, mask=depth < last, other=0)
    shared = tl.min(tl.where(drafted & (own != other), depth, DEPTHS), axis=1)[:, None]
    holder = tl.min(tl.where((path < paths) & (shared >= depth), path, mine), axis=0)
    place = tl.arange(0, DEPTHS)
    tl.store(nodes + walk * (length + 1) + place, request * paths + holder, mask=place <= length)
    tl.store(path_temperatures + walk, tl.load(temperatures + request).to(tl.float64))
    tl.store(path_lengths + walk, last)


@triton.jit
def keep_norms(norms, slots, shift, log_sum, mask):
    """Store m and log s at `slots`; 1 if every row has a law, 0 after a NaN or without a finite logit."""
    tl.store(norms + 2 * slots, shift, mask=mask)
    tl.store(norms + 2 * slots + 1, log_sum, mask=mask)
    lawless = mask & ((log_sum - log_sum != 0) | (shift - shift != 0))
    return 1 - tl.max(lawless.to(tl.int32), axis=0)


@triton.jit
def offered_tokens(
    target, draft, tokens, windows, temperatures, request, node, depth, paths, length, vocab, octave, shift, log_sum,
    path, SPANS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The paths' tokens at a node, as vectors over the paths.

    Returns:
        token; 1 if all are in the vocabulary; their knot and part, see `knot_of`; their target and draft law, float64.
        The last four mean something for paths through the node.
    """
    there = path < paths
    token = tl.load(tokens + (request.to(tl.int64) * paths + path) * length + depth, mask=there, other=0)
    known = there & (token >= 0) & (token < vocab)
    place = tl.where(known, token, vocab)
    ahead = read_row(target, node * (length + 1) + depth, place, vocab, IS_LAW, REAL)
    drawn = read_row(draft, node * length + depth, place, vocab, IS_LAW, REAL)
    inverse = inverse_temperature(temperatures, request, REAL)
    token_or_first = tl.where(known, token, 0)
    centre, before = window_at(windows, node, depth, length, token_or_first // (SPAN * BLOCK), SPANS)
    log_ratio = log_ratio_of(ahead, drawn, inverse)
    knot, part = knot_of(log_ratio, token_or_first // TILE, centre, before, octave, REAL)
    model, double = tl.arange(0, 2), inverse.to(tl.float64)
    target_shift = tl.sum(tl.where(model == 0, shift, 0.0), axis=0)
    target_sum = tl.sum(tl.where(model == 0, log_sum, 0.0), axis=0)
    draft_shift = tl.sum(tl.where(model == 1, shift, 0.0), axis=0)
    draft_sum = tl.sum(tl.where(model == 1, log_sum, 0.0), axis=0)
    target_law = tl.exp((ahead.to(tl.float64) - target_shift) * double - target_sum)
    draft_law = tl.exp((drawn.to(tl.float64) - draft_shift) * double - draft_sum)
    fine = 1 - tl.max((there & ~known).to(tl.int32), axis=0)
    return token, fine, knot, part.to(tl.float64), target_law, draft_law


@triton.jit
def next_ratio(ratio, target_law, selected_law):
    """min(1, c target/selected), float64; c where the selected path cannot have drawn the token."""
    step = tl.where(selected_law > 0, target_law / tl.where(selected_law > 0, selected_law, 1.0), 1.0)
    return tl.minimum(ratio * step, 1.0)


@triton.jit
def end_walk(
    norms, chunk_max, chunk_sum, temperatures, lengths, coins, nodes, ratios, first, stop, valid, path,
    request, node, walk_nodes, walk_ratios, chosen, fine, depth, length, chunks,
    CHUNKS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Store the walk of a request, whose last node is `node`, for its block verification.

    Args: walk_nodes, walk_ratios: vectors over `depth` = 0, 1, ..; chosen: the path; fine: 1 if all was in order.
    """
    last = tl.load(lengths + request)
    slots = node * 2 * (length + 1) + last + tl.arange(0, 1)
    mask = slots >= 0
    shift, log_sum = norms_of(chunk_max, chunk_sum, temperatures, request, slots, mask, chunks, CHUNKS, REAL)
    fine = fine * keep_norms(norms, slots, shift, log_sum, mask)
    tl.store(valid + request, fine)
    tl.store(path + request, tl.where(fine > 0, chosen, 0).to(tl.int64))
    place = request * (length + 1) + depth
    tl.store(nodes + place, walk_nodes.to(tl.int32), mask=depth <= last)
    tl.store(ratios + place, walk_ratios, mask=depth <= last)
    open_depths(lengths, coins, walk_ratios, first, stop, request, depth, length)


@triton.jit
def shifted(polynomial, SIZE: tl.constexpr):
    """The polynomial times s: coefficient m moves to m + 1 (the highest is 0 by construction)."""
    index = tl.arange(0, SIZE)
    return tl.where(index > 0, tl.gather(polynomial, tl.maximum(index - 1, 0), 0), 0.0)


def paths_workspace(target: Tensor, draft: Tensor, out: Workspace | None) -> Workspace:
    """`out`, or a new workspace for target [B, K, L+1, V] and draft [B, K, L, V]; ValueError if they are not that."""
    if draft.ndim != 4:
        raise ValueError(f"draft_logits has shape {tuple(draft.shape)}; want [B, K, L, V]")
    requests, paths, length, vocab = draft.shape
    dtype = torch.promote_types(target.dtype, draft.dtype)
    return out or workspace(requests, paths, length, vocab, draft.device, dtype)


def path_slots(paths: int) -> int:
    """Length of the vectors over the K paths: the power of two at or above K, at least 2 (`gather` wants two)."""
    return max(2, triton.next_power_of_2(paths))


def verify_by_walk(
    target: Tensor,
    draft: Tensor,
    temperatures: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    coins: Tensor,
    choice: Tensor,
    out: Workspace | None,
    laws: bool,
    rule: Any,
    selected: int,
    others: dict[str, tuple[Tensor, tuple[int, ...]]],
    **options: Any,
) -> Verdict:
    """Choose a path with the kernel `rule`, then verify it as a block.

    Args:
        selected: how its law lies between knots, see `passes.selected_density`.
        others: further arguments to check, handed on to the rule; options: further compile-time arguments of it.
    """
    out = paths_workspace(target, draft, out)
    requests, paths, length, vocab = out.shape
    lengths = out.lengths if lengths is None else lengths
    checked = others | {
        "temperatures": (temperatures, (requests,)),
        "lengths": (lengths, (requests,)),
        "coin_uniforms": (coins, (requests, length)),
        "choice_uniforms": (choice, (requests,)),
    }
    check_arguments(target, draft, tokens, checked, out)
    if requests == 0:
        return out.verdict
    with torch.cuda.device_of(target):
        share_rows(target, draft, temperatures, tokens, lengths, out, laws)
        rule[(requests,)](
            target, draft, temperatures, lengths, tokens, out.path_nodes, out.chunk_max, out.chunk_sum, out.histograms,
            out.windows, coins, *(tensor for tensor, _ in others.values()), out.norms, out.selection, out.nodes,
            out.ratios, out.first, out.stop, out.valid, out.verdict.path, paths, length, vocab, out.chunks,
            PATHS=path_slots(paths), DEPTHS=triton.next_power_of_2(length + 1), BLOCK=out.block, TILE=out.tile,
            IS_LAW=laws, num_warps=8, **knot_sizes(out), **out.constants, **options,
        )  # fmt: skip
        finish(target, draft, temperatures, lengths, coins, choice, out, laws, out.verdict, selected=selected)
    return out.verdict


def share_rows(
    target: Tensor, draft: Tensor, temperatures: Tensor, tokens: Tensor, lengths: Tensor, out: Workspace, laws: bool
) -> None:
    """Which path holds each node, and the histograms of its rows: two launches."""
    requests, paths, length, _ = out.shape
    begin_race[(requests * paths,)](
        temperatures, lengths, tokens, out.path_temperatures, out.path_lengths, out.path_nodes, paths, length,
        PATHS=triton.next_power_of_2(paths), DEPTHS=triton.next_power_of_2(length + 1), num_warps=1,
    )  # fmt: skip
    histogram_rows(target, draft, out.path_temperatures, out.path_lengths, out, laws)
