"""Where the drafts of a decoding come from: a draft model, or tokens given without one.

B rows, K paths, L tokens per draft, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from ..drafting.given import GivenTokens
from ..drafting.paths import Context, Drafts, draft_beam, draft_paths, of_path
from ..drafting.prompt_lookup import given_laws
from ..draws import Draws
from ..lengths import LengthPolicy
from ..processes import Agreed
from ..sampling import Sampler
from ..states import Held, hold
from .rows import Rows


class Source(Protocol):
    """What the loop asks of the drafting side."""

    @property
    def model(self) -> Held | None:
        """The draft model and its slots, if there is one."""

    def draft(self, rows: Rows, starts: list[int], lengths: list[int]) -> Drafts:
        """Drafts of every row behind its `starts` known tokens, of at most `lengths` tokens."""

    def keep(self, drafts: Drafts, path: Tensor, most: int) -> None:
        """The verdict chose `path` [B], and keeps at most so many tokens of a row."""

    def commit(self, known: list[int], starts: list[int], accepted: list[int], read: int) -> None:
        """Rows now have `known` tokens; `accepted` were kept behind `starts`, of which the draft has read `read`."""


class ModelSource:
    """Paths drawn from a draft model, or the best block of its beam search."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int,
        paths: int,
        beams: int,
        policy: LengthPolicy,
        sampler: Sampler,
        draws: Draws,
        agreed: Agreed,
        sample_beams: bool = False,
    ) -> None:
        self.model = hold(model, rows, policy.needs_hidden)
        self.beam_draws = draws if sample_beams else None
        self.paths, self.beams, self.policy = paths, beams, policy
        self.sampler, self.draws, self.agreed = sampler, draws, agreed

    def draft(self, rows: Rows, starts: list[int], lengths: list[int]) -> Drafts:
        """Drafts after the known tokens that the draft has not read (two after a block kept whole)."""
        texts = rows.texts() if self.sampler.reads_tokens else []
        context = Context(texts, rows.unread(self.model, starts), [start - 1 for start in starts])
        if self.beams:
            found = (self.model, self.sampler, context, self.beams, self.policy.maximum, self.agreed)
            drafts = draft_beam(*found, self.beam_draws)
            return replace(drafts, lengths=lengths)
        return draft_paths(self.model, self.sampler, self.draws, context, self.paths, lengths, self.policy, self.agreed)

    def keep(self, drafts: Drafts, path: Tensor, most: int) -> None:
        """Bring the winning path to the front of the tail (a single sampled path already is)."""
        if drafts.slots is not None and drafts.slots.shape[2]:
            self.model.keep_path(of_path(drafts.slots, path)[:, :most])

    def commit(self, known: list[int], starts: list[int], accepted: list[int], read: int) -> None:
        """All known tokens but the last that the draft has read."""
        ends = zip(known, starts, accepted, strict=True)
        self.model.forget_tail([min(count - 1, start + min(kept, read)) for count, start, kept in ends])


class GivenSource:
    """Tokens that were not drawn from a model: all mass of their law is on them, unless they bring one."""

    model = None

    def __init__(self, given: GivenTokens, sampler: Sampler, agreed: Agreed) -> None:
        self.given, self.sampler, self.agreed = given, sampler, agreed

    def draft(self, rows: Rows, starts: list[int], lengths: list[int]) -> Drafts:
        """One path per row; rows with fewer tokens than the longest have token 0 for sure behind their own.

        Of no tokens at all the drafts are empty: the call is then one of plain decoding.
        """
        found = [
            self.given(rows.ids[row, rows.padding[row] : end], length) if length else (rows.ids[row, :0], None)
            for row, (end, length) in enumerate(zip(rows.end, lengths, strict=True))
        ]
        counts = [len(tokens) for tokens, _ in found]
        tokens = rows.ids.new_zeros(len(found), 1, max(counts))
        for row, (own, _) in enumerate(found):
            tokens[row, 0, : len(own)] = own
        tokens = self.agreed(tokens)
        laws = given_laws(tokens, self.sampler.vocab)
        for row, (own, law) in enumerate(found):
            if law is not None:
                laws[row, 0, : len(own), : law.shape[1]] = law.to(laws)
        return Drafts(tokens, laws, counts)

    def keep(self, drafts: Drafts, path: Tensor, most: int) -> None:
        """Nothing is cached."""

    def commit(self, known: list[int], starts: list[int], accepted: list[int], read: int) -> None:
        """Nothing is cached."""
