# ruff: noqa: NPY002 - numpy's old generator is part of what is intercepted
"""Random numbers that are never drawn: each form of use has the probability that the formula gives by hand."""

import collections
import math
import random

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit.foreign import interception
from specbound.proofs_checks.audit.foreign.interception import Interception
from specbound.proofs_checks.audit.foreign.lazy import NotExact

HALF, QUARTER = math.log(2), math.log(4)  # Pr(E < log 2) = 1/2, Pr(E < log 4) = 3/4
hidden_sampler = np.random.mtrand._rand.random_sample


def law(function):
    found = collections.Counter()
    with Interception(function) as interception:
        for result, probability in interception.outcomes(function):
            found[result] += probability
    return found


def u():
    return random.random()


def e():
    return random.expovariate(1)


@pytest.mark.parametrize(
    "event, probability",
    [
        (lambda: 1 / u() > 4, 0.25),
        (lambda: 2 / u() > 8, 0.25),
        (lambda: 1 / (1 / u()) < 0.25, 0.25),
        (lambda: u() ** 1 < 0.25, 0.25),
        (lambda: u() ** -1 > 4, 0.25),
        (lambda: +u() < 0.25, 0.25),
        (lambda: abs(u() - 0.25) < 0.25, 0.5),
        (lambda: abs(u() - 0.75) < 0.5, 0.75),
        (lambda: math.log(1 / u()) > QUARTER, 0.25),
        (lambda: math.log(2 / u()) > math.log(8), 0.25),
        (lambda: math.log(4 * u()) < 0, 0.25),
        (lambda: math.log(4 * (1 - u())) < 0, 0.25),
        (lambda: -math.log(1 - u()) < QUARTER, 0.75),
        (lambda: 1 / -math.log(1 - u()) > 1 / QUARTER, 0.75),
        (lambda: math.log(-math.log(1 - u())) < math.log(QUARTER), 0.75),
        (lambda: math.exp(math.log(1 - u())) < 0.25, 0.25),
        (lambda: math.exp(-math.log(-math.log(1 - u()))) > 1 / QUARTER, 0.75),
        (lambda: e() < HALF, 0.5),
        (lambda: random.expovariate(2) < HALF, 0.75),
        (lambda: 1 / e() > 1 / QUARTER, 0.75),
        (lambda: 1 / (2 / e()) < QUARTER / 2, 0.75),
        (lambda: math.log(e()) < math.log(QUARTER), 0.75),
        (lambda: math.log(3 / e()) > math.log(3 / QUARTER), 0.75),
        (lambda: math.exp(-e()) > 0.25, 0.75),
        (lambda: math.exp(1 - e()) > math.e / 4, 0.75),
        (lambda: math.exp(math.log(e())) < QUARTER, 0.75),
        (lambda: math.exp(-math.log(e())) > 1 / QUARTER, 0.75),
        (lambda: math.exp(1 + math.log(e())) < math.e * QUARTER, 0.75),
        (lambda: (u() - 0.25) * math.inf > 0, 0.75),
        (lambda: u() * -math.inf < 0, 1.0),
        (lambda: u() + math.inf > 3, 1.0),
        (lambda: u() * 0 + 0.5 < 0.6, 1.0),
        (lambda: u() / math.inf == 0, 1.0),
        (lambda: 0 / u() == 0, 1.0),
        (lambda: u() < math.nan, 0.0),
        (lambda: u() > math.nan, 0.0),
        (lambda: u() == 0.5, 0.0),
        (lambda: bool(u()), 1.0),
        (lambda: u().item() < 0.25, 0.25),
    ],
)
def test_every_function_of_a_random_number_has_its_probability(event, probability):
    assert abs(law(lambda: bool(event()))[True] - probability) < 1e-12


