# mypy: disable-error-code="no-untyped-def"
"""The score race of K paths, from logits: each path works out the law of its score, the least score wins.

All rows are read once, as histograms of target/draft; the race is run on these alone, every path by a program of its
own down to its last token (`race_split` says what it does at a node). The rows of the winner are read once more where a
residual can matter. Six launches: `begin_race`, `row_histograms`, `race_walk`, `pick_winner`, and two of block
verification.

Letters: B requests, K paths, W = B K, L drafted tokens, V vocabulary; the rule and its letters as in
`specbound.runtime.verifiers.score_race`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Batch, Verdict
from .buffers import Workspace, check_arguments, law_arguments, uniforms_for
from .histograms import SLOTS, knot_of, knot_sizes, knots_at, log_ratio_of, window_at
from .passes import open_depths
from .race_split import EDGES, between, entry, go_to_token, law_of, over, score_at, split_node
from .rows import inverse_temperature, kernel, node_at, norms_of, read_row
from .single_path import finish
from .walk import keep_norms, paths_workspace, share_rows

BRACKETS = {torch.float64: (64, 7), torch.float32: (16, 2)}  # sections and rounds, as fine as `parts.roots`


@kernel
def race_walk(
    target,  # [B, K, L+1, V] logits or laws
    draft,  # [B, K, L, V]
    temperatures,  # [W] float64
    lengths,  # [W] int32
    tokens,  # [B, K, L] int64
    nodes,  # [W, L+1] int32
    chunk_max,  # [B K, 2, L+1, C]
    chunk_sum,  # [B K, 2, L+1, C]
    histograms,  # [B K, L, S, 2, SLOTS]
    windows,  # [B K, L, S, 2] int32
    norms,  # [B K, 2, L+1, 2] float64
    draws,  # [B, K] uniforms
    valid,  # [W] int32
    ratios,  # [W, L+1] float64
    tables,  # [W, L, SLOTS]
    scores,  # [W] float64
    length,  # L
    vocab,  # V
    chunks,  # C
    PATHS: tl.constexpr,  # K
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
    LAW: tl.constexpr,  # knots of a score's law, 2 + 3 L, rounded up to a power of 2
    CHUNKS: tl.constexpr,  # C, rounded up to a power of 2
    SPANS: tl.constexpr,  # S
    SPAN: tl.constexpr,  # chunks per histogram
    BLOCK: tl.constexpr,  # entries of a row per chunk
    TILE: tl.constexpr,  # entries at a time where a histogram was made
    SLACK: tl.constexpr,  # what rounding may leave
    SECTIONS: tl.constexpr,  # of the bracket of a cut in each round
    ROUNDS: tl.constexpr,
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """The score of a path, the law of its tokens if it wins, and the ratios of its block verification. Grid (W,)."""
    walk = tl.program_id(0)
    last = tl.load(lengths + walk)
    inverse = inverse_temperature(temperatures, walk, REAL)
    double = inverse.to(tl.float64)
    model, knot = tl.arange(0, 2), tl.arange(0, SLOTS)
    begin = tl.where(tl.arange(0, LAW) == 0, 0.0, 1.0).to(tl.float64)
    law = law_of(begin, begin, 2, PATHS, LAW)
    one = tl.max(begin, axis=0)
    state = one, one, one, one
    log_ratio = one - 1.0
    fine = last * 0 + 1
    tl.store(ratios + walk * (length + 1), one)
    for depth in range(DEPTHS):
        if depth < last:
            node = node_at(nodes, walk, depth, length)
            ratio, mass, octave, shift, log_sum = knots_at(
                histograms, windows, chunk_max, chunk_sum, temperatures, walk, node, depth, length, chunks,
                CHUNKS, SPANS, SPAN, REAL,
            )  # fmt: skip
            slots = (node * 2 + model) * (length + 1) + depth
            fine *= keep_norms(norms, slots, shift, log_sum, slots * 0 + node == walk)

            token = tl.load(tokens + walk.to(tl.int64) * length + depth)
            known = (token >= 0) & (token < vocab)
            fine *= known.to(tl.int32)
            token = tl.where(known, token, 0)
            ahead = read_row(target, node * (length + 1) + depth, token, vocab, IS_LAW, REAL)
            drawn = read_row(draft, node * length + depth, token, vocab, IS_LAW, REAL)
            centre, before = window_at(windows, node, depth, length, token // (SPAN * BLOCK), SPANS)
            tile = (token // TILE).to(tl.int32)
            near, part = knot_of(log_ratio_of(ahead, drawn, inverse), tile, centre, before, octave, REAL)
            logs = (tl.where(model == 0, ahead, drawn).to(tl.float64) - shift) * double - log_sum
            possible = drawn > float("-inf")
            own_log = tl.sum(tl.where(model == 0, logs, tl.where(possible, -logs, 0.0)), axis=0)
            own = tl.where(possible, tl.exp(own_log), 0.0)

            split, densities, bold = split_node(
                ratio, mass, law, state, last - depth - 1, PATHS, SLACK, SECTIONS, ROUNDS, SLOTS, LAW
            )
            tl.store(tables + (walk * length + depth).to(tl.int64) * SLOTS + knot, over(densities, state[2]))
            part = part.to(tl.float64)
            density = between(densities, near, part, SLOTS)
            here = over(density, state[2])
            step = tl.where(possible & (here > 0), own_log - tl.log(tl.where(here > 0, here, 1.0)), 0.0)
            log_ratio = tl.minimum(log_ratio + step, 0.0)
            tl.store(ratios + walk * (length + 1) + depth + 1, tl.exp(log_ratio))
            law, state = go_to_token(
                split, density, bold, law, 5 + 3 * depth, state, near, part, own, PATHS, SLOTS, LAW
            )

    node = node_at(nodes, walk, last, length)
    slots = node * 2 * (length + 1) + last + tl.arange(0, 1)
    shift, log_sum = norms_of(chunk_max, chunk_sum, temperatures, walk, slots, slots >= 0, chunks, CHUNKS, REAL)
    fine *= keep_norms(norms, slots, shift, log_sum, slots * 0 + node == walk)
    tl.store(valid + walk, fine)
    uniform = tl.load(draws + walk).to(tl.float64) + tl.zeros([EDGES], tl.float64)
    tl.store(scores + walk, entry(score_at(uniform, law), 0, EDGES))


@kernel
def pick_winner(
    lengths,  # [B] int32
    coins,  # [B, L] uniforms
    path_nodes,  # [W, L+1] int32
    path_valid,  # [W] int32
    path_ratios,  # [W, L+1] float64
    tables,  # [W, L, SLOTS]
    scores,  # [W] float64
    nodes,  # [W, L+1] int32
    valid,  # [W] int32
    ratios,  # [W, L+1] float64
    selection,  # [B, L, SLOTS]
    first,  # [W] int32
    stop,  # [W] int32
    out_path,  # [B] int64
    paths,  # K
    length,  # L
    PATHS: tl.constexpr,  # K, rounded up to a power of 2
    DEPTHS: tl.constexpr,  # L + 1, rounded up to a power of 2
):
    """The path of the least score becomes the request's walk: its nodes, ratios and law. Grid (L, B)."""
    depth, request = tl.program_id(0), tl.program_id(1)
    path, knot, place = tl.arange(0, PATHS), tl.arange(0, SLOTS), tl.arange(0, DEPTHS)
    walks, there = request * paths + path, path < paths
    score = tl.load(scores + walks, mask=there, other=float("inf"))
    winner = tl.min(tl.where(there & (score == tl.min(score, axis=0)), path, paths - 1), axis=0)
    walk = request * paths + winner
    if depth < tl.load(lengths + request):
        row = tl.load(tables + (walk * length + depth).to(tl.int64) * SLOTS + knot)
        tl.store(selection + (request * length + depth).to(tl.int64) * SLOTS + knot, row)
    if depth == 0:
        inside = place <= length
        ratio = tl.load(path_ratios + walk * (length + 1) + place, mask=place <= tl.load(lengths + request), other=0.0)
        node = tl.load(path_nodes + walk * (length + 1) + place, mask=inside, other=0)
        tl.store(ratios + request * (length + 1) + place, ratio, mask=inside)
        tl.store(nodes + request * (length + 1) + place, node, mask=inside)
        fine = tl.min(tl.load(path_valid + walks, mask=there, other=1), axis=0)
        tl.store(valid + request, fine)
        tl.store(out_path + request, tl.where(fine > 0, winner, 0).to(tl.int64))
        open_depths(lengths, coins, ratio, first, stop, request, place, length)


