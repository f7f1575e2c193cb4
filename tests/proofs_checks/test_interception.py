# ruff: noqa: NPY002 - numpy's old generator is part of what is intercepted
"""Foreign code, unchanged, run through every outcome of its randomness."""

import bisect
import collections
import copy
import math
import os
import random
import secrets
from random import choice
from random import random as imported_random

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit.foreign import interception
from specbound.proofs_checks.audit.foreign.interception import Interception
from specbound.proofs_checks.audit.foreign.lazy import NotExact

generator = np.random.default_rng(0)
old_generator = np.random.RandomState(0)
python_generator = random.Random(0)
WEIGHTS = [0.2, 0.3, 0.5]


def law(function):
    found = collections.Counter()
    with Interception(function) as interception:
        for result, probability in interception.outcomes(function):
            found[result] += probability
    return found


def assert_law(function, **want):
    found = {str(result): probability for result, probability in law(function).items()}
    assert found.keys() == want.keys()
    for result, probability in want.items():
        assert abs(found[result] - probability) < 1e-12, result


def three_way(function):
    assert_law(function, **{"0": 0.2, "1": 0.3, "2": 0.5})


def test_several_comparisons_against_one_uniform_narrow_its_interval():
    def letters():
        u = random.random()
        if u < 0.3:
            return "a"
        if 1 - u < 0.2:
            return "c"
        if 2 * u <= 1.0:
            return "b"
        return "d" if u > 0.5 else "never"

    assert_law(letters, a=0.3, b=0.2, c=0.2, d=0.3)


def test_both_sides_and_all_four_comparisons_are_the_same_question():
    def agree():
        u = random.random()
        first = u < 0.3
        return first == (u <= 0.3) == (0.3 > u) == (0.3 >= u) == (not u > 0.3) == (not 0.3 <= u)  # noqa: SIM300

    assert_law(agree, **{"True": 1.0})


