"""Greedy block verification: keep a prefix as often as any verifier can, and let later positions pay for it.

    Pr(w is kept) = min(P(w), Q(w)) for every prefix w of the block

which is the optimum of transporting the draft block to the target block. The price: behind the correction token the
stream no longer follows the target's conditionals but a modified law for the rest of the block (`runtime.carry`),
and the next call verifies against that law. Ahead of block verification for one call, behind from three calls on.

B requests, L drafted tokens, V vocabulary; p the target row in force (modified by the carried layers), q the draft
row. [BV] arXiv:2403.10444, greedy block verification with distribution modification (Appendix).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..carry import Layers
from ..draws import Draws
from ..parts.single_path import at, only_path, row_at
from ..registry import register
from ..verdict import Batch, Verdict


def greedy_threshold(log_ratio: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """Probability of keeping the prefix w when no longer one was kept.

        h = min(1, A / B),   A = sum_y max(0, R p(y) - q(y)),   B = sum_y max(0, q(y) - R p(y)),   R = P(w) / Q(w)

    with h = 1 if B = 0.

    Args:
        log_ratio [B], log R; target_row, draft_row [B, V] at w.
    Returns:
        [B] in [0, 1].
    """
    ratio = log_ratio.exp().clamp_max(torch.finfo(target_row.dtype).max).unsqueeze(-1)
    difference = ratio * target_row - draft_row
    above, below = difference.clamp_min(0).sum(dim=-1), (-difference).clamp_min(0).sum(dim=-1)
    return torch.where(below > 0, (above / below).clamp_max(1), torch.ones_like(below))


def next_log_ratio(log_ratio: Tensor, token: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """log R one token further: + log p(token) - log q(token); unchanged where the draft cannot draw the token."""
    target, draft = at(target_row, token), at(draft_row, token)
    return log_ratio + torch.where(draft > 0, target.log() - draft.log(), torch.zeros_like(draft))


def carried_layers(batch: Batch, dtype: torch.dtype) -> Layers:
    """The layers the batch brings along, or none at the start.

    Raises:
        ValueError: carry is not the state of these requests.
    """
    requests, paths = batch.shape[:2]
    if batch.carry is None:
        return Layers.empty(requests, paths, dtype, batch.draft_probs.device)
    if not isinstance(batch.carry, Layers):
        raise ValueError(f"carry is a {type(batch.carry).__name__}; want the carry of this verifier's last verdict")
    if len(batch.carry.remaining) != requests or batch.carry.paths != paths:
        raise ValueError(
            f"carry is the state of {len(batch.carry.remaining)} requests with {batch.carry.paths} paths, the batch "
            f"has {requests} with {paths}; use carry.select(rows), and the same number of paths in every call"
        )
    return batch.carry


def usable_length(carry: Layers, length: int) -> Tensor:
    """[B] how many of the L drafted tokens can be verified: L - 1 where a layer reaches beyond the block, else L.

    A layer that applies to more than L further positions also modifies the law of the bonus token, and for that it
    needs the draft's row after the whole path, which nobody has computed. Giving up the last drafted token provides
    that row. It happens only when a block is shorter than an earlier one.
    """
    reaches_beyond = (carry.remaining > length).any(dim=1)
    return length - reaches_beyond.long()


def emit(
    states: Sequence[Layers], log_ratios: Tensor, kept: Tensor, usable: Tensor, batch: Batch, path: Tensor, draws: Draws
) -> Verdict:
    """Draw the token after the `kept` ones, and make the state behind it.

    Stopping at a prefix w short of the block opens a layer with rho = R(w) for the rest of the block; the token is
    drawn through all layers, and all are advanced by it.

    Args:
        states: the layers at prefix 0..L of the winning path; log_ratios [B, L+1]: log R there.
        kept, usable, path [B]; batch: supplies the rows.
    """
    length = batch.shape[2]
    slots = max(states[0].slots, length - 1)
    wide = [state.widened(slots) for state in states]
    here = Layers(
        row_at(torch.stack([state.log_ratio for state in wide], dim=1), kept),
        row_at(torch.stack([state.remaining for state in wide], dim=1), kept),
        states[0].paths,
    ).pushed(at(log_ratios, kept), usable - kept)
    requests = torch.arange(len(kept), device=kept.device)
    target_row = batch.target_probs[requests, path, kept].to(log_ratios.dtype)
    draft_row = batch.draft_probs[requests, path, kept.clamp_max(length - 1)].to(log_ratios.dtype)
    laws = here.laws(target_row, draft_row)
    token = draws.choose(laws[-1])
    return Verdict(path, kept, token, here.advance(token, laws, draft_row))


@register(
    "greedy-block",
    summary="keep every prefix with probability min(P, Q); later positions follow a modified target law",
    source="Block Verification, arXiv:2403.10444, Appendix (greedy block verification)",
    paths="single",
    stateful=True,
    cost="O(L^2 V)",
    closed_form="greedy-block",
)
def verify_greedy_block(batch: Batch, draws: Draws) -> Verdict:
    """Keep the longest prefix whose coin comes up, against the target law that the carried layers leave in force.

        h_i = min(1, A_i / B_i) (i < L),   h_L = min(1, R_L)

    All requests of a batch draft the same number L of tokens (no padding); L may change between calls, as long as
    it does not depend on the drafted tokens.
    """
    tokens, draft_probs, target_probs = only_path(batch)
    carry = carried_layers(batch, target_probs.dtype)
    usable = usable_length(carry, tokens.shape[1])
    states, log_ratios, thresholds = [carry], [torch.zeros_like(target_probs[:, 0, 0])], []
    for place, token in enumerate(tokens.unbind(dim=1)):
        draft_row = draft_probs[:, place]
        laws = states[-1].laws(target_probs[:, place], draft_row)
        thresholds.append(greedy_threshold(log_ratios[-1], laws[-1], draft_row))
        log_ratios.append(next_log_ratio(log_ratios[-1], token, laws[-1], draft_row))
        states.append(states[-1].advance(token, laws, draft_row))
    thresholds.append(torch.zeros_like(thresholds[0]))
    ratios = torch.stack(log_ratios, dim=1)
    kept = draws.accept_last(within_block(torch.stack(thresholds, dim=1), ratios.clamp_max(0).exp(), usable)[:, 1:])
    return emit(states, ratios, kept, usable, batch, torch.zeros_like(kept), draws)


def within_block(inner: Tensor, last: Tensor, usable: Tensor) -> Tensor:
    """Thresholds at prefix 0..L [B, L+1]: `inner` before the end of the usable block, `last` at its end, then 0."""
    places = torch.arange(inner.shape[1], device=inner.device)
    end = usable.unsqueeze(1)
    return torch.where(places < end, inner, torch.where(places == end, last, torch.zeros_like(last)))
