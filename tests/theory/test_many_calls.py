"""Calls for N tokens with a carry: the optimum in closed form, its certificate, policies, and a second route."""

from __future__ import annotations

from fractions import Fraction as F

import numpy as np
import pytest

from specbound.theory import many_calls
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError

THIRDS = ((F(1, 3), F(2, 3)), (F(2, 3), F(1, 3)))


def iid(tokens: int, rows: tuple = THIRDS) -> PrefixTree:
    return PrefixTree.iid(*rows, max(1, tokens - 1))


@pytest.mark.parametrize(
    ("length", "tokens", "block", "young", "fill", "optimum"),
    [
        (1, 1, F(1), F(1), F(1), F(1)),
        (1, 6, F(928, 243), F(296, 81), F(296, 81), F(296, 81)),
        (2, 6, F(728, 243), F(236, 81), F(236, 81), F(236, 81)),
        (3, 5, F(191, 81), F(188, 81), F(62, 27), F(182, 81)),
    ],
)
def test_calls_on_two_tokens_as_fractions(length, tokens, block, young, fill, optimum):
    tree = iid(tokens)
    found = [many_calls.calls(tree, length, tokens, policy) for policy in many_calls.POLICIES.values()]
    assert found == [block, fill, young]
    solution = many_calls.optimum(tree, length, tokens)
    assert (solution.exact, solution.gap) == (optimum, 0)


@pytest.mark.parametrize(("length", "block", "young", "fill", "optimum"), [(2, 5.750, 5.484, 5.501, 5.484)])
def test_twelve_tokens(length, block, young, fill, optimum):
    tree = iid(12).as_float()
    found = [many_calls.calls(tree, length, 12, policy) for policy in many_calls.POLICIES.values()]
    assert found == pytest.approx([block, fill, young], abs=5e-4)
    assert many_calls.optimum(tree, length, 12).value == pytest.approx(optimum, abs=5e-4)


def random_trees(count: int, deepest: int = 5):
    rng = np.random.default_rng(11)
    for seed in range(count):
        vocab, tokens = int(rng.integers(2, 4)), int(rng.integers(2, deepest + 2))
        yield PrefixTree.random(vocab, tokens - 1, seed, float(rng.choice([0.2, 0.5, 1.0]))), tokens
    zeros = {"target": [[0, 1, 0], [F(1, 2), 0, F(1, 2)], [1, 0, 0]], "draft": [[F(1, 2), F(1, 2), 0], [1, 0, 0]] * 2}
    yield PrefixTree.markov(zeros["target"], zeros["draft"][:3], 4), 5


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_the_closed_form_is_certified_and_agrees_with_highs(length):
    for tree, tokens in random_trees(12):
        solution = many_calls.optimum(tree, length, tokens)
        other = many_calls.linear_optimum(tree, length, tokens)
        assert solution.gap < 1e-12
        assert solution.value == pytest.approx(other.value, abs=1e-6)


def test_the_certificate_refuses_too_much_kept_and_prices_too_low():
    tree, length, tokens = iid(5), 2, 5
    linear = many_calls.program(tree, length, tokens)
    kept = many_calls.optimal_phases(tree, length, tokens)[linear.place >= 0]
    price = many_calls.prices(tree, length, tokens, linear)
    assert linear.excess(kept) <= 0
    more = kept.copy()
    more[np.argmax(kept < linear.caps)] += F(1, 100)
    assert linear.excess(more) > 0
    assert linear.bound(price) == tokens - kept.sum()
    for other in (0 * price, price / 2, 2 * price):
        assert linear.bound(other) < linear.bound(price)
    with pytest.raises(CertificateError, match="kept breaks a constraint"):
        many_calls._certified(linear, more, price, "test", 1e-9, 0.0)
    with pytest.raises(CertificateError, match="leave a gap"):
        many_calls._certified(linear, 0 * kept, price, "test", 1e-9, 0.0)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_block_verification_is_never_ahead_of_fill_and_nothing_is_ahead_of_the_optimum(length):
    for tree, tokens in random_trees(30):
        block, fill, young = (many_calls.calls(tree, length, tokens, p) for p in many_calls.POLICIES.values())
        optimum = many_calls.optimal_phases(tree, length, tokens)[0].sum()
        assert fill <= block + 1e-12
        assert optimum <= min(fill, young) + 1e-12
        if length <= 2:
            assert young == pytest.approx(optimum, abs=1e-12)


