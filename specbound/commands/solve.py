"""`specbound solve`: exact values and certified optima of one instance."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.calls import calls_results, stream_tree
from specbound.commands.draft_length import solve_draft_length
from specbound.commands.drafts import drafted_optima, write_files
from specbound.commands.frontier import draw_frontier, lossy_results, read_deviation
from specbound.commands.instance import OutputFile, given_options, instance_options, print_json, read_instance
from specbound.commands.routes import SOLVERS, agreement, routes
from specbound.commands.terminal import print_table
from specbound.files import replacing, write_text

if TYPE_CHECKING:
    from specbound.runtime.registry import Verifier
    from specbound.theory.drafted_trees import DraftedOptimum
    from specbound.theory.prefix_tree import PrefixTree
    from specbound.theory.solution import Solution

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
@click.option("--tokens", type=click.IntRange(min=1), help="Also count the target calls for N tokens, carries allowed.")
@click.option("--tolerance", type=float, default=1e-6, show_default=True, help="Largest certified gap of an optimum.")
@click.option(
    "--solver",
    "solvers",
    type=click.Choice([*SOLVERS, "all"]),
    multiple=True,
    help="Also solve by HiGHS, CVXPY or POT (block transport), on small trees; may be repeated.",
)
@click.option("--certificate", type=OutputFile(), help="Write the certificate of the (lossless) optimum, JSON.")
@click.option("--emit", type=OutputFile(), help="Write the optimal (lossless) verifier as a table, JSON.")
@click.option("--plot", type=OutputFile(PICTURES), help="Draw the tree and the values against K and L (png, svg, pdf).")
@click.option(
    "--drafts",
    "spec",
    metavar="SPEC",
    help="What is drafted instead of K independent paths: iid:K, without-replacement:W1,W2,.., top:W1,W2,.., "
    "top-and-sampled:W1,W2,.. (children at each depth) or stem:L1,K.",
)
@click.option(
    "--deviation", metavar="NUMBER", help="Also the best acceptance length at that total variation, e.g. 1/9."
)
@click.option("--frontier", type=OutputFile(PICTURES), help="Draw acceptance against deviation (png, svg, pdf).")
@click.option("--mdp", "mdp_file", type=click.Path(dir_okay=False), help="Solve a draft-length problem instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def solve(
    context: click.Context,
    /,
    paths: int,
    objective: str,
    tokens: int | None,
    tolerance: float,
    solvers: tuple[str, ...],
    emit: str | None,
    certificate: str | None,
    plot: str | None,
    spec: str | None,
    deviation: str | None,
    frontier: str | None,
    mdp_file: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Expected acceptance length of the verifiers, and the certified optima, of one instance.

    Values are drafted tokens kept per target call; the correction token is not counted. With --solver the optima are
    computed by other routes too; exit code 1 if they do not agree.
    """
    if mdp_file is not None:
        if others := [option for option in given_options(context) if option not in ("--mdp", "--json")]:
            raise ValueError(f"--mdp is a problem of its own; leave out {others[0]}")
        solve_draft_length(mdp_file, as_json)
        return 0
    if not 0 < tolerance < 1:
        raise ValueError(f"--tolerance is {tolerance}; want a small positive number, e.g. 1e-6")
    if options["random_vocab"] is None and (alone := {"--seed", "--concentration"} & {*given_options(context)}):
        raise ValueError(f"{min(alone)} belongs to --random; leave it out")
    allowed = None if deviation is None else read_deviation(deviation)
    description, tree = read_instance(**options)
    if spec is not None:
        if alone := {"--paths", "--emit", "--tokens", "--deviation", "--frontier", "--solver"} & {
            *given_options(context)
        }:
            raise ValueError(f"{min(alone)} is about K independent paths; leave it out with --drafts")
        objectives = asked(objective)
        drafted = drafted_optima(tree, spec, objectives, tolerance)
        best = drafted[objectives[0]]
        known = known_results(tree, best.drafts.sizes[0], objective) if best.drafts.kind == "iid" else []
        write_files(tree, best, tolerance, certificate, plot)
        description |= {"drafts": str(best.drafts), "drafted_nodes": float(best.nodes)}
        show(description, [*known, *map(optimum_result, drafted.values())], as_json)
        return 0
    optima = certified_optima(tree, paths, objective, tolerance)
    wanted = optima["block-transport" if objective == "block-transport" else "lossless"]
    results = [*known_results(tree, paths, objective), *map(optimum_result, optima.values())]
    counted = [] if tokens is None else calls_results(stream_tree(options, tree, tokens), tree.length, tokens, paths)
    if emit is not None:
        write_text(emit, verifier_file(tree, wanted))
    if certificate is not None:
        write_text(certificate, certificate_file(tree, wanted))
    if plot is not None:
        draw(tree, wanted, results, objective, tolerance, Path(plot))
    if allowed is not None:
        results += lossy_results(tree, paths, allowed, tolerance)
    if frontier is not None:
        draw_frontier(tree, paths, Path(frontier))
    if solvers:
        results += routes(tree, paths, asked(objective), solvers, tolerance)
    agreed = agreement(results, tolerance)
    show(
        description | {"paths": paths} | ({} if tokens is None else {"tokens": tokens}),
        results,
        as_json,
        counted,
        agreed,
    )
    return 0 if all(found["agree"] for found in agreed.values()) else 1


