"""One step, K drafts: the threshold form is optimal, and the values of the known rules agree with their definitions."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from specbound.theory import block_transport, single_step
from specbound.theory.feasibility import coverage
from specbound.theory.multi_path import antichain
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import INSTANCES, fractions
from tests.support.strategies import row

SETTINGS = settings(max_examples=40, deadline=None)
ROWS = {
    ("9/10 1/10", "1/2 1/2", 2): ("17/20", "4/5"),
    ("3/4 1/4", "1/2 1/2", 2): ("1", "7/8"),
    ("1/3 2/3", "2/3 1/3", 2): ("8/9", "7/9"),
    ("1/4 3/4", "3/4 1/4", 2): ("11/16", "5/8"),
    ("1/2 3/8 1/8", "1/4 1/4 1/2", 2): ("7/8", "13/16"),
    ("1/6 1/3 1/2", "1/2 1/6 1/3", 1): ("2/3", "2/3"),
    ("1/6 1/3 1/2", "1/2 1/6 1/3", 2): ("11/12", "5/6"),
    ("1/6 1/3 1/2", "1/2 1/6 1/3", 3): ("1", "11/12"),
}


def array(values) -> np.ndarray:
    return np.array(values, dtype=object)


@pytest.mark.parametrize(("case", "values"), ROWS.items())
def test_reference_values_of_optimum_and_recursive_rejection_are_reproduced(case, values):
    target, draft, paths = array(fractions(case[0])), array(fractions(case[1])), case[2]
    assert single_step.optimum(target, draft, paths).exact == Fraction(values[0])
    assert single_step.recursive_rejection(target, draft, paths) == Fraction(values[1])


def test_the_reference_value_of_a_hundred_tokens_is_reproduced():
    target, draft = np.random.default_rng(1).dirichlet([0.5] * 100, 2)
    assert single_step.optimum(target, draft, 4).value == pytest.approx(0.46803996, abs=5e-9)


@SETTINGS
@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_threshold_sets_are_the_best_of_all_sets(data, vocab, paths):
    target, draft = array(data.draw(row(vocab))), array(data.draw(row(vocab)))
    sets = [list(s) for size in range(vocab + 1) for s in itertools.combinations(range(vocab), size)]
    best = min(coverage(sum(draft[s], Fraction(0)), paths) - sum(target[s], Fraction(0)) for s in sets)
    solution = single_step.optimum(target, draft, paths)
    assert solution.exact == 1 + best
    assert solution.gap == 0


@pytest.mark.parametrize("seed", range(12))
def test_closed_form_linear_program_and_transport_agree(seed):
    tree, paths = PrefixTree.random(2 + seed % 4, 1, seed, [0.1, 0.5, 2.0][seed % 3]), 1 + seed % 4
    closed = single_step.optimum(tree.target[1:], tree.draft[1:], paths)
    assert abs(antichain.optimum(tree, paths).value - closed.value) < 1e-9
    assert abs(block_transport.pot_optimum(tree, paths).value - closed.value) < 1e-9


@SETTINGS
@given(st.data(), st.integers(1, 4), st.integers(1, 4))
def test_no_rule_beats_the_optimum_and_more_drafts_never_hurt(data, vocab, paths):
    target, draft = array(data.draw(row(vocab))), array(data.draw(row(vocab)))
    best = single_step.optimum(target, draft, paths).exact
    rules = {
        "naive": single_step.naive(target, draft, paths).sum(),
        "recursive rejection": single_step.recursive_rejection(target, draft, paths),
        "K-SEQ": single_step.kseq(target, draft, paths).value(paths),
    }
    assert all(value <= best + Fraction(1, 10**12) for value in rules.values()), rules
    assert single_step.optimum(target, draft, paths + 1).exact >= best
    assert single_step.recursive_rejection(target, draft, paths + 1) >= rules["recursive rejection"]


@SETTINGS
@given(st.data(), st.integers(2, 4), st.integers(1, 3))
def test_recursive_rejection_agrees_with_every_tuple_of_drafts(data, vocab, paths):
    target, draft = array(data.draw(row(vocab))), array(data.draw(row(vocab)))
    coins = single_step.recursive_rejection_coins(target, draft, paths)
    emitted, none = array([Fraction(0)] * vocab), Fraction(0)
    for tokens in itertools.product(range(vocab), repeat=paths):
        reached = Fraction(1)
        for token in tokens:
            reached *= draft[token]
        for coin, token in zip(coins, tokens, strict=True):
            emitted[token] += reached * coin[token]
            reached *= 1 - coin[token]
        none += reached
    assert 1 - none == single_step.recursive_rejection(target, draft, paths)
    residual = target - emitted
    assert (residual >= 0).all()
    assert residual.sum() == none


@SETTINGS
@given(st.data(), st.integers(2, 4), st.integers(1, 5))
def test_kseq_is_lossless_at_its_discount_and_not_below_it(data, vocab, paths):
    target, draft = (array(data.draw(row(vocab))).astype(float) for _ in range(2))
    rule = single_step.kseq(target, draft, paths)

    def accepted(discount):
        share = np.minimum(draft, target / discount)
        offers = sum((1 - share.sum()) ** j for j in range(paths))
        return offers * share

    assert accepted(rule.discount).sum() == pytest.approx(rule.value(paths), abs=1e-12)
    assert (accepted(rule.discount) <= target + 1e-12).all()
    assume(rule.discount > 1.01)
    too_small = accepted(rule.discount - 0.01)
    assume(((target > 0) & (target / (rule.discount - 0.01) < draft)).any())
    assert (too_small > target + 1e-9).any()


def test_filling_water_meets_the_total_below_the_caps():
    cap, draft = array(fractions("1/2 1/4 1/8")), array(fractions("1/4 1/4 1/2"))
    level = single_step.filled(cap, draft, Fraction(1, 2))
    assert level.sum() == Fraction(1, 2)
    assert level.tolist() == fractions("3/16 3/16 1/8")
    assert single_step.filled(cap, draft, cap.sum()).tolist() == cap.tolist()


def test_a_value_never_passes_its_bound_and_ratios_may_be_too_large_for_a_float():
    found = single_step.optimum([1e-17, 1e-9, 1 - 1e-9], [1 / 11, 1e-9 / 1.1, 10 / 11 - 1e-9 / 1.1], 2)
    assert found.value <= found.bound
    assert single_step.by_ratio(np.array([1e-9, 1 - 2e-9, 1e-9]), np.array([1e-9, 1 - 1e-9, 5e-324])).tolist()[0] == 2


def test_rows_that_are_no_laws_are_refused():
    with pytest.raises(ValueError, match=r"target\[0\] sums to 0\.9; want 1"):
        single_step.optimum([0.5, 0.4], [0.5, 0.5], 2)
    with pytest.raises(ValueError, match="paths is 0"):
        single_step.optimum([0.5, 0.5], [0.5, 0.5], 0)
    assert INSTANCES["I4"].length == 1
