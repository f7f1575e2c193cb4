"""Multi-path optima of small trees: brute force, antichain rows, POT and CVXPY agree; reference values as fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy import sparse

from specbound.theory import block_transport, duality, linear_program, modeling, single_path
from specbound.theory.feasibility import worst_antichain
from specbound.theory.multi_path import antichain, coupling
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError
from tests.support.reference import DEGENERATE, INSTANCES, iid, small_trees

LOSSLESS = {
    2: dict(zip(INSTANCES, ["131/81", "1621/729", "2", "11/12", "79/48", "47/32", "13861/7500"], strict=True)),
    3: dict(zip(INSTANCES, ["1351/729", "5669/2187", "2", "1", "1085/576", "425/256", "1963/1000"], strict=True)),
}
TRANSPORT = {
    2: dict(zip(INSTANCES, ["134/81", "1708/729", "2", "11/12", "239/144", "47/32", "37/20"], strict=True)),
    3: dict(zip(INSTANCES, ["1351/729", "5776/2187", "2", "1", "1085/576", "425/256", "1963/1000"], strict=True)),
}
CASES = [(name, paths) for paths in (2, 3) for name in INSTANCES]

# (target, draft, length, paths): lossless optimum, block transport optimum; from the notes on SpecTr-GBV.
PAIRS = {
    ("9/10 1/10", "1/2 1/2", 1, 2): ("17/20", "17/20"),
    ("9/10 1/10", "1/2 1/2", 1, 3): ("39/40", "39/40"),
    ("3/4 1/4", "1/2 1/2", 1, 2): ("1", "1"),
    ("1/3 2/3", "2/3 1/3", 1, 2): ("8/9", "8/9"),
    ("1/4 3/4", "3/4 1/4", 1, 2): ("11/16", "11/16"),
    ("1/2 3/8 1/8", "1/4 1/4 1/2", 1, 2): ("7/8", "7/8"),
    ("1/3 2/3", "2/3 1/3", 2, 1): ("11/9", "4/3"),
    ("1/3 2/3", "2/3 1/3", 3, 1): ("5/3", "50/27"),
    ("1/3 2/3", "2/3 1/3", 3, 3): ("5669/2187", "5776/2187"),
    ("3/4 1/4", "1/2 1/2", 2, 1): ("11/8", "23/16"),
    ("3/4 1/4", "1/2 1/2", 2, 2): ("15/8", "15/8"),
    ("3/4 1/4", "1/2 1/2", 2, 3): ("2", "2"),
    ("3/4 1/4", "1/2 1/2", 3, 2): ("21/8", "85/32"),
}
# (V, L, K, seed): lossless, block transport; certified values of the notes on the solver, 8 digits.
RANDOM = {
    (2, 2, 2, 1): (1.19087645, 1.19087645),
    (2, 2, 2, 2): (1.53230822, 1.60602921),
    (2, 2, 3, 1): (1.23101959, 1.23101959),
    (2, 2, 3, 2): (1.79538390, 1.85136970),
    (3, 2, 2, 1): (1.15460343, 1.17133739),
    (3, 2, 2, 2): (1.47393184, 1.50224656),
    (3, 2, 3, 1): (1.18440231, 1.20934088),
    (3, 2, 3, 2): (1.606592485, 1.63022135),
    (2, 3, 2, 1): (1.84264394, 1.84857785),
    (2, 3, 2, 2): (2.56528791, 2.56528791),
    (2, 3, 3, 1): (1.87381334, 1.88023070),
    (2, 3, 3, 2): (2.62396996, 2.62396996),
    (2, 4, 2, 1): (0.99873074, 1.00514398),
    (2, 4, 2, 2): (3.04277815, 3.05032197),
    (2, 4, 3, 1): (1.12929681, 1.13595004),
    (2, 4, 3, 2): (3.05801397, 3.06928376),
    (4, 2, 2, 1): (1.26915567, 1.26915567),
    (4, 2, 2, 2): (1.27340695, 1.33620839),
    (4, 2, 3, 1): (1.31257358, 1.31257358),
    (4, 2, 3, 2): (1.54860712, 1.56208532),
    (4, 3, 2, 1): (1.57988568, 1.58883942),
    (4, 3, 2, 2): (0.21881583, 0.24521397),
    (4, 3, 3, 1): (1.66406744, 1.67379557),
    (4, 3, 3, 2): (0.23891238, 0.27522413),
}


@pytest.mark.parametrize(("name", "paths"), CASES)
@pytest.mark.parametrize(("objective", "values"), [("lossless", LOSSLESS), ("block-transport", TRANSPORT)])
def test_reference_optima_are_reproduced_as_fractions_with_gap_zero(name, paths, objective, values):
    solution = antichain.optimum(INSTANCES[name], paths, objective)
    assert solution.exact == Fraction(values[paths][name])
    assert solution.gap == 0


@pytest.mark.parametrize(("case", "values"), PAIRS.items())
def test_optima_of_the_pairs_of_laws_are_reproduced_as_fractions(case, values):
    target, draft, length, paths = case
    tree = iid(target, draft, length)
    found = [antichain.optimum(tree, paths, objective).exact for objective in ("lossless", "block-transport")]
    assert found == [Fraction(value) for value in values]


@pytest.mark.parametrize(("case", "values"), RANDOM.items())
def test_optima_of_random_instances_are_reproduced(case, values):
    vocab, length, paths, seed = case
    tree = PrefixTree.random(vocab, length, seed)
    for objective, value in zip(("lossless", "block-transport"), values, strict=True):
        assert antichain.optimum(tree, paths, objective).value == pytest.approx(value, abs=2.1e-8)


@pytest.mark.parametrize("seed", range(40))
def test_brute_force_and_antichain_rows_agree(seed):
    tree, paths = small_trees(40)[seed], 1 + seed % 3
    brute = coupling.optimum(tree, paths)
    rows = antichain.optimum(tree, paths)
    assert abs(brute.value - rows.value) < 1e-7
    assert brute.gap < 1e-6
    pot = block_transport.pot_optimum(tree, paths)
    assert abs(pot.value - antichain.optimum(tree, paths, "block-transport").value) < 1e-7
    assert pot.value >= rows.value - 1e-7


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("paths", [2, 64])
def test_degenerate_instances_are_certified(name, paths):
    tree = DEGENERATE[name]
    lossless = antichain.optimum(tree, paths)
    transport = antichain.optimum(tree, paths, "block-transport")
    assert single_path.optimum(tree).value - 1e-7 <= lossless.value <= transport.value + 1e-7 <= tree.length + 1e-7
    if name == "disjoint supports":
        assert transport.exact == 0
    if name in ("identical models", "one child", "one-hot both"):
        assert lossless.exact == tree.length
    if paths == 2:
        assert abs(coupling.optimum(tree, paths).value - lossless.value) < 1e-7


def test_an_optimum_whose_denominators_are_too_large_to_guess_is_certified_in_floats():
    tree = iid("97/1009 912/1009", "653/991 338/991", 3)
    solution = antichain.optimum(tree, 2)
    assert solution.exact is None
    assert solution.gap < 1e-7
    assert solution.value == pytest.approx(antichain.optimum(tree.as_float(), 2).value, abs=1e-9)


def test_one_path_gives_back_the_closed_forms():
    for tree in INSTANCES.values():
        assert antichain.optimum(tree, 1).exact == single_path.optimum(tree).exact
        assert antichain.optimum(tree, 1, "block-transport").exact == block_transport.optimum(tree).exact
        assert coupling.optimum(tree, 1).value == pytest.approx(single_path.optimum(tree).value, abs=1e-9)


def test_cvxpy_reaches_the_same_optima_and_bounds():
    for name, paths in CASES:
        tree = INSTANCES[name]
        for build, values in ((modeling.lossless, LOSSLESS), (modeling.block_transport, TRANSPORT)):
            model = build(tree, modeling.independent(tree, paths))
            assert model.solve() == pytest.approx(float(Fraction(values[paths][name])), abs=1e-7)
            assert model.bound() == pytest.approx(float(Fraction(values[paths][name])), abs=1e-7)


def test_single_nodes_and_levels_are_not_enough_rows():
    tree = INSTANCES["I5"].as_float()
    cuts = antichain.Cuts([(node,) for node in range(1, tree.size)], np.array([1.0]))
    phi, price = antichain.solve(tree, 2, "lossless", cuts)
    assert phi[1:].sum() > float(Fraction(LOSSLESS[2]["I5"])) + 1e-3
    assert worst_antichain(tree, phi, 2).excess > 1e-3
    assert duality.upper_bound(tree, 2, "lossless", price) >= float(Fraction(LOSSLESS[2]["I5"])) - 1e-12


def test_a_round_limit_that_is_too_small_raises(monkeypatch):
    monkeypatch.setattr(antichain, "MAX_ROUNDS", 1)
    with pytest.raises(CertificateError, match=r"HiGHS, antichain rows: the gap .* is above the tolerance 1e-07"):
        antichain.optimum(PrefixTree.random(3, 3, 1), 2)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="objective is 'token'; want 'lossless' or 'block-transport'"):
        antichain.optimum(INSTANCES["I1"], 2, "token")
    with pytest.raises(ValueError, match="paths is -1; want a positive integer"):
        antichain.optimum(INSTANCES["I1"], -1)
    with pytest.raises(ValueError, match="lower paths, vocab or length"):
        coupling.optimum(PrefixTree.random(3, 3, 0), 4)


@pytest.mark.parametrize(("sign", "message"), [(1.0, "status 2: The problem is infeasible"), (-1.0, "status 3")])
def test_highs_giving_up_raises_with_its_status(sign, message):
    rows = linear_program.Rows(sparse.csr_array([[sign]]), np.array([-1.0]))
    with pytest.raises(CertificateError, match=f"HiGHS: {message}"):
        linear_program.maximise(np.array([1.0]), {"impossible or unlimited": rows})
