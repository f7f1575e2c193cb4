"""Pooled verification phase by phase: "fill" and "young", which say in advance what each running call keeps.

Letters: B requests, L draft length (the same in every call), V vocabulary, p and q the rows of target and draft at a
place z, j = 0..L the phase (how many tokens ago a call started that may be running). Given the stream so far,

    f_j  probability that the running call started j tokens ago and its drafts are kept so far; f_0: it starts here
    c_j  what that call has offered, its start times the draft's over the target's probability of the last j tokens

One step chooses a_j(y) <= c_j q(y) with sum_y a_j <= f_j and sum_j a_j(y) <= p(y), what phase j keeps of the next
token; then f_{j+1} = a_j(y)/p(y), c_{j+1} = c_j q(y)/p(y), f_0 = c_0 = 1 - sum_{j>=1} f_j. Along the draft the prefix
of i tokens has the coin h_i = (f_i - sum_y a_i) / (c_i - sum_y a_i), h_L = f_L/c_L; the longest whose coin shows is
kept, and correction and bonus are drawn from p - sum_j a_j.

    young  phases 0, 1, .. take min(c_j q, what is left of p)
    fill   block verification's min(c_j q, p f_j) first, then what is left of p, youngest first

(a phase that would take more than f_j is cut in proportion). "Fill" never needs more calls than block verification,
"young" the fewest for L <= 2; `pooled` the fewest for every L, at the cost of block verification.

At the bonus token the draft's row after the whole path is needed, `Batch.draft_after`. Without it the last drafted
token is given up, whose row then serves. Source: specbound (own); see `specbound.theory.many_calls`.
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


@dataclass(frozen=True)
class Phases:
    """f_1..f_L and c_1..c_L of B requests.

    Attributes:
        kept, offered [B, L].
    """

    kept: Tensor
    offered: Tensor

    def with_start(self) -> tuple[Tensor, Tensor]:
        """f and c [B, L+1] with phase 0 in front."""
        start = (1 - self.kept.sum(dim=1, keepdim=True)).clamp_min(0)
        return torch.cat([start, self.kept], dim=1), torch.cat([start, self.offered], dim=1)

    def behind(self, token: Tensor, target_row: Tensor, draft_row: Tensor, shares: Tensor) -> Phases:
        """The same one token further; `shares` [B, L, V] is a_0..a_{L-1}. Large, not infinite, where p(token) = 0."""
        largest = torch.finfo(self.offered.dtype).max ** 0.5
        target = at(target_row, token).unsqueeze(1)
        taken = shares.gather(2, token[:, None, None].expand(-1, shares.shape[1], 1)).squeeze(2)
        kept = torch.where(target > 0, taken / target, torch.zeros_like(taken))
        ratio = (at(draft_row, token).unsqueeze(1) / target).nan_to_num(0, posinf=largest)
        return Phases(kept, (self.with_start()[1][:, :-1] * ratio).clamp_max(largest))

    def select(self, rows: Tensor | Sequence[int]) -> Phases:
        """The state of the requests `rows`, in that order; a row may be taken several times."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.kept.device)
        return Phases(self.kept[index], self.offered[index])

    @classmethod
    def joined(cls, parts: Sequence[Phases]) -> Phases:
        """The states of several batches as one, requests in the order given.

        Raises:
            ValueError: no parts, or parts with different draft lengths.
        """
        lengths = {part.kept.shape[1] for part in parts}
        if len(lengths) != 1:
            raise ValueError(f"parts have draft lengths {sorted(lengths)}; want one draft length")
        return cls(torch.cat([part.kept for part in parts]), torch.cat([part.offered for part in parts]))

    def numbers(self) -> Tensor:
        """[B, 2 L] float64: requests with equal numbers have equal futures."""
        return torch.cat([self.kept, self.offered], dim=1).double()


Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From f, c [B, L+1] and the rows p, q [B, V] to the shares a_0..a_{L-1} [B, L, V]."""


def young(kept: Tensor, offered: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """The youngest phases take what p has room for."""
    return _youngest_first(
        kept, offered, target_row, draft_row, torch.zeros_like(draft_row)[:, None] * kept[:, :-1, None]
    )


def fill(kept: Tensor, offered: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """Block verification's share of every phase, then the youngest phases take what p has room for."""
    own = torch.minimum(offered[:, :-1, None] * draft_row[:, None], kept[:, :-1, None] * target_row[:, None])
    return _youngest_first(kept, offered, target_row, draft_row, own)


