"""Buffers of the fused verifiers, and the checks on their arguments that need no look at the data.

B requests, K paths, W = B K, L drafted tokens, V vocabulary, C = ceil(V / BLOCK) chunks of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..verdict import Batch, Verdict
from . import DTYPES
from .histograms import SLOTS

BLOCK = 4096  # entries of a row per program
SPAN = 8  # chunks of BLOCK entries to a histogram, which takes 4 KiB: a 32nd of both rows of 32768 bfloat16 logits
TILE = 256  # entries at a time where a histogram is made
MOST_WALKS = 65535  # what a CUDA grid has room for in its second and third dimension


@dataclass(frozen=True)
class Workspace:
    """Everything a fused verifier writes, for one shape on one device; reuse it to allocate nothing.

    Attributes:
        verdict: path, accepted, token [B] int64, overwritten by every call.
        shape: (B, K, L, V).
        block: entries of a row per program; span: chunks of that many per histogram.
        dtype: of the arithmetic on rows, float32, or float64 for float64 logits.
        chunk_max, chunk_sum [W, 2, L+1, C]: per chunk of the target's and the draft's rows.
        norms [W, 2, L+1, 2] float64: largest logit and log of the sum of each row.
        masses [W, L+1, C]: residual mass per chunk.
        ratios [W, L+1] float64: acceptance ratios.
        first, stop, valid [W] int32: depths that still need residual masses; 0 where a row is no law.
        nodes [W, L+1] int32: the path, of all B K, that holds the rows of the node at each depth.
        lengths [B] int32: L everywhere, for calls without lengths.
        histograms [W, L, S, 2, 512], windows [W, L, S, 2] int32: of each node's S spans, see `histograms`.
        selection [B, L, 512]: law of the selected path over the draft's, at the knots of its nodes.
        path_nodes [W, L+1], path_lengths [W] int32, path_temperatures [W] float64: of each path, where `nodes` are
            those of the path that was selected; path_verdict: of each path in the race of keys.
        path_valid [W] int32, path_ratios [W, L+1], path_scores [W] float64, path_tables [W, L, 512]: of each path in
            the race of scores, as `valid`, `ratios` and `selection` of the winner, and its score.
    """

    verdict: Verdict
    shape: tuple[int, int, int, int]
    block: int
    span: int
    dtype: torch.dtype
    chunk_max: Tensor
    chunk_sum: Tensor
    norms: Tensor
    masses: Tensor
    ratios: Tensor
    first: Tensor
    stop: Tensor
    valid: Tensor
    nodes: Tensor
    lengths: Tensor
    histograms: Tensor
    windows: Tensor
    selection: Tensor
    path_nodes: Tensor
    path_temperatures: Tensor
    path_lengths: Tensor
    path_verdict: Verdict
    path_valid: Tensor
    path_ratios: Tensor
    path_scores: Tensor
    path_tables: Tensor

    @property
    def chunks(self) -> int:
        """C."""
        return -(-self.shape[3] // self.block)

    @property
    def spans(self) -> int:
        """S."""
        return -(-self.chunks // self.span)

    @property
    def tile(self) -> int:
        """Entries of a row at a time where a histogram is made: products of float64 numbers take the most room."""
        return min(self.block, TILE // 4 if self.dtype == torch.float64 else TILE)

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of every kernel that works on rows."""
        double = self.dtype == torch.float64
        return {"REAL": tl.float64 if double else tl.float32}