@pytest.mark.parametrize(
    "accepted",
    [
        lambda u, p, q: u * q <= p,
        lambda u, p, q: u < p / q,
        lambda u, p, q: p / u >= q,
        lambda u, p, q: -u > -p / q,
        lambda u, p, q: u - p / q < 0,
        lambda u, p, q: 2 * u + 1 < 2 * p / q + 1,
        lambda u, p, q: math.log(u) < math.log(p / q),
        lambda u, p, q: math.log(u) + math.log(q) < math.log(p),
        lambda u, p, q: -np.log(u) > -np.log(p / q),
        lambda u, p, q: math.exp(math.log(u)) < p / q,
        lambda u, p, q: np.float64(p / q) > u,
        lambda u, p, q: bool(torch.tensor(p / q, dtype=torch.float64) > u),
        lambda u, p, q: bool(u < torch.tensor(p / q, dtype=torch.float64)),
    ],
)
def test_every_form_of_an_acceptance_test_has_probability_p_over_q(accepted):
    assert_law(lambda: bool(accepted(random.random(), 0.3, 0.4)), **{"True": 0.75, "False": 0.25})


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.random(),
        lambda: imported_random(),
        lambda: random.uniform(0, 1),
        lambda: python_generator.random(),
        lambda: np.random.rand(),
        lambda: np.random.random(),
        lambda: np.random.random_sample(),
        lambda: np.random.uniform(),
        lambda: old_generator.rand(),
        lambda: generator.random(),
        lambda: np.random.default_rng().uniform(),
        lambda: np.random.RandomState().uniform(0, 1),
        lambda: random.Random().random(),
        lambda: np.random.rand(1, 2)[0, 1],
        lambda: torch.rand(()),
        lambda: torch.rand(2, 3)[1, 2],
        lambda: torch.rand_like(torch.zeros(2))[1].item(),
        lambda: torch.empty(3).uniform_()[2],
        lambda: torch.empty(3).uniform_(0, 1).tolist()[0],
        lambda: torch.rand(2).numpy()[0],
        lambda: torch.stack([torch.rand(2), torch.rand(2)]).flatten()[3],
        lambda: next(iter(torch.rand(2))),
        lambda: torch.exp(-torch.empty(1).exponential_()),
        lambda: np.exp(-np.random.exponential()),
    ],
)
def test_every_source_of_a_uniform_is_intercepted(draw):
    assert_law(lambda: bool(draw() < 0.25), **{"True": 0.25, "False": 0.75})


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.choices(range(3), WEIGHTS)[0],
        lambda: random.choices(range(3), cum_weights=[0.2, 0.5, 1.0])[0],
        lambda: int(np.random.choice(3, p=WEIGHTS)),
        lambda: int(generator.choice([0, 1, 2], p=WEIGHTS)),
        lambda: int(np.random.multinomial(1, WEIGHTS).argmax()),
        lambda: int(generator.multinomial(1, WEIGHTS).argmax()),
        lambda: int(torch.multinomial(torch.tensor(WEIGHTS, dtype=torch.float64) * 7, 1)),
        lambda: int(torch.distributions.Categorical(probs=torch.tensor(WEIGHTS, dtype=torch.float64)).sample()),
        lambda: int(np.searchsorted(np.cumsum(WEIGHTS), np.random.rand())),
        lambda: bisect.bisect(np.cumsum(WEIGHTS).tolist(), random.random()),
        lambda: int((np.random.rand() > np.cumsum(WEIGHTS)).sum()),
        lambda: int(torch.searchsorted(torch.tensor(WEIGHTS, dtype=torch.float64).cumsum(0), torch.rand(1))),
        lambda: int((np.array(WEIGHTS) / np.random.exponential(size=3)).argmax()),
        lambda: int(np.argmin(generator.exponential(size=3) / np.array(WEIGHTS))),
        lambda: int(np.argmax(np.log(WEIGHTS) + np.random.gumbel(size=3))),
        lambda: int(np.argmax(np.log(WEIGHTS) - np.log(-np.log(np.random.rand(3))))),
        lambda: int((torch.tensor(WEIGHTS).double() / torch.empty(3).double().exponential_(1)).argmax(dim=-1)),
        lambda: int(torch.tensor([WEIGHTS]).double().div_(torch.empty(1, 3).exponential_(1)).argmax(-1)),
        lambda: int((torch.tensor(WEIGHTS).double().log() - torch.log(-torch.log(torch.rand(3)))).argmax()),
    ],
)
def test_every_form_of_a_categorical_draw_forks_over_its_support(draw):
    found = law(draw)
    assert found.keys() == {0, 1, 2}
    for token, weight in enumerate(WEIGHTS):
        assert abs(found[token] - weight) < 1e-7


def test_a_race_never_picks_a_token_of_weight_zero():
    weights = torch.tensor([0.0, 0.25, 0.75], dtype=torch.float64)
    assert_law(lambda: int((weights / torch.empty(3).exponential_()).argmax()), **{"1": 0.25, "2": 0.75})
    assert_law(lambda: int((weights.log() - torch.empty(3).exponential_().log()).argmax()), **{"1": 0.25, "2": 0.75})


def test_elementwise_comparisons_give_plain_arrays_and_tensors():
    assert_law(
        lambda: tuple((np.random.rand(2) < np.array([0.25, 0.5])).tolist()),
        **{"(True, True)": 0.125, "(True, False)": 0.125, "(False, True)": 0.375, "(False, False)": 0.375},
    )
    three = torch.tensor([0.5, 0.25, 0.5], dtype=torch.float64)
    assert_law(
        lambda: int(((~(torch.rand_like(three) <= three)).cumsum(-1) < 1).sum()),
        **{"0": 0.5, "1": 0.375, "2": 0.0625, "3": 0.0625},
    )


