"""Pooled verification: one draft, a carry, and the fewest target calls that any lossless verifier needs.

A verifier that forgets must give every call the target's law by itself. One that remembers may pool: at a place of
the stream it is enough that all the calls that can be running there together leave the target's law. Letters: B
requests, L draft length (the same in every call), V vocabulary, p and q the rows of target and draft at a place z
(everything given the stream so far), c_j what a call that started j tokens ago has offered by drafting the last j:

    c_j = x(z-j) q(..) .. q(..) / (p(..) .. p(..)),  j = 1..L,    C = sum_j c_j,    x = max(0, 1 - C)

x is the probability that a call starts at z. The next token may be offered by every call with tokens left,

    G = x + c_1 + .. + c_{L-1},        token y is kept in all with probability n(y) = min(p(y), G q(y)),

and a correction or bonus token is drawn from what is left, max(0, p - G q). The longest prefix is kept whose coin
shows:

    h = 1 if C <= 1, else (1 - sum_y n(y)) / (C - sum_y n(y))

For L = 1 these are: accept y with probability min(1, p/(x q)), draw correction and bonus from max(0, p - x q), and
go on with x = max(0, 1 - x q(y)/p(y)).

At the bonus token the draft's row after the whole path is needed, `Batch.draft_after`. Without it the last drafted
token is given up, whose row then serves.

Source: specbound (own); the program it solves and the proof: `specbound.theory.many_calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.single_path import at, only_path, row_at
from ..registry import register
from ..verdict import Batch, Verdict

ROUNDING = 64


@dataclass(frozen=True)
class Offers:
    """What the running calls of B requests have offered at their places: [B, L], c_1..c_L."""

    offered: Tensor

    @classmethod
    def none(cls, requests: int, length: int, dtype: torch.dtype, device: torch.device) -> Offers:
        """The beginning of a stream: no call before this one."""
        return cls(torch.zeros(requests, length, dtype=dtype, device=device))

    @property
    def starting(self) -> Tensor:
        """x [B]: the probability that a call starts here."""
        return (1 - self.offered.sum(dim=1)).clamp_min(0)

    @property
    def running(self) -> Tensor:
        """[B, L]: x, c_1..c_{L-1}, the calls that may offer the next token; their sum is G."""
        return torch.cat([self.starting.unsqueeze(1), self.offered], dim=1)[:, : self.offered.shape[1]]

    def behind(self, token: Tensor, target_row: Tensor, draft_row: Tensor) -> Offers:
        """The same one token further; a token that the target cannot draw gives very large offers, not infinite."""
        largest = torch.finfo(self.offered.dtype).max ** 0.5
        ratio = (at(draft_row, token) / at(target_row, token)).nan_to_num(0, posinf=largest)
        return Offers((self.running * ratio.unsqueeze(1)).clamp_max(largest))

    def select(self, rows: Tensor | Sequence[int]) -> Offers:
        """The state of the requests `rows`, in that order; a row may be taken several times."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.offered.device)
        return Offers(self.offered[index])

    @classmethod
    def joined(cls, parts: Sequence[Offers]) -> Offers:
        """The states of several batches as one, requests in the order given.

        Raises:
            ValueError: no parts, or parts with different draft lengths.
        """
        lengths = {part.offered.shape[1] for part in parts}
        if len(lengths) != 1:
            raise ValueError(f"parts have draft lengths {sorted(lengths)}; want one draft length")
        return cls(torch.cat([part.offered for part in parts]))

    def numbers(self) -> Tensor:
        """[B, L] float64: requests with equal numbers have equal futures."""
        return self.offered.double()


