"""The report: one self-contained HTML page with the ledger, curves, optimality gaps, a tree, and decoding results."""

from __future__ import annotations

import datetime
import io
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from specbound import __version__
from specbound.plots import draw_curves, draw_fractions, draw_tree, figure
from specbound.proofs_checks.sweep.results import Row, by_method, complete, instance_of, mean, method_cells, statuses

if TYPE_CHECKING:
    from specbound.theory.prefix_tree import PrefixTree

Values = Mapping[str, float]
SWEEP_AXES = {
    "paths": "drafted paths K",
    "length": "draft length L",
    "vocab": "vocabulary size V",
    "top_k": "top-k",
    "concentration": "concentration",
    "temperature": "temperature T of the target",
    "draft_temperature": "temperature S of the draft",
}
MAX_TICKS, MAX_MISSING = 8, 40


@dataclass(frozen=True)
class Picture:
    """An SVG and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, a sentence, pictures, and a table whose first row is its head."""

    id: str
    title: str
    text: str
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence[str]] = field(default=())


def page(findings: Sequence[Mapping[str, Any]], sections: Sequence[Section]) -> str:
    """The HTML page; needs nothing but itself to be read.

    Args:
        findings: entries of `specbound check --json`.
        sections: what follows the ledger.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("specbound"), autoescape=True)
    return environment.get_template("report.html").render(
        version=__version__,
        date=datetime.date.today().isoformat(),
        counts=Counter(finding["verdict"] for finding in findings),
        findings=findings,
        papers=[(paper, list(own)) for paper, own in itertools.groupby(findings, lambda found: found.get("paper", ""))],
        sections=sections,
    )


def curves_section(
    name: str, over_paths: Mapping[int, Values], over_lengths: Mapping[int, Values], length: int, paths: int
) -> Section:
    """Acceptance length of every verifier against K (at draft length `length`) and against L (at `paths` paths)."""
    pictures = []
    for values, label, at in (
        (over_paths, "drafted paths K", f"L = {length}"),
        (over_lengths, "draft length L", f"K = {paths}"),
    ):
        made, axes = figure(7.5, 4.0)
        verifiers = list(dict.fromkeys(verifier for entry in values.values() for verifier in entry))
        curves = {verifier: [entry.get(verifier, float("nan")) for entry in values.values()] for verifier in verifiers}
        draw_curves(axes, list(values), curves, label)
        pictures.append(Picture(svg(made), f"Expected acceptance length against {label}: {name}, {at}."))
    return Section("curves", "Acceptance length", "Exact values; the optima are certified.", pictures)


def gaps_section(title: str, id: str, text: str, fractions: Mapping[str, Sequence[float]]) -> Section:
    """Distribution of value / certified optimum for every verifier, with a table of mean and minimum."""
    made, axes = figure(7.5, 0.8 + 0.32 * len(fractions))
    draw_fractions(axes, fractions)
    count = len(next(iter(fractions.values())))
    table = [("verifier", "mean", "minimum")]
    for name, values in sorted(fractions.items(), key=lambda entry: -sum(entry[1])):
        table.append((name, f"{sum(values) / len(values):.4f}", f"{min(values):.4f}"))
    return Section(
        id, title, text, [Picture(svg(made), f"Fraction of the lossless optimum, {count} instances.")], table
    )


def tree_section(name: str, tree: PrefixTree, phi: Any) -> Section:
    """One prefix tree with its drafted and accepted mass."""
    made, axes = figure(9.0, 1.2 + 1.1 * tree.length)
    draw_tree(axes, tree, phi)
    caption = f"{name}: {tree.size} nodes, expected acceptance length {float(sum(phi[1:])):.3f} by block verification."
    return Section("tree", "A prefix tree", "Where the mass of a draft goes.", [Picture(svg(made), caption)])


def decoding_section(report: Mapping[str, Any]) -> Section:
    """The decoding table of `specbound demo --json` or `specbound bench --json`."""
    table = [("method", "tokens/s", "x plain", "tokens per target call")]
    for entry in report["decoding"]:
        efficiency = "" if "block_efficiency" not in entry else f"{entry['block_efficiency']:.3f}"
        table.append((entry["method"], f"{entry['tokens_per_second']:.1f}", f"{entry['speedup']:.2f}", efficiency))
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.get("settings", {}).items())
    return Section("decoding", "Decoding", settings + ".", (), table)


def experiment_sections(report: Mapping[str, Any]) -> list[Section]:
    """An experiment's picture and tables, from the file that `specbound experiment` writes.

    Raises:
        ValueError: there is no such experiment, or the tables and records are not what it writes.
    """
    from specbound.proofs_checks.experiments.experiment import get

    about, made = report["experiment"], Figure(figsize=(9, 6), layout="constrained")
    name = about["name"]
    chosen = get(name)
    try:
        chosen.draw(report["records"], made)
        picture = Picture(svg(made), f"{chosen.title} (arXiv:{chosen.paper}).")
        sections = []
        for place, table in enumerate(report["tables"]):
            rows = [[_cell(value) for value in row] for row in table["rows"]]
            heading = (
                f"{name}: {table['title']}" if place else f"Experiment {name} (arXiv:{chosen.paper}): {table['title']}"
            )
            pictures = () if place else (picture,)
            sections.append(Section(f"{name}-{place}", heading, table["note"], pictures, [table["columns"], *rows]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"experiment {name}: tables or records are not what it writes ({error!r})") from None
    return sections


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def sweep_sections(rows: Sequence[Row], planned: int) -> list[Section]:
    """A sweep: for each kind of instance its figures and its table, then the cases without a value.

    Curves and boxes show means over the instances on which every method has a value, so that methods are compared on
    the same instances.

    Args:
        rows: of the cases that are finished.
        planned: number of cases of the sweep.
    """
    sections = []
    if len(rows) < planned:
        text = f"{len(rows)} of {planned} cases have been computed so far."
        sections.append(Section("sweep-unfinished", "An unfinished sweep", text))
    for kind, title in (("random", "Sweep: random instances"), ("context", "Sweep: contexts of a pair of models")):
        if group := [row for row in rows if row["instance"] == kind]:
            counts = ", ".join(f"{count} {status}" for status, count in statuses(group).items())
            shown = complete(group)
            instances = len({instance_of(row) for row in shown})
            text = (
                f"{len(group)} cases: {counts}. Figures: the {instances} instances on which every method has a value."
            )
            text += " Table: means over all values; least is the smallest fraction of the lossless optimum."
            pictures = [_against(shown, name, label) for name, label in _varied(shown)] + _boxes(shown)
            sections.append(Section(f"sweep-{kind}", title, text, pictures, method_cells(by_method(group))))
    if missing := [row for row in rows if row["status"] != "done"]:
        table = [
            ("case", "status", "why"),
            *((row["id"], row["status"], row["error"]) for row in missing[:MAX_MISSING]),
        ]
        text = f"{len(missing)} cases" + (f", the first {MAX_MISSING} of them." if len(missing) > MAX_MISSING else ".")
        sections.append(Section("sweep-missing", "Sweep: cases without a value", text, (), table))
    return sections


def _varied(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Name and label of the parameters that have more than one value; S is left out where it is T everywhere."""
    varied = {name: label for name, label in SWEEP_AXES.items() if len({row[name] for row in rows}) > 1}
    if "draft_temperature" in varied and all(row["temperature"] == row["draft_temperature"] for row in rows):
        del varied["draft_temperature"]
        varied["temperature"] = "temperature T of target and draft"
    return list(varied.items())


