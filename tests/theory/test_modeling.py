"""The CVXPY models: their examples run, their parts have names, and users can change the law and the constraints."""

from __future__ import annotations

import doctest

import cvxpy as cp
import numpy as np
import pytest

from specbound.theory import modeling
from specbound.theory.multi_path import antichain
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError
from tests.support.reference import INSTANCES, ragged

TREE = INSTANCES["I1"]


def test_the_examples_in_the_documentation_run():
    results = doctest.testmod(modeling)
    assert results.attempted >= 12
    assert results.failed == 0


def test_every_part_of_a_model_has_its_name():
    model = modeling.lossless(TREE, modeling.independent(TREE, 2))
    assert set(model.constraints) == {"root", "chain", "drafts", "selected"}
    assert set(model.variables) == {"phi", "select"}
    assert set(model.parameters) == {"target", "law"}
    transport = modeling.block_transport(TREE, modeling.independent(TREE, 2))
    assert set(transport.constraints) == {"root", "target", "flow", "drafts", "selected"}
    assert set(modeling.token_level(TREE).constraints) == {"root", "token"}


def test_parameters_can_be_changed_without_building_again():
    model = modeling.lossless(TREE, modeling.independent(TREE, 2))
    first = model.solve()
    model.parameters["target"].value = TREE.draft.astype(float)
    assert model.solve() == pytest.approx(2, abs=1e-9)
    model.parameters["target"].value = TREE.target.astype(float)
    biased = np.zeros(len(model.drafts.law))
    biased[0] = 1.0
    model.parameters["law"].value = biased
    assert model.solve() < first - 0.1
    assert model.bound() == pytest.approx(model.solve(), abs=1e-9)


def test_a_cap_on_whole_drafts_costs_acceptance_and_the_bound_stays_valid():
    model = modeling.lossless(TREE, modeling.independent(TREE, 2))
    best = model.solve()
    capped = model.with_constraints(full=cp.sum(model.variables["phi"][TREE.leaves]) <= 0.3)
    value = capped.solve()
    assert model.variables["phi"].value[TREE.leaves].sum() <= 0.3 + 1e-9
    assert value < best - 0.1
    assert capped.bound() >= value - 1e-9


@pytest.mark.parametrize("objective", ["lossless", "block-transport"])
def test_selected_form_and_antichain_form_agree_for_any_law_of_the_drafts(objective):
    rng = np.random.default_rng(6)
    build = modeling.lossless if objective == "lossless" else modeling.block_transport
    for tree in (PrefixTree.random(2, 2, 3), PrefixTree.random(3, 1, 3), ragged(8, 3, 2)):
        pairs = modeling.independent(tree, 2).drafts
        for drafts in (
            modeling.DraftSets(pairs, rng.dirichlet(np.full(len(pairs), 0.4))),
            modeling.independent(tree, 2),
        ):
            model = modeling.from_coverage(tree, lambda nodes, d=drafts, t=tree: d.coverage(t, nodes), objective)
            assert build(tree, drafts).solve() == pytest.approx(model.solve(), abs=1e-7)


def test_independent_drafts_give_the_optimum_of_independent_drafts():
    for paths in (1, 2, 3):
        model = modeling.lossless(TREE, modeling.independent(TREE, paths))
        assert model.solve() == pytest.approx(antichain.optimum(TREE, paths).value, abs=1e-8)


def test_draws_without_replacement_have_their_sequential_law():
    tree = INSTANCES["I4"]
    drafts = modeling.without_replacement(tree, 2)
    law = dict(zip(map(tuple, drafts.drafts.tolist()), drafts.law, strict=True))
    q = tree.draft[1:].astype(float)
    assert law[0, 1] == pytest.approx(q[0] * q[1] / (1 - q[0]))
    assert len(law) == 6
    assert sum(law.values()) == pytest.approx(1)
    assert modeling.lossless(tree, drafts).solve() > modeling.lossless(tree, modeling.independent(tree, 2)).solve()


def test_the_coverage_of_draft_sets_is_that_of_independent_drafts():
    drafts = modeling.independent(TREE, 3)
    for nodes in modeling.all_antichains(TREE):
        mass = float(TREE.draft_joint[list(nodes)].sum())
        assert drafts.coverage(TREE, nodes) == pytest.approx(1 - (1 - mass) ** 3, abs=1e-12)


def test_antichains_are_counted_right():
    # a full binary tree of depth 2: each half contributes its root or any set of its 2 leaves: 5 * 5 - 1
    assert len(modeling.all_antichains(TREE)) == 24
    with pytest.raises(ValueError, match="the tree has more than 50000 antichains"):
        modeling.all_antichains(PrefixTree.random(3, 3, 0))


def test_impossible_constraints_raise_with_the_status():
    model = modeling.lossless(TREE, modeling.independent(TREE, 2))
    with pytest.raises(CertificateError, match="CVXPY: status infeasible; check the constraints you added"):
        model.with_constraints(never=model.variables["phi"][1] >= 0.9).solve()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: modeling.DraftSets(np.array([0, 1]), np.array([0.5, 0.5])), r"drafts has shape \(2,\)"),
        (lambda: modeling.DraftSets(np.array([[0], [1]]), np.array([0.5, 0.6])), "sums to 1.1; want a law"),
        (lambda: modeling.without_replacement(TREE, 5), "paths is 5, but only 4 different drafts are possible"),
        (lambda: modeling.independent(TREE, 0), "paths is 0; want a positive integer"),
        (lambda: modeling.token_level(TREE).bound(), "this model has no constraint 'selected'"),
        (
            lambda: modeling.token_level(TREE).with_constraints(root=cp.Variable() <= 1),
            "constraint 'root' exists already; choose another name",
        ),
        (lambda: modeling.from_coverage(TREE, lambda nodes: 1.0, "best"), "objective is 'best'; want 'lossless'"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
