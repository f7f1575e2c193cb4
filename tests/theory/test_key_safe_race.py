"""The score race that reserves the key race: at least the key race, a possible selection, optimal for one token."""

from __future__ import annotations

import numpy as np
import pytest

from specbound.theory import key_safe_race, score_race, single_path, single_step
from specbound.theory.feasibility import antichain_excess
from specbound.theory.known_values import key_race
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES, sparse

RANDOM = [
    PrefixTree.random(v, d, seed, concentration=0.3) for seed, (v, d) in enumerate([(2, 2), (3, 2), (2, 4), (4, 3)])
]
TREES = [*INSTANCES.values(), *DEGENERATE.values(), *RANDOM]


@pytest.mark.parametrize("paths", [1, 2, 3, 8, 64])
def test_it_keeps_at_least_the_key_race_and_no_more_than_is_possible(paths):
    for tree in TREES:
        phi = key_safe_race.acceptance(tree, paths)
        assert phi[1:].sum() >= float(key_race(tree.as_float(), paths)[1:].sum()) - 1e-12
        assert antichain_excess(tree.as_float(), phi, paths) <= 1e-12


def test_the_score_race_with_the_safe_rule_does_not_keep_what_the_key_race_keeps():
    tree = next(
        tree for tree in (PrefixTree.random(2, 3, seed, concentration=0.2) for seed in range(400)) if short(tree)
    )
    assert key_safe_race.acceptance(tree, 4)[1:].sum() >= key_race(tree, 4)[1:].sum() - 1e-12


def short(tree: PrefixTree) -> bool:
    return bool(score_race.acceptance(tree, 4)[1:].sum() < key_race(tree, 4)[1:].sum() - 1e-9)


@pytest.mark.parametrize("paths", [2, 3, 7])
def test_one_token_is_kept_as_often_as_possible(paths):
    for seed in range(20):
        tree = PrefixTree.random(5, 1, seed, concentration=0.3)
        best = single_step.optimum(tree.target[1:], tree.draft[1:], paths).phi
        assert key_safe_race.acceptance(tree, paths).sum() == pytest.approx(np.sum(best), abs=1e-12)


def test_one_path_is_block_verification():
    for tree in TREES:
        block = single_path.acceptance(tree.as_float())
        assert np.allclose(key_safe_race.acceptance(tree, 1), block, rtol=0, atol=1e-12)


def test_a_reserve_that_is_kept_by_the_key_race_itself_is_whole():
    whole = np.array([[0.0, 1.0]])
    start = key_safe_race.Reserve(0.0, 1.0)
    assert key_safe_race.strongest(score_race.Measure(whole, whole, 3), start, 1.0, 1.0) == start
    late = score_race.Measure(np.array([[0.0, 0.5, 1.0]]), np.array([[0.0, 0.0, 1.0]]), 3)
    assert key_safe_race.strongest(late, start, 1.0, 1.0) == key_safe_race.Reserve(0.5, 1.0)


GAPS = [sparse(2, 4, 40), sparse(3, 3, 34)]


def least_over_key_race(tree: PrefixTree, paths: int) -> float:
    """Smallest difference to the key race at a prefix that is not the last token."""
    inner = slice(1, tree.leaves.start)
    return float((key_safe_race.acceptance(tree, paths) - key_race(tree, paths))[inner].min())


def test_the_reserve_alone_keeps_what_the_key_race_keeps_at_every_prefix(monkeypatch):
    """Measures with stretches of scores without mass among them."""
    monkeypatch.setattr(key_safe_race, "SLACK", -np.inf)
    assert min(least_over_key_race(tree, 3) for tree in [*GAPS, *RANDOM]) > -1e-12
    monkeypatch.setattr(key_safe_race, "key_split", lambda measure, _, family: [measure] * len(family.node))
    assert least_over_key_race(GAPS[1], 2) < -0.01
