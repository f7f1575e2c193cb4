"""Block verification with a budget: more is kept, and one call's law deviates from the target's by at most a given eps.

The mass kept at a prefix, per unit of draft mass, is t + v: true mass t, which goes on as the target does, and moved
mass v, which deviates already and may go anywhere. u is owed: moved away from under the prefix and missing there. b is
what is left of the budget. At the root t = 1, v = u = 0, b = eps; with the rows p, q after a prefix

    S = (t p - q)+,   D = (q - t p)+,   f = min(D, u p), scaled to sum at most S,   m = min(b, sum S - sum f)

f and m are taken from S, from tokens that drafts can have first, in proportion to S: s is the sum of S over those.
After a drafted token y

    t' = (min(q, t p) + f) / q,           v' = (v + m) (D - f) / (q sum (D - f)),
    u' = (u p - f + S min(1, (sum f + m) / s)) / q,   b' = (b - m) t' / (t - sum S + sum f)

Thresholds are those of block verification with e = sum S - sum f - m in the place of sum S and t + v in that of the
ratio,

    h_i = e_i / (e_i + 1 - t_i - v_i),   h_L = t_L + v_L,   correction from what is left of S.

Total variation of the law of a call to the target's: at most E(sum of the m along the draft) <= eps, as m plus the mean
of b' is at most b. eps = 0 is block verification, eps = 1 keeps every draft. Nothing is known of rows beside the draft,
yet the rule meets the best possible at its deviation on some instances and stays near it on others (see
`specbound.theory.frontier`). Calls add up: n of them deviate by at most n eps.

B requests, L drafted tokens, V vocabulary. Source: specbound (own), after Block Verification, arXiv:2403.10444.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.single_path import at, only_path, row_at
from ..registry import Verify, register
from ..verdict import Batch, Verdict

DEFAULT_DEVIATION = 0.02


class Ledger(NamedTuple):
    """The state after a prefix, all [B] float64: true, moved and owed mass and the budget left."""

    true: Tensor
    moved: Tensor
    owed: Tensor
    left: Tensor


def step(state: Ledger, token: Tensor, target_row: Tensor, draft_row: Tensor) -> tuple[Ledger, Tensor, Tensor]:
    """The state after one more drafted token; what is emitted before it, e [B]; which shares of S stay, [B, 2].

    token [B], rows [B, V] float64; the shares are those of tokens that drafts can have and of the others.

    A token that the draft cannot have drawn leaves the state as it is.
    """
    true, moved, owed, left = state
    wanted = true.unsqueeze(1) * target_row
    surplus, room = (wanted - draft_row).clamp_min(0), (draft_row - wanted).clamp_min(0)
    free = torch.minimum(room, owed.unsqueeze(1) * target_row)
    total, freed = surplus.sum(dim=1), free.sum(dim=1)
    scale = share(total, freed)
    freed = freed * scale
    spent = torch.minimum(left, (total - freed).clamp_min(0))
    p, q, most = (at(row, token) for row in (target_row, draft_row, wanted))
    free, room = at(free, token) * scale, at(room, token)
    placed = (room - free) * share(moved + spent, (draft_row - wanted).clamp_min(0).sum(dim=1) - freed)
    offered = torch.where(draft_row > 0, surplus, 0).sum(dim=1)
    first = share(freed + spent, offered)
    other = share(freed + spent - offered, total - offered)
    owing = owed * p - free + at(surplus, token) * first
    drawn = q > 0
    new = (torch.minimum(q, most) + free, placed, owing.clamp_min(0))
    kept, carried, missing = (
        torch.where(drawn, value / q, old) for value, old in zip(new, (true, moved, owed), strict=True)
    )
    kept = kept.clamp_max(1)
    left = torch.where(drawn, kept * share(left - spent, true - total + freed), left)
    state = Ledger(kept, torch.minimum(carried, 1 - kept), missing, left)
    return state, (total - freed - spent).clamp_min(0), 1 - torch.stack([first, other], dim=1)


def share(part: Tensor, whole: Tensor) -> Tensor:
    """min(1, part / whole), 0 where the whole is 0."""
    return torch.where(whole > 0, part / whole, torch.zeros_like(whole)).clamp(0, 1)


def budgeted(deviation: float = DEFAULT_DEVIATION) -> Verify:
    """The verifier with that budget per call.

    Args:
        deviation: largest total variation of the law of one call to the target's, in [0, 1]; 0 is block verification.

    Raises:
        ValueError: the deviation is out of range.
    """
    if not 0 <= deviation <= 1:
        raise ValueError(f"deviation is {deviation}; want a total variation in [0, 1], e.g. {DEFAULT_DEVIATION}")

    def verify(batch: Batch, draws: Draws) -> Verdict:
        tokens, draft_probs, target_probs = only_path(batch)
        length = tokens.shape[1]
        one = torch.ones(len(tokens), dtype=torch.float64, device=tokens.device)
        state = Ledger(one, 0 * one, 0 * one, deviation * one)
        scales, shares, thresholds = [one], [], []
        for i in range(length):
            target_row, draft_row = target_probs[:, i].double(), draft_probs[:, i].double()
            lost = 1 - state.true - state.moved
            state, emitted, stay = step(state, tokens[:, i], target_row, draft_row)
            total = emitted + lost.clamp_min(0)
            thresholds.append(torch.where(total > 0, emitted / total, one))
            scales.append(state.true)
            shares.append(stay)
        thresholds.append((state.true + state.moved).clamp_max(1))
        kept = draws.accept_last(torch.stack(thresholds[1:], dim=1))
        scale = at(torch.stack(scales, dim=1), kept).to(target_probs.dtype)
        target_row, stopped = row_at(target_probs, kept), (kept < length).unsqueeze(1)
        inner = kept.clamp_max(length - 1)
        draft_row, stay = row_at(draft_probs, inner), row_at(torch.stack(shares, dim=1), inner).to(scale.dtype)
        surplus = (scale.unsqueeze(1) * target_row - draft_row).clamp_min(0)
        weights = torch.where(draft_row > 0, stay[:, :1], stay[:, 1:]) * surplus
        some = stopped & (weights.sum(dim=1, keepdim=True) > 0)
        return Verdict(torch.zeros_like(kept), kept, draws.choose(torch.where(some, weights, target_row)))

    return verify


@register(
    "budgeted",
    summary=f"block verification with a budget of deviation per call ({DEFAULT_DEVIATION}); lossy, near the best",
    source="specbound (own), after Block Verification, arXiv:2403.10444",
    paths="single",
    lossless=False,
    make=budgeted,
    options=("deviation",),
)
def verify_budgeted(batch: Batch, draws: Draws) -> Verdict:
    """The rule with the default budget; `budgeted(deviation)` makes others."""
    return budgeted()(batch, draws)
