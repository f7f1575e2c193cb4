"""What a stateful verifier carries from call to call: the protocol, and the layers of greedy block verification.

A stateful verifier leaves behind its correction token a changed target law for some of the next positions, and says
in `Verdict.carry` what it is; the next call gets it as `Batch.carry` and verifies against the changed law. `Carry` is
all that decoding and the exact laws of streams ask of it. Three carries implement it: `Layers` below, the place in a
verifier table (`runtime.verifiers.table.Place`), and what running calls have offered (`runtime.verifiers.pooled`),
which changes no law at all.

Layers modify the target law of the next positions.

Greedy block verification keeps a prefix w with probability min(P(w), Q(w)), the most that any verifier can. Having
spent so much of Q on kept prefixes it must make up for it behind its correction token: for the rest of the block in
which it stopped, the stream must follow, at a node u, the law

    layer(p)(y) = p(y) (1 - min(1, q(y) / (rho p(y))))^K / sum,      rho = rho(u) = P(u) / Q(u)

and not p itself (K = 1: the normalised max(0, rho p - q)). The next call is again a greedy block verification, now
of the modified law, and may leave a further layer: layers nest, the oldest is applied first.

Letters: B requests, M layer slots, V vocabulary, K paths, L draft length; p target and q draft row at a node, P and Q
their products from the place where the block began; m how many further positions a layer applies to.

Derived for K = 1 from the paper's distribution modification (Block Verification, arXiv:2403.10444, Appendix, greedy
variant); for K > 1 from the acceptance profile of SpecTr-GBV (arXiv:2604.25925). Both are measured, not trusted: see
`proofs_checks.laws.stream`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


class Carry(Protocol):
    """The state of B requests between two calls of a stateful verifier, one row per request; immutable.

    Who calls what:

    - decoding calls `select` when rows leave or restart, `joined` when rows come together, and else hands the carry
      from one verdict to the next batch as it is;
    - the exact law of a stream (`proofs_checks.laws`) calls `numbers`, to merge streams whose futures are equal,
      `select`, and `joined`.

    None stands for the state of rows that have not been verified yet.
    """

    def select(self, rows: Tensor | Sequence[int]) -> Self:
        """The state of the requests `rows`, in that order; a row may be taken several times, or none at all."""
        ...

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The states of several batches as one, requests in the order given.

        Raises:
            ValueError: no parts, or parts that cannot stand in one batch.
        """
        ...

    def numbers(self) -> Tensor:
        """[B, N] float64: the state as plain numbers; requests with equal numbers have equal futures."""
        ...


