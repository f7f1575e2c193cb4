"""How far back the layers of a model look: at everything, at a window, or at the chunk they are in.

A model may mix kinds of layers; transformers names the kind of each in the configuration (`layer_types`), and takes
one attention mask per kind where they differ. Positions are those of the text, padding left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor


@dataclass(frozen=True)
class Reach:
    """What a token at position i sees, of the places it may see at all.

    Attributes:
        kind: "all"; "window", positions above i - size; or "chunk", positions from size * (i // size) on.
        size: of the window or chunk.
    """

    kind: Literal["all", "window", "chunk"]
    size: int = 0

    def hides(self, length: int) -> bool:
        """Whether anything is out of reach in a text of that many tokens."""
        return self.kind != "all" and length > self.size

    def sees(self, positions: Tensor, place: Tensor) -> Tensor:
        """bool [B, n, m]: which of the places [B, m] the tokens at `positions` [B, n] reach."""
        tokens, others = positions[:, :, None], place[:, None, :]
        if self.kind == "chunk":
            return others // self.size == tokens // self.size
        return others > tokens - self.size

    def first(self, position: int) -> int:
        """The first position that a token at `position`, or any later one, reaches."""
        if self.kind == "all":
            return 0
        return self.size * (position // self.size) if self.kind == "chunk" else max(0, position - self.size + 1)


SIZES = ("sliding_window", "attention_chunk_size")
ALL = Reach("all")


def reaches(config: Any) -> dict[str, Reach]:
    """The reach of each kind of attention layer that the configuration names; one kind if it names none."""
    kinds = getattr(config, "layer_types", None)
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    if not kinds:
        used = getattr(config, "use_sliding_window", True)
        return {"sliding_attention": Reach("window", int(window))} if window and used else {"full_attention": ALL}
    found = {"full_attention": ALL}
    if window:
        found["sliding_attention"] = Reach("window", int(window))
    if chunk:
        found["chunked_attention"] = Reach("chunk", int(chunk))
    return {kind: found.get(kind, ALL) for kind in dict.fromkeys(kinds)}


def kinds_of_layers(config: Any) -> list[str]:
    """The kind of each layer, as `reaches` names them."""
    kinds = getattr(config, "layer_types", None)
    return list(kinds) if kinds else [next(iter(reaches(config)))] * int(config.num_hidden_layers)


def smallest_window(config: Any) -> int | None:
    """Tokens that every layer reaches from the last of them; None if all layers reach everything."""
    return min((reach.size for reach in reaches(config).values() if reach.kind != "all"), default=None)
