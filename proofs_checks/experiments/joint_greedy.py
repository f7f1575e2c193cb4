"""MJGD on real models: k tokens at a time, each block the most probable one that a beam search of the target finds.

    repeat: append argmax over blocks w of m = min(k, remaining) tokens of P(w | text)

A beam of width at least V^(k-1) finds the true argmax; a narrower one comes near. k = 1 is greedy decoding.
[MJSD] arXiv:2407.09722, section 3; exactly on small chains: `theory.joint_decoding.joint_greedy`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def joint_greedy(model: Any, ids: Tensor, new_tokens: int, window: int, width: int) -> Tensor:
    """[1, n + new_tokens]: the prompt [1, n] and what follows, `window` tokens at a time.

    Raises:
        ValueError: window or width below 1.
    """
    for name, value in (("window", window), ("width", width)):
        if value < 1:
            raise ValueError(f"{name} is {value}; want an integer of at least 1")
    end = ids.shape[1] + new_tokens
    while ids.shape[1] < end:
        ids = best_block(model, ids, min(window, end - ids.shape[1]), width)
    return ids


def best_block(model: Any, ids: Tensor, size: int, width: int) -> Tensor:
    """[1, n + size]: the prompt [1, n] and the block of largest joint probability that a beam search finds."""
    beams = {"num_beams": width, "length_penalty": 0.0} if width > 1 else {}
    return model.generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        **beams,
        do_sample=False,
        max_new_tokens=size,
        min_new_tokens=size,
        eos_token_id=None,
        pad_token_id=0,
    )
