"""Models on contexts: one law or two, read exactly, followed as far as they are known."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from specbound.theory.contexts import ContextModel, ModelPair, words

F = Fraction
THIRD = [F(1, 3), F(2, 3)]


def test_rows_are_exact_unless_a_float_is_among_them():
    assert ContextModel.iid(["1/3", "2/3"]).exact
    assert not ContextModel.iid(["1/3", 2 / 3]).exact
    mixed = ModelPair.iid(THIRD, [0.5, 0.5])
    assert not mixed.exact
    assert mixed.target.rows.dtype == mixed.draft.rows.dtype == float
    assert ModelPair.iid(THIRD, THIRD).as_float().target.rows[0, 0] == 1 / 3


def test_the_law_of_a_chain_is_the_product_of_its_rows():
    chain = ContextModel.markov([THIRD, [F(1), F(0)]], start=1)
    assert chain.block_law(2) == {(0, 0): F(1, 3), (0, 1): F(2, 3)}
    assert chain.prefix_joints((0, 1, 1)) == [1, 1, F(2, 3), 0]


def test_words_are_breadth_first_and_children_follow_them():
    tree = ContextModel.tree(dict.fromkeys(words(3, 2), [F(1, 3)] * 3))
    prefixes = words(3, 2)
    for context, prefix in enumerate(prefixes):
        for token in range(3):
            wanted = prefixes.index((*prefix, token)) if len(prefix) < 2 else 0
            assert tree.successor[context, token] == wanted


def test_where_a_model_is_not_known_nothing_is_made_up():
    pair = ModelPair.from_conditionals(lambda _: THIRD, lambda _: THIRD, 2, 1)
    assert pair.target_law(2)[(1, 1)] == F(4, 9)
    with pytest.raises(ValueError, match="not known that far"):
        pair.target_law(3)
    with pytest.raises(ValueError, match="not known that far"):
        pair.draft.block_law(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ContextModel([[0.5, 0.4]], [[0, 0]]), r"rows\[0\] sums to 0.9; want 1"),
        (lambda: ContextModel([[0.5, np.nan]], [[0, 0]]), r"rows\[0\]\[1\] is nan; want a finite"),
        (lambda: ContextModel(np.array([[1.5, -0.5]]), [[0, 0]]), r"rows\[0\]\[1\] is -0.5; want a probability"),
        (lambda: ContextModel(np.array([[1.0, 0.0]]), np.array([[0, 1]])), r"successor\[0\]\[1\] is 1; want at most 0"),
        (lambda: ContextModel([], None), "rows is empty"),
        (lambda: ContextModel([[1, 0], [0, 1]], start=2), "start is 2; want at most 1"),
        (lambda: ModelPair.of([THIRD], [THIRD, THIRD], [[0, 0]]), "draft has 2 rows and target 1"),
        (
            lambda: ModelPair(ContextModel.iid(THIRD), ContextModel([THIRD], np.array([[0, -1]]))),
            "want the same start and the same successor",
        ),
    ],
)
def test_what_is_no_model_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
