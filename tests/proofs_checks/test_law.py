"""The exact law: replay asks every question in every way, and its shortcuts agree with the plain coins."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.races import race_law
from specbound.proofs_checks.laws.replay import ReplayDraws, replay
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import get
from specbound.theory.prefix_tree import PrefixTree
from tests.support.strategies import PUBLISHED


def law_of(question, rows=1):
    """Law of the answer of one question, by replaying it until no alternative is left."""
    found: dict[tuple[int, tuple[int, ...]], float] = {}
    pending = [(row, ()) for row in range(rows)]
    while pending:
        draws = ReplayDraws([decisions for _, decisions in pending])
        answers = question(draws, [row for row, _ in pending]).reshape(len(pending), -1).tolist()
        for (row, _), answer, weight in zip(pending, answers, draws.weight, strict=True):
            key = (row, tuple(answer))
            found[key] = found.get(key, 0.0) + weight
        pending = [(pending[row][0], decisions) for row, decisions in draws.alternatives]
    return found


class PlainCoins(ReplayDraws):
    """A replay that answers accept_while and accept_last coin by coin, with the code of `Draws` itself."""

    accept_while = Draws.accept_while
    accept_last = Draws.accept_last


@pytest.mark.parametrize("name", ["accept_while", "accept_last"])
@pytest.mark.parametrize("coins", [(0.3, 0.6, 0.9), (1.0, 0.25, 0.5), (0.0, 0.5, 0.0), (0.5,)])
def test_the_shortcut_for_a_run_of_coins_has_the_law_of_the_coins(name, coins):
    probability = torch.tensor([coins], dtype=torch.float64)
    by_shortcut = law_of(lambda draws, rows: getattr(draws, name)(probability.expand(len(rows), -1)))
    by_coins: dict[tuple[int, tuple[int, ...]], float] = {}
    pending: list[tuple[int, ...]] = [()]
    while pending:
        draws = PlainCoins(pending)
        answers = getattr(draws, name)(probability.expand(len(pending), -1)).tolist()
        for answer, weight in zip(answers, draws.weight, strict=True):
            by_coins[0, (answer,)] = by_coins.get((0, (answer,)), 0.0) + weight
        pending = [decisions for _, decisions in draws.alternatives]
    assert by_shortcut.keys() == by_coins.keys()
    assert max(abs(by_shortcut[key] - by_coins[key]) for key in by_coins) < 1e-15


def test_the_last_and_the_first_failing_coin_are_different_questions():
    probability = torch.tensor([[0.3, 0.6]], dtype=torch.float64)
    last = law_of(lambda draws, rows: draws.accept_last(probability.expand(len(rows), -1)))
    run = law_of(lambda draws, rows: draws.accept_while(probability.expand(len(rows), -1)))
    assert math.isclose(last[0, (2,)], 0.6)
    assert math.isclose(run[0, (2,)], 0.18)


def test_certain_answers_do_not_fork():
    draws = ReplayDraws([(), ()])
    draws.accept(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    draws.choose(torch.tensor([[0.0, 2.0], [5.0, 0.0]]))
    assert draws.alternatives == []
    assert draws.weight.tolist() == [1.0, 1.0]


def token_after_a_noisy_question(noise):
    """A verifier that keeps nothing, and before it draws the token from the target asks a question whose second answer
    has probability `noise` when it is called for the first time, later 0."""
    chances = itertools.chain([noise], itertools.repeat(0.0))

    def verify(batch, draws):
        rare = next(chances)
        draws.choose(torch.tensor([1 - rare, rare], dtype=torch.float64).expand(len(batch.tokens), -1))
        token = draws.choose(batch.target_probs[:, 0, 0])
        return Verdict(torch.zeros_like(token), torch.zeros_like(token), token)

    return verify


def test_a_fork_that_rounding_makes_in_some_passes_only_changes_nothing():
    tree = PrefixTree.iid([0.2, 0.3, 0.5], [0.5, 0.25, 0.25], 1)
    law = exact_law(token_after_a_noisy_question(2e-16), tree)
    assert law.total_variation(tree.target_law()) < 1e-14
    with pytest.raises(ValueError, match="other questions than before"):
        exact_law(token_after_a_noisy_question(0.1), tree)


def test_rounding_in_the_last_digits_of_a_row_does_not_change_a_law():
    """At K-SEQ's best discount the correction of one token is 0 or 1e-16, depending on the row's place in the batch."""
    draft = [5.8540772645508743e-01, 4.1459227118991471e-01, 2.3549978021943017e-09]
    tree = PrefixTree.iid([0.33333333400000004, 0.333333333, 0.333333333], draft, 1)
    law = exact_law("kseq", tree, 2)
    assert abs(law.mass - 1) < 1e-12
    assert law.total_variation(tree.target_law()) < 1e-12


@pytest.mark.parametrize("name", ["token", "block", "kseq"])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-6), (torch.bfloat16, 0.05)])
def test_coins_in_few_digits_are_tossed_exactly_as_they_are(name, dtype, error):
    """The law is off by the dtype's rounding of the rows, its total probability is not: production draws in float64."""

    def rounded(batch, draws):
        rows = batch.draft_probs.to(dtype), batch.target_probs.to(dtype)
        return get(name).verify(Batch(batch.tokens, *rows), draws)

    tree = PrefixTree.random(3, 2, seed=4)
    law = exact_law(rounded, tree)
    assert abs(law.mass - 1) < 1e-14
    assert 1e-10 < law.total_variation(tree.target_law()) < error


