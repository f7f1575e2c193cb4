"""The decoding method that transformers calls with prepared settings: what was chosen, checked, then one generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .. import registry, tree_registry
from ..drafting.early_exit import early_exit
from ..drafting.given import GivenTokens, PromptLookup
from ..drafting.tree import TreeDraft
from ..draws import Draws
from ..lengths import AcceptanceHeadLength, FixedLength, LengthPolicy, MeasuredLength
from ..models import check_pair
from ..processes import Agreed
from ..registry import Verifier
from ..sampling import Sampler
from ..tree_registry import TreeVerifier
from .loop import Decoding
from .results import Generation
from .settings import check_processors, check_settings
from .sources import GivenSource, ModelSource, Source
from .tree_loop import TreeDecoding

OnCall = Callable[[Any, Any, list[int]], None]


@dataclass(frozen=True)
class Method:
    """What was chosen: the arguments of `generate` that are not transformers' own.

    Attributes:
        greeted: the streamer has been given the prompt (by transformers).
    """

    draft: PreTrainedModel | GivenTokens | TreeDraft | None
    verifier: str | Verifier | TreeVerifier | None
    paths: int
    length: int | LengthPolicy | Literal["auto"]
    generator: torch.Generator | Draws | None
    streamer: BaseStreamer | None
    on_call: OnCall | None
    beams: int
    check: bool = True
    sample_beams: bool = False
    greeted: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.draft, str | PathLike):
            raise ValueError(
                f"draft is {self.draft!r}; want a model, such as AutoModelForCausalLM.from_pretrained(...), or both "
                "models from specbound.runtime.models.load_pair"
            )
        for name, least in (("paths", 1), ("beams", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}; want an integer of at least {least}")
        if isinstance(self.draft, TreeDraft):
            self._check_tree()
            return
        if not isinstance(self.facts, Verifier):
            raise ValueError(f"verifier is {self.verifier!r}; want a name of the registry or an entry of it")
        known = self.length == "auto" or hasattr(self.length, "should_stop")
        if not known and (type(self.length) is not int or self.length < 1):
            raise ValueError(f"length is {self.length!r}; want an integer of at least 1, 'auto' or a policy")
        if self.facts.paths == "single" and self.paths > 1:
            raise ValueError(f"verifier {self.facts.name!r} takes one path; paths is {self.paths}")
        if isinstance(self.policy, MeasuredLength) and (self.facts.stateful or self.beams):
            raise ValueError(
                f"length is {self.length}, which changes from call to call; {self.facts.name!r} (beams {self.beams}) "
                "wants a fixed length"
            )
        if self.sample_beams and not self.beams:
            raise ValueError("sample_beams is True and beams 0; give the number of beams")
        if self.beams and self.facts.drafts != "any":
            kind = "the lossless verifier" if self.facts.lossless else "verifier"
            raise ValueError(f"beams is {self.beams}; {kind} {self.facts.name!r} wants sampled drafts (0)")
        if self.policy.adaptive and (self.paths > 1 or self.beams or self.facts.stateful):
            raise ValueError(
                f"length is {self.length}, which looks at drafted tokens: it wants one sampled path (paths=1, beams=0) "
                f"and a stateless verifier; give a fixed length for {self.facts.name!r} with {self.paths} paths"
            )
        one = self.paths == 1 and not self.beams and not self.policy.adaptive and not self.facts.stateful
        if self.draft is not None and not self.models and not one:
            raise ValueError(
                f"draft is {self.draft!r}, which gives one path of tokens: it wants paths=1, beams=0, a fixed length "
                f"and a stateless verifier, not {self.facts.name!r} with {self.paths} paths"
            )
        if isinstance(self.policy, AcceptanceHeadLength) and self.models:
            width, wanted = self.models[0].config.get_text_config().hidden_size, self.policy.head.hidden_size
            if width != wanted:
                raise ValueError(f"the acceptance head wants a draft of width {wanted}; this one has {width}")

    def _check_tree(self) -> None:
        assert isinstance(self.draft, TreeDraft)
        if not isinstance(self.tree_verifier, TreeVerifier):
            raise ValueError(f"verifier is {self.verifier!r}; want a name of the tree registry or an entry of it")
        self.tree_verifier.check(self.draft.grow)
        if self.paths > 1 or self.beams:
            raise ValueError(f"paths is {self.paths} and beams {self.beams}; a drafted tree wants 1 and 0")
        if isinstance(self.policy, MeasuredLength):
            raise ValueError(f"length is {self.length!r}; the depth of a drafted tree is that of its shape")

    @property
    def tree_verifier(self) -> TreeVerifier | None:
        """The entry of the tree registry, if a tree is drafted."""
        if not isinstance(self.draft, TreeDraft):
            return None
        if self.verifier is None:
            return tree_registry.default(self.draft.grow)
        if isinstance(self.verifier, str):
            return tree_registry.get(self.verifier)
        return self.verifier  # type: ignore[return-value]

    @property
    def name(self) -> str:
        """The verifier's."""
        tree_verifier = self.tree_verifier
        return self.facts.name if tree_verifier is None else tree_verifier.name

    @property
    def joint(self) -> bool:
        """The verifier compares joint probabilities and can end with the most likely token (setting `token`)."""
        return not isinstance(self.draft, TreeDraft) and "token" in self.facts.options

    @property
    def branches(self) -> bool:
        """Drafted tokens may have several continuations."""
        return self.paths > 1 or isinstance(self.draft, TreeDraft)

    @property
    def longest(self) -> int:
        """Most tokens of a draft, or levels of a tree."""
        return self.draft.grow.length if isinstance(self.draft, TreeDraft) else self.policy.maximum

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """The draft model, if there is one."""
        draft = self.draft.model if isinstance(self.draft, TreeDraft) else self.draft
        return (draft,) if isinstance(draft, torch.nn.Module) else ()

    def source(self, rows: int, sampler: Sampler, draws: Draws, agreed: Agreed) -> Source:
        """What drafts for so many rows."""
        if self.models:
            drafting = (self.paths, self.beams, self.policy, sampler, draws, agreed, self.sample_beams)
            return ModelSource(self.models[0], rows, *drafting)
        assert not isinstance(self.draft, torch.nn.Module | TreeDraft | None)
        return GivenSource(self.draft, sampler, agreed)

    def as_set(self, target: PreTrainedModel, config: GenerationConfig) -> Method:
        """The same, drafting as transformers' own settings say where no draft was given.

        `prompt_lookup_num_tokens` (with `max_matching_ngram_size`) drafts by look-up, `assistant_early_exit` with the
        target's first layers.

        Raises:
            ValueError: there is no draft, or more than one.
        """
        count, layers = config.prompt_lookup_num_tokens, config.assistant_early_exit
        ways = {"draft": self.draft, "prompt_lookup_num_tokens": count, "assistant_early_exit": layers}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) or 'nothing'} is given to draft with; give a draft, prompt_lookup_num_tokens or "
                "assistant_early_exit"
            )
        if count is not None:
            return replace(self, draft=PromptLookup(config.max_matching_ngram_size or 2), length=count)
        return self if layers is None else replace(self, draft=early_exit(target, layers))

    def decided(self, config: GenerationConfig) -> Method:
        """The same; if joint probabilities are compared in greedy decoding, with beam drafts and the likeliest token.

        Raises:
            ValueError: a draft length that a beam search cannot have.
        """
        if config.do_sample or not self.joint:
            return self
        beams = max(1, self.beams) if self.models else self.beams
        return replace(self, beams=beams, verifier=self.facts.configured(token="argmax"))

    @property
    def facts(self) -> Verifier:
        """The registry's entry."""
        if self.verifier is None:
            return registry.default(self.paths)
        return registry.get(self.verifier) if isinstance(self.verifier, str) else self.verifier  # type: ignore[return-value]

    @property
    def policy(self) -> LengthPolicy:
        """The draft length as a policy."""
        if self.length == "auto":
            return MeasuredLength()
        return FixedLength(self.length) if isinstance(self.length, int) else self.length

    def with_streamer(self, streamer: BaseStreamer | None) -> Method:
        """The same, streaming to what transformers has already given the prompt; as it is for None.

        Raises:
            ValueError: there is another streamer.
        """
        if streamer is None or streamer is self.streamer:
            return self if streamer is None else replace(self, greeted=True)
        if self.streamer is not None:
            raise ValueError("two streamers are given, to `speculative` and to `target.generate`; give one")
        return replace(self, streamer=streamer, greeted=True)

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Generation:
        """Decode; a decoding method as transformers wants it.

        Raises:
            ValueError: models, settings or a prompt that cannot be used.
        """
        check_settings(vars(generation_config).items())
        method = self.as_set(model, generation_config).decided(generation_config)
        for draft in method.models:
            check_pair(model, draft)
        check_processors(logits_processor, len(input_ids) * self.paths)
        past_key_values, attention_mask = (model_kwargs.get(key) for key in ("past_key_values", "attention_mask"))
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError("past_key_values holds tokens; speculative decoding keeps its own caches, leave it out")
        if self.streamer is not None and len(input_ids) != 1:
            raise ValueError(f"input_ids has {len(input_ids)} rows; a streamer wants 1")
        with torch.inference_mode():
            kind = TreeDecoding if isinstance(method.draft, TreeDraft) else Decoding
            decoding = kind(
                method, model, input_ids, attention_mask, logits_processor, stopping_criteria, generation_config
            )
            output = decoding.run()
        output.sequences = output.sequences.clone()
        return output
