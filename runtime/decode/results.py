"""What a generation hands back: sequences, what happened in every call, and how likely the target finds the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .rows import left_padded


@dataclass(frozen=True)
class Statistics:
    """What happened in each of the C calls; entries of rows that were already finished are False in `active`.

    Attributes:
        start [C, B] int64: known tokens of the row when the call began (padding left out).
        drafted [C, B] int64: length of the row's drafts.
        accepted [C, B] int64: drafted tokens kept by the verdict.
        path [C, B] int64: the winning path.
        emitted [C, B] int64: tokens that entered the output, accepted + 1 unless the row ended inside the block.
        active [C, B] bool.
        paths: K.
        seconds: wall time of "prefill" (of prompts that could not be fed with the first drafts), "draft", "target",
            "verify" and "overhead" (everything else).
        interrupted: generation was stopped by KeyboardInterrupt.
        verification: what verified, "kernels" or "tensor" (see `specbound.runtime.kernels`).
        rows_after: further passes of the draft, for verifiers that ask for its row after the whole path.
    """

    start: Tensor
    drafted: Tensor
    accepted: Tensor
    path: Tensor
    emitted: Tensor
    active: Tensor
    paths: int
    seconds: dict[str, float]
    interrupted: bool = False
    verification: str = "tensor"
    rows_after: int = 0

    @property
    def calls(self) -> int:
        """Target passes over drafts, summed over the rows they served."""
        return int(self.active.sum())

    @property
    def discarded(self) -> int:
        """Drafted tokens that were not kept, over all paths and calls."""
        return int((self.drafted * self.paths - self.accepted)[self.active].sum())

    @property
    def block_efficiency(self) -> float:
        """Mean of accepted + 1 over all calls: tokens per target call, before rows are cut at their end."""
        return float((self.accepted + 1)[self.active].double().mean()) if self.calls else 0.0


@dataclass
class Generation:
    """Output of `generate`.

    Attributes:
        sequences [B, T] int64: prompts as given, then the generated tokens, padded on the right.
        statistics: per call.
        scores, logits: with `output_scores` and `output_logits`, as transformers has them: for each generated token
            float32 [B, V], the target's processed scores and its logits behind the tokens before; 0 where a row has
            ended. None otherwise.
    """

    sequences: Tensor
    statistics: Statistics
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None


@torch.no_grad()
def perplexity(
    model: PreTrainedModel,
    sequences: Tensor,
    prompt: int,
    lengths: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Perplexity [B] of the generated tokens under the model at temperature 1: exp(-mean log model(x_i | x_<i)).

    Args:
        sequences [B, T] int64; prompt: columns given, at least 1.
        lengths [B] int64: generated tokens that count; None for all T - prompt.
        attention_mask [B, prompt]: 0 on padding, wherever it stands; None without padding.

    Raises:
        ValueError: nothing was given to a row, or nothing generated.
    """
    if not 1 <= prompt < sequences.shape[1]:
        raise ValueError(f"prompt is {prompt} of {sequences.shape[1]} tokens; want at least one given, one generated")
    generated = sequences.shape[1] - prompt
    if lengths is None:
        lengths = torch.full((len(sequences),), generated)
    if lengths.shape != sequences.shape[:1] or bool(((lengths < 1) | (lengths > generated)).any()):
        raise ValueError(f"lengths is {lengths.tolist()}; want one number in 1..{generated} for each row")
    ids, padding = left_padded(sequences[:, :prompt], attention_mask)
    first = torch.tensor(padding, device=sequences.device)[:, None]
    place = first + torch.arange(sequences.shape[1] - min(padding), device=sequences.device)
    texts = torch.cat([ids, sequences[:, prompt:]], dim=1).gather(1, place.clamp_max(sequences.shape[1] - 1))
    logits = model(texts[:, :-1].to(model.device)).logits[:, prompt - max(padding) - 1 :]
    rows = logits.log_softmax(dim=-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    found = rows.gather(-1, texts[:, prompt - max(padding) :, None].to(rows.device))[..., 0]
    begin = (max(padding) - first).to(found.device)
    place = torch.arange(found.shape[1], device=found.device) - begin
    counts = (place >= 0) & (place < lengths[:, None].to(found.device))
    return torch.exp(-(found * counts).sum(dim=1) / counts.sum(dim=1))
