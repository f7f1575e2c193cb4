"""How many tokens to draft before asking the target: fixed, measured, by an acceptance head, or by the draft's doubt.

A policy is asked after every drafted token whether to stop. The decoder's loop is

    state = None
    for drafted in range(1, policy.maximum + 1):
        ... one draft pass: draft_row [B, V], hidden [B, D];  token [B] sampled from draft_row ...
        stop, state = policy.should_stop(state, draft_row=draft_row, hidden=hidden, token=token, drafted=drafted)
        # requests with stop=True draft no more in this round; the token just drafted stays in the block

B requests, V vocabulary, D width of the draft's hidden state. "Drafted" counts the tokens of this round.

Where each policy is lossless. A policy whose decision depends on drafted tokens (`adaptive = True`) is a stopping
rule: with one path and a stateless verifier ("token", "block") the output law is unchanged, because what happens at
a prefix depends on that prefix alone. With several paths it is not safe: the paths that go on are no longer
independent draws of the draft, and "two-level" and "gbv" then emit a wrong law. Nor with a stateful verifier: its
carried layers must know where the rule would have stopped on branches that were never drafted. Use `FixedLength`
or `MeasuredLength` there: a length that changes between rounds without looking at the drafted tokens of its own round
is fine with every stateless verifier. All this is measured in the tests of this module.

[SD++] SpecDec++, arXiv:2405.19715, Section 3; the entropy bound is AdaEDL, arXiv:2410.18351, Eq. (7).
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .acceptance_head import AcceptanceHead


class LengthPolicy(Protocol):
    """What the decoder needs of a policy.

    Attributes:
        minimum, maximum: bounds on the tokens drafted per round, inclusive, 1 <= minimum <= maximum (minimum 0 for
            `MeasuredLength`). `should_stop` never says stop before `minimum` and always at `maximum`.
        adaptive: True if the decision depends on drafted tokens (see the module text for where that is lossless).
        needs_hidden: True if `hidden` must be given.
    """

    @property
    def minimum(self) -> int: ...
    @property
    def maximum(self) -> int: ...
    @property
    def adaptive(self) -> bool: ...
    @property
    def needs_hidden(self) -> bool: ...

    def should_stop(
        self, state: Tensor | None, *, draft_row: Tensor, hidden: Tensor | None, token: Tensor, drafted: int
    ) -> tuple[Tensor, Tensor | None]:
        """Whether each request stops drafting now, and the policy's state for its next token.

        Args:
            state: what the previous call of this round returned; None at the first token of a round. A tensor
                with the requests on its first axis: select its rows when requests leave the batch.
            draft_row [B, V]: the law from which `token` was drawn.
            hidden [B, D]: the draft's last hidden state in the pass that gave `draft_row` (final norm applied: what
                the language-model head reads). That pass has read the tokens before `token`, not `token` itself.
            token [B] int64: the token just drafted.
            drafted: how many tokens of this round are drafted, `token` included (1, 2, ...).

        Returns:
            stop [B] bool, and the new state.
        """
        ...


@dataclass(frozen=True)
class FixedLength:
    """Always draft the same number of tokens.

    Raises:
        ValueError: length below 1.
    """

    length: int
    adaptive = False
    needs_hidden = False

    def __post_init__(self) -> None:
        _check_bounds(self.length, self.length)

    @property
    def minimum(self) -> int:
        return self.length

    @property
    def maximum(self) -> int:
        return self.length

    def should_stop(
        self, state: Tensor | None, *, draft_row: Tensor, hidden: Tensor | None, token: Tensor, drafted: int
    ) -> tuple[Tensor, Tensor | None]:
        """Stop after `length` tokens."""
        return torch.full_like(token, drafted >= self.length, dtype=torch.bool), None


@dataclass
class Pace:
    """What calls with so many rows and paths took and kept, and the draft length that is fastest by it.

        tokens per second at length l = (1 + a + a^2 + .. + a^l) / seconds(l)

    a is the share of drafted tokens kept among those that were reached, recent calls counting more; seconds(l) is the
    median of recent calls with l, between lengths that were tried by a straight line. Now and then, ever more seldom,
    the best of the other kind (a draft, or none) is tried again.

    Attributes:
        maximum: largest length.
        seconds: of a call at each length 0..maximum if known beforehand; else they are measured.
        kept, reached: drafted tokens, discounted by `MEMORY` with every call.
    """

    maximum: int
    seconds: Sequence[float] | None = None
    kept: float = 1.0
    reached: float = 2.0
    calls: int = 0
    taken: dict[int, deque[float]] = field(default_factory=dict)

    def length(self) -> int:
        """Of the next drafts; 0 for none, a plain step of the target."""
        if self.seconds is None:
            probes = dict.fromkeys((min(4, self.maximum), 1, 0))
            untried = [length for length in probes if len(self.taken.get(length, ())) < TRIES]
            if untried:
                return min(untried, key=lambda length: len(self.taken.get(length, ())))
        share = self.kept / self.reached
        tokens = np.cumsum(share ** np.arange(self.maximum + 1))
        speed = tokens / (self.costs() if self.seconds is None else np.asarray(self.seconds))
        best = int(speed.argmax())
        again = self.calls >= RETRY and self.calls & (self.calls - 1) == 0
        if self.seconds is None and again:
            return int(speed[1:].argmax()) + 1 if best == 0 else 0
        return best

    def costs(self) -> np.ndarray:
        """[maximum + 1]: seconds of a call at each length, measured or read off the line through those measured."""
        usual = {length: statistics.median(taken) for length, taken in self.taken.items()}
        tried = sorted(length for length in usual if length)
        slope, start = np.polyfit(tried, [usual[length] for length in tried], 1) if len(tried) > 1 else (0.0, usual[1])
        line = start + max(slope, 0.0) * np.arange(self.maximum + 1)
        for length, seconds in usual.items():
            line[length] = seconds
        return line

    def saw(self, length: int, seconds: float | None, kept: Sequence[int], drafted: Sequence[int]) -> None:
        """Count a call in.

        Args:
            seconds: None if it was no call like the others.
            kept, drafted: of each row that was not done.
        """
        self.calls += 1
        if seconds is not None:
            self.taken.setdefault(length, deque(maxlen=RECENT)).append(seconds)
        if any(drafted):
            pairs = list(zip(kept, drafted, strict=True))
            self.kept = MEMORY * self.kept + sum(kept)
            self.reached = MEMORY * self.reached + sum(some + (some < most) for some, most in pairs)


TRIES, RECENT, RETRY, MEMORY = 2, 16, 8, 0.97


class MeasuredLength:
    """The draft length of largest speed by what earlier calls kept and took; 0, no draft at all, is one of them.

    The first calls try a few lengths. Handed to several generations, it goes on learning, for each number of rows and
    paths apart. Since it goes by measured time, a seed does not fix the text, only its law.

    Args:
        maximum: most tokens per round.
        seconds: of a call at lengths 0..maximum, if they are known: then nothing is measured, and a seed fixes the
            text.

    Raises:
        ValueError: bounds out of range, or not one positive number of seconds per length.
    """

    minimum = 0
    adaptive = False
    needs_hidden = False

    def __init__(self, maximum: int = 8, seconds: Sequence[float] | None = None) -> None:
        _check_bounds(1, maximum)
        if seconds is not None and (len(seconds) != maximum + 1 or not all(0 < value < np.inf for value in seconds)):
            raise ValueError(f"seconds is {seconds}; want {maximum + 1} positive numbers, for lengths 0..{maximum}")
        self.maximum, self.seconds = maximum, seconds
        self.paces: dict[tuple[int, int], Pace] = {}

    def __repr__(self) -> str:
        return f"MeasuredLength(maximum={self.maximum})"

    def pace(self, rows: int, paths: int) -> Pace:
        """What was learnt with so many rows and paths."""
        return self.paces.setdefault((rows, paths), Pace(self.maximum, self.seconds))

    def should_stop(
        self, state: Tensor | None, *, draft_row: Tensor, hidden: Tensor | None, token: Tensor, drafted: int
    ) -> tuple[Tensor, Tensor | None]:
        """Stop after `maximum` tokens: a round's length is known before it begins."""
        return torch.full_like(token, drafted >= self.maximum, dtype=torch.bool), None