def _youngest_first(kept: Tensor, offered: Tensor, target_row: Tensor, draft_row: Tensor, shares: Tensor) -> Tensor:
    """Add to the shares [B, L, V], phase after phase, what was offered and p has room for."""
    left, result = (target_row - shares.sum(dim=1)).clamp_min(0), []
    for phase, share in enumerate(shares.unbind(dim=1)):
        more = torch.minimum((offered[:, phase, None] * draft_row - share).clamp_min(0), left)
        room = (kept[:, phase] - share.sum(dim=1)).clamp_min(0)
        total = more.sum(dim=1)
        more = more * torch.where(total > room, room / total, torch.ones_like(total)).unsqueeze(1)
        result.append(share + more)
        left = (left - more).clamp_min(0)
    return torch.stack(result, dim=1)


def verify_phases(batch: Batch, draws: Draws, rule: Rule) -> Verdict:
    """Keep the longest prefix whose coin shows, then draw from what the phases leave of p."""
    tokens, draft_probs, target_probs = only_path(batch)
    length = tokens.shape[1] - (batch.draft_after is None)
    if length == 0:
        kept = torch.zeros_like(tokens[:, 0])
        return Verdict(kept, kept, draws.choose(target_probs[:, 0]), carried_phases(batch, 0, target_probs.dtype))
    states, coins = [carried_phases(batch, length, target_probs.dtype)], []
    for place in range(length):
        token, target_row, draft_row = tokens[:, place], target_probs[:, place], draft_probs[:, place]
        f, c = states[-1].with_start()
        shares = rule(f, c, target_row, draft_row)
        if place:
            deeper = shares[:, place].sum(dim=1)
            coins.append(quotient(f[:, place] - deeper, c[:, place] - deeper))
        states.append(states[-1].behind(token, target_row, draft_row, shares))
    coins.append(quotient(states[-1].kept[:, -1], states[-1].offered[:, -1]))
    kept = draws.accept_last(torch.stack(coins, dim=1))
    here = Phases(
        row_at(torch.stack([state.kept for state in states], dim=1), kept),
        row_at(torch.stack([state.offered for state in states], dim=1), kept),
    )
    target_row, draft_row = row_at(target_probs, kept), row_at(draft_probs, kept.clamp_max(tokens.shape[1] - 1))
    whole = kept == length
    if batch.draft_after is not None and (not callable(batch.draft_after) or bool(whole.any())):
        after = batch.draft_after() if callable(batch.draft_after) else batch.draft_after
        draft_row = torch.where(whole.unsqueeze(1), after[:, 0].to(draft_row.dtype), draft_row)
    shares = rule(*here.with_start(), target_row, draft_row)
    rest = (target_row - shares.sum(dim=1)).clamp_min(0)
    token = draws.choose(torch.where(rest.sum(dim=1, keepdim=True) > 0, rest, target_row))
    return Verdict(torch.zeros_like(kept), kept, token, here.behind(token, target_row, draft_row, shares))


def quotient(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole in [0, 1]; 1 where nothing is left of either."""
    share = part.clamp_min(0) / torch.where(whole > 0, whole, torch.ones_like(whole))
    return torch.where(whole > 0, share.clamp_max(1), torch.ones_like(share))


def carried_phases(batch: Batch, length: int, dtype: torch.dtype) -> Phases:
    """The state the batch brings along, or that of the beginning of a stream.

    Raises:
        ValueError: carry is not the state of these requests at this draft length.
    """
    requests = batch.shape[0]
    if batch.carry is None:
        zeros = torch.zeros(requests, length, dtype=dtype, device=batch.draft_probs.device)
        return Phases(zeros, zeros)
    if not isinstance(batch.carry, Phases):
        raise ValueError(f"carry is a {type(batch.carry).__name__}; want the carry of this verifier's last verdict")
    found = tuple(batch.carry.kept.shape)
    if found != (requests, length):
        raise ValueError(
            f"carry is the state of {found[0]} requests with draft length {found[1]}, the batch has {requests} with "
            f"{length}; use carry.select(rows), the same draft length in every call, and draft_after in all or none"
        )
    return batch.carry


@register(
    "pooled-fill",
    summary="block verification's share of each running call, then what the target has room for",
    source="specbound (own)",
    paths="single",
    stateful=True,
    reads_after=True,
    cost="O(L^2 V)",
)
def verify_fill(batch: Batch, draws: Draws) -> Verdict:
    """`verify_phases` with `fill`."""
    return verify_phases(batch, draws, fill)


@register(
    "pooled-young",
    summary="the youngest running call takes first; the fewest calls for at most two drafted tokens",
    source="specbound (own)",
    paths="single",
    stateful=True,
    reads_after=True,
    cost="O(L^2 V)",
)
def verify_young(batch: Batch, draws: Draws) -> Verdict:
    """`verify_phases` with `young`."""
    return verify_phases(batch, draws, young)