def show(
    description: dict[str, Any],
    results: list[dict[str, Any]],
    as_json: bool,
    counted: Sequence[dict[str, Any]] = (),
    agreed: dict[str, dict[str, Any]] | None = None,
) -> None:
    """Print the results, for machines or for people.

    Args:
        counted: those about target calls for N tokens; agreed: what `routes.agreement` found.
    """
    if as_json:
        print_json({"instance": description, "results": [*results, *counted]} | ({"routes": agreed} if agreed else {}))
        return
    print_results(description, results, "drafted tokens kept per target call (correction token not counted)")
    for objective, found in (agreed or {}).items():
        verdict = "agree" if found["agree"] else "DO NOT AGREE"
        click.echo(f"{objective}: {found['routes']} routes {verdict}, values within {found['difference']:.0e}")
    if counted:
        print_results(description, counted, f"expected target calls for {description['tokens']} tokens")


# ---------------------------------------------------------------------- instance -> solutions


def asked(objective: str) -> tuple[str, ...]:
    """The objectives that --objective names; lossless first."""
    return OBJECTIVES[:-1] if objective == "all" else (objective,)


def certified_optima(tree: PrefixTree, paths: int, objective: str, tolerance: float) -> dict[str, Solution]:
    """The optimum of each objective asked for, with its witnesses; everything the command shows or writes is read off.

    Raises:
        CertificateError: one was not found to that tolerance; says which option to change.
    """
    from specbound.theory.optima import certified_optimum
    from specbound.theory.solution import CertificateError

    wanted: Any = asked(objective)
    try:
        return {name: certified_optimum(tree, paths, name, tolerance) for name in wanted}
    except CertificateError as error:
        raise CertificateError(error.solver, error.status, "give a larger --tolerance") from None


# ---------------------------------------------------------------------- solutions -> results


def known_results(tree: PrefixTree, paths: int, objective: str) -> list[dict[str, Any]]:
    """The verifiers whose value is known exactly: bound = value, gap 0 up to rounding.

    Where there is no torch, and so no registry, what it says of them is None.
    """
    from specbound.theory.known_values import known_values

    results = []
    for known in known_values(tree, paths):
        facts = _facts(known.name)
        results.append(
            {
                "name": known.name,
                "value": known.value,
                "exact": None if known.exact is None else str(known.exact),
                "bound": known.value,
                "gap": 0.0,
                "lossless": None if facts is None else facts.lossless,
                "stateful": None if facts is None else facts.stateful,
                "source": None if facts is None else facts.source,
                "seconds": None,
            }
        )
    wanted = {"all": (True, False, None), "block-transport": (True, None)}.get(objective, (False, None))
    return [result for result in results if result["stateful"] in wanted]


def _facts(name: str) -> Verifier | None:
    """What the registry says of the verifier of a closed form; None where there is no torch."""
    try:
        from specbound.runtime.verifiers import of_closed_form
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    return of_closed_form(name)


