"""Concrete coins: laws of code that nothing can follow, to the resolution of its coins."""

import collections
import math
import random

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit.foreign.interception import Interception
from specbound.proofs_checks.audit.foreign.lazy import NotExact

WEIGHTS = torch.tensor([0.2, 0.3, 0.5])
CLOSE = 4 * 2.0**-24


def law(function, rows=0):
    with Interception(function) as interception:
        return interception.law(function, rows)


def assert_law(function, want, rows=0):
    found = law(function, rows)
    assert found.keys() == want.keys()
    assert all(abs(found[result] - probability) < CLOSE for result, probability in want.items()), found


def vectorised_verifier():
    """All coins drawn beforehand, all corrections computed, one used: one drafted token 0 of q, then 1."""
    p = torch.tensor([[0.3, 0.7], [0.5, 0.5], [0.1, 0.9]])
    q = torch.tensor([[0.6, 0.4], [0.2, 0.8]])
    accepted = torch.rand(2) < p[[0, 1], [0, 1]] / q[[0, 1], [0, 1]]
    kept = int(accepted.long().cumprod(0).sum())
    noise = torch.empty(3, 2).exponential_()
    corrections = (torch.cat([(p[:2] - q).clamp_min(0), p[2:]]) / noise).argmax(-1)
    return (*[0, 1][:kept], int(corrections[kept]))


@pytest.mark.parametrize(
    "function, want",
    [
        (lambda: float(torch.rand(())) < 0.3, {True: 0.3, False: 0.7}),
        (lambda: math.sin(random.random()) < math.sin(0.3), {True: 0.3, False: 0.7}),
        (lambda: 0.25 < float(np.random.default_rng().random()) < 0.5, {True: 0.25, False: 0.75}),
        (lambda: int(10 * float(torch.rand(()))) % 2, {0: 0.5, 1: 0.5}),
        (
            lambda: int((torch.rand(3) < torch.tensor([0.5, 0.25, 0.5])).long().cumprod(0).sum()),
            {0: 0.5, 1: 0.375, 2: 0.0625, 3: 0.0625},
        ),
        (lambda: int((torch.rand(()) > WEIGHTS.cumsum(0)).sum()), {0: 0.2, 1: 0.3, 2: 0.5}),
        (lambda: int((WEIGHTS / torch.empty(3).exponential_()).argmax()), {0: 0.2, 1: 0.3, 2: 0.5}),
        (
            lambda: int((torch.tensor([0.0, 0.25, 0.75]) / torch.empty(3).exponential_()).argmax()),
            {1: 0.25, 2: 0.75},
        ),
        (lambda: int(torch.multinomial(WEIGHTS, 1)) * (float(torch.rand(())) < 0.5), {0: 0.6, 1: 0.15, 2: 0.25}),
        (vectorised_verifier, {(0, 1, 0): 1 / 32, (0, 1, 1): 9 / 32, (0, 0): 3 / 16, (1,): 1 / 2}),
        (
            lambda: float(torch.rand((), dtype=torch.bfloat16)) < 0.3,
            {True: 77 / 256, False: 179 / 256},
        ),
    ],
)
def test_laws_are_right_to_the_resolution_of_the_coins(function, want):
    assert_law(function, want)


def test_gumbel_noise_of_uniforms_is_recognised_as_a_race():
    noise = lambda: -torch.log(-torch.log(torch.rand(2)))  # noqa: E731
    assert_law(lambda: int((WEIGHTS[:2].log() + noise()).argmax()), {0: 0.4, 1: 0.6}, rows=2)


def test_an_event_that_matters_on_a_rare_branch_only_is_found_by_probes():
    """The second coin counts only if the first lies in a thin interval that no policy starts in."""

    def rare():
        first, second = float(torch.rand(())), float(torch.rand(()))
        return second < 0.5 if 0.40 < first < 0.44 else None

    assert_law(rare, {None: 0.96, True: 0.02, False: 0.02})


@pytest.mark.parametrize(
    "function",
    [
        lambda: random.random() * random.random() < 0.25,
        lambda: random.random(),
        lambda: float(torch.rand(2).sum()) < 1,
        lambda: torch.randn(1) < 0,
    ],
)
def test_what_is_no_decision_tree_is_refused(function):
    with pytest.raises(NotExact):
        law(function)


def test_hidden_randomness_is_noticed():
    hidden = [np.random.default_rng(3)]
    with pytest.raises(NotExact, match="cannot be treated exactly"):
        law(lambda: (float(torch.rand(())) < 0.5, hidden[0].random() < 0.5))


def test_both_exact_routes_agree():
    def both():
        u = torch.rand(2)
        first = bool(u[0] < 0.3)
        return first, bool(u[1] < (0.25 if first else 0.5)), random.choices("ab", [1, 3])[0]

    symbolic: collections.Counter = collections.Counter()
    with Interception(both) as interception:
        for result, probability in interception.outcomes(both):
            symbolic[result] += probability
    assert_law(both, dict(symbolic))
