# mypy: disable-error-code="no-untyped-def"
"""Block and token verification of one path, from logits, in four launches: `row_masses`, the rule, `surplus_masses`,
`emit_verdict`.

B requests, L drafted tokens, V vocabulary. `passes` says what is read when. Token verification reads one row of each
model twice; block verification the rows from the longest prefix of ratio 1, which is always kept, to the longest one
whose coin is below its ratio, and none if the whole draft is kept.
Source: [BV] arXiv:2403.10444, Algorithm 2; Leviathan et al. 2023, arXiv:2211.17192, Algorithm 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Batch, Verdict
from .buffers import Workspace, check_arguments, law_arguments, uniforms_for, workspace
from .passes import emit_verdict, open_depths, surplus_masses
from .rows import inverse_temperature, kernel, norms_of, read_row, row_masses, store_norms


@triton.jit
def log_law_at(
    rows, row, token, norms, slot, mask, inverse, vocab,
    IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Logarithm of the law of `row` at `token`, float64; tensors of one shape, -inf where masked."""
    entries = read_row(rows, row, tl.where(mask, token, vocab), vocab, IS_LAW, REAL).to(tl.float64)
    largest = tl.load(norms + 2 * slot, mask=mask, other=0.0)
    return (entries - largest) * inverse - tl.load(norms + 2 * slot + 1, mask=mask, other=0.0)


