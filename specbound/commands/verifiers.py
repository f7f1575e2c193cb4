"""`specbound verifiers`: the registry, what it declares and what is measured."""

from __future__ import annotations

from typing import Any

import click

from specbound.commands.instance import print_json
from specbound.commands.terminal import print_table, progress_console


@click.command(
    short_help="List the verifiers, declared and measured facts.",
    epilog="""\b
    Example:
      specbound verifiers --json""",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verifiers(as_json: bool) -> int:
    """List the verifiers: what each declares, and whether its exact law on small trees bears it out.

    Exit code 1 if a measured fact differs from the declared one or a verifier breaks down, 3 if one is undecided.
    """
    from rich.progress import track

    from specbound.proofs_checks.laws.measured import measure
    from specbound.runtime.verifiers import get, names

    entries: list[dict[str, Any]] = []
    for name in track(names(), "measuring", console=progress_console(), transient=True):
        verifier = get(name)
        found = measure(verifier)
        entries.append(
            {
                "name": name,
                "summary": verifier.summary,
                "source": verifier.source,
                "paths": verifier.paths,
                "stateful": verifier.stateful,
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
        name.append("\none path" if entry["paths"] == "single" else "\nK paths", "not bold")
        name.append(", carries" if entry["stateful"] else "", "not bold")
        facts = Text(f"declared {'yes' if entry['lossless'] else 'no'}")
        if entry["verdict"] in ("broken", "undecided"):
            facts.append(f"\n{entry['verdict']}", "bold red")
        else:
            same = entry["measured_lossless"] == entry["lossless"]
            facts.append(f"\nmeasured {entry['total_variation']:.0e}", "green" if same else "bold red")
        story = Text(entry["summary"])
        story.append(f"\n{entry['source']}; cost {entry['cost']}", "dim")
        if entry["note"]:
            story.append(f"\n{entry['note']}", "dim")
        table.add_row(name, facts, story)
    print_table(table)
