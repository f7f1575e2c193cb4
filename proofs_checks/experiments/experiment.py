"""What an experiment is, and how it runs: jobs with keys, each recorded once, then tables and a picture.

An experiment makes a list of jobs from the settings. A job's record is appended to a file as soon as it is there; a run
that was interrupted goes on where it stopped, and a run that is complete only reads. Tables and the picture are made
from the records alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tasks import Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from specbound.runtime.models import Pair

CHAPTERS = ("block_verification", "gbv", "spectr_gbv", "mjsd", "specdec")
Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What to run on; None stands for the experiment's own choice.

    Attributes:
        prompts: by task.
        new_tokens: generated from each prompt; seeds: generations of each prompt.
        quick: few sizes, for two CPU cores and two minutes.
        lengths, paths: L and K; temperatures: of target and draft alike.
        target_temperature, draft_temperature: instead of `temperatures`.
        shipped: the pair is the shipped one, whose acceptance head may be used.
    """

    prompts: tuple[Prompt, ...]
    new_tokens: int = 64
    seeds: int = 2
    quick: bool = False
    lengths: tuple[int, ...] | None = None
    paths: tuple[int, ...] | None = None
    temperatures: tuple[float, ...] | None = None
    target_temperature: float | None = None
    draft_temperature: float | None = None
    shipped: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values; prompts by their number in each task."""
        plain = asdict(self)
        plain["prompts"] = {task: sum(p.task == task for p in self.prompts) for task in self.tasks}
        return plain

    @property
    def tasks(self) -> list[str]:
        """The tasks in the order of the prompts."""
        return list(dict.fromkeys(prompt.task for prompt in self.prompts))


@dataclass(frozen=True)
class Workplace:
    """What jobs work with: the pair of models is loaded when the first job asks for it."""

    load: Callable[[], Pair]

    @cached_property
    def pair(self) -> Pair:
        """Target, draft and tokenizer."""
        return self.load()


@dataclass(frozen=True)
class Job:
    """One measurement: `key` names it among all; `run` gives its record, plain values."""

    key: str
    run: Callable[[Workplace], Record]


@dataclass(frozen=True)
class Table:
    """A result for people: numbers are shown with three decimals unless they are counts."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    note: str = ""


@dataclass(frozen=True)
class Experiment:
    """An experiment of a paper.

    Attributes:
        name: on the command line; paper: its arXiv number; title: one line.
        jobs: from the settings to what is to be measured.
        tables: from the records to tables.
        draw: from the records to a picture, onto an empty figure.
    """

    name: str
    paper: str
    title: str
    jobs: Callable[[Settings], list[Job]] = field(repr=False)
    tables: Callable[[list[Record]], list[Table]] = field(repr=False)
    draw: Callable[[list[Record], Figure], None] = field(repr=False)


def experiments() -> dict[str, Experiment]:
    """All experiments by name."""
    found = [import_module(f"specbound.proofs_checks.experiments.{chapter}").EXPERIMENT for chapter in CHAPTERS]
    return {experiment.name: experiment for experiment in found}


def get(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    known = experiments()
    if name not in known:
        raise ValueError(f"experiment is {name!r}; known are {', '.join(known)}")
    return known[name]


def run(experiment: Experiment, settings: Settings, workplace: Workplace, folder: Path) -> Iterator[tuple[int, int]]:
    """Run the jobs that have no record yet; (done, all) before the first and after each. Records: `records(folder)`.

    Raises:
        ValueError: the folder holds records of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"experiment": experiment.name, "settings": settings.to_dict()}
    file, text = folder / "settings.json", json.dumps(about, indent=1) + "\n"
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise ValueError(f"{folder} holds records of other settings; choose another folder, or remove it")
    file.write_text(text, encoding="utf-8")
    jobs = experiment.jobs(settings)
    done = {record["key"] for record in records(folder)}
    left = [job for job in jobs if job.key not in done]
    yield len(jobs) - len(left), len(jobs)
    for count, job in enumerate(left, start=len(jobs) - len(left) + 1):
        record = {"key": job.key} | job.run(workplace)
        with (folder / "records.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
        yield count, len(jobs)


def records(folder: Path) -> list[Record]:
    """The records so far; a line that was cut off by an interruption is left out."""
    file = folder / "records.jsonl"
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def as_csv(found: Sequence[Record]) -> str:
    """The records as a table: one column for each plain field of any of them."""
    plain = [{name: value for name, value in record.items() if not isinstance(value, list | dict)} for record in found]
    columns = list(dict.fromkeys(name for record in plain for name in record))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return out.getvalue()


def choose(given: tuple[Any, ...] | None, quick: bool, few: Iterable[Any], many: Iterable[Any]) -> tuple[Any, ...]:
    """What was asked for, else the experiment's own: `few` if quick, `many` if not."""
    return given if given is not None else tuple(few if quick else many)