@dataclass(frozen=True)
class Layers:
    """Nested layers of B requests, in a fixed number M of slots: oldest first, empty slots before them.

    The number of layers that apply i positions from now is at most M - i, so every step along a path needs one slot
    less, and L - 1 slots suffice between calls with at most L drafted tokens.

    Attributes:
        log_ratio [B, M]: log rho of each layer at the present node; 0 in empty slots.
        remaining [B, M] int64: m, how many positions from here on it applies to; 0 marks an empty slot.
        paths: K, the exponent.
    """

    log_ratio: Tensor
    remaining: Tensor
    paths: int = 1

    @classmethod
    def empty(cls, requests: int, paths: int, dtype: torch.dtype, device: torch.device) -> Layers:
        """No layers, no slots: the target law is the target's own."""
        return cls(
            torch.zeros(requests, 0, dtype=dtype, device=device),
            torch.zeros(requests, 0, dtype=torch.int64, device=device),
            paths,
        )

    @property
    def slots(self) -> int:
        """M."""
        return self.remaining.shape[1]

    def select(self, rows: Tensor | Sequence[int]) -> Layers:
        """The state of the requests `rows`, in that order; a row may be taken several times."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.remaining.device)
        return Layers(self.log_ratio[index], self.remaining[index], self.paths)

    @classmethod
    def joined(cls, parts: Sequence[Layers]) -> Layers:
        """The states of several batches as one, requests in the order given.

        Raises:
            ValueError: no parts, or parts with different numbers of paths.
        """
        if len({part.paths for part in parts}) != 1:
            raise ValueError(f"parts have paths {[part.paths for part in parts]}; want one number of paths")
        wide = [part.widened(max(part.slots for part in parts)) for part in parts]
        return cls(
            torch.cat([part.log_ratio for part in wide]), torch.cat([part.remaining for part in wide]), parts[0].paths
        )

    def numbers(self) -> Tensor:
        """[B, 2 M] float64: the state as plain numbers; requests with equal numbers have equal futures."""
        return torch.cat([self.log_ratio.double(), self.remaining.double()], dim=1)

    def laws(self, target_row: Tensor, draft_row: Tensor) -> list[Tensor]:
        """The target law p_0 at the present node and what each layer makes of it, p_1..p_M; the last is in force.

        Args:
            target_row, draft_row [B, V]: both models' rows at the node. The draft must be the one that drafted the
                block in which the layer arose, with the same sampling settings.

        Returns:
            M + 1 tensors [B, V].
        """
        laws = [target_row]
        taken = (self.remaining > 0).any(dim=0).tolist()
        for slot in range(self.slots):
            if not taken[slot]:
                laws.append(laws[-1])
                continue
            changed = layer_law(laws[-1], draft_row, self.log_ratio[:, slot], self.paths)
            laws.append(torch.where(self.remaining[:, slot, None] > 0, changed, laws[-1]))
        return laws

    def advance(self, token: Tensor, laws: Sequence[Tensor], draft_row: Tensor) -> Layers:
        """The layers one token further: rho <- rho p_{k-1}(token) / q(token), m <- m - 1, in one slot less.

        A token that the draft cannot draw, q(token) = 0, makes rho infinite and the layer the identity: it is dropped.

        Args:
            token [B]; laws, draft_row: `laws(...)` and the draft row at the node being left.
        """
        if self.slots == 0:
            return self
        index = token.unsqueeze(-1)
        before = torch.cat([law.gather(-1, index) for law in laws[:-1]], dim=1)
        draft = draft_row.gather(-1, index)
        alive = (self.remaining > 1) & (draft > 0)
        log_ratio = torch.where(alive, self.log_ratio + before.log() - draft.log(), torch.zeros_like(self.log_ratio))
        remaining = torch.where(alive, self.remaining - 1, torch.zeros_like(self.remaining))
        order = alive.long().argsort(dim=1, stable=True)[:, 1:]
        return Layers(log_ratio.gather(1, order), remaining.gather(1, order), self.paths)

    def widened(self, slots: int) -> Layers:
        """The same layers in at least `slots` slots."""
        extra = max(0, slots - self.slots)
        pad = torch.nn.functional.pad
        return Layers(pad(self.log_ratio, (extra, 0)), pad(self.remaining, (extra, 0)), self.paths)

    def pushed(self, log_ratio: Tensor, remaining: Tensor) -> Layers:
        """One more layer, the newest; where `remaining` [B] is 0 it is an empty slot.

        Args:
            log_ratio [B]: log of P(w) / Q(w) at the present node w, P taken with the laws in force.
            remaining [B]: positions it applies to, the next one included.
        """
        return Layers(
            torch.cat([self.log_ratio, log_ratio.unsqueeze(1)], dim=1),
            torch.cat([self.remaining, remaining.unsqueeze(1)], dim=1),
            self.paths,
        )


def layer_law(target_row: Tensor, draft_row: Tensor, log_ratio: Tensor, paths: int) -> Tensor:
    """target (1 - min(1, draft / (rho target)))^K, normalised; the target row itself where nothing is left.

    Nothing is left only where rho <= 1, which no stream reaches (up to rounding, where both laws are equal).

    Args:
        target_row, draft_row [B, V]; log_ratio [B], log rho, may be -inf or inf; paths: K.
    Returns:
        [B, V].
    """
    inverse = (-log_ratio).exp().clamp_max(torch.finfo(log_ratio.dtype).max).unsqueeze(-1)
    weights = (target_row - inverse * draft_row).clamp_min(0)
    if paths > 1:
        share = torch.where(weights > 0, weights / target_row, torch.zeros_like(weights))
        largest = share.amax(dim=-1, keepdim=True)
        weights = weights * torch.where(largest > 0, share / largest, share).pow(paths - 1)
    total = weights.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, weights / total, target_row)
