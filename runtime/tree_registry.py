"""The list of verifiers of drafted trees, beside the registry of those of drafted paths.

What an entry declares is measured, as there: its exact law over drafting and verification.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .drafting.tree import Drafter, TreeBatch, TreeVerdict
from .draws import Draws

VerifyTree = Callable[[TreeBatch, Draws], TreeVerdict]
Requires = Literal["any tree", "any tree with known laws", "a stem, then independent paths"]


@dataclass(frozen=True)
class TreeVerifier:
    """A verification algorithm for drafted trees and the facts it declares.

    Attributes:
        name: how the command line and `get` call it.
        verify: the algorithm, `verify(batch, draws) -> TreeVerdict`.
        summary: one line for people.
        source: paper, theorem or equation.
        requires: what it wants of the drafts: any tree, however it was chosen; the very laws that its sampled nodes
            were drawn from; or a stem, then independent paths (`stem:L1,K`, `iid` shapes that branch once).
        lossless: True if the emitted tokens have exactly the target's law.
        cost: operations per request in the letters N (nodes), V.
    """

    name: str
    verify: VerifyTree
    summary: str
    source: str
    requires: Requires
    lossless: bool
    cost: str

    def takes(self, drafter: Drafter) -> bool:
        """Whether it can verify the trees of this drafter."""
        return self.requires != "a stem, then independent paths" or drafter.stem is not None

    def check(self, drafter: Drafter) -> None:
        """Raise ValueError if it cannot verify the trees of this drafter."""
        if not self.takes(drafter):
            takers = ", ".join(entry.name for entry in _VERIFIERS.values() if entry.requires != self.requires)
            raise ValueError(
                f"tree verifier {self.name!r} wants {self.requires} (stem:L1,K), not {drafter}; any tree suits {takers}"
            )


_VERIFIERS: dict[str, TreeVerifier] = {}


def register_tree(
    name: str,
    *,
    summary: str,
    source: str,
    requires: Requires = "any tree with known laws",
    lossless: bool = True,
    cost: str = "O(N V)",
) -> Callable[[VerifyTree], VerifyTree]:
    """Decorator that enters a verifier of trees under `name`; the facts are those of `TreeVerifier`."""

    def enter(verify: VerifyTree) -> VerifyTree:
        if name in _VERIFIERS:
            raise ValueError(f"tree verifier {name!r} is registered twice; choose another name")
        _VERIFIERS[name] = TreeVerifier(name, verify, summary, source, requires, lossless, cost)
        return verify

    return enter


def names() -> list[str]:
    """Registered names, in the order of registration."""
    return list(_VERIFIERS)


def default(drafter: Drafter) -> TreeVerifier:
    """The entry to use for the trees of this drafter where nobody asked for another.

    The race where independent paths follow a stem; sampler match where all nodes are given (nothing keeps more);
    UniVer where given and sampled children mix, traversal where all are sampled, by what they keep on the shipped pair.
    """
    if drafter.stem is not None:
        return get("tree-score-race")
    return get({"given": "tree-match", "mixed": "tree-univer", "sampled": "tree-traversal"}[drafter.children])


def entries() -> list[TreeVerifier]:
    """All entries, in the order of registration."""
    return list(_VERIFIERS.values())


def get(name: str) -> TreeVerifier:
    """The entry of that name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in _VERIFIERS:
        raise ValueError(f"tree verifier is {name!r}; known are {', '.join(_VERIFIERS)}")
    return _VERIFIERS[name]
