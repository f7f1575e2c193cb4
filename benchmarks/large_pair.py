"""A pair as large as the machine's memory is slow, with acceptance as between real models: what benchmarks decode.

The target is a Llama of random weights whose later layers add little to the residual stream; the draft is its first
layers (early exit), so it agrees with the target as far as those later layers leave it. The head is scaled so that a
next-token law has a few nats of entropy.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from specbound.runtime.drafting.early_exit import early_exit

VOCAB = 8000


def truncated_pair(
    width: int = 896,
    layers: int = 16,
    kept: int = 1,
    later: float = 0.12,
    spread: float = 4.0,
    dtype: torch.dtype = torch.float32,
    positions: int = 2048,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Target and draft; 163 million parameters at the default size, of which a pass of the draft reads a tenth.

    Args:
        width: of the residual stream, a multiple of 64; layers: of the target; kept: of them in the draft.
        later: factor of what the layers behind those add to the residual stream; sets the acceptance.
        spread: standard deviation of a row's logits; sets the entropy.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=8 * width // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    target = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for place, layer in enumerate(target.model.layers):
            scale = 1.0 if place < kept else later
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight.normal_(0, scale * width**-0.5)
        target.model.embed_tokens.weight.normal_(0, 1.0)
        target.lm_head.weight.normal_(0, spread * width**-0.5)
    target = target.to(dtype)
    return target, early_exit(target, kept)


def parameters(model: PreTrainedModel) -> int:
    """How many numbers a pass reads, embeddings left out (of which it reads a row per token)."""
    return sum(weight.numel() for weight in model.parameters()) - model.get_input_embeddings().weight.numel()
