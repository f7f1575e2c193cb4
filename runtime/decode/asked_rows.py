"""What `output_scores` and `output_logits` ask for: the target's row behind which every token of the text was drawn.

B rows, M rows of the target's pass in a call, V the target's vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig


class AskedRows:
    """Collects, call by call, the rows of the tokens that count; holds nothing if none were asked for."""

    def __init__(self, config: GenerationConfig, rows: int, vocab: int) -> None:
        asked = {"scores": config.output_scores, "logits": config.output_logits}
        self.vocab = vocab
        self.found: dict[str, list[list[Tensor]]] = {
            name: [[] for _ in range(rows)] for name, wanted in asked.items() if wanted
        }
        self.now: dict[str, Tensor] = {}

    def read(self, logits: Tensor, scores: Tensor) -> None:
        """This call's rows [B, M, V or other]: the target's logits, and what the processors made of them."""
        if self.found:
            self.now = {"logits": logits, "scores": scores}

    def take(self, places: Tensor, counts: list[int], order: list[int]) -> None:
        """Keep, of each row of the batch, the first of `places` [B', m], as many as tokens of it count.

        Args:
            order: which of the B rows the rows of the batch are.
        """
        for name, found in self.found.items():
            for row, (count, own) in enumerate(zip(counts, order, strict=True)):
                found[own].append(self.now[name][row, places[row, :count], : self.vocab].float())

    def columns(self, name: str) -> tuple[Tensor, ...] | None:
        """One float32 [B, V] for each generated token, 0 behind a row's end; None if it was not asked for."""
        if name not in self.found:
            return None
        rows = [torch.cat(parts) if parts else torch.zeros(0, self.vocab) for parts in self.found[name]]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).unbind(dim=1)
