"""Global resolution: the single-step optimum of K independent drafts by weights that two convex problems determine.

At a node with n drafts let S be the tokens of highest target/draft ratio that minimise g(draft(S)) - target(S), where
g(t) = 1 - (1-t)^n. A draft with a token in S goes before the others; among those that compete, draft k is selected
with probability w(x_k) / sum w. With s(y; u) = Pr(the selected draft has token y), w = exp(u), the weights solve

    on S    min over u <= 0 of  E log(sum of w over the drafts in S; there is one) - sum_S target u :   s <= target
    off S   min over u >= 0 of  E log(sum of w over the drafts; none is in S)      - sum target u   :   s >= target

with equality where u is not 0: then everything on S that is covered is kept, and everything off S. The gradient is s -
target; the steps taken are u <- u + log(target / s), cut at 0. s itself is one integral, by an exponential race,

    s(y) = n draft(y) w(y) integral exp(-t w(y)) (sum of draft(z) exp(-t w(z)) over the tokens that compete,
           + on S the draft mass of the others)^(n-1) dt,

taken by the trapezoidal rule in log t. The public description has the two convex problems and their accuracy; which
steps solve them, the race, and what follows are decided here: the selected draft is kept with probability
min(1, target / s), and the correction drawn from max(0, target - s), so that the law is the target's however far the
steps have come, and only the acceptance is short of the optimum. `single_step_optimal` has it in closed form.

B requests, K paths, L drafted tokens, V vocabulary. Source: Global Resolution, arXiv:2511.15898 (from notes on it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.draft_tree import Walk, target_ratio
from ..registry import Verify, register
from ..verdict import Batch, Verdict
from .naive import certain

STEP, LOWEST, HIGHEST, LIMIT = 0.3, -56.0, 22.0, 18.0  # of log t; of log w
TIE = 1e-12
DEFAULT_STEPS = 20


def best_tokens(target: Tensor, draft: Tensor, count: Tensor) -> Tensor:
    """bool [B, V]: the set S; rows [B, V] float64, count [B] of drafts at the node."""
    order = target_ratio(target, draft).sort(dim=1, descending=True, stable=True).indices
    reached = draft.gather(1, order).cumsum(dim=1).clamp_max(1)
    slack = 1 - (1 - reached).pow(count.unsqueeze(1)) - target.gather(1, order).cumsum(dim=1)
    slack = torch.cat([torch.zeros_like(slack[:, :1]), torch.where(slack > -TIE, 0, slack)], dim=1)
    inside = torch.arange(order.shape[1], device=order.device) < slack.argmin(dim=1, keepdim=True)
    return torch.zeros_like(inside).scatter(1, order, inside)


def selected(weights: Tensor, inside: Tensor, draft: Tensor, count: Tensor) -> Tensor:
    """s [B, V], the law of the selected draft's token, from log weights [B, V]; `inside` is S."""
    t = torch.arange(LOWEST, HIGHEST, STEP, dtype=draft.dtype, device=draft.device).exp()
    waiting = torch.exp(-weights.exp().unsqueeze(2) * t)
    mass = draft.unsqueeze(2) * waiting
    first, others = (mass * inside.unsqueeze(2)).sum(dim=1), (mass * ~inside.unsqueeze(2)).sum(dim=1)
    idle = (draft * ~inside).sum(dim=1, keepdim=True)
    rest = (count - 1).view(-1, 1)
    rivals = torch.where(inside.unsqueeze(2), (first + idle).pow(rest).unsqueeze(1), others.pow(rest).unsqueeze(1))
    rate = count.view(-1, 1) * draft * weights.exp()
    return rate * (waiting * rivals * (STEP * t)).sum(dim=2)


def resolve(target: Tensor, draft: Tensor, count: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights, S and s, all [B, V], after so many steps; rows [B, V] float64 that sum to 1, count [B]."""
    inside = best_tokens(target, draft, count)
    weights = torch.zeros_like(target)
    law = selected(weights, inside, draft, count)
    for _ in range(steps):
        moved = torch.where(law > 0, weights + (target / law).log(), weights)
        weights = torch.where(inside, moved.clamp(-LIMIT, 0), moved.clamp(0, LIMIT))
        law = selected(weights, inside, draft, count)
    return weights, inside, law


def merged(shares: Tensor, tokens: Tensor, alive: Tensor) -> Tensor:
    """[B, K] the shares of paths with the same token, all with the first of them: they go on together."""
    same = (tokens.unsqueeze(2) == tokens.unsqueeze(1)) & alive.unsqueeze(1)
    leading = alive & (same.long().argmax(dim=2) == torch.arange(tokens.shape[1], device=tokens.device))
    return (same * shares.unsqueeze(1)).sum(dim=2) * leading


def global_resolution(steps: int = DEFAULT_STEPS) -> Verify:
    """The verifier with so many steps on the convex problems; 0 selects among competing drafts at random.

    Raises:
        ValueError: steps is negative.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}; want at least 0")

    def verify(batch: Batch, draws: Draws) -> Verdict:
        walk = Walk(batch)
        length = batch.tokens.shape[2]
        running = torch.ones_like(walk.path, dtype=torch.bool)
        kept = torch.zeros_like(walk.path)
        left = walk.target_row(0).double()
        for depth in range(length):
            rows = (walk.target_row(depth).double(), walk.draft_row(depth).double())
            target, draft = (row / row.sum(dim=1, keepdim=True) for row in rows)
            weights, inside, law = resolve(target, draft, walk.alive.sum(dim=1).double(), steps)
            tokens = batch.tokens[:, :, depth]
            first = inside.gather(1, tokens) & walk.alive
            competing = torch.where(first.any(dim=1, keepdim=True), first, walk.alive)
            chance = weights.gather(1, tokens).exp() * competing
            own, wanted = law.gather(1, tokens), target.gather(1, tokens)
            keep = torch.where(own > 0, wanted / own, torch.ones_like(own)).clamp_max(1)
            shares = merged(chance / chance.sum(dim=1, keepdim=True) * keep, tokens, walk.alive)
            none = (1 - shares.sum(dim=1, keepdim=True)).clamp_min(0)
            options = torch.cat([none, shares], dim=1)
            chosen = draws.choose(torch.where(running.unsqueeze(1), options, certain(kept * 0, options)))
            stopped = running & (chosen == 0)
            left = torch.where(stopped.unsqueeze(1), (target - law).clamp_min(0), left)
            running = running & (chosen > 0)
            kept = kept + running
            walk.descend(torch.where(running, chosen - 1, walk.path), depth)
        row = walk.row_after(batch.target_probs, kept)
        corrected = ~running.unsqueeze(1) & (left.sum(dim=1, keepdim=True) > 0)
        return Verdict(walk.path, kept, draws.choose(torch.where(corrected, left, row.double())))

    return verify


@register(
    "global-resolution",
    summary="the single-step optimum by weights from two convex problems, one token at a time",
    source="Global Resolution, arXiv:2511.15898 (from notes); steps and race: specbound (own)",
    paths="many",
    cost="O(L V N M), N = 260 points of an integral, M = 20 steps; for small supports",
    make=global_resolution,
    options=("steps",),
)
def verify_global_resolution(batch: Batch, draws: Draws) -> Verdict:
    """Select at each node by the weights, keep and correct with the law that they give."""
    return global_resolution()(batch, draws)
