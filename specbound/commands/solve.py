"""`specbound solve`: exact values and certified optima of one instance."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.draft_length import solve_draft_length
from specbound.commands.instance import OutputFile, given_options, instance_options, print_json, read_instance
from specbound.commands.terminal import print_table
from specbound.files import replacing, write_text

if TYPE_CHECKING:
    from specbound.theory.multi_path import PathSolution
    from specbound.theory.prefix_tree import PrefixTree
    from specbound.theory.solution import Solution

MAX_EXACT_NODES = 100
PICTURES = (".png", ".svg", ".pdf")
OBJECTIVES = ("lossless", "block-transport", "all")


@click.command(
    short_help="The best possible for one instance, certified.",
    epilog="""\b
    Example:
      specbound solve --target 1/3,2/3 --draft 2/3,1/3 --length 2

    gives 10/9 (token), 11/9 (block, the lossless optimum) and 4/3 (block transport) drafted tokens per call.""",
)
@instance_options
@click.option("--paths", type=click.IntRange(min=1), default=1, show_default=True, help="Drafted paths K.")
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="all",
    show_default=True,
    help="lossless: stateless lossless verifiers; block-transport: one block, later target laws modified.",
)
@click.option("--tolerance", type=float, default=1e-6, show_default=True, help="Largest certified gap of an optimum.")
@click.option("--certificate", type=OutputFile(), help="Write the certificate of the (lossless) optimum, JSON.")
@click.option("--emit", type=OutputFile(), help="Write the optimal (lossless) verifier as a table, JSON.")
@click.option("--plot", type=OutputFile(PICTURES), help="Draw the tree and the values against K and L (png, svg, pdf).")
@click.option("--mdp", "mdp_file", type=click.Path(dir_okay=False), help="Solve a draft-length problem instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def solve(
    context: click.Context,
    /,
    paths: int,
    objective: str,
    tolerance: float,
    emit: str | None,
    certificate: str | None,
    plot: str | None,
    mdp_file: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Expected acceptance length of the verifiers, and the certified optima, of one instance.

    Values are drafted tokens kept per target call; the correction token is not counted.
    """
    if mdp_file is not None:
        if others := [option for option in given_options(context) if option not in ("--mdp", "--json")]:
            raise ValueError(f"--mdp is a problem of its own; leave out {others[0]}")
        solve_draft_length(mdp_file, as_json)
        return
    if not 0 < tolerance < 1:
        raise ValueError(f"--tolerance is {tolerance}; want a small positive number, e.g. 1e-6")
    if options["random_vocab"] is None and (alone := {"--seed", "--concentration"} & {*given_options(context)}):
        raise ValueError(f"{min(alone)} belongs to --random; leave it out")
    description, tree = read_instance(**options)
    results = values(tree, paths, objective, tolerance)
    if emit is not None or certificate is not None:
        wanted = "lossless" if objective == "all" else objective
        write_witnesses(tree, paths, wanted, tolerance, emit, certificate)
    if plot is not None:
        draw(tree, paths, objective, tolerance, Path(plot))
    if as_json:
        print_json({"instance": description | {"paths": paths}, "results": results})
    else:
        _print_table(description | {"paths": paths}, results)


def values(tree: PrefixTree, paths: int, objective: str = "all", tolerance: float = 1e-6) -> list[dict[str, Any]]:
    """The `results` of the JSON output: the verifiers whose value is known, then the optima.

    A verifier's value is known exactly (bound = value, gap 0 up to rounding); an optimum lies in [value, bound].
    """
    from specbound.runtime.verifiers import of_closed_form
    from specbound.theory.known_values import known_values

    results = []
    for known in known_values(tree, paths):
        verifier = of_closed_form(known.name)
        if objective == "all" or verifier.stateful == (objective == "block-transport"):
            results.append(
                {
                    "name": known.name,
                    "value": known.value,
                    "exact": None if known.exact is None else str(known.exact),
                    "bound": known.value,
                    "gap": 0.0,
                    "lossless": verifier.lossless,
                    "stateful": verifier.stateful,
                    "source": verifier.source,
                    "seconds": None,
                }
            )
    for name, source in (("lossless", "certified LP"), ("block-transport", "certified LP; later target laws modified")):
        if objective in ("all", name):
            results.append(_optimum(f"{name}-optimum", optimum(tree, paths, name, tolerance), source))
    return results


