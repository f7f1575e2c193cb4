"""Drafter and verifier in one call: the audit of coins that both share.

Some engines reuse the drafter's randomness in verification, and some verifiers are lossless only because they do
(Gumbel coupling, several lists). An audit that draws the drafts itself sees neither. Here the subject is

    draft_and_verify(draft_law, target_law, ...) -> emitted tokens, or (drafted tokens, emitted tokens)

where a law is a function from the tokens so far to a row of V probabilities. All coins of the call are enumerated
jointly; the law of the emitted tokens is compared with the target's, and the law of the drafts is reported.

Letters: L draft length, K paths, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from specbound.theory.prefix_tree import Prefix, PrefixTree

from ...laws.emissions import law_of_emissions
from ...laws.law import Law
from ...laws.replay import InvalidResult
from .adapters import stated, wanted_law
from .formats import representable
from .interception import Interception

Kind = Literal["list", "numpy", "torch"]
Row = Callable[[Sequence[int]], Any]
LAWS = ("draft_law", "target_law")
NUMBERS = ("length", "paths", "vocab")


@dataclass(frozen=True)
class DraftAndVerify:
    """A function that drafts and verifies one request.

    Attributes:
        function: called with `draft_law` and `target_law`, and with `length`, `paths`, `vocab` and `rng` if it has
            parameters of these names.
        kind: what the rows are: lists, NumPy arrays or torch tensors, in float64.
        paths: "many" if it takes the number of paths.
        dtype, row, precise, note: see `adapters.Foreign`.
    """

    function: Callable[..., Any]
    kind: Kind
    paths: Literal["single", "many"] = "single"
    dtype: torch.dtype = torch.float64
    row: Callable[[np.ndarray], np.ndarray] | None = None
    precise: Callable[[], Any] | None = None
    note: str = ""

    def handed(self, tree: PrefixTree) -> PrefixTree:
        """The instance as the function gets it, in float64."""
        return representable(tree, self.row) if self.row else tree.as_float()

    def __call__(self, tree: PrefixTree, paths: int) -> tuple[Prefix, Prefix | None]:
        """(emitted tokens, drafted tokens or None if it does not tell) of one call; random.

        Raises:
            InvalidResult: if the emitted ones are not 1 to L+1 tokens in 0..V-1.
        """
        return _read(self.function(**self._arguments(tree, paths)), tree)

    def _arguments(self, tree: PrefixTree, paths: int) -> dict[str, Any]:
        known: dict[str, Any] = {"length": tree.length, "paths": paths, "vocab": tree.vocab}
        known["draft_law"], known["target_law"] = (law_of(tree, name, self.kind) for name in LAWS)
        taken = inspect.signature(self.function).parameters
        if "rng" in taken:
            known["rng"] = np.random.default_rng()
        return {name: known[name] for name in taken if name in known}


def draft_and_verify(function: Callable[..., Any], kind: Kind = "numpy") -> DraftAndVerify:
    """The subject of a function `draft_and_verify(draft_law, target_law, ...)`.

    Raises:
        ValueError: if it takes no such laws, or needs something else.
    """
    taken = inspect.signature(function).parameters
    missing = [name for name in LAWS if name not in taken]
    unknown = [n for n, p in taken.items() if p.default is p.empty and n not in (*LAWS, *NUMBERS, "rng")]
    if missing or unknown:
        raise ValueError(
            f"parameters are {', '.join(taken)}; want draft_law and target_law, and of length, paths, vocab, rng those "
            "it needs"
        )
    return DraftAndVerify(function, kind, "many" if "paths" in taken else "single")


def takes_laws(function: Callable[..., Any]) -> bool:
    """Whether a function is of this kind, by its parameters' names."""
    return set(LAWS) <= set(inspect.signature(function).parameters)


