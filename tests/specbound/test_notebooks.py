"""Every notebook runs from the top, and prints what it is committed with."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from .test_docs import tool

pytestmark = pytest.mark.slow

notebooks = tool("notebooks")
FILES = sorted(notebooks.FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_cell_runs_and_prints_what_is_committed(file):
    committed = nbformat.read(file, as_version=4)
    shown = notebooks.printed(committed)
    assert notebooks.printed(notebooks.run(copy.deepcopy(committed))) == shown
    assert "".join(shown) != ""


def test_there_are_three_notebooks_and_all_carry_their_outputs():
    assert [file.stem for file in FILES] == ["audit", "decode", "theory"]
    for file in FILES:
        cells = [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


def test_a_cell_that_prints_something_else_is_caught():
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1 + 1)")])
    book.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text="3\n")]
    shown = notebooks.printed(book)
    assert notebooks.printed(notebooks.run(copy.deepcopy(book))) == ["2\n"] != shown


def test_unstable_cells_are_not_compared():
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(1)", metadata={"tags": ["unstable"]})])
    book.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text="0.123\n")]
    assert notebooks.printed(book) == [""]


def test_the_notebooks_name_no_machine():
    for file in FILES:
        text = json.dumps([cell.get("outputs", []) for cell in nbformat.read(file, as_version=4).cells])
        assert str(Path.home()) not in text
        assert sys.prefix not in text


def test_the_script_refuses_a_notebook_that_does_not_exist():
    answer = subprocess.run(
        [sys.executable, str(Path(notebooks.__file__)), "nothing"], capture_output=True, text=True, check=False
    )
    assert answer.returncode != 0
