"""`specbound sweep`: many instances times many verifiers and optima, one row per case."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specbound import __version__
from specbound.commands.instance import print_json
from specbound.commands.options import Number, check_dotted
from specbound.commands.terminal import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from specbound.proofs_checks.sweep.design import Case, Design
    from specbound.proofs_checks.sweep.results import Row
    from specbound.proofs_checks.sweep.store import Store
    from specbound.proofs_checks.sweep.workers import Limits

INTERRUPTED = 130
MOST_VALUES = 100_000


class Whole(click.ParamType):
    """Positive integers: "2", "2,3,5", "2..4" (both ends included), or a mixture."""

    name = "LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found: list[int] = []
        for part in value.split(","):
            ends = part.split("..")
            if len(ends) > 2 or not all(end.strip().isascii() and end.strip().isdigit() for end in ends):
                self.fail(f"{value!r} is not a list of integers; write 2,3,5 or 2..4", param, ctx)
            span = range(int(ends[0]), int(ends[-1]) + 1)
            if len(found) + len(span) > MOST_VALUES:
                self.fail(f"{value!r} lists more than {MOST_VALUES} values; list fewer", param, ctx)
            found += span
        if not found or min(found) < 1:
            self.fail(f"{value!r} is empty or not positive; write 2,3,5 or 2..4", param, ctx)
        return tuple(found)


class Real(click.ParamType):
    """Positive numbers: "0.5", "0.2,0.5,1", or, for samples, a range "0.1..3"."""

    name = "LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from specbound.proofs_checks.sweep.design import Between

        if not isinstance(value, str):
            return value
        try:
            if ".." in value:
                low, high = value.split("..")
                return Between(float(low), float(high))
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write 0.2,0.5,1 or, with --sample, 0.1..3", param, ctx)


DESIGN_OPTIONS = [
    click.option("--vocab", type=Whole(), help="Vocabulary sizes V of random instances.  [default: 2..3]"),
    click.option("--length", type=Whole(), help="Draft lengths L.  [default: 1..2]"),
    click.option("--paths", type=Whole(), help="Numbers of drafted paths K.  [default: 1..3]"),
    click.option("--concentration", type=Real(), help="Of the Dirichlet rows of random instances.  [default: 0.5]"),
    click.option("--temperature", type=Real(), help="T: all rows are raised to 1/T and normalised.  [default: 1]"),
    click.option("--draft-temperature", type=Real(), help="Of the draft's rows instead; --temperature if not given."),
    click.option(
        "--replicates", type=click.IntRange(min=0), help="Random instances per V, L, concentration.  [default: 2]"
    ),
    click.option("--sample", type=click.IntRange(min=1), help="Draw so many combinations instead of taking all."),
    click.option("--contexts", type=click.IntRange(min=1), help="Also trees of a model pair at so many prompts."),
    click.option("--prompts", type=click.Path(dir_okay=False), help="Their file: JSON list, or lines."),
    click.option("--top-k", type=Whole(), help="Tokens kept in each row of the models.  [default: 3]"),
    click.option("--target", metavar="NAME_OR_PATH", help="Target model; the shipped one if not given."),
    click.option("--draft", metavar="NAME_OR_PATH", help="Draft model; the shipped one if not given."),
    click.option("--device", help="Where the models run.  [default: cpu]"),
    click.option(
        "--methods",
        metavar="NAME,...",
        multiple=True,
        help="Verifiers by name (see `specbound verifiers`) or package.module:function, closed:NAME for a value from "
        "theory without running it, lossless-optimum, block-transport-optimum.  [default: both optima and every "
        "lossless verifier]",
    ),
    click.option("--tolerance", type=float, help="Largest certified gap of an optimum.  [default: 1e-6]"),
    click.option("--seed", type=click.IntRange(min=0), help="Of the random instances.  [default: 0]"),
]


def design_options(command: Any) -> Any:
    """Adds the options that decide the rows; none of them has a value unless it is given."""
    for option in reversed(DESIGN_OPTIONS):
        command = option(command)
    return command


@click.command(
    short_help="Many instances, one row per case.",
    epilog="""\b
    Example:
      specbound sweep --out sweep --vocab 2..4 --paths 1..4 --concentration 0.2,1
      specbound report sweep.html --sweep sweep""",
)
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Folder of the sweep.")
@design_options
@click.option("--jobs", type=click.IntRange(min=1), help="Processes on this machine; one per CPU if not given.")
@click.option("--ray", "address", metavar="ADDRESS", help='Use the Ray cluster there; "local" starts one here.')
@click.option(
    "--seconds",
    type=Number(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Time limit of a case.",
)
@click.option(
    "--memory", type=click.IntRange(min=64), default=4096, show_default=True, help="Limit of a case in MiB (on CPUs)."
)
@click.option(
    "--max-nodes", type=click.IntRange(min=1), default=200_000, show_default=True, help="Limit of its prefix tree."
)
@click.option("--tries", type=click.IntRange(min=1), default=3, show_default=True, help="Of a case whose process dies.")
@click.option("--retry-failed", is_flag=True, help="Compute the cases again that have no value yet.")
@click.option("--dry-run", is_flag=True, help="List the cases, compute none.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sweep(
    out: str,
    jobs: int | None,
    address: str | None,
    seconds: float,
    memory: int,
    max_nodes: int,
    tries: int,
    retry_failed: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Evaluate verifiers and optima on a grid, or a sample, of instances: one row per case, Parquet and CSV.

    A sweep that was stopped or killed goes on where it stopped when it is started again, with the same options or
    with --out alone. Exit code 1 if a case has no value, 3 if all have one but a verdict is undecided (its row says
    why), 130 after Ctrl-C.
    """
    from specbound.proofs_checks.sweep.design import cases
    from specbound.proofs_checks.sweep.store import Store
    from specbound.proofs_checks.sweep.workers import Limits

    if address is not None and address != "local" and jobs is not None:
        raise ValueError("--jobs is for this machine; a Ray cluster runs one case per CPU")
    design = read_design_options(Path(out), options)
    everything = cases(design)
    if dry_run:
        _print_cases(everything, as_json)
        return 0
    limits = Limits(seconds, memory if design.device == "cpu" else None, max_nodes, tries)
    started = time.perf_counter()
    with Store(out, design) as store:
        rest = [case for case in everything if not _finished(store, case, retry_failed)]
        interrupted = False
        try:
            _compute(store, rows_of(rest, design, limits, address, jobs), len(everything), len(rest))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            store.write_tables(everything)
        facts = _facts(store, everything, len(rest), time.perf_counter() - started)
    if as_json:
        print_json(facts)
    else:
        _print_summary(facts)
    if interrupted:
        click.echo(
            f"specbound: stopped with {facts['rows']} of {facts['cases']} cases in {out}; "
            f"specbound sweep --out {out} goes on from there",
            err=True,
        )
        return INTERRUPTED
    if facts["statuses"].get("done", 0) != facts["cases"]:
        return 1
    open_methods = [entry["method"] for entry in facts["methods"] if entry["undecided"]]
    if open_methods:
        click.echo(
            f"specbound: undecided on some instances: {', '.join(open_methods)}; their rows say why, smaller --vocab, "
            "--length or --paths decide them",
            err=True,
        )
    return 3 if open_methods else 0


