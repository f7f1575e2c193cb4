"""The instances of an audit: reproducible, well formed, and degenerate where it hurts."""

from fractions import Fraction

import numpy as np
import pytest

from specbound.proofs_checks.laws.instances import FAMILIES, NODE_FAMILIES, instances, random_tree, rational_row


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("vocab", [1, 2, 3, 5])
def test_every_family_gives_a_tree_of_the_size_asked_for_and_the_same_one_again(family, vocab):
    tree, again = (random_tree(family, vocab, 2, seed=11) for _ in range(2))
    assert (tree.vocab, tree.length, tree.size) == (vocab, 2, 1 + vocab + vocab**2)
    assert tree.exact == (family != "Dirichlet")
    assert list(tree.target) == list(again.target)
    if vocab > 2 and family in ("independent", "mixed", "Dirichlet"):
        assert list(random_tree(family, vocab, 2, seed=12).target) != list(tree.target)


def rows(family, vocab=3, count=60):
    rng = np.random.default_rng(5)
    return [NODE_FAMILIES[family](rng, vocab) for _ in range(count)]


def test_families_are_what_their_names_say():
    assert all(min(target) > 0 and min(draft) > 0 for target, draft in rows("independent"))
    assert all(0 in target and 0 not in draft for target, draft in rows("zeros in target"))
    assert all(0 in draft and 0 not in target for target, draft in rows("zeros in draft"))
    assert all(max(target) == 1 for target, _ in rows("one-hot target"))
    assert all(max(draft) == 1 for _, draft in rows("one-hot draft"))
    assert all(target == draft for target, draft in rows("equal"))
    assert all(p * q == 0 for target, draft in rows("disjoint") for p, q in zip(target, draft, strict=True))
    assert all(any(p == q for p, q in zip(target, draft, strict=True)) for target, draft in rows("partly equal"))
    assert any(target != draft for target, draft in rows("partly equal"))
    assert all(
        abs(p - q) < Fraction(1, 10) for target, draft in rows("close") for p, q in zip(target, draft, strict=True)
    )


def test_rational_rows_sum_to_one_and_are_positive_on_their_support_only():
    rng = np.random.default_rng(0)
    for _ in range(200):
        row = rational_row(rng, 4, [1, 3])
        assert sum(row) == 1
        assert [entry > 0 for entry in row] == [False, True, False, True]


def test_an_audit_sees_every_size_and_every_family_small_sizes_first():
    cases = list(instances(range(2, 4), range(1, 3), range(1, 3), 200))
    assert len(cases) == 200
    assert {case.size for case in cases} == {(v, ell, k) for v in (2, 3) for ell in (1, 2) for k in (1, 2)}
    for size in {case.size for case in cases}:
        assert {case.family for case in cases if case.size == size} == set(FAMILIES)
    sizes = [case.tree.vocab ** (case.tree.length * case.paths) for case in cases]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((range(0, 2), range(1, 2), range(1, 2), 3), "vocab"),
        ((range(2, 3), range(1, 1), range(1, 2), 3), "length"),
        ((range(2, 3), range(1, 2), range(-1, 2), 3), "paths"),
        ((range(2, 3), range(1, 2), range(1, 2), 0), "cases"),
    ],
)
def test_impossible_requests_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        list(instances(*arguments))
    with pytest.raises(ValueError, match="family"):
        random_tree("nonsense", 2, 1, 0)


@pytest.mark.parametrize("family", NODE_FAMILIES)
def test_rows_of_large_vocabularies_are_laws(family):
    for row in NODE_FAMILIES[family](np.random.default_rng(3), 1500):
        assert min(row) >= 0
        assert sum(row) == 1
