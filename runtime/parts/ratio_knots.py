"""A row of V tokens seen at a few target/draft ratios: each token's draft mass goes to the two knots around its ratio.

What a selection rule decides depends on a token through its ratio r = target/draft only. Up to 256 tokens every token
is a knot of its own. Above, the knots are 0 and 2^-8 .. 2^8, 16 to a factor of two, and a token between two knots
counts for either in proportion: whatever is linear between knots is then summed exactly, in one pass over the row.
Decisions at the knots are carried back to the tokens in the same proportions, so losslessness does not depend on them.

Letters: N rows, B requests, K paths, L drafted tokens, V vocabulary, M knots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import compiled
from ..verdict import Batch
from .score_law import Array, Indices, count_below, entries, over
from .single_path import at

MOST = 256  # tokens that are knots of their own
OCTAVES = 8  # factors of two on either side of 1
SHIFT = 19  # a float32 without its last 19 bits names one of 16 steps to an octave
BEFORE = ((127 - OCTAVES) << 23 >> SHIFT) - 1  # what the leading bits say one step below 2^-OCTAVES
LAST = (2 * OCTAVES << 23 >> SHIFT) + 1  # index of the knot 2^OCTAVES; knot 0 is the ratio 0
PIECE = 4096  # tokens added up in the precision of the rows; the sums of such pieces are added in float64
IN_CACHE = 2**17  # numbers per pass on the CPU


@lru_cache
def fixed_knots(device: torch.device) -> Tensor:
    """[LAST + 1] float64, ascending: 0, then 16 to an octave from 2^-8 to 2^8."""
    leading = torch.arange(BEFORE + 1, BEFORE + LAST + 1, dtype=torch.int32, device=device)
    steps = (leading << SHIFT).view(torch.float32).double()
    return torch.cat([torch.zeros_like(steps[:1]), steps])


def knot_below(target_row: Tensor, draft_row: Tensor) -> Tensor:
    """int64 [N, V]: index of the fixed knot at or below each token's ratio, read off the bits of a float32.

    A token without draft mass goes to the last knot; one without any mass to the first or last.
    """
    return _leading_bits((target_row / draft_row).float()).sub_(BEFORE).long()


def _leading_bits(ratio: Tensor) -> Tensor:
    """int32, from BEFORE to BEFORE + LAST, in the place of a float32."""
    return ratio.view(torch.int32).bitwise_right_shift_(SHIFT).clamp_(BEFORE, BEFORE + LAST)


@dataclass(frozen=True)
class Knots:
    """Rows of tokens as masses at ratios, on the host; any number of leading axes for N.

    Attributes:
        ratio [N, M]: ascending.
        mass [N, M]: draft mass of each knot; rows sum to 1.
        total [N]: draft mass of the row.
    """

    ratio: Array
    mass: Array
    total: Array

    @classmethod
    def of(cls, target_rows: Tensor, draft_rows: Tensor, dtype: torch.dtype) -> Knots:
        """The knots of rows [N, L, V], read once, in arithmetic `dtype`; every attribute [N, L, M].

        The target may have more than L rows; they are not read.
        """
        if draft_rows.shape[-1] > MOST and compiled.usable(draft_rows.device.type):
            return cls._compiled(target_rows, draft_rows, dtype)
        target_rows = target_rows[:, : draft_rows.shape[1]]
        if draft_rows.shape[-1] > MOST:
            mass = _shared_masses(target_rows, draft_rows, dtype)
            ratio = fixed_knots(draft_rows.device).expand_as(mass)
        else:
            ratio, order = own_ratio(target_rows.double(), draft_rows.double()).sort(dim=-1)
            mass = draft_rows.double().gather(-1, order)
        total = mass.sum(dim=-1)
        return cls(*(part.cpu().numpy() for part in (ratio, mass / total.unsqueeze(-1), total)))

    @classmethod
    def _compiled(cls, target_rows: Tensor, draft_rows: Tensor, dtype: torch.dtype) -> Knots:
        from ..compiled import rows

        knots = fixed_knots(draft_rows.device).numpy()
        mass, total = np.empty((*draft_rows.shape[:2], len(knots))), np.empty(draft_rows.shape[:2])

        def masses(target: NDArray[Any], draft: NDArray[Any]) -> tuple[Array, Array]:
            found = np.empty((*draft.shape[:2], len(knots))), np.empty(draft.shape[:2])
            rows.knot_masses(target, draft, SHIFT, BEFORE, knots, *found)
            return found

        _by_tile(masses, target_rows, draft_rows, dtype, mass, total)
        return cls(np.broadcast_to(knots, mass.shape), mass, total)

    @cached_property
    def sums(self) -> Array:
        """[2, N, M+1]: draft mass, and target mass mass * ratio, of the knots before each."""
        sums = np.zeros((2, *self.mass.shape[:-1], self.mass.shape[-1] + 1))
        np.cumsum([self.mass, self.mass * self.ratio], axis=-1, out=sums[..., 1:])
        return sums

    @cached_property
    def rests(self) -> Array:
        """[2, N, M+1]: the same of the knots from each on."""
        return Knots(self.ratio[..., ::-1], self.mass[..., ::-1], self.total).sums[..., ::-1]

    def between(self, ratio: Array) -> tuple[Indices, Array]:
        """For ratio [N, ..]: index of the row's knots at or below and above it, [N, .., 2]; and how far between."""
        flat = self.ratio.reshape(-1, self.ratio.shape[-1])
        index = count_below(flat, ratio.reshape(len(flat), ratio.size // max(1, len(flat))), equal=True) - 1
        near = np.clip(np.stack([index, index + 1], axis=2), 0, flat.shape[1] - 1)
        low, high = np.moveaxis(entries(flat[None], near)[0], 2, 0)
        part = over(ratio.reshape(low.shape) - low, high - low)
        return near.reshape(*ratio.shape, 2), part.reshape(ratio.shape)

    def by_depth(self) -> Knots:
        """The knots of rows [N, L] in the order [L, N]."""
        ratio, mass, total = (part.swapaxes(0, 1) for part in (self.ratio, self.mass, self.total))
        knots = Knots(ratio, np.ascontiguousarray(mass), total)
        knots.__dict__.update(sums=knots.sums, rests=knots.rests)  # of all depths at once
        return knots

    def __getitem__(self, place: tuple[slice | int | NDArray[Any], ...]) -> Knots:
        """Some of the rows, with the sums that are known."""
        part = Knots(self.ratio[place], self.mass[place], self.total[place])
        known = self.__dict__.keys() & {"sums", "rests"}
        part.__dict__.update({name: getattr(self, name)[:, *place] for name in known})
        return part


def between(table: Array, near: Indices, part: Array) -> Array:
    """[N, ..]: the table [N, M] at ratios that lie `part` [N, ..] of the way between two knots, near [N, .., 2]."""
    low, high = np.moveaxis(entries(table[None], near)[0], -1, 0)
    between: Array = low + part * (high - low)
    return between


def drafted_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Target's rows [B K, L+1, V] and draft's [B K, L, V] along the paths of a batch."""
    return batch.target_probs.flatten(0, 1), batch.draft_probs.flatten(0, 1)


def at_nodes(rows: Tensor, path: Indices, depth: int) -> Tensor:
    """[B, 1, V]: of rows [N, L, V] those of `path` [B] at a depth; not copied where B = 1."""
    if len(path) == 1:
        return rows[path[0] : path[0] + 1, depth : depth + 1]
    return rows[:, depth : depth + 1].index_select(0, torch.from_numpy(path).to(rows.device))


def histograms(batch: Batch, dtype: torch.dtype) -> tuple[Knots, Array, Array]:
    """The knots of all rows of a batch [B K, L], and target's and draft's probability of its tokens [B K, L]."""
    rows, tokens = drafted_rows(batch), batch.tokens.flatten(0, 1)
    target, draft = (at(each, tokens).double().cpu().numpy() for each in rows)
    return Knots.of(*rows, dtype), target, draft


def own_ratio(target: Tensor, draft: Tensor) -> Tensor:
    """target/draft, 0 where the draft has no mass."""
    return torch.where(draft > 0, target / draft, 0.0)


def rows_in_cache(rows: Tensor, numbers: int = IN_CACHE) -> int:
    """How many rows [.., V] to read at once: `numbers` that stay in the cache on the CPU, all elsewhere."""
    vocab = rows.shape[-1]
    return max(1, numbers // vocab if rows.device.type == "cpu" else rows.numel() // max(1, vocab))


def fit_in_cache(rows: Tensor) -> bool:
    """Whether all rows are better read at once than one by one when they are needed."""
    return rows.numel() <= IN_CACHE


def tiles(rows: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows [N, L, V] in such parts."""
    number, length, _ = rows.shape
    room = rows_in_cache(rows)
    deep = min(length, room)
    wide = room // deep
    for start in range(0, number, wide):
        for depth in range(0, length, deep):
            yield slice(start, start + wide), slice(depth, depth + deep)


def step_masses(target_rows: Tensor, draft_rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, L, LAST + 1, 2] float64: draft and target mass of rows [N, L, V] from each fixed knot up to the next."""
    sums = torch.empty(*draft_rows.shape[:2], LAST + 1, 2, dtype=torch.float64, device=draft_rows.device)
    if compiled.usable(draft_rows.device.type):
        from ..compiled import rows

        def masses(target: NDArray[Any], draft: NDArray[Any]) -> tuple[Array]:
            found = np.empty((*draft.shape[:2], LAST + 1, 2))
            rows.step_masses(target, draft, SHIFT, BEFORE, found)
            return (found,)

        _by_tile(masses, target_rows, draft_rows, dtype, sums.numpy())
        return sums
    most = min(draft_rows.numel(), rows_in_cache(draft_rows) * draft_rows.shape[2])
    kinds = torch.float32, torch.int64, dtype.to_complex()
    room = tuple(torch.empty(most, dtype=kind, device=draft_rows.device) for kind in kinds)
    for tile in tiles(draft_rows):
        sums[tile] = _sums(target_rows[tile].to(dtype), draft_rows[tile].to(dtype), room)
    return sums


def _by_tile(
    work: Callable[[NDArray[Any], NDArray[Any]], tuple[Array, ...]],
    target_rows: Tensor,
    draft_rows: Tensor,
    dtype: torch.dtype,
    *results: Array,
) -> None:
    """Put work(target, draft) of rows [N, L, V] on the CPU into `results` [N, L, ..], tile by tile.

    Rows that are in memory as `dtype`, one after the other, are worked on where they are.
    """
    here, numbers = target_rows[:, : draft_rows.shape[1]], draft_rows.numel()

    def at_place(place: tuple[slice, slice] | slice, target: Tensor, draft: Tensor) -> None:
        for result, part in zip(results, work(target.numpy(), draft.numpy()), strict=True):
            result[place] = part

    def convert(some: slice) -> None:
        for place in places[some]:
            at_place(place, *(rows[place].to(dtype).contiguous() for rows in (here, draft_rows)))

    if all(rows.dtype == dtype and rows.is_contiguous() for rows in (target_rows, draft_rows)):
        compiled.spread(lambda some: at_place(some, target_rows[some], draft_rows[some]), len(draft_rows), numbers)
    else:
        places = list(tiles(draft_rows))
        compiled.spread(convert, len(places), numbers)


def row_by_row(rows: Tensor) -> NDArray[Any]:
    """Rows [.., I] on the CPU as one array [N, I], row after row in memory."""
    flat: NDArray[Any] = rows.reshape(-1, rows.shape[-1]).contiguous().numpy()
    return flat


def _shared_masses(target_rows: Tensor, draft_rows: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, L, LAST + 1] draft mass at the fixed knots, each token's shared by its two neighbours."""
    draft, target = step_masses(target_rows, draft_rows, dtype).unbind(dim=-1)
    knots = fixed_knots(draft_rows.device)
    upper = ((target - knots * draft)[..., :-1] / knots.diff()).clamp_min(0)
    upper = torch.minimum(upper, draft[..., :-1])
    draft[..., :-1] -= upper
    draft[..., 1:] += upper
    return draft


def _sums(target_rows: Tensor, draft_rows: Tensor, room: tuple[Tensor, ...]) -> Tensor:
    """[.., LAST + 1, 2] float64: draft and target mass of the tokens [.., V] from each fixed knot up to the next.

    Args:
        room: for V numbers per row of float32, int64 and complex; asking for memory anew costs as much as a pass.
    """
    rows, vocab = draft_rows.shape[:-1], draft_rows.shape[-1]
    ratio, index, masses = (part[: draft_rows.numel()].view(draft_rows.shape) for part in room)
    count = -(-vocab // PIECE)
    first = torch.arange(count, dtype=torch.int32, device=draft_rows.device) * (LAST + 1) - BEFORE
    first = first.unsqueeze(1).expand(-1, PIECE).flatten()[:vocab]
    index.copy_(_leading_bits(torch.div(target_rows, draft_rows, out=ratio)).add_(first))
    pieces = torch.zeros(*rows, count * (LAST + 1), dtype=masses.dtype, device=masses.device)
    pieces.scatter_add_(-1, index, torch.complex(draft_rows, target_rows, out=masses))
    sums = torch.view_as_real(pieces).view(rows.numel(), -1, 2 * (LAST + 1)).sum(dim=1, dtype=torch.float64)
    return sums.view(*rows, LAST + 1, 2)


def are_fixed(ratio: Tensor | Array) -> bool:
    """Whether knots [.., M] are the fixed ones rather than a row's own tokens."""
    return ratio.shape[-1] > MOST


def linear_law(table: Tensor, ratio: Tensor, target_rows: Tensor, draft_rows: Tensor) -> Tensor:
    """[N, I]: draft times the table [N, M] at each token's ratio, `ratio` [N, M] the knots of its row."""
    if are_fixed(ratio):
        slope = torch.cat([table.diff(dim=-1) / ratio.diff(dim=-1), torch.zeros_like(table[..., :1])], dim=-1)
        index = knot_below(target_rows, draft_rows)
        level, slope = (part.to(draft_rows.dtype) for part in (table - slope * ratio, slope))
        law = level.gather(-1, index).mul_(draft_rows)
        return law.addcmul_(slope.gather(-1, index), target_rows).clamp_min_(0)
    own = own_ratio(target_rows.double(), draft_rows.double())
    index = torch.searchsorted(ratio.contiguous(), own, right=True) - 1
    return draft_rows * table.gather(-1, index).to(draft_rows.dtype)


def stepped_law(table: Tensor, target_rows: Tensor, draft_rows: Tensor) -> Tensor:
    """[N, I]: draft times the entry of the table [N, LAST + 1] at the fixed knot at or below each token's ratio."""
    return table.to(draft_rows.dtype).gather(-1, knot_below(target_rows, draft_rows)).mul_(draft_rows)
