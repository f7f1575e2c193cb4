"""Production draws at the edges of their uniforms, where sampling would hardly ever look."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specbound.runtime.draws import Draws

LARGEST = 1 - 2.0**-53


class GivenUniform(Draws):
    """Answers from one given uniform."""

    def __init__(self, uniform: float) -> None:
        super().__init__()
        self.uniform = uniform

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.full(like.shape, self.uniform, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "weights, uniform, index",
    [
        ([0, 1], 0.0, 1),
        ([0, 0, 3], 0.0, 2),
        ([0.5, 0, 0.5], 0.5, 2),
        ([0.5, 0, 0.5], 0.5 - 2.0**-54, 0),
        ([0.25, 0.25, 0.5], 0.25, 1),
        ([1, 0], LARGEST, 0),
        ([3, 0, 0], LARGEST, 0),
        ([0, 0.125, 0], 0.0, 1),
        ([0, 0.125, 0], LARGEST, 1),
        ([1], LARGEST, 0),
        ([1, 0, 3], 0.5, 2),
        ([0.0625, 0.0625, 0.125], 0.375, 1),
    ],
)
def test_a_choice_at_the_border_of_two_weights_is_the_one_above_and_never_a_weight_of_zero(
    weights, uniform, index, dtype
):
    assert GivenUniform(uniform).choose(torch.tensor([weights], dtype=dtype)).tolist() == [index]


@pytest.mark.parametrize("uniform", [0.0, 0.5, LARGEST])
def test_weights_without_a_sum_still_give_an_index_that_exists(uniform):
    """Unvalidated rows may be zero or NaN; an index past the row would stop a CUDA device for good."""
    weights = torch.tensor([[0.0, 0.0], [torch.nan, 1.0]])
    assert bool((GivenUniform(uniform).choose(weights) < 2).all())


@pytest.mark.parametrize("total", [5e-324, 1e-323, 1e-310, 0.1, 3.0, 1e308])
def test_the_largest_uniform_is_not_rounded_up_to_the_whole_mass(total):
    """5e-324 (1 - 2^-53) rounds to 5e-324; the last index, behind all the mass, must not be the answer."""
    weights = torch.tensor([[total, 0.0]], dtype=torch.float64)
    assert GivenUniform(LARGEST).choose(weights).tolist() == [0]


def test_coins_of_probability_zero_never_and_of_probability_one_always_come_up():
    coins = torch.tensor([[0.0, 1.0]])
    for uniform in (0.0, 0.5, LARGEST):
        assert GivenUniform(uniform).accept(coins).tolist() == [[False, True]]


def test_runs_of_coins_are_counted_from_the_front_and_the_last_one_from_the_back():
    coins = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    assert Draws().accept_while(coins).tolist() == [1, 0, 0, 4, 2]
    assert Draws().accept_last(coins).tolist() == [3, 3, 0, 4, 2]
    assert Draws().accept_last(coins[:1]).tolist() == [3]


def test_the_smallest_key_is_the_smallest_point_of_its_interval():
    low, high = torch.tensor([[0.5, 0.0, 0.25]]), torch.tensor([[0.5, 1.0, 0.5]])
    answers = {uniform: GivenUniform(uniform).smallest_key(low, high).item() for uniform in (0.0, 0.4, 0.75)}
    assert answers == {0.0: 1, 0.4: 2, 0.75: 2}
    images = Draws(torch.Generator().manual_seed(0)).smallest_image(
        torch.zeros(50, 2), lambda uniform: uniform + torch.tensor([1.0, 0.0]), lambda: torch.zeros(0)
    )
    assert images.tolist() == [1] * 50


def test_every_question_takes_its_uniforms_from_the_given_generator():
    coins, keys = torch.full((64, 2), 0.5), (torch.zeros(64, 2), torch.ones(64, 2))
    questions = [
        lambda draws: draws.accept(coins),
        lambda draws: draws.choose(coins),
        lambda draws: draws.smallest_key(*keys),
        lambda draws: draws.smallest_image(coins, lambda uniform: uniform, lambda: torch.zeros(0)),
    ]
    for question in questions:
        first, again, other = (question(Draws(torch.Generator().manual_seed(seed))) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
