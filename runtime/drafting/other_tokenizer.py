"""Drafts by a model with another tokenizer: its likeliest text, read with the target's tokenizer.

The translation to and fro is transformers' own, with its key/value cache (universal assisted generation). The draft is
the model's greedy continuation, so no coin is tossed: its tokens count as given, and are kept with their target
probability. Lossless whatever the two tokenizers make of the text.

Letters: T known tokens, L draft length, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.candidate_generator import AssistedCandidateGeneratorDifferentTokenizers

from .given import Candidates


class OtherTokenizer:
    """A draft model whose tokens are not the target's, one row at a time.

    Args:
        model: the draft model; tokenizer: its own; target_tokenizer: that of the target.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target_tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self.model, self.tokenizer, self.target_tokenizer = model, tokenizer, target_tokenizer
        self._before: Tensor | None = None
        self._generator: AssistedCandidateGeneratorDifferentTokenizers | None = None

    def __call__(self, known: Tensor, length: int) -> tuple[Tensor, None]:
        """At most `length` tokens of the target's to follow `known` [T], found by drafting `length` of the model's."""
        generator = self._of_this_text(known)
        generator.num_assistant_tokens = length
        tokens, _ = Candidates(generator)(known, length)
        return tokens, None

    def _of_this_text(self, known: Tensor) -> AssistedCandidateGeneratorDifferentTokenizers:
        """The generator that has read the text so far; a new one where `known` does not go on from it."""
        before, self._before = self._before, known
        if self._generator is None or before is None or not known[: len(before)].equal(before):
            config = GenerationConfig(do_sample=False, max_length=torch.iinfo(torch.int32).max, min_length=0)
            self._generator = AssistedCandidateGeneratorDifferentTokenizers(
                known[None], self.model, self.target_tokenizer, self.tokenizer, config, {}
            )
        return self._generator