def workspace(
    requests: int,
    paths: int,
    length: int,
    vocab: int,
    device: torch.device | str,
    logits: torch.dtype = torch.bfloat16,
    block: int = BLOCK,
    span: int = SPAN,
) -> Workspace:
    """Allocate a `Workspace`.

    Args:
        requests, paths, length, vocab: B, K, L, V.
        logits: dtype of the logits.
        block: entries of a row per program, a power of two; span: chunks of that many per histogram.
    """
    block = min(block, max(16, triton.next_power_of_2(vocab)))
    chunks = -(-vocab // block)
    real = torch.float64 if logits == torch.float64 else torch.float32

    def empty(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def empty_verdict(count: int) -> Verdict:
        path, accepted, token = (empty(count, dtype=torch.int64) for _ in range(3))
        return Verdict(path, accepted, token)

    integer = torch.int32
    spans = -(-chunks // span)
    walks = requests * paths
    return Workspace(
        verdict=empty_verdict(requests),
        shape=(requests, paths, length, vocab),
        block=block,
        span=span,
        dtype=real,
        chunk_max=empty(walks, 2, length + 1, chunks, dtype=real),
        chunk_sum=empty(walks, 2, length + 1, chunks, dtype=real),
        norms=empty(walks, 2, length + 1, 2),
        masses=empty(walks, length + 1, chunks, dtype=real),
        ratios=empty(walks, length + 1),
        first=empty(walks, dtype=integer),
        stop=empty(walks, dtype=integer),
        valid=empty(walks, dtype=integer),
        nodes=torch.arange(walks, dtype=integer, device=device)[:, None].repeat(1, length + 1),
        lengths=empty(requests, dtype=integer).fill_(length),
        histograms=empty(walks, length, spans, 2, SLOTS.value, dtype=real),
        windows=empty(walks, length, spans, 2, dtype=integer),
        selection=empty(requests, length, SLOTS.value, dtype=real),
        path_nodes=empty(walks, length + 1, dtype=integer),
        path_temperatures=empty(walks),
        path_lengths=empty(walks, dtype=integer),
        path_verdict=empty_verdict(walks),
        path_valid=empty(walks, dtype=integer),
        path_ratios=empty(walks, length + 1),
        path_scores=empty(walks),
        path_tables=empty(walks, length, SLOTS.value, dtype=real),
    )


def check_arguments(
    target: Tensor, draft: Tensor, tokens: Tensor, others: dict[str, tuple[Tensor, tuple[int, ...]]], out: Workspace
) -> None:
    """Raise ValueError for a wrong shape, dtype, device or layout; values are not read (the device goes on).

    Args:
        target [B, K, L+1, V], draft [B, K, L, V], tokens [B, K, L]; others: name -> (tensor, its shape).
    """
    requests, paths, length, vocab = out.shape
    if requests * paths > MOST_WALKS:
        raise ValueError(f"draft_logits has B K = {requests * paths}; want at most {MOST_WALKS} paths in one call")
    wanted = {
        "target_logits": (target, (requests, paths, length + 1, vocab)),
        "draft_logits": (draft, (requests, paths, length, vocab)),
        "tokens": (tokens, (requests, paths, length)),
    } | others
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; want {shape} (paths before positions)")
        if tensor.device != target.device or tensor.device != out.valid.device:
            raise ValueError(f"{name} is on {tensor.device}; want {target.device}, as target_logits and out")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous; pass {name}.contiguous()")
    for name in ("target_logits", "draft_logits"):
        if wanted[name][0].dtype not in DTYPES:
            raise ValueError(f"{name} has dtype {wanted[name][0].dtype}; want bfloat16, float16, float32 or float64")
    if min(length, paths, vocab) < 1:
        raise ValueError(f"draft_logits has shape {tuple(draft.shape)}; K, L and V want at least 1")
    if tokens.dtype != torch.int64:
        raise ValueError(f"tokens has dtype {tokens.dtype}; want torch.int64")
    real = torch.float64 if torch.float64 in (target.dtype, draft.dtype) else torch.float32
    if real != out.dtype:
        raise ValueError(f"out computes in {out.dtype}, the logits want {real}; make it with their dtype")


def law_arguments(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch of probabilities as a kernel's target rows, draft rows, temperatures (all 1) and tokens."""
    temperatures = torch.ones(batch.shape[0], device=batch.draft_probs.device)
    return batch.target_probs.contiguous(), batch.draft_probs.contiguous(), temperatures, batch.tokens.contiguous()


def uniforms_for(batch: Batch, generator: torch.Generator | None) -> Callable[..., Tensor]:
    """Draws float64 uniforms of a given shape on the batch's device, as `Draws(generator)` does for its questions."""

    def uniforms(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, device=batch.draft_probs.device, generator=generator)

    return uniforms
