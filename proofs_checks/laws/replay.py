"""Replay: the production code of a verifier, run through every random outcome.

A verifier asks all its random questions of a `Draws` object. `ReplayDraws` answers each in every possible way:
a batch row that meets an undecided question takes the first possible answer, multiplies its probability into
its weight, and leaves the other answers behind to be replayed in the next pass. A question with one possible
answer does not fork. When no answers are left, the weights of all finished rows are the exact law, in float64.

Letters: B requests, L draft length, K paths, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbound.runtime import registry
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict

from .races import image_race_law, race_law, score_race_law

Verify = Callable[[Batch, Draws], Verdict]
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NUMBERS_PER_PASS = 20_000_000
NEGLIGIBLE = 1e-15
LOST = 1e-9
CARRY = ("select", "joined", "numbers")


class InvalidResult(ValueError):
    """A verifier returned something else than it should."""


class TooLarge(ValueError):
    """There are more outcomes than are enumerated.

    Attributes:
        acceptance_length: of the first call of a stateful verifier, if only the calls after it are too many.
    """

    acceptance_length: float | None = None


class Stateful(ValueError):
    """A verifier returned a carry where only one call is looked at."""


class ReplayDraws(Draws):
    """Answers the questions of one pass of a verifier, row by row, along recorded decisions.

    Answers below 1e-15 count as impossible: the last digits of a row depend on its place in the batch, and a question
    that forks in one pass must fork in all.

    Args:
        decisions: for each of the B rows the answers it is to give first; later questions take the first
            possible answer and record the others in `alternatives`.
    """

    def __init__(self, decisions: Sequence[tuple[int, ...]]) -> None:
        super().__init__(None)
        self.decisions = list(decisions)
        self.asked = np.zeros(len(self.decisions), dtype=np.int64)
        self.weight = np.ones(len(self.decisions))
        self.alternatives: list[tuple[int, tuple[int, ...]]] = []

    def accept(self, probability: Tensor) -> Tensor:
        """Coins: the flattened elements of each row are asked one after another."""
        flat = probability.double().reshape(len(self.decisions), -1)
        answers = [self._answer(torch.stack([1 - coin, coin], dim=-1)) for coin in flat.unbind(dim=1)]
        stacked = torch.stack(answers, dim=1) if answers else flat
        return stacked.reshape(probability.shape).bool()

    def accept_while(self, probability: Tensor) -> Tensor:
        """The count of leading successes as one question: it is i with probability p_1..p_i (1 - p_{i+1})."""
        probability = probability.double()
        one = torch.ones_like(probability[:, :1])
        reach = torch.cat([one, probability], dim=1).cumprod(dim=1)
        return self._answer(reach * torch.cat([1 - probability, one], dim=1))

    def accept_last(self, probability: Tensor) -> Tensor:
        """The last success as one question: it is i with probability p_i (1 - p_{i+1})..(1 - p_L)."""
        probability = probability.double()
        one = torch.ones_like(probability[:, :1])
        later_fail = torch.cat([1 - probability, one], dim=1).flip(1).cumprod(dim=1).flip(1)
        return self._answer(torch.cat([one, probability], dim=1) * later_fail)

    def choose(self, weights: Tensor) -> Tensor:
        """A categorical draw; leading axes beyond the batch are asked one after another."""
        flat = weights.double().reshape(len(self.decisions), -1, weights.shape[-1])
        total = flat.sum(dim=-1, keepdim=True)
        if bool((total <= 0).any()) or not bool(torch.isfinite(total).all()):
            raise ValueError("a verifier asked for a draw from weights that are all zero or not finite")
        answers = [self._answer(row) for row in (flat / total).unbind(dim=1)]
        return torch.stack(answers, dim=1).reshape(weights.shape[:-1])

    def smallest_key(self, low: Tensor, high: Tensor) -> Tensor:
        """The winner of a race of uniform keys, by exact integration (see `race_law`)."""
        return self._answer(race_law(low, high))

    def smallest_image(self, like: Tensor, key: Callable[[Tensor], Tensor], knots: Callable[[], Tensor]) -> Tensor:
        """The winner of a race of increasing functions of uniforms, by exact integration (see `image_race_law`)."""
        uniforms = knots()
        keys = torch.stack([key(uniform) for uniform in uniforms.unbind(dim=-1)], dim=-1)
        return self._answer(image_race_law(keys, uniforms))

    def smallest_score(self, score: Tensor, below: Tensor) -> Tensor:
        """The winner of a race of piecewise uniform scores, by exact integration (see `score_race_law`)."""
        return self._answer(score_race_law(score, below))

    def _answer(self, law: Tensor) -> Tensor:
        """int64 [B]: the answer of each row to a question with probabilities `law` [B, N]."""
        laws = law.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(laws).all() or (laws < -1e-12).any() or (laws > 1 + 1e-12).any():
            raise ValueError("a verifier asked a question whose probabilities are not in [0, 1]")
        laws = np.where(laws < NEGLIGIBLE, 0.0, np.minimum(laws, 1.0))
        answers = (laws > 0).argmax(axis=1)
        forks = (laws > 0).sum(axis=1) > 1
        for row in np.flatnonzero(forks):
            decided = self.decisions[row]
            place = self.asked[row]
            if place < len(decided):
                answers[row] = decided[place]
            else:
                options = np.flatnonzero(laws[row] > 0)
                self.alternatives += [(int(row), (*decided, int(other))) for other in options[1:]]
                self.decisions[row] = (*decided, int(options[0]))
            self.asked[row] += 1
        self.weight *= laws[np.arange(len(answers)), answers]
        return torch.as_tensor(answers, device=law.device)


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of a replay: arrays over outcomes, the verdict of batch row `row` with exact `probability`.

    `carry` is the state of a stateful verifier, its rows in the order of the outcomes; None for stateless ones.
    """

    row: np.ndarray
    path: np.ndarray
    accepted: np.ndarray
    token: np.ndarray
    probability: np.ndarray
    carry: Any = None