def read_design_options(out: Path, options: dict[str, Any]) -> Design:
    """The design that the options describe; that of the folder if there is one and no option is given.

    Raises:
        ValueError: an option is out of range, or does not go with the others.
    """
    from specbound.proofs_checks.sweep.case import check_methods, default_methods
    from specbound.proofs_checks.sweep.design import Design
    from specbound.proofs_checks.sweep.store import read_design

    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if not given and (stored := read_design(out)) is not None:
        return replace(stored, version=__version__)
    contexts = _contexts(given.pop("contexts", None), given.pop("prompts", None))
    if not contexts and (alone := {"top_k", "target", "draft", "device"} & given.keys()):
        raise ValueError(f"--{min(alone).replace('_', '-')} is for trees of models; give --contexts too")
    if ("target" in given) != ("draft" in given):
        raise ValueError(f"--{'draft' if 'target' in given else 'target'} is missing; give both models or neither")
    for name in {"target", "draft"} & given.keys():
        if given[name].startswith(("/", ".", "~")) and not Path(given[name]).is_dir():
            raise ValueError(f"--{name} is {given[name]}; there is no such folder")
    if "device" in given:
        from specbound.runtime.device import check_device

        check_device("--device", given["device"])
    methods = tuple(name.strip() for listed in given.pop("methods", ()) for name in listed.split(","))
    for method in methods:
        if not method.startswith("closed:"):
            check_dotted("--methods", method)
    check_methods(methods)
    return Design(methods=methods or default_methods(), version=__version__, contexts=contexts, **given)