@pytest.mark.parametrize(
    "event, probability",
    [
        (lambda: u() + torch.tensor(0.25) < 0.5, 0.25),
        (lambda: u() - torch.tensor(0.25) < 0, 0.25),
        (lambda: torch.tensor(0.25) - u() > 0, 0.25),
        (lambda: u() * torch.tensor(2.0) < 0.5, 0.25),
        (lambda: u() / torch.tensor(2.0) < 0.125, 0.25),
        (lambda: torch.tensor(1.0) / u() > 4, 0.25),
        (lambda: u() > torch.tensor(0.75), 0.25),
        (lambda: torch.tensor(0.75) < u(), 0.25),
        (lambda: torch.lt(torch.tensor(u()), 0.25), 0.25),
        (lambda: torch.tensor([[u()]])[0, 0] < 0.25, 0.25),
        (lambda: torch.rand(1).clamp(min=0.125, max=0.5) < 0.25, 0.25),
        (lambda: torch.maximum(torch.rand(1), torch.tensor([0.25])) < 0.5, 0.5),
        (lambda: torch.minimum(torch.rand(1), torch.tensor([0.25])) < 0.125, 0.125),
        (lambda: (torch.rand(2) / torch.zeros(2) > 3).all(), 1.0),
        (lambda: (np.random.rand(2) / np.zeros(2) > 3).all(), 1.0),
        (lambda: torch.rand(2)[0].reciprocal() > 4, 0.25),
        (lambda: torch.empty(1).bernoulli_(0.25), 0.25),
        (lambda: torch.empty(1).bernoulli_(torch.tensor([0.25])), 0.25),
        (lambda: torch.bernoulli(torch.zeros(1), 0.25), 0.25),
        (lambda: torch.searchsorted(torch.tensor([[0.25, 1.0]]), torch.rand(1, 1)) < 1, 0.25),
        (lambda: torch.bucketize(torch.rand(1), torch.tensor([0.25])) < 1, 0.25),
        (lambda: torch.rand(1, 2).argmax(dim=1, keepdim=True).shape == (1, 1), 1.0),
        (lambda: torch.rand(2).argmin() == 0, 0.5),
        (lambda: len(repr(torch.rand(2))) > 0, 1.0),
    ],
)
def test_tensors_and_arrays_beside_random_numbers_are_followed(event, probability):
    assert abs(law(lambda: bool(event()))[True] - probability) < 1e-12


def test_in_place_arithmetic_and_outputs_of_comparisons_are_followed():
    def scaled():
        numbers = np.random.rand(2)
        numbers *= 2
        flags = np.zeros(2, dtype=bool)
        np.less(numbers, 0.5, out=flags)
        return tuple(flags.tolist())

    found = law(scaled)
    assert found == {(True, True): 1 / 16, (True, False): 3 / 16, (False, True): 3 / 16, (False, False): 9 / 16}


def test_a_comparison_that_is_decided_already_tells_nothing_new():
    """U > 1/2 makes U > 1/4 and U < 2 sure, and leaves U uniform on (1/2, 1)."""

    def compared():
        number = u()
        return number > 0.5, number > 0.25, number < 2, number < 0.75

    found = law(compared)
    assert found == {
        (True, True, True, True): 0.25,
        (True, True, True, False): 0.25,
        (False, True, True, True): 0.25,
        (False, False, True, True): 0.25,
    }


def test_rounding_down_and_towards_zero_cut_the_interval_into_its_pieces():
    assert law(lambda: math.floor(4 * u() - 1)) == pytest.approx({-1: 0.25, 0: 0.25, 1: 0.25, 2: 0.25}, abs=1e-12)
    assert law(lambda: int(4 * u() - 1)) == pytest.approx({0: 0.5, 1: 0.25, 2: 0.25}, abs=1e-12)


def test_a_random_number_is_itself_in_comparisons_sets_and_text():
    def uses():
        number = u()
        return number == number, number < number, number in {number}, f"{number}"

    assert law(uses) == {(True, False, True, "<random number>"): 1.0}


def test_orders_are_uniform():
    def shuffled(shuffle):
        def call():
            cards = [0, 1, 2]
            shuffle(cards)
            return tuple(cards)

        return call

    for call in (
        shuffled(lambda cards: random.shuffle(cards)),
        shuffled(lambda cards: np.random.shuffle(cards)),
        lambda: tuple(np.random.permutation(3).tolist()),
        lambda: tuple(np.random.permutation([0, 1, 2]).tolist()),
    ):
        found = law(call)
        assert len(found) == 6
        assert all(abs(probability - 1 / 6) < 1e-12 for probability in found.values())