def verify_score_race_logits(
    target_logits: Tensor,
    draft_logits: Tensor,
    temperatures: Tensor,
    tokens: Tensor,
    lengths: Tensor | None,
    score_uniforms: Tensor,
    coin_uniforms: Tensor,
    choice_uniforms: Tensor,
    out: Workspace | None = None,
    laws: bool = False,
) -> Verdict:
    """The score race of K paths from logits: see `specbound.runtime.verifiers.score_race`, rule "safe".

    Args:
        target_logits [B, K, L+1, V], draft_logits [B, K, L, V], tokens [B, K, L] int64: paths that share a prefix hold
            the same rows there; the row is read from the first of them.
        lengths [B] int32: length of all the request's paths, 0..L; None for L.
        score_uniforms [B, K]: each path's score is where its law reaches its uniform.
        coin_uniforms [B, L], choice_uniforms [B]: of the block verification of the winner.
        temperatures, out, laws: as for `verify_block_logits`.
    Returns:
        the verdict; accepted 0 and token -1 for a request with a row that is no law, or an unknown token, on any path.

    Raises:
        ValueError: wrong shape, dtype, device or layout.
    """
    out = paths_workspace(target_logits, draft_logits, out)
    requests, paths, length, _ = out.shape
    lengths = out.lengths if lengths is None else lengths
    others = {
        "temperatures": (temperatures, (requests,)),
        "lengths": (lengths, (requests,)),
        "score_uniforms": (score_uniforms, (requests, paths)),
        "coin_uniforms": (coin_uniforms, (requests, length)),
        "choice_uniforms": (choice_uniforms, (requests,)),
    }
    check_arguments(target_logits, draft_logits, tokens, others, out)
    if requests == 0:
        return out.verdict
    with torch.cuda.device_of(target_logits):
        run_race(target_logits, draft_logits, temperatures, tokens, lengths, score_uniforms, out, laws)
        pick_winner[(length, requests)](
            lengths, coin_uniforms, out.path_nodes, out.path_valid, out.path_ratios, out.path_tables, out.path_scores,
            out.nodes, out.valid, out.ratios, out.selection, out.first, out.stop, out.verdict.path, paths, length,
            PATHS=triton.next_power_of_2(paths), DEPTHS=triton.next_power_of_2(length + 1), num_warps=1,
        )  # fmt: skip
        rows = (target_logits, draft_logits, temperatures, lengths)
        finish(*rows, coin_uniforms, choice_uniforms, out, laws, out.verdict, selected=1)
    return out.verdict


