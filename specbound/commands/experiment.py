"""`specbound experiment`: the papers' experiments, one command each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.instance import print_json
from specbound.commands.options import Number
from specbound.commands.pair import pair_options, read_pair
from specbound.commands.terminal import print_table, progress_console
from specbound.files import replacing, write_text

if TYPE_CHECKING:
    from specbound.proofs_checks.experiments.experiment import Experiment, Record, Settings, Table

QUICK = {"prompts": 2, "seeds": 1, "new_tokens": 48}
FULL = {"prompts": 4, "seeds": 2, "new_tokens": 64}


@click.command(
    short_help="A paper's experiment: measured beside exact, resumable.",
    epilog="""\b
    Example:
      specbound experiment block-verification --quick --out out

    writes block-verification.json, .csv and .png into out and prints its tables; `specbound experiment` lists all.""",
)
@click.argument("name", required=False)
@pair_options
@click.option(
    "--tasks", "tasks_file", type=click.Path(dir_okay=False), help="Prompts by task, JSONL; shipped if not given."
)
@click.option("--quick", is_flag=True, help="Few sizes and prompts: under two minutes on two cores.")
@click.option("--out", type=click.Path(file_okay=False), default="experiments", show_default=True, help="Folder.")
@click.option("--prompts", type=click.IntRange(min=1), help="Prompts of each task.")
@click.option("--seeds", type=click.IntRange(min=1), help="Generations of each prompt.")
@click.option("--new-tokens", type=click.IntRange(min=1), help="Generated tokens.")
@click.option("--lengths", metavar="L1,L2,...", help="Draft lengths.")
@click.option("--paths", metavar="K1,K2,...", help="Numbers of drafted paths.")
@click.option("--temperature", type=Number(min=0), multiple=True, help="Of both models; may be given several times.")
@click.option("--target-temperature", type=Number(min=0), help="Of the target alone.")
@click.option("--draft-temperature", type=Number(min=0), help="Of the draft alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def experiment(
    name: str | None,
    models: dict[str, Any],
    tasks_file: str | None,
    quick: bool,
    out: str,
    prompts: int | None,
    seeds: int | None,
    new_tokens: int | None,
    lengths: str | None,
    paths: str | None,
    temperature: tuple[float, ...],
    target_temperature: float | None,
    draft_temperature: float | None,
    as_json: bool,
) -> None:
    """Run an experiment of a paper on the shipped pair or any other; without a name, list them.

    A run that was interrupted goes on where it stopped.
    """
    from specbound.proofs_checks.experiments.experiment import Settings, Workplace, as_csv, experiments, get, records
    from specbound.proofs_checks.experiments.experiment import run as run_jobs

    if name is None:
        _list(list(experiments().values()), as_json)
        return
    if temperature and (target_temperature is not None or draft_temperature is not None):
        raise ValueError("--temperature is that of both models; leave it out with --target- or --draft-temperature")
    chosen, own = get(name), QUICK if quick else FULL
    settings = Settings(
        prompts=tuple(_prompts(tasks_file, prompts or own["prompts"])),
        new_tokens=new_tokens or own["new_tokens"],
        seeds=seeds or own["seeds"],
        quick=quick,
        lengths=_numbers("--lengths", lengths),
        paths=_numbers("--paths", paths),
        temperatures=temperature or None,
        target_temperature=target_temperature,
        draft_temperature=draft_temperature,
        shipped=models["target"] is None,
    )
    folder = Path(out)
    _follow(run_jobs(chosen, settings, Workplace(lambda: read_pair(**models)), folder / name), name)
    found = records(folder / name)
    made = chosen.tables(found)
    report = _report(chosen, settings, made, found)
    write_text(folder / f"{name}.json", json.dumps(report, indent=1) + "\n")
    write_text(folder / f"{name}.csv", as_csv(found))
    _draw(chosen, found, folder / f"{name}.png")
    if as_json:
        print_json({key: value for key, value in report.items() if key != "records"})
        return
    for table in made:
        _print(table)
    click.echo(f"{folder / name}.json, .csv, .png")


def _list(known: list[Experiment], as_json: bool) -> None:
    if as_json:
        print_json({"experiments": [{"name": e.name, "paper": e.paper, "title": e.title} for e in known]})
        return
    for entry in known:
        click.echo(f"{entry.name:20} arXiv:{entry.paper}  {entry.title}")


def _prompts(tasks_file: str | None, most: int) -> list[Any]:
    from specbound import shipped_pair
    from specbound.proofs_checks.experiments.tasks import read_tasks

    if tasks_file is not None:
        return read_tasks(tasks_file, most=most)
    return read_tasks(shipped_pair.TASKS, "the shipped tasks", most)


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise ValueError(f"{option} is {text!r}; want positive integers separated by commas, e.g. 2,4,8")
    return tuple(sorted({int(part) for part in parts}))


def _follow(steps: Any, name: str) -> None:
    """Show how many of the jobs are done."""
    from rich.progress import Progress

    with Progress(console=progress_console(), transient=True) as progress:
        bar = progress.add_task(name)
        for done, everything in steps:
            progress.update(bar, completed=done, total=everything)


def _report(chosen: Experiment, settings: Settings, made: list[Table], found: list[Record]) -> dict[str, Any]:
    tables = [
        {"title": t.title, "note": t.note, "columns": list(t.columns), "rows": [list(r) for r in t.rows]} for t in made
    ]
    about = {"name": chosen.name, "paper": chosen.paper, "title": chosen.title}
    return {"experiment": about, "settings": settings.to_dict(), "tables": tables, "records": found}


def _draw(chosen: Experiment, found: list[Record], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    chosen.draw(found, figure)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=130, format="png")


def _print(made: Table) -> None:
    from rich.table import Table as RichTable

    table = RichTable(title=made.title, caption=made.note or None)
    for column in made.columns:
        table.add_column(column)
    for row in made.rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    print_table(table)
