"""The names of `import specbound` are what a type checker sees, and the same objects as at their homes."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import specbound

ROOT = Path(__file__).parents[2]
NAMES = [name for name in specbound.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_the_object_at_its_home(name):
    assert getattr(specbound, name) is getattr(import_module(specbound._HOMES[name]), name)


def test_every_public_name_is_typed():
    """The block that only type checkers read imports each name, as itself, from where it is loaded."""
    tree = ast.parse((ROOT / "specbound" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        typed |= {alias.name: line.module for alias in line.names if alias.asname == alias.name}
    assert typed == specbound._HOMES


def test_a_type_checker_sees_every_public_name(tmp_path):
    """No name is `Any`: mypy reveals a class or a function for each of them, and rejects a wrong use."""
    if not (ROOT / ".venv" / "types" / "specbound").exists():
        pytest.skip("the links that `make lint` makes for the type checker are not there")
    snippet = tmp_path / "snippet.py"
    wrong = 'PrefixTree.iid(["1/2", "1/2"], ["1/2", "1/2"], "two")'
    lines = [f"from specbound import {', '.join(NAMES)}", *(f"reveal_type({name})" for name in NAMES), wrong]
    snippet.write_text("\n".join([*lines, ""]), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", str(snippet)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    revealed = [line.split("Revealed type is ")[1] for line in done.stdout.splitlines() if "Revealed type" in line]
    assert len(revealed) == len(NAMES), done.stdout + done.stderr
    assert [name for name, kind in zip(NAMES, revealed, strict=True) if kind.strip('"') == "Any"] == []
    errors = [line for line in done.stdout.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stdout
    assert 'incompatible type "str"; expected "int"' in errors[0]