def optimum_result(solution: Solution | DraftedOptimum) -> dict[str, Any]:
    """The row of an optimum, which lies in [value, bound]."""
    later = "" if solution.lossless else "; later target laws modified"
    return {
        "name": f"{solution.objective}-optimum",
        "value": solution.value,
        "exact": None if solution.exact is None else str(solution.exact),
        "bound": solution.bound,
        "gap": solution.gap,
        "lossless": solution.lossless,
        "stateful": not solution.lossless,
        "source": f"certified LP{later} ({solution.solver})",
        "seconds": solution.seconds,
    }


# ---------------------------------------------------------------------- solutions -> files


def verifier_file(tree: PrefixTree, solution: Solution) -> str:
    """The verifier that attains the solution's value, as a table."""
    from specbound.theory.multi_path.verifier_table import verifier_table

    return verifier_table(tree, solution.paths, solution.kappa, solution.objective).to_json()


def certificate_file(tree: PrefixTree, solution: Solution) -> str:
    """What proves the solution's value and bound."""
    from specbound.theory.multi_path.certificates import certificate_to_json

    return certificate_to_json(tree, solution)


def draw(
    tree: PrefixTree, solution: Solution, results: list[dict[str, Any]], objective: str, tolerance: float, file: Path
) -> None:
    """Write a picture: acceptance mass on the tree at the optimum, values against K and against L."""
    from matplotlib.figure import Figure

    from specbound.plots import draw_curves, draw_tree
    from specbound.theory.feasibility import coverage

    def results_of(smaller: PrefixTree, count: int) -> list[dict[str, Any]]:
        if (smaller.length, count) == (tree.length, solution.paths):
            return results
        optima = certified_optima(smaller, count, objective, tolerance)
        return [*known_results(smaller, count, objective), *map(optimum_result, optima.values())]

    made = Figure(figsize=(11, 8), layout="constrained")
    grid = made.add_gridspec(2, 2, height_ratios=(1.2, 1))
    reach = coverage(tree.as_float().draft_joint, solution.paths)
    draw_tree(made.add_subplot(grid[0, :]), tree, solution.phi, reach)
    counts, lengths = range(1, max(4, solution.paths) + 1), range(1, tree.length + 1)
    panels = {
        "drafted paths K": {count: results_of(tree, count) for count in counts},
        "draft length L": {length: results_of(tree.truncated(length), solution.paths) for length in lengths},
    }
    for column, (label, panel) in enumerate(panels.items()):
        curves: dict[str, list[float]] = {}
        for result in (result for at_size in panel.values() for result in at_size):
            curves.setdefault(result["name"], []).append(result["value"])
        complete = {name: curve for name, curve in curves.items() if len(curve) == len(panel)}
        draw_curves(made.add_subplot(grid[1, column]), list(panel), complete, label)
    with replacing(file) as partial:
        made.savefig(partial, dpi=130, format=file.suffix[1:])


# ---------------------------------------------------------------------- results -> people


def _paper(source: str) -> str:
    """The paper's number, "own", or what stands before the first comma or semicolon."""
    if source.startswith("specbound (own)"):
        return "own"
    found = re.search(r"arXiv:[\d.]+\d", source)
    return found[0] if found else re.split(r"[,;(]", source)[0].strip()


def print_results(instance: dict[str, Any], results: Sequence[dict[str, Any]], value: str) -> None:
    from rich.table import Table

    title = ", ".join(f"{key} {value}" for key, value in instance.items() if not isinstance(value, list))
    table = Table(title=title, caption=f"value: {value}")
    for name in ("", "value", "exact", "gap", "source"):
        table.add_column(name, justify="left" if name in ("", "source") else "right", no_wrap=True)
    for result in results:
        optimum = "-optimum" in result["name"]
        exact = result["exact"] if result["exact"] is not None and len(result["exact"]) <= 15 else ""
        gap = f"{result['gap']:.0e}" if optimum else ""
        row = (result["name"], f"{result['value']:.6f}", exact, gap, _paper(result["source"] or ""))
        table.add_row(*row, style="bold" if optimum else None)
    print_table(table)
