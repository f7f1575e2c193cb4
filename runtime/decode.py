"""Decoding with a draft: the loop of drafting, one target pass, verification; as a function and inside transformers.

B rows (requests), K drafted paths of L tokens per call, V vocabulary. One *call* is one pass of the target over the
drafts: row b keeps accepted_b drafted tokens and one more token, the correction (the bonus token if all were kept).

The drafted row is the sampled row: verification sees exactly the laws that the tokens were drawn from, both models'
after the same logits processors. Everything random is asked of one `Draws`. Any draft length and any number of
calls gives the law of the target for a lossless verifier: a call's later rows only need to be laws of the prefix.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from . import kernels, registry
from .cache import CachedModel, causal
from .drafting import Context, Drafts, draft_beam, draft_paths
from .draws import Draws
from .lengths import AcceptanceHeadLength, FixedLength, LengthPolicy
from .models import check_pair, context_limit, input_device, vocabulary
from .processes import agreement, check_same_request, own
from .registry import Verifier
from .sampling import Sampler
from .tree_attention import merge_paths
from .verdict import Batch, Verdict

OnCall = Callable[[Batch, Verdict, list[int]], None]
UNSUPPORTED = {
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "prompt_lookup_num_tokens": (None,),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "assistant_early_exit": (None,),
    "output_scores": (None, False),
    "output_logits": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
}
UNSUPPORTED_ARGUMENTS = (
    "assistant_model",
    "custom_generate",
    "inputs_embeds",
    "past_key_values",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "prompt_embeds",
    "encoder_outputs",
)


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
    """

    sequences: Tensor
    statistics: Statistics


def generate(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    verifier: str | Verifier = "block",
    paths: int = 1,
    length: int | LengthPolicy = 8,
    generation_config: GenerationConfig | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: BaseStreamer | None = None,
    generator: torch.Generator | Draws | None = None,
    on_call: OnCall | None = None,
    beams: int = 0,
    **generation_kwargs: Any,
) -> Generation:
    """Decode with a draft; settings are those of `target.generate`, which prepares them.

    Args:
        input_ids [B, n] int64; attention_mask [B, n]: 0 on padding, wherever it stands.
        verifier: a name of the registry, or an entry of your own, such as
            `get("mjsd").configured(threshold=0.1)`.
        paths: K, drafts per call.
        length: L, tokens per draft; or a policy of `specbound.runtime.lengths`.
        generation_config, logits_processor, stopping_criteria, generation_kwargs: as for `target.generate`;
            temperature=0 means greedy, and stop_strings want a tokenizer.
        streamer: receives each call's tokens (one row only).
        generator: on the target's device; or a `Draws` that answers everything random.
        on_call: called as on_call(batch, verdict, starts) after each verification, starts[b] being the number of
            known tokens of row b before the drafts.
        beams: draft the best block of a beam search of that width instead of a sample (0); for verifiers that do
            not rest on sampled drafts, as "mjsd".

    Raises:
        ValueError: for settings that speculative decoding cannot honour, before any work.
    """
    if input_ids.ndim != 2 or input_ids.dtype != torch.int64 or input_ids.device.type == "meta":
        found = f"{input_ids.dtype} of shape {tuple(input_ids.shape)} on {input_ids.device}"
        raise ValueError(f"input_ids is {found}; want int64 [B, n]")
    _check_prompt(input_ids, attention_mask)
    for name in UNSUPPORTED_ARGUMENTS:
        if generation_kwargs.get(name) is not None:
            raise ValueError(f"{name} is not supported by speculative decoding; leave it out")
    if generation_kwargs.get("temperature") == 0:
        generation_kwargs |= {"temperature": None, "do_sample": False}
    generation_config, criteria = _stop_strings(generation_config, generation_kwargs)
    stopping_criteria = StoppingCriteriaList([*(stopping_criteria or []), *criteria])
    check_settings(generation_kwargs.items())
    if generation_config is not None:
        check_settings(vars(generation_config).items())
    loop = _Loop(draft, verifier, paths, length, generator, streamer, on_call, beams)
    check_pair(target, draft)
    return target.generate(
        inputs=input_ids,
        attention_mask=attention_mask,
        generation_config=generation_config,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        custom_generate=loop,
        **generation_kwargs,
    )


