"""Bounds of folded trees: true for the full tree, exact where the fold loses nothing, and better than nothing."""

from __future__ import annotations

import numpy as np
import pytest

from specbound.theory.multi_path import automaton, lossless_optimum, transport_optimum
from specbound.theory.multi_path.automaton import fold, iid_bounds, lower_bound, markov_bounds, upper_bound
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.single_path import optimum as single_path_optimum
from specbound.theory.solution import CertificateError

OBJECTIVES = ["lossless", "block-transport"]
TARGET, DRAFT = [1 / 3, 2 / 3], [2 / 3, 1 / 3]


def solve(tree: PrefixTree, paths: int, objective: str):
    return (lossless_optimum if objective == "lossless" else transport_optimum)(tree, paths)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("seed", range(6))
def test_the_interval_of_a_random_chain_contains_the_optimum_of_its_tree(objective, seed):
    rng = np.random.default_rng(seed)
    vocab, length, paths = 2 + seed % 2, 1 + seed % 4, 1 + seed % 3
    target, draft = (rng.dirichlet(np.full(vocab, 0.5), vocab) for _ in range(2))
    interval = markov_bounds(target, draft, length, paths, start=seed % vocab, objective=objective)
    solution = solve(PrefixTree.markov(target, draft, length, start=seed % vocab), paths, objective)
    assert interval.value <= solution.bound + 1e-9
    assert interval.bound >= solution.value - 1e-9


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_any_selection_and_any_potential_bound_the_optimum_of_the_tree(objective):
    rng = np.random.default_rng(3)
    folded = fold(np.array([TARGET]), np.array([DRAFT]), 5)
    solution = solve(PrefixTree.iid(TARGET, DRAFT, 5), 2, objective)
    for _ in range(50):
        density = rng.uniform(0, 2, folded.levels[-1].stop - folded.levels[-1].start)
        assert lower_bound(folded, density, 2, objective) <= solution.bound + 1e-9
        potential = rng.uniform(0, 1, len(folded.depth)) * folded.depth
        assert upper_bound(folded, potential, 2, objective) >= solution.value - 1e-9


@pytest.mark.parametrize("length", [1, 4, 10])
def test_one_path_is_exact_at_every_length(length):
    interval = iid_bounds(TARGET, DRAFT, length, 1)
    assert interval.gap == 0.0
    assert interval.value == pytest.approx(single_path_optimum(PrefixTree.iid(TARGET, DRAFT, length)).value, abs=1e-13)


@pytest.mark.parametrize(("length", "low", "high"), [(8, 4.96896, 5.04671), (12, 6.07031 - 2e-4, 6.17090)])
def test_the_intervals_of_the_notes_are_reproduced_or_improved(length, low, high):
    interval = iid_bounds(TARGET, DRAFT, length, 3)
    assert interval.value >= low
    assert interval.bound <= high + 1e-5
    if length == 8:
        assert interval.value <= 4.984849 <= interval.bound
        assert interval.states == 145


def test_states_carry_all_the_probability_of_their_level():
    folded = fold(np.array([[0.2, 0.3, 0.5]]), np.array([[0.5, 0.2, 0.3]]), 4)
    for level in folded.levels:
        assert folded.mass[level].sum() == pytest.approx(1.0, abs=1e-14)
        assert folded.reach[level].sum() == pytest.approx(1.0, abs=1e-14)
    tree = PrefixTree.iid([0.2, 0.3, 0.5], [0.5, 0.2, 0.3], 4)
    ratios = np.log(tree.draft_joint[tree.leaves] / tree.target_joint[tree.leaves])
    found = np.log(folded.ratio[folded.levels[-1]])
    assert np.unique(found.round(6)).tolist() == np.unique(ratios.round(6)).tolist()


@pytest.mark.parametrize(
    ("target", "draft", "value"),
    [
        ([0.0, 1.0], [1.0, 0.0], 0.0),
        ([0.5, 0.5], [1.0, 0.0], 0.875),
        ([0.2, 0.8], [0.2, 0.8], 3.0),
        ([1.0], [1.0], 3.0),
    ],
)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_degenerate_rows_are_exact(target, draft, value, objective):
    interval = iid_bounds(target, draft, 3, 2, objective)
    assert interval.value == pytest.approx(value, abs=1e-8)
    assert interval.bound == pytest.approx(value, abs=1e-8)


def test_forgetting_the_smallest_ratio_would_claim_too_much_for_one_path():
    """The broken twin of the fold: without the running minimum, phi(w) = min(P, Q)(w) looks reachable."""
    folded = fold(np.array([TARGET]), np.array([DRAFT]), 3)
    claimed = float((np.minimum(folded.mass, folded.reach))[1:].sum())
    assert claimed > iid_bounds(TARGET, DRAFT, 3, 1).value + 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.5, 0.5], [1.0], 2, 2), "shape"),
        (([0.5, 0.6], [0.5, 0.5], 2, 2), "row of target is not a law"),
        (([0.5, 0.5], [0.5, float("nan")], 2, 2), "row of draft is not a law"),
        (([0.5, 0.5], [0.5, 0.5], 0, 2), "length is 0"),
        (([0.5, 0.5], [0.5, 0.5], None, 2), "length is None"),
        (([0.5, 0.5], [0.5, 0.5], 2, 0), "paths is 0"),
        (([0.5, 0.5], [0.5, 0.5], 2, 2, "best"), "objective is 'best'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        iid_bounds(*arguments)
    with pytest.raises(ValueError, match="start is 2"):
        markov_bounds([[0.5, 0.5]] * 2, [[0.5, 0.5]] * 2, 2, 2, start=2)


def test_a_failing_solver_raises_with_its_status(monkeypatch):
    class Failed:
        status, message = 4, "numerical trouble"

    monkeypatch.setattr(automaton, "linprog", lambda *_, **__: Failed())
    with pytest.raises(CertificateError, match="status 4: numerical trouble"):
        iid_bounds(TARGET, DRAFT, 3, 2)


def test_ratios_that_nearly_agree_are_not_merged():
    """A state stands for prefixes of equal ratio; over prefixes whose ratios differ by 4e-11 nothing is proved."""
    close = fold(np.array([[0.5, 0.5]]), np.array([[0.5 + 1e-11, 0.5 - 1e-11]]), 1)
    assert len(close.depth) == 3
    assert len(fold(np.array([[0.5, 0.5]]), np.array([[0.5, 0.5]]), 1).depth) == 2
