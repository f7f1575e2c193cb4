"""`specbound verifiers`: the registry, what it declares and what is measured."""

from __future__ import annotations

from typing import Any

import click

from specbound.commands.instance import print_json
from specbound.commands.terminal import print_table, progress_console

KINDS = {"single": "one path", "many": "K paths", "tree": "a tree"}


@click.command(
    short_help="List the verifiers, declared and measured facts.",
    epilog="""\b
    Example:
      specbound verifiers --json""",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verifiers(as_json: bool) -> int:
    """List the verifiers of paths and of drafted trees: what each declares and wants of the drafts, and whether its
    exact law on small instances bears it out.

    Exit code 1 if a measured fact differs from the declared one or a verifier breaks down, 3 if one is undecided.
    """
    from rich.progress import track

    from specbound.proofs_checks.laws.measured import measure, measure_tree
    from specbound.runtime import tree_registry
    from specbound.runtime.registry import Verifier
    from specbound.runtime.tree_registry import TreeVerifier
    from specbound.runtime.verifiers import entries as path_verifiers

    entries: list[dict[str, Any]] = []
    every: list[Verifier | TreeVerifier] = [*path_verifiers(), *tree_registry.entries()]
    for verifier in track(every, "measuring", console=progress_console(), transient=True):
        found = measure(verifier) if isinstance(verifier, Verifier) else measure_tree(verifier)
        entries.append(
            {
                "name": verifier.name,
                "summary": verifier.summary,
                "source": verifier.source,
                "paths": verifier.paths if isinstance(verifier, Verifier) else "tree",
                "requires": verifier.requires,
                "stateful": isinstance(verifier, Verifier) and verifier.stateful,
                "lossless": verifier.lossless,
                "measured_lossless": found.lossless,
                "verdict": found.verdict,
                "total_variation": found.total_variation,
                "cost": verifier.cost,
                "note": found.reason,
            }
        )
    if as_json:
        print_json({"verifiers": entries})
    else:
        _print_table(entries)
    differ = [entry["name"] for entry in entries if entry["measured_lossless"] not in (None, entry["lossless"])]
    broken = [f"{entry['name']}: {entry['note']}" for entry in entries if entry["verdict"] == "broken"]
    undecided = [f"{entry['name']}: {entry['note']}" for entry in entries if entry["verdict"] == "undecided"]
    for words, names_found in (
        ("measured otherwise than declared", differ),
        ("broken", broken),
        ("undecided", undecided),
    ):
        if names_found:
            click.echo(f"specbound: {words}: {', '.join(names_found)}", err=True)
    return 1 if differ or broken else 3 if undecided else 0


def _print_table(entries: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(
        show_lines=True,
        caption="measured: total variation of the exact law to the target's, small trees (stateful: of several calls)",
    )
    table.add_column("verifier", no_wrap=True)
    table.add_column("lossless", no_wrap=True)
    table.add_column("what it does", ratio=1)
    for entry in entries:
        name = Text(entry["name"], "bold")
        name.append(f"\n{KINDS[entry['paths']]}", "not bold")
        name.append(", carries" if entry["stateful"] else "", "not bold")
        facts = Text(f"declared {'yes' if entry['lossless'] else 'no'}")
        if entry["verdict"] in ("broken", "undecided"):
            facts.append(f"\n{entry['verdict']}", "bold red")
        else:
            same = entry["measured_lossless"] == entry["lossless"]
            facts.append(f"\nmeasured {entry['total_variation']:.0e}", "green" if same else "bold red")
        story = Text(entry["summary"])
        story.append(f"\nwants {entry['requires']}; {entry['source']}; cost {entry['cost']}", "dim")
        if entry["note"]:
            story.append(f"\n{entry['note']}", "dim")
        table.add_row(name, facts, story)
    print_table(table)
