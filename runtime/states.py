"""What a model has read, row by row: key/value slots where it has them, else copies of its state."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from .cache import CachedModel
from .models import has_slots
from .recurrent import StateModel


class Held(Protocol):
    """What drafting and decoding ask of a model and its rows; the meaning is that of `CachedModel`'s.

    Attributes:
        rolls_back: tokens can be forgotten at no cost.
        base: for each row the number of committed tokens.
        hidden: last hidden states, if they are wanted.
    """

    rolls_back: bool
    base: list[int]
    hidden: Tensor | None

    def start(self, tokens: Tensor, known: list[int]) -> None: ...
    def read(self, tokens: Tensor, last: int = 0) -> Tensor: ...
    def extend(self, tokens: Tensor, positions: Tensor, tail: Tensor, last: int = 0) -> Tensor: ...
    def forget_tail(self, base: list[int]) -> None: ...
    def select(self, rows: list[int]) -> None: ...
    def keep_path(self, places: Tensor) -> None: ...


def hold(model: PreTrainedModel, rows: int, wants_hidden: bool = False) -> Held:
    """The model with nothing read yet."""
    kind = CachedModel if has_slots(model) else StateModel
    return kind(model, rows, wants_hidden)
