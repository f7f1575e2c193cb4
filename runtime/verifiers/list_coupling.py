"""List coupling: K drafts, each with coins of its own, and a target that races with the best coin of every token.

With exponentials S^k_y, one set per path, shared by draft and verifier,

    x_k = argmin_y S^k_y / draft(y),   y = argmin_y min_k S^k_y / target(y),

so that y does not depend on the drafts; the paths with x_k = y go on, those of the node reached only.

The law of y given x_1..x_K: with r(y) = target(y) / draft(y), E(s) = s + sum_y max(0, target(y) - s draft(y)) and
J(v; r) = v integral from r to infinity of exp(-v E(s)) ds = Pr(path k has no S_y / target(y) below v | r(x_k) = r),

    Pr(y | x) = integral over v of  target(y) sum_k max(0, J_k - J(v; r(y))) prod_{l != k} J_l
                                  + sum_{k: x_k = y} r(y) exp(-v E(r(y))) prod_{l != k} J_l,        J_k = J(v; r(x_k)).

E is linear between neighbouring r, so J is a finite sum; the integral over v is taken by the trapezoidal rule in log v,
which converges geometrically for functions analytic in the right half plane, to 1e-14 with the step used. A draft of
probability below 1e-38 is beyond the rule's range: its token then wins, as it does in the limit.

B requests, K paths, L drafted tokens, V vocabulary, N nodes of the rule.
Source: list coupling (GLS), arXiv:2506.05632; the conditional law: specbound (own).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.draft_tree import Walk, first_path
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict
from .gumbel_coupling import winner
from .naive import certain

STEP, LOWEST, HIGHEST = 0.2, -90.0, 4.2  # of log v


def list_law(tokens: Tensor, alive: Tensor, draft: Tensor, target: Tensor) -> Tensor:
    """Pr(y | x_1..x_K) [B, V] for the paths in `alive`; tokens, alive [B, K], rows [B, V], float64."""
    target, draft = (row / row.sum(dim=1, keepdim=True) for row in (target, draft))
    v = torch.arange(LOWEST, HIGHEST, STEP, dtype=target.dtype, device=target.device).exp()
    ratio = torch.where(draft > 0, target / draft, torch.full_like(target, torch.inf))
    ordered, order = ratio.sort(dim=1, stable=True)
    finite = torch.isfinite(ordered)
    ends = torch.where(finite, ordered, 0)
    p, q = target.gather(1, order), draft.gather(1, order)
    below = q.cumsum(dim=1)
    level = ends * below + torch.cat([p.flip(1).cumsum(dim=1).flip(1)[:, 1:], torch.zeros_like(p[:, :1])], dim=1)
    # J at every place, from the last segment (slope 1, to infinity) down; [B, V, N]
    width = torch.where(finite[:, 1:], ends.diff(dim=1), 0)
    z = (torch.where(finite[:, 1:], level.diff(dim=1), 0)).unsqueeze(2) * v
    shrink = torch.where(z > 0, -torch.expm1(-z) / torch.where(z > 0, z, 1), torch.ones_like(z))
    piece = width.unsqueeze(2) * v * torch.exp(-level[:, :-1].unsqueeze(2) * v) * shrink
    top = torch.where(finite, level, 0).amax(dim=1, keepdim=True)
    tail = torch.exp(-top * v).unsqueeze(1)
    survive = torch.cat([piece.flip(1).cumsum(dim=1).flip(1), torch.zeros_like(tail)], dim=1) + tail
    survive = survive * finite.unsqueeze(2)
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    mine = place.gather(1, tokens)
    own = survive.gather(1, mine.unsqueeze(2).expand(-1, -1, len(v)))
    own = torch.where(alive.unsqueeze(2), own, 1)
    others = torch.stack(
        [own[:, [j for j in range(own.shape[1]) if j != k]].prod(dim=1) for k in range(own.shape[1])], 1
    )
    others = others * alive.unsqueeze(2) * (STEP * v)
    law = torch.zeros_like(target)
    for k in range(tokens.shape[1]):
        law += target * torch.einsum("bvn,bn->bv", _over(own[:, k], survive), others[:, k]).gather(1, place)
        peak = (ends * torch.einsum("bvn,bn->bv", torch.exp(-level.unsqueeze(2) * v), others[:, k])).gather(1, place)
        law.scatter_add_(1, tokens[:, k : k + 1], peak.gather(1, tokens[:, k : k + 1]))
    rare = torch.where(alive, ratio.gather(1, tokens), -1).argmax(dim=1)
    return torch.where(law.sum(dim=1, keepdim=True) > 0.5, law, certain(at(tokens, rare), law))


def _over(own: Tensor, survive: Tensor) -> Tensor:
    return (own.unsqueeze(1) - survive).clamp_min(0)


@register(
    "list-coupling",
    summary="K drafts with coins of their own; the target races with the best coin of every token",
    source="List coupling (GLS), arXiv:2506.05632; law of the race: specbound (own)",
    paths="many",
    cost="O(K L V N), N = 470 points of an integral",
)
def verify_list(batch: Batch, draws: Draws) -> Verdict:
    """Draw the target's winner given the drafts' at each node; go on with the paths that have it."""
    walk = Walk(batch)
    length = batch.tokens.shape[2]
    running = torch.ones_like(walk.path, dtype=torch.bool)
    kept = torch.zeros_like(walk.path)
    token = torch.zeros_like(walk.path)
    for depth in range(length + 1):
        row = walk.target_row(depth)
        law = row.double()
        if depth < length:
            law = list_law(batch.tokens[:, :, depth], walk.alive, walk.draft_row(depth).double(), law)
        token = draws.choose(torch.where(running.unsqueeze(1), law, certain(token, law)))
        if depth == length:
            break
        here = walk.alive & (batch.tokens[:, :, depth] == token.unsqueeze(1))
        running = running & here.any(dim=1)
        kept = kept + running
        walk.descend(torch.where(running, first_path(here), walk.path), depth)
    return Verdict(walk.path, kept, token)


def list_winner(exponentials: Tensor, alive: Tensor, probs: Tensor) -> Tensor:
    """The target's winner [B] from the coins themselves: exponentials [B, K, V], alive [B, K], probs [B, V]."""
    best = torch.where(alive.unsqueeze(2), exponentials, torch.inf).amin(dim=1)
    return winner(best, probs)