@dataclass(frozen=True)
class AcceptanceHeadLength:
    """Stop when a rejection among the drafted tokens has become likely enough, [SD++] Section 3.

        stop after k tokens if  1 - prod_{i<k} a(Y_i) > threshold

    a(Y_i) is the head's acceptance probability of token Y_i, read from the hidden state that has read Y_i. That
    state belongs to the draft pass for token i+1, so the product ends one token early, as in the authors' code:
    waiting for the last factor would cost a draft pass per round. For token verification and a draft cost t_d per
    token, t_T per target call, stopping is certainly right from threshold 1 - t_d / t_T on; the best threshold is
    smaller and depends on the context.

    Args:
        head: the trained acceptance head.
        threshold: in [0, 1]; 0 stops at the first doubt, 1 never stops early.
        minimum, maximum: tokens per round.

    Raises:
        ValueError: bounds or threshold out of range; `hidden` missing.
    """

    head: AcceptanceHead
    threshold: float = 0.5
    minimum: int = 1
    maximum: int = 16
    adaptive = True
    needs_hidden = True

    def __post_init__(self) -> None:
        _check_bounds(self.minimum, self.maximum)
        _check_unit("threshold", self.threshold)

    def should_stop(
        self, state: Tensor | None, *, draft_row: Tensor, hidden: Tensor | None, token: Tensor, drafted: int
    ) -> tuple[Tensor, Tensor | None]:
        """The state is the probability [B] that no token scored so far is rejected, float32."""
        if hidden is None:
            raise ValueError("hidden is None; the acceptance head wants the draft's last hidden state [B, D]")
        if state is None:
            all_accepted = torch.ones_like(token, dtype=torch.float32)
        else:
            weight = self.head.output.weight
            all_accepted = state * self.head.acceptance(hidden.to(weight.device)).to(token.device)
        return _bounded(1 - all_accepted > self.threshold, drafted, self.minimum, self.maximum), all_accepted


