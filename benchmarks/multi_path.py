"""Time of the certified multi-path optima against the number of nodes, beside three other routes, in one run.

    python benchmarks/multi_path.py [--sizes small large million]

For each tree (reference instances: Dirichlet 0.5, seed 1, K = 3): seconds until the certified gap is at most 1e-6,
and the value of every route that the size allows: HiGHS on tangents, cutting planes on antichains, and the
brute-force LP over couplings. For the interior point also every round: bounds, tangents, Newton steps. CPU seconds,
so that waiting for other work on the machine does not enter (the rounds give wall seconds); run with
OPENBLAS_NUM_THREADS=1. Peak memory is that of the process up to the end of the row.
Results go to benchmarks/results/multi_path.json and multi_path.png; sizes that are not run keep their rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from matplotlib.figure import Figure

from specbound.files import write_text
from specbound.theory import multi_path
from specbound.theory.multi_path import antichain, coupling
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError, Solution

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.tangent_lp import tangent_optimum

RESULTS = Path(__file__).parent / "results"
FILE = RESULTS / "multi_path.json"
PATHS, TOLERANCE = 3, 1e-6
SIZES = {
    "small": [(2, 2), (3, 2), (4, 2), (2, 5), (4, 3), (8, 3), (2, 10), (8, 4)],
    "large": [(100, 2), (2, 14), (32, 3), (16, 4)],
    "million": [(32, 4)],
}
LIMITS = {"HiGHS on tangents": 600, "cutting planes": 90, "brute force": 7}


def routes(tree: PrefixTree, note: Callable[[multi_path.Progress], None]) -> dict[str, Callable[[], Solution]]:
    """The routes that this tree is small enough for; the interior point reports its rounds to `note`."""
    every = {
        "interior point": lambda: multi_path.lossless_optimum(tree, PATHS, TOLERANCE, progress=note),
        "block transport, interior point": lambda: multi_path.transport_optimum(tree, PATHS, TOLERANCE, progress=note),
        "HiGHS on tangents": lambda: tangent_optimum(tree, PATHS, "lossless", TOLERANCE),
        "cutting planes": lambda: antichain.optimum(tree, PATHS),
        "brute force": lambda: coupling.optimum(tree, PATHS),
    }
    return {name: solve for name, solve in every.items() if tree.size <= LIMITS.get(name, np.inf)}


def timed(solve: Callable[[], Solution]) -> dict[str, Any]:
    """Value, certified gap and CPU seconds of one route, or why it gave none."""
    start = time.process_time()
    try:
        found = solve()
    except CertificateError as error:
        return {"seconds": time.process_time() - start, "error": str(error)}
    seconds = time.process_time() - start
    return {"seconds": seconds, "value": found.value, "bound": found.bound, "gap": found.gap}


def main() -> None:
    """Run every size, print a line per route, write the results and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=list(SIZES),
        default=["small"],
        help="up to 4,681 nodes (seconds), up to 69,905 (minutes), 1,082,401 (an hour, 3 GiB); default small",
    )
    sizes = [size for group in parser.parse_args().sizes for size in SIZES[group]]
    rows = [row for row in recorded() if (row["vocab"], row["length"]) not in sizes]
    print(f"{'V':>3} {'L':>3} {'nodes':>7}  {'route':28} {'CPU s':>8}  {'value':>12}  gap")
    for vocab, length in sizes:
        tree = PrefixTree.random(vocab, length, seed=1)
        rounds: list[multi_path.Progress] = []
        for name, solve in routes(tree, rounds.append).items():
            rounds.clear()
            row = {"vocab": vocab, "length": length, "nodes": tree.size, "route": name} | timed(solve)
            row["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            row |= {"rounds": [asdict(each) for each in rounds]} if rounds else {}
            rows.append(row)
            shown = f"{row['value']:12.8f}  {row['gap']:.1e}" if "value" in row else row["error"]
            print(f"{vocab:3d} {length:3d} {tree.size:7d}  {name:28} {row['seconds']:8.2f}  {shown}", flush=True)
            write(rows)
    draw(rows)


def settings() -> dict[str, Any]:
    """What the rows of one file have in common."""
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    return {"paths": PATHS, "tolerance": TOLERANCE, "versions": versions}


def recorded() -> list[dict[str, Any]]:
    """The rows of earlier runs with the same settings and versions."""
    if not FILE.exists():
        return []
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return found["rows"] if {name: found[name] for name in settings()} == settings() else []


def write(rows: list[dict[str, Any]]) -> None:
    """The results so far, smallest trees first; after every row, because the last ones take most of an hour."""
    RESULTS.mkdir(exist_ok=True)
    ordered = sorted(rows, key=lambda row: row["nodes"])
    write_text(FILE, json.dumps(settings() | {"rows": ordered}, indent=1) + "\n")


def draw(rows: list[dict[str, Any]]) -> None:
    """Seconds against nodes, one line per route."""
    made = Figure(figsize=(7, 4.5), layout="constrained")
    axes = made.add_subplot()
    for name in dict.fromkeys(row["route"] for row in rows):
        points = sorted((row["nodes"], row["seconds"]) for row in rows if row["route"] == name and "value" in row)
        axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xlabel("nodes")
    axes.set_ylabel("CPU seconds to a certified gap of 1e-6")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    made.savefig(RESULTS / "multi_path.png", dpi=120)


if __name__ == "__main__":
    main()