def test_integers_coins_and_orders_fork_evenly():
    assert_law(lambda: int(random.random() * 4), **dict.fromkeys("0123", 0.25))
    assert_law(lambda: random.randint(1, 2) + random.randrange(2), **{"1": 0.25, "2": 0.5, "3": 0.25})
    assert_law(lambda: choice("ab") + "".join(random.sample("xy", 2)), axy=0.25, ayx=0.25, bxy=0.25, byx=0.25)
    assert_law(lambda: int(np.random.randint(2)) + int(generator.integers(1, 3)), **{"1": 0.25, "2": 0.5, "3": 0.25})
    assert_law(lambda: int(torch.bernoulli(torch.tensor(0.25))), **{"0": 0.75, "1": 0.25})
    assert_law(lambda: int(np.random.binomial(1, 0.25)), **{"0": 0.75, "1": 0.25})
    assert_law(lambda: int(torch.randint(0, 4, (1,))), **dict.fromkeys("0123", 0.25))
    uneven = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64) * torch.tensor([1.0, 1.0, 0.0])
    assert_law(lambda: tuple(torch.multinomial(uneven, 2).tolist()), **{"(0, 1)": 0.75, "(1, 0)": 0.25})
    assert_law(
        lambda: tuple(torch.multinomial(uneven, 2, replacement=True).tolist()),
        **{"(0, 0)": 9 / 16, "(0, 1)": 3 / 16, "(1, 0)": 3 / 16, "(1, 1)": 1 / 16},
    )
    assert_law(
        lambda: tuple(np.random.choice(3, size=2, replace=False, p=[1 / 3, 1 / 2, 1 / 6]).tolist()),
        **{"(0, 1)": 1 / 4, "(0, 2)": 1 / 12, "(1, 0)": 1 / 3, "(1, 2)": 1 / 6, "(2, 0)": 1 / 15, "(2, 1)": 1 / 10},
    )
    assert_law(lambda: tuple(torch.randperm(2).tolist()), **{"(0, 1)": 0.5, "(1, 0)": 0.5})


@pytest.mark.parametrize(
    "inexact",
    [
        lambda: math.sin(random.random()),
        lambda: float(random.random()) < 0.5,
        lambda: random.random() * random.random() < 0.5,
        lambda: random.gauss(0, 1) < 0,
        lambda: np.random.normal() < 0,
        lambda: np.sin(np.random.rand(2)),
        lambda: np.random.rand(2).sum() < 1,
        lambda: np.random.rand(3).argmin(),
        lambda: torch.rand(2).sum() < 1,
        lambda: torch.sin(torch.rand(2)),
        lambda: torch.randn(1) < 0,
        lambda: torch.rand(2).cumsum(0),
        lambda: random.random() ** 3 < 0.5,
        lambda: torch.rand(1).sort(),
    ],
)
def test_a_use_that_cannot_be_enumerated_says_so_and_names_the_way_out(inexact):
    with pytest.raises(NotExact, match="sampled audit"):
        law(inexact)


def test_a_swallowed_refusal_is_still_reported():
    def swallows():
        try:
            return math.sin(random.random())
        except Exception:
            return 0

    with pytest.raises(NotExact):
        law(swallows)


def test_a_number_filled_into_part_of_a_buffer_is_seen_through_every_view():
    def partial():
        numbers = torch.zeros(2, 2)
        row, column = numbers[0], numbers[:, 1]
        numbers[0].uniform_()
        return bool(row[1] < 0.5), bool(column[0] < 0.25), bool(column[1] < 0.25)

    assert_law(partial, **{"(True, True, True)": 0.25, "(True, False, True)": 0.25, "(False, False, True)": 0.5})


def test_in_place_sampling_and_in_place_division_are_followed():
    weights = torch.tensor([[0.25, 0.75]], dtype=torch.float64)

    def winner():
        noise = torch.empty_like(weights)
        noise.exponential_()
        scores = weights.clone()
        scores.div_(noise)
        return int(torch.argmax(scores, dim=-1))

    assert_law(winner, **{"0": 0.25, "1": 0.75})


def test_hidden_randomness_is_noticed():
    hidden = [np.random.default_rng(3)]
    with pytest.raises(NotExact, match=r"not intercepted|same random choices"):
        law(lambda: bool(hidden[0].random() < 0.5))
    calls = []

    def counts():
        calls.append(1)
        return random.random() < 1 / (1 + len(calls))

    with pytest.raises(NotExact):
        law(counts)


