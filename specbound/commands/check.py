"""`specbound check`: the ledger of claims, those of five papers and their baselines first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from specbound.commands.instance import print_json
from specbound.commands.terminal import print_table, progress_console
from specbound.files import read_text

if TYPE_CHECKING:
    from specbound.proofs_checks.claims.ledger import Finding

STYLE = {"holds": "green", "proved": "bold green", "refuted": "bold red", "undecided": "yellow"}


@click.command(
    short_help="Check claims of five papers and their baselines.",
    epilog="""\b
    Example:
      specbound check --only BV

    checks the claims of the block verification paper.""",
)
@click.option("--only", multiple=True, metavar="PREFIX", help="Only claims whose id starts so; may be repeated.")
@click.option("--deep", is_flag=True, help="The long version: more and larger instances.")
@click.option("--certificate", type=click.Path(dir_okay=False), help="Verify a saved certificate instead.")
@click.option("--record", is_flag=True, help="Write the findings into the ledger's record (for developers).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(only: tuple[str, ...], deep: bool, certificate: str | None, record: bool, as_json: bool) -> int:
    """Check claims of five papers and of their baselines, readings of them, and this project's own claims.

    Each on the evidence it names, paper by paper, this project's own last; a reading is marked as one.

    Exit code 1 if a finding differs from the one recorded in the ledger, 3 if one is undecided.
    """
    if certificate is not None:
        if only or deep or record:
            raise ValueError("--certificate verifies one file; leave out --only, --deep and --record")
        return verify(certificate, as_json)

    from rich.progress import track

    from specbound.proofs_checks.claims import ledger

    entries = ledger.select(only)
    progress = progress_console()
    findings = list(
        track(ledger.run(entries, deep), "checking claims", total=len(entries), console=progress, transient=True)
    )
    if record:
        ledger.write_record(findings)
    if as_json:
        print_json({"findings": [finding.to_dict() for finding in findings]})
    else:
        _print_table(findings)
    changed = [finding.id for finding in findings if not (finding.recorded or record)]
    if changed:
        click.echo(f"specbound: differs from the record: {', '.join(changed)}", err=True)
    undecided = [finding for finding in findings if finding.verdict == "undecided"]
    for finding in undecided:
        click.echo(f"specbound: undecided: {finding.id}: {finding.evidence}; --deep takes more instances", err=True)
    return 1 if changed else 3 if undecided else 0


def verify(file: str, as_json: bool) -> int:
    """Evaluate both bounds of a certificate from scratch; 1 if its witnesses do not prove what it claims."""
    from specbound.theory.optima import certificate_from_json
    from specbound.theory.solution import CertificateError, Solution

    text = read_text("--certificate", file)
    try:
        tree, found = certificate_from_json(text)
    except CertificateError as error:
        click.echo(f"specbound: {file}: {error}", err=True)
        return 1
    except ValueError as error:
        raise ValueError(f"--certificate {file}: {error}") from None
    drafted = {"paths": found.paths} if isinstance(found, Solution) else {"drafts": str(found.drafts)}
    facts: dict[str, Any] = {"objective": found.objective} | drafted | {"nodes": tree.size}
    facts |= {"value": found.value, "bound": found.bound, "gap": found.gap, "verified": True}
    what = f"{found.paths} paths" if isinstance(found, Solution) else f"drafts {found.drafts}"
    if as_json:
        print_json(facts)
    else:
        click.echo(
            f"verified: the {found.objective} optimum of {what} on {tree.size} nodes lies in "
            f"[{found.value:.9f}, {found.bound:.9f}]"
        )
    return 0


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="claims, paper by paper", show_lines=True)
    table.add_column("id", overflow="fold")
    table.add_column("verdict")
    table.add_column("claim, and what was found", ratio=1)
    table.add_column("s", justify="right")
    shown = ""
    for finding in findings:
        if finding.paper != shown:
            shown = finding.paper
            table.add_row("", "", Text(shown, "bold"), "")
        story = Text(finding.claim)
        if finding.kind == "reading":
            story.append(" (a reading)", style="italic")
        story.append(f"\n{finding.evidence}", style="dim")
        if finding.counterexample:
            story.append(f"\ncounterexample: {finding.counterexample}", style="red")
        table.add_row(finding.id, Text(finding.verdict, STYLE[finding.verdict]), story, f"{finding.seconds:.1f}")
    print_table(table)
    counts: dict[str, Any] = {}
    for finding in findings:
        counts[finding.verdict] = counts.get(finding.verdict, 0) + 1
    Console().print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