def _against(rows: Sequence[Row], name: str, label: str) -> Picture:
    """Mean value and, if known, mean fraction of the optimum of every method against one parameter."""
    groups = _binned(rows, name)
    quantities = {"value": "drafted tokens kept per call"}
    if all(row["fraction"] is not None for row in rows):
        quantities["fraction"] = "fraction of the lossless optimum"
    made = Figure(figsize=(5.0 * len(quantities) + 1.5, 3.8), layout="constrained")
    for number, (quantity, ylabel) in enumerate(quantities.items(), start=1):
        axes = made.add_subplot(1, len(quantities), number)
        draw_curves(axes, list(groups), _means(list(groups.values()), quantity), label, ylabel)
        if isinstance(rows[0][name], float):
            axes.set_xscale("log")
            axes.set_xticks(list(groups), [f"{x:.3g}" for x in groups])
            axes.minorticks_off()
        if number < len(quantities) and (legend := axes.get_legend()) is not None:
            legend.remove()
    return Picture(svg(made), f"Mean over the instances, against {label}.")


def _binned(rows: Sequence[Row], name: str) -> dict[float, list[Row]]:
    """The rows by their value of a parameter; by six equally filled ranges of it, and its mean, if it has many."""
    values = sorted({row[name] for row in rows})
    bins = [[value] for value in values] if len(values) <= MAX_TICKS else np.array_split(values, 6)
    return {float(np.mean(part)): [row for row in rows if part[0] <= row[name] <= part[-1]] for part in bins}


def _means(groups: Sequence[Sequence[Row]], quantity: str) -> dict[str, list[float]]:
    methods = dict.fromkeys(row["method"] for group in groups for row in group)

    def of(group: Sequence[Row], method: str) -> float:
        found = mean([row[quantity] for row in group if row["method"] == method])
        return float("nan") if found is None else found

    return {method: [of(group, method) for group in groups] for method in methods}


def _boxes(rows: Sequence[Row]) -> list[Picture]:
    """Distribution of value / lossless optimum for every other method, if the optimum is among the methods."""
    fractions: dict[str, list[float]] = {}
    for row in rows:
        if row["fraction"] is not None and row["method"] != "lossless-optimum":
            fractions.setdefault(row["method"], []).append(row["fraction"])
    if not fractions:
        return []
    made, axes = figure(7.5, 0.8 + 0.32 * len(fractions))
    draw_fractions(axes, fractions)
    return [Picture(svg(made), "Fraction of the lossless optimum over the instances.")]


def svg(made: Figure) -> str:
    """The figure as an SVG element that scales with the page."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
