"""Which settings of transformers speculative decoding honours; everything else is refused with one line.

Each check stands here once: `check_prompt`, `check_arguments` and `check_settings` before transformers prepares
anything, `check_settings` and `check_processors` once it has merged everybody's settings.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PrefixConstrainedLogitsProcessor
from transformers.generation import logits_process
from transformers.generation.stopping_criteria import StopStringCriteria

UNSUPPORTED = {
    "num_beams": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "token_healing": (None, False),
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
FOR_ONE_PATH = {
    PrefixConstrainedLogitsProcessor: "prefix_allowed_tokens_fn",
    logits_process.EncoderRepetitionPenaltyLogitsProcessor: "encoder_repetition_penalty",
    logits_process.EncoderNoRepeatNGramLogitsProcessor: "encoder_no_repeat_ngram_size",
}
RUNS_A_MODEL = (logits_process.UnbatchedClassifierFreeGuidanceLogitsProcessor,)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument of `target.generate` that has no meaning here."""
    for name in UNSUPPORTED_ARGUMENTS:
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is not supported by speculative decoding; leave it out")


def check_settings(settings: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError for a setting that speculative decoding cannot honour."""
    for name, value in settings:
        if name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            allowed = UNSUPPORTED[name][-1]
            raise ValueError(f"{name} is {value!r}; speculative decoding supports only {allowed!r}")


def check_processors(processors: Iterable[LogitsProcessor], sequences: int) -> None:
    """Raise ValueError for a processor that cannot be asked about `sequences` = B K paths at once."""
    for processor in processors:
        if isinstance(processor, RUNS_A_MODEL):
            raise ValueError(
                f"{type(processor).__name__} runs a model of its own along the text, which drafts would mislead; "
                "leave it out"
            )
        for kind, name in FOR_ONE_PATH.items():
            if isinstance(processor, kind) and sequences > 1:
                raise ValueError(f"{name} wants one row and one path; decode the rows one by one")


def check_prompt(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise ValueError unless the prompt is int64 [B, n] with at least one token, and the mask fits it."""
    if input_ids.ndim != 2 or input_ids.dtype != torch.int64 or input_ids.device.type == "meta":
        found = f"{input_ids.dtype} of shape {tuple(input_ids.shape)} on {input_ids.device}"
        raise ValueError(f"input_ids is {found}; want int64 [B, n]")
    if input_ids.numel() == 0:
        raise ValueError(
            f"input_ids of shape {tuple(input_ids.shape)} has no tokens; give at least one row and one token "
            "(a beginning-of-text token, say)"
        )
    if attention_mask is not None:
        shape, wanted, device = tuple(attention_mask.shape), tuple(input_ids.shape), attention_mask.device
        if shape != wanted or device.type == "meta":
            raise ValueError(f"attention_mask has shape {shape} on {device}; want {wanted} as input_ids, and numbers")


def take_stop_strings(
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