def test_everything_is_put_back():
    before = random.random, np.random.rand, np.random.default_rng, math.log, generator, imported_random
    law(lambda: random.random() < 0.5)
    with pytest.raises(NotExact):
        law(lambda: math.sin(random.random()))
    assert before == (random.random, np.random.rand, np.random.default_rng, math.log, generator, imported_random)
    assert isinstance(random.random(), float)
    assert isinstance(float(torch.rand(1)), float)


def test_an_invalid_draw_raises_as_the_real_sampler_does():
    with pytest.raises(ValueError, match="weights"):
        law(lambda: int(torch.multinomial(torch.tensor([float("nan"), 1.0]), 1)))
    with pytest.raises(ValueError, match="sum to 1"):
        law(lambda: np.random.choice(2, p=[0.5, 0.2]))


def test_probabilities_below_rounding_do_not_fork():
    assert_law(lambda: random.random() < 1 - 1e-15, **{"True": 1.0})


# ---------------------------------------------------------------------- seeds and states


class Holder:
    """Generators kept inside an object."""

    def __init__(self):
        self.numpy, self.old = np.random.default_rng(3), np.random.RandomState(3)
        self.python, self.torch = random.Random(3), torch.Generator()

    def from_numpy(self):
        return bool(self.numpy.random() < 0.25)

    def from_old(self):
        return bool(self.old.rand() < 0.25)

    def from_python(self):
        return self.python.random() < 0.25

    def from_torch(self):
        return bool(torch.rand((), generator=self.torch) < 0.25)

    def seeded_first(self):
        self.torch.manual_seed(3)
        return bool(torch.rand((), generator=self.torch) < 0.25)


holder = Holder()


def drawn(first, then=lambda: None):
    def call():
        first()
        result = random.random() < 0.5, bool(np.random.rand() < 0.5), bool(torch.rand(()) < 0.5)
        then()
        return result

    return call


def seeded_torch():
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize("draw", [holder.from_numpy, holder.from_old, holder.from_python, holder.from_torch])
def test_a_generator_inside_an_object_is_random(draw):
    assert_law(draw, **{"True": 0.25, "False": 0.75})


@pytest.mark.parametrize(
    "draw",
    [
        lambda: random.Random(3).random(),
        lambda: np.random.default_rng(1).uniform(),
        lambda: np.random.default_rng(1).normal(),
        lambda: np.random.Generator(np.random.PCG64(5)).random(),
        lambda: np.random.RandomState(1).uniform(0, 1),
        lambda: float(torch.rand((2,), generator=torch.Generator())[0]),
        lambda: float(torch.rand((2,), generator=seeded_torch())[1]),
        lambda: int(torch.multinomial(torch.ones(5), 1, generator=seeded_torch())),
        lambda: (random.seed(4), random.random())[1],
        lambda: (random.seed(4), random.gauss(0, 1))[1],
        lambda: (np.random.seed(4), np.random.rand())[1],
        lambda: (torch.manual_seed(4), float(torch.rand(())))[1],
        holder.seeded_first,
    ],
)
def test_a_generator_seeded_in_the_call_gives_every_call_the_same_numbers(draw):
    """Sampled, such code is far from any law that needs randomness; it used to come out as random."""
    real = draw()
    assert law(draw) == {real: 1.0}


def test_seeding_inside_a_forked_state_is_followed():
    def forked():
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return float(torch.rand(()))

    assert law(forked) == {forked(): 1.0}


def forked_without_seed():
    with torch.random.fork_rng():
        return bool(torch.rand(()) < 0.5)


def restored():
    state = random.getstate()
    first = random.random() < 0.5
    random.setstate(state)
    return first, random.random() < 0.5


def copied():
    other = random.Random()
    other.setstate(random.getstate())
    return other.random() < 0.5, random.random() < 0.5


def seeded_with_a_number_that_was_drawn():
    return bool(np.random.default_rng(random.getrandbits(64)).random() < 0.5)


