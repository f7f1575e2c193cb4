"""Optima of several paths in fractions, and their certificates, checked by a script that does not know specbound."""

from __future__ import annotations

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from specbound.proofs_checks.laws.instances import random_tree
from specbound.theory import drafted_trees, single_path
from specbound.theory.multi_path.certificates import certificate_from_json, certificate_to_json
from specbound.theory.optima import certified_optimum
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError

SCRIPT = Path("examples/check_certificate.py")
THIRD = Fraction(1, 3)
PUBLISHED = PrefixTree.iid([THIRD, 2 * THIRD], [2 * THIRD, THIRD], 2)


def test_the_published_example_in_fractions():
    found = {
        (objective, paths): certified_optimum(PUBLISHED, paths, objective).exact
        for objective in ("lossless", "block-transport")
        for paths in (1, 2, 3)
    }
    assert [str(found["lossless", paths]) for paths in (1, 2, 3)] == ["11/9", "131/81", "1351/729"]
    assert [str(found["block-transport", paths]) for paths in (1, 2, 3)] == ["4/3", "134/81", "1351/729"]


@pytest.mark.parametrize("objective", ["lossless", "block-transport"])
@pytest.mark.parametrize(("family", "vocab", "length", "paths"), [("independent", 3, 2, 2), ("mixed", 2, 3, 3)])
def test_fractions_and_floats_agree_and_both_bounds_meet_exactly(family, vocab, length, paths, objective):
    for seed in range(4):
        tree = random_tree(family, vocab, length, seed)
        found, near = certified_optimum(tree, paths, objective), certified_optimum(tree.as_float(), paths, objective)
        assert found.exact is not None
        assert found.gap == 0
        assert near.value - 1e-9 <= found.exact <= near.bound + 1e-9
        assert near.exact is None
        if objective == "lossless":
            assert found.exact >= single_path.optimum(tree).exact


def test_without_an_exact_vertex_the_answer_is_the_certified_float(monkeypatch):
    monkeypatch.setattr(drafted_trees, "MAX_EXACT_WORK", 0)
    found = certified_optimum(PUBLISHED, 2)
    assert found.exact is None
    assert found.value <= 131 / 81 <= found.bound + 1e-15
    monkeypatch.undo()
    monkeypatch.setattr(drafted_trees.lp.Program, "in_fractions", lambda self, answer: None)
    assert certified_optimum(PUBLISHED, 2).exact is None


def checked(data: dict, file: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of the script, run without specbound on its path."""
    file.write_text(json.dumps(data), encoding="utf-8")
    command = [sys.executable, "-I", "-S", str(SCRIPT), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("objective", ["lossless", "block-transport"])
@pytest.mark.parametrize("paths", [1, 3])
def test_an_independent_script_proves_a_rational_certificate(objective, paths, tmp_path):
    tree = random_tree("zeros in draft", 3, 2, 1)
    found = certified_optimum(tree, paths, objective)
    data = json.loads(certificate_to_json(tree, found))
    assert data["value"] == data["bound"] == str(found.exact)
    code, out, err = checked(data, tmp_path / "certificate.json")
    assert (code, err) == (0, "")
    assert out == f"proved: the {objective} optimum of {paths} paths is {found.exact}\n"
    floats = certified_optimum(tree.as_float(), paths, objective)
    code, _, err = checked(json.loads(certificate_to_json(tree.as_float(), floats)), tmp_path / "floats.json")
    assert (code, err) == (0, "")


def corrupted(data: dict) -> dict[str, dict]:
    """One lie in each part of a certificate of the published example with two paths."""
    more = str(Fraction(data["value"]) + Fraction(1, 10**12))
    less = str(Fraction(data["bound"]) - Fraction(1, 10**12))
    tree = data["tree"]
    return {
        "value": data | {"value": more},
        "bound": data | {"bound": less},
        "kappa": data | {"kappa": ["0", "0", "2/3", "1/3"]},
        "a lower kappa": data | {"kappa": [data["kappa"][0], "0", *data["kappa"][2:]]},
        "potential": data | {"potential": ["0"] * 7},
        "falling potential": data | {"potential": ["0", "1", "1", "0", "1", "1", "1"]},
        "paths": data | {"paths": 3},
        "target": data | {"tree": tree | {"target": ["1", "1/2", "1/2", *tree["target"][3:]]}},
        "draft row": data | {"tree": tree | {"draft": ["1", "1", "1", *tree["draft"][3:]]}},
    }


LIES = list(corrupted({"value": "1", "bound": "1", "kappa": ["0"], "tree": {"target": [], "draft": []}}))


@pytest.mark.parametrize("lie", LIES)
def test_a_corrupted_certificate_is_refused(lie, tmp_path):
    data = json.loads(certificate_to_json(PUBLISHED, certified_optimum(PUBLISHED, 2)))
    assert checked(data, tmp_path / "good.json")[0] == 0
    code, out, err = checked(corrupted(data)[lie], tmp_path / "bad.json")
    assert (code, out) == (1, "")
    assert err.startswith("refused: ")


@pytest.mark.parametrize("lie", ["value", "bound", "a lower kappa", "potential", "paths"])
def test_specbound_itself_refuses_them_too(lie):
    data = json.loads(certificate_to_json(PUBLISHED, certified_optimum(PUBLISHED, 2)))
    assert certificate_from_json(data)[1].exact == Fraction(131, 81)
    with pytest.raises(CertificateError, match="the file claims"):
        certificate_from_json(corrupted(data)[lie])
