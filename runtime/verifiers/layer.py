"""Layer verification: the optimal single-step rule lifted to the tree, so that rejections do not end the call.

What the public description determines: scores of the nodes from any single-step rule, a sweep of the tree that selects
the accepted node and its correction, lossless if the rule is; optimal for one step and for one path if the rule is
optimal for one step. What had to be decided: a node's score is the ratio of `lift`, the rule serves the measure
a target with 1 - a left over, and nodes are tried children first (the order does not change the law). The base
rule here is `single_step_optimal`'s, exact where the paper uses Global Resolution.

B requests, K paths, L drafted tokens, V vocabulary.
Source: Layer Verification, openreview XrqcUo6B6L, abstract only; the lift as decided: specbound (own).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.lift import Serve, Served, verify_lifted
from ..registry import Verify, register
from ..verdict import Batch, Verdict
from .single_step_optimal import select_optimally
from .specinfer import offer_with_residuals


def serve_optimally(wanted: Tensor, draft: Tensor, tokens: Tensor, alive: Tensor) -> Served:
    """The largest share that independent drafts can give; left is max(0, wanted - cap draft)."""
    shares, cap = select_optimally(wanted, draft, tokens, alive, steps=60)
    return Served(shares, (wanted - cap.unsqueeze(1) * draft).clamp_min(0))


def serve_in_turn(wanted: Tensor, draft: Tensor, tokens: Tensor, alive: Tensor) -> Served:
    """Recursive rejection, whose lift is traversal verification: 1 - a counts as one more token, never drafted."""
    slack = (1 - wanted.sum(dim=1, keepdim=True)).clamp_min(0)
    target, row = torch.cat([wanted, slack], dim=1), torch.cat([draft, torch.zeros_like(slack)], dim=1)
    played = offer_with_residuals(target, row, tokens, alive)
    coins = played.coins * alive
    reach = torch.cat([torch.ones_like(coins[:, :1]), (1 - coins).cumprod(dim=1)], dim=1)
    return Served(reach[:, :-1] * coins, (wanted - played.excess.unsqueeze(1) * draft).clamp_min(0))


def layer(serve: Serve = serve_optimally) -> Verify:
    """Layer verification with another single-step rule."""

    def verify(batch: Batch, draws: Draws) -> Verdict:
        return verify_lifted(batch, draws, serve)

    return verify


@register(
    "layer",
    summary="the optimal single-step rule at each node of the tree, children before parents",
    source="Layer Verification, openreview XrqcUo6B6L (from its abstract), the lift as decided: specbound (own)",
    paths="many",
    cost="O(K L V log V), some hundred passes per node; for small supports",
)
def verify_layer(batch: Batch, draws: Draws) -> Verdict:
    """The lift of the single-step optimum."""
    return verify_lifted(batch, draws, serve_optimally)
