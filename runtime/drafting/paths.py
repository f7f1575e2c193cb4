"""Drafting: K independent paths of L tokens per row, or the best block of a beam search.

B rows, K paths, L tokens, V vocabulary. All paths of a row (all beams) share the draft's slots of everything known;
their drafted tokens lie behind them in the order (token 1 of paths 1..K), (token 2 of paths 1..K), ...
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..draws import Draws
from ..lengths import LengthPolicy
from ..processes import Agreed
from ..sampling import Sampler
from ..states import Held


@dataclass(frozen=True)
class Context:
    """What drafting starts from.

    Attributes:
        known: for each row its padded prompt and the tokens after it (read by logits processors only).
        recent [B, n] int64: the tokens the draft has not seen yet, up to the last known one.
        place: for each row the position of the last known token.
    """

    known: list[Tensor]
    recent: Tensor
    place: list[int]


@dataclass(frozen=True)
class Drafts:
    """Drafted paths.

    Attributes:
        tokens [B, K, L] int64: token 0 behind a row's own length.
        laws [B, K, L, V]: the very rows the tokens were drawn from.
        lengths: of each row's drafts, at most L.
        slots [B, K, L-1] int64: where the tokens but the last lie in the draft's tail; None if in their own order.
    """

    tokens: Tensor
    laws: Tensor
    lengths: list[int]
    slots: Tensor | None = None


def draft_paths(
    model: Held,
    sampler: Sampler,
    draws: Draws,
    context: Context,
    paths: int,
    lengths: list[int],
    policy: LengthPolicy,
    agreed: Agreed,
) -> Drafts:
    """Draw `paths` drafts per row, each token from the processed law of the draft after the tokens before it.

    Args:
        lengths: of each row, at most; an adaptive policy may stop earlier (single paths only).
        agreed: how processes that share a model agree on tokens and lengths.
    """
    logits = _last_logits(model, context).expand(-1, paths, -1)
    rows, device = len(context.place), context.recent.device
    longest, lengths = max(lengths), list(lengths)
    if paths > 1:
        place = torch.tensor(context.place, device=device)[:, None].expand(-1, paths)
        sees, slots = side_by_side(paths, longest, device)
    nothing = context.recent.new_zeros(rows, paths, 0)
    tokens: list[Tensor] = []
    laws: list[Tensor] = []
    state = None
    for i in range(longest):
        before = torch.stack(tokens, dim=2) if tokens and sampler.reads_tokens else nothing
        law = sampler.next_laws(logits, context.known, before)
        law = _sure_beyond(law, lengths, i)
        tokens.append(agreed(draws.choose(law)))
        laws.append(law)
        if policy.adaptive:
            hidden = None if model.hidden is None else model.hidden[:, -1].to(law.device)
            stop, state = policy.should_stop(
                state, draft_row=law[:, 0], hidden=hidden, token=tokens[-1][:, 0], drafted=i + 1
            )
            lengths = [
                min(length, i + 1) if ends else length
                for length, ends in zip(lengths, agreed(stop).tolist(), strict=True)
            ]
        if i + 1 >= max(lengths):
            break
        if paths == 1:
            logits = model.read(tokens[-1])
        else:
            logits = model.extend(tokens[-1], place + (i + 1), sees[:, : (i + 1) * paths])
    found = torch.stack(tokens, dim=2), torch.stack(laws, dim=2), lengths
    return Drafts(*found, slots[:, : len(laws) - 1].expand(rows, -1, -1) if paths > 1 else None)


@cache
def side_by_side(paths: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where K paths lie whose tokens are fed together, one of each path at a time.

    Returns:
        bool [K, K L]: what the last token fed of each path sees of the first K i slots, once i of each were fed; and
        [K, L]: the slots of each path.
    """
    own = torch.eye(paths, dtype=torch.bool, device=device).repeat(1, length)
    return own, torch.arange(length * paths, device=device).view(length, paths).T


