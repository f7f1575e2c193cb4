"""SpecDec++ (arXiv:2405.19715): how long to draft. Constant lengths, thresholds on the draft's doubt, and the head.

Per method: the share of drafted tokens that is discarded, target calls per token (the verification rate), and the
speed-up. The acceptance head is the one shipped with the shipped pair; with other models it is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbound import shipped_pair
from specbound.runtime.acceptance_head import AcceptanceHead
from specbound.runtime.lengths import AcceptanceHeadLength, ConfidenceLength, EntropyLength, LengthPolicy

from .decoding import Method, decode_jobs, groups, method_table, per_turn, share, temperatures
from .experiment import Experiment, Job, Record, Settings, Table, choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 12


def jobs(settings: Settings) -> list[Job]:
    """Block verification with every rule for stopping the draft."""
    lengths = choose(settings.lengths, settings.quick, (2, 6), (2, 4, 6, 8, 12))
    doubts = (0.3,) if settings.quick else (0.2, 0.3, 0.5, 0.7)
    rules: dict[str, int | LengthPolicy] = {f"constant L={length}": length for length in lengths}
    rules |= {f"confidence {doubt:g}": ConfidenceLength(doubt, maximum=MOST) for doubt in doubts}
    rules |= {f"entropy {doubt:g}": EntropyLength(doubt, maximum=MOST) for doubt in doubts}
    if settings.shipped:
        head = AcceptanceHead.load(shipped_pair.HEAD)
        rules |= {f"head {doubt:g}": AcceptanceHeadLength(head, doubt, maximum=MOST) for doubt in doubts}
    methods = [Method("plain", "plain"), *(Method(label, "block", length=rule) for label, rule in rules.items())]
    return decode_jobs(settings, methods, temperatures(settings, (1.0,)), kind="decoded")


def tables(found: list[Record]) -> list[Table]:
    """Discard rate, verification rate, tokens per call and speed."""
    quantities = {
        "discard rate": share("discarded", "drafted"),
        "verification rate": share("calls", "tokens"),
        "tokens per call": per_turn("block_efficiency"),
    }
    return [method_table(found, "Rules for stopping the draft, block verification", quantities)]


def draw(found: list[Record], figure: Figure) -> None:
    """The paper's Pareto picture: verification rate against discard rate."""
    place = figure.subplots()
    for (method,), own in groups([r for r in found if "drafted" in r], "method").items():
        discard = sum(r["discarded"] for r in own) / max(1, sum(r["drafted"] for r in own))
        verify = sum(r["calls"] for r in own) / sum(r["tokens"] for r in own)
        place.plot(discard, verify, "o")
        place.annotate(str(method), (discard, verify), fontsize=7)
    place.set_xlabel("discard rate: drafted tokens not kept")
    place.set_ylabel("verification rate: target calls per token")


EXPERIMENT = Experiment(
    "specdec++", "2405.19715", "rules for stopping the draft: discard rate, verification rate, speed",
    jobs, tables, draw,
)  # fmt: skip
