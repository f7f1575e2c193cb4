"""The frontier of acceptance against deviation: certified, equal to brute force, concave, and exact in fractions."""

from __future__ import annotations

import itertools
from fractions import Fraction as F

import cvxpy as cp
import numpy as np
import pytest

from specbound.theory import frontier, single_path
from specbound.theory.multi_path import lossless_optimum
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError
from tests.support.reference import DEGENERATE

ROWS = [F(1, 3), F(2, 3)], [F(2, 3), F(1, 3)]
PUBLISHED = {length: PrefixTree.iid(*ROWS, length) for length in (1, 2, 3)}
VALUES = {
    (1, "0"): "2/3",
    (1, "1/9"): "7/9",
    (1, "1/3"): "1",
    (2, "0"): "11/9",
    (2, "1/81"): "304/243",
    (2, "1/9"): "40/27",
    (2, "2/9"): "47/27",
    (2, "1/3"): "2",
    (3, "0"): "5/3",
    (3, "1/27"): "439/243",
    (3, "1/9"): "169/81",
    (3, "2/9"): "200/81",
    (3, "1/3"): "77/27",
}


@pytest.mark.parametrize(("case", "value"), VALUES.items())
def test_reference_values_are_proved_in_fractions(case, value):
    point = frontier.optimum(PUBLISHED[case[0]], F(case[1]))
    assert point.exact == F(value)
    assert point.gap == 0
    assert frontier.block_deviation(PUBLISHED[case[0]], point.stream) <= F(case[1])


def brute_force(tree: PrefixTree, eps: float, paths: int) -> float:
    """Over everything one call can do: Pr(drafts, kept prefix, emitted token), the law of L+1 tokens within eps."""
    tree = tree.as_float()
    leaves = range(tree.size)[tree.leaves]
    prefixes = {tree.prefix(node): node for node in range(tree.size)}
    rows = np.concatenate([tree.rows(tree.target)[: tree.leaves.start], tree.bonus])
    kept, blocks, drafts, gain = [], [], [], []
    for number, drafted in enumerate(itertools.product(leaves, repeat=paths)):
        reached = {tree.prefix(leaf)[:i] for leaf in drafted for i in range(tree.length + 1)}
        for prefix, y in itertools.product(sorted(reached), range(tree.vocab)):
            kept.append(prefix)
            blocks.append((*prefix, y))
            drafts.append(number)
            gain.append(len(prefix))
    x = cp.Variable(len(kept), nonneg=True)
    mass = np.array([np.prod(tree.draft_joint[list(ds)]) for ds in itertools.product(leaves, repeat=paths)])
    total = [cp.sum(x[np.flatnonzero(np.array(drafts) == d)]) == mass[d] for d in range(len(mass))]
    law = []
    for block in itertools.product(range(tree.vocab), repeat=tree.length + 1):
        weights = np.zeros(len(kept))
        for place, start in enumerate(blocks):
            if block[: len(start)] == start:
                weights[place] = np.prod([rows[prefixes[block[:i]], block[i]] for i in range(len(start), len(block))])
        target = np.prod([rows[prefixes[block[:i]], block[i]] for i in range(len(block))])
        law.append(weights @ x - target)
    problem = cp.Problem(cp.Maximize(np.array(gain) @ x), [*total, cp.norm1(cp.hstack(law)) <= 2 * eps])
    return float(problem.solve(solver=cp.HIGHS))


@pytest.mark.parametrize(("vocab", "length", "paths"), [(2, 1, 1), (3, 1, 2), (2, 2, 1), (2, 2, 2), (3, 2, 1)])
@pytest.mark.parametrize("eps", [0.0, 0.03, 0.2])
def test_nothing_a_verifier_can_do_beats_the_frontier(vocab, length, paths, eps):
    tree = PrefixTree.random(vocab, length, 7)
    assert abs(frontier.optimum(tree, eps, paths).value - brute_force(tree, eps, paths)) < 1e-6


@pytest.mark.parametrize("deviation", ["block", "token", "first"])
@pytest.mark.parametrize("tree", [*PUBLISHED.values(), PrefixTree.random(3, 3, 2), *DEGENERATE.values()])
def test_no_deviation_allowed_gives_block_verification_but_for_the_first_token_alone(tree, deviation):
    point, block = frontier.optimum(tree, 0, 1, deviation), single_path.optimum(tree)
    if deviation == "first" and tree.length > 1:
        assert point.value >= block.value - 1e-9
    else:
        assert abs(point.value - block.value) < 1e-8


@pytest.mark.parametrize(("vocab", "length", "paths", "seed"), [(2, 3, 2, 0), (3, 2, 3, 1), (2, 4, 4, 2)])
def test_no_deviation_allowed_gives_the_lossless_optimum_of_many_paths(vocab, length, paths, seed):
    tree = PrefixTree.random(vocab, length, seed)
    best = lossless_optimum(tree, paths)
    assert best.value - 1e-8 <= frontier.optimum(tree, 0, paths).value <= best.bound + 1e-8