def _contexts(count: int | None, file: str | None) -> tuple[str, ...]:
    """The first `count` prompts of the shipped pair or of a file."""
    from specbound.commands.decode import read_prompts
    from specbound.shipped_pair import prompts

    if count is None:
        if file is not None:
            raise ValueError("--prompts is a source of --contexts; say how many with --contexts")
        return ()
    texts = [entry["text"] for entry in prompts()] if file is None else read_prompts((), file)
    if count > len(texts):
        raise ValueError(f"--contexts is {count}; there are {len(texts)} prompts")
    return tuple(texts[:count])


def rows_of(
    wanted: Sequence[Case], design: Design, limits: Limits, address: str | None, jobs: int | None
) -> Iterator[Row]:
    """The rows of the cases, as they are finished, from this machine or from a Ray cluster."""
    import joblib

    from specbound.proofs_checks.sweep.workers import on_ray, on_this_machine

    count = jobs or joblib.cpu_count()
    if address is not None:
        return on_ray(wanted, design, limits, address, count)
    return on_this_machine(wanted, design, limits, min(count, max(1, len(wanted))))


def _finished(store: Store, case: Case, retry_failed: bool) -> bool:
    row = store.rows.get(case.id)
    return row is not None and (row["status"] == "done" or not retry_failed)


def _compute(store: Store, rows: Iterator[Row], total: int, rest: int) -> None:
    """Keep every row as it comes, and show how many there are and how long the others will take."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("cases", total=total, completed=total - rest)
        for row in rows:
            store.append(row)
            progress.advance(task)


def _facts(store: Store, everything: Sequence[Case], computed: int, seconds: float) -> dict[str, Any]:
    """The JSON summary."""
    from specbound.proofs_checks.sweep.results import by_method, statuses
    from specbound.proofs_checks.sweep.store import in_order

    rows = in_order(store.rows, everything)
    return {
        "out": str(store.folder),
        "cases": len(everything),
        "rows": len(rows),
        "resumed": len(everything) - computed,
        "statuses": statuses(rows),
        "methods": by_method(rows),
        "files": [str(store.folder / name) for name in ("rows.parquet", "rows.csv")],
        "seconds": seconds,
    }


def _print_cases(everything: Sequence[Case], as_json: bool) -> None:
    if as_json:
        print_json({"cases": len(everything), "ids": [case.id for case in everything]})
        return
    for case in everything:
        click.echo(case.id)
    click.echo(f"{len(everything)} cases")


def _print_summary(facts: dict[str, Any]) -> None:
    print_table(_table(facts))
    counts = ", ".join(f"{count} {status}" for status, count in facts["statuses"].items())
    resumed = f", {facts['resumed']} from before" if facts["resumed"] else ""
    click.echo(f"{facts['rows']} of {facts['cases']} cases{resumed}: {counts or 'none'}")
    click.echo(f"wrote {' and '.join(facts['files'])}")


def _table(facts: dict[str, Any]) -> Table:
    from rich.table import Table

    from specbound.proofs_checks.sweep.results import method_cells

    head, *rows = method_cells(facts["methods"])
    caption = "means; fraction, least: of the lossless optimum; lossless: and the largest total variation"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption=caption, caption_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
