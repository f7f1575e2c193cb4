"""`specbound audit`: is this verifier lossless, and if not, on which smallest instance does it fail?"""

from __future__ import annotations

from typing import Any

import click

from specbound.commands.instance import given_options, print_json
from specbound.commands.options import Number, check_dotted
from specbound.commands.terminal import progress_console


class Span(click.ParamType):
    """A range of sizes, "2..3" (both ends included) or "2"."""

    name = "FROM..TO"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        ends = str(value).split("..")
        if len(ends) > 2 or not all(end.strip().isascii() and end.strip().isdigit() for end in ends):
            self.fail(f"{value!r} is not a range; write 2..3 or 2", param, ctx)
        first, last = int(ends[0]), int(ends[-1])
        if not 1 <= first <= last:
            self.fail(f"{value!r} is empty; want 1 <= from <= to", param, ctx)
        return range(first, last + 1)


@click.command(
    short_help="Is this verifier right? Yours or a registered one.",
    epilog="""\b
    Example:
      specbound audit block --vocab 2..3 --length 1..2
      specbound audit yourpackage.module:verify

    The folder examples/ shows the three ways in.""",
)
@click.argument("target")
@click.option("--vocab", type=Span(), default="2..3", show_default=True, help="Vocabulary sizes V.")
@click.option("--length", type=Span(), default="1..3", show_default=True, help="Draft lengths L.")
@click.option("--paths", type=Span(), default="1..3", show_default=True, help="Numbers of drafted paths K.")
@click.option("--cases", type=click.IntRange(min=1), help="Instances to audit; 120, or 12 when sampled, if not given.")
@click.option("--resolution", type=Number(0, 1, min_open=True), help="Sample instead, down to this total variation.")
@click.option("--false-alarm", type=Number(0, 1, min_open=True), default=1e-9, show_default=True, help="Of sampling.")
@click.option("--device", help="Where a sampled tensor verifier runs, e.g. cuda.")
@click.option("--seed", type=int, default=0, show_default=True, help="Names the instances.")
@click.option(
    "--seconds",
    type=Number(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Time limit per instance for code in a sandbox.",
)
@click.option("--memory", type=click.IntRange(min=64), default=4096, show_default=True, help="Its memory limit in MiB.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def audit(
    context: click.Context,
    target: str,
    vocab: range,
    length: range,
    paths: range,
    cases: int | None,
    resolution: float | None,
    false_alarm: float,
    device: str | None,
    seed: int,
    seconds: float,
    memory: int,
    as_json: bool,
) -> int:
    """Audit a verifier: TARGET is a registered name or package.module:function.

    Tensor verifiers are run through every answer of `Draws`, foreign scalar code through every outcome of its own
    calls of `random`, `numpy.random` and torch; both give exact laws. Code that can be called but not looked into is
    sampled (--resolution). Exit code 1 if the law is not the target's or the code breaks down, 3 if that is undecided.
    """
    from rich.console import Console

    from specbound.proofs_checks.audit import run as auditing
    from specbound.proofs_checks.audit.report import report_text

    check_dotted("TARGET", target)
    if resolution is None and (sampling := {"--device", "--false-alarm"} & {*given_options(context)}):
        raise ValueError(f"{min(sampling)} belongs to a sampled audit; give --resolution too, or leave it out")
    with progress_console().status(f"auditing {target}") as status:

        def show(done: int, total: int) -> None:
            status.update(f"auditing {target}: {done} of {total} instances")

        report = auditing.audit(
            target,
            vocab,
            length,
            paths,
            cases,
            seed=seed,
            resolution=resolution,
            false_alarm=false_alarm,
            device=device or "cpu",
            seconds=seconds,
            memory=memory,
            progress=show,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        Console(highlight=False).print(report_text(report))
    return report.exit_code
