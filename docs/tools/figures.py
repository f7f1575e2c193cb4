"""The pictures of the documentation, drawn from the project's own functions.

python docs/tools/figures.py        writes docs/assets/*.svg
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from fractions import Fraction as F
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specbound.theory import block_transport, multi_path, selection, single_path, stopping, token_level
from specbound.theory.feasibility import coverage
from specbound.theory.known_values import known_values
from specbound.theory.multi_path import antichain
from specbound.theory.prefix_tree import PrefixTree

ASSETS = Path(__file__).resolve().parents[1] / "assets"
INK, TARGET, DRAFT = "#333333", "#b3781d", "#3568a8"
COLOURS = {"token": "#9a9a9a", "block": "#2f8046", "transport": "#b7d9c0"}
EXAMPLE = PrefixTree.iid((F(1, 3), F(2, 3)), (F(2, 3), F(1, 3)), 2)
EQUAL = PrefixTree.iid((F(1, 2), F(1, 2)), (F(1, 2), F(1, 2)), 1)
ROW = ((0.05, 0.05, 0.1, 0.15, 0.25, 0.4), (0.3, 0.2, 0.2, 0.15, 0.1, 0.05))


def name(tree: PrefixTree, node: int) -> str:
    """The prefix of a node in letters, AB for (0, 1)."""
    return "".join("ABCDEF"[token] for token in tree.prefix(node))


def instance() -> Figure:
    """The prefix tree of the example with both joint probabilities at each node."""
    figure = Figure(figsize=(7.2, 2.7), layout="constrained")
    axes = figure.add_subplot()
    place = {0: 3.0, 1: 1.0, 2: 5.0, 3: 0.0, 4: 2.0, 5: 4.0, 6: 6.0}
    for node in range(1, EXAMPLE.size):
        parent = int(EXAMPLE.parent[node])
        ends = [place[parent], place[node]], [-int(EXAMPLE.depth[parent]), -int(EXAMPLE.depth[node])]
        axes.plot(*ends, color="#bbbbbb", linewidth=1.5, zorder=1)
    for node, x in place.items():
        y = -int(EXAMPLE.depth[node])
        box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": INK}
        axes.text(x, y, name(EXAMPLE, node) or "start", ha="center", va="center", bbox=box, fontsize=11, zorder=2)
        if node:
            inner = EXAMPLE.depth[node] == 1
            side, drop = (0.25, 0.0) if inner else (0.0, -0.3)
            right = x > place[0]
            texts = (f"P {EXAMPLE.target_joint[node]}", TARGET), (f"Q {EXAMPLE.draft_joint[node]}", DRAFT)
            for line, (text, colour) in enumerate(texts):
                if inner:
                    at, align = (x + side * (1 if right else -1), y + 0.12 - 0.24 * line), "left" if right else "right"
                else:
                    at, align = (x - 0.06 + 0.12 * line, y + drop), "left" if line else "right"
                axes.text(*at, text, ha=align, va="center", fontsize=10, color=colour)
    axes.set_xlim(-0.6, 6.6)
    axes.set_ylim(-2.5, 0.25)
    axes.set_axis_off()
    return figure


def one_path() -> Figure:
    """What three rules keep of each prefix, inside what target and draft allow."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    rules = {"token": token_level, "block": single_path, "transport": block_transport}
    nodes = np.arange(1, EXAMPLE.size)
    lines = ("target P", EXAMPLE.target_joint, TARGET, 5), ("draft Q", EXAMPLE.draft_joint, DRAFT, 1.6)
    for outline, joint, colour, width in lines:
        values = joint[1:].astype(float)
        axes.hlines(values, nodes - 0.42, nodes + 0.42, color=colour, linewidth=width, label=outline, zorder=3)
    for place, (rule, module) in enumerate(rules.items()):
        phi = module.acceptance(EXAMPLE)
        label = f"{rule}: {phi[1:].sum()} kept"
        axes.bar(nodes + 0.26 * (place - 1), phi[1:].astype(float), 0.24, color=COLOURS[rule], label=label)
        for node in nodes:
            at = (node + 0.26 * (place - 1), float(phi[node]) + 0.008)
            axes.annotate(str(phi[node]), at, ha="center", va="bottom", fontsize=7, color=INK, zorder=4)
    axes.set_xticks(nodes, [name(EXAMPLE, int(node)) for node in nodes])
    axes.set_ylabel("Pr(prefix is kept)")
    axes.set_ylim(0, 0.75)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")
    return clean(figure, axes)


def covered() -> Figure:
    """g(t) for several K, and the profile of three selected-path laws below g for K = 2."""
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    t = np.linspace(0, 1, 201)
    for paths, colour in zip((1, 2, 3, 8), ("#9cb8dc", "#6f98cc", "#3568a8", "#1d3d66"), strict=True):
        left.plot(t, coverage(t, paths), color=colour, label=f"K = {paths}")
    left.set_title("g(t) = 1 - (1-t)^K", fontsize=10)
    left.set_xlabel("draft mass t of a set")
    left.set_ylabel("Pr(some draft is in the set)")
    left.legend(fontsize=8, frameon=False, loc="lower right")
    right.plot(t, coverage(t, 2), color="#6f98cc", label="g, K = 2")
    best = multi_path.lossless_optimum(EXAMPLE, 2).kappa
    draft = EXAMPLE.draft_joint[EXAMPLE.leaves].astype(float)
    order = np.argsort(-best / draft, kind="stable")
    mass, kept = (np.concatenate([[0.0], np.cumsum(values[order])]) for values in (draft, best))
    right.plot(mass, kept, "o-", color=COLOURS["block"], markersize=5, label="optimal kappa")
    for place, leaf in enumerate(order):
        label = name(EXAMPLE, leaf + EXAMPLE.leaves.start)
        middle = (mass[place] + mass[place + 1]) / 2, (kept[place] + kept[place + 1]) / 2
        right.annotate(label, middle, xytext=(8, -8), textcoords="offset points", fontsize=8, color=INK)
    right.plot([0, 1], [0, 1], "--", color="#9a9a9a", label="kappa = Q: the first draft")
    right.set_title("a selected law must stay below g", fontsize=10)
    right.set_xlabel("draft mass, leaves by decreasing kappa/Q")
    right.set_ylabel("selected mass")
    right.legend(fontsize=8, frameon=False, loc="lower right")
    return clean(figure, left, right)