def law_of(tree: PrefixTree, name: str, kind: Kind) -> Row:
    """The rows of a tree as a function from the tokens so far."""
    tree = tree.as_float()
    rows = tree.rows(tree.target if name == "target_law" else tree.draft)
    if name == "target_law":
        rows[tree.leaves] = tree.bonus
    node = {tree.prefix(w): w for w in range(tree.size)}

    def row(prefix: Sequence[int]) -> Any:
        at = node.get(tuple(int(token) for token in prefix))
        if at is None or (name == "draft_law" and at >= tree.leaves.start):
            raise InvalidResult(
                f"{name} was asked behind {list(prefix)}; want at most L = {tree.length} drafted tokens"
            )
        values = np.array(rows[at], dtype=float)
        return torch.from_numpy(values) if kind == "torch" else values.tolist() if kind == "list" else values

    return row


def _read(result: Any, tree: PrefixTree) -> tuple[Prefix, Prefix | None]:
    drafted = None
    if isinstance(result, tuple) and len(result) == 2 and all(np.ndim(_plain(part)) > 0 for part in result):
        drafted, result = tuple(int(token) for token in np.ravel(_plain(result[0]))), result[1]
    emitted = tuple(int(token) for token in np.ravel(_plain(result)) if token != -1)
    if not 1 <= len(emitted) <= tree.length + 1 or not all(0 <= token < tree.vocab for token in emitted):
        raise InvalidResult(
            f"it emitted {list(emitted)}; want 1 to L+1 = {tree.length + 1} tokens in 0..{tree.vocab - 1}"
        )
    return emitted, drafted


def _plain(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class JointLaw:
    """What a drafter and verifier do together.

    Attributes:
        law: of the emitted tokens, continued from the target to L+1.
        drafts: law of the drafted tokens of all paths in a row; None if it does not tell.
        draft_distance: total variation of that law to K independent drafts from the draft law; None if unknown.
        notes: what a reader of the law has to know (see `Interception`).
        resolution: total variation below which it says nothing (see `laws.judge.Evidence`).
        wanted: the target's law of the rows that were handed over.
    """

    law: Law
    drafts: dict[Prefix, float] | None
    draft_distance: float | None
    notes: tuple[str, ...] = ()
    resolution: float = 0.0
    wanted: dict[Prefix, float] = field(default_factory=dict)


def joint_law(subject: DraftAndVerify, tree: PrefixTree, paths: int = 1) -> JointLaw:
    """The exact joint law of a drafter and verifier, all their coins enumerated together.

    Raises:
        NotExact: if its randomness cannot be enumerated.
        InvalidResult: if it emits something that is not a block of tokens.
    """
    tree = subject.handed(tree)
    emissions: dict[Prefix, float] = defaultdict(float)
    drafts: dict[Prefix, float] = defaultdict(float)
    told = True
    with Interception(subject.function) as interception:
        found = interception.by_either_route(lambda law: law(lambda: subject(tree, paths)), tree.vocab)
    for (emitted, drafted), probability in found.items():
        emissions[emitted] += probability
        told = told and drafted is not None
        drafts[drafted or ()] += probability
    law = law_of_emissions(tree, emissions, len(found))
    distance = _draft_distance(drafts, tree, paths) if told else None
    resolution, notes = stated(interception, tree, subject.dtype, subject.note)
    return JointLaw(law, dict(drafts) if told else None, distance, notes, resolution, wanted_law(tree))


def _draft_distance(drafts: dict[Prefix, float], tree: PrefixTree, paths: int) -> float:
    """Total variation to K independent paths; drafts of another length stand apart."""
    blocks = {tree.prefix(leaf): float(tree.draft_joint[leaf]) for leaf in range(tree.leaves.start, tree.leaves.stop)}
    wanted: dict[Prefix, float] = {(): 1.0}
    for _ in range(paths):
        wanted = {(*w, *block): a * b for w, a in wanted.items() for block, b in blocks.items() if a * b > 0}
    keys = wanted.keys() | drafts.keys()
    return 0.5 * sum(abs(wanted.get(key, 0.0) - drafts.get(key, 0.0)) for key in keys)
