"""Gumbel coupling: draft and target draw with the same coins, and a token is kept where both draw the same.

With one exponential S_y per token, shared by both,

    x = argmin S_y / draft(y),   y = argmin S_y / target(y),   x is kept if y = x, else y is the correction.

y looks at the target and at the coins only: the text does not depend on the draft, and its law is the target's. A match
has probability at least (1 - TV) / (1 + TV); token verification, which resamples, reaches 1 - TV.

The law of y given x is known in closed form. With v(y) = draft(y) / target(y), ascending, and

    B(v) = sum_y max(draft(y), v target(y)),   G(v) = integral from 0 to v of dv / B(v)^2,

    Pr(y = x | x) = 1 / B(v(x)),   Pr(y | x) = target(y) max(0, G(v(x)) - G(v(y))),

B is linear between neighbouring v, so G is a sum of (v' - v) / (B(v) B(v')). `verify_gumbel` draws y from this law, so
that drafts and verdicts have the joint law of shared coins; `shared` does it with the coins themselves.

B requests, L drafted tokens, V vocabulary.
Source: Gumbel coupling, drafter-invariant decoding, arXiv:2408.07978; the conditional law: specbound (own).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.single_path import at, only_path, row_at
from ..registry import Verify, register
from ..verdict import Batch, Verdict


def winner(exponentials: Tensor, probs: Tensor) -> Tensor:
    """argmin_y S_y / probs(y) over the last axis: a draw from `probs` if the S are independent Exp(1).

    Args:
        exponentials, probs [..., V]; a token of probability 0 never wins.
    """
    waiting = torch.where(probs > 0, exponentials / probs, torch.full_like(exponentials, torch.inf))
    return waiting.argmin(dim=-1)


def match(tokens: Tensor, draft: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Pr(y = x | x) [N] and the measure of every other y given x [N, V]; tokens x [N], rows [N, V], float64."""
    target, draft = (row / row.sum(dim=1, keepdim=True) for row in (target, draft))
    place = torch.where(target > 0, draft / target, torch.full_like(draft, torch.inf))
    ordered, order = place.sort(dim=1, stable=True)
    reached, kept = target.gather(1, order).cumsum(dim=1), draft.gather(1, order).flip(1).cumsum(dim=1).flip(1)
    above = torch.cat([kept[:, 1:], torch.zeros_like(kept[:, :1])], dim=1)
    level = ordered * reached + above
    finite = torch.isfinite(ordered)
    step = torch.where(finite, ordered.diff(dim=1, prepend=torch.zeros_like(ordered[:, :1])), 0)
    before = torch.cat([torch.ones_like(level[:, :1]), level[:, :-1]], dim=1)
    grown = torch.where(finite, step / level / before, 0).cumsum(dim=1)
    last = torch.where(finite, level, 0).amax(dim=1, keepdim=True)
    grown = torch.where(finite, grown, grown.amax(dim=1, keepdim=True) + 1 / last)
    integral = torch.empty_like(grown).scatter_(1, order, grown)
    height = torch.empty_like(level).scatter_(1, order, level)
    x = tokens.unsqueeze(1)
    others = target * (integral.gather(1, x) - integral).clamp_min(0)
    return 1 / at(height, tokens), others.scatter(1, x, 0)


@register(
    "gumbel-coupling",
    summary="draft and target race with the same coins; a token is kept where they agree, whatever the draft",
    source="Gumbel coupling, arXiv:2408.07978; law of the race: specbound (own)",
    paths="single",
    cost="O(L V log V)",
)
def verify_gumbel(batch: Batch, draws: Draws) -> Verdict:
    """Keep tokens until the target's winner is another one than the draft's; that one is the correction."""
    tokens, draft_probs, target_probs = only_path(batch)
    length, vocab = draft_probs.shape[1:]
    rows = (target_probs[:, :-1].reshape(-1, vocab).double(), draft_probs.reshape(-1, vocab).double())
    same, others = match(tokens.flatten(), rows[1], rows[0])
    kept = draws.accept_while(same.view(tokens.shape).clamp(0, 1))
    others = row_at(others.view(len(tokens), length, vocab), kept.clamp_max(length - 1)).to(target_probs.dtype)
    some = (kept < length).unsqueeze(1) & (others.sum(dim=1, keepdim=True) > 0)
    return Verdict(torch.zeros_like(kept), kept, draws.choose(torch.where(some, others, row_at(target_probs, kept))))


def shared(exponentials: Tensor) -> Verify:
    """The verifier that holds the coins: drafts must be `winner(exponentials[:, i], draft row)`.

    Args:
        exponentials [B, L+1, V]: independent Exp(1), one row for each place of the text.
    """

    def verify(batch: Batch, draws: Draws) -> Verdict:
        tokens, _, target_probs = only_path(batch)
        text = winner(exponentials.to(target_probs.dtype), target_probs)
        kept = (text[:, :-1] == tokens).long().cumprod(dim=1).sum(dim=1)
        return Verdict(torch.zeros_like(kept), kept, at(text, kept))

    return verify
