# mypy: disable-error-code="no-untyped-def"
"""Two-level verification of K paths, from logits: a walk down the selected path, then its block verification.

The walk is one program per request and sees histograms: at a node it finds the success mass b, the levels of the knots,
and the path whose coin comes up first; the level of a token lies between those of its knots. Each round of the search
looks at 16 values of b at once and narrows its bracket 16-fold, to 2^-16 for float32 arithmetic and 2^-32 for float64;
in the last bracket the sum counts as linear. Only the acceptance length depends on b, the output law does not.

Letters: B requests, K paths, L drafted tokens, V vocabulary, C chunks, S spans; p target, q draft, c acceptance ratio;
level, k1, k2 and count as in `specbound.runtime.verifiers.two_level`, whose rule this is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Batch, Verdict
from .buffers import Workspace, law_arguments, uniforms_for
from .histograms import KNOTS, SLOTS, knots_at
from .passes import first_above
from .rows import kernel, node_at
from .walk import end_walk, keep_norms, next_ratio, offered_tokens, shifted, verify_by_walk


@triton.jit
def densities(counts, fails, PATHS: tl.constexpr):
    """Selected law over draft law at level 1 and at level 0, when coins fail with draft mass x, float64:

    k1 = sum_n count_n (1 + x + .. + x^(n-1)),   k2 = sum_n count_n x^(n-1)
    """
    path = tl.arange(0, PATHS)
    high = fails * 0.0
    low = high
    at_least = tl.sum(counts * 0.0, axis=0)
    for i in range(PATHS):
        term = tl.sum(tl.where(path == PATHS - 1 - i, counts, 0.0), axis=0)
        at_least += term
        high = high * fails + at_least
        low = low * fails + term
    return high, low


@triton.jit
def clipped_excess(lifted, mass, counts, success, SLACK: tl.constexpr, PATHS: tl.constexpr):
    """sum_y q clip(c p/q, k2(b), k1(b)) - 1, less what rounding may leave, for each b of `success` [16].

    SLACK of it. (A constant near 1 would itself be rounded to float32.)
    """
    most, least = densities(counts, 1.0 - success, PATHS)
    clipped = tl.minimum(tl.maximum(lifted[None, :], least[:, None]), most[:, None])
    return tl.sum(clipped * mass[None, :], axis=1) - 1.0 - SLACK


@triton.jit
def success_mass(lifted, mass, counts, ROUNDS: tl.constexpr, SLACK: tl.constexpr, PATHS: tl.constexpr):
    """The smallest b in [0, 1] whose clipped law sums to at most 1, where coins fail with mass 1 - b."""
    trial = tl.arange(0, 16)
    low = tl.sum(counts * 0.0, axis=0)
    high = low + 1.0
    for _ in range(ROUNDS):
        excess = clipped_excess(lifted, mass, counts, low + (high - low) * (trial + 1) / 16, SLACK, PATHS)
        found = tl.min(tl.where((excess <= 0) | (trial == 15), trial, 15), axis=0)
        width = (high - low) / 16
        high = tl.where(found == 15, high, low + width * (found + 1))
        low = low + width * found
    excess = clipped_excess(lifted, mass, counts, tl.where(trial == 0, low, high), SLACK, PATHS)
    left = tl.sum(tl.where(trial == 0, excess, 0.0), axis=0)
    right = tl.sum(tl.where(trial == 1, excess, 0.0), axis=0)
    part = tl.where(left > 0, left / tl.where(left > right, left - right, 1.0), 0.0)
    return low + (high - low) * tl.where(right > 0, 1.0, part)


@triton.jit
def level_of(lifted, high, low):
    """clip((c p/q - k2) / (k1 - k2)) to [0, 1]; 0 where k1 = k2."""
    span = tl.where(high > low, high - low, 1.0)
    return tl.where(high > low, tl.minimum(tl.maximum((lifted - low) / span, 0.0), 1.0), 0.0)


@triton.jit
def between(table, knot, part):
    """A table over the knots at places `part` of the way from `knot` to the next."""
    low = tl.gather(table, knot, 0)
    return low + part * (tl.gather(table, knot + 1, 0) - low)


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
def coin_weights(level, arrived, PATHS: tl.constexpr):
    """Law of the selected path, not normalised: the first that arrived whose coin comes up, else the first of them.

    The K coins are one draw: path k has weight level_k prod_{j < k} (1 - level_j).
    """
    path = tl.arange(0, PATHS)
    none_so_far = tl.cumprod(tl.where(arrived, 1.0 - level, 1.0), axis=0)
    none_before = tl.where(path > 0, tl.gather(none_so_far, tl.maximum(path - 1, 0), 0), 1.0)
    first = tl.min(tl.where(arrived, path, PATHS - 1), axis=0)
    none = tl.min(none_so_far, axis=0)
    return tl.where(arrived, none_before * level, 0.0) + tl.where(path == first, none, 0.0)


@kernel
def walk_by_levels(
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
    select,  # [B, L] uniforms
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
    ROUNDS: tl.constexpr,  # of the search for the success mass
    SLACK: tl.constexpr,  # of the sum of a law
    IS_LAW: tl.constexpr,  # rows are laws, not logits
    REAL: tl.constexpr,  # dtype of the arithmetic
):
    """Down the first path whose coin comes up at each node, or the first one there if none does. Grid (B,)."""
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
        grid, mass, octave, shift, log_sum = knots_at(
            histograms, windows, chunk_max, chunk_sum, temperatures, request, node, depth, length, chunks,
            CHUNKS, SPANS, SPAN, REAL,
        )  # fmt: skip
        slots = (node * 2 + tl.arange(0, 2)) * (length + 1) + depth
        fine = fine * keep_norms(norms, slots, shift, log_sum, slots >= 0)
        lifted = ratio * grid
        success = success_mass(lifted, mass, counts, ROUNDS, SLACK, PATHS)
        most, least = densities(counts, 1.0 - success, PATHS)
        level = level_of(lifted, most, least)
        fails = tl.minimum(tl.maximum(tl.sum(mass * (1.0 - level), axis=0), 0.0), 1.0)
        most, least = densities(counts, fails, PATHS)
        law = selection + (request * length + depth).to(tl.int64) * SLOTS + index
        tl.store(law, least + level * (most - least), mask=index <= KNOTS)

        token, known, knot, part, target_law, draft_law = offered_tokens(
            target, draft, tokens, windows, temperatures, request, node, depth, paths, length, vocab,
            octave, shift, log_sum, path, SPANS, SPAN, BLOCK, TILE, IS_LAW, REAL,
        )  # fmt: skip
        fine = fine * known
        offered = between(level, knot, part)
        weights = coin_weights(offered, arrived, PATHS)
        goal = tl.load(select + request * length + depth).to(tl.float64) * tl.sum(weights, axis=0)
        chosen_index = first_above(weights, goal, PATHS)
        chosen = path == chosen_index
        chosen_level = tl.sum(tl.where(chosen, offered, 0.0), axis=0)
        drafted = tl.sum(tl.where(chosen, draft_law, 0.0), axis=0)
        wanted = tl.sum(tl.where(chosen, target_law, 0.0), axis=0)
        ratio = next_ratio(ratio, wanted, drafted * (least + chosen_level * (most - least)))
        counts = count_below(counts, chosen_level, drafted, fails, most, least, PATHS)
        arrived = arrived & (token == tl.sum(tl.where(chosen, token, 0), axis=0))
        depth += 1
        node = node_at(path_nodes, request * paths + chosen_index, depth, length)
        walk_nodes = tl.where(places == depth, node, walk_nodes)
        walk_ratios = tl.where(places == depth, ratio, walk_ratios)
    end_walk(
        norms, chunk_max, chunk_sum, temperatures, lengths, coins, nodes, ratios, first, stop, valid, chosen_path,
        request, node, walk_nodes, walk_ratios, chosen_index, fine, places, length, chunks, CHUNKS, REAL,
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
    requests, _, length = tokens.shape
    real = torch.promote_types(target_logits.dtype, draft_logits.dtype)
    rounds, precision = (8, torch.float64) if real == torch.float64 else (4, torch.float32)
    return verify_by_walk(
        target_logits, draft_logits, temperatures, tokens, lengths, coin_uniforms, choice_uniforms, out, laws,
        rule=walk_by_levels,
        selected=1,
        others={"select_uniforms": (select_uniforms, (requests, length))},
        ROUNDS=rounds,
        SLACK=8 * torch.finfo(precision).eps,
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