def test_a_draw_from_no_mass_is_an_error():
    with pytest.raises(ValueError, match="all zero or not finite"):
        ReplayDraws([()]).choose(torch.zeros(1, 3))


def test_production_draws_choose_only_possible_tokens_and_in_proportion():
    """Chi-square of 8 counts of 2^20 draws at false-alarm rate 1e-9; moving 2 % of one token's mass must fail."""
    weights = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    generator = torch.Generator().manual_seed(3)
    counts = torch.bincount(Draws(generator).choose(weights.expand(2**20, -1)), minlength=10).double()
    expected = weights.double() / weights.sum() * 2**20

    def statistic(expectation):
        inside = expectation > 0
        return float(((counts - expectation)[inside] ** 2 / expectation[inside]).sum())

    assert counts[weights == 0].sum() == 0
    limit = chi2.isf(1e-9, df=7)
    assert statistic(expected) < limit
    biased = expected.clone()
    biased[1] += 0.02 * expected[-1]
    biased[-1] *= 0.98
    assert statistic(biased) > limit


def test_the_race_law_agrees_with_integrals_done_by_hand():
    low, high = torch.tensor([[0.0, 0.2]]), torch.tensor([[1.0, 0.7]])
    # Pr(first is smaller) = int_0^.2 1 dt + int_.2^.7 (.7 - t)/.5 dt = .2 + .25
    assert torch.allclose(race_law(low, high), torch.tensor([[0.45, 0.55]], dtype=torch.float64), atol=1e-15)
    three = race_law(torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 0.5]]))
    # int_0^.5 2 (1-t)^2 dt = 7/12
    assert torch.allclose(three, torch.tensor([[5 / 24, 5 / 24, 7 / 12]], dtype=torch.float64), atol=1e-15)


def test_the_race_law_gives_ties_of_fixed_keys_to_the_smaller_index():
    same = torch.tensor([[0.5, 0.5, 0.9]])
    assert race_law(same, same).tolist() == [[1.0, 0.0, 0.0]]
    assert Draws().smallest_key(same, same).tolist() == [0]


