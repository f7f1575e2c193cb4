"""One path selected among K by a rule whose law is known, verified as a block against that law.

For any rule that picks one of the paths, let law(y|w) be the probability that the picked path goes on with y, given
that it goes through w. Block verification with `law` in the place of the draft's rows is lossless, and the best rule
attains the lossless optimum of K paths: to design a multi-path verifier is to choose this law.

Letters: B requests, K paths, L drafted tokens, V vocabulary, c acceptance ratio of the prefix selected so far.
Source: [BV] arXiv:2403.10444, Algorithm 2, for the selected path.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import compiled
from ..draws import Draws
from ..verdict import Batch, Verdict, arithmetic
from .block_rule import ratios_of, surplus, threshold, threshold_from
from .draft_tree import Walk, node_rows, rows_at
from .ratio_knots import BEFORE, IN_CACHE, SHIFT, are_fixed, fixed_knots, linear_law, row_by_row, rows_in_cache
from .score_law import Array
from .single_path import at, correction_weights, row_at


class SelectedPath(Walk):
    """A walk down the selected path, collecting what block verification needs.

    Attributes:
        ratio [B] float64: c at the node reached, the probability that its prefix is kept given that it was selected.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__(batch)
        requests, _, length, vocab = batch.shape
        self.ratio = torch.ones(requests, dtype=torch.float64, device=batch.tokens.device)
        self.ratios: list[Tensor] = [self.ratio]
        self.thresholds: list[Tensor] = []
        self.laws = torch.empty(requests, length, vocab, dtype=self.dtype, device=batch.tokens.device)

    def select(self, path: Tensor, depth: int, target_row: Tensor, law: Tensor) -> Tensor:
        """Go down to the next token of `path` [B]; returns that token [B].

        Args:
            target_row [B, V]: the target's row at the node; law [B, V]: exact law of the selected path's next token.
        """
        if depth > 0:
            self.thresholds.append(threshold(self.ratio.to(law.dtype), target_row, law))
        self.laws[:, depth] = law
        token = at(self.batch.tokens[:, :, depth], path)
        self.ratio = next_ratio(self.ratio, at(target_row, token), at(law, token))
        self.ratios.append(self.ratio)
        self.descend(path, depth)
        return token

    def verdict(self, draws: Draws) -> Verdict:
        """Block verification of the selected path: the longest prefix whose coin comes up, then the correction."""
        thresholds = torch.stack([*self.thresholds, self.ratio.to(self.dtype)], dim=1)
        kept = draws.accept_last(thresholds)
        length = thresholds.shape[1]
        stopped = (kept < length).unsqueeze(1)
        target_row = node_rows(self.batch.target_probs, self.path, kept).to(self.dtype)
        law = row_at(self.laws, kept.clamp_max(length - 1))
        scale = at(torch.stack(self.ratios, dim=1), kept).to(self.dtype)
        weights = torch.where(stopped, correction_weights(scale, target_row, law), target_row)
        return Verdict(self.path, kept, draws.choose(weights))


def next_ratio(ratio: Tensor, target: Tensor, draft: Tensor) -> Tensor:
    """Acceptance ratio after one more token, min(1, ratio target/draft), [BV] Eq. (4); all [B], float64.

    A token that the law cannot have drawn leaves it unchanged.
    """
    step = torch.where(draft > 0, target.double() / draft.double(), torch.ones_like(ratio))
    return (ratio * step).clamp_max(1)


def verify_selected(
    batch: Batch, draws: Draws, path: Tensor, knots: Array, densities: Array, ratio: Array
) -> Verdict:  # fmt: skip
    """Block verification of `path` [B]; its law is the draft's times a table at the knots of the path's rows.

    Args:
        knots, densities [B, L, M]: see `ratio_knots.linear_law`; ratio [B, L]: target/draft of the path's tokens.
    """
    if are_fixed(knots) and compiled.usable(path.device.type):
        return _verify_by_loops(batch, draws, path, densities, ratio)
    places, tables = (torch.from_numpy(part).to(path.device) for part in (knots, densities))

    def law(where: Tensor, deep: Tensor, target_rows: Tensor, draft_rows: Tensor) -> Tensor:
        return linear_law(tables[where, deep], places[where, deep], target_rows, draft_rows)

    return verify_against(batch, draws, path, law)


