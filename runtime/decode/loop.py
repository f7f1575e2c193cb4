"""One generation: prefill, then call after call until every row is done.

_prefill     feed the prompts
_call        source.draft -> _score -> _verify -> keep the path -> _count_in -> commit
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from .. import kernels
from ..cache import CHUNK
from ..carry import Carry
from ..drafting.paths import Drafts, of_path
from ..draws import Draws
from ..layers import smallest_window
from ..lengths import MeasuredLength
from ..models import context_limit, input_device, tolerance, vocabulary
from ..processes import agreement, check_same_request, own
from ..registry import Verifier
from ..sampling import Sampler, check_rows
from ..self_check import check_laws
from ..states import hold
from ..tree_attention import MergedPaths, merge_paths
from ..verdict import Batch, Verdict
from .asked_rows import AskedRows
from .results import Generation, Statistics
from .rows import Rows
from .short_rows import pad_rows
from .sources import Source

if TYPE_CHECKING:
    from .method import Method

DROPPED_AT = 4  # done rows are left out once they are one in so many
PARTS = ("prefill", "draft", "target", "verify", "overhead")


@runtime_checkable
class SelectsRows(Protocol):
    """Draws that follow when rows are left out."""

    def select(self, rows: list[int]) -> None:
        """Only these of the rows go on."""


@dataclass(frozen=True)
class Call:
    """What one call found.

    Attributes:
        block [B, m]: each row's kept tokens and the one after them; what follows is void.
        emitted: the same as lists, without what is void.
        path: the winning path of each row.
        drafted: tokens drafted for each row (per path).
        places: gives [B, m], which rows of the target's pass the tokens of the block were drawn against.
        commit: to be called with the numbers of known tokens, once the block is counted in.
    """

    block: Tensor
    emitted: list[list[int]]
    path: list[int]
    drafted: list[int]
    places: Callable[[], Tensor]
    commit: Callable[[list[int]], None]


class Decoding:
    """One `generate`: the rows' text, both models' slots, the verifier's carry, and the loop."""

    def __init__(
        self,
        method: Method,
        target: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        config: GenerationConfig,
    ) -> None:
        self.method, self.policy = method, method.policy
        policy = self.policy
        self.pace = policy.pace(len(input_ids), method.paths) if isinstance(policy, MeasuredLength) else None
        self.longest = self.policy.maximum
        self.device = input_device(target)
        self.draws = method.generator if isinstance(method.generator, Draws) else Draws(method.generator)
        self.drops = method.on_call is None and (type(self.draws) is Draws or isinstance(self.draws, SelectsRows))
        self.agreed = agreement(target, *method.models)
        ahead = method.longest + 1
        self.rows = Rows(input_ids, attention_mask, stopping_criteria, config, self.device, ahead)
        self._check_context(target)
        self.rows.check_tokens(vocabulary(target))
        if self.agreed is not own:
            self._check_same_request()
        if method.check:
            self._check_laws(target)
        self.target = hold(target, self.rows.count)
        vocab = max(vocabulary(model) for model in (target, *method.models))
        greedy = not config.do_sample and not method.joint
        self.sampler = Sampler(logits_processor, greedy, vocab, self.rows.padding, self.device)
        self.source: Source = method.source(self.rows.count, self.sampler, self.draws, self.agreed)
        self.asked = AskedRows(config, self.rows.count, vocabulary(target))
        self.carry: Carry | None = None
        self.row_after: RowAfter | None = None
        self.records: list[dict[str, Any]] = []
        self.verification: kernels.Implementation | None = None
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.since = time.perf_counter()

    def _check_context(self, target: PreTrainedModel) -> None:
        for name, model in self._named(target):
            self._check_limit(name, context_limit(model))

    def _check_laws(self, target: PreTrainedModel) -> None:
        """All models must give the plain laws over caches and trees; beyond their windows too, if the text goes there.

        A text that stays within a model's windows does not ask for them at all.
        """
        for name, model in self._named(target):
            windows = check_laws(name, model).windows
            if windows is not None and windows > tolerance(model):
                self._check_limit(name, smallest_window(model.config.get_text_config()))

    def _named(self, target: PreTrainedModel) -> list[tuple[str, PreTrainedModel]]:
        return [("target", target), *(("draft", model) for model in self.method.models)]

    def _check_limit(self, name: str, limit: int | None) -> None:
        if limit is not None and self.rows.limit - min(self.rows.padding) > limit:
            raise ValueError(
                f"max_length is {self.rows.limit} (prompt of {self.rows.columns} tokens included), but the {name} "
                f"reads at most {limit}; lower max_new_tokens or shorten the prompt"
            )

    def _check_same_request(self) -> None:
        rows, prompts = self.rows, self.rows.ids[:, : self.rows.columns].tolist()
        settings = (self.method.name, self.method.paths, type(self.policy).__name__, self.policy.maximum)
        request = (prompts, rows.padding, rows.limit, sorted(rows.eos)), (*settings, self.method.beams)
        check_same_request(repr(request), self.device)

    def run(self) -> Generation:
        """Call until every row is done; an interrupt keeps what there is."""
        began, interrupted, streamer = time.perf_counter(), False, self.method.streamer
        if streamer is not None and not self.method.greeted:
            streamer.put(self.rows.given.cpu())
        try:
            self._prefill()
            self.seconds["prefill"] = time.perf_counter() - began
            while not all(self.rows.done):
                self._call()
        except KeyboardInterrupt:
            interrupted = True
        if streamer is not None:
            streamer.end()
        sequences = self.rows.sequences()
        self.seconds["overhead"] = time.perf_counter() - began - sum(self.seconds.values())
        statistics = self._statistics(interrupted)
        return Generation(sequences, statistics, self.asked.columns("scores"), self.asked.columns("logits"))

    def _prefill(self) -> None:
        """Feed every prompt token but the last to the models that cannot take them with their first drafts.

        Prompts of one length and of no more than a chunk need it only for a target that reads a tree, or that cannot
        forget the drafts; others for both models.
        """
        known = self.rows.known
        longest, apart = max(known) - 1, max(known) > min(min(known), CHUNK)
        alone = self.method.branches or not self.target.rolls_back
        models = [self.target] * (alone or apart) + [self.source.model] * apart
        for model in filter(None, models):
            model.start(self.rows.prompts(longest), [count - 1 for count in known])

    def _call(self) -> None:
        """Draft, one target pass, verify, keep."""
        if self.drops and 0 < sum(self.rows.done) * DROPPED_AT >= self.rows.count:
            self._drop_done()
        starts = self.rows.known
        self.since = began = time.perf_counter()
        if self.pace is not None:
            self.longest = int(self.agreed(torch.tensor(self.pace.length(), device=self.device)))
        call = self._one_call(starts) if self.longest else self._plain_call(starts)
        active = [not done for done in self.rows.done]
        self.rows.write(call.block)
        emitted = [self._count_in(row, block) for row, block in enumerate(call.emitted)]
        self.asked.take(call.places, emitted, self.rows.order)
        self.target.forget_tail([count - 1 for count in self.rows.known])
        call.commit(self.rows.known)
        accepted = [len(block) - 1 for block in call.emitted]
        found: dict[str, list[int]] = {"drafted": call.drafted, "accepted": accepted, "path": call.path}
        found |= {"emitted": emitted, "active": [int(row) for row in active]}
        record: dict[str, Any] = {name: self.rows.of_all(values) for name, values in found.items()}
        start = self.rows.of_all(starts, self.rows.known_at_last)
        self.records.append(record | {"start": start, "rows_after": self._asked})
        if self.pace is not None:
            whole = self.rows.count == len(self.rows.given)
            usual = whole and len(self.records) > 1 and max(call.drafted) == self.longest
            counted = [row for row, counts in enumerate(active) if counts]
            kept, drafted = ([values[row] for row in counted] for values in (accepted, call.drafted))
            self.pace.saw(self.longest, time.perf_counter() - began if usual else None, kept, drafted)

    def _drop_done(self) -> None:
        """Leave rows that are done out of all that follows."""
        kept = self.rows.drop_done()
        self.sampler.padding = self.rows.padding
        for model in filter(None, (self.target, self.source.model)):
            model.select(kept)
        if self.carry is not None:
            self.carry = self.carry.select(kept)
        if isinstance(self.draws, SelectsRows):
            self.draws.select(kept)

    def tick(self, part: str) -> None:
        """Count the time since the last tick as that of `part`."""
        now = time.perf_counter()
        self.seconds[part] += now - self.since
        self.since = now

    def _one_call(self, starts: list[int]) -> Call:
        drafts = self.source.draft(self.rows, starts, self._draft_lengths())
        self.tick("draft")
        if not drafts.tokens.shape[2]:
            return self._plain_call(starts)
        target_probs, merged = self._score(starts, drafts.tokens)
        check_rows(drafts.laws, target_probs)
        self.tick("target")
        batch, verdict = self._verify(drafts, target_probs)
        block = _block(drafts.tokens, verdict)
        host = torch.cat([block, verdict.accepted[:, None], verdict.path[:, None]], dim=1).tolist()
        self.tick("verify")
        if self.method.on_call is not None:
            self.method.on_call(batch, verdict, starts)
        if self.row_after is not None:
            self.seconds["draft"] += self.row_after.seconds
            self.seconds["verify"] -= self.row_after.seconds
        accepted, path, read = [row[-2] for row in host], [row[-1] for row in host], drafts.tokens.shape[2] - 1
        if any(accepted):
            if merged is not None and not merged.in_order(path, accepted):
                self.target.keep_path(of_path(merged.place, verdict.path)[:, : max(accepted) + 1])
            self.source.keep(drafts, verdict.path, max(accepted))
        read += self._asked
        return Call(
            block,
            [row[: kept + 1] for row, kept in zip(host, accepted, strict=True)],
            path,
            drafts.lengths,
            lambda: verdict.path[:, None] * block.shape[1] + torch.arange(block.shape[1], device=self.device),
            lambda known: self.source.commit(known, starts, accepted, read),
        )

    def _plain_call(self, starts: list[int]) -> Call:
        """A step of the target alone: no drafts, and its own token."""
        rows = len(starts)
        tokens = self.rows.ids.new_zeros(rows, 1, 0)
        target_probs, _ = self._score(starts, tokens)
        check_rows(target_probs)
        if any(self.rows.done):
            target_probs = pad_rows(target_probs, tokens.sum(dim=(1, 2)), self.rows.done)
        self.tick("target")
        token = self.agreed(self.draws.choose(target_probs[:, 0, 0]))
        none = torch.zeros_like(token)
        emitted = token[:, None].tolist()
        self.tick("verify")
        if self.method.on_call is not None:
            laws = target_probs[:, :, :0]
            self.method.on_call(Batch(tokens, laws, target_probs), Verdict(none, none, token), starts)
        return Call(token[:, None], emitted, [0] * rows, [0] * rows, lambda: none[:, None], lambda known: None)

    def _draft_lengths(self) -> list[int]:
        """Each row's largest draft length: L, less where the row's end is nearer, 0 once it is done.

        A stateful verifier wants the same L in every call, and so does a beam search.
        """
        longest = self.longest
        shortest = longest if self.facts.stateful or self.method.beams else 1
        return [
            0 if done else max(shortest, min(longest, self.rows.limit - end - 1))
            for end, done in zip(self.rows.end, self.rows.done, strict=True)
        ]

    def _known(self) -> list[Tensor]:
        """Each row's text, if a logits processor reads it."""
        return self.rows.texts() if self.sampler.reads_tokens else []

    def _score(self, starts: list[int], tokens: Tensor) -> tuple[Tensor, MergedPaths | None]:
        """The target's laws [B, K, L+1, V] along the drafts, and how several paths were merged."""
        known = self.rows.unread(self.target, starts)
        rows, paths, length = tokens.shape
        if paths == 1:
            merged = None
            logits = self.target.read(torch.cat([known, tokens[:, 0]], dim=1), last=length + 1)[:, None]
        else:
            merged = merge_paths(known[:, -1], tokens)
            place = torch.tensor([start - 1 for start in starts], device=self.device)[:, None]
            rows_of_tree = self.target.extend(merged.tokens, place + merged.depth, merged.sees).to(self.device)
            logits = rows_of_tree[torch.arange(rows, device=self.device)[:, None, None], merged.place]
        scores = self.sampler.scores(logits, self._known(), tokens)
        self.asked.read(logits, scores)
        return self.sampler.law(scores), merged

    def _verify(self, drafts: Drafts, target_probs: Tensor) -> tuple[Batch, Verdict]:
        """Verify the drafts; rows with shorter ones, and rows that are done, as `pad_rows` describes."""
        uneven = min(drafts.lengths) < drafts.tokens.shape[2]
        lengths = torch.tensor(drafts.lengths, device=self.device) if uneven else None
        if lengths is not None:
            target_probs = pad_rows(target_probs, lengths, self.rows.done)
        facts = self.facts
        self.row_after = RowAfter(self, drafts.tokens) if facts.reads_after else None
        after: RowAfter | Tensor | None = self.row_after
        if self.row_after is not None and self.agreed is not own:
            after = self.row_after()  # processes that share a model must make the same passes
        batch = Batch(drafts.tokens, drafts.laws, target_probs, self.carry, after)
        if self.verification is None:
            self.verification = kernels.implementation(facts, batch, self.draws)
        verdict = kernels.verify(facts, batch, self.draws, self.verification)
        self.carry = verdict.carry
        path, accepted, token = (self.agreed(part) for part in (verdict.path, verdict.accepted, verdict.token))
        if lengths is not None:
            accepted = accepted.minimum(lengths)
        return batch, Verdict(path, accepted, token, self.carry)

    def _count_in(self, row: int, block: list[int]) -> int:
        """Count the row's block as text, and stream it; the number of tokens that count."""
        if self.rows.done[row]:
            return 0
        block = self.rows.count_in(row, block)
        if self.method.streamer is not None:
            self.method.streamer.put(torch.tensor(block))
        return len(block)

    @cached_property
    def facts(self) -> Verifier:
        """The registry's entry of the verifier of paths."""
        return self.method.facts

    @property
    def _asked(self) -> bool:
        """Whether the verifier asked for the draft's row after the whole path in this call."""
        return self.row_after is not None and self.row_after.asked

    def _statistics(self, interrupted: bool) -> Statistics:
        def column(name: str, kind: torch.dtype) -> Tensor:
            values = [record[name] for record in self.records]
            return torch.tensor(values, dtype=kind).reshape(len(values), len(self.rows.given))

        return Statistics(
            start=column("start", torch.int64),
            drafted=column("drafted", torch.int64),
            accepted=column("accepted", torch.int64),
            path=column("path", torch.int64),
            emitted=column("emitted", torch.int64),
            active=column("active", torch.bool),
            paths=self.method.paths,
            seconds=self.seconds,
            interrupted=interrupted,
            verification=self.verification or "tensor",
            rows_after=sum(record["rows_after"] for record in self.records),
        )


class RowAfter:
    """The draft's row [B, 1, V] after each whole path: one more pass of the draft, made when a verifier asks for it.

    Attributes:
        asked: whether it was; seconds: what that took.
    """

    def __init__(self, decoding: Decoding, tokens: Tensor) -> None:
        self.decoding, self.tokens = decoding, tokens
        self.asked, self.seconds = False, 0.0

    def __call__(self) -> Tensor:
        """Feed the last drafted tokens [B] behind the others."""
        began, self.asked = time.perf_counter(), True
        assert self.decoding.source.model is not None
        logits = self.decoding.source.model.read(self.tokens[:, 0, -1:], last=1).to(self.decoding.device)
        law = self.decoding.sampler.next_laws(logits, self.decoding._known(), self.tokens)
        check_rows(law)
        self.seconds = time.perf_counter() - began
        return law


def _block(tokens: Tensor, verdict: Verdict) -> Tensor:
    """[B, L+1]: each row's winning path with the verdict's token behind the kept ones (what follows is void)."""
    block = torch.nn.functional.pad(of_path(tokens, verdict.path), (0, 1))
    return block.scatter_(1, verdict.accepted[:, None], verdict.token[:, None])