def many_paths() -> Figure:
    """Values against K on the example, and on two equal laws."""
    figure = Figure(figsize=(7.2, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    shown = {"block": "#9a9a9a", "specinfer": "#b3781d", "kseq": "#d2a679", "gbv": "#a8324a", "two-level": "#2f8046"}
    labels = {"block": "block (one path)", "gbv": "greedy multi-path"}
    for axes, tree, most in ((left, EXAMPLE, 5), (right, EQUAL, 5)):
        counts = range(1, most + 1)
        tables = [{known.name: known.value for known in known_values(tree, paths)} for paths in counts]
        for rule, colour in shown.items():
            values = [table[rule] for table in tables]
            axes.plot(counts, values, "o-", color=colour, markersize=3.5, linewidth=1.3, label=labels.get(rule, rule))
        best = [antichain.optimum(tree.as_float(), paths).value for paths in counts]
        axes.plot(counts, best, "--", color="black", linewidth=1.2, label="lossless optimum")
        axes.set_xticks(list(counts))
        axes.set_xlabel("drafted paths K")
    left.set_ylabel("drafted tokens kept per call")
    left.set_title("target (1/3, 2/3), draft (2/3, 1/3), L = 2", fontsize=9)
    right.set_title("target = draft = (1/2, 1/2), L = 1", fontsize=9)
    right.set_ylim(0, 1.1)
    figure.legend(*left.get_legend_handles_labels(), fontsize=8, frameon=False, ncols=3, loc="outside lower center")
    return clean(figure, left, right)


def selected_laws() -> Figure:
    """One step, V = 6, K = 4: the laws that three selection rules make of the draft, and what is kept of each."""
    target, draft = ROW
    tree = PrefixTree.iid(target, draft, 1)
    laws = {
        "first draft": tree.draft[1:],
        "highest ratio (GBV)": selection.greedy_path(tree, 4)[1:],
        "two levels": selection.two_level_path(tree, 4)[1:],
    }
    colours = (DRAFT, "#a8324a", COLOURS["block"])
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    tokens = np.arange(len(target))
    for place, ((rule, law), colour) in enumerate(zip(laws.items(), colours, strict=True)):
        kept = np.minimum(law, target).sum()
        axes.bar(tokens + 0.27 * (place - 1), law, 0.25, color=colour, label=f"{rule}: keeps {kept:.3f}")
    axes.hlines(target, tokens - 0.42, tokens + 0.42, color=TARGET, linewidth=2.2, label="target", zorder=3)
    axes.set_xticks(tokens, list("ABCDEF"))
    axes.set_ylabel("probability")
    axes.set_xlabel("token, by increasing target/draft")
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.02))
    return clean(figure, axes)


def lengths() -> Figure:
    """Tokens per unit of time of every constant draft length and of the optimal rule; its thresholds."""
    text = (Path(__file__).resolve().parents[2] / "examples" / "stopping.json").read_text(encoding="utf-8")
    problem = stopping.StoppingInstance.from_json(text)
    solution = stopping.solve(problem)
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    constant = {length: float(rate) for length, rate in stopping.constant_length_rates(problem).items()}
    left.bar(list(constant), list(constant.values()), color="#9cb8dc", label="always so many tokens")
    left.axhline(float(solution.eta), color=COLOURS["block"], linewidth=2, label="optimal stopping")
    left.set_xlabel("draft length")
    left.set_ylabel("tokens per unit of time")
    left.set_ylim(0, 0.31)
    left.legend(fontsize=8, frameon=False, loc="upper left")
    thresholds = stopping.stop_thresholds(problem, solution.gamma)
    for context, colour in ((0, TARGET), (1, DRAFT)):
        caps = [cap for where, cap in thresholds if where == context]
        values = [float(thresholds[context, cap]) for cap in caps]
        right.plot(caps, values, "o-", color=colour, label=f"after token {'AB'[context]}")
    right.set_xlabel("drafts still allowed")
    right.set_ylabel("stop if R is at least")
    right.set_xticks(caps)
    right.legend(fontsize=8, frameon=False)
    return clean(figure, left, right)


def clean(figure: Figure, *axes: Axes) -> Figure:
    """No frame at the top and on the right, quiet ticks."""
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
        one.xaxis.label.set_size(9)
        one.yaxis.label.set_size(9)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "instance": instance,
    "one-path": one_path,
    "coverage": covered,
    "many-paths": many_paths,
    "selected-laws": selected_laws,
    "lengths": lengths,
}


def write(folder: Path, names: Sequence[str] = tuple(FIGURES)) -> None:
    """Write the figures as SVG, text as text, without a date, so that the same picture is the same file."""
    settings: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": "specbound", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings):
        for which in names:
            figure = FIGURES[which]()
            figure.savefig(folder / f"{which}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    ASSETS.mkdir(exist_ok=True)
    write(ASSETS, sys.argv[1:] or tuple(FIGURES))
