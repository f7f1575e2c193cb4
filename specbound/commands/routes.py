"""Other people's solvers on the same optima: `specbound solve --solver`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbound.theory.prefix_tree import PrefixTree

SOLVERS = ("highs", "cvxpy", "pot")
STORY = {
    "highs": "HiGHS dual simplex, antichain rows as they are violated",
    "cvxpy": "CVXPY with Clarabel, the selected-path program over all K-tuples of drafts",
    "pot": "POT network simplex, transport of all K-tuples of drafts to target blocks",
}


def routes(
    tree: PrefixTree, paths: int, objectives: Sequence[str], solvers: Sequence[str], tolerance: float
) -> list[dict[str, Any]]:
    """Results of `solve` by other routes; POT solves block transport only, the lossless optimum is no transport.

    Args:
        solvers: of `SOLVERS`, or "all".

    Raises:
        ValueError: POT alone is asked for the lossless optimum, or the drafts are too many to list.
        CertificateError: a solver's answer was not good enough.
    """
    chosen = [name for name in SOLVERS if name in solvers or "all" in solvers]
    if chosen == ["pot"] and "block-transport" not in objectives:
        raise ValueError(
            "--solver is pot; the lossless optimum is no transport problem, give --objective block-transport"
        )
    return [
        _result(tree, paths, objective, name, tolerance)
        for objective in objectives
        for name in chosen
        if name != "pot" or objective == "block-transport"
    ]


def agreement(results: Sequence[dict[str, Any]], tolerance: float) -> dict[str, dict[str, Any]]:
    """By objective: how many routes, how far their values lie apart, and whether every value is below every bound.

    Args:
        results: of `solve`; `name` is "OBJECTIVE-optimum", with " (SOLVER)" behind it for another route.
    """
    found: dict[str, dict[str, Any]] = {}
    for objective in ("lossless", "block-transport"):
        own = [entry for entry in results if entry["name"].startswith(f"{objective}-optimum")]
        if len(own) > 1:
            values, bounds = [entry["value"] for entry in own], [entry["bound"] for entry in own]
            agree = max(values) <= min(bounds) + tolerance
            found[objective] = {"routes": len(own), "difference": max(values) - min(values), "agree": agree}
    return found


def _result(tree: PrefixTree, paths: int, objective: str, solver: str, tolerance: float) -> dict[str, Any]:
    began, exact = time.perf_counter(), None
    if solver == "cvxpy":
        from specbound.theory import modeling

        build = modeling.lossless if objective == "lossless" else modeling.block_transport
        model = build(tree, modeling.independent(tree, paths))
        value, bound = model.solve(solver="CLARABEL"), model.bound()
    else:
        from specbound.theory.block_transport import pot_optimum
        from specbound.theory.multi_path import antichain
        from specbound.theory.multi_path.certificates import check_objective

        if solver == "pot":
            solved = pot_optimum(tree, paths)
        else:
            solved = antichain.optimum(tree, paths, check_objective(objective), tolerance)
        value, bound, exact = solved.value, solved.bound, solved.exact
    return {
        "name": f"{objective}-optimum ({solver})",
        "value": value,
        "exact": None if exact is None else str(exact),
        "bound": bound,
        "gap": bound - value,
        "lossless": objective == "lossless",
        "stateful": objective != "lossless",
        "source": STORY[solver],
        "seconds": time.perf_counter() - began,
    }
