"""What to draft, in one line: the grammar of `--drafts`, the same as for `specbound solve` where both know a law.

iid:K                         K independent paths
without-replacement:W1,W2,..  a tree: a node of depth d draws W_(d+1) different children, one after the other
top:W1,W2,..                  its W_(d+1) most probable children
top-and-sampled:W1,W2,..      all but one of them so, the last one drawn from the rest
stem:L1,K                     one path of L1 tokens, then K independent paths below it
dynamic:BEAM,NODES            the NODES of largest joint draft probability that a beam finds
prompt-lookup:N               what followed the last N tokens earlier in the text (no draft model)
early-exit:LAYERS             the target's own first layers as the draft model
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from .dynamic import Dynamic
from .early_exit import early_exit
from .given import GivenTokens, PromptLookup
from .shapes import FixedShape
from .tree import Drafter, TreeDraft

GRAMMAR = (
    "iid:K, without-replacement:W1,W2,.., top:W1,W2,.., top-and-sampled:W1,W2,.., stem:L1,K, dynamic:BEAM,NODES, "
    "prompt-lookup:N or early-exit:LAYERS"
)
SIZES = {"iid": 1, "stem": 2, "dynamic": 2, "prompt-lookup": 1, "early-exit": 1}
SHAPES = ("without-replacement", "top", "top-and-sampled")
OTHER_TREES = ("stem", "dynamic")


@dataclass(frozen=True)
class DraftSpec:
    """One way to draft.

    Attributes:
        kind, sizes: what stands before and behind the colon.
    """

    kind: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.sizes))}"

    @property
    def tree(self) -> bool:
        """It wants a verifier of trees."""
        return self.kind in (*SHAPES, *OTHER_TREES)

    @property
    def paths(self) -> int:
        """K."""
        return self.sizes[0] if self.kind == "iid" else 1

    def grow(self, length: int) -> Drafter:
        """How its tree grows; `length` is L where the sizes do not say it.

        Raises:
            ValueError: it drafts no tree, or a stem that is not shorter than the length.
        """
        if self.kind in SHAPES:
            return FixedShape(self.sizes, self.kind)  # type: ignore[arg-type]
        if self.kind == "dynamic":
            return Dynamic(length, *self.sizes)
        if self.kind != "stem":
            raise ValueError(f"drafts is {self}, which is no tree; want one of {', '.join((*SHAPES, *OTHER_TREES))}")
        stem, paths = self.sizes
        if stem >= length:
            raise ValueError(f"drafts is {self}; want a stem shorter than the draft length {length}")
        return FixedShape((1,) * stem + (paths,) + (1,) * (length - stem - 1), "iid")

    def bind(
        self, target: PreTrainedModel, draft: PreTrainedModel, length: int
    ) -> PreTrainedModel | GivenTokens | TreeDraft:
        """The `draft` argument of `generate` for these models; `length` is L where the sizes do not say it.

        Raises:
            ValueError: sizes that these models or this length do not allow.
        """
        if self.tree:
            return TreeDraft(draft, self.grow(length))
        if self.kind == "prompt-lookup":
            return PromptLookup(*self.sizes)
        return early_exit(target, *self.sizes) if self.kind == "early-exit" else draft


def read_drafts(text: str) -> DraftSpec:
    """The specification in `text`.

    Raises:
        ValueError: it does not follow the grammar of this module.
    """
    kind, _, numbers = text.partition(":")
    parts = numbers.split(",")
    known = kind in SIZES or kind in SHAPES
    if not known or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(f"drafts is {text!r}; want {GRAMMAR}")
    sizes = tuple(int(part) for part in parts)
    if len(sizes) != SIZES.get(kind, len(sizes)) or min(sizes[1:] if kind == "stem" else sizes) < 1:
        raise ValueError(f"drafts is {text!r}; want {GRAMMAR}, positive numbers")
    return DraftSpec(kind, sizes)
