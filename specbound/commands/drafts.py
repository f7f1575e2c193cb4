"""The part of `specbound solve` that answers which drafts are worth their nodes (`--drafts SPEC`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbound.files import replacing, write_text

if TYPE_CHECKING:
    from specbound.theory.drafted_trees import DraftedOptimum, Drafts
    from specbound.theory.prefix_tree import PrefixTree

MOST = 4


def drafted_optima(
    tree: PrefixTree, spec: str, objectives: tuple[str, ...], tolerance: float
) -> dict[str, DraftedOptimum]:
    """The optimum of each objective for trees drafted by SPEC.

    Raises:
        ValueError: SPEC is none, or does not fit the instance.
        CertificateError: an optimum was not found to that tolerance; says which option to change.
    """
    from specbound.theory.drafted_trees import Drafts, drafted_optimum
    from specbound.theory.solution import CertificateError

    wanted: Any = objectives
    try:
        drafts = Drafts.parse(spec)
        return {name: drafted_optimum(tree, drafts, name, tolerance) for name in wanted}
    except CertificateError as error:
        raise CertificateError(error.solver, error.status, "give a larger --tolerance") from None
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def write_files(
    tree: PrefixTree, found: DraftedOptimum, tolerance: float, certificate: str | None, plot: str | None
) -> None:
    """The certificate of one optimum, and the picture of all drafting laws against their nodes."""
    from specbound.theory.drafted_trees import certificate_to_json

    if certificate is not None:
        write_text(certificate, certificate_to_json(tree, found))
    if plot is not None:
        draw(tree, found, tolerance, Path(plot))


def draw(tree: PrefixTree, found: DraftedOptimum, tolerance: float, file: Path) -> None:
    """Write a picture: the tree at the optimum, and the lossless optimum of every kind against drafted nodes."""
    from matplotlib.figure import Figure

    from specbound.plots import draw_tree
    from specbound.theory.drafted_trees import KINDS, DraftLaw, node_curve

    made = Figure(figsize=(11, 8), layout="constrained")
    grid = made.add_gridspec(2, 1, height_ratios=(1.2, 1))
    plain = tree.as_float()
    draw_tree(made.add_subplot(grid[0, 0]), tree, found.phi, DraftLaw(plain, found.drafts).reach())
    axes = made.add_subplot(grid[1, 0])
    for kind in KINDS:
        points = upper_envelope(node_curve(plain, kind, MOST, max(tolerance, 1e-4)))
        axes.plot([nodes for nodes, _, _ in points], [value for _, value, _ in points], marker="o", label=kind)
    axes.plot([float(found.nodes)], [found.value], marker="*", markersize=14, color="black", label=str(found.drafts))
    axes.set_xlabel("expected drafted nodes")
    axes.set_ylabel("lossless optimum")
    axes.legend()
    with replacing(file) as partial:
        made.savefig(partial, dpi=130, format=file.suffix[1:])


def upper_envelope(points: list[tuple[float, float, Drafts]]) -> list[tuple[float, float, Drafts]]:
    """The points above every point with fewer nodes, from few nodes to many."""
    best: list[tuple[float, float, Drafts]] = []
    for point in points:
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best
