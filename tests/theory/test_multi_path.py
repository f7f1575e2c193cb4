"""The multi-path optima: reference tables, independent routes, degenerate instances, and the interior point itself."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from specbound.theory import single_step
from specbound.theory.feasibility import worst_antichain
from specbound.theory.multi_path import antichain, coupling, interior_point
from specbound.theory.multi_path.certificates import verify_certificate
from specbound.theory.multi_path.solver import (
    Profile,
    Progress,
    lossless_optimum,
    tangents_at,
    transport_optimum,
    work_tree,
)
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError
from tests.support.reference import DEGENERATE, INSTANCES, ragged
from tests.support.second_routes import transport_by_lp
from tests.support.tangent_lp import tangent_optimum

SOLVERS = {"lossless": lossless_optimum, "block-transport": transport_optimum}

# V, L, K, seed: lossless, block transport; certified by a prototype of this method and an independent LP
REFERENCE = {
    (2, 2, 2, 1): (1.19087645, 1.19087645),
    (2, 2, 2, 2): (1.53230822, 1.60602921),
    (2, 2, 3, 2): (1.79538390, 1.85136970),
    (3, 2, 2, 1): (1.15460343, 1.17133739),
    (3, 2, 3, 2): (1.606592485, 1.63022135),
    (2, 3, 2, 1): (1.84264394, 1.84857785),
    (2, 3, 3, 2): (2.62396996, 2.62396996),
    (2, 4, 2, 1): (0.99873074, 1.005143985),
    (2, 4, 3, 2): (3.058013975, 3.06928376),
    (4, 2, 2, 1): (1.269155675, 1.26915567),
    (4, 2, 3, 2): (1.548607125, 1.56208532),
    (4, 3, 2, 1): (1.57988568, 1.58883942),
    (4, 3, 3, 2): (0.238912385, 0.27522413),
    (8, 3, 2, 1): (1.248918465, 1.37715143),
    (8, 3, 3, 1): (1.52000193, 1.613061035),
    (8, 3, 3, 2): (0.831414745, 0.93829105),
    (100, 1, 4, 1): (0.46803996, 0.46803996),
    (8, 3, 16, 1): (2.23889032, 2.24902891),
    (4, 4, 5, 3): (1.622820, 1.678420),
    (3, 6, 3, 5): (1.082335, 1.274631),
    (5, 5, 2, 2): (1.154289, 1.171809),
}
# V, K: seed 1, L; certified intervals of the prototype
MIDDLE = {(2, 10, 3): (2.26536776, 2.26536797), (8, 4, 3): (1.59157453, 1.59157477)}


def test_tangent_windows_in_the_wrong_place_are_moved_instead_of_adding_tangents(monkeypatch):
    monkeypatch.setattr("specbound.theory.multi_path.solver.WIDTH", 2)
    rounds = []
    solution = lossless_optimum(PrefixTree.random(8, 3, 1), 3, progress=rounds.append)
    tangents = [each.tangents for each in rounds]
    assert solution.gap <= 1e-6
    assert solution.value - 1e-7 <= 1.52000193 <= solution.bound + 1e-7
    assert any(now == after for now, after in pairwise(tangents))


def test_the_excess_over_a_tangent_is_the_mass_above_its_line():
    work = work_tree(PrefixTree.iid([0.5, 0.5], [0.25, 0.75], 1), 2, "lossless", 1e-6)
    tangents = tangents_at(np.array([0.5, 1.0]), 2)  # slopes 1 and 0, heights 1/4 and 1
    profile = Profile.of(work, np.array([0.6, 0.3]))
    assert profile.excess(tangents) == pytest.approx(0.6 - 0.25 - 0.25, abs=1e-15)
    assert Profile.of(work, np.array([0.5, 0.3])).excess(tangents) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: "V{} L{} K{} seed{}".format(*case))
def test_the_reference_table_is_reproduced(case):
    vocab, length, paths, seed = case
    tree = PrefixTree.random(vocab, length, seed)
    digits = 2e-8 if case[:3] not in {(4, 4, 5), (3, 6, 3), (5, 5, 2)} else 6e-7
    for solver, expected in zip(SOLVERS.values(), REFERENCE[case], strict=True):
        solution = solver(tree, paths)
        assert solution.value - digits <= expected <= solution.bound + digits
        assert solution.gap <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", MIDDLE, ids=lambda case: "V{} L{} K{}".format(*case))
def test_thousands_of_nodes_are_solved_to_the_certified_intervals(case):
    vocab, length, paths = case
    solution = lossless_optimum(PrefixTree.random(vocab, length, 1), paths)
    low, high = MIDDLE[case]
    assert solution.gap <= 1e-6
    assert solution.value <= high + 1e-8
    assert solution.bound >= low - 1e-8


@pytest.mark.parametrize(("length", "paths", "value"), [(6, 2, 3.575805), (6, 3, 4.214340), (8, 2, 4.216404)])
def test_iid_values_are_reproduced(length, paths, value):
    solution = lossless_optimum(PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], length), paths)
    assert solution.value - 1e-6 <= value <= solution.bound + 1e-6


@pytest.mark.parametrize(
    ("name", "paths", "lossless", "transport"),
    [
        ("I1", 2, "131/81", "134/81"),
        ("I1", 3, "1351/729", "1351/729"),
        ("I5", 2, "79/48", "239/144"),
        ("I4", 3, "1", "1"),
        ("I6", 2, "47/32", "47/32"),
        ("I7", 2, "13861/7500", "37/20"),
        ("I7", 3, "1963/1000", "1963/1000"),
        ("I3", 2, "2", "2"),
        ("I2", 3, "5669/2187", "5776/2187"),
    ],
)
def test_exact_fractions_lie_between_the_bounds(name, paths, lossless, transport):
    for solver, expected in ((lossless_optimum, lossless), (transport_optimum, transport)):
        solution = solver(INSTANCES[name], paths, tol=1e-8)
        assert solution.value - 1e-12 <= float(Fraction(expected)) <= solution.bound + 1e-12


@pytest.mark.parametrize("paths", [1, 2, 3])
def test_all_routes_agree_to_1e_7(paths):
    shapes = [(2, 1), (3, 1), (2, 2)]
    for seed in range(8):
        tree = PrefixTree.random(*shapes[seed % 3], seed, concentration=(0.3, 1.0)[seed % 2])
        for objective, solver in SOLVERS.items():
            solution = solver(tree, paths, tol=2e-8)
            others = {"antichain": antichain.optimum(tree, paths, objective)}
            others["tangents"] = tangent_optimum(tree, paths, objective, tol=2e-8)
            brute = coupling.optimum if objective == "lossless" else transport_by_lp
            others["brute force"] = brute(tree, paths)
            for name, other in others.items():
                assert abs(other.value - solution.value) <= 1e-7, (name, objective, seed)


@pytest.mark.parametrize("seed", range(6))
def test_ragged_trees_agree_with_the_antichain_form(seed):
    tree = ragged(seed)
    for objective, solver in SOLVERS.items():
        for paths in (2, 3):
            solution = solver(tree, paths, tol=2e-8)
            assert abs(antichain.optimum(tree, paths, objective).value - solution.value) <= 1e-7
            assert worst_antichain(tree, solution.phi, paths).excess <= 1e-12


@pytest.mark.parametrize("paths", [1, 2, 64])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_instances_are_certified(name, paths):
    tree = DEGENERATE[name]
    for objective, solver in SOLVERS.items():
        solution = solver(tree, paths)
        assert solution.gap <= 1e-6
        if name == "disjoint supports":
            assert solution.bound <= 1e-6
        if name == "identical models":
            assert solution.value >= tree.length - 1e-6
        again = verify_certificate(tree, paths, solution.kappa, solution.potential, objective)
        assert (again.value, again.bound) == pytest.approx((solution.value, solution.bound), abs=1e-12)


@pytest.mark.parametrize("paths", [2, 8, 64])
def test_sparse_and_sharp_random_instances_are_certified(paths):
    for seed in range(4):
        vocab, length, concentration = [(2, 4, 0.1), (5, 3, 0.5), (12, 2, 0.05), (3, 4, 2.0)][seed]
        tree = PrefixTree.random(vocab, length, seed, concentration)
        for solver in SOLVERS.values():
            assert solver(tree, paths).gap <= 1e-6


def test_probabilities_of_1e_300_do_not_matter():
    tiny = PrefixTree.iid([1e-300, 0.4, 0.6], [0.5, 1e-300, 0.5], 3)
    zero = PrefixTree.iid([0.0, 0.4, 0.6], [0.5, 0.0, 0.5], 3)
    for solver in SOLVERS.values():
        assert solver(tiny, 3).value == pytest.approx(solver(zero, 3).value, abs=2e-6)


def test_one_path_is_block_verification_in_closed_form():
    solution = lossless_optimum(INSTANCES["I1"], 1)
    assert solution.value == pytest.approx(11 / 9, abs=1e-15)
    assert solution.gap <= 1e-15
    assert transport_optimum(INSTANCES["I1"], 1).value == pytest.approx(12 / 9, abs=1e-15)


def test_more_paths_never_lower_either_optimum_and_transport_is_at_least_lossless():
    tree = PrefixTree.random(3, 3, 7)
    values = np.array([[solver(tree, paths).value for solver in SOLVERS.values()] for paths in (1, 2, 3, 5)])
    assert (np.diff(values, axis=0) > 1e-3).all()
    assert (values[:, 1] >= values[:, 0] - 1e-6).all()


def test_too_few_rounds_raise_with_how_close_it_came():
    with pytest.raises(CertificateError, match=r"apart.*raise max_rounds"):
        lossless_optimum(PrefixTree.random(8, 3, 1), 3, max_rounds=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": 0}, "paths is 0"),
        ({"paths": 1.5}, "paths is 1.5"),
        ({"paths": 2, "tol": 0}, "tol is 0"),
        ({"paths": 2, "tol": float("nan")}, "tol is nan"),
        ({"paths": 2, "max_rounds": 0}, "max_rounds is 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        lossless_optimum(INSTANCES["I1"], **arguments)


def test_progress_reports_bounds_that_only_tighten():
    rounds: list[Progress] = []
    solution = lossless_optimum(PrefixTree.random(4, 3, 1), 3, progress=rounds.append)
    values, bounds = [r.value for r in rounds], [r.bound for r in rounds]
    assert values == sorted(values)
    assert bounds == sorted(bounds, reverse=True)
    assert (solution.value, solution.bound) == pytest.approx((values[-1], bounds[-1]), abs=1e-12)


# ---------------------------------------------------------------------- the interior point


def one_step(objective: str, width: int, spoil: bool = False) -> dict[str, float]:
    """Largest error of each linearised equation of a Newton step at a random start."""
    tree = PrefixTree.random(3, 3, 1)
    work = work_tree(tree, 3, objective, 1e-6)
    tangents = tangents_at(np.array([0.03, 0.1, 0.25, 0.4, 0.65, 1.0]), 3)
    rng = np.random.default_rng(0)
    layout = interior_point.plan(work, tangents, rng.uniform(0, 3, len(work.leaves)), width)
    point = interior_point.start(layout, interior_point.Guess(work.draft, 0.7))
    residual = interior_point.leaf_residual(layout, point)
    sides = interior_point.Sides.empty(point, residual)
    interior_point._aim_at(sides, point, interior_point.path_weights(layout), 0.3)
    newton = interior_point.eliminate(layout, point)
    if spoil:
        for pivots in newton.leaves:
            pivots.pull[:] *= 1.001
    step = interior_point.newton_step(newton, sides)
    pairs = zip(interior_point._pairs(point), interior_point._pairs(step), interior_point._targets(sides), strict=True)
    errors = {"products": max(np.abs(x * dy + y * dx - side).max() for (x, y), (dx, dy), side in pairs)}
    mass, balance = np.zeros(len(work.parent)), step.D + step.Z
    mass[work.leaves[layout.order]] = step.kappa
    for level in reversed(work.levels[1:]):
        mass += np.bincount(work.parent[level], mass[level], minlength=len(mass))
        balance -= np.bincount(work.parent[level], work.p[level] * step.D[level], minlength=len(mass))
    errors["m = kappa - phi"] = np.abs(step.m - mass + step.phi)[1:].max()
    errors["D + Z - sum p D = 1"] = np.abs(balance[1:]).max()
    totals = step.spare.copy()
    for part in layout.parts:
        window = slice(part.first, part.first + layout.width)
        totals[window] += step.v[:, part.leaves].sum(1)
        totals[window.stop :] += step.kappa[part.leaves].sum()
    errors["sum v = h"] = np.abs(totals).max()
    errors["s = lam Q + v - kappa"] = np.abs(step.s - step.v + step.kappa).max()
    point.move(step, 1.0, 1.0)
    errors["C = sum z"] = np.abs(interior_point.leaf_residual(layout, point)).max()
    return errors


@pytest.mark.parametrize("width", [6, 2])
@pytest.mark.parametrize("objective", SOLVERS)
def test_a_newton_step_solves_every_linearised_equation(objective, width):
    assert max(one_step(objective, width).values()) <= 1e-10
    assert max(one_step(objective, width, spoil=True).values()) > 1e-6


def test_windows_change_the_work_and_not_the_answer(monkeypatch):
    tree = PrefixTree.random(8, 3, 2)
    narrow = lossless_optimum(tree, 3)
    monkeypatch.setattr("specbound.theory.multi_path.solver.WIDTH", 1000)
    wide = lossless_optimum(tree, 3)
    assert narrow.value <= wide.bound
    assert wide.value <= narrow.bound


def test_a_million_paths_are_certified_where_hardly_drafted_tokens_matter():
    tree = PrefixTree.iid([0.98, 0.02 - 1e-12, 1e-12], [0.35, 2e-10, 0.65 - 2e-10], 1)
    for solve in SOLVERS.values():
        assert solve(tree, 10**6).gap <= 1e-6
    assert lossless_optimum(tree, 10**6).value == pytest.approx(optimal_step(tree, 10**6), abs=2e-6)


def optimal_step(tree, paths):
    return single_step.optimum(tree.target[1:], tree.draft[1:], paths).value


def test_the_numbers_in_the_code_are_those_of_the_page():
    page, code = Path("docs/interior-point.md").read_text(), Path(interior_point.__file__).read_text()
    numbers = re.compile(r"\(([NLVBE]\d)\)")
    defined = set(re.findall(r"^\(([NLVBE]\d)\)", page, re.MULTILINE))
    assert {*numbers.findall(code)} <= defined
    assert defined - {*numbers.findall(code)} <= {"N6", "L8"}
