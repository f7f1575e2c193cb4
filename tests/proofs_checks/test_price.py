"""What a lossy verifier pays and wastes: its point and the frontier above it."""

from __future__ import annotations

import pytest

from specbound.proofs_checks.audit.run import audit
from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.wasted import lossy_points, mean_points, point
from specbound.runtime.verifiers import get
from specbound.theory.prefix_tree import PrefixTree

SIZES = {"vocab": range(2, 3), "length": range(1, 3), "paths": range(1, 2), "cases": 10}
TREE = PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2)


@pytest.mark.parametrize(("name", "wastes"), [("hsd", True), ("budgeted", False)])
def test_an_audit_says_where_a_lossy_verifier_stands_below_the_frontier(name, wastes):
    report = audit(name, **SIZES)
    found = report.frontier
    assert report.verdict == "not lossless"
    assert 0 < found["deviation"] < 1
    assert found["wasted"] == pytest.approx(found["best"] - found["kept"])
    assert (found["wasted"] > 0.01) == wastes
    assert report.to_dict()["frontier"] == found


def test_a_lossless_verifier_has_no_price():
    assert audit("block", **SIZES).frontier is None


def test_token_verification_wastes_a_ninth_on_the_published_instance():
    found = point("token", exact_law("token", TREE), TREE)
    assert (found.deviation, found.wasted) == pytest.approx((0, 1 / 9), abs=1e-9)


def test_points_are_those_of_the_lossy_verifiers_of_one_path_and_means_are_means():
    points = lossy_points(TREE)
    assert {"hsd", "budgeted", "typical"} <= {found.name for found in points}
    assert all(found.kept <= found.best + 1e-9 for found in points)
    other = PrefixTree.random(2, 2, 0)
    (mean,) = mean_points([TREE, other], [get("hsd")])
    each = [lossy_points(tree, [get("hsd")])[0].deviation for tree in (TREE, other)]
    assert mean.deviation == pytest.approx(sum(each) / 2)
