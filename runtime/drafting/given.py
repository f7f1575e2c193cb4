"""Drafts without a draft model: tokens looked up in the text, or those of any candidate generator of transformers.

Lossless whatever the tokens are: a token that was not drawn counts as drawn from a law with all mass on it, so that
it is kept with its target probability. A generator that says how its tokens were drawn keeps more.

Letters: T known tokens, L draft length, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers.generation.candidate_generator import CandidateGenerator

from .prompt_lookup import look_up


class GivenTokens(Protocol):
    """A drafter that reads the text and nothing else."""

    def __call__(self, known: Tensor, length: int) -> tuple[Tensor, Tensor | None]:
        """At most `length` tokens [n] to follow `known` [T], and the laws [n, V] they were drawn from, if they were."""


@dataclass(frozen=True)
class PromptLookup:
    """The tokens behind the last earlier occurrence of the text's end (see `prompt_lookup.look_up`).

    Attributes:
        longest: how many tokens of the end are looked for first.
    """

    longest: int = 3

    def __post_init__(self) -> None:
        if type(self.longest) is not int or self.longest < 1:
            raise ValueError(f"longest is {self.longest!r}; want an integer of at least 1")

    def __call__(self, known: Tensor, length: int) -> tuple[Tensor, Tensor | None]:
        """The tokens found; none if the end does not occur earlier."""
        return look_up(known, length, self.longest), None


@dataclass(frozen=True)
class Candidates:
    """The candidates of a transformers `CandidateGenerator`, one row at a time.

    Its logits, where it gives any, must be the processed scores its tokens were drawn from (transformers' assistants
    give those). Where it gives none its tokens count as given.

    Attributes:
        generator: e.g. `PromptLookupCandidateGenerator`, `AssistedCandidateGenerator`.
    """

    generator: CandidateGenerator

    def __call__(self, known: Tensor, length: int) -> tuple[Tensor, Tensor | None]:
        """The first `length` candidates and their laws.

        Raises:
            ValueError: the generator returned something else than the text and what follows it.
        """
        ids, logits = self.generator.get_candidates(known[None])
        if ids.ndim != 2 or len(ids) != 1 or ids.shape[1] < len(known) or not ids[0, : len(known)].equal(known):
            found = f"candidates of shape {tuple(ids.shape)} for a text of {len(known)} tokens"
            raise ValueError(f"{type(self.generator).__name__} gave {found}; want the text, then its candidates")
        tokens = ids[0, len(known) :][:length]
        if logits is None or not len(tokens):
            return tokens, None
        return tokens, logits[0, -(ids.shape[1] - len(known)) :][: len(tokens)].float().softmax(dim=-1)
