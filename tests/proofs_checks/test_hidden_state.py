# ruff: noqa: NPY002 - the legacy generator is part of what is intercepted
"""State that outlives a call is looked for on purpose, and found in every way of asking."""

import random

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit.foreign.lazy import NotExact
from specbound.proofs_checks.audit.hidden_state import OutlivesCall, look_for_state, only_its_draws

FAIR, BENT = {0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.75}


def steady(batch):
    return [FAIR for _ in batch]


def counter(period):
    asked = []

    def ask(batch):
        asked.extend(batch)
        return [BENT if len(asked) >= period else FAIR for _ in batch]

    return ask


def after_another():
    last = [0]

    def ask(batch):
        laws = [FAIR if last[0] <= number else BENT for number in batch]
        last[0] = batch[-1]
        return laws

    return ask


def beside_others(batch):
    return [FAIR if len(batch) == 1 else BENT for _ in batch]


def by_place(batch):
    return [BENT if number == 0 and place == 2 else FAIR for place, number in enumerate(batch)]


def row_zero_twice(batch):
    return [BENT if batch.count(number) > 1 else FAIR for number in batch]


def test_a_verifier_without_state_passes():
    look_for_state(steady, 3)
    look_for_state(steady, 1)
    look_for_state(steady, 0)


@pytest.mark.parametrize(
    "ask, words",
    [
        (counter(4), "how often it was asked before"),
        (after_another(), "how often it was asked before"),
        (beside_others, "other requests in its batch"),
        (by_place, "place in the batch"),
        (row_zero_twice, "holds it twice"),
    ],
)
def test_every_way_of_depending_on_other_calls_is_named(ask, words):
    with pytest.raises(OutlivesCall, match=words) as caught:
        look_for_state(ask, 3)
    assert "has probability 0.5 there and 0.25 here" in str(caught.value)


def test_batches_are_left_out_where_there_are_none():
    look_for_state(beside_others, 3, batches=False)


@pytest.mark.parametrize(
    "draw",
    [
        random.random,
        lambda: np.random.rand(),
        lambda: torch.rand(()),
        lambda: random.seed(1),
        lambda: torch.manual_seed(1),
    ],
)
def test_randomness_beside_the_draws_is_noticed(draw):
    with pytest.raises(NotExact, match="take all randomness from the draws"):
        only_its_draws(draw)


def test_a_call_that_leaves_the_generators_alone_gives_its_result():
    assert only_its_draws(lambda: 3) == 3
