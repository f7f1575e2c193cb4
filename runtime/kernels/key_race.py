# mypy: disable-error-code="no-untyped-def"
"""Key race of K paths, from logits: block verification of every path at once, then the smallest key wins.

The rows of all nodes are read once for their normalisers, and once more where a residual can matter to a path. A
prefix that paths share is one node, read for the first of them: neither its normalisers nor its residual mass, which
depend on the prefix alone, are read for twice. Six launches: `begin_race`, four of block verification, `end_race`.

Letters: B requests, K paths, W = B K, L drafted tokens, V vocabulary; c ratios and t key bounds of a path's prefixes as
in `specbound.runtime.verifiers.key_race`, whose rule this is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Batch, Verdict
from .buffers import Workspace, check_arguments, law_arguments, uniforms_for
from .rows import inverse_temperature, kernel
from .single_path import block_ratios, finish, log_law_at, sum_rows
from .walk import begin_race, paths_workspace


@triton.jit
def log_excess(target, draft, log_ratio):
    """log min(1, draft / (c target)) from the logarithms; 0 where the target has no mass."""
    over = target + log_ratio - draft
    return tl.where(target + log_ratio > draft, -over, 0.0)


@kernel
def end_race(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [B] float
    lengths,  # [B] int32
    nodes,  # [W, L+1] int32
    norms,  # [B K, 2, L+1, 2] float64
    ratios,  # [W, L+1] float64
    tokens,  # [B, K, L] int64
    valid,  # [W] int32
    path_accepted,  # [B K] int64
    path_token,  # [B K] int64
    keys,  # [B, K] uniforms
    out_path,  # [B] int64
    out_accepted,  # [B] int64
    out_token,  # [B] int64
    paths,  # K
    length,  # L
    vocab,  # V
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """The smallest of the keys wins, path k's uniform on [low_k, high_k]. Grid (B,).

    high = t_i = prod_{j<i} min(1, draft(x_j) / (c_j target(x_j))) for the i tokens kept, low = high
    min(1, draft(x) / (c_i target(x))) for the token x after them, 0 after a whole draft.
    """
    request = tl.program_id(0)
    path, depth = tl.arange(0, PATHS), tl.arange(0, DEPTHS)[None, :]
    there = path < paths
    walk = request * paths + path
    last = tl.load(lengths + request)
    inverse = inverse_temperature(temperatures, request, REAL).to(tl.float64)
    kept = tl.load(path_accepted + walk, mask=there, other=0).to(tl.int32)
    token = tl.load(path_token + walk, mask=there, other=-1)
    fine = tl.load(valid + walk, mask=there, other=1)

    mask = there[:, None] & (depth <= kept[:, None]) & (depth < last)
    place = walk[:, None] * (length + 1) + depth
    drafted = tl.load(tokens + walk.to(tl.int64)[:, None] * length + depth, mask=mask, other=0)
    drafted = tl.where(depth == kept[:, None], token[:, None], drafted)
    mask = mask & (drafted >= 0) & (drafted < vocab)
    node = tl.load(nodes + place, mask=mask, other=0).to(tl.int64)
    slot = node * 2 * (length + 1) + depth
    ahead, drawn = node * (length + 1) + depth, node * length + depth
    target_log = log_law_at(target, ahead, drafted, norms, slot, mask, inverse, vocab, IS_LAW, REAL)
    draft_log = log_law_at(draft, drawn, drafted, norms, slot + length + 1, mask, inverse, vocab, IS_LAW, REAL)
    steps = log_excess(target_log, draft_log, tl.log(tl.load(ratios + place, mask=mask, other=1.0)))
    steps = tl.where(mask, steps, 0.0)
    high = tl.exp(tl.sum(tl.where(depth < kept[:, None], steps, 0.0), axis=1))
    low = tl.where(kept < last, tl.exp(tl.sum(steps, axis=1)), 0.0)
    uniform = tl.load(keys + walk, mask=there, other=0.0).to(tl.float64)
    key = tl.where(there, low + (high - low) * uniform, float("inf"))
    winner = tl.min(tl.where(key == tl.min(key, axis=0), path, PATHS - 1), axis=0)

    won = path == winner
    good = tl.min(fine, axis=0) > 0
    tl.store(out_path + request, tl.where(good, winner, 0).to(tl.int64))
    tl.store(out_accepted + request, tl.where(good, tl.sum(tl.where(won, kept, 0), axis=0), 0).to(tl.int64))
    tl.store(out_token + request, tl.where(good, tl.sum(tl.where(won, token, 0), axis=0), -1))


def verify_key_race_logits(
    target_logits: Tensor,
    draft_logits: Tensor,
    temperatures: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    coin_uniforms: Tensor,
    choice_uniforms: Tensor,
    key_uniforms: Tensor,
    out: Workspace | None = None,
    laws: bool = False,
) -> Verdict:
    """Key race of K paths from logits: see `specbound.runtime.verifiers.key_race`.

    Args:
        target_logits [B, K, L+1, V], draft_logits [B, K, L, V], tokens [B, K, L] int64: paths that share a prefix hold
            the same rows there; the row is read from the first of them.
        lengths [B] int32: length of all the request's paths, 0..L; None for L.
        coin_uniforms [B, K, L], choice_uniforms [B, K]: of the block verification of each path.
        key_uniforms [B, K]: place of each path's key between its bounds.
        temperatures, out, laws: as for `verify_block_logits`.
    Returns:
        the verdict; accepted 0 and token -1 for a request with a row that is no law, or an unknown token, on any path.

    Raises:
        ValueError: wrong shape, dtype, device or layout.
    """
    out = paths_workspace(target_logits, draft_logits, out)
    requests, paths, length, vocab = out.shape
    lengths = out.lengths if lengths is None else lengths
    others = {
        "temperatures": (temperatures, (requests,)),
        "lengths": (lengths, (requests,)),
        "coin_uniforms": (coin_uniforms, (requests, paths, length)),
        "choice_uniforms": (choice_uniforms, (requests, paths)),
        "key_uniforms": (key_uniforms, (requests, paths)),
    }
    check_arguments(target_logits, draft_logits, tokens, others, out)
    if requests == 0:
        return out.verdict
    slots = {"PATHS": triton.next_power_of_2(paths), "DEPTHS": triton.next_power_of_2(length + 1)}
    compiled = out.constants | {"IS_LAW": laws, "DEPTHS": slots["DEPTHS"]}
    with torch.cuda.device_of(target_logits):
        begin_race[(requests * paths,)](
            temperatures, lengths, tokens, out.path_temperatures, out.path_lengths, out.nodes, paths, length,
            num_warps=1, **slots,
        )  # fmt: skip
        rows = (target_logits, draft_logits, out.path_temperatures, out.path_lengths)
        sum_rows(*rows, out, 0, length + 1, laws, shared=True)
        block_ratios[(requests * paths,)](
            *rows, out.nodes, out.chunk_max, out.chunk_sum, out.norms, tokens, coin_uniforms, out.valid, out.ratios,
            out.first, out.stop, length, vocab, out.chunks,
            CHUNKS=triton.next_power_of_2(out.chunks), num_warps=1, **compiled,
        )  # fmt: skip
        finish(*rows, coin_uniforms, choice_uniforms, out, laws, out.path_verdict, shared=True)
        end_race[(requests,)](
            target_logits, draft_logits, temperatures, lengths, out.nodes, out.norms, out.ratios, tokens, out.valid,
            out.path_verdict.accepted, out.path_verdict.token, key_uniforms,
            out.verdict.path, out.verdict.accepted, out.verdict.token, paths, length, vocab,
            PATHS=slots["PATHS"], num_warps=4, **compiled,
        )  # fmt: skip
    return out.verdict


def verify_key_race_laws(batch: Batch, generator: torch.Generator | None) -> Verdict:
    """The key race of probabilities, the uniforms drawn in the order of the tensor version's questions.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    requests, paths, length, _ = batch.shape
    target, draft, temperatures, tokens = law_arguments(batch)
    uniforms = uniforms_for(batch, generator)
    pairs = [(uniforms(requests, length), uniforms(requests)) for _ in range(paths)]
    coins, choice = (torch.stack(parts, dim=1) for parts in zip(*pairs, strict=True))
    keys = uniforms(requests, paths) if paths > 1 else torch.zeros_like(choice)
    return verify_key_race_logits(target, draft, temperatures, tokens, None, coins, choice, keys, laws=True)
