"""The decoding method that transformers calls with prepared settings: what was chosen, checked, then one generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .. import registry
from ..draws import Draws
from ..lengths import AcceptanceHeadLength, FixedLength, LengthPolicy
from ..models import check_pair
from ..registry import Verifier
from ..verdict import Batch, Verdict
from .loop import Decoding
from .results import Generation
from .settings import check_processors, check_settings

OnCall = Callable[[Batch, Verdict, list[int]], None]


@dataclass(frozen=True)
class Method:
    """What was chosen: the arguments of `generate` that are not transformers' own.

    Attributes:
        greeted: the streamer has been given the prompt (by transformers).
    """

    draft: PreTrainedModel
    verifier: str | Verifier | None
    paths: int
    length: int | LengthPolicy
    generator: torch.Generator | Draws | None
    streamer: BaseStreamer | None
    on_call: OnCall | None
    beams: int
    greeted: bool = False

    def __post_init__(self) -> None:
        for name, least in (("paths", 1), ("beams", 0)):
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)!r}; want an integer of at least {least}")
        if not isinstance(self.facts, Verifier):
            raise ValueError(f"verifier is {self.verifier!r}; want a name of the registry or an entry of it")
        if not hasattr(self.length, "should_stop") and (type(self.length) is not int or self.length < 1):
            raise ValueError(f"length is {self.length!r}; want an integer of at least 1, or a policy")
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

    @property
    def facts(self) -> Verifier:
        """The registry's entry."""
        if self.verifier is None:
            return registry.default(self.paths)
        return registry.get(self.verifier) if isinstance(self.verifier, str) else self.verifier

    @property
    def policy(self) -> LengthPolicy:
        """The draft length as a policy."""
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
        check_pair(model, self.draft)
        check_processors(logits_processor, len(input_ids) * self.paths)
        past_key_values, attention_mask = (model_kwargs.get(key) for key in ("past_key_values", "attention_mask"))
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError("past_key_values holds tokens; speculative decoding keeps its own caches, leave it out")
        if self.streamer is not None and len(input_ids) != 1:
            raise ValueError(f"input_ids has {len(input_ids)} rows; a streamer wants 1")
        with torch.inference_mode():
            decoding = Decoding(
                self, model, input_ids, attention_mask, logits_processor, stopping_criteria, generation_config
            )
            output = decoding.run()
        output.sequences = output.sequences.clone()
        return output
