"""Every causal language model that transformers can build, at toy size, with weights that make all of it matter."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB, WIDTH, WINDOW = 23, 16, 6
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    "emb_dim": WIDTH,
    "hidden_size": WIDTH,
    "d_model": WIDTH,
    "n_embd": WIDTH,
    "embedding_size": WIDTH,
    "word_embed_proj_dim": WIDTH,
    "intermediate_size": 24,
    "ffn_dim": 24,
    "moe_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "intermediate_size_mlp": 24,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MLA = {"num_key_value_heads": 4}  # keys and values of every head from one compressed vector
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash"), MLA),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa", "youtu"), MLA),
    "minicpm3": MLA | {"scale_emb": 1, "dim_model_base": WIDTH},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "dots1": {"n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": WINDOW, "hidden_size": WIDTH},
}
SINGLE = {"xglm"}  # masks with the smallest float32


def model_types() -> list[str]:
    """Names of all families with a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def toy(model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of the family in float64 (float32 where it wants that), in evaluation mode.

    Raises:
        Exception: whatever the family raises at this size.
    """
    kind = type(AutoConfig.for_model(model_type))
    default = kind()
    known = default.to_dict()
    own = OWN.get(model_type, {}) | changes
    settings = {name: value for name, value in (SMALL | own).items() if name in known or name in own}
    config = kind(**settings)
    torch.manual_seed(seed)
    config._experts_implementation = "eager"
    model = MODEL_FOR_CAUSAL_LM_MAPPING[kind](config)
    return spread((model if model_type in SINGLE else model.double()).eval(), seed)


def spread(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Matrices large enough that every token of the context moves the law of the next by far more than rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                fan = weight.shape[-1]
                scale = 1.0 if "emb" in name or "wte" in name else 1.5 / fan**0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model
