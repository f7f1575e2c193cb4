"""What a draft-length decision problem is made of, and its JSON form.

Letters: V tokens, C contexts, K = max_length, t_T = target_time, t_d = draft_time. A round starts in
context s, drafts tokens Y_1..Y_k one by one (time t_d each), then calls the target once (time t_T).
[SpecDec++] arXiv:2405.19715, section 3 (the decision process).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal, cast

from ..contexts import (
    Number,
    Rows,
    all_exact,
    as_floats,
    read_count,
    read_rows,
    read_successor,
    to_number,
    tree_successor,
)
from ..json_objects import read_object

JSON_VERSION = 1
_REQUIRED = ("target", "draft", "target_time", "draft_time", "max_length")
_OPTIONAL = ("min_length", "verifier", "successor")


@dataclass(frozen=True)
class StoppingInstance:
    """A target, a draft, their times, and the bounds on the draft length.

    Attributes:
        target, draft: rows [C, V] of next-token probabilities, one per context.
        target_time: t_T > 0, time of one target call; draft_time: t_d >= 0, time of one drafted token.
        max_length: K >= 0, most tokens drafted in a round; min_length: in 0..K, drafted before any choice.
        verifier: "token" (token-level verification) or "block" (block verification).
        successor: [C, V], context after each token; None for order-1 Markov (successor = token).

    Every number is a Fraction if all of them are given exactly, else every number is float64.
    Raises ValueError naming the field, its value and what was wanted.
    """

    target: Rows
    draft: Rows
    target_time: Number
    draft_time: Number
    max_length: int
    min_length: int = 0
    verifier: Literal["token", "block"] = "token"
    successor: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        target = read_rows(self.target, "target")
        draft = read_rows(self.draft, "draft", len(target[0]))
        if len(draft) != len(target):
            raise ValueError(f"draft has {len(draft)} rows and target {len(target)}; want one per context in both")
        times = (to_number(self.target_time, "target_time"), to_number(self.draft_time, "draft_time"))
        if times[0] <= 0:
            raise ValueError(f"target_time is {times[0]}; want a positive time")
        if times[1] < 0:
            raise ValueError(f"draft_time is {times[1]}; want a time, at least 0")
        if self.verifier not in ("token", "block"):
            raise ValueError(f'verifier is {self.verifier!r}; want "token" or "block"')
        if not all_exact(*target, *draft, times):
            target, draft, times = as_floats(target), as_floats(draft), (float(times[0]), float(times[1]))
        max_length = read_count(self.max_length, "max_length")
        fields = {
            "target": target,
            "draft": draft,
            "target_time": times[0],
            "draft_time": times[1],
            "max_length": max_length,
            "min_length": read_count(self.min_length, "min_length", max_length),
            "successor": read_successor(self.successor, len(target), len(target[0])),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def contexts(self) -> int:
        return len(self.target)

    @property
    def vocab(self) -> int:
        return len(self.target[0])

    @property
    def exact(self) -> bool:
        return isinstance(self.target_time, Fraction)

    @property
    def one(self) -> Number:
        return Fraction(1) if self.exact else 1.0

    @cached_property
    def branches(self) -> tuple[tuple[tuple[int, Number, Number], ...], ...]:
        """Per context, the drafts with positive probability: (next context, draft, target / draft)."""
        return tuple(
            tuple(
                (self.next_contexts[c][z], self.draft[c][z], self.target[c][z] / self.draft[c][z])
                for z in range(self.vocab)
                if self.draft[c][z] > 0
            )
            for c in range(self.contexts)
        )

    @property
    def next_contexts(self) -> tuple[tuple[int, ...], ...]:
        return cast("tuple[tuple[int, ...], ...]", self.successor)

    def next_rho(self, rho: Number, ratio: Number) -> Number:
        """Pr(the whole block is accepted | drafts) after one more draft with target / draft = ratio.

        token: rho min(1, ratio);  block: min(1, rho ratio).
        """
        if self.verifier == "token":
            return rho * ratio if ratio < 1 else rho
        product = rho * ratio if rho > 0 else rho
        return product if product < 1 else self.one

    def expect_target(self, context: int, values: tuple[Number, ...] | list[Number]) -> Number:
        """(p v)(context) = sum_z target(z | context) v(context after z)."""
        following = self.next_contexts[context]
        terms = (self.target[context][z] * values[following[z]] for z in range(self.vocab))
        return sum(terms, start=0 * self.one)

    @classmethod
    def prefix_tree(
        cls,
        target: Mapping[tuple[int, ...], object],
        draft: Mapping[tuple[int, ...], object],
        **times_and_bounds: object,
    ) -> StoppingInstance:
        """One context per prefix of length 0..N-1 (breadth-first, so context 0 is the empty prefix).

        `target` and `draft` map each prefix to its row. After N tokens a new text starts at the root, which a
        finite horizon of N tokens never sees.
        """
        if set(draft) != set(target):
            raise ValueError(f"draft has rows for {len(draft)} prefixes; want the same {len(target)} as target")
        if () not in target:
            raise ValueError("target has no row for the empty prefix (); want a row per prefix")
        vocab = len(read_rows([target[()]], "target[()]")[0])
        prefixes, successor = tree_successor(target, vocab, "target")
        rows = {"target": [target[w] for w in prefixes], "draft": [draft[w] for w in prefixes]}
        return cls(**rows, successor=successor, **times_and_bounds)  # type: ignore[arg-type]

    @classmethod
    def from_json(cls, text: str) -> StoppingInstance:
        """Read the form `to_json` writes. Numbers may be JSON numbers or rational strings ("3/4").

        Raises:
            ValueError: not JSON, another version, unknown or missing fields, or a value out of its range.
        """
        document = read_object("the stopping instance", text, None, JSON_VERSION, _REQUIRED, _OPTIONAL)
        return cls(**{name: value for name, value in document.items() if name != "version"})

    def to_json(self) -> str:
        """JSON with `version`; exact numbers as rational strings, floats with every digit."""
        document: dict[str, object] = {
            "version": JSON_VERSION,
            "target": [[_to_plain(value) for value in row] for row in self.target],
            "draft": [[_to_plain(value) for value in row] for row in self.draft],
            "target_time": _to_plain(self.target_time),
            "draft_time": _to_plain(self.draft_time),
            "max_length": self.max_length,
            "min_length": self.min_length,
            "verifier": self.verifier,
            "successor": [list(row) for row in self.next_contexts],
        }
        return json.dumps(document)


def _to_plain(value: Number) -> str | float:
    return str(value) if isinstance(value, Fraction) else value
