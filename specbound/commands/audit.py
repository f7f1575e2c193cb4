"""`specbound audit`: is this verifier lossless, and if not, on which smallest instance does it fail?"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click

from specbound.commands.instance import given_options, print_json
from specbound.commands.options import Number, check_dotted
from specbound.commands.terminal import progress_console

SLOW = 20.0


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
@click.argument("target", required=False)
@click.option("--as", "convention", metavar="NAME", help="How the function is called; see --conventions.")
@click.option("--conventions", is_flag=True, help="List the calling conventions and leave.")
@click.option("--dtype", help="Number format of its rows: float32 (default), bfloat16 or float64; with --as.")
@click.option("--junit", type=click.Path(dir_okay=False, writable=True), help="Write the verdict as JUnit XML too.")
@click.option("--greedy", is_flag=True, help="At temperature 0: every row of the target is one token.")
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
    target: str | None,
    convention: str | None,
    conventions: bool,
    dtype: str | None,
    greedy: bool,
    junit: str | None,
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
    calls of `random`, `numpy.random` and torch; both give exact laws (foreign code above 64 tokens: on drafts of few).
    Code that can be called but not looked into is sampled (--resolution). Exit code 1 if the law is not the target's or
    the code breaks down, 3 if that is undecided.
    """
    from rich.console import Console

    from specbound.proofs_checks.audit import run as auditing
    from specbound.proofs_checks.audit.report import report_text

    if conventions:
        return _list_conventions(as_json)
    if target is None:
        raise ValueError("no TARGET is given; want a registered name, package.module:function, or --conventions")
    if dtype is not None and convention is None:
        raise ValueError("--dtype belongs to a calling convention; give --as too, or leave it out")
    check_dotted("TARGET", target)
    if resolution is None and (sampling := {"--device", "--false-alarm"} & {*given_options(context)}):
        raise ValueError(f"{min(sampling)} belongs to a sampled audit; give --resolution too, or leave it out")
    if greedy and resolution is not None:
        raise ValueError("--greedy and --resolution do not go together; a sampled audit is at temperature 1")
    console = progress_console()
    with console.status(f"auditing {target}") as status:
        told: list[float] = []
        left = ""

        def show(done: int, total: int) -> None:
            status.update(f"auditing {target}: {done} of {total} instances{left}")

        def pace(seconds: float) -> None:
            nonlocal left
            left = f", about {_duration(seconds)} left"
            if not told and seconds > SLOW:
                console.print(f"about {_duration(seconds)} expected, by its pace on the first instance")
            told.append(seconds)

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
            convention=convention,
            dtype=dtype or "float32",
            temperature_0=greedy,
            progress=show,
            pace=pace,
        )
    if junit is not None:
        Path(junit).write_text(junit_xml(report.target, report.verdict, report_text(report).plain, report.seconds))
    if as_json:
        print_json(report.to_dict())
    else:
        Console(highlight=False).print(report_text(report))
    return report.exit_code


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _list_conventions(as_json: bool) -> int:
    from specbound.proofs_checks.audit.foreign.conventions import listing

    found = listing()
    if as_json:
        print_json(found)
        return 0
    for name, entry in found.items():
        lines = [f"{name}{entry['signature']}", f"    {entry['assumes']}"]
        click.echo("\n".join(textwrap.fill(line, 110, subsequent_indent="    ") for line in lines))
    return 0


def junit_xml(target: str, verdict: str, text: str, seconds: float) -> str:
    """One test case in JUnit's format: passed if lossless or not rejected, skipped if undecided, else a failure."""
    suite = ElementTree.Element("testsuite", name="specbound audit", tests="1", time=f"{seconds:.3f}")
    case = ElementTree.SubElement(suite, "testcase", classname="specbound.audit", name=target, time=f"{seconds:.3f}")
    fine = verdict in ("lossless", "not rejected")
    suite.set("failures", str(int(not fine and verdict != "undecided")))
    suite.set("skipped", str(int(verdict == "undecided")))
    if not fine:
        told = ElementTree.SubElement(case, "skipped" if verdict == "undecided" else "failure", message=verdict)
        told.text = text
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
