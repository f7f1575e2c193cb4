"""Prompt look-up: the tokens that followed the last few tokens earlier in the text are the draft.

Nothing is drawn: the draft is given, its law has all mass on it. Letters: L draft length, V vocabulary. Source:
prompt lookup decoding (A. Saxena, 2023), as in transformers' `prompt_lookup_num_tokens`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def look_up(known: Tensor, length: int, longest: int = 3) -> Tensor:
    """The `length` tokens behind the last earlier place where the text's end occurs; none if it does not occur.

    The longest end that occurs decides: of `longest` tokens, then one less, down to 1; of several places the last.
    Where the text ends the tokens begin again: a text that goes round in circles is drafted round the circle.

    Args:
        known [T] int64: prompt and tokens so far.

    Returns:
        [length] or [0].

    Raises:
        ValueError: `length` or `longest` below 1.
    """
    for name, value in (("length", length), ("longest", longest)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; want an integer of at least 1")
    for size in range(min(longest, len(known) - 1), 0, -1):
        windows = known.unfold(0, size, 1)[:-1]
        found = (windows == known[-size:]).all(dim=1).nonzero()
        if len(found):
            copied = known[int(found[-1]) + size :][:length]
            return copied.repeat(-(-length // len(copied)))[:length]
    return known[:0]


def given_laws(tokens: Tensor, vocab: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Laws [..., V] with all mass on `tokens` [...]: what a token that was not drawn counts as drawn from."""
    laws = torch.zeros(*tokens.shape, vocab, dtype=dtype, device=tokens.device)
    return laws.scatter_(-1, tokens[..., None], 1.0)