@pytest.mark.parametrize(
    "tied",
    [
        drawn(lambda: None, lambda: random.seed(3)),
        drawn(lambda: None, lambda: np.random.seed(3)),
        drawn(lambda: None, lambda: torch.manual_seed(3)),
        lambda: random.random() < 0.5 and (random.seed(3), random.random() < 0.5)[1],
        forked_without_seed,
        restored,
        copied,
        seeded_with_a_number_that_was_drawn,
        lambda: np.random.default_rng(int(torch.randint(2**40, (1,)))).random() < 0.5,
        lambda: copy.deepcopy(generator).random() < 0.5,
        lambda: generator.bit_generator.state is None,
        lambda: np.random.set_state(np.random.get_state()),
        lambda: np.random.Generator(np.random.PCG64()).random() < 0.5,
        lambda: os.urandom(1)[0] < 128,
        lambda: np.random.default_rng(random.random()),
    ],
)
def test_states_that_tie_calls_or_numbers_to_each_other_are_refused(tied):
    with pytest.raises(NotExact):
        law(tied)


def test_classes_stay_classes():
    def asks():
        class Own(random.Random):
            pass

        assert isinstance(random.Random(), random.Random)
        assert isinstance(np.random.RandomState(3), np.random.RandomState)
        assert isinstance(np.random.RandomState(), np.random.RandomState)
        assert isinstance(generator, np.random.Generator)
        assert isinstance(old_generator, np.random.RandomState)
        from random import random as inside

        return Own().random() < 0.5, inside() < 0.5

    assert sum(law(asks).values()) == pytest.approx(1)
    assert len(law(asks)) == 4


def test_system_randomness_is_enumerated_or_refused():
    assert_law(lambda: secrets.randbelow(4), **dict.fromkeys("0123", 0.25))
    assert_law(lambda: secrets.choice("ab"), a=0.5, b=0.5)
    assert_law(lambda: random.getrandbits(1), **{"0": 0.5, "1": 0.5})
    assert_law(lambda: random.SystemRandom().random() < 0.25, **{"True": 0.25, "False": 0.75})