def speculative(
    draft: PreTrainedModel,
    verifier: str | Verifier = "block",
    paths: int = 1,
    length: int | LengthPolicy = 8,
    generator: torch.Generator | Draws | None = None,
    streamer: BaseStreamer | None = None,
    on_call: OnCall | None = None,
    beams: int = 0,
) -> Callable[..., Tensor | Generation]:
    """A decoding method for transformers: `target.generate(**inputs, custom_generate=speculative(draft))`.

    Arguments as in `generate`. It returns token ids, or a `Generation` with `return_dict_in_generate=True`. A streamer
    must be given here, and stop strings as a `StopStringCriteria`: transformers hands neither `streamer` nor
    `tokenizer` of `target.generate` on to a custom method.

    Raises:
        ValueError: unknown verifier, K or L below 1, K above 1 for a single-path verifier.
    """
    loop = _Loop(draft, verifier, paths, length, generator, streamer, on_call, beams)

    def decode(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor | Generation:
        output = loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs)
        return output if generation_config.return_dict_in_generate else output.sequences

    return decode


def check_settings(settings: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError for a setting that speculative decoding cannot honour."""
    for name, value in settings:
        if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            allowed = UNSUPPORTED[name][-1]
            raise ValueError(f"{name} is {value!r}; speculative decoding supports only {allowed!r}")


def _stop_strings(
    config: GenerationConfig | None, settings: dict[str, Any]
) -> tuple[GenerationConfig | None, list[StopStringCriteria]]:
    """Take stop strings out of the settings, as criteria of their own.

    Raises:
        ValueError: there is no tokenizer to read them.
    """
    tokenizer, strings = settings.pop("tokenizer", None), settings.pop("stop_strings", None)
    if strings is None and config is not None and config.stop_strings is not None:
        config = copy.deepcopy(config)
        strings, config.stop_strings = config.stop_strings, None
    if strings is None:
        return config, []
    if tokenizer is None:
        raise ValueError(f"stop_strings is {strings!r} but tokenizer is None; give the target's tokenizer too")
    return config, [StopStringCriteria(tokenizer, strings)]


@dataclass
class _Loop:
    """The decoding method that transformers calls: checks, then one `_Decoding`."""

    draft: PreTrainedModel
    verifier: str | Verifier
    paths: int
    length: int | LengthPolicy
    generator: torch.Generator | Draws | None
    streamer: BaseStreamer | None
    on_call: OnCall | None
    beams: int

    def __post_init__(self) -> None:
        self.facts = registry.get(self.verifier) if isinstance(self.verifier, str) else self.verifier
        if not isinstance(self.facts, Verifier):
            raise ValueError(f"verifier is {self.verifier!r}; want a name of the registry or an entry of it")
        if not hasattr(self.length, "should_stop") and (type(self.length) is not int or self.length < 1):
            raise ValueError(f"length is {self.length!r}; want an integer of at least 1, or a policy")
        self.policy = FixedLength(self.length) if isinstance(self.length, int) else self.length
        for name, least in (("paths", 1), ("beams", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}; want an integer of at least {least}")
        if self.facts.paths == "single" and self.paths > 1:
            raise ValueError(f"verifier {self.facts.name!r} takes one path; paths is {self.paths}")
        if self.beams and self.facts.drafts != "any":
            kind = "the lossless verifier" if self.facts.lossless else "verifier"
            raise ValueError(f"beams is {self.beams}; {kind} {self.facts.name!r} wants sampled drafts (0)")
        if self.policy.adaptive and (self.paths > 1 or self.beams or self.facts.stateful):
            raise ValueError(
                f"length is {self.length}, which looks at drafted tokens: it wants one sampled path (paths=1, beams=0) "
                f"and a stateless verifier; give a fixed length for {self.facts.name!r} with {self.paths} paths"
            )
        if isinstance(self.policy, AcceptanceHeadLength):
            width, wanted = self.draft.config.get_text_config().hidden_size, self.policy.head.hidden_size
            if width != wanted:
                raise ValueError(f"the acceptance head wants a draft of width {wanted}; this one has {width}")

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Generation:
        check_settings(vars(generation_config).items())
        check_pair(model, self.draft)
        past_key_values, attention_mask = (model_kwargs.get(key) for key in ("past_key_values", "attention_mask"))
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError("past_key_values holds tokens; speculative decoding keeps its own caches, leave it out")
        if len(input_ids) * self.paths > 1 and any(
            isinstance(p, PrefixConstrainedLogitsProcessor) for p in logits_processor
        ):
            raise ValueError("prefix_allowed_tokens_fn wants one row and one path; decode the rows one by one")
        if self.streamer is not None and len(input_ids) != 1:
            raise ValueError(f"input_ids has {len(input_ids)} rows; a streamer wants 1")
        with torch.inference_mode():
            decoding = _Decoding(
                self, model, input_ids, attention_mask, logits_processor, stopping_criteria, generation_config
            )
            output = decoding.run()
        output.sequences = output.sequences.clone()
        return output


class _Decoding:
    """One `generate`: the rows' tokens, both models' slots, and the loop."""

    def __init__(
        self,
        loop: _Loop,
        target: PreTrainedModel,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        config: GenerationConfig,
    ) -> None:
        self.loop = loop
        self.device = input_device(target)
        self.draws = loop.generator if isinstance(loop.generator, Draws) else Draws(loop.generator)
        self.agreed = agreement(target, loop.draft)
        self.given = input_ids.to(self.device)
        self.prompt = _left_padded(self.given, attention_mask)
        self.rows, self.columns = self.prompt.ids.shape
        self.limit = int(config.max_length)
        self._check_context(target, loop.draft)
        room = self.prompt.ids.new_zeros(self.rows, self.limit - self.columns + loop.policy.maximum + 1)
        self.ids = torch.cat([self.prompt.ids, room], dim=1)
        self.padding = self.prompt.padding
        self.end = [self.columns] * self.rows
        self.done = [False] * self.rows
        eos = config.eos_token_id
        self.eos = set() if eos is None else {eos} if isinstance(eos, int) else set(map(int, eos))
        self.pad = config.pad_token_id if config.pad_token_id is not None else min(self.eos, default=0)
        if self.agreed is not own:
            prompts = self.prompt.ids.tolist(), self.padding, self.limit, sorted(self.eos)
            settings = loop.facts.name, loop.paths, type(loop.policy).__name__, loop.policy.maximum, loop.beams
            check_same_request(repr((prompts, settings)), self.device)
        self.criteria = [c for c in stopping_criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)]
        self.target, self.draft = (
            CachedModel(target, self.rows),
            CachedModel(loop.draft, self.rows, loop.policy.needs_hidden),
        )
        self._check_tokens(vocabulary(target))
        vocab = max(vocabulary(target), vocabulary(loop.draft))
        self.sampler = Sampler(logits_processor, not config.do_sample, vocab, self.padding, self.device)
        self.carry: Any = None
        self.records: list[dict[str, Any]] = []
        self.verification: kernels.Implementation = "tensor"
        self.seconds = dict.fromkeys(("prefill", "draft", "target", "verify", "overhead"), 0.0)

    def _check_tokens(self, vocab: int) -> None:
        real = torch.arange(self.columns, device=self.device) >= torch.tensor(self.padding, device=self.device)[:, None]
        least, most = (int(end) for end in self.prompt.ids[real].aminmax())
        if least < 0 or most >= vocab:
            raise ValueError(f"input_ids lie in {least}..{most}; want 0..{vocab - 1}, the target's tokens")

    def run(self) -> Generation:
        """Call until every row is done; an interrupt keeps what there is."""
        began, interrupted = time.perf_counter(), False
        if self.loop.streamer is not None:
            self.loop.streamer.put(self.given.cpu())
        try:
            self._prefill()
            self.seconds["prefill"] = time.perf_counter() - began
            while not all(self.done):
                self._call()
        except KeyboardInterrupt:
            interrupted = True
        if self.loop.streamer is not None:
            self.loop.streamer.end()
        sequences = self.ids[:, : max(self.end)]
        columns = torch.arange(sequences.shape[1], device=self.device)
        sequences = sequences.masked_fill(columns >= torch.tensor(self.end, device=self.device)[:, None], self.pad)
        sequences = torch.cat([self.given, sequences[:, self.columns :]], dim=1)
        self.seconds["overhead"] = time.perf_counter() - began - sum(self.seconds.values())
        return Generation(sequences, self._statistics(interrupted))

    def _prefill(self) -> None:
        """Feed every prompt token but the last to the models that cannot take them with their first drafts.

        Rows of one length need it only for the target's tree; rows of different lengths for both models.
        """
        known = [self.columns - padding for padding in self.padding]
        longest, even = max(known) - 1, min(known) == max(known)
        models = [] if even and self.loop.paths == 1 else [self.target] if even else [self.target, self.draft]
        if longest:
            place = torch.arange(longest, device=self.device)
            shift = torch.tensor(self.padding, device=self.device)[:, None]
            tokens = self.ids.gather(1, (shift + place).clamp_max(self.columns - 1))
            for model in models:
                model.extend(tokens, place.expand(self.rows, -1), causal(longest, self.device), last=1)
        for model in models:
            model.forget_tail([count - 1 for count in known])

    def _call(self) -> None:
        """Draft, one target pass, verify, keep."""
        clock = [time.perf_counter()]
        starts = [end - padding for end, padding in zip(self.end, self.padding, strict=True)]
        drafts = self._draft(starts)
        clock.append(time.perf_counter())
        target_probs, slots = self._target(starts, drafts.tokens)
        clock.append(time.perf_counter())
        batch, verdict = self._verify(drafts, target_probs)
        block = _block(drafts.tokens, verdict)
        host = torch.cat([block, verdict.accepted[:, None], verdict.path[:, None]], dim=1).tolist()
        accepted, path = [row[-2] for row in host], [row[-1] for row in host]
        clock.append(time.perf_counter())
        if self.loop.on_call is not None:
            self.loop.on_call(batch, verdict, starts)
        self._keep(verdict, slots, drafts.slots)
        active = [not done for done in self.done]
        self._write(block)
        emitted = [self._emit(row, host[row][: accepted[row] + 1]) for row in range(self.rows)]
        self._forget(starts, accepted, drafts.tokens.shape[2])
        self.records.append(
            {"start": starts, "drafted": drafts.lengths, "accepted": accepted, "path": path}
            | {"emitted": emitted, "active": active}
        )
        for part, before, after in zip(("draft", "target", "verify"), clock[:-1], clock[1:], strict=True):
            self.seconds[part] += after - before

    def _draft_lengths(self) -> list[int]:
        """Each row's largest draft length: L, less where the row's end is nearer, 0 once it is done.

        A stateful verifier wants the same L in every call, and so does a beam search.
        """
        longest = self.loop.policy.maximum
        shortest = longest if self.loop.facts.stateful or self.loop.beams else 1
        return [
            0 if done else max(shortest, min(longest, self.limit - end - 1))
            for end, done in zip(self.end, self.done, strict=True)
        ]

    def _draft(self, starts: list[int]) -> Drafts:
        """Drafts of every row, after the known tokens the draft has not read (two after a block kept whole)."""
        recent = self._unread(self.draft, starts)
        context = Context(self._known(), recent, torch.tensor(starts, device=self.device) - 1)
        if self.loop.beams:
            longest = self.loop.policy.maximum
            drafts = draft_beam(self.draft, self.sampler, context, self.loop.beams, longest, self.agreed)
            return replace(drafts, lengths=self._draft_lengths())
        lengths, policy = self._draft_lengths(), self.loop.policy
        return draft_paths(self.draft, self.sampler, self.draws, context, self.loop.paths, lengths, policy, self.agreed)

    def _unread(self, model: CachedModel, starts: list[int]) -> Tensor:
        """Known tokens [B, n] the model has not read, n that of the row with most; others read some again."""
        count = max(start - base for start, base in zip(starts, model.base, strict=True))
        model.forget_tail([start - count for start in starts])
        columns = torch.tensor(self.end, device=self.device)[:, None] + torch.arange(-count, 0, device=self.device)
        return self.ids.gather(1, columns)

    def _known(self) -> list[Tensor]:
        """Each row's padded prompt and the tokens after it, if a logits processor reads them."""
        if not self.sampler.reads_tokens:
            return []
        return [self.ids[row, :end] for row, end in enumerate(self.end)]

    def _target(self, starts: list[int], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The target's laws [B, K, L+1, V] along the drafts, and the slots [B, K, L+1] of the drafts in its tail."""
        known = self._unread(self.target, starts)
        place = torch.tensor(starts, device=self.device)[:, None] - 1
        rows, paths, length = tokens.shape
        if paths == 1:
            slots = torch.arange(length + 1, device=self.device).expand(rows, 1, -1)
            fed = torch.cat([known, tokens[:, 0]], dim=1)
            positions = place + torch.arange(1 - known.shape[1], length + 1, device=self.device)
            tail = causal(fed.shape[1], self.device)
            logits = self.target.extend(fed, positions, tail, last=length + 1)[:, None]
        else:
            merged = merge_paths(known[:, -1], tokens)
            slots = merged.place
            rows_of_tree = self.target.extend(merged.tokens, place + merged.depth, merged.sees).to(self.device)
            logits = rows_of_tree[torch.arange(rows, device=self.device)[:, None, None], slots]
        return self.sampler.laws(logits, self._known(), tokens), slots

    def _verify(self, drafts: Drafts, target_probs: Tensor) -> tuple[Batch, Verdict]:
        """Verify the drafts; rows with shorter ones, and rows that are done, as `pad_rows` describes."""
        uneven = min(drafts.lengths) < drafts.tokens.shape[2]
        lengths = torch.tensor(drafts.lengths, device=self.device) if uneven else None
        if lengths is not None:
            target_probs = pad_rows(target_probs, lengths, self.done)
        batch = Batch(drafts.tokens, drafts.laws, target_probs, self.carry)
        self.verification = kernels.implementation(self.loop.facts, batch, self.draws)
        verdict = kernels.verify(self.loop.facts, batch, self.draws)
        self.carry = verdict.carry
        path, accepted, token = (self.agreed(part) for part in (verdict.path, verdict.accepted, verdict.token))
        verdict = replace(verdict, path=path, accepted=accepted, token=token)
        if lengths is not None:
            verdict = replace(verdict, accepted=verdict.accepted.minimum(lengths))
        return batch, verdict

    def _keep(self, verdict: Verdict, slots: Tensor, draft_slots: Tensor) -> None:
        """Bring the winning path to the front of both models' tails (a single sampled path already is)."""
        row = torch.arange(self.rows, device=self.device)
        if self.loop.paths > 1:
            self.target.keep_path(slots[row, verdict.path])
        if (self.loop.paths > 1 or self.loop.beams) and draft_slots.shape[2]:
            self.draft.keep_path(draft_slots[row, verdict.path])

    def _write(self, block: Tensor) -> None:
        """Write each row's block [B, L+1] behind its known tokens; `_emit` says how much of it counts."""
        end = torch.tensor(self.end, device=self.device)[:, None]
        self.ids.scatter_(1, end + torch.arange(block.shape[1], device=self.device), block)

    def _emit(self, row: int, block: list[int]) -> int:
        """Count the block as known, up to the row's end; the number of tokens counted."""
        if self.done[row]:
            return 0
        start = self.end[row]
        block = block[: self.limit - start]
        if self.eos:
            ends = [i for i, token in enumerate(block) if token in self.eos]
            block = block[: ends[0] + 1] if ends else block
            self.done[row] = bool(ends)
        for criterion in self.criteria:
            for count in range(1, len(block) + 1):
                if bool(criterion(self.ids[row : row + 1, : start + count], None).all()):
                    block, self.done[row] = block[:count], True
                    break
        self.end[row] = start + len(block)
        self.done[row] |= self.end[row] >= self.limit
        if self.loop.streamer is not None:
            self.loop.streamer.put(torch.tensor(block))
        return len(block)

    def _forget(self, starts: list[int], accepted: list[int], length: int) -> None:
        """Commit what was kept: the target holds all but the last token, the draft one fewer after a full block."""
        now = [end - padding for end, padding in zip(self.end, self.padding, strict=True)]
        self.target.forget_tail([count - 1 for count in now])
        self.draft.forget_tail(
            [
                min(count - 1, start + min(kept, length - 1))
                for count, start, kept in zip(now, starts, accepted, strict=True)
            ]
        )

    def _check_context(self, target: PreTrainedModel, draft: PreTrainedModel) -> None:
        for name, model in (("target", target), ("draft", draft)):
            limit = context_limit(model)
            if limit is not None and self.limit - min(self.prompt.padding) > limit:
                raise ValueError(
                    f"max_length is {self.limit} (prompt of {self.columns} tokens included), but the {name} reads at "
                    f"most {limit}; lower max_new_tokens or shorten the prompt"
                )

    def _statistics(self, interrupted: bool) -> Statistics:
        def column(name: str, kind: torch.dtype) -> Tensor:
            values = [record[name] for record in self.records]
            return torch.tensor(values, dtype=kind).reshape(len(values), self.rows)

        return Statistics(
            start=column("start", torch.int64),
            drafted=column("drafted", torch.int64),
            accepted=column("accepted", torch.int64),
            path=column("path", torch.int64),
            emitted=column("emitted", torch.int64),
            active=column("active", torch.bool),
            paths=self.loop.paths,
            seconds=self.seconds,
            interrupted=interrupted,
            verification=self.verification,
        )


@dataclass(frozen=True)
class _Prompt:
    """ids [B, n], padding first; padding[b] columns of row b are padding."""

    ids: Tensor
    padding: list[int] = field(default_factory=list)


def _check_prompt(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    if input_ids.numel() == 0:
        raise ValueError(
            f"input_ids of shape {tuple(input_ids.shape)} has no tokens; give at least one row and one token "
            "(a beginning-of-text token, say)"
        )
    if attention_mask is not None:
        found, wanted, device = tuple(attention_mask.shape), tuple(input_ids.shape), attention_mask.device
        if found != wanted or device.type == "meta":
            raise ValueError(f"attention_mask has shape {found} on {device}; want {wanted} as input_ids, and numbers")


def _left_padded(input_ids: Tensor, attention_mask: Tensor | None) -> _Prompt:
    """The prompts with all padding moved to the left, wherever the mask has it.

    Raises:
        ValueError: a row has no token.
    """
    _check_prompt(input_ids, attention_mask)
    if attention_mask is None:
        return _Prompt(input_ids, [0] * len(input_ids))
    real = attention_mask.to(input_ids.device).bool()
    padding = (~real).sum(dim=1).tolist()
    for row, count in enumerate(padding):
        if count == input_ids.shape[1]:
            raise ValueError(f"row {row} of input_ids is empty; give at least one token")
    order = real.to(torch.int8).argsort(dim=1, stable=True)
    return _Prompt(input_ids.gather(1, order), padding)


@torch.no_grad()
def perplexity(model: PreTrainedModel, sequences: Tensor, prompt: int, lengths: Tensor | None = None) -> Tensor:
    """Perplexity [B] of the generated tokens under the model at temperature 1: exp(-mean log model(x_i | x_<i)).

    Args:
        sequences [B, T] int64 without padding before the prompt; prompt: tokens given, at least 1.
        lengths [B] int64: generated tokens that count; None for all T - prompt.

    Raises:
        ValueError: nothing was given, or nothing generated.
    """
    if not 1 <= prompt < sequences.shape[1]:
        raise ValueError(f"prompt is {prompt} of {sequences.shape[1]} tokens; want at least one given, one generated")
    logits = model(sequences[:, :-1].to(model.device)).logits[:, prompt - 1 :]
    rows = logits.log_softmax(dim=-1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    found = rows.gather(-1, sequences[:, prompt:, None].to(rows.device))[..., 0]
    if lengths is None:
        lengths = torch.full((len(sequences),), found.shape[1])
    counts = torch.arange(found.shape[1], device=found.device) < lengths[:, None].to(found.device)
    return torch.exp(-(found * counts).sum(dim=1) / counts.sum(dim=1))


def pad_rows(target_probs: Tensor, lengths: Tensor, done: list[bool]) -> Tensor:
    """Target laws [B, K, L+1, V] under which a row's drafts count as no longer than its own length.

    Beyond it the draft holds token 0 for sure, and so does the target here: such tokens are always kept, and the
    token after them, at place L, is drawn from the law after the row's own draft. So the verdict's law is that of
    the shorter draft, with `accepted` cut at the length. A row that is done has token 0 everywhere.

    Args:
        target_probs [B, K, L+1, V] along the drafts; lengths [B] int64: of the row's drafts, 0..L.
    """
    length = target_probs.shape[2] - 1
    places = torch.arange(length + 1, device=lengths.device)
    last = target_probs.gather(2, lengths[:, None, None, None].expand_as(target_probs[:, :, :1]))
    sure = torch.zeros_like(last)
    sure[..., 0] = 1.0
    beyond = ((places >= lengths[:, None]) & (places < length))[:, None, :, None]
    finished = torch.tensor(done, device=lengths.device)[:, None, None, None]
    padded = torch.where(beyond | finished, sure, target_probs)
    padded[:, :, -1:] = torch.where(finished, sure, last)
    return padded


def _block(tokens: Tensor, verdict: Verdict) -> Tensor:
    """[B, L+1]: each row's winning path with the verdict's token behind the kept ones (what follows is void)."""
    rows = torch.arange(len(tokens), device=tokens.device)
    block = torch.nn.functional.pad(tokens[rows, verdict.path], (0, 1))
    return block.scatter_(1, verdict.accepted[:, None], verdict.token[:, None])