def _verify_by_loops(batch: Batch, draws: Draws, path: Tensor, tables: Array, ratio: Array) -> Verdict:
    """`verify_selected` at the fixed knots on the CPU, by compiled loops over the rows."""
    from ..compiled import rows

    requests, _, length, vocab = batch.shape
    dtype, paths = arithmetic(batch), path.tolist()
    knots = SHIFT, BEFORE, fixed_knots(path.device).numpy()
    ratios, left, weights = np.empty((requests, length + 1)), np.empty((requests, length)), np.empty((requests, vocab))
    rows.path_ratios(ratio, *knots, tables, ratios)

    def both(b: int, places: slice) -> tuple[NDArray[Any], NDArray[Any]]:
        """Some rows [.., V] of both models on the request's path."""
        target, draft = (probs[b, paths[b], places] for probs in (batch.target_probs, batch.draft_probs))
        return row_by_row(target.to(dtype)), row_by_row(draft.to(dtype))

    def add(b: int, some: slice) -> None:
        """The surplus after some of the request's prefixes."""
        inner = slice(1 + some.start, 1 + some.stop)
        rows.surpluses(*both(b, inner), *knots, tables[b, inner], ratios[b, inner], left[b, inner])

    for b in range(requests):
        compiled.spread(partial(add, b), length - 1, length * vocab)
    inner = threshold_from(*(torch.from_numpy(part[:, 1:length]) for part in (ratios, left)))
    kept = draws.accept_last(torch.cat([inner, torch.from_numpy(ratios[:, length:])], dim=1))
    for b, i in enumerate(kept.tolist()):
        if i == length:
            weights[b] = batch.target_probs[b, paths[b], length].double().numpy()
        else:
            (target,), (draft,) = both(b, slice(i, i + 1))
            rows.correction(target, draft, *knots, tables[b, i], ratios[b, i], weights[b])
    return Verdict(path, kept, draws.choose(torch.from_numpy(weights)))


def verify_against(
    batch: Batch,
    draws: Draws,
    path: Tensor,
    law_of: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Verdict:
    """Block verification of `path` [B] against the law by which it was selected.

    Reads every row but the path's first once, and one row again for the token.

    Args:
        law_of: from places, int64 `request` and `depth` of one shape [..], and target's and draft's probabilities
            [.., I] of tokens there, to the law's [.., I].
    """
    requests, _, length, _ = batch.shape
    request, dtype = torch.arange(requests, device=path.device), arithmetic(batch)
    depth = torch.arange(length, device=path.device)
    tokens = batch.tokens[request, path]
    target, draft = (
        probs[request.unsqueeze(1), path.unsqueeze(1), depth, tokens].to(dtype)
        for probs in (batch.target_probs, batch.draft_probs)
    )
    where, deep = request.unsqueeze(1).expand(-1, length), depth.expand(requests, -1)
    ratios = ratios_of(target, law_of(where, deep, target.unsqueeze(2), draft.unsqueeze(2)).squeeze(2))

    def rows(where: Tensor, deep: Tensor) -> tuple[Tensor, Tensor]:
        """Target's row and the path's law at places (request, depth)."""
        target_rows, draft_rows = (
            rows_at(probs, where, path[where], deep).to(dtype) for probs in (batch.target_probs, batch.draft_probs)
        )
        return target_rows, law_of(where, deep, target_rows, draft_rows)

    places = request.repeat_interleave(length - 1), depth[1:].repeat(requests), ratios[:, 1:-1].flatten()
    parts = (part.split(rows_in_cache(batch.draft_probs, IN_CACHE // 2)) for part in places)
    left = [surplus(scale, *rows(where, deep)) for where, deep, scale in zip(*parts, strict=True)]
    inner_thresholds = threshold_from(ratios[:, 1:-1], torch.cat(left).view(requests, length - 1))
    kept = draws.accept_last(torch.cat([inner_thresholds, ratios[:, -1:]], dim=1))

    _, law = rows(request, kept.clamp_max(length - 1))
    target_row = rows_at(batch.target_probs, request, path, kept).to(dtype)
    corrected, stopped = correction_weights(at(ratios, kept), target_row, law), (kept < length).unsqueeze(1)
    weights = torch.where(stopped, corrected, target_row)
    return Verdict(path, kept, draws.choose(weights))
