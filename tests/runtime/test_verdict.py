"""What a batch is refused for: the tolerance of each dtype from both sides, and tensors on two devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from specbound.runtime.verdict import ROW_TOLERANCE, Batch, arithmetic_dtype, validate_rows

STATED = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
BATCH = Batch(torch.zeros(1, 1, 1, dtype=torch.int64), torch.full((1, 1, 1, 2), 0.5), torch.full((1, 1, 2, 2), 0.5))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", STATED)
def test_a_row_may_miss_one_by_the_stated_tolerance_and_no_more(dtype, sign):
    assert ROW_TOLERANCE[dtype] == STATED[dtype]

    def rows(error: float) -> torch.Tensor:
        return torch.tensor([[0.5, 0.5], [0.5, 0.5 + sign * error], [0.5, 0.5]], dtype=dtype)

    validate_rows("rows", rows(0.9 * STATED[dtype]))
    with pytest.raises(ValueError, match=r"rows has a row whose sum is .* away from 1 .*normalise the rows"):
        validate_rows("rows", rows(1.1 * STATED[dtype]))


@pytest.mark.parametrize(
    "row, message",
    [
        ([0.5, float("nan"), 0.5], "NaN or infinite"),
        ([float("inf"), 0.0, 0.0], "NaN or infinite"),
        ([1.5, -0.5, 0.0], "negative entry -0.5"),
    ],
)
def test_one_bad_row_among_good_ones_is_found(row, message):
    good = [0.25, 0.25, 0.5]
    validate_rows("rows", torch.tensor([good, good]))
    with pytest.raises(ValueError, match=message):
        validate_rows("rows", torch.tensor([good, row, good]))


def test_rows_that_are_not_of_a_float_dtype_are_refused_and_no_rows_are_fine():
    with pytest.raises(ValueError, match=r"rows has dtype torch\.int64; want a float dtype"):
        validate_rows("rows", torch.ones(1, 1, dtype=torch.int64))
    validate_rows("rows", torch.ones(0, 3))


@pytest.mark.parametrize("name", ["tokens", "target_probs"])
def test_tensors_on_two_devices_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is on meta, draft_probs on cpu; want one device"):
        replace(BATCH, **{name: getattr(BATCH, name).to("meta")}).validate()


@pytest.mark.parametrize("token", [-1, 2])
def test_tokens_outside_the_vocabulary_are_refused(token):
    BATCH.validate()
    replace(BATCH, tokens=BATCH.tokens + 1).validate()
    with pytest.raises(ValueError, match=rf"tokens lie in {token}\.\.{token}; want 0\.\.1"):
        replace(BATCH, tokens=BATCH.tokens + token).validate()


@pytest.mark.parametrize("dtype", STATED)
def test_arithmetic_is_in_float64_only_for_float64(dtype):
    assert arithmetic_dtype(torch.ones(1, dtype=dtype)) == (torch.float64 if dtype == torch.float64 else torch.float32)
