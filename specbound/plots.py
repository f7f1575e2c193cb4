"""Pictures of solved instances: acceptance mass on the prefix tree, value against K and L, fractions of the optimum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from specbound.theory.prefix_tree import Array, PrefixTree

MAX_DRAWN = 400
LONGEST_LABEL = 6
LABEL = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
COLOURS = [*TABLEAU_COLORS.values(), "#000080", "#808000", "#d2a679", "#3b3b3b"]
MARKERS = "osD^v<>PX*hdp8"
INK, ACCEPTED, DRAFTED = "#333333", "#2f8046", "#b9cdea"


def draw_tree(axes: Axes, tree: PrefixTree, phi: Array, reach: Array | None = None) -> None:
    """Draw the prefix tree, children below parents; line width is probability mass.

    Pale lines: Q(w), the mass that drafts bring (`reach` [n] instead, if given: Pr(some draft passes through w)).
    Dark lines: phi(w), the mass that is accepted. Nodes that neither reaches are left out, and so are the lightest
    nodes of a tree with more than 400 of them.
    """
    mass = np.asarray(tree.draft_joint if reach is None else reach, dtype=float)
    accepted = np.asarray(phi, dtype=float)
    weight = np.maximum(mass, accepted)
    shown = weight > 0
    if shown.sum() > MAX_DRAWN:
        shown &= weight >= np.sort(weight)[-MAX_DRAWN]
    place = _places(tree, shown)
    for node in np.flatnonzero(shown)[1:]:
        parent = int(tree.parent[node])
        ends = [place[parent], place[node]], [-int(tree.depth[parent]), -int(tree.depth[node])]
        axes.plot(*ends, color=DRAFTED, linewidth=0.4 + 11 * mass[node], solid_capstyle="round", zorder=1)
        if accepted[node] > 0:
            axes.plot(*ends, color=ACCEPTED, linewidth=0.4 + 11 * accepted[node], solid_capstyle="round", zorder=2)
    if shown.sum() <= 64:
        for node in np.flatnonzero(shown)[1:]:
            text = f"{_label(tree, node)}\n{accepted[node]:.2f}"
            at = (place[node], -int(tree.depth[node]) - 0.06)
            axes.annotate(text, at, ha="center", va="top", fontsize=7, color=INK, zorder=3, bbox=LABEL)
    axes.set_ylim(-tree.length - 0.45, 0.2)
    axes.set_axis_off()
    axes.set_title("pale: drafted, dark: accepted (width = probability)", fontsize=9, color=INK)


def _label(tree: PrefixTree, node: int) -> str:
    """The token's number, or its text: short, with spaces that can be seen."""
    token = int(tree.token[node])
    if tree.symbols is None:
        return str(token)
    text = repr(tree.symbols[token])[1:-1].replace(" ", "\N{OPEN BOX}")
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}\N{HORIZONTAL ELLIPSIS}"


def _places(tree: PrefixTree, shown: Array) -> Array:
    """Horizontal place of each shown node: leaves side by side, parents above the middle of their children."""
    place = np.full(tree.size, np.nan)
    order = 0
    for node in _depth_first(tree, shown):
        below = tree.children[node]
        inside = place[below][shown[below]]
        if len(inside):
            place[node] = inside.mean()
        else:
            place[node] = order
            order += 1
    return place


def _depth_first(tree: PrefixTree, shown: Array) -> list[int]:
    """Shown nodes, children before parents, branches in order."""
    order, stack = [], [0]
    while stack:
        node = stack.pop()
        order.append(node)
        below = tree.children[node]
        stack += [child for child in range(below.start, below.stop) if shown[child]]
    return order[::-1]


def draw_curves(
    axes: Axes,
    xs: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    xlabel: str,
    ylabel: str = "drafted tokens kept per call",
) -> None:
    """Lines of expected acceptance length; names that end in "optimum" are drawn as bounds, black and dashed."""
    for number, (name, values) in enumerate(curves.items()):
        bound = name.endswith("optimum")
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
        if bound:
            style = {"color": "black", "linestyle": "--" if name.startswith("lossless") else ":"}
        axes.plot(xs, values, markersize=4, linewidth=1.3, label=name, **style)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_xticks(list(xs), [f"{x:.3g}" for x in xs])
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_fractions(axes: Axes, fractions: Mapping[str, Sequence[float]]) -> None:
    """One horizontal box per verifier: its value as a fraction of the certified optimum, over many instances."""
    names = list(fractions)[::-1]
    axes.boxplot(
        [list(fractions[name]) for name in names],
        orientation="horizontal",
        tick_labels=names,
        whis=(0, 100),
        medianprops={"color": ACCEPTED},
    )
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("fraction of the lossless optimum (whiskers: minimum and maximum)")
    axes.grid(axis="x", alpha=0.25)


def figure(width: float = 7.0, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure with one axes, without pyplot's global state."""
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.add_subplot()
