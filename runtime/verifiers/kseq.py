"""K-SEQ: one rejection rule, discounted by rho, offered to every draft at a node in turn.

Accept a token y with probability min(1, target(y) / (rho draft(y))), 1 <= rho <= n for n paths through the node. With
beta(rho) = sum_y min(draft, target/rho) accepted per offer, y is emitted by acceptance with probability
c min(draft, target/rho), c = 1 + (1-beta) + .. + (1-beta)^(n-1); the rest of target is the correction's law. That is
lossless for every rho >= c(rho); the smallest accepts most.

Letters: B requests, K paths, L drafted tokens, V vocabulary. Source: SpecTr, arXiv:2310.15141, Algorithm 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.by_level import Round, verify_by_level
from ..parts.roots import falling_root
from ..registry import register
from ..verdict import Batch, Verdict


def offered_mass(discount: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """beta(rho) [B] = sum_y min(draft(y), target(y) / rho) for discount [B], rows [B, V]; float64."""
    dtype = target_row.dtype
    share = torch.minimum(target_row * (1 / discount).unsqueeze(1).to(dtype), draft_row)
    return share.sum(dim=1).double().clamp_max(1)


def expected_offers(mass: Tensor, offers: Tensor) -> Tensor:
    """c = 1 + (1 - beta) + .. + (1 - beta)^(n-1) = (1 - (1 - beta)^n) / beta, n where beta = 0; all [B]."""
    total = -torch.expm1(offers * torch.log1p(-mass)) / mass
    return torch.where(mass > 0, torch.where(offers > 1, total, torch.ones_like(total)), offers)


def smallest_discount(target_row: Tensor, draft_row: Tensor, offers: Tensor) -> Tensor:
    """The smallest rho in [1, n] with c(rho) <= rho, from above, for rows [B, V] and n = offers [B]; float64."""

    def excess(discount: Tensor) -> Tensor:
        mass = offered_mass(discount, target_row, draft_row)
        return (1 - (1 - mass) ** offers - discount * mass).to(target_row.dtype)

    return falling_root(excess, torch.ones_like(offers), offers)


def offer_with_discount(target_row: Tensor, draft_row: Tensor, tokens: Tensor, alive: Tensor) -> Round:
    """Coins min(1, target / (rho draft)); correction max(target - c draft, (1 - c/rho) target)."""
    offers = alive.sum(dim=1).double()
    discount = smallest_discount(target_row, draft_row, offers)
    times = expected_offers(offered_mass(discount, target_row, draft_row), offers)
    target = target_row.gather(1, tokens)
    bound = discount.unsqueeze(1).to(target.dtype) * draft_row.gather(1, tokens)
    coins = torch.where(target < bound, target / bound, torch.ones_like(target))
    return Round(coins, times, (1 - times / discount).clamp_min(0))


@register(
    "kseq",
    summary="offer every path's token in turn with one discounted acceptance rule",
    source="SpecTr, arXiv:2310.15141, Algorithm 2",
    paths="many",
    cost="O(L V), a dozen passes per node",
    closed_form="kseq",
)
def verify_kseq(batch: Batch, draws: Draws) -> Verdict:
    """Discounted acceptance at each node of the tree, n the number of paths through it."""
    return verify_by_level(batch, draws, offer_with_discount)
