"""Run the notebooks of the documentation.

    python docs/tools/notebooks.py            run all of them and write their outputs
    python docs/tools/notebooks.py NAME ...   only these

What a cell prints must come out the same every time, unless the cell has the tag "unstable". Warnings and progress
bars (stderr) are not kept.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def run(notebook: Any) -> Any:
    """Run every cell from the top in a fresh kernel; returns the notebook with its outputs.

    Raises:
        CellExecutionError: a cell raises.
    """
    resources = {"metadata": {"path": FOLDER}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", coalesce_streams=True, resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def printed(notebook: Any) -> list[str]:
    """What each code cell prints, "" for cells that are tagged unstable."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        ""
        if "unstable" in cell.metadata.get("tags", [])
        else "".join(output["text"] for output in cell.outputs if output.output_type == "stream")
        for cell in cells
    ]


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb")):
        file = FOLDER / f"{name}.ipynb"
        nbformat.write(run(nbformat.read(file, as_version=4)), file)
        print("run", name, flush=True)
