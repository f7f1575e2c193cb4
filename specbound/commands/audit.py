"""`specbound audit`: is this verifier lossless, and if not, on which smallest instance does it fail?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from specbound.commands.instance import print_json

if TYPE_CHECKING:
    from specbound.proofs_checks.audit import AuditReport


class Span(click.ParamType):
    """A range of sizes, "2..3" (both ends included) or "2"."""

    name = "FROM..TO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        ends = str(value).split("..")
        if len(ends) > 2 or not all(end.strip().isdigit() for end in ends):
            self.fail(f"{value!r} is not a range; write 2..3 or 2", param, ctx)
        first, last = int(ends[0]), int(ends[-1])
        if not 1 <= first <= last:
            self.fail(f"{value!r} is empty; want 1 <= from <= to", param, ctx)
        return range(first, last + 1)


@click.command(
    epilog="Example:  specbound audit block --vocab 2..3 --length 1..2   "
    "or  specbound audit yourpackage.module:verify   (examples/ shows the three ways in)"
)
@click.argument("target")
@click.option("--vocab", type=Span(), default="2..3", show_default=True, help="Vocabulary sizes V.")
@click.option("--length", type=Span(), default="1..3", show_default=True, help="Draft lengths L.")
@click.option("--paths", type=Span(), default="1..2", show_default=True, help="Numbers of drafted paths K.")
@click.option("--cases", type=click.IntRange(min=1), default=120, show_default=True, help="Instances to audit.")
@click.option("--seed", type=int, default=0, show_default=True, help="Names the instances.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Time limit per instance for code in a sandbox.",
)
@click.option("--memory", type=click.IntRange(min=64), default=4096, show_default=True, help="Its memory limit in MiB.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(
    target: str,
    vocab: range,
    length: range,
    paths: range,
    cases: int,
    seed: int,
    seconds: float,
    memory: int,
    as_json: bool,
) -> int:
    """Audit a verifier: TARGET is a registered name or package.module:function.

    Tensor verifiers are run through every answer of `Draws`, foreign scalar code through every outcome of its own
    calls of `random`, `numpy.random` and torch; both give exact laws. Exit code 1 if the law is not the target's.
    """
    from rich.console import Console

    from specbound.proofs_checks import audit as auditing

    with Console(stderr=True).status(f"auditing {target}"):
        report = auditing.audit(target, vocab, length, paths, cases, seed=seed, seconds=seconds, memory=memory)
    if as_json:
        print_json(report.to_dict())
    else:
        _print_report(report)
    return report.exit_code


def _print_report(report: AuditReport) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    style = "bold green" if report.lossless else "bold red"
    looked_at = f"{report.cases} instances by {report.way}, {report.seconds:.1f} s"
    console.print(f"[{style}]{report.verdict}[/]  {report.target}, {looked_at}")
    if report.worst is not None:
        console.print(
            f"total variation up to {report.largest_total_variation:.3g}; first wrong position {report.position}; "
            f"token {report.worst.token} comes too often in the worst case"
        )
    if report.acceptance:
        kept, best, ratio = (report.acceptance[key] for key in ("mean_length", "mean_optimum", "mean_ratio"))
        console.print(
            f"keeps {kept:.4f} tokens per call on average, the lossless optimum is {best:.4f} (ratio {ratio:.4f})"
        )
    for breakdown in report.breakdowns:
        size = f"V={breakdown.vocab} L={breakdown.length} K={breakdown.paths}"
        console.print(f"[red]{breakdown.kind}[/] on {size}: {breakdown.message}", markup=True)
    if report.counterexample is not None:
        console.print("\n[bold]smallest counterexample[/]")
        for line in report.counterexample.story:
            console.print(f"  {line}", markup=False, soft_wrap=True)
    if report.skipped:
        console.print(f"\ntoo large to enumerate: {', '.join(report.skipped)}", style="dim")
    console.print(f"\n{report.limits}", style="dim", markup=False)
