"""Loading a target and a draft, and what they must have in common.

Both models must read the same token ids. Vocabularies of different size are allowed where the larger one only adds
padding rows at its end (as in families whose embedding is rounded up differently): the missing logits count as -inf.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

PADDING_ROWS = 1024
ATTENTION = ("sdpa", "eager")
KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class Pair:
    """A target, a draft and their tokenizer."""

    target: PreTrainedModel
    draft: PreTrainedModel
    tokenizer: Any


def load_pair(
    target: str | PathLike[str],
    draft: str | PathLike[str],
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    safetensors_only: bool = True,
) -> Pair:
    """Load two causal language models by name or local path, ready to decode.

    Args:
        dtype: of both models; None for float32 on a CPU and the checkpoints' own elsewhere.
        device: None for CUDA if there is one, else the CPU.
        safetensors_only: False also reads pickled checkpoints (which can run code); code of repositories never runs.

    Raises:
        ValueError: the tokenizers differ, or a model cannot be used (see `check_model`).
        OSError: a model is not found.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wanted: Any = dtype or (torch.float32 if device.type == "cpu" else "auto")
    tokenizers = [AutoTokenizer.from_pretrained(name, trust_remote_code=False) for name in (target, draft)]
    check_tokenizers(*tokenizers)
    models = [
        AutoModelForCausalLM.from_pretrained(
            name, dtype=wanted, use_safetensors=safetensors_only or None, trust_remote_code=False
        )
        .to(device)
        .eval()
        for name in (target, draft)
    ]
    check_pair(models[0], models[1])
    return Pair(models[0], models[1], tokenizers[0])


def check_tokenizers(target: Any, draft: Any) -> None:
    """Raise ValueError unless both tokenizers give the same tokens the same ids."""
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    different = sorted(token for token in ours.keys() & theirs.keys() if ours[token] != theirs[token])
    alone = sorted(ours.keys() ^ theirs.keys())
    example = (different or alone)[0]
    raise ValueError(
        f"target and draft have different tokenizers: {len(alone)} tokens are in one only, {len(different)} have "
        f"different ids (e.g. {example!r}: {ours.get(example)} and {theirs.get(example)}); choose a draft of the "
        "target's family"
    )


def check_pair(target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """Raise ValueError unless both models can be used, and together."""
    check_model("target", target)
    check_model("draft", draft)
    sizes = vocabulary(target), vocabulary(draft)
    if abs(sizes[0] - sizes[1]) > PADDING_ROWS:
        raise ValueError(
            f"target has {sizes[0]} and draft {sizes[1]} tokens, which is more than padding (up to {PADDING_ROWS} "
            "rows); both need the same tokenizer"
        )


def check_model(name: str, model: PreTrainedModel) -> None:
    """Raise ValueError unless the model takes a tree: a 4D mask, explicit positions and a plain key/value cache."""
    kind = type(model).__name__
    if model.training:
        raise ValueError(f"{name} is in training mode, where dropout changes its law; call {name}.eval()")
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    parameters = inspect.signature(model.forward).parameters
    missing = [want for want in ("position_ids", "attention_mask", "past_key_values") if want not in parameters]
    if getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder"
    elif missing:
        reason = f"its forward takes no {missing[0]}"
    elif getattr(model, "_is_stateful", False):
        reason = "its state cannot be rolled back"
    elif not layers <= KINDS_OF_LAYERS:
        reason = f"it has layers of kind {sorted(layers - KINDS_OF_LAYERS)}"
    elif config._attn_implementation not in ATTENTION:
        raise ValueError(
            f"{name} ({kind}) uses attn_implementation={config._attn_implementation!r}, which takes no 4D mask; "
            "load it with attn_implementation='sdpa'"
        )
    else:
        return
    raise ValueError(f"{name} ({kind}) cannot verify drafts: {reason}; use a decoder like Llama, Qwen or GPT-2")


def vocabulary(model: PreTrainedModel) -> int:
    """Number of logits of the model."""
    return int(model.get_output_embeddings().weight.shape[0])


def context_limit(model: PreTrainedModel) -> int | None:
    """Tokens up to which the model attends to everything: its positions or its sliding window; None if unlimited."""
    config = model.config.get_text_config()
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    return min((int(limit) for limit in limits if limit), default=None)
