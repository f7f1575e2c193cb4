"""Optimal single-step transport: at each node, the largest probability that any lossless rule keeps one of n drafts.

With g(t) = 1 - (1 - t)^n the chance that a set of tokens of draft mass t is hit, the optimum at a node is

    1 + min over S of ( g(draft(S)) - target(S) ),   S a set of tokens of highest target/draft ratio.

It is attained by selecting a draft whose token has the law min(target, k1 draft) on S and max(target, k2 draft) off
S, keeping it with probability min(1, target / that law), and correcting from max(0, target - k1 draft).

The selection is a race of the drafts, see `draft_race`.

Letters: B requests, K paths, n paths through the node, L drafted tokens, V vocabulary.
Source: the value: optimal transport for K drafts, SpecTr, arXiv:2310.15141; its realisation: specbound (own).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.by_level import Round, verify_by_level
from ..parts.draft_race import entry_scores, leaving, optimal_slopes, race_weights
from ..parts.draft_tree import target_ratio
from ..registry import register
from ..verdict import Batch, Verdict


def offer_optimally(target_row: Tensor, draft_row: Tensor, tokens: Tensor, alive: Tensor) -> Round:
    """Select a draft by the race and keep it with probability min(1, target / selected law), as coins in turn."""
    target, draft = (
        row.double() / row.sum(dim=1, keepdim=True, dtype=torch.float64) for row in (target_row, draft_row)
    )
    steps = 60 if target_row.dtype == torch.float64 else 25
    law, cap = select_optimally(target, draft, tokens, alive, steps)
    none_before = 1 - law.cumsum(dim=1) + law
    coins = torch.where(law < none_before, law / none_before, (law > 0).double())
    totals = target_row.sum(dim=1, dtype=torch.float64) / draft_row.sum(dim=1, dtype=torch.float64)
    excess = cap * totals
    return Round(coins.to(target_row.dtype), excess, torch.zeros_like(excess))


def select_optimally(wanted: Tensor, draft: Tensor, tokens: Tensor, alive: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Pr(path k is selected and its token kept), given the drafts; and k1, the cap of what is kept of a token.

    Args:
        wanted, draft [B, V] float64: draft sums to 1, wanted to at most 1; tokens, alive [B, K].
        steps: of Newton's method, see `draft_race`.
    Returns:
        shares [B, K], sum at most 1; cap [B]: what is not kept is max(0, wanted - cap draft).
    """
    numbers = torch.arange(1, alive.shape[1] + 1, device=alive.device)
    count = (alive.sum(dim=1, keepdim=True) == numbers).double()
    order = target_ratio(wanted, draft).sort(dim=1, descending=True, stable=True).indices
    wanted, draft = wanted.gather(1, order), draft.gather(1, order)
    slopes, cap = optimal_slopes(wanted, draft, count)
    gone = leaving(entry_scores(slopes, draft, count, steps), draft)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    place = place.gather(1, tokens)
    selected = slopes.gather(1, place) * draft.gather(1, place)
    keep = torch.where(selected > 0, wanted.gather(1, place) / selected, torch.ones_like(selected)).clamp_max(1)
    return race_weights(gone.gather(1, place), alive) * keep, cap.squeeze(1)


@register(
    "single-step-optimal",
    summary="optimal transport of the drafts of each node, one token at a time",
    source="SpecTr, arXiv:2310.15141 (optimal transport); realised by a race, specbound (own)",
    paths="many",
    cost="O(L V log V), some hundred passes per node; for small supports",
    closed_form="single-step-optimal",
)
def verify_single_step_optimal(batch: Batch, draws: Draws) -> Verdict:
    """The single-step optimum at each node of the tree, n the number of paths through it."""
    return verify_by_level(batch, draws, offer_optimally)