def draft_beam(
    model: Held,
    sampler: Sampler,
    context: Context,
    beams: int,
    length: int,
    agreed: Agreed,
    draws: Draws | None = None,
) -> Drafts:
    """The most probable block that a beam search of the given width finds; ties go to the earlier beam and token.

    Each step keeps the `beams` continuations of largest joint draft probability; the best one is the draft. With
    `draws` it is beam sampling: each step draws them without replacement in proportion to that probability.
    """
    logits = _last_logits(model, context)
    rows, vocab, device = len(context.place), sampler.vocab, context.recent.device
    place = torch.tensor(context.place, device=device)
    tokens = context.recent.new_zeros(rows, 1, 0)
    slots = tokens
    laws = logits.new_zeros(rows, 1, 0, vocab).to(device)
    joint = torch.zeros(rows, 1, dtype=torch.float64, device=device)
    sees = torch.zeros(rows, 1, 0, dtype=torch.bool, device=device)
    end = 0
    for i in range(length):
        law = sampler.next_laws(logits, context.known, tokens)
        grown = (joint[:, :, None] + law.double().log()).flatten(1)
        kept = grown if draws is None else _drawn(grown, beams, draws)
        joint, chosen = kept.sort(dim=1, descending=True, stable=True)
        joint, chosen = joint[:, :beams], agreed(chosen[:, :beams])
        parent, token, width = chosen // vocab, chosen % vocab, chosen.shape[1]
        row = torch.arange(rows, device=device)[:, None]
        laws = torch.cat([laws[row, parent], law[row, parent][:, :, None]], dim=2)
        tokens = torch.cat([tokens[row, parent], token[:, :, None]], dim=2)
        if i + 1 < length:
            own = torch.eye(width, dtype=torch.bool, device=device).expand(rows, -1, -1)
            sees = torch.cat([sees[row, parent], own], dim=2)
            here = (end + torch.arange(width, device=device)).expand(rows, -1)
            slots = torch.cat([slots[row, parent], here[:, :, None]], dim=2)
            end += width
            logits = model.extend(token, (place + 1 + i)[:, None].expand(-1, width), sees)
        else:
            slots = slots[row, parent]
    return Drafts(tokens[:, :1], laws[:, :1], [length] * rows, slots[:, :1])


def _drawn(grown: Tensor, beams: int, draws: Draws) -> Tensor:
    """Logarithms of weights [B, N]; -inf but at `beams` of them, drawn without replacement, each by its weight.

    Where fewer weights are positive these are drawn, and nothing else.
    """
    left = (grown - grown.amax(dim=1, keepdim=True)).exp()
    drawn = torch.full_like(grown, -torch.inf)
    for _ in range(min(beams, int((left > 0).sum(dim=1).max()))):
        possible = (left > 0).any(dim=1, keepdim=True)
        place = draws.choose(torch.where(possible, left, torch.ones_like(left)))[:, None]
        at_place = torch.where(possible, grown.gather(1, place), drawn.gather(1, place))
        drawn = drawn.scatter(1, place, at_place)
        left = left.scatter(1, place, 0.0)
    return drawn


def _last_logits(model: Held, context: Context) -> Tensor:
    """Feed and commit the tokens the draft has not seen; the logits [B, 1, V] after the last of them."""
    logits = model.read(context.recent, last=1)
    model.forget_tail([base + context.recent.shape[1] for base in model.base])
    return logits


def _sure_beyond(law: Tensor, lengths: list[int], drafted: int) -> Tensor:
    """`law` [B, K, V], token 0 for sure in rows that have `drafted` tokens or fewer to draft."""
    if min(lengths) > drafted:
        return law
    ended = torch.tensor([length <= drafted for length in lengths], device=law.device)
    sure = torch.zeros_like(law)
    sure[..., 0] = 1.0
    return torch.where(ended[:, None, None], sure, law)


def of_path(values: Tensor, path: Tensor) -> Tensor:
    """[B, ...]: of `values` [B, K, ...] those of each row's `path` [B]."""
    return values[:, 0] if values.shape[1] == 1 else values[torch.arange(len(path), device=path.device), path]
