"""Multi-token joint speculative decoding (arXiv:2407.09722): perplexity and speed against the threshold tau.

MJSD keeps the longest drafted prefix that is jointly likely enough, P >= tau Q; it is lossy by design, so beside speed
stands the perplexity of the output under the target. Drafts are the best block of a beam search, or a sample.
Baselines: the target alone, greedy and sampled, and token verification.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .decoding import Method, Temperatures, decode_jobs, groups, mean, method_table, per_turn, temperatures
from .experiment import Experiment, Job, Record, Settings, Table, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKEN_BASELINE = "token"


def jobs(settings: Settings) -> list[Job]:
    """The baselines, then MJSD at every tau and beam width; beams 0 is a sampled draft."""
    (length,) = choose(settings.lengths, settings.quick, (4,), (4,))[:1]
    thresholds = (0.1, 0.9) if settings.quick else (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)
    widths = (0, 2) if settings.quick else (0, 1, 2, 4)
    methods = [Method("plain", "plain"), Method(TOKEN_BASELINE, "token", length=length)]
    methods += [
        Method(f"mjsd tau={tau:g} beams={width}", "mjsd", length=length, options={"threshold": tau}, beams=width)
        for tau in thresholds
        for width in widths
    ]
    greedy = decode_jobs(settings, methods[:1], [Temperatures(0.0, 0.0)], kind="decoded")
    return [*greedy, *decode_jobs(settings, methods, temperatures(settings, (1.0,)), kind="decoded")]


def tables(found: list[Record]) -> list[Table]:
    """Perplexity under the target, tokens per call and speed."""
    quantities = {"perplexity": per_turn("perplexity"), "tokens per call": per_turn("block_efficiency")}
    return [method_table(found, "MJSD against its threshold", quantities)]


def draw(found: list[Record], figure: Figure) -> None:
    """Perplexity against tokens per call, a point a method."""
    place = figure.subplots()
    for (heat, method), own in groups(found, "temperature", "method").items():
        x, y = (mean(record[name] for record in own).mean for name in ("block_efficiency", "perplexity"))
        place.plot(x, y, "o")
        place.annotate(f"{method}, {heat}", (x, y), fontsize=7)
    place.set_xlabel("tokens per target call")
    place.set_ylabel("perplexity under the target")


EXPERIMENT = Experiment(
    "mjsd", "2407.09722", "perplexity and speed of joint verification against its threshold and beam width",
    jobs, tables, draw,
)  # fmt: skip