@register(
    "pooled",
    summary="keep what all running calls together allow; the fewest calls for one path, optimal over many calls",
    source="specbound (own)",
    paths="single",
    stateful=True,
    reads_after=True,
)
def verify_pooled(batch: Batch, draws: Draws) -> Verdict:
    """Keep the longest prefix whose coin shows, then draw from max(0, p - G q).

    Every call of a stream has the same draft length; `Batch.draft_after` is given in all of them or in none.
    """
    tokens, draft_probs, target_probs = only_path(batch)
    length = tokens.shape[1] - (batch.draft_after is None)
    states = [carried_offers(batch, length, target_probs.dtype)]
    possible, coins = torch.ones_like(target_probs[:, 0, 0]), []
    for place in range(length):
        token = tokens[:, place]
        states.append(states[-1].behind(token, target_probs[:, place], draft_probs[:, place]))
        possible = possible * (at(target_probs[:, place], token) > 0)
        if place + 1 < tokens.shape[1]:
            coins.append(coin(states[-1], target_probs[:, place + 1], draft_probs[:, place + 1]) * possible)
    kept = draws.accept_last(torch.stack(coins, dim=1)) if coins else torch.zeros_like(tokens[:, 0])
    after = None
    if batch.draft_after is not None:
        kept, after = accept_whole(kept, states[-1], possible, batch.draft_after, batch, draws)
    here = Offers(row_at(torch.stack([state.offered for state in states], dim=1), kept))
    target_row, draft_row = row_at(target_probs, kept), row_at(draft_probs, kept.clamp_max(tokens.shape[1] - 1))
    if after is not None:
        draft_row = torch.where((kept == length).unsqueeze(1), after, draft_row)
    token = draws.choose(left_over(here, target_row, draft_row))
    return Verdict(torch.zeros_like(kept), kept, token, here.behind(token, target_row, draft_row))


def coin(state: Offers, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """h [B] at a place, from the state there and the rows [B, V] of the next token; 1 where nothing hangs on it."""
    offered = state.offered.sum(dim=1)
    taken = torch.minimum(target_row, state.running.sum(dim=1, keepdim=True) * draft_row).sum(dim=1)
    loose = offered - taken
    sure = (offered <= 1) | (loose <= ROUNDING * torch.finfo(loose.dtype).eps)
    share = (1 - taken).clamp_min(0) / torch.where(sure, torch.ones_like(loose), loose)
    return torch.where(sure, torch.ones_like(share), share.clamp_max(1))


def accept_whole(
    kept: Tensor, state: Offers, possible: Tensor, given: Tensor | Callable[[], Tensor], batch: Batch, draws: Draws
) -> tuple[Tensor, Tensor | None]:
    """The coin of the whole path: L where it shows, else `kept` [B]; and the draft's row [B, V] after the path.

    h is at most 1/C, so a coin of 1/C is thrown first: the row is asked for only if a request passes it.
    """
    ceiling = 1 / state.offered.sum(dim=1).clamp_min(1)
    hopeful = draws.accept(ceiling * possible)
    if callable(given):
        if not bool(hopeful.any()):
            return kept, None
        given = given()
    after = given[:, 0].to(state.offered.dtype)
    last = coin(state, batch.target_probs[:, 0, -1].to(after.dtype), after)
    whole = draws.accept((last / ceiling).clamp_max(1) * hopeful)
    return torch.where(whole, batch.shape[2], kept), after


def left_over(state: Offers, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """Weights [B, V] of a correction or bonus token, max(0, p - G q); p where rounding leaves nothing."""
    rest = (target_row - state.running.sum(dim=1, keepdim=True) * draft_row).clamp_min(0)
    return torch.where(rest.sum(dim=1, keepdim=True) > 0, rest, target_row)


def carried_offers(batch: Batch, length: int, dtype: torch.dtype) -> Offers:
    """The state the batch brings along, or that of the beginning of a stream.

    Raises:
        ValueError: carry is not the state of these requests at this draft length.
    """
    requests = batch.shape[0]
    if batch.carry is None:
        return Offers.none(requests, length, dtype, batch.draft_probs.device)
    if not isinstance(batch.carry, Offers):
        raise ValueError(f"carry is a {type(batch.carry).__name__}; want the carry of this verifier's last verdict")
    found = tuple(batch.carry.offered.shape)
    if found != (requests, length):
        raise ValueError(
            f"carry is the state of {found[0]} requests with draft length {found[1]}, the batch has {requests} with "
            f"{length}; use carry.select(rows), the same draft length in every call, and draft_after in all or none"
        )
    return batch.carry
