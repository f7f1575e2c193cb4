"""Lossy rules: what each declares, its exact law, and the budget that one of them keeps."""

from __future__ import annotations

import pytest
import torch

from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get
from specbound.runtime.verifiers.budgeted import budgeted
from specbound.runtime.verifiers.lossy_tokens import ensemble, forgiving, lenient, relaxed
from specbound.theory import budgeted as theory
from specbound.theory import frontier
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES, small_trees
from tests.support.strategies import edge_trees

RULES = [
    "cactus",
    "cascade",
    "ensemble",
    "entropy",
    "forgiving",
    "fuzzy",
    "lenient",
    "relaxed",
    "top-cascade",
    "typical",
]
TREES = {**INSTANCES, **DEGENERATE, **edge_trees(), **{f"random {i}": tree for i, tree in enumerate(small_trees(12))}}


@pytest.mark.parametrize("eps", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("label", TREES)
def test_the_budget_is_kept_and_the_value_is_the_one_of_theory(label, eps):
    tree = TREES[label].as_float()
    law, (phi, stream) = exact_law(budgeted(eps), tree), theory.acceptance(tree, eps)
    assert abs(law.mass - 1) < 1e-12
    assert law.total_variation(tree.target_law()) <= eps + 1e-12
    assert abs(law.total_variation(tree.target_law()) - frontier.block_deviation(tree, stream)) < 1e-12
    assert abs(law.acceptance_length - phi[1:].sum()) < 1e-12


def test_a_rule_that_spends_its_budget_twice_exceeds_it():
    tree = INSTANCES["I1"].as_float()
    assert exact_law(budgeted(2 * 0.1), tree).total_variation(tree.target_law()) > 0.1 + 1e-3


def block_law(tree, weight):
    """Law of blocks of tokens drawn from weight p + (1 - weight) q, the last one from p."""
    mixed = PrefixTree(
        tree.vocab,
        tree.length,
        tree.parent,
        tree.token,
        weight * tree.target + (1 - weight) * tree.draft,
        tree.draft,
        tree.bonus,
    )
    return mixed.target_law()


def test_one_token_of_the_ensemble_has_the_mixed_law():
    for seed in range(4):
        tree = PrefixTree.random(3, 1, seed)
        law = exact_law(ensemble(0.7), tree)
        assert law.total_variation(block_law(tree, 0.7)) < 1e-12
        assert law.total_variation(tree.target_law()) > 1e-3


@pytest.mark.parametrize("name", [*RULES, "budgeted", "hsd", "mjsd"])
def test_every_lossy_rule_stays_below_the_frontier_at_its_deviation(name):
    for tree in [*small_trees(5), INSTANCES["I1"]]:
        tree = tree.as_float()
        law = exact_law(name, tree)
        allowed = min(1.0, law.total_variation(tree.target_law()) + 1e-12)
        assert law.acceptance_length <= frontier.optimum(tree, allowed).bound + 1e-8


@pytest.mark.parametrize(("length", "kept", "distance"), [(2, 4 / 3, 1 / 9), (3, 16 / 9, 5 / 81)])
def test_hsd_as_published_in_code_keeps_and_deviates_as_counted_by_hand(length, kept, distance):
    tree = PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], length)
    law = exact_law("hsd", tree)
    assert abs(law.acceptance_length - kept) < 1e-12
    assert abs(law.total_variation(tree.target_law()) - distance) < 1e-12


def test_strict_settings_are_token_verification():
    for tree in small_trees(4):
        wanted = exact_law("token", tree)
        for verifier in (ensemble(1.0), lenient(0.0), forgiving(doubt=10.0)):
            assert exact_law(verifier, tree).kept == pytest.approx(wanted.kept, abs=1e-12)


def test_relaxed_keeps_exactly_the_tokens_near_the_best():
    row = torch.tensor([0.5, 0.4, 0.1])
    batch = Batch(torch.tensor([[[0]], [[1]], [[2]]]), row.expand(3, 1, 1, 3), row.expand(3, 1, 2, 3))
    assert relaxed(0.2, 0)(batch, Draws()).accepted.tolist() == [1, 1, 0]
    assert relaxed(0.0, 3)(batch, Draws()).accepted.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", [*RULES, "budgeted"])
def test_settings_are_options_of_the_registry_and_checked(name):
    entry = get(name)
    assert not entry.lossless
    for option in entry.options:
        with pytest.raises(ValueError, match=f"{option} is -1"):
            entry.configured(**{option: -1})