def optimum(tree: PrefixTree, paths: int, objective: str, tolerance: float) -> Solution:
    """The certified optimum: in closed form for one path, as a fraction where a small exact tree allows it."""
    from specbound.theory import block_transport, single_path
    from specbound.theory.multi_path import antichain

    if paths == 1:
        return single_path.optimum(tree) if objective == "lossless" else block_transport.optimum(tree)
    if tree.exact and tree.size <= MAX_EXACT_NODES:
        return antichain.optimum(tree, paths, "lossless" if objective == "lossless" else "block-transport")
    return path_optimum(tree, paths, objective, tolerance)


def path_optimum(tree: PrefixTree, paths: int, objective: str, tolerance: float) -> PathSolution:
    """The optimum with its witnesses.

    Raises:
        CertificateError: it was not found to that tolerance; says which option to change.
    """
    from specbound.theory import multi_path
    from specbound.theory.solution import CertificateError

    solver = multi_path.lossless_optimum if objective == "lossless" else multi_path.transport_optimum
    try:
        return solver(tree, paths, tolerance)
    except CertificateError as error:
        raise CertificateError(error.solver, error.status, "give a larger --tolerance") from None


def _optimum(name: str, solution: Solution, source: str) -> dict[str, Any]:
    return {
        "name": name,
        "value": solution.value,
        "exact": None if solution.exact is None else str(solution.exact),
        "bound": solution.bound,
        "gap": solution.gap,
        "lossless": solution.lossless,
        "stateful": not solution.lossless,
        "source": f"{source} ({solution.solver})",
        "seconds": solution.seconds,
    }


def draw(tree: PrefixTree, paths: int, objective: str, tolerance: float, file: Path) -> None:
    """Write a picture: acceptance mass on the tree at the optimum, values against K and against L."""
    from matplotlib.figure import Figure

    from specbound.plots import draw_curves, draw_tree
    from specbound.theory.feasibility import coverage

    made = Figure(figsize=(11, 8), layout="constrained")
    grid = made.add_gridspec(2, 2, height_ratios=(1.2, 1))
    phi = optimum(tree, paths, "block-transport" if objective == "block-transport" else "lossless", tolerance).phi
    draw_tree(made.add_subplot(grid[0, :]), tree, phi, coverage(tree.as_float().draft_joint, paths))
    ranges = {"drafted paths K": range(1, max(4, paths) + 1), "draft length L": range(1, tree.length + 1)}
    for column, (label, sizes) in enumerate(ranges.items()):
        columns: dict[str, list[float]] = {}
        for size in sizes:
            smaller, count = (tree, size) if column == 0 else (tree.truncated(size), paths)
            for result in values(smaller, count, objective, tolerance):
                columns.setdefault(result["name"], []).append(result["value"])
        complete = {name: curve for name, curve in columns.items() if len(curve) == len(sizes)}
        draw_curves(made.add_subplot(grid[1, column]), list(sizes), complete, label)
    with replacing(file) as partial:
        made.savefig(partial, dpi=130, format=file.suffix[1:])


def write_witnesses(
    tree: PrefixTree, paths: int, objective: str, tolerance: float, emit: str | None, certificate: str | None
) -> None:
    """Write the optimal verifier as a table, and the certificate of its optimum, from one solution."""
    from specbound.theory.multi_path.certificates import certificate_to_json, verify_certificate
    from specbound.theory.multi_path.verifier_table import verifier_table

    found = path_optimum(tree, paths, objective, tolerance)
    if emit is not None:
        write_text(emit, verifier_table(tree, paths, found.kappa, found.objective).to_json())
    if certificate is not None:
        verified = verify_certificate(tree, paths, found.kappa, found.potential, found.objective)
        write_text(certificate, certificate_to_json(tree, verified))


def _paper(source: str) -> str:
    """The paper's number, "own", or what stands before the first comma or semicolon."""
    if source.startswith("specbound (own)"):
        return "own"
    found = re.search(r"arXiv:[\d.]+\d", source)
    return found[0] if found else re.split(r"[,;(]", source)[0].strip()


def _print_table(instance: dict[str, Any], results: list[dict[str, Any]]) -> None:
    from rich.table import Table

    title = ", ".join(f"{key} {value}" for key, value in instance.items() if not isinstance(value, list))
    table = Table(title=title, caption="value: drafted tokens kept per target call (correction token not counted)")
    for name in ("", "value", "exact", "gap", "source"):
        table.add_column(name, justify="left" if name in ("", "source") else "right", no_wrap=True)
    for result in results:
        optimum = result["name"].endswith("optimum")
        exact = result["exact"] if result["exact"] is not None and len(result["exact"]) <= 15 else ""
        gap = f"{result['gap']:.0e}" if optimum else ""
        row = (result["name"], f"{result['value']:.6f}", exact, gap, _paper(result["source"]))
        table.add_row(*row, style="bold" if optimum else None)
    print_table(table)