@pytest.mark.parametrize(
    "low, high, law",
    [
        ([0.9, 0.5, 0.5], [0.9, 0.5, 0.5], [0, 1, 0]),
        ([0.5, 0.5, 0.0], [0.5, 0.5, 1.0], [0.5, 0, 0.5]),
        ([0.0, 0.5, 0.5], [1.0, 0.5, 0.5], [0.5, 0.5, 0]),
        ([0.5, 0.0, 0.5, 0.5], [0.5, 2.0, 0.5, 0.5], [0.75, 0.25, 0, 0]),
        ([0.25, 0.25, 0.0], [0.25, 1.0, 1.0], [0.75, 0, 0.25]),
        ([0.5, 0.0, 0.0], [0.5, 1.0, 1.0], [0.25, 0.375, 0.375]),
        ([0.0, 0.0], [0.0, 1.0], [1, 0]),
        ([1.0, 0.0], [1.0, 1.0], [0, 1]),
    ],
)
def test_the_race_law_of_fixed_keys_among_others_agrees_with_integrals_done_by_hand(low, high, law):
    found = race_law(*(torch.tensor([ends, ends], dtype=torch.float64) for ends in (low, high)))
    assert torch.allclose(found, torch.tensor([law, law], dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("base", [0.3, 1.0, 1e-9])
def test_keys_as_narrow_as_the_spacing_of_floats_are_raced_exactly(base):
    """The third key is fixed at the middle of the first: of [0, 2], [1, 2] and 1 in units of the spacing."""
    unit = np.spacing(base)
    low, high = torch.tensor([[0.0, 1.0, 1.0]]).double(), torch.tensor([[2.0, 2.0, 1.0]]).double()
    three = race_law(base + unit * low, base + unit * high)
    assert torch.allclose(three, torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64), atol=1e-15)
    # without the fixed one: int_0^1 1/2 dt + int_1^2 (2 - t)/2 dt = 3/4
    two = race_law(base + unit * low[:, :2], base + unit * high[:, :2])
    assert torch.allclose(two, torch.tensor([[0.75, 0.25]], dtype=torch.float64), atol=1e-15)


@pytest.mark.parametrize("keys", [2, 3, 4, 6])
def test_the_race_law_is_that_of_integrated_polynomials(keys):
    """Pr(k smallest) = int dt / width_k prod of the others' survival, piecewise polynomial, in exact fractions."""
    rng = np.random.default_rng(keys)
    low = [Fraction(int(n), 8) for n in rng.integers(0, 5, keys)]
    high = [end + Fraction(int(n), 8) for end, n in zip(low, rng.integers(1, 6, keys), strict=True)]
    cuts = sorted({*low, *high})
    for k in range(keys):
        total = Fraction(0)
        for left, right in itertools.pairwise(cuts):
            if low[k] <= left and right <= high[k]:
                polynomial = [Fraction(1)]
                for j in [j for j in range(keys) if j != k and low[j] < right]:
                    factor = (high[j] / (high[j] - low[j]), -1 / (high[j] - low[j])) if left < high[j] else (0, 0)
                    shifted = [Fraction(0), *polynomial]
                    polynomial = [factor[0] * a + factor[1] * b for a, b in zip([*polynomial, 0], shifted, strict=True)]
                total += sum(c * (right ** (n + 1) - left ** (n + 1)) / (n + 1) for n, c in enumerate(polynomial))
        found = race_law(*(torch.tensor([[float(e) for e in ends]], dtype=torch.float64) for ends in (low, high)))
        assert abs(float(found[0, k]) - float(total / (high[k] - low[k]))) < 1e-14


@pytest.mark.parametrize("coin", [-1e-9, 1 + 1e-9, float("nan"), float("inf")])
@pytest.mark.parametrize("question", ["accept", "accept_while", "accept_last"])
def test_a_coin_of_impossible_probability_is_an_error(question, coin):
    coins = torch.tensor([[0.5, coin]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"probabilities are not in \[0, 1\]"):
        getattr(ReplayDraws([()]), question)(coins)


def test_a_draw_with_a_negative_weight_is_an_error_and_rounding_is_not():
    with pytest.raises(ValueError, match=r"probabilities are not in \[0, 1\]"):
        ReplayDraws([()]).choose(torch.tensor([[1.0, -1e-9, 0.5]], dtype=torch.float64))
    with pytest.raises(ValueError, match="all zero or not finite"):
        ReplayDraws([()]).choose(torch.tensor([[1.0, float("inf")]]))
    draws = ReplayDraws([()])
    draws.accept(torch.tensor([[1 + 1e-13]], dtype=torch.float64))
    draws.choose(torch.tensor([[1.0, -1e-13]], dtype=torch.float64))
    assert draws.weight.tolist() == [1.0]
    assert draws.alternatives == []


@pytest.mark.parametrize("law", [[1.5, 0.0], [0.0, -0.5], [0.5, float("nan")], [1 + 1e-9, 0.0], [0.0, -1e-9]])
def test_a_question_is_refused_for_one_impossible_probability_alone(law):
    with pytest.raises(ValueError, match=r"probabilities are not in \[0, 1\]"):
        ReplayDraws([(), ()])._answer(torch.tensor([[0.5, 0.5], law], dtype=torch.float64))


@pytest.mark.parametrize("name", ["token", "block"])
def test_replayed_outcomes_carry_all_the_probability(name):
    for vocab, length in itertools.product((1, 2, 3), (1, 2, 3)):
        law = exact_law(name, PrefixTree.random(vocab, length, seed=5))
        assert abs(law.mass - 1) < 1e-12
        assert abs(sum(law.blocks.values()) - 1) < 1e-12


def test_the_published_example_comes_out_as_printed():
    assert abs(exact_law("token", PUBLISHED).acceptance_length - 10 / 9) < 1e-15
    assert abs(exact_law("block", PUBLISHED).acceptance_length - 11 / 9) < 1e-15


def test_a_name_its_entry_and_its_function_are_one_verifier():
    tree = PUBLISHED
    for law in (exact_law("block", tree), exact_law(get("block"), tree), exact_law(get("block").verify, tree)):
        assert law.acceptance_length == pytest.approx(11 / 9, abs=1e-12)


def test_a_verdict_out_of_range_is_an_error():
    def too_long(batch: Batch, draws: Draws) -> Verdict:
        zero = torch.zeros(batch.shape[0], dtype=torch.int64)
        return Verdict(zero, zero + 99, zero)

    with pytest.raises(ValueError, match=r"accepted is .*want \d+ values in 0\.\.2"):
        exact_law(too_long, PUBLISHED)


def test_a_token_outside_the_tree_counts_against_the_law():
    """A verifier that emits a token the target cannot emit is off by exactly the mass it puts there."""
    tree = PrefixTree.iid([1.0, 0.0], [1.0, 0.0], 1)

    def emits_one(batch: Batch, draws: Draws) -> Verdict:
        zero = torch.zeros(batch.shape[0], dtype=torch.int64)
        return Verdict(zero, zero, zero + draws.accept(torch.full((batch.shape[0],), 0.25)).long())

    assert abs(exact_law(emits_one, tree).total_variation(tree.target_law()) - 0.25) < 1e-15


def test_too_many_drafts_are_refused():
    with pytest.raises(ValueError, match="too many to enumerate"):
        exact_law("token", PrefixTree.random(4, 4, seed=0), paths=3)


def test_replay_visits_each_outcome_once():
    tree = PrefixTree.random(2, 1, seed=0)
    rows = torch.as_tensor(tree.rows(tree.draft)[:1])
    batch = Batch(
        torch.zeros(1, 1, 1, dtype=torch.int64),
        rows.reshape(1, 1, 1, 2),
        torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64),
    )
    from specbound.runtime.verifiers.token import verify_token

    seen = [
        (int(a), int(t))
        for outcome in replay(verify_token, batch)
        for a, t in zip(outcome.accepted, outcome.token, strict=True)
    ]
    assert len(seen) == len(set(seen))
    assert np.isclose(sum(outcome.probability.sum() for outcome in replay(verify_token, batch)), 1)