@triton.jit
def log_steps(
    target, draft, temperatures, lengths, nodes, chunk_max, chunk_sum, norms, tokens, valid,
    walk, depth, length, vocab, chunks,
    CHUNKS: tl.constexpr, IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """log target(x) - log draft(x) of the drafted tokens at `depth`; 0 where the draft cannot have drawn x.

    Stores the norms of the rows that the walk holds. A row without a law, or a token outside the vocabulary, makes the
    walk invalid.
    """
    last = tl.load(lengths + walk)
    drafted, reached = depth < last, depth <= last
    token = tl.load(tokens + walk.to(tl.int64) * length + depth, mask=drafted, other=0)
    known = (token >= 0) & (token < vocab)
    if tl.sum((drafted & ~known).to(tl.int32), axis=0) > 0:
        tl.store(valid + walk, 0)
    mask = drafted & known
    node = tl.load(nodes + walk * (length + 1) + depth, mask=reached, other=0).to(tl.int64)
    mine = node == walk
    inverse = inverse_temperature(temperatures, walk, REAL).to(tl.float64)

    slots = node * 2 * (length + 1) + depth
    shift, log_sum = norms_of(chunk_max, chunk_sum, temperatures, walk, slots, reached, chunks, CHUNKS, REAL)
    store_norms(norms, slots, shift, log_sum, reached & mine, valid, walk)
    place = tl.where(mask, token, vocab)
    ahead = read_row(target, node * (length + 1) + depth, place, vocab, IS_LAW, REAL).to(tl.float64)
    target_log = (ahead - shift) * inverse - log_sum

    slots += length + 1
    shift, log_sum = norms_of(chunk_max, chunk_sum, temperatures, walk, slots, drafted, chunks, CHUNKS, REAL)
    store_norms(norms, slots, shift, log_sum, drafted & mine, valid, walk)
    drawn = read_row(draft, node * length + depth, place, vocab, IS_LAW, REAL).to(tl.float64)
    draft_log = (drawn - shift) * inverse - log_sum
    possible = mask & (draft_log > float("-inf"))
    return tl.where(possible, target_log - tl.where(possible, draft_log, 0.0), 0.0)


@kernel
def block_ratios(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    chunk_max,  # [B K, 2, L+1, C]
    chunk_sum,  # [B K, 2, L+1, C]
    norms,  # [B K, 2, L+1, 2] float64
    tokens,  # [B, K, L] int64
    coins,  # [W, L] uniforms
    valid,  # [W] int32
    ratios,  # [W, L+1] float64
    first,  # [W] int32
    stop,  # [W] int32
    length,  # L
    vocab,  # V
    chunks,  # C
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """c_i = min(1, c_{i-1} target(x_i)/draft(x_i)), and the depths whose residual mass can matter. Grid (W,)."""
    walk = tl.program_id(0)
    depth = tl.arange(0, DEPTHS)
    steps = log_steps(
        target, draft, temperatures, lengths, nodes, chunk_max, chunk_sum, norms, tokens, valid,
        walk, depth, length, vocab, chunks, CHUNKS, IS_LAW, REAL,
    )  # fmt: skip
    log_ratios = tl.full([DEPTHS], 0.0, tl.float64)
    ratio = tl.sum(log_ratios, axis=0)
    for i in range(DEPTHS - 1):
        ratio = tl.minimum(ratio + tl.sum(tl.where(depth == i, steps, 0.0), axis=0), 0.0)
        log_ratios = tl.where(depth == i + 1, ratio, log_ratios)
    tl.store(ratios + walk * (length + 1) + depth, tl.exp(log_ratios), mask=depth <= length)

    open_depths(lengths, coins, tl.exp(log_ratios), first, stop, walk, depth, length)


@kernel
def token_acceptance(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float
    lengths,  # [W] int32
    nodes,  # [W, L+1] int32
    chunk_max,  # [B K, 2, L+1, C]
    chunk_sum,  # [B K, 2, L+1, C]
    norms,  # [B K, 2, L+1, 2] float64
    tokens,  # [B, K, L] int64
    coins,  # [W, L] uniforms
    valid,  # [W] int32
    ratios,  # [W, L+1] float64
    first,  # [W] int32
    stop,  # [W] int32
    length,  # L
    vocab,  # V
    chunks,  # C
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Tokens kept until the first coin at or above min(1, target/draft); the residual there has scale 1. Grid (W,)."""
    walk = tl.program_id(0)
    depth = tl.arange(0, DEPTHS)
    steps = log_steps(
        target, draft, temperatures, lengths, nodes, chunk_max, chunk_sum, norms, tokens, valid,
        walk, depth, length, vocab, chunks, CHUNKS, IS_LAW, REAL,
    )  # fmt: skip
    last = tl.load(lengths + walk)
    drafted = depth < last
    coin = tl.load(coins + walk * length + depth, mask=drafted, other=0.0).to(tl.float64)
    kept = tl.min(tl.where(drafted & (coin >= tl.exp(steps)), depth, last), axis=0)
    tl.store(ratios + walk * (length + 1) + depth, tl.full([DEPTHS], 1.0, tl.float64), mask=depth <= length)
    tl.store(first + walk, kept)
    tl.store(stop + walk, tl.minimum(kept + 1, last))


def verify_block_logits(
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
    """Block verification from logits: softmax at each request's temperature, ratios, residuals and the draw.

    At least i tokens are kept if the i-th uniform is below h_i (see `specbound.runtime.verifiers.block`); the token is
    the first in vocabulary order whose cumulative weight exceeds the choice uniform times the total.

    Args:
        target_logits [B, L+1, V], draft_logits [B, L, V]: bfloat16, float16, float32 or float64 (then the arithmetic
            is in float64, else in float32), contiguous; -inf has probability 0. Rows behind a request's length are
            not read.
        temperatures [B]: float; 0 means uniform over the largest logits.
        tokens [B, L] int64.
        lengths [B] int32: drafted tokens of each request, 0..L; None for L.
        coin_uniforms [B, L], choice_uniforms [B]: in [0, 1), float64 (a float32 uniform cannot reach rare tokens).
        out: buffers, whose verdict is overwritten and returned; with it a call allocates nothing and may be captured
            in a CUDA graph.
        laws: the rows are probabilities, not logits; they need not be normalised.
    Returns:
        the verdict, path 0. Values are not checked on the way, which would wait for the device: a request with a row
        without a finite logit, a NaN or a token outside 0..V-1 gets accepted 0 and token -1.

    Raises:
        ValueError: wrong shape, dtype, device or layout.
    """
    arguments = (target_logits, draft_logits, temperatures, tokens, lengths, coin_uniforms, choice_uniforms)
    return _verify("block", *arguments, out, laws)


def verify_token_logits(
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
    """Token verification from logits: token i is kept, after all before it, if its uniform is below target/draft.

    Arguments, result and errors as for `verify_block_logits`.
    """
    arguments = (target_logits, draft_logits, temperatures, tokens, lengths, coin_uniforms, choice_uniforms)
    return _verify("token", *arguments, out, laws)


def verify_block_laws(batch: Batch, generator: torch.Generator | None) -> Verdict:
    """Block verification of probabilities, the uniforms drawn in the order of the tensor version's questions.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    return _verify_laws("block", batch, generator)


def verify_token_laws(batch: Batch, generator: torch.Generator | None) -> Verdict:
    """Token verification of probabilities, the uniforms drawn in the order of the tensor version's questions.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    return _verify_laws("token", batch, generator)


def _verify_laws(rule: str, batch: Batch, generator: torch.Generator | None) -> Verdict:
    requests, _, length, _ = batch.shape
    target, draft, temperatures, tokens = law_arguments(batch)
    uniforms = uniforms_for(batch, generator)
    coins, choice = uniforms(requests, length), uniforms(requests)
    return _verify(
        rule, target[:, 0], draft[:, 0], temperatures, tokens[:, 0], None, coins, choice, out=None, laws=True
    )


def _verify(
    rule: str,
    target: Tensor,
    draft: Tensor,
    temperatures: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    coins: Tensor,
    choice: Tensor,
    out: Workspace | None,
    laws: bool,
) -> Verdict:
    if draft.ndim != 3:
        raise ValueError(f"draft_logits has shape {tuple(draft.shape)}; want [B, L, V]")
    requests, length, vocab = draft.shape
    if out is None:
        out = workspace(requests, 1, length, vocab, draft.device, torch.promote_types(target.dtype, draft.dtype))
    lengths = out.lengths if lengths is None else lengths
    others = {
        "temperatures": (temperatures, (requests,)),
        "lengths": (lengths, (requests,)),
        "coin_uniforms": (coins, (requests, length)),
        "choice_uniforms": (choice, (requests,)),
    }
    check_arguments(target.unsqueeze(1), draft.unsqueeze(1), tokens.unsqueeze(1), others, out)
    if requests == 0:
        return out.verdict
    compiled = out.constants | {"IS_LAW": laws}
    with torch.cuda.device_of(target):
        rows = (target, draft, temperatures, lengths)
        sum_rows(*rows, out, 0, length + 1, laws)
        sizes = {"DEPTHS": triton.next_power_of_2(length + 1), "CHUNKS": triton.next_power_of_2(out.chunks)}
        given = (
            *rows, out.nodes, out.chunk_max, out.chunk_sum, out.norms, tokens, coins, out.valid, out.ratios,
            out.first, out.stop, length, vocab, out.chunks,
        )  # fmt: skip
        if rule == "block":
            block_ratios[(requests,)](*given, num_warps=1, **sizes, **compiled)
        else:
            token_acceptance[(requests,)](*given, num_warps=1, **sizes, **compiled)
        finish(target, draft, temperatures, lengths, coins, choice, out, laws, out.verdict, decided=rule == "token")
    return out.verdict


def sum_rows(
    target: Tensor,
    draft: Tensor,
    temperatures: Tensor,
    lengths: Tensor,
    out: Workspace,
    start: int,
    depths: int,
    laws: bool,
    shared: bool = False,
) -> None:
    """Fill `chunk_max` and `chunk_sum` of the rows at `depths` depths from `start`; one walk per length."""
    walks, (_, _, length, vocab) = len(lengths), out.shape
    row_masses[(out.chunks, 2 * depths, walks)](
        target, draft, temperatures, lengths, out.nodes, out.valid, out.chunk_max, out.chunk_sum,
        start, length, vocab, out.chunks,
        BLOCK=out.block, SHARED=shared, IS_LAW=laws, num_warps=8, **out.constants,
    )  # fmt: skip


def finish(
    target: Tensor,
    draft: Tensor,
    temperatures: Tensor,
    lengths: Tensor,
    coins: Tensor,
    choice: Tensor,
    out: Workspace,
    laws: bool,
    verdict: Verdict,
    decided: bool = False,
    selected: int = 0,
    shared: bool = False,
) -> None:
    """Residual masses where they matter, then the verdict of each walk; one walk per length.

    Args:
        decided: `out.first` is the accepted length; selected: see `surplus`; shared: walks share nodes.
    """
    walks, (_, paths, length, vocab) = len(lengths), out.shape
    compiled = out.constants | {"SELECTED": selected, "IS_LAW": laws, "BLOCK": out.block}
    compiled |= {"SPANS": out.spans, "SPAN": out.span, "TILE": out.tile}
    rows = (out.norms, out.ratios, out.selection, out.windows, out.first, out.stop)
    surplus_masses[(out.chunks, 1 if decided else length, walks)](
        target, draft, temperatures, out.nodes, *rows, out.masses, paths, length, vocab, out.chunks,
        PATHS=triton.next_power_of_2(paths), SHARED=shared, num_warps=8, **compiled,
    )  # fmt: skip
    emit_verdict[(walks,)](
        target, draft, temperatures, lengths, out.nodes, out.chunk_max, out.chunk_sum, *rows, out.valid, out.masses,
        coins, choice, verdict.path, verdict.accepted, verdict.token, paths, length, vocab, out.chunks,
        DECIDED=decided, DEPTHS=triton.next_power_of_2(length + 1), CHUNKS=triton.next_power_of_2(out.chunks),
        num_warps=8, **compiled,
    )  # fmt: skip
