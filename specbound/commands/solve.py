"""`specbound solve`: exact values and certified optima of one instance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from specbound.commands.draft_length import solve_draft_length
from specbound.commands.instance import instance_options, print_json, read_instance

if TYPE_CHECKING:
    from specbound.theory.prefix_tree import PrefixTree
    from specbound.theory.solution import Solution


@click.command(
    epilog="Example:  specbound solve --target 1/3,2/3 --draft 2/3,1/3 --length 2   "
    "gives 10/9, 11/9, 11/9 and 4/3 drafted tokens per call."
)
@instance_options
@click.option("--paths", type=click.IntRange(min=1), default=1, show_default=True, help="Drafted paths K.")
@click.option("--mdp", "mdp_file", type=click.Path(dir_okay=False), help="Solve a draft-length problem instead.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def solve(paths: int, mdp_file: str | None, as_json: bool, **options: Any) -> None:
    """Expected acceptance length of the verifiers, and the certified optima, of one instance.

    Values are drafted tokens kept per target call; the correction token is not counted.
    """
    if mdp_file is not None:
        if given := [
            name for name in ("target", "draft", "instance_file", "random_vocab") if options[name] is not None
        ]:
            raise ValueError(f"--mdp is an instance of its own; leave out --{given[0].split('_')[0]}")
        solve_draft_length(mdp_file, as_json)
        return
    description, tree = read_instance(**options)
    results = values(tree, paths)
    if as_json:
        print_json({"instance": description | {"paths": paths}, "results": results})
    else:
        _print_table(description | {"paths": paths}, results)


def values(tree: PrefixTree, paths: int) -> list[dict[str, Any]]:
    """The `results` of the JSON output: one object per verifier or optimum."""
    from specbound.theory import block_transport, single_path, token_level

    if paths > 1:
        raise ValueError(f"--paths is {paths}; values for several paths are not available yet, use --paths 1")
    return [
        _result("token", token_level.optimum(tree), "Leviathan et al. 2023, Algorithm 1"),
        _result("block", single_path.optimum(tree), "Block Verification, arXiv:2403.10444, Algorithm 2"),
        _result("lossless-optimum", single_path.optimum(tree), "arXiv:2403.10444, Theorem 2"),
        _result("block-transport-optimum", block_transport.optimum(tree), "optimal transport on the prefix tree"),
    ]


def _result(name: str, solution: Solution, source: str) -> dict[str, Any]:
    return {
        "name": name,
        "value": solution.value,
        "exact": None if solution.exact is None else str(solution.exact),
        "bound": solution.bound,
        "gap": solution.gap,
        "lossless": solution.lossless,
        "source": source,
        "seconds": solution.seconds,
    }


def _print_table(instance: dict[str, Any], results: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = ", ".join(f"{key} {value}" for key, value in instance.items() if not isinstance(value, list))
    table = Table(title=title, caption="value: drafted tokens kept per target call (correction token not counted)")
    table.add_column("", no_wrap=True)
    for column in ("value", "exact", "gap"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("lossless")
    table.add_column("source", overflow="fold")
    for result in results:
        lossless = "yes" if result["lossless"] else "no"
        row = (f"{result['value']:.6f}", result["exact"] or "", f"{result['gap']:.0e}", lossless, result["source"])
        table.add_row(result["name"], *row)
    Console().print(table)
