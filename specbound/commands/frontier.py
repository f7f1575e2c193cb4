"""`specbound solve --deviation` and `--frontier`: the best acceptance length at a deviation from the target's law."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbound.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from specbound.proofs_checks.laws.wasted import Point
    from specbound.theory.frontier import FrontierPoint
    from specbound.theory.numbers import Number
    from specbound.theory.prefix_tree import PrefixTree

MAX_NODES = 400


def read_deviation(option: str) -> Number:
    """The number of --deviation.

    Raises:
        ValueError: it is no total variation.
    """
    from specbound.theory.numbers import parse_number

    deviation = parse_number(option)
    if not 0 <= deviation <= 1:
        raise ValueError(f"--deviation is {option}; want a total variation in [0, 1], e.g. 1/9")
    return deviation


def lossy_results(tree: PrefixTree, paths: int, deviation: Number, tolerance: float) -> list[dict[str, Any]]:
    """The rows of the rule with that budget (one path), and of the optimum at that deviation."""
    from specbound.runtime.verifiers import get
    from specbound.theory import budgeted, frontier

    check_size(tree)
    point = frontier.optimum(tree, deviation, paths, tolerance=tolerance)
    results = [_result("lossy-optimum", point.value, point.exact, point.bound, f"certified LP ({point.solver})")]
    results[0]["seconds"] = point.seconds
    if paths == 1:
        kept = budgeted.acceptance(tree, deviation if tree.exact else float(deviation))[0][1:].sum()
        exact = kept if tree.exact and not isinstance(deviation, float) else None
        results.insert(0, _result("budgeted", float(kept), exact, float(kept), get("budgeted").source))
    for result in results:
        result["deviation"] = str(deviation) if point.exact is not None else float(deviation)
    return results


def _result(name: str, value: float, exact: Any, bound: float, source: str) -> dict[str, Any]:
    row = {"name": name, "value": value, "exact": None if exact is None else str(exact), "bound": bound}
    row |= {"gap": bound - value, "lossless": False, "stateful": False, "source": source, "seconds": None}
    return row


def check_size(tree: PrefixTree) -> None:
    """Raise ValueError if the program of the frontier would be too large for its solver here."""
    if tree.size > MAX_NODES:
        raise ValueError(f"the tree has {tree.size} nodes; --deviation and --frontier take up to {MAX_NODES}")


def draw_frontier(tree: PrefixTree, paths: int, file: Path) -> None:
    """Write a picture: the frontier with its corners, and where lossy verifiers of one path stand below it."""
    from specbound.plots import figure
    from specbound.proofs_checks.laws.wasted import lossy_points
    from specbound.theory import frontier

    check_size(tree)
    corners = frontier.curve(tree, paths)
    made, axes = figure(8.0, 5.0)
    _draw(axes, corners, lossy_points(tree) if paths == 1 else [], tree.length)
    with replacing(file) as partial:
        made.savefig(partial, dpi=130, format=file.suffix[1:])


def _draw(axes: Axes, corners: list[FrontierPoint], points: list[Point], length: int) -> None:
    from specbound.plots import COLOURS, MARKERS

    deviations = [float(corner.allowed) for corner in corners]
    right = max([*deviations, *(point.deviation for point in points)]) * 1.05 or 1.0
    axes.plot([*deviations, right], [*(corner.value for corner in corners), length], color="black", label="the best")
    axes.plot(deviations, [corner.value for corner in corners], "ko", markersize=3)
    for number, point in enumerate(points):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        axes.plot([point.deviation], [point.kept], linestyle="", markersize=6, label=point.name, **style)
    axes.set_xlabel("deviation: total variation of the law of one call to the target's")
    axes.set_ylabel("drafted tokens kept per call")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