def run_race(
    target: Tensor,
    draft: Tensor,
    temperatures: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    uniforms: Tensor,
    out: Workspace,
    laws: bool,
) -> None:
    """Every path's score, law, ratios and nodes, into the buffers `path_..` of `out`: three launches."""
    requests, paths, length, vocab = out.shape
    share_rows(target, draft, temperatures, tokens, lengths, out, laws)
    sections, rounds = BRACKETS[out.dtype]
    race_walk[(requests * paths,)](
        target, draft, out.path_temperatures, out.path_lengths, tokens, out.path_nodes, out.chunk_max, out.chunk_sum,
        out.histograms, out.windows, out.norms, uniforms, out.path_valid, out.path_ratios, out.path_tables,
        out.path_scores, length, vocab, out.chunks,
        PATHS=paths, DEPTHS=triton.next_power_of_2(length + 1), LAW=triton.next_power_of_2(2 + 3 * length),
        BLOCK=out.block, TILE=out.tile, SLACK=8 * torch.finfo(out.dtype).eps, SECTIONS=sections, ROUNDS=rounds,
        IS_LAW=laws, num_warps=8, **knot_sizes(out), **out.constants,
    )  # fmt: skip


def verify_score_race_laws(batch: Batch, generator: torch.Generator | None) -> Verdict:
    """The score race of probabilities, the uniforms drawn in the order of the tensor version's questions.

    Raises:
        ValueError: wrong shape, dtype or device.
    """
    requests, paths, length, _ = batch.shape
    target, draft, temperatures, tokens = law_arguments(batch)
    uniforms = uniforms_for(batch, generator)
    scores = uniforms(requests, paths) if paths > 1 else torch.zeros_like(temperatures)[:, None].double()
    coins, choice = uniforms(requests, length), uniforms(requests)
    return verify_score_race_logits(target, draft, temperatures, tokens, None, scores, coins, choice, laws=True)
