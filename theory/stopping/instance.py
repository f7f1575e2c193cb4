"""What a draft-length decision problem is made of, and its JSON form.

Letters: V tokens, C contexts, K = max_length, t_T = target_time, t_d = draft_time. A round starts in
context s, drafts tokens Y_1..Y_k one by one (time t_d each), then calls the target once (time t_T).
[SpecDec++] arXiv:2405.19715, section 3 (the decision process).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Literal

from ..contexts import ContextModel, ModelPair
from ..json_objects import read_object, write_object
from ..numbers import Number, Table, read_count, read_number

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

    target: Table
    draft: Table
    target_time: Number
    draft_time: Number
    max_length: int
    min_length: int = 0
    verifier: Literal["token", "block"] = "token"
    successor: tuple[tuple[int, ...], ...] | None = None

    def __post_init__(self) -> None:
        pair = ModelPair.of(self.target, self.draft, self.successor)
        times = (read_number(self.target_time, "target_time"), read_number(self.draft_time, "draft_time"))
        if times[0] <= 0:
            raise ValueError(f"target_time is {times[0]}; want a positive time")
        if times[1] < 0:
            raise ValueError(f"draft_time is {times[1]}; want a time, at least 0")
        if self.verifier not in ("token", "block"):
            raise ValueError(f'verifier is {self.verifier!r}; want "token" or "block"')
        if not (pair.exact and all(isinstance(time, Fraction) for time in times)):
            pair, times = pair.as_float(), (float(times[0]), float(times[1]))
        max_length = read_count(self.max_length, "max_length")
        values = {
            "target": pair.target.table,
            "draft": pair.draft.table,
            "target_time": times[0],
            "draft_time": times[1],
            "max_length": max_length,
            "min_length": read_count(self.min_length, "min_length", max_length),
            "successor": pair.target.following,
        }
        for name, value in values.items():
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
        assert self.successor is not None
        return self.successor

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
        models = {"target": ContextModel.tree(target), "draft": ContextModel.tree(draft)}
        rows = {name: model.table for name, model in models.items()}
        return cls(**rows, successor=models["target"].following, **times_and_bounds)  # type: ignore[arg-type]

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
        return write_object(None, JSON_VERSION, {field.name: getattr(self, field.name) for field in fields(self)})
