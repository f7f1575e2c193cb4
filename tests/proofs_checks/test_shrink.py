"""Shrinking: the smallest and simplest instance on which something still fails."""

from fractions import Fraction

import pytest

from specbound.proofs_checks.audit.shrink import case_of, shrink, textbook_pairs
from specbound.proofs_checks.laws.deviation import as_fractions, find_deviation
from specbound.proofs_checks.laws.instances import random_tree
from specbound.theory.prefix_tree import PrefixTree


def test_what_always_fails_shrinks_to_one_token_one_draft_one_path():
    found = shrink(random_tree("mixed", 3, 3, seed=1), 3, lambda tree, paths: True)
    assert (found.tree.vocab, found.tree.length, found.paths) == (1, 1, 1)


def test_sizes_that_the_failure_needs_are_kept():
    def fails(tree, paths):
        return tree.vocab >= 2 and tree.length >= 2 and paths >= 2

    found = shrink(random_tree("independent", 3, 3, seed=1), 3, fails)
    assert (found.tree.vocab, found.tree.length, found.paths) == (2, 2, 2)
    assert set(found.tree.target[1:]) | set(found.tree.draft[1:]) == {0, 1}


def test_the_failing_probability_survives_and_the_others_become_simple():
    def fails(tree, paths):
        return tree.vocab == 3 and 0 < tree.target[1] != tree.draft[1] > 0

    found = shrink(random_tree("independent", 3, 2, seed=4), 2, fails)
    assert fails(found.tree, found.paths)
    assert (found.tree.length, found.paths) == (1, 1)
    assert max(entry.denominator for entry in [*found.tree.target, *found.tree.draft]) <= 6


def test_a_failure_no_textbook_instance_shows_is_rounded_step_by_step():
    def fails(tree, paths):
        return tree.vocab == 2 and Fraction(1, 7) < tree.target[1] < Fraction(1, 5)

    start = PrefixTree.iid([Fraction(131, 720), Fraction(589, 720)], [Fraction(7, 720), Fraction(713, 720)], 1)
    found = shrink(start, 1, fails)
    assert found.tree.target[1] == Fraction(1, 6)


def test_float_trees_are_shrunk_to_fractions():
    found = shrink(PrefixTree.random(3, 2, seed=0), 1, lambda tree, paths: tree.target[1] != tree.draft[1])
    assert found.tree.exact
    assert all(sum(row) == 1 for row in case_of(PrefixTree.random(3, 2, seed=0)).target.values())


def test_the_number_of_trials_is_bounded_and_a_case_that_passes_is_refused():
    asked = []

    def fails(tree, paths):
        asked.append(paths)
        return len(asked) == 1

    found = shrink(random_tree("independent", 3, 2, seed=0), 2, fails, max_trials=20)
    assert found.trials == len(asked) - 1
    assert found.trials <= 4 * 20
    with pytest.raises(ValueError, match="does not fail"):
        shrink(random_tree("independent", 2, 1, seed=0), 1, lambda tree, paths: False)


def test_textbook_rows_are_laws():
    assert all(sum(row) == 1 for vocab in (1, 2, 3, 4) for pair in textbook_pairs(vocab) for row in pair)


def test_the_deviation_is_the_first_wrong_position_and_its_most_overproduced_token():
    target = {(0, 0): 0.25, (0, 1): 0.25, (1, 0): 0.5}
    assert find_deviation({(0, 0): 0.5, (1, 0): 0.5}, target, 1e-9).position == 2
    found = find_deviation({(0, 0): 0.5, (0, 1): 0.25, (1, 0): 0.25}, target, 1e-9)
    assert (found.position, found.prefix, found.token) == (1, (), 0)
    assert (found.emitted, found.wanted, found.total_variation) == (0.75, 0.5, 0.25)
    rare = find_deviation({(0,): 0.6, (1,): 0.25, (2,): 0.15}, {(0,): 0.6, (1,): 0.3, (2,): 0.1}, 1e-9)
    assert (rare.token, rare.excess) == (2, pytest.approx(0.05))
    assert find_deviation({**target, (0, 0): 0.25 + 1e-12}, target, 1e-9) is None


def test_fractions_are_recovered_only_if_they_sum_to_one():
    assert as_fractions({(0,): 1 / 3, (1,): 2 / 3}) == {(0,): Fraction(1, 3), (1,): Fraction(2, 3)}
    assert as_fractions({(0,): 1 / 3, (1,): 0.6}) is None
    assert as_fractions({(0,): 2**0.5 - 1, (1,): 2 - 2**0.5}) is None


def test_a_failure_that_no_textbook_instance_shows_still_ends_in_simple_fractions():
    """It takes rows that differ from prefix to prefix, at a size whose textbook instances alone use up the budget."""

    def fails(tree, paths):
        if (tree.vocab, tree.length, paths) != (3, 2, 2):
            return False
        after_one = tree.target[tree.levels[2]].reshape(3, 3)
        return len({tuple(row) for row in after_one}) == 3

    found = shrink(PrefixTree.random(3, 2, seed=133), 2, fails)
    assert fails(found.tree, found.paths)
    assert max(entry.denominator for entry in (*found.tree.target, *found.tree.draft)) <= 6