def test_many_paths_are_exact_too():
    assert [frontier.optimum(PUBLISHED[2], F(0), paths).exact for paths in (2, 3)] == [F(131, 81), F(1351, 729)]
    assert frontier.optimum(PUBLISHED[2], F(1, 9), 2).exact == F(152, 81)


def test_the_curve_has_all_corners_and_is_straight_between_them():
    corners = frontier.curve(PUBLISHED[3])
    assert [(point.allowed, point.exact) for point in corners] == [
        (0, F(5, 3)),
        (F(1, 9), F(169, 81)),
        (F(1, 3), F(77, 27)),
        (F(13, 27), 3),
    ]
    for left, right in itertools.pairwise(corners):
        middle = frontier.optimum(PUBLISHED[3], (left.allowed + right.allowed) / 2)
        assert middle.exact == (left.exact + right.exact) / 2


def test_the_curve_of_a_random_tree_is_concave_and_ends_at_the_draft_length():
    corners = frontier.curve(PrefixTree.random(3, 2, 1), 2)
    slopes = [(b.value - a.value) / (b.allowed - a.allowed) for a, b in itertools.pairwise(corners)]
    assert corners[0].allowed == 0
    assert abs(corners[-1].value - 2) < 1e-8
    assert all(before > after for before, after in itertools.pairwise(slopes))


def test_curves_of_disjoint_and_of_equal_models():
    different, equal = PrefixTree.iid([F(1), F(0)], [F(0), F(1)], 2), PrefixTree.iid([F(1), F(0)], [F(1), F(0)], 2)
    assert [(point.allowed, point.exact) for point in frontier.curve(different)] == [(0, 0), (1, 2)]
    assert [(point.allowed, point.exact) for point in frontier.curve(equal)] == [(0, 2)]


def test_every_next_token_within_eps_is_a_stronger_demand_than_the_first_alone():
    values = {name: frontier.optimum(PUBLISHED[2], F(1, 9), 1, name).exact for name in ("token", "first")}
    assert values == {"token": F(40, 27), "first": F(14, 9)}


@pytest.mark.parametrize("nats", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("tree", [PUBLISHED[2], PrefixTree.random(3, 2, 1), PrefixTree.iid([1.0, 0.0], [0.5, 0.5], 2)])
def test_divergence_bounds_meet_and_the_law_is_within_it(tree, nats):
    point = frontier.divergence_optimum(tree, nats)
    assert frontier.divergence(tree.as_float(), point.stream) <= nats + 1e-9
    assert point.gap < 1e-5
    pinsker = frontier.optimum(tree.as_float(), min(1.0, (nats / 2) ** 0.5)).bound
    assert point.value <= pinsker + 1e-8


def test_emitted_mass_is_what_was_kept_and_not_kept_further():
    tree = PUBLISHED[3]
    point = frontier.optimum(tree, F(1, 9))
    rest = point.phi - tree.child_sums(point.phi)
    mass = tree.child_sums(frontier.emitted(tree, point.phi, point.stream))
    assert all(mass[: tree.leaves.start] == rest[: tree.leaves.start])


def test_deviation_accumulates_over_calls_below_their_sum():
    tree = PUBLISHED[2]
    point = frontier.optimum(tree, F(1, 9))
    spread = frontier.accumulated(tree, point.phi, point.stream, 6)
    assert spread[:2] == [F(1, 9), F(11, 81)]
    assert all(before <= after for before, after in itertools.pairwise(spread))
    assert all(total <= calls * F(1, 9) for calls, total in enumerate(spread, 1))
    lossless = frontier.optimum(tree, F(0))
    assert frontier.accumulated(tree, lossless.phi, lossless.stream, 5) == [0] * 5


def test_a_corrupted_answer_is_not_certified():
    program = frontier._Program(PUBLISHED[2].as_float(), 1)
    frontier._budget(program, 0.1, "block")
    point = frontier.optimum(PUBLISHED[2], 0.1)
    ends = point.stream[PUBLISHED[2].leaves]
    short = np.maximum(PUBLISHED[2].target_joint[PUBLISHED[2].leaves].astype(float) - ends, 0)
    x = np.concatenate([point.phi[1:], point.stream[1:], short])
    assert frontier._excess(program, x) < 1e-9
    x[0] += 0.01
    y, z = np.zeros(len(program.inequalities)), np.zeros(len(program.equalities))
    with pytest.raises(CertificateError, match="row fails"):
        frontier._certified(program, 0.1, x, y, z, x, 1e-6, 0.0)


@pytest.mark.parametrize(("eps", "deviation"), [(-0.1, "block"), (1.5, "block"), (float("nan"), "block"), (0, "law")])
def test_arguments_out_of_range_are_refused(eps, deviation):
    with pytest.raises(ValueError, match="want"):
        frontier.optimum(PUBLISHED[1], eps, 1, deviation)
