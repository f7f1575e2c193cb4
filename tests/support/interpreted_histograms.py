"""Histograms of rows under Triton's interpreter; `test_kernels.py` runs this file in a process of its own."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from specbound.runtime.kernels import histograms
from specbound.runtime.kernels.histograms import (
    LAST,
    SLOTS,
    knot_of,
    knots_at,
    merged_span,
    row_histograms,
    window_at,
)
from specbound.runtime.kernels.rows import inverse_temperature, read_row
from specbound.runtime.parts.ratio_knots import Knots, fixed_knots
from tests.support.interpreted_kernels import POISON, Case, _interpreter_is_fast, buffers, random_case

__all__ = ["_interpreter_is_fast"]


@triton.jit
def store_knots(
    target, draft, histogram, windows, chunk_max, chunk_sum, temperatures, depth, length, vocab, chunks,
    out_ratio, out_mass, out_octave, out_knot, out_part,
    CHUNKS: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    WHOLE: tl.constexpr, IS_LAW: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Knots of every node at `depth`, and where every token stands on them. Grid (W,)."""
    walk = tl.program_id(0)
    ratio, mass, octave, _, _ = knots_at(
        histogram, windows, chunk_max, chunk_sum, temperatures, walk, walk, depth, length, chunks,
        CHUNKS, SPANS, SPAN, REAL,
    )  # fmt: skip
    index = tl.arange(0, SLOTS)
    tl.store(out_ratio + walk * SLOTS + index, ratio)
    tl.store(out_mass + walk * SLOTS + index, mass)
    tl.store(out_octave + walk, octave)
    token = tl.arange(0, WHOLE)
    ahead = read_row(target, walk * (length + 1) + depth, token, vocab, IS_LAW, REAL)
    drawn = read_row(draft, walk * length + depth, token, vocab, IS_LAW, REAL)
    there = token < vocab
    span = tl.where(there, token // (BLOCK * SPAN), 0)
    centre, before = window_at(windows, walk, depth, length, span, SPANS)
    log_ratio = histograms.log_ratio_of(ahead, drawn, inverse_temperature(temperatures, walk, REAL))
    knot, part = knot_of(log_ratio, token // TILE, centre, before, octave, REAL)
    tl.store(out_knot + walk * WHOLE + token, knot)
    tl.store(out_part + walk * WHOLE + token, part)


@dataclasses.dataclass
class Seen:
    """What the kernels make of rows [N, V]: ratio, mass [N, SLOTS], octave [N]; knot, part [N, V] of the tokens."""

    ratio: Tensor
    mass: Tensor
    octave: Tensor
    knot: Tensor
    part: Tensor

    def masses(self, draft_rows: Tensor) -> Tensor:
        """[N, SLOTS] masses of the draft's rows from where their tokens stand: a second route to `mass`."""
        found = torch.zeros_like(self.mass)
        knot, part = self.knot.long(), self.part.double()
        found.scatter_add_(1, knot, draft_rows * (1 - part))
        return found.scatter_add_(1, knot + 1, draft_rows * part)


def seen(case: Case, block: int, span: int, laws: bool = False, tile: int | None = None) -> Seen:
    """The histograms of a case of one path and one token, merged."""
    requests, _, length, vocab = case.shape
    out = buffers(requests, 1, length, vocab, case.target.dtype, block, span)
    target, draft = case.laws() if laws else (case.target, case.draft)
    temperatures = torch.ones(requests, dtype=torch.float64) if laws else case.temperatures
    sizes = {"BLOCK": out.block, "SPAN": out.span, "TILE": tile or out.tile, "IS_LAW": laws} | out.constants
    row_histograms[(out.spans, length + 1, requests)](
        target, draft, temperatures, out.lengths, out.nodes, out.chunk_max, out.chunk_sum,
        out.histograms, out.windows, length, vocab, out.chunks, **sizes,
    )  # fmt: skip
    whole = triton.next_power_of_2(vocab)
    found = Seen(
        torch.full((requests, SLOTS.value), torch.nan, dtype=torch.float64),
        torch.full((requests, SLOTS.value), torch.nan, dtype=torch.float64),
        torch.full((requests,), POISON, dtype=torch.int32),
        torch.full((requests, whole), POISON, dtype=torch.int32),
        torch.full((requests, whole), torch.nan, dtype=case.target.dtype),
    )
    store_knots[(requests,)](
        target, draft, out.histograms, out.windows, out.chunk_max, out.chunk_sum, temperatures, 0, length, vocab,
        out.chunks, found.ratio, found.mass, found.octave, found.knot, found.part,
        CHUNKS=triton.next_power_of_2(out.chunks), SPANS=out.spans, WHOLE=whole, **sizes,
    )  # fmt: skip
    return dataclasses.replace(found, knot=found.knot[:, :vocab], part=found.part[:, :vocab])


@pytest.mark.parametrize(("block", "span"), [(512, 1), (128, 4), (128, 2), (128, 1), (16, 5)])
def test_the_knots_of_laws_are_those_of_the_tensor_version(block: int, span: int) -> None:
    case = random_case(3, 1, 1, 300, torch.float64, seed=block, masked=block == 512)
    found = seen(case, block, span, laws=True)
    target, draft = (law[:, 0, :1] for law in case.laws())
    knots = Knots.of(target, draft, torch.float64)
    last = LAST.value + 1
    assert (found.mass[:, :last] - torch.from_numpy(knots.mass[:, 0])).abs().max() < 1e-12
    assert (found.ratio[:, :last] / fixed_knots(torch.device("cpu")) - 1)[:, 1:].abs().max() < 1e-12
    assert found.ratio[:, 0].abs().max() == 0
    assert found.mass[:, last:].abs().max() == 0
    assert (found.ratio.diff(dim=1) > 0).all()


def drifting(dtype: torch.dtype, seed: int = 0) -> Case:
    """Rows of 96 logits with far octaves: masked ones, a draft or a target that is nearly all in a late tile."""
    case = random_case(6, 1, 1, 96, dtype, seed=seed, temperatures=torch.ones(6))
    target, draft = case.target[:, 0, 0], case.draft[:, 0, 0]
    target[1, :40], draft[1, 20:60] = -torch.inf, -torch.inf
    target[2, 70] += 25
    draft[3, 70] += 25
    target[4, 40:] += 25
    draft[4, 75:] += 40
    case.temperatures[5] = 0.05
    return case


def differences(case: Case, block: int, span: int) -> tuple[float, float]:
    """Merged masses against those of the tokens where they stand; and the law's own error, its sum against 1."""
    found = seen(case, block, span)
    masses = found.masses(case.laws()[1][:, 0, 0])
    return float((found.mass - masses).abs().max()), float((masses.sum(dim=1) - 1).abs().max())


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize(("block", "span"), [(128, 1), (16, 8), (16, 4), (16, 1), (32, 2)])
def test_masses_are_those_of_the_tokens_where_they_stand(
    dtype: torch.dtype, error: float, block: int, span: int
) -> None:
    """Single precision: 2^-22 for every weight, and the rounding of sums of 96 and of a 25-fold logarithm."""
    assert max(differences(drifting(dtype), block, span)) < error


def test_tokens_stand_at_their_ratio_and_in_a_window_that_moved_near_it() -> None:
    """All in one tile, exactly; else but for 2^-8 of the draft's or of the target's mass."""
    case = drifting(torch.float64)
    target, draft = (law[:, 0, 0] for law in case.laws())
    wanted = (target / draft).nan_to_num(0, 0, 0).clamp_max(2.0**7)
    errors = []
    for tile in (128, 16):
        found = seen(case, 128, 1, tile=tile)
        knot = found.knot.long()
        low, high = (found.ratio.gather(1, place) for place in (knot, knot + 1))
        errors.append(((low + found.part * (high - low)).clamp_max(2.0**7) - wanted).abs() * (draft > 0))
    whole, moving = errors
    assert (whole / (1 + wanted)).max() < 1e-9
    assert (draft * moving.minimum(1 + wanted)).sum(dim=1).max() < 2.0**-7
    assert (moving > 1e-9).any(dim=1).sum() >= 2


def test_chunk_sums_are_those_of_the_row() -> None:
    case = drifting(torch.float64)
    out = buffers(6, 1, 1, 96, torch.float64, 32, 2)
    lengths = torch.tensor([1, 1, 0, 1, 1, 0], dtype=torch.int32)
    row_histograms[(out.spans, 2, 6)](
        case.target, case.draft, case.temperatures, lengths, out.nodes, out.chunk_max, out.chunk_sum,
        out.histograms, out.windows, 1, 96, 3, BLOCK=32, SPAN=2, TILE=32, IS_LAW=False, **out.constants,
    )  # fmt: skip
    for place, logits in enumerate((case.target[:, 0], case.draft[:, 0])):
        rows, scale = logits.shape[1], case.temperatures[:, None, None]
        log_sum = out.chunk_max[:, place, :rows] / scale + out.chunk_sum[:, place, :rows].log()
        wanted = (logits.unflatten(-1, (3, 32)) / scale[..., None]).logsumexp(dim=-1)
        there = torch.arange(rows) < (lengths + 1 - place)[:, None]
        assert ((log_sum == wanted) | ((log_sum - wanted).abs() < 1e-12))[there].all()
        assert out.chunk_sum[:, place, :rows][~there].isnan().all()


@triton.jit
def slots_without_parts(log_ratio, centre, REAL: tl.constexpr):
    """Every token at the knot below it."""
    ratio = tl.exp2(tl.minimum(log_ratio - centre, 32.0))
    leading = ratio.to(tl.float32).to(tl.int32, bitcast=True) >> histograms.SHIFT
    slot = tl.minimum(tl.maximum(leading - histograms.LOWEST + 1, 0), SLOTS - 1)
    return slot, ratio * 0.0, ratio


@triton.jit
def unmoved_span(histogram, centre, octave, scale):
    """Spans added without regard to their windows."""
    return merged_span(histogram, octave, octave, scale)


@triton.jit
def unscaled_span(histogram, centre, octave, scale):
    """Spans added without regard to their largest logits."""
    return merged_span(histogram, centre, octave, 1.0)


@triton.jit
def first_half(numbers):
    """11 of the 24 bits."""
    return numbers.to(tl.float16), (numbers * 0.0).to(tl.float16)


@pytest.mark.parametrize(
    ("name", "broken"),
    [("merged_span", unmoved_span), ("merged_span", unscaled_span), ("halves", first_half)],
)
def test_the_comparison_of_masses_rejects_broken_histograms(
    monkeypatch: pytest.MonkeyPatch, name: str, broken: object
) -> None:
    monkeypatch.setattr(histograms, name, broken)
    assert differences(drifting(torch.float32), 16, 1)[0] > 2e-5


def test_the_comparison_with_the_tensor_version_rejects_a_histogram_without_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(histograms, "slot_of", slots_without_parts)
    case = random_case(1, 1, 1, 300, torch.float64)
    target, draft = (law[:, 0, :1] for law in case.laws())
    wanted = torch.from_numpy(Knots.of(target, draft, torch.float64).mass[:, 0])
    assert (seen(case, 512, 1, laws=True).mass[:, : LAST.value + 1] - wanted).abs().max() > 1e-3
