"""Certificates: what is feasible and tight passes, everything else raises and says why."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from specbound.theory import duality, single_path
from specbound.theory.feasibility import (
    antichain_excess,
    chain_excess,
    coverage,
    draft_excess,
    hull_antichains,
    quotient,
    selected_mass,
    selection_excess,
    token_excess,
    transport_excess,
    worst_antichain,
)
from specbound.theory.modeling import all_antichains
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError, certify
from tests.support.reference import INSTANCES, ragged, small_trees
from tests.support.strategies import PUBLISHED

BLOCK = single_path.acceptance(PUBLISHED)


def certified(phi=BLOCK, bound=Fraction(11, 9), tree=PUBLISHED, **changes):
    return certify(tree, phi, bound, **{"objective": "lossless", "solver": "test", "seconds": 0.5, **changes})


# ---------------------------------------------------------------------- certify


def test_a_tight_exact_certificate_gives_the_fraction():
    solution = certified()
    assert (solution.exact, solution.value, solution.gap) == (Fraction(11, 9), 11 / 9, 0.0)
    assert (solution.solver, solution.seconds, solution.lossless) == ("test", 0.5, True)


def test_an_exact_certificate_with_a_gap_is_no_exact_optimum():
    solution = certified(bound=Fraction(11, 9) + Fraction(1, 10**9))
    assert solution.exact is None
    assert solution.gap == pytest.approx(1e-9, rel=1e-6)


def test_block_transport_is_not_a_lossless_verifier():
    phi = np.minimum(PUBLISHED.target_joint, PUBLISHED.draft_joint)
    assert not certified(phi, Fraction(4, 3), objective="block-transport").lossless
    with pytest.raises(CertificateError, match="phi fails the chain constraints"):
        certified(phi, Fraction(4, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bound": Fraction(12, 9)}, r"test: the gap 0.111 is above the tolerance 1e-06; allow more iterations"),
        ({"bound": Fraction(10, 9)}, "the bound 1.11111111111 is below the value 1.22222222222; the dual point is not"),
        ({"phi": BLOCK * 2}, "phi fails the chain constraints by"),
        ({"phi": -BLOCK}, "phi fails the chain constraints by"),
        ({"objective": "token"}, "phi fails the token constraints by"),
        ({"phi": PUBLISHED.target_joint, "bound": 2}, "phi fails the draft constraints by"),
        ({"phi": PUBLISHED.target_joint, "bound": 2, "paths": 2}, "phi fails the antichain constraints by"),
        (
            {
                "phi": PUBLISHED.target_joint,
                "bound": 2,
                "paths": 2,
                "kappa": PUBLISHED.target_joint[PUBLISHED.leaves],
            },
            "phi fails the selection constraints by",
        ),
        ({"phi": BLOCK + Fraction(1, 10**12)}, "phi fails the chain constraints by"),
        ({"phi": BLOCK.astype(float) * np.nan}, "phi or the bound is not finite"),
        ({"phi": BLOCK.astype(float), "bound": np.inf}, "phi or the bound is not finite"),
    ],
)
def test_what_cannot_be_certified_raises_with_the_figure_and_what_to_try(changes, message):
    with pytest.raises(CertificateError, match=message) as raised:
        certified(**changes)
    assert raised.value.solver == "test"
    assert str(raised.value) == f"test: {raised.value.status}; {raised.value.advice}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "best"}, "objective is 'best'; want 'token', 'lossless' or 'block-transport'"),
        ({"paths": 0}, "paths is 0; want a positive integer"),
        ({"paths": 1.5}, "paths is 1.5; want a positive integer"),
        ({"paths": True}, "paths is True; want a positive integer"),
        ({"tolerance": 0}, "tolerance is 0; want a positive number"),
        ({"phi": BLOCK.astype(complex)}, "phi has dtype complex128; want float64 or fractions"),
        ({"phi": BLOCK[:3]}, r"phi has shape \(3,\); want \(7,\), one entry per node"),
        ({"paths": 2, "kappa": BLOCK[:1]}, "kappa has 1 entries; want 4, one per node of depth L"),
    ],
)
def test_arguments_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        certified(**changes)


# ---------------------------------------------------------------------- feasibility


def random_phi(tree: PrefixTree, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    phi = np.minimum(1.0, tree.draft_joint * rng.uniform(0, 2.5, tree.size))
    return phi * (rng.random(tree.size) < 0.8)


def excess_of(tree, phi, paths, antichain):
    nodes = list(antichain)
    return phi[nodes].sum() - coverage(tree.draft_joint[nodes].sum(), paths)


@pytest.mark.parametrize("paths", [1, 2, 3])
def test_the_hull_finds_the_worst_antichain_of_all(paths):
    violated = 0
    for seed, tree in enumerate(small_trees(40)):
        if tree.size > 16:
            continue
        phi = random_phi(tree, seed)
        worst = max(0.0, *(excess_of(tree, phi, paths, antichain) for antichain in all_antichains(tree)))
        found = worst_antichain(tree, phi, paths)
        assert abs(found.excess - worst) < 1e-14
        assert antichain_excess(tree, phi, paths) == found.excess
        if found.nodes:
            violated += 1
            assert abs(excess_of(tree, phi, paths, found.nodes) - worst) < 1e-14
    assert violated > 10


def test_every_antichain_of_the_hull_is_an_antichain_with_its_excess():
    for seed in range(20):
        tree = ragged(seed)
        phi = random_phi(tree, seed)
        for found in hull_antichains(tree, phi, 2, above=1e-9):
            prefixes = [tree.prefix(node) for node in found.nodes]
            assert not any(a != b and b[: len(a)] == a for a, b in itertools.product(prefixes, repeat=2))
            assert abs(excess_of(tree, phi, 2, found.nodes) - found.excess) < 1e-14
            assert found.excess > 1e-9


def test_quotients_too_large_for_a_float_are_infinite():
    assert quotient(np.float64(0.0025), np.float64(5e-324)) == quotient(0.5, 0) == np.inf
    assert quotient(0, 0) == quotient(0, 5e-324) == 0
    assert quotient(Fraction(1, 3), Fraction(2, 3)) == Fraction(1, 2)
    tree = PrefixTree.iid([0.5, 0.5], [1.0, 5e-324], 2)
    assert worst_antichain(tree, single_path.optimum(tree).phi, 2).excess < 1e-12


def test_the_hull_is_exact_on_fractions():
    tree = INSTANCES["I5"]
    feasible = tree.target_joint * coverage(np.minimum(1, tree.draft_joint / tree.target_joint), 2)
    assert antichain_excess(tree, feasible, 2) == 0
    lifted = feasible.copy()
    lifted[1:4] = coverage(tree.draft_joint[1:4], 2)
    assert antichain_excess(tree, lifted, 2) == sum(lifted[1:4]) - 1


def test_a_prefix_that_is_never_drafted_cannot_be_accepted():
    tree = PrefixTree.iid([0.5, 0.5], [1.0, 0.0], 1)
    found = worst_antichain(tree, np.array([1.0, 0.0, 1e-6]), 5)
    assert (found.nodes, found.excess) == ((2,), 1e-6)


def test_the_selection_form_agrees_with_all_sets_of_leaves():
    rng = np.random.default_rng(3)
    for seed in range(20):
        tree = PrefixTree.random(2, 2, seed)
        kappa = rng.dirichlet(np.ones(4))
        drafted = tree.draft_joint[tree.leaves]
        sets = [list(chosen) for size in range(5) for chosen in itertools.combinations(range(4), size)]
        worst = max(kappa[chosen].sum() - coverage(drafted[chosen].sum(), 2) for chosen in sets)
        phi = single_path.acceptance(tree, selected_mass(tree, kappa))
        assert selection_excess(tree, phi, kappa, 2) == pytest.approx(max(worst, 0), abs=1e-14)
        phi[1] = selected_mass(tree, kappa)[1] + 0.25
        assert selection_excess(tree, phi, kappa, 2) == pytest.approx(max(worst, 0) + 0.25, abs=1e-14)


def test_each_family_of_constraints_measures_its_own_excess():
    tree, step = PUBLISHED, Fraction(1, 100)
    smaller = np.minimum(tree.target, tree.draft)
    token = smaller.copy()
    for level in tree.levels[1:]:
        token[level] *= token[tree.parent[level]]
    transport = np.minimum(tree.target_joint, tree.draft_joint)
    for excess, phi in (
        (token_excess, token),
        (chain_excess, BLOCK),
        (draft_excess, BLOCK),
        (transport_excess, transport),
    ):
        assert excess(tree, phi) == 0
        lifted = phi.copy()
        lifted[-1] = max(tree.target[-1] * phi[2], tree.draft_joint[-1], tree.target_joint[-1]) + step
        assert excess(tree, lifted) >= step
    for excess in (token_excess, chain_excess, transport_excess):
        lowered = BLOCK * 0
        assert excess(tree, lowered) == 1
        lowered[0], lowered[1] = 1, -step
        assert excess(tree, lowered) >= step


def test_children_cannot_be_kept_more_often_than_their_parent_in_a_coupling():
    phi = np.array([1, 0, Fraction(1, 3), Fraction(1, 9), 0, Fraction(2, 9), Fraction(1, 9)], dtype=object)
    assert transport_excess(PUBLISHED, phi) == Fraction(1, 9)
    phi[1] = Fraction(1, 9)
    assert transport_excess(PUBLISHED, phi) == 0
    phi[1] = Fraction(4, 9)
    assert transport_excess(PUBLISHED, phi) == Fraction(1, 9)


def test_coverage_keeps_its_digits_for_tiny_masses_and_its_exactness_for_fractions():
    assert coverage(1e-300, 3) == pytest.approx(3e-300, rel=1e-15)
    assert coverage(1.0 + 1e-15, 3) == 1.0
    assert coverage(Fraction(1, 3), 2) == Fraction(5, 9)
    assert coverage(np.array([0.0, 0.5]), 2).tolist() == [0.0, 0.75]


# ---------------------------------------------------------------------- duality


@pytest.mark.parametrize("paths", [1, 2, 3])
def test_any_prices_bound_every_feasible_phi(paths):
    rng = np.random.default_rng(1)
    for seed, tree in enumerate(small_trees(24)):
        price = rng.uniform(0, 1.5, tree.size)
        value = single_path.acceptance(tree)[1:].sum()
        assert duality.upper_bound(tree, paths, "lossless", price) >= value - 1e-12, seed
        transported = np.minimum(tree.target_joint, tree.draft_joint)[1:].sum()
        assert duality.upper_bound(tree, paths, "block-transport", price) >= transported - 1e-12, seed


def test_the_draft_cost_is_the_mean_of_the_largest_toll_over_all_tuples_of_drafts():
    rng = np.random.default_rng(2)
    for tree in (PrefixTree.random(2, 2, 4), ragged(5)):
        price = rng.uniform(0, 1, tree.size)
        leaves = np.arange(tree.size)[tree.leaves]
        toll = {}
        for leaf in leaves:
            node, toll[leaf] = leaf, 0.0
            while node > 0:
                toll[leaf] += price[node]
                node = tree.parent[node]
        law = tree.draft_joint
        mean = sum(law[a] * law[b] * max(toll[a], toll[b]) for a, b in itertools.product(leaves, repeat=2))
        assert duality.draft_cost(tree, price, 2) == pytest.approx(mean, rel=1e-13)