@dataclass(frozen=True)
class ConfidenceLength:
    """Training-free baseline: stop when the draft gave the token it has just drawn less than a threshold.

        stop after k tokens if  draft(Y_k) < threshold

    Args:
        threshold: in [0, 1]; 0 never stops early.
        minimum, maximum: tokens per round.

    Raises:
        ValueError: bounds or threshold out of range.
    """

    threshold: float = 0.4
    minimum: int = 1
    maximum: int = 16
    adaptive = True
    needs_hidden = False

    def __post_init__(self) -> None:
        _check_bounds(self.minimum, self.maximum)
        _check_unit("threshold", self.threshold)

    def should_stop(
        self, state: Tensor | None, *, draft_row: Tensor, hidden: Tensor | None, token: Tensor, drafted: int
    ) -> tuple[Tensor, Tensor | None]:
        """Reads only the probability of the drafted token."""
        probability = draft_row.gather(-1, token.unsqueeze(-1)).squeeze(-1).float()
        return _bounded(probability < self.threshold, drafted, self.minimum, self.maximum), None


@dataclass(frozen=True)
class EntropyLength:
    """Training-free baseline: stop when the draft's entropy says that acceptance is unlikely (AdaEDL).

        stop after k tokens if  1 - sqrt(scale * H(draft row)) < threshold,   H in nats

    The left side stands in for the acceptance probability of the token; `scale` is fitted, 0.2 in the paper.

    Args:
        threshold: in [0, 1].
        scale: positive.
        minimum, maximum: tokens per round.

    Raises:
        ValueError: bounds, threshold or scale out of range.
    """

    threshold: float = 0.3
    scale: float = 0.2
    minimum: int = 1
    maximum: int = 16
    adaptive = True
    needs_hidden = False

    def __post_init__(self) -> None:
        _check_bounds(self.minimum, self.maximum)
        _check_unit("threshold", self.threshold)
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}; want a positive number")

    def should_stop(
        self, state: Tensor | None, *, draft_row: Tensor, hidden: Tensor | None, token: Tensor, drafted: int
    ) -> tuple[Tensor, Tensor | None]:
        """Reads only the draft row."""
        entropy = torch.special.entr(draft_row.float()).sum(dim=-1)
        bound = 1 - (self.scale * entropy).sqrt()
        return _bounded(bound < self.threshold, drafted, self.minimum, self.maximum), None


def _bounded(wish: Tensor, drafted: int, minimum: int, maximum: int) -> Tensor:
    """The wish to stop, within the bounds on the draft length."""
    if drafted >= maximum:
        return torch.ones_like(wish)
    return wish if drafted >= minimum else torch.zeros_like(wish)


def _check_bounds(minimum: int, maximum: int) -> None:
    whole = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in (minimum, maximum))
    if not whole or not 1 <= minimum <= maximum:
        raise ValueError(
            f"draft length bounds are minimum {minimum} and maximum {maximum}; want integers, 1 <= minimum <= maximum"
        )


def _check_unit(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; want a number in [0, 1]")