def test_young_falls_behind_block_verification_for_some_pairs_of_three_drafted_tokens():
    behind = [
        tree
        for tree, tokens in random_trees(60)
        if many_calls.calls(tree, 3, tokens, many_calls.young)
        > many_calls.calls(tree, 3, tokens, many_calls.block) + 1e-6
    ]
    assert behind


def test_a_policy_that_ignores_the_flow_rows_is_refused():
    def greedy(step):
        kept, left = np.zeros_like(step.offered), step.room
        for phase, offered in enumerate(step.offered):
            kept[phase] = np.minimum(offered, left)
            left = left - kept[phase]
        return kept

    tree, tokens = iid(6), 6
    linear = many_calls.program(tree, 3, tokens)
    assert linear.excess(many_calls.phases(tree, 3, tokens, greedy)[linear.place >= 0]) > 0
    for policy in many_calls.POLICIES.values():
        assert linear.excess(many_calls.phases(tree, 3, tokens, policy)[linear.place >= 0]) <= 0


def test_block_verification_is_the_optimum_without_a_carry():
    for tree, tokens in random_trees(8, deepest=4):
        for length in (1, 2, 3):
            stateless = many_calls.linear_optimum(tree, length, tokens, stateless=True)
            block = many_calls.calls(tree, length, tokens, many_calls.block)
            assert stateless.value == pytest.approx(block, abs=1e-6)


def test_several_paths_gain_from_a_carry_too():
    two = many_calls.linear_optimum(iid(4), 1, 4, paths=2)
    forgetful = many_calls.linear_optimum(iid(4), 1, 4, paths=2, stateless=True)
    assert two.value == pytest.approx(176 / 81, abs=1e-6)
    assert forgetful.value == pytest.approx(1612 / 729, abs=1e-6)
    one = many_calls.linear_optimum(iid(4), 1, 4)
    assert two.value < one.value - 0.1


@pytest.mark.parametrize(
    ("rows", "rate"), [(THIRDS, F(16, 9)), (((F(9, 10), F(1, 10)), (F(1, 2), F(1, 2))), F(33, 20))]
)
def test_the_rate_of_one_drafted_token_in_closed_form(rows, rate):
    found = many_calls.one_token_rate(*rows)
    assert found.exact == rate
    assert found.lower - 1e-9 <= rate <= found.upper + 1e-9
    assert found.upper - found.lower < 1e-5
    calls = [many_calls.optimal_phases(iid(tokens, rows).as_float(), 1, tokens)[0].sum() for tokens in (11, 13)]
    assert 2 / (calls[1] - calls[0]) == pytest.approx(float(rate), rel=1e-2)


def test_the_rate_without_a_closed_form_and_of_a_chain():
    found = many_calls.one_token_rate([F(3, 4), F(1, 4)], [F(1, 2), F(1, 2)])
    assert found.exact is None
    assert (found.lower, found.upper) == pytest.approx((1.861394, 1.861396), abs=2e-6)
    chain = np.array([[1 / 3, 2 / 3]] * 2), np.array([[2 / 3, 1 / 3]] * 2), np.tile(np.arange(2), (2, 1))
    assert many_calls.one_token_rate(*chain).lower == pytest.approx(16 / 9, abs=1e-5)
    assert many_calls.renewal_rate([F(1, 2)] * 2, [F(1, 2)] * 2) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "length is 0"),
        ((1, 0), "tokens is 0"),
        ((1, True), "tokens is True"),
        ((1, 9), "tokens is 9, but the tree is 2 tokens deep"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        many_calls.optimum(iid(3), *arguments)


def test_a_tree_without_all_of_the_stream_is_refused():
    tree = PrefixTree(
        2,
        2,
        *(np.array(v) for v in ([-1, 0, 0, 1, 1], [-1, 0, 1, 0, 1])),
        *np.array([[1, 0.5, 0.5, 0.5, 0.5], [1, 1.0, 0.0, 0.5, 0.5]]),
        np.full((2, 2), 0.5),
    )
    with pytest.raises(ValueError, match=r"tree holds 0.5 of the target's mass at depth 2"):
        many_calls.optimum(tree, 1, 3)


def test_rates_name_bad_rows():
    with pytest.raises(ValueError, match="target has shape"):
        many_calls.one_token_rate([[0.5, 0.5]], [[1.0]])
    with pytest.raises(ValueError, match="draft has a row that is no law"):
        many_calls.one_token_rate([[0.5, 0.5]], [[0.5, 0.6]])
    with pytest.raises(ValueError, match="follow has shape"):
        many_calls.one_token_rate([[0.5, 0.5]], [[0.5, 0.5]], np.array([[0, 1]]))
