"""What `output_scores` and `output_logits` ask for: the target's row behind which every token of the text was drawn.

B rows, M rows of the target's pass in a call, V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

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
        """This call's rows [B, ..., V or other]: the target's logits, and what the processors made of them."""
        if self.found:
            self.now = {"logits": logits, "scores": scores}

    def take(self, places: Callable[[], Tensor], counts: list[int], order: list[int]) -> None:
        """Keep, of each row of the batch, as many rows as tokens of it count.

        Args:
            places: gives [B', m], which rows of all but the first and last axis of `logits` the tokens belong to.
            order: which of the B rows the rows of the batch are.
        """
        if not self.found:
            return
        where = places()
        for name, found in self.found.items():
            rows = self.now[name].flatten(1, -2)
            for row, (count, own) in enumerate(zip(counts, order, strict=True)):
                found[own].append(rows[row, where[row, :count], : self.vocab].float())

    def columns(self, name: str) -> tuple[Tensor, ...] | None:
        """One float32 [B, V] for each generated token, 0 behind a row's end; None if it was not asked for."""
        if name not in self.found:
            return None
        rows = [torch.cat(parts) if parts else torch.zeros(0, self.vocab) for parts in self.found[name]]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).unbind(dim=1)
