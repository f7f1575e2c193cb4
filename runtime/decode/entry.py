"""What users call: `generate`, and `speculative` as a decoding method for transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..drafting.given import GivenTokens
from ..drafting.tree import TreeDraft
from ..draws import Draws
from ..lengths import LengthPolicy
from ..registry import Verifier
from ..tree_registry import TreeVerifier
from .method import Method, OnCall
from .results import Generation
from .settings import check_arguments, check_prompt, check_settings, take_stop_strings


def generate(
    target: PreTrainedModel,
    draft: PreTrainedModel | GivenTokens | TreeDraft | None,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    verifier: str | Verifier | TreeVerifier | None = None,
    paths: int = 1,
    length: int | LengthPolicy | Literal["auto"] = 8,
    generation_config: GenerationConfig | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: BaseStreamer | None = None,
    generator: torch.Generator | Draws | None = None,
    on_call: OnCall | None = None,
    beams: int = 0,
    sample_beams: bool = False,
    check: bool = True,
    **generation_kwargs: Any,
) -> Generation:
    """Decode with a draft; settings are those of `target.generate`, which prepares them.

    Args:
        draft: a model; a model and the shape of its tree (`TreeDraft`, with a verifier of trees); tokens given without
            a model (`drafting.given`: prompt look-up, transformers' candidate generators); or None for
            `prompt_lookup_num_tokens` or `assistant_early_exit` among the settings.
        input_ids [B, n] int64; attention_mask [B, n]: 0 on padding, wherever it stands.
        verifier: a name of the registry, or an entry of your own, such as `get("mjsd").configured(threshold=0.1)`;
            None for the registry's default for so many paths, or for such a tree.
        paths: K, drafts per call.
        length: L, tokens per draft; "auto" for the fastest by measured times and acceptance (`MeasuredLength`: then a
            seed fixes the law of the text, not the text); or another policy of `specbound.runtime.lengths`.
        generation_config, logits_processor, stopping_criteria, generation_kwargs: as for `target.generate`;
            temperature=0 means greedy, and stop_strings want a tokenizer.
        streamer: receives each call's tokens (one row only).
        generator: on the target's device; or a `Draws` that answers everything random.
        on_call: called as on_call(batch, verdict, starts) after each verification, starts[b] being the number of
            known tokens of row b before the drafts; a `Batch` and a `Verdict`, or those of a tree. Rows that are done
            then stay in the batch; else they are left out of the passes, once they are a quarter of it.
        beams: draft the best block of a beam search of that width instead of a sample (0); for verifiers that do
            not rest on sampled drafts, as "mjsd".
        sample_beams: draw the beams without replacement in proportion to their probability, as MJSD does.
        check: compare both models' laws over caches and trees with a plain pass first, once for each kind of model
            (see `specbound.runtime.self_check`).

    After Ctrl-C it returns what there is, `statistics.interrupted` set.

    Raises:
        ValueError: for settings that speculative decoding cannot honour, before any work.
    """
    check_prompt(input_ids, attention_mask)
    check_arguments(generation_kwargs)
    if generation_kwargs.get("temperature") == 0:
        generation_kwargs |= {"temperature": None, "do_sample": False}
    generation_config, criteria = take_stop_strings(generation_config, generation_kwargs)
    check_settings(generation_kwargs.items())
    if generation_config is not None:
        check_settings(vars(generation_config).items())
    method = Method(draft, verifier, paths, length, generator, streamer, on_call, beams, check, sample_beams)
    return target.generate(
        inputs=input_ids,
        attention_mask=attention_mask,
        generation_config=generation_config,
        logits_processor=logits_processor,
        stopping_criteria=StoppingCriteriaList([*(stopping_criteria or []), *criteria]),
        custom_generate=method,
        **generation_kwargs,
    )


def speculative(
    draft: PreTrainedModel | GivenTokens | TreeDraft | None = None,
    verifier: str | Verifier | TreeVerifier | None = None,
    paths: int = 1,
    length: int | LengthPolicy | Literal["auto"] = 8,
    generator: torch.Generator | Draws | None = None,
    streamer: BaseStreamer | None = None,
    on_call: OnCall | None = None,
    beams: int = 0,
    sample_beams: bool = False,
    check: bool = True,
) -> Callable[..., Tensor | Generation]:
    """A decoding method for transformers: `target.generate(**inputs, custom_generate=speculative(draft))`.

    Arguments as in `generate`. It returns token ids, or a `Generation` with `return_dict_in_generate=True`. A streamer
    may be given here or to `target.generate`. Stop strings must be given as a `StopStringCriteria`: transformers does
    not hand the `tokenizer` of `target.generate` on to a custom method, and says so. Ctrl-C raises KeyboardInterrupt,
    as it does in `target.generate` without this method.

    Raises:
        ValueError: unknown verifier, K or L below 1, K above 1 for a single-path verifier.
    """
    method = Method(draft, verifier, paths, length, generator, streamer, on_call, beams, check, sample_beams)

    def decode(
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Tensor | Generation:
        check_prompt(input_ids, model_kwargs.get("attention_mask"))
        prepared = (input_ids, logits_processor, stopping_criteria, generation_config)
        given = _streamer_of(inspect.currentframe())
        output = method.with_streamer(given)(model, *prepared, **model_kwargs)
        if output.statistics.interrupted:
            raise KeyboardInterrupt
        return output if generation_config.return_dict_in_generate else output.sequences

    return decode


def _streamer_of(frame: FrameType | None) -> BaseStreamer | None:
    """The streamer that `target.generate` was given, read where it called: it is not handed on to custom methods."""
    caller = frame.f_back if frame is not None else None
    if caller is None or caller.f_code.co_name != "generate":
        return None
    streamer = caller.f_locals.get("streamer")
    return streamer if hasattr(streamer, "put") else None