def test_an_interception_that_fails_half_way_puts_everything_back(monkeypatch):
    before = random.random, random.Random.random, np.random.rand, np.random.default_rng, math.log, os.urandom
    monkeypatch.setattr(interception, "kept_generators", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        law(lambda: random.random() < 0.5)
    assert before == (
        random.random,
        random.Random.random,
        np.random.rand,
        np.random.default_rng,
        math.log,
        os.urandom,
    )


# ---------------------------------------------------------------------- conversions and formats


def in_tenths(u):
    return (u * 10).to(torch.int64) / 10


@pytest.mark.parametrize(
    "event, probability",
    [
        (lambda: in_tenths(torch.rand(())) < 0.25, 0.3),
        (lambda: (torch.rand(3) * 10).long()[1] < 3, 0.3),
        (lambda: (torch.rand(3) * 10).int()[1] == 3, 0.1),
        (lambda: (np.random.rand(3) * 10).astype(int)[1] < 3, 0.3),
        (lambda: int(torch.rand(()) * 10) < 3, 0.3),
        (lambda: torch.rand(()).to(torch.float64) < 0.25, 0.25),
        (lambda: torch.rand(()).double().float().type(torch.float64) < 0.25, 0.25),
        (lambda: torch.rand(2).bool().all(), 1.0),
        (lambda: np.random.rand(3).astype(np.float32)[1] < 0.25, 0.25),
        (lambda: torch.rand((), dtype=torch.bfloat16) < 0.3, 77 / 256),
        (lambda: torch.rand((), dtype=torch.bfloat16) <= 0.25, 65 / 256),
        (lambda: torch.rand((), dtype=torch.bfloat16) < 0.25, 64 / 256),
        (lambda: torch.rand((), dtype=torch.bfloat16) > 0.25, 191 / 256),
        (lambda: 1 - torch.rand((), dtype=torch.bfloat16).float() <= 0.25, 64 / 256),
        (lambda: torch.rand((), dtype=torch.float16) < 0.3, 615 / 2048),
        (lambda: torch.empty(2, dtype=torch.bfloat16).uniform_()[0] < 0.3, 77 / 256),
        (lambda: torch.rand_like(torch.empty(2, dtype=torch.bfloat16)).float()[0] < 0.3, 77 / 256),
    ],
)
def test_conversions_and_half_precision_have_their_own_law(event, probability):
    assert abs(law(lambda: bool(event()))[True] - probability) < 1e-9


def test_half_precision_uniforms_are_named_in_the_notes():
    with Interception(law) as enumerated:
        enumerated.outcomes(lambda: bool(torch.rand((), dtype=torch.bfloat16) < 0.3))
    assert list(enumerated.notes) == ["Uniforms drawn in bfloat16 have 2^8 values."]


def out_of_rand():
    buffer = torch.empty(3)
    torch.rand(3, out=buffer)
    return bool(buffer[1] < 0.25)


def out_of_a_division():
    scores, weights = torch.empty(2), torch.tensor([1.0, 3.0])
    torch.div(weights, torch.empty(2).exponential_(), out=scores)
    return int(scores.argmax()) == 0


def copied_into_a_buffer():
    buffer = torch.zeros(4)
    buffer[1:3] = torch.rand(2)
    buffer[3].copy_(torch.rand(()))
    return bool(buffer[2] < 0.25), bool(buffer[3] < 2), bool(buffer[0] < 0.25)


def divided_view():
    weights = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    return int(weights[0].div_(torch.empty(2).exponential_()).argmax()) == 0


@pytest.mark.parametrize(
    "event",
    [
        out_of_rand,
        out_of_a_division,
        lambda: copied_into_a_buffer() == (True, True, True),
        divided_view,
        lambda: torch.cat([torch.rand(1), torch.zeros(1)])[0] < 0.25,
        lambda: torch.where(torch.tensor([True, False]), torch.rand(2), torch.ones(2))[0] < 0.25,
        lambda: torch.rand(2).masked_fill(torch.tensor([True, False]), 1.0)[1] < 0.25,
    ],
)
def test_buffers_views_and_outputs_are_followed(event):
    assert abs(law(lambda: bool(event()))[True] - 0.25) < 1e-7


@pytest.mark.parametrize(
    "inexact",
    [
        lambda: torch.rand(2).half()[0] < 0.5,
        lambda: torch.rand(2).to(torch.bfloat16)[0] < 0.5,
        lambda: torch.rand(2, dtype=torch.bfloat16)[0] * 2 < 0.5,
        lambda: torch.empty(2, dtype=torch.bfloat16).exponential_().argmax(),
        lambda: np.random.rand(2).astype(np.float16)[0] < 0.5,
        lambda: np.random.rand(2).tobytes(),
        lambda: torch.rand(2).data_ptr(),
        lambda: torch.rand(2).view(torch.int32),
        lambda: torch.zeros(3)[torch.rand(1)],
        lambda: torch.empty(2, dtype=torch.float16).copy_(torch.rand(2))[0] < 0.5,
        lambda: torch.rand(3).cumprod(0),
    ],
)
def test_a_conversion_or_operation_that_is_not_on_the_list_is_refused(inexact):
    with pytest.raises(NotExact):
        law(inexact)


# ---------------------------------------------------------------------- shared noise


def test_two_races_on_the_same_exponentials_have_their_joint_law():
    """Pr(both pick i) = 1 / sum_j max(p_j/p_i, q_j/q_i), by hand from the exponential race."""
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])

    def both():
        noise = np.random.exponential(size=3)
        return int((noise / p).argmin()), int((noise / q).argmin())

    found = law(both)
    for i in range(3):
        assert abs(found[i, i] - 1 / np.maximum(p / p[i], q / q[i]).sum()) < 1e-12
        assert abs(sum(found[i, j] for j in range(3) if (i, j) in found) - p[i]) < 1e-12
        assert abs(sum(found[j, i] for j in range(3) if (j, i) in found) - q[i]) < 1e-12


def test_the_smallest_of_two_lists_races_like_one_list():
    p = np.array([0.25, 0.75])

    def pick():
        noise = np.random.exponential(size=(2, 2))
        first = int((noise[0] / p).argmin())
        return first, int((np.minimum(noise[0], noise[1]) / p).argmin())

    found = law(pick)
    assert abs(found[0, 0] + found[1, 0] - 0.25) < 1e-12
    assert abs(found[0, 0] + found[0, 1] - 0.25) < 1e-12
    assert found[0, 0] > 0.25**2 + 0.01
