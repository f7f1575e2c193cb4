"""SpecTr-GBV (arXiv:2604.25925): K = 3 paths at L = 8 and 12; its published rule, and a lossless construction of it.

Beside block efficiency and speed stands the time of a verdict, of the stateful verifiers too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbound.runtime.verifiers import get

from .decoding import Method, decode_jobs, groups, mean, method_table, per_turn, share, temperatures
from .experiment import Experiment, Job, Record, Settings, Table, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_PATH = ("token", "greedy-block")
MANY_PATHS = ("kseq", "gbv", "spectr-gbv-published", "spectr-gbv-published-later-laws", "spectr-gbv")


def jobs(settings: Settings) -> list[Job]:
    """Plain decoding, verifiers of one path, and those of K paths, at every length."""
    lengths = choose(settings.lengths, settings.quick, (4,), (8, 12))
    (paths,) = choose(settings.paths, settings.quick, (3,), (3,))[:1]
    methods = [Method("plain", "plain")]
    for length in lengths:
        methods += [Method(f"{name} K=1 L={length}", name, length=length) for name in ONE_PATH]
        methods += [Method(f"{name} K={paths} L={length}", name, paths, length) for name in MANY_PATHS]
    heats = temperatures(settings, (0.4,) if settings.quick else (0.4, 1.0))
    return decode_jobs(settings, methods, heats, kind="decoded")


def tables(found: list[Record]) -> list[Table]:
    """Tokens per call and speed; then milliseconds a verdict."""
    quantities = {"tokens per call": per_turn("block_efficiency"), "perplexity": per_turn("perplexity")}
    return [method_table(found, "SpecTr-GBV beside its baselines", quantities), verdict_times(found)]


def verdict_times(found: list[Record]) -> Table:
    """What a verdict costs, beside the target's pass; stateful verifiers carry their state along."""
    rows: list[tuple[object, ...]] = []
    milliseconds, target = share("verify_seconds", "calls", 1e3), share("target_seconds", "calls", 1e3)
    for (heat, method), own in groups(found, "temperature", "method").items():
        if "verify_seconds" in own[0]:
            stateful = get(str(method).split(" ")[0]).stateful
            rows.append((heat, method, "yes" if stateful else "no", milliseconds(own), target(own)))
    columns = ("temperature", "method", "stateful", "verdict ms a call", "target pass ms a call")
    return Table("Time of a verdict", columns, rows, "sums over all turns by calls")


def draw(found: list[Record], figure: Figure) -> None:
    """Tokens per call by method and temperature."""
    place = figure.subplots()
    bars = groups([record for record in found if record["method"] != "plain"], "temperature", "method")
    labels = [f"{method}, {heat}" for heat, method in bars]
    kept = [mean(record["block_efficiency"] for record in own) for own in bars.values()]
    place.barh(labels, [m.mean for m in kept], xerr=[m.half_width for m in kept], capsize=2)
    place.invert_yaxis()
    place.set_xlabel("tokens per target call, 95 % intervals")


EXPERIMENT = Experiment(
    "spectr-gbv", "2604.25925", "K = 3 paths: the published rule, a lossless construction, K-SEQ and gbv; verdict time",
    jobs, tables, draw,
)  # fmt: skip