@pytest.mark.parametrize(
    "inexact, reason",
    [
        (lambda: math.floor(e()), "unbounded random number"),
        (lambda: 1 / (1 + u()), "reciprocal of a shifted"),
        (lambda: 1 / math.log(e()), "reciprocal of a shifted"),
        (lambda: math.log(1 + u()), "logarithm of a shifted"),
        (lambda: math.exp(u()), "exponential of this"),
        (lambda: [1, 2][u()], "used as an index"),
        (lambda: float(torch.rand(1)), "read as a float"),
        (lambda: u().hex(), "hex of a random number"),
        (lambda: u() % 2, "mod of a random number"),
        (lambda: round(u()), "round of a random number"),
        (lambda: math.ceil(u()), "ceil of a random number"),
        (lambda: u() ** 2, "raised to the power 2"),
        (lambda: np.add(np.random.rand(2), 1, out=np.zeros(2)), "array of floats"),
        (lambda: np.random.default_rng().standard_gamma(1), "standard_gamma was drawn"),
        (lambda: torch.multinomial(torch.rand(2), 1), "random weights"),
        (lambda: torch.searchsorted(torch.rand(2), torch.tensor([0.5])), "searchsorted among random numbers"),
        (lambda: torch.zeros(2)[torch.rand(1)], "used as an index"),
    ],
)
def test_what_has_no_closed_form_is_refused_with_the_reason(inexact, reason):
    with pytest.raises(NotExact, match=reason):
        law(inexact)


def test_a_number_cannot_be_asked_again_after_a_race_over_it():
    def again():
        noise = np.random.exponential(size=2)
        winner = int(np.argmin(noise))
        return winner, bool(noise[0] < 1)

    with pytest.raises(NotExact, match="used again after an argmax or argmin"):
        law(again)


@pytest.mark.parametrize(
    "race",
    [
        lambda: int(torch.empty(2).exponential_().argmax()),
        lambda: int((np.random.gumbel(size=2) * np.array([1.0, 2.0])).argmax()),
        lambda: int((np.random.exponential(size=2) + 1).argmin()),
        lambda: int(np.argmax(np.random.exponential(size=2))),
    ],
)
def test_an_argmax_that_is_no_race_of_exponentials_is_refused(race):
    with pytest.raises(NotExact, match="argmax or argmin"):
        law(race)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda: u() + "a", TypeError, "unsupported operand"),
        (lambda: u() - "a", TypeError, "unsupported operand"),
        (lambda: "a" - u(), TypeError, "unsupported operand"),
        (lambda: u() * None, TypeError, "unsupported operand"),
        (lambda: u() / "a", TypeError, "unsupported operand"),
        (lambda: "a" / u(), TypeError, "unsupported operand"),
        (lambda: u() < "a", TypeError, "not supported between"),
        (lambda: u() / 0, ZeroDivisionError, "division by zero"),
        (lambda: np.random.choice([1, 2], p=[1.0]), ValueError, "same size"),
        (lambda: np.random.multinomial(1, [0.9, 0.9, 0.1]), ValueError, "sum"),
        (lambda: torch.bernoulli(torch.tensor([1.5])), RuntimeError, "p_in"),
        (lambda: torch.rand(2).item(), RuntimeError, "2 elements"),
        (lambda: np.random.default_rng()._no_such_thing, AttributeError, "_no_such_thing"),
    ],
)
def test_wrong_uses_raise_what_they_would_raise_with_real_numbers(wrong, error, message):
    with pytest.raises(error, match=message):
        law(wrong)


def test_too_many_outcomes_and_a_generator_that_moved_are_reported(monkeypatch):
    with pytest.raises(NotExact, match="not intercepted"):
        law(lambda: hidden_sampler() < 2)
    monkeypatch.setattr(interception, "MAX_OUTCOMES", 3)
    with pytest.raises(NotExact, match="more than 3 outcomes"):
        law(lambda: random.randrange(8))
