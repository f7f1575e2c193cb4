"""Multi-token joint speculative decoding (arXiv:2407.09722): perplexity, speed and energy against threshold and beams.

MJSD keeps the longest drafted prefix that is jointly likely enough, P >= tau Q; it is lossy by design, so beside speed
stands the perplexity of the output under the target. Drafts are the best block of a beam search, a block of sampled
beams, or a plain sample. Baselines: the target alone (greedy, sampled, its own beam search), joint greedy decoding k
tokens at a time (MJGD, by beam search), and token verification.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .decoding import (
    BEAM_SEARCH,
    JOINT_GREEDY,
    Method,
    Temperatures,
    decode_jobs,
    groups,
    mean,
    method_table,
    per_turn,
    share,
    temperatures,
)
from .experiment import Experiment, Job, Record, Settings, Table, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOKEN_BASELINE = "token"
GREEDY = Temperatures(0.0, 0.0)
NO_COUNTER = "energy is absent: no counter of this machine can be read (RAPL, NVML)"


def jobs(settings: Settings) -> list[Job]:
    """Greedily and sampled: the baselines, then MJSD at every tau and beam width; beams 0 is a sampled draft."""
    (length,) = choose(settings.lengths, settings.quick, (4,), (4,))[:1]
    thresholds = (0.1, 0.9) if settings.quick else (0.01, 0.1, 0.3, 0.5, 0.7, 0.9)
    widths = (0, 2) if settings.quick else (0, 1, 2, 4)
    windows = (2, 4) if settings.quick else (2, 3, 4, 6, 8)
    searched = (2,) if settings.quick else (2, 4, 8)
    greedy = [Method("plain", "plain")]
    greedy += [Method(f"beam search of the target, beams={width}", BEAM_SEARCH, beams=width) for width in searched]
    greedy += [Method(f"mjgd k={k} beams={searched[-1]}", JOINT_GREEDY, length=k, beams=searched[-1]) for k in windows]
    drafted = [_mjsd(tau, width, length) for tau in thresholds for width in widths]
    drawn = [_mjsd(tau, width, length, True) for tau in thresholds for width in widths if width > 1]
    sampled = [Method("plain", "plain"), Method(TOKEN_BASELINE, "token", length=length), *drafted, *drawn]
    greedy += [method for method in drafted if method.beams]
    sampled_jobs = decode_jobs(settings, sampled, temperatures(settings, (1.0,)), kind="decoded")
    return [*decode_jobs(settings, greedy, [GREEDY], kind="decoded"), *sampled_jobs]


def _mjsd(tau: float, width: int, length: int, drawn: bool = False) -> Method:
    label = f"mjsd tau={tau:g} {'sampled ' if drawn else ''}beams={width}"
    return Method(label, "mjsd", length=length, options={"threshold": tau}, beams=width, sample_beams=drawn)


def tables(found: list[Record]) -> list[Table]:
    """Perplexity under the target, tokens per call, speed and energy."""
    quantities = {"perplexity": per_turn("perplexity"), "tokens per call": per_turn("block_efficiency")}
    measured = any("joules" in record for record in found)
    if measured:
        quantities["J per token"] = share("joules", "tokens")
    return [method_table(found, "MJSD against its threshold", quantities, note="" if measured else NO_COUNTER)]


def draw(found: list[Record], figure: Figure) -> None:
    """Perplexity against tokens per call, a line over tau for each draft; and against k, the tokens decided by MJGD."""
    joint = [record for record in found if str(record["method"]).startswith("mjgd")]
    single = [record for record in found if record["method"] == "plain" and record["temperature"] == GREEDY.label]
    heats = groups([record for record in found if record not in joint], "temperature")
    *places, windows = figure.subplots(1, len(heats) + 1)
    for place, ((heat,), part) in zip(places, heats.items(), strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for (method,), own in groups(part, "method").items():
            kept, perplexity = (mean(r[name] for r in own).mean for name in ("block_efficiency", "perplexity"))
            draft = re.sub(r" tau=\S+", "", str(method)).replace("beams=0", "sampled draft")
            lines.setdefault(draft, []).append((kept, perplexity))
        for label, line in lines.items():
            place.plot(*zip(*line, strict=True), "o-" if label.startswith("mjsd") else "x", label=label, markersize=4)
        place.set_title(f"temperature {heat}")
        place.set_yscale("log")
        place.yaxis.set_major_formatter("{x:g}")
        place.yaxis.set_minor_formatter("{x:g}")
        place.legend(fontsize=6)
        place.set_xlabel("tokens per target call")
        place.set_ylabel("perplexity under the target")
    points = [(1, mean(record["perplexity"] for record in single).mean)] if single else []
    for (method,), own in groups(joint, "method").items():
        points.append((int(str(method).split("k=")[1].split(" ")[0]), mean(r["perplexity"] for r in own).mean))
    windows.plot(*zip(*sorted(points), strict=True), marker="o")
    windows.set_xlabel("k tokens at a time; 1: greedy")
    windows.set_ylabel("perplexity under the target")


EXPERIMENT = Experiment(
    "mjsd", "2407.09722", "perplexity and speed of joint verification against its threshold and beam width",
    jobs, tables, draw,
)  # fmt: skip
