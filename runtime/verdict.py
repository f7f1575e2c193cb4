"""What a verifier reads and what it returns.

B independent requests, K drafted paths, L drafted tokens per path, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .carry import Carry

ROW_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Batch:
    """Drafted paths with both models' rows along them.

    Attributes:
        tokens [B, K, L] int64: path k is one draft, drawn token by token from `draft_probs`; paths of a request
            are independent.
        draft_probs [B, K, L, V]: row i is the draft law from which token i of the path was drawn.
        target_probs [B, K, L+1, V]: the target law at the same places, and after the whole path.
        carry: what a stateful verifier returned for the same requests last time; None at the start.
        draft_after [B, K, V]: the draft's row after each whole path, for verifiers that declare `reads_after`; or a
            function that gives it, asked only if it is needed; or None.

    Probabilities may have any float dtype; arithmetic is in float32, or float64 if they are float64.
    """

    tokens: Tensor
    draft_probs: Tensor
    target_probs: Tensor
    carry: Carry | None = None
    draft_after: Tensor | Callable[[], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, K, L, V)."""
        requests, paths, length, vocab = self.draft_probs.shape
        return requests, paths, length, vocab

    def validate(self) -> None:
        """Check shapes, devices, dtypes and rows (reads every row and synchronises with the device).

        Raises:
            ValueError: naming the argument, its value and what is wanted.
        """
        if self.draft_probs.ndim != 4:
            raise ValueError(f"draft_probs has shape {tuple(self.draft_probs.shape)}; want [B, K, L, V]")
        requests, paths, length, vocab = self.draft_probs.shape
        if min(paths, length, vocab) < 1:
            raise ValueError(f"draft_probs has shape {tuple(self.draft_probs.shape)}; K, L and V want at least 1")
        for name, wanted, letters in (
            ("tokens", (requests, paths, length), "[B, K, L]"),
            ("target_probs", (requests, paths, length + 1, vocab), "[B, K, L+1, V]"),
        ):
            shape = tuple(getattr(self, name).shape)
            if shape != wanted:
                raise ValueError(f"{name} has shape {shape}; want {wanted} = {letters}")
        if self.tokens.dtype != torch.int64:
            raise ValueError(f"tokens has dtype {self.tokens.dtype}; want torch.int64")
        for name in ("tokens", "target_probs"):
            device = getattr(self, name).device
            if device != self.draft_probs.device:
                raise ValueError(f"{name} is on {device}, draft_probs on {self.draft_probs.device}; want one device")
        _check_dense("tokens", self.tokens)
        if self.tokens.numel() and not bool(((self.tokens >= 0) & (self.tokens < vocab)).all()):
            raise ValueError(f"tokens lie in {self.tokens.min()}..{self.tokens.max()}; want 0..{vocab - 1}")
        validate_rows("draft_probs", self.draft_probs)
        validate_rows("target_probs", self.target_probs)


@dataclass(frozen=True)
class Verdict:
    """Which path won, how many of its tokens are kept, and the token that follows them.

    Attributes:
        path [B] int64: index of the winning path.
        accepted [B] int64: tokens kept, 0..L (the acceptance length; the token below is not counted).
        token [B] int64: the correction, or the bonus token if all L were kept.
        carry: state of a stateful verifier for the next call; None for stateless ones.
    """

    path: Tensor
    accepted: Tensor
    token: Tensor
    carry: Carry | None = None


def validate_rows(name: str, rows: Tensor) -> None:
    """Raise ValueError unless every row (last axis) is a probability law, to the tolerance of its dtype.

    Tolerances on the sum: 1e-6 float64, 1e-3 float32, 1e-2 float16, 5e-2 bfloat16.
    """
    _check_dense(name, rows)
    if rows.dtype not in ROW_TOLERANCE:
        raise ValueError(f"{name} has dtype {rows.dtype}; want a float dtype")
    if rows.numel() == 0:
        return
    sums = rows.sum(dim=-1, dtype=arithmetic_dtype(rows))
    smallest = rows.amin()
    if not bool(torch.isfinite(sums).all()):
        raise ValueError(f"{name} has a row with NaN or infinite entries; want probabilities")
    if bool(smallest < 0):
        raise ValueError(f"{name} has the negative entry {smallest.item():g}; want probabilities")
    worst = (sums - 1).abs().max().item()
    if worst > ROW_TOLERANCE[rows.dtype]:
        raise ValueError(
            f"{name} has a row whose sum is {worst:.3g} away from 1 (tolerance {ROW_TOLERANCE[rows.dtype]:g} "
            f"for {rows.dtype}); normalise the rows, e.g. with torch.softmax"
        )


def _check_dense(name: str, tensor: Tensor) -> None:
    if tensor.device.type == "meta" or tensor.layout != torch.strided:
        raise ValueError(f"{name} is a {tensor.layout} tensor on {tensor.device}; want a dense one that holds numbers")


def arithmetic_dtype(probs: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for every other float dtype."""
    return torch.float64 if probs.dtype == torch.float64 else torch.float32


def arithmetic(batch: Batch) -> torch.dtype:
    """The dtype a verifier computes in: float64 if an input is float64, else float32."""
    return torch.promote_types(arithmetic_dtype(batch.draft_probs), arithmetic_dtype(batch.target_probs))
