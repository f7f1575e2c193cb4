"""Block Verification (arXiv:2403.10444): token against block verification on tasks, and the map over Bernoulli pairs.

The paper's table: block efficiency and speed of both on several tasks and draft lengths. The paper's figure: the
acceptance length when every token is 0 or 1, the target says 1 with probability p and the draft with q; exact here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from specbound.theory import block_transport, single_path, token_level
from specbound.theory.prefix_tree import PrefixTree

from .decoding import Method, decode_jobs, groups, mean, paired, temperatures, value_of
from .experiment import Experiment, Job, Record, Settings, Table, Workplace, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERIFIERS = ("token", "block")
MAPS = ("token", "block", "lossless-optimum", "block-transport")


def jobs(settings: Settings) -> list[Job]:
    """Plain decoding and both verifiers at every length, task, prompt, seed and temperature; then the maps."""
    lengths = choose(settings.lengths, settings.quick, (4,), (4, 6, 8))
    methods = [Method("plain", "plain")]
    methods += [Method(f"{name} L={length}", name, length=length) for length in lengths for name in VERIFIERS]
    heats = temperatures(settings, (1.0,) if settings.quick else (0.6, 1.0))
    grid = 7 if settings.quick else 17
    return [*(map_job(length, grid) for length in lengths), *decode_jobs(settings, methods, heats, kind="decoded")]


def map_job(length: int, grid: int) -> Job:
    """Acceptance lengths of all pairs (p, q) on a grid, for one L."""

    def run(place: Workplace) -> Record:
        values = np.linspace(0.02, 0.98, grid)
        maps: dict[str, list[list[float]]] = {name: [] for name in MAPS}
        for p in values:
            rows = [acceptance_lengths(p, q, length) for q in values]
            for name in MAPS:
                maps[name].append([row[name] for row in rows])
        return {"kind": "map", "length": length, "grid": values.tolist(), "maps": maps}

    return Job(f"map/{length}/{grid}", run)


def acceptance_lengths(p: float, q: float, length: int) -> dict[str, float]:
    """Exact drafted tokens kept per call if target and draft say 1 with probability p and q at every place."""
    tree = PrefixTree.iid([1 - p, p], [1 - q, q], length)
    return {
        "token": token_level.optimum(tree).value,
        "block": float(single_path.acceptance(tree)[1:].sum()),
        "lossless-optimum": single_path.optimum(tree).bound,
        "block-transport": block_transport.optimum(tree).value,
    }


def tables(found: list[Record]) -> list[Table]:
    """A row a task, temperature and method; and what the maps say."""
    decoded = [record for record in found if record["kind"] == "decoded"]
    rows = []
    for (heat, task), part in groups(decoded, "temperature", "task").items():
        rows += [(task, heat, *row) for row in by_method(part)]
    for (heat,), part in groups(decoded, "temperature").items():
        rows += [("all", heat, *row) for row in by_method(part)]
    columns = ("task", "temperature", "method", "block efficiency", "block : token", "tokens/s", "x plain")
    decoding = Table(
        "Token against block verification", columns, rows, "+- 95 % intervals over prompts and seeds, paired"
    )
    gains = []
    for record in found:
        if record["kind"] == "map":
            maps = {name: np.array(values) for name, values in record["maps"].items()}
            ratio = (1 + maps["block"]) / (1 + maps["token"])
            at = np.unravel_index(int(ratio.argmax()), ratio.shape)
            p, q = record["grid"][at[0]], record["grid"][at[1]]
            least = float((maps["block"] - maps["token"]).min())
            gap = float(np.abs(maps["block"] - maps["lossless-optimum"]).max())
            gains.append(
                (record["length"], float(ratio.mean()), float(ratio.max()), f"p {p:.2f}, q {q:.2f}", least, gap)
            )
    names = ("L", "mean gain", "largest gain", "at", "least block - token", "block to the optimum")
    return [decoding, Table("Bernoulli pairs, exact: block efficiency of block against token", names, gains)]


def by_method(part: list[Record]) -> list[tuple[object, ...]]:
    """(method, block efficiency, its ratio to token verification, tokens per second, ratio to plain decoding)."""
    rows: list[tuple[object, ...]] = []
    for (method,), own in groups(part, "method").items():
        ratio = paired(part, method, str(method).replace("block", "token"), "block_efficiency")
        rows.append(
            (
                method,
                str(mean(value_of(record, "block_efficiency") for record in own)),
                str(ratio) if str(method).startswith("block") else "",
                f"{mean(value_of(record, 'tokens_per_second') for record in own).mean:.1f}",
                str(paired(part, method, "plain", "tokens_per_second")),
            )
        )
    return rows


def draw(found: list[Record], figure: Figure) -> None:
    """The maps: a row a length, a column a verifier."""
    maps = [record for record in found if record["kind"] == "map"]
    figure.set_size_inches(3.2 * len(MAPS), 3 * len(maps))
    axes = figure.subplots(len(maps), len(MAPS), squeeze=False)
    for row, record in zip(axes, maps, strict=True):
        for place, name in zip(row, MAPS, strict=True):
            extent = (record["grid"][0], record["grid"][-1]) * 2
            image = place.imshow(record["maps"][name], origin="lower", extent=extent, vmin=0, vmax=record["length"])
            place.set_title(f"{name}, L = {record['length']}", fontsize=9)
            place.set_xlabel("q (draft)")
            place.set_ylabel("p (target)")
        figure.colorbar(image, ax=list(row), label="tokens kept per call")


EXPERIMENT = Experiment(
    "block-verification", "2403.10444", "token against block verification on tasks; exact map of Bernoulli pairs",
    jobs, tables, draw,
)  # fmt: skip
