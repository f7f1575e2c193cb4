# mypy: disable-error-code="no-untyped-def"
"""A walk down one of K paths, from logits, that a rule chooses node by node; then its block verification.

Only the rows of the walk's nodes are read, however many paths there are, and a prefix that paths share is one node.
What a rule adds is in `two_level` and `gbv_bucketed`.

Letters: B requests (one walk each), K paths, L drafted tokens, V vocabulary; c acceptance ratio; alive the paths
through the node reached, count the law of how many they are (see `specbound.runtime.parts.count_law`).
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Verdict
from .buffers import Workspace, check_arguments, workspace
from .passes import kernel, open_depths, row_norms
from .single_path import finish, sum_rows


@kernel
def begin_walk(
    nodes,  # [W, L+1] int32
    ratios,  # [W, L+1] float64
    alive,  # [B, K] int32
    count,  # [B, K] float64
    paths,  # K
    length,  # L
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
):
    """At the root all paths are alive, c = 1. Grid (B,)."""
    walk = tl.program_id(0)
    path = tl.arange(0, PATHS)
    tl.store(nodes + walk * (length + 1), walk * paths)
    tl.store(ratios + walk * (length + 1), 1.0)
    tl.store(alive + walk * paths + path, 1, mask=path < paths)
    tl.store(count + walk * paths + path, (path == paths - 1).to(tl.float64), mask=path < paths)


@triton.jit
def offered_tokens(tokens, alive, valid, walk, depth, paths, length, vocab, path):
    """Token of each path at `depth`, whether it is in the vocabulary, and whether the path arrives at the node.

    A token outside the vocabulary makes the walk invalid.
    """
    there = path < paths
    token = tl.load(tokens + (walk.to(tl.int64) * paths + path) * length + depth, mask=there, other=0)
    known = there & (token >= 0) & (token < vocab)
    if tl.sum((there & ~known).to(tl.int32), axis=0) > 0:
        tl.store(valid + walk, 0)
    return token, known, there & (tl.load(alive + walk * paths + path, mask=there, other=0) != 0)


@triton.jit
def go_down(
    nodes, ratios, alive, count, walk, depth, paths, length,
    path, chosen, token, arrived, target_law, selected, below,
):  # fmt: skip
    """Follow the `chosen` path: c <- min(1, c target/selected); all alive paths with its token stay alive.

    Args: chosen, arrived: masks over the paths, one chosen; target_law, selected: target's and selected path's law of
    the chosen token; below: law of the number of paths through it.
    """
    there = path < paths
    after = walk * (length + 1) + depth + 1
    ratio = tl.load(ratios + after - 1)
    step = tl.where(selected > 0, target_law / tl.where(selected > 0, selected, 1.0), 1.0)
    chosen_token = tl.sum(tl.where(chosen, token, 0), axis=0)
    tl.debug_barrier()
    tl.store(ratios + after, tl.minimum(ratio * step, 1.0))
    tl.store(nodes + after, walk * paths + tl.sum(tl.where(chosen, path, 0), axis=0))
    tl.store(alive + walk * paths + path, (arrived & (token == chosen_token)).to(tl.int32), mask=there)
    tl.store(count + walk * paths + path, below, mask=there)


@triton.jit
def shifted(polynomial, SIZE: tl.constexpr):
    """The polynomial times s: coefficient m moves to m + 1 (the highest is 0 by construction)."""
    index = tl.arange(0, SIZE)
    return tl.where(index > 0, tl.gather(polynomial, tl.maximum(index - 1, 0), 0), 0.0)


@kernel
def open_walk(
    lengths,  # [W] int32
    coins,  # [W, L] uniforms
    ratios,  # [W, L+1] float64
    first,  # [W] int32
    stop,  # [W] int32
    length,  # L
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
):
    """Depths of the walk whose residual mass can matter. Grid (B,)."""
    walk = tl.program_id(0)
    depth = tl.arange(0, DEPTHS)
    ratio = tl.load(ratios + walk * (length + 1) + depth, mask=depth <= length, other=0.0)
    open_depths(lengths, coins, ratio, first, stop, walk, depth, length)


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
    selected: int,
    descend: Callable[[tuple[Tensor, ...], Workspace, int], None],
    others: dict[str, tuple[Tensor, tuple[int, ...]]],
) -> Verdict:
    """Walk down with `descend(rows, out, depth)` at each depth, then verify the walk as a block.

    Args:
        selected: how `surplus` finds the selected path's law; others: further arguments to check.
    """
    out = paths_workspace(target, draft, out)
    requests, paths, length, _ = out.shape
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
        begin_walk[(requests,)](
            out.nodes, out.ratios, out.alive, out.count, paths, length, PATHS=path_slots(paths), num_warps=1
        )
        rows = (target, draft, temperatures, lengths)
        for depth in range(length + 1):
            sum_rows(*rows, out, depth, 1, laws)
            row_norms[(2, requests)](
                temperatures, lengths, out.nodes, out.chunk_max, out.chunk_sum, out.norms, out.valid,
                depth, length, out.chunks,
                CHUNKS=triton.next_power_of_2(out.chunks), num_warps=1, **out.constants,
            )  # fmt: skip
            if depth < length:
                descend(rows, out, depth)
        depths = triton.next_power_of_2(length + 1)
        open_walk[(requests,)](lengths, coins, out.ratios, out.first, out.stop, length, DEPTHS=depths, num_warps=1)
        finish(*rows, coins, choice, out, laws, out.verdict, selected=selected)
    return out.verdict
