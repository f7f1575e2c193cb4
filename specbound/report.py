"""The report: one self-contained HTML page with the ledger, curves, optimality gaps, a tree, and decoding results."""

from __future__ import annotations

import datetime
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jinja2
from matplotlib.figure import Figure

from specbound import __version__
from specbound.plots import draw_curves, draw_fractions, draw_tree, figure

if TYPE_CHECKING:
    from specbound.theory.prefix_tree import PrefixTree

Values = Mapping[str, float]


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
        sections=sections,
    )


def curves_section(name: str, over_paths: Mapping[int, Values], over_lengths: Mapping[int, Values]) -> Section:
    """Acceptance length of every verifier against K and against L, with the optima above them."""
    pictures = []
    for values, label in ((over_paths, "drafted paths K"), (over_lengths, "draft length L")):
        made, axes = figure(7.5, 4.0)
        verifiers = list(dict.fromkeys(verifier for entry in values.values() for verifier in entry))
        curves = {verifier: [entry.get(verifier, float("nan")) for entry in values.values()] for verifier in verifiers}
        draw_curves(axes, list(values), curves, label)
        pictures.append(Picture(svg(made), f"Expected acceptance length against {label}: {name}."))
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


def svg(made: Figure) -> str:
    """The figure as an SVG element that scales with the page."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