def replay(verify: Verify, batch: Batch) -> Iterator[Outcomes]:
    """Every random outcome of `verify` on every row of the batch; probabilities sum to 1 per row.

    Depth first, in passes of bounded size: many answers of many paths would not fit into memory at once.

    Raises:
        InvalidResult: if it returns no verdict, or one that is out of range.
        ValueError: if the probabilities of a row do not sum to 1: given the same answers it asked other questions.
    """
    requests, paths, length, vocab = batch.shape
    if callable(batch.draft_after):
        batch = replace(batch, draft_after=batch.draft_after())
    total = np.zeros(requests)
    pending: list[tuple[int, tuple[int, ...]]] = [(row, ()) for row in range(requests)]
    most = max(1, NUMBERS_PER_PASS // max(1, paths**2 * length * vocab))
    while pending:
        pending, now = pending[:-most], pending[-most:]
        rows = [row for row, _ in now]
        draws = ReplayDraws([decisions for _, decisions in now])
        carry = None if batch.carry is None else batch.carry.select(rows)
        after = batch.draft_after[rows] if isinstance(batch.draft_after, Tensor) else None
        laws = (batch.draft_probs[rows], batch.target_probs[rows])
        verdict = verify(Batch(batch.tokens[rows], *laws, carry, after), draws)
        limits = {"path": paths, "accepted": length + 1, "token": vocab}
        path, accepted, token = (_read(verdict, name, limit, len(rows)) for name, limit in limits.items())
        yield Outcomes(np.array(rows), path, accepted, token, draws.weight, _read_carry(verdict, len(rows)))
        np.add.at(total, rows, draws.weight)
        pending += [(rows[row], decisions) for row, decisions in draws.alternatives]
    if not (abs(total - 1) <= LOST).all():
        worst = total[np.argmax(abs(total - 1))]
        raise ValueError(
            f"the outcomes of one request have probability {worst:.12g} in all: after the same answers the verifier "
            "asked other questions than before; it depends on earlier calls, or on the other rows of its batch"
        )


def _read(verdict: Any, name: str, limit: int, rows: int) -> np.ndarray:
    """One part of a verdict: int64 [rows] in 0..limit-1.

    Raises:
        InvalidResult: it is something else.
    """
    if not isinstance(getattr(verdict, name, None), Tensor):
        raise InvalidResult(f"the verifier returned {_shown(verdict)}; want a Verdict with the tensor {name!r}")
    values: Tensor = getattr(verdict, name)
    if values.dtype not in INTEGERS or values.shape != (rows,) or values.device.type == "meta":
        found = f"{values.dtype} of shape {tuple(values.shape)} on {values.device}"
        raise InvalidResult(f"the verdict's {name} is {found}; want int64 of shape ({rows},)")
    numbers = values.cpu().long().numpy()
    if (numbers < 0).any() or (numbers >= limit).any():
        raise InvalidResult(f"the verdict's {name} is {numbers}; want {rows} values in 0..{limit - 1}")
    return numbers


def _read_carry(verdict: Any, rows: int) -> Any:
    """The carry of a verdict, None if there is none.

    Raises:
        InvalidResult: it is not the state of these requests.
    """
    carry = getattr(verdict, "carry", None)
    if carry is None:
        return None
    if missing := [name for name in CARRY if not callable(getattr(carry, name, None))]:
        raise InvalidResult(
            f"the verdict's carry is {_shown(carry)}, without {missing[0]}(); want a carry as in runtime.carry"
        )
    numbers = carry.numbers()
    if not isinstance(numbers, Tensor) or numbers.ndim != 2 or len(numbers) != rows:
        found = tuple(numbers.shape) if isinstance(numbers, Tensor) else _shown(numbers)
        raise InvalidResult(f"numbers() of the verdict's carry gives {found}; want a tensor of shape ({rows}, any)")
    return carry


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def function_of(verifier: str | Verify | registry.Verifier) -> Verify:
    """The function behind a registered name or an entry of the registry; a function is its own."""
    if isinstance(verifier, str):
        verifier = registry.get(verifier)
    return verifier.verify if isinstance(verifier, registry.Verifier) else verifier
