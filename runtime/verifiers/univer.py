"""UniVer: one sampled child and any number of given ones at each node, none of them a matter of rejection first.

At a node with ratio a, let m be the one child that was sampled, from the draft row, and D the children that were not:
tokens fixed without a look at m. The draft row counts as 0 on D. With left = max(0, a target - draft off D),

    Z = 1 - a + sum left,   share of m = min(1, a target(m) / draft(m)) (0 if m is in D),
    share of k in D = left(k) (1 - share of m) / Z,   emitted at the node: left off D

Children are tried with all that is below them before the node itself; see `lift`, whose order of tries is the drafts'.

Of K independent paths the first at a node is the sampled one and the tokens of the others are given: they are
independent of it. Drafts with deterministic siblings fit too, as paths whose draft row is 0 at those siblings, or a
one-hot row where no child is sampled. For one path this is block verification.

B requests, K paths, L drafted tokens, V vocabulary.
Source: UniVer, arXiv:2605.04543; the reading of independent paths: specbound (own).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..draws import Draws
from ..parts.draft_tree import first_path
from ..parts.lift import Served, verify_lifted
from ..parts.single_path import at
from ..registry import register
from ..verdict import Batch, Verdict


def serve_first_sampled(wanted: Tensor, draft: Tensor, tokens: Tensor, alive: Tensor) -> Served:
    """Of independent paths the first at a node is the sampled one."""
    return serve_sampled_and_given(wanted, draft, tokens, alive, first_path(alive))


def serve_sampled_and_given(wanted: Tensor, draft: Tensor, tokens: Tensor, alive: Tensor, sampled: Tensor) -> Served:
    """Shares of the sampled child and of the given ones.

    Args:
        wanted [N, V]: a target; draft [N, V]: the law of the sampled child, 0 everywhere if there is none.
        tokens, alive [N, K]: the children; sampled [N]: which of them was sampled.
    """
    token = at(tokens, sampled).unsqueeze(1)
    given = torch.zeros_like(wanted).scatter_add_(1, tokens, alive.to(wanted.dtype)) > 0
    alone = (alive & (tokens == token)).sum(dim=1, keepdim=True) == 1
    drawn = alone & (draft.gather(1, token) > 0)
    given.scatter_(1, token, given.gather(1, token) & ~drawn)
    left = (wanted - torch.where(given, 0, draft)).clamp_min(0)
    slack = (1 - wanted.sum(dim=1, keepdim=True)).clamp_min(0)
    total = slack + left.sum(dim=1, keepdim=True)
    keep = torch.where(drawn, wanted.gather(1, token) / draft.gather(1, token), 0).clamp_max(1)
    rest = torch.where(total > 0, (1 - keep) / total, torch.zeros_like(total))
    earlier = (tokens.unsqueeze(2) == tokens.unsqueeze(1)) & alive.unsqueeze(1)
    leading = alive & (earlier.long().argmax(dim=2) == torch.arange(tokens.shape[1], device=tokens.device))
    shares = torch.where(drawn & (tokens == token), keep, rest * left.gather(1, tokens)) * leading
    return Served(shares, torch.where(given, 0, left))


@register(
    "univer",
    summary="block verification on the tree of drafts: one sampled child a node, the others given",
    source="UniVer, arXiv:2605.04543 (on independent paths)",
    paths="many",
    cost="O(K^2 L V)",
)
def verify_univer(batch: Batch, draws: Draws) -> Verdict:
    """Children before parents, each with the share that the sampled child and the given ones leave it."""
    return verify_lifted(batch, draws, serve_first_sampled)
