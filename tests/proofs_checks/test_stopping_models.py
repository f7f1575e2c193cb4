"""From models to a draft-length problem: rows, contexts and the value are those of the tree."""

from __future__ import annotations

import pytest

from specbound.proofs_checks.laws.stopping_models import stopping_instance
from specbound.theory import stopping
from specbound.theory.prefix_tree import PrefixTree

A, B = ["1/3", "2/3"], ["2/3", "1/3"]


def test_an_iid_tree_of_any_depth_is_the_problem_with_one_context():
    """Negative control: another draft has another optimum."""
    one = stopping.StoppingInstance([A], [B], 4, 1, 2, successor=[[0, 0]], verifier="block")
    for depth in (1, 3):
        instance = stopping_instance(PrefixTree.iid(A, B, depth), 4, 1, 2)
        assert instance.exact
        assert instance.contexts == 2**depth - 1
        assert stopping.solve(instance).eta == stopping.solve(one).eta
    other = stopping_instance(PrefixTree.iid(A, A, 2), 4, 1, 2)
    assert stopping.solve(other).eta > stopping.solve(one).eta


@pytest.mark.parametrize("verifier", ["token", "block"])
def test_rows_and_successors_follow_the_tree(verifier):
    tree = PrefixTree.random(2, 2, seed=3)
    instance = stopping_instance(tree, 4.0, 1.0, 2, verifier, min_length=1)
    assert (instance.verifier, instance.min_length, instance.contexts) == (verifier, 1, 3)
    assert instance.successor == ((1, 2), (0, 0), (0, 0))
    assert [list(row) for row in instance.target] == [tree.target[below].tolist() for below in tree.children[:3]]
    assert [list(row) for row in instance.draft] == [tree.draft[below].tolist() for below in tree.children[:3]]


def test_prefixes_that_no_draft_reaches_are_no_contexts():
    tree = PrefixTree(2, 2, [-1, 0, 0, 1, 1], [-1, 0, 1, 0, 1], [1, 0.5, 0.5, 0.3, 0.7], [1, 1.0, 0.0, 0.6, 0.4],
                      [[0.5, 0.5]] * 2)  # fmt: skip
    assert stopping_instance(tree, 4.0, 1.0, 2).successor == ((1, 0), (0, 0))
