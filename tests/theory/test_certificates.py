"""Certificates of the multi-path optima: each exact evaluator against brute force, and tampered witnesses."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from specbound.theory.duality import (
    chain_bound,
    expected_maximum,
    increments,
    kept_mass,
    path_sums,
    transport_bound,
    upper_bound,
)
from specbound.theory.feasibility import coverage
from specbound.theory.multi_path import certificates, lossless_optimum
from specbound.theory.multi_path.certificates import (
    certificate_from_json,
    certificate_to_json,
    fill_to_base,
    monotone,
    selectable,
    verify_certificate,
)
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError
from tests.support.reference import ragged

OBJECTIVES = ["lossless", "block-transport"]


def worst_set(kappa: np.ndarray, draft: np.ndarray, paths: int) -> float:
    """max over all 2^m leaf sets of kappa(S) - g(Q(S)), by enumeration."""
    sets = np.array(list(itertools.product([0, 1], repeat=len(kappa))))
    return float((sets @ kappa - coverage(np.minimum(sets @ draft, 1.0), paths)).max())


def random_law(seed: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(size, 0.3)), rng.dirichlet(np.full(size, 0.3))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("paths", [1, 2, 5, 64])
def test_profile_truncation_makes_any_law_selectable(seed, paths):
    kappa, draft = random_law(seed)
    repaired = selectable(kappa, draft, paths)
    assert worst_set(repaired, draft, paths) <= 1e-14
    assert (repaired >= 0).all()
    assert worst_set(kappa, draft, paths) > 1e-3 or np.allclose(repaired, kappa, atol=1e-3)
    np.testing.assert_allclose(selectable(repaired, draft, paths), repaired, atol=1e-15)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("paths", [2, 5])
def test_filling_up_reaches_mass_one_without_leaving_the_polymatroid(seed, paths):
    kappa, draft = random_law(seed)
    lower = selectable(0.7 * kappa, draft, paths)
    full = fill_to_base(lower, draft, paths)
    assert full.sum() == pytest.approx(1.0, abs=1e-15)
    assert (full >= lower - 1e-15).all()
    assert worst_set(full, draft, paths) <= 1e-14
    # the broken twin, spreading the missing mass evenly, leaves the polymatroid on some instance
    even = lower + (1 - lower.sum()) / len(lower)
    assert seed or worst_set(even, draft, paths) > 1e-3


def test_filling_up_survives_quotients_too_large_for_a_float():
    for kappa in ([0.0, 1e-300, 0.5], [5e-324, 0.3, 0.0], [1e300, 0.0, 0.0]):
        filled = fill_to_base(np.array(kappa), np.array([5e-324, 1e-300, 1.0]), 10**6)
        assert filled.sum() == pytest.approx(1, abs=1e-12)
        assert (filled >= 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_expected_maximum_is_the_sum_over_all_tuples_of_drafts(seed):
    rng = np.random.default_rng(seed)
    draft, potential = rng.dirichlet(np.full(4, 0.5)), rng.integers(0, 3, 4) + rng.choice([0.0, 0.25], 4)
    for paths in (1, 2, 3):
        tuples = itertools.product(range(4), repeat=paths)
        expected = sum(np.prod(draft[list(x)]) * potential[list(x)].max() for x in tuples)
        assert expected_maximum(potential, draft, paths) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("seed", range(6))
def test_both_gains_are_those_of_the_best_rule_among_all(seed):
    tree = PrefixTree.random(2, 2, seed)
    potential = monotone(tree, np.random.default_rng(seed).uniform(0, 2, tree.size))
    reward = tree.depth - potential
    blocks = [(0, 1, 3), (0, 1, 4), (0, 2, 5), (0, 2, 6)]  # nodes of the two-token blocks of this tree
    chance = [tree.target_joint[path[-1]] for path in blocks]
    stops = []
    for taken in itertools.product([0, 1], repeat=6):  # which edges the rule goes along, seeing the token on them
        last = [path[0] if not taken[path[1] - 1] else path[1 + taken[path[2] - 1]] for path in blocks]
        stops.append(sum(c * reward[w] for c, w in zip(chance, last, strict=True)))
    hindsight = sum(c * max(reward[w] for w in path) for c, path in zip(chance, blocks, strict=True))
    assert chain_bound(tree, increments(tree, potential)) == pytest.approx(max(stops), abs=1e-14)
    assert transport_bound(tree, increments(tree, potential)) == pytest.approx(hindsight, abs=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("paths", [1, 2, 4])
def test_no_law_beats_any_potential(objective, paths):
    for seed in range(40):
        tree = ragged(seed) if seed % 2 else PrefixTree.random(3, 2, seed)
        rng = np.random.default_rng(seed)
        kappa, potential = rng.dirichlet(np.full(len(tree.bonus), 0.2)), rng.uniform(0, 1, tree.size) * tree.depth
        found = verify_certificate(tree, paths, kappa, potential, objective)
        assert found.value <= found.bound + 1e-12


def test_a_potential_priced_with_too_few_drafts_is_no_bound():
    tree = PrefixTree.random(3, 2, 1)
    solution = lossless_optimum(tree, 3)
    price = increments(tree, solution.potential)
    np.testing.assert_allclose(path_sums(tree, price), solution.potential, atol=1e-14)
    assert upper_bound(tree, 3, "lossless", price) >= solution.value
    assert upper_bound(tree, 2, "lossless", price) < solution.value - 1e-3


def test_a_certificate_survives_the_way_through_a_file_and_tampering_does_not():
    tree = PrefixTree.random(3, 2, 1)
    solution = lossless_optimum(tree, 2)
    certificate = verify_certificate(tree, 2, solution.kappa, solution.potential, "lossless")
    assert certificate.value == pytest.approx(solution.value, abs=1e-12)
    assert certificate.bound == pytest.approx(solution.bound, abs=1e-12)
    text = certificate_to_json(tree, certificate)
    again, read = certificate_from_json(text)
    assert (read.value, read.bound) == (certificate.value, certificate.bound)
    assert again.to_json() == tree.to_json()
    for field, change in (("value", 1e-3), ("bound", -1e-3)):
        data = json.loads(text)
        data[field] += change
        with pytest.raises(CertificateError, match=field):
            certificate_from_json(data)
    data = json.loads(text)
    data["kappa"] = [2 * mass for mass in data["kappa"]]  # not selectable: repaired before it counts
    assert certificate_from_json(data)[1].value <= certificate.bound
    data["potential"] = [0.0] * tree.size
    with pytest.raises(CertificateError, match="bound"):
        certificate_from_json(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"version": 7}, "version is 7"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"objective": "best"}, "objective is 'best'"),
        ({"paths": 0}, "paths is 0"),
        ({"kappa": [0.5]}, "kappa has shape"),
        ({"kappa": "x"}, "kappa is 'x'; want a list"),
        ({"potential": [-1.0] * 13}, "potential has a negative"),
        ({"value": "high"}, "value is 'high'"),
    ],
)
def test_bad_certificate_files_are_refused_by_field(change, message):
    tree = PrefixTree.random(3, 2, 1)
    kappa, potential = tree.draft_joint[tree.leaves], tree.depth.astype(float)
    data = json.loads(certificate_to_json(tree, verify_certificate(tree, 2, kappa, potential, "lossless")))
    with pytest.raises(ValueError, match=message):
        certificate_from_json(data | change)


def test_missing_fields_and_text_that_is_not_json_are_refused():
    with pytest.raises(ValueError, match="not JSON"):
        certificate_from_json("{")
    with pytest.raises(ValueError, match="want an object"):
        certificate_from_json("[]")
    with pytest.raises(ValueError, match="'objective' is missing"):
        certificate_from_json({"format": "specbound.certificate", "version": 1})


def test_kept_mass_of_the_draft_itself_is_block_verification():
    tree = PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2)
    drafts = tree.draft_joint
    assert kept_mass(tree, drafts, "lossless")[1:].sum() == pytest.approx(11 / 9, abs=1e-15)
    assert kept_mass(tree, drafts, "block-transport")[1:].sum() == pytest.approx(12 / 9, abs=1e-15)


@pytest.mark.parametrize("objective", ["lossless", "block-transport"])
def test_prefixes_that_no_draft_reaches_cost_nothing_and_bound_nothing(objective):
    """Draft (1, 0), target (1/2, 1/2): the second token is never kept, whatever potential was given for it."""
    tree = PrefixTree.iid([0.5, 0.5], [1.0, 0.0], 1)
    found = verify_certificate(tree, 2, np.array([1.0, 0.0]), np.zeros(3), objective)
    assert (found.value, found.bound) == (0.5, 0.5)


def test_a_bound_below_the_value_is_no_certificate(monkeypatch):
    tree = PrefixTree.iid([0.5, 0.5], [0.75, 0.25], 1)
    monkeypatch.setattr(certificates, "upper_bound", lambda *_: 0.1)
    with pytest.raises(CertificateError, match=r"the bound 0\.1 is below the value 0\.75"):
        verify_certificate(tree, 1, np.array([0.75, 0.25]), np.zeros(3), "lossless")
