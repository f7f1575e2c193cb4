"""From logits to the law a token is drawn from: the same transformers processors for target and draft.

B rows, K paths, N places per path, V vocabulary. Laws are in float32, or float64 for float64 models.

A processor may read the tokens so far. What it reads decides how it is called:
    nothing (temperature, top-k, ...)     once for all places of all rows;
    the tokens (repetition penalty, ...)  per place, with the row's own tokens, padding left out;
    anything else (lengths, user code)    per place, with what transformers' own loop would show it: the
                                          left-padded prompt and the tokens after it.
So a row's law does not depend on the padding that its batch gives it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation import logits_process

READS_NOTHING = (
    logits_process.TemperatureLogitsWarper,
    logits_process.TopKLogitsWarper,
    logits_process.TopPLogitsWarper,
    logits_process.MinPLogitsWarper,
    logits_process.TypicalLogitsWarper,
    logits_process.EpsilonLogitsWarper,
    logits_process.EtaLogitsWarper,
    logits_process.SuppressTokensLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
)
READS_TOKENS = (
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
)


class Sampler:
    """Turns logits into sampling laws.

    Args:
        processors: applied in order to float32 (float64) logits [rows, V], as in `model.generate`.
        greedy: all mass on the largest processed logit (the first of several) instead of softmax.
        vocab: V; logits of a smaller vocabulary are padded with -inf.
        padding: for each row, how many padding tokens stand before its prompt.
        device: of the laws, whatever device the logits are on.
    """

    def __init__(
        self,
        processors: Iterable[LogitsProcessor],
        greedy: bool,
        vocab: int,
        padding: list[int],
        device: torch.device,
    ) -> None:
        self.device = device
        self.processors = [_without_padding(processor) for processor in processors]
        self.greedy, self.vocab, self.padding = greedy, vocab, padding
        self.reads_tokens = any(not isinstance(processor, READS_NOTHING) for processor in self.processors)

    def laws(self, logits: Tensor, known: list[Tensor], drafted: Tensor) -> Tensor:
        """The laws of the N tokens after 0..N-1 drafted ones: [B, K, N, V]; as for `scores`, whose laws they are."""
        return self.law(self.scores(logits, known, drafted))

    def next_laws(self, logits: Tensor, known: list[Tensor], drafted: Tensor) -> Tensor:
        """The laws of the token after all of `drafted` [B, K, i]: [B, K, V] from `logits` [B, K, V or fewer]."""
        return self.law(self.next_scores(logits, known, drafted))

    def scores(self, logits: Tensor, known: list[Tensor], drafted: Tensor) -> Tensor:
        """The processed logits of the N tokens after 0..N-1 drafted ones: [B, K, N, V].

        Args:
            logits [B, K, N, V or fewer]: after i drafted tokens at place i.
            known: for each row its padded prompt and the tokens generated so far, int64 [n_b].
            drafted [B, K, N-1 or more] int64: the paths.
        """
        if not self.reads_tokens:
            return self._scores(logits)
        places = [self.next_scores(logits[:, :, i], known, drafted[:, :, :i]) for i in range(logits.shape[2])]
        return torch.stack(places, dim=2)

    def next_scores(self, logits: Tensor, known: list[Tensor], drafted: Tensor) -> Tensor:
        """[B, K, V]: the processed `logits` [B, K, V or fewer] of the token after all of `drafted` [B, K, i]."""
        if not self.reads_tokens:
            return self._scores(logits)
        rows = [
            self._scores(logits[b], _after(known[b], drafted[b]), padding) for b, padding in enumerate(self.padding)
        ]
        return torch.stack(rows)

    def _scores(self, logits: Tensor, tokens: Tensor | None = None, padding: int = 0) -> Tensor:
        """Processed `logits` [..., V or fewer] after `tokens` [rows, n], the first `padding` of them padding."""
        scores = logits.to(self.device, torch.float64 if logits.dtype == torch.float64 else torch.float32)
        if scores.shape[-1] < self.vocab:
            scores = torch.nn.functional.pad(scores, (0, self.vocab - scores.shape[-1]), value=-torch.inf)
        if not self.processors:
            return scores
        rows = scores.reshape(-1, self.vocab)
        for processor in self.processors:
            start = padding if isinstance(processor, READS_TOKENS) else 0
            rows = processor(None if tokens is None else tokens[..., start:], rows)
        return rows.view(scores.shape)

    def law(self, scores: Tensor) -> Tensor:
        """The laws [..., V] that tokens are drawn from, of processed logits [..., V].

        Logits that give none (NaN, +inf, or -inf for every token) give a row of NaN: see `check_rows`.
        """
        if not self.greedy:
            return scores.softmax(dim=-1)
        largest, first = scores.max(dim=-1, keepdim=True)
        zero = largest - largest  # NaN unless the largest is finite
        return zero.expand_as(scores).scatter(-1, first, zero + 1)


def check_rows(*laws: Tensor) -> None:
    """Raise ValueError if a row of these laws [..., V] is NaN: its logits gave none. Waits for the device, once."""
    if math.isnan(reduce(torch.add, (rows[..., 0].sum() for rows in laws)).item()):
        raise ValueError(
            "the logits hold NaN or +inf, or -inf for every token: no law to sample from (overflow in a half "
            "precision model, or processors that leave no token)"
        )


def _after(tokens: Tensor, drafted: Tensor) -> Tensor:
    """[K, n + i]: `tokens` [n] followed by each path of `drafted` [K, i]."""
    return torch.cat([tokens.expand(len(drafted), -1), drafted], dim=-1)


def _without_padding(processor: LogitsProcessor) -> LogitsProcessor:
    """The processor for rows whose padding is already left out (some versions mask it themselves)."""
    if isinstance(getattr(processor, "prompt_ignore_length", None), Tensor):
        processor = copy.copy(processor)
        processor.prompt_ignore_length = None
    return processor
