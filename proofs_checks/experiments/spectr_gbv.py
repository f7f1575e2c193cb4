"""SpecTr-GBV (arXiv:2604.25925): K = 3 paths at L = 8 and 12; its published rule, and a lossless construction of it.

Beside block efficiency and speed stands the time of a verdict, of the stateful verifiers too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .decoding import Method, decode_jobs, groups, mean, method_table, per_turn, share, temperatures
from .experiment import Experiment, Job, Record, Settings, Table, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY_PATHS = ("kseq", "gbv", "spectr-gbv-published", "spectr-gbv")


def jobs(settings: Settings) -> list[Job]:
    """Plain decoding, token verification, and the verifiers of K paths at every length."""
    lengths = choose(settings.lengths, settings.quick, (4,), (8, 12))
    (paths,) = choose(settings.paths, settings.quick, (3,), (3,))[:1]
    methods = [Method("plain", "plain")]
    for length in lengths:
        methods.append(Method(f"token K=1 L={length}", "token", length=length))
        methods += [Method(f"{name} K={paths} L={length}", name, paths, length) for name in MANY_PATHS]
    heats = temperatures(settings, (0.4,) if settings.quick else (0.4, 1.0))
    return decode_jobs(settings, methods, heats, kind="decoded")


def tables(found: list[Record]) -> list[Table]:
    """Tokens per call, milliseconds a verdict, speed."""
    quantities = {
        "tokens per call": per_turn("block_efficiency"),
        "verify ms a call": share("verify_seconds", "calls", 1e3),
        "perplexity": per_turn("perplexity"),
    }
    return [method_table(found, "SpecTr-GBV beside its baselines", quantities)]


def draw(found: list[Record], figure: Figure) -> None:
    """Tokens per call by method and temperature."""
    place = figure.subplots()
    bars = groups([record for record in found if record["method"] != "plain"], "temperature", "method")
    labels = [f"{method}, {heat}" for heat, method in bars]
    place.barh(labels, [mean(record["block_efficiency"] for record in own).mean for own in bars.values()])
    place.set_xlabel("tokens per target call")


EXPERIMENT = Experiment(
    "spectr-gbv", "2604.25925", "K = 3 paths: the published rule, a lossless construction, K-SEQ and gbv; verdict time",
    jobs, tables, draw,
)  # fmt: skip
