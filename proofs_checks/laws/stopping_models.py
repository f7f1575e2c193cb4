"""From two language models to a draft-length problem: `theory.stopping` on the prefix tree at a real context."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.stopping import StoppingInstance


def stopping_instance(
    tree: PrefixTree,
    target_time: Any,
    draft_time: Any,
    max_length: int,
    verifier: Literal["token", "block"] = "block",
    min_length: int = 0,
) -> StoppingInstance:
    """Contexts are the prefixes that the tree knows more than one token behind; past its depth a new text begins.

    Args:
        tree: of two models (`laws.model_trees.from_models`) or any other; depth N.
        target_time, draft_time: of a target pass and of a drafted token, in one unit.
        max_length, min_length: bounds of the draft length, as in `StoppingInstance`.
    """
    known = [node for node in range(tree.size) if tree.children[node].stop > tree.children[node].start]
    place = {node: number for number, node in enumerate(known)}
    zero = tree.target[0] * 0
    target, draft = (np.full((len(known), tree.vocab), zero, dtype=tree.target.dtype) for _ in range(2))
    successor = np.zeros((len(known), tree.vocab), dtype=np.int64)
    for number, node in enumerate(known):
        for child in range(tree.children[node].start, tree.children[node].stop):
            token = tree.token[child]
            target[number, token], draft[number, token] = tree.target[child], tree.draft[child]
            successor[number, token] = place.get(child, 0)
    rows: dict[str, Any] = {"target": target.tolist(), "draft": draft.tolist(), "successor": successor.tolist()}
    return StoppingInstance(
        **rows,
        target_time=target_time,
        draft_time=draft_time,
        max_length=max_length,
        min_length=min_length,
        verifier=verifier,
    )
