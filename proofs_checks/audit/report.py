"""What an audit reports: the verdict, the first wrong position, acceptance against the optimum, a counterexample.

Letters: V vocabulary size, L draft length, K paths.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rich.text import Text

from ..laws.deviation import Deviation
from ..laws.instances import Instance
from ..laws.judge import CONSISTENT, EXIT_CODES, Evidence, lossless


@dataclass(frozen=True)
class Breakdown:
    """There is no law, or none that can be right.

    Attributes:
        kind: what the code did ("hang", "crash", "exit", "memory", "open files", "exception", "invalid result"), or why
            nothing is decided ("not exact": its randomness cannot be enumerated; "stateful": it returns a carry, and is
            sampled; "contradiction": it keeps more than any lossless verifier and seems lossless).
        message: what happened.
        vocab, length, paths: size of the instance it happened on.
    """

    kind: str
    message: str
    vocab: int
    length: int
    paths: int


@dataclass(frozen=True)
class Case:
    """One instance and what was found on it; `deviation` is None if the law is the target's.

    The certified optimum lies between `optimum` and `bound`; `evidence` holds the laws themselves, if they are exact.
    """

    instance: Instance
    deviation: Deviation | None
    acceptance_length: float
    optimum: float
    bound: float
    evidence: Evidence | None = None

    @property
    def share(self) -> float:
        """Of the optimum; 1 where the acceptance length lies in the certified interval."""
        if self.optimum <= self.acceptance_length <= self.bound + CONSISTENT or self.optimum == 0:
            return 1.0
        return self.acceptance_length / self.optimum

    @property
    def total_variation(self) -> float:
        """Of the deviation; 0 if there is none."""
        return self.deviation.total_variation if self.deviation else 0.0


@dataclass(frozen=True)
class Counterexample:
    """The smallest instance found on which the failure remains.

    Attributes:
        instance: the prefix tree as JSON (fractions), paths K.
        deviation: what goes wrong there; None if the code breaks down on it.
        emitted, wanted: the wrong probability and the right one as fractions; `emitted` is None if no fraction could
            be recovered from the computed float.
        story: five lines for people.
        trials: instances tried to find it.
    """

    instance: str
    paths: int
    deviation: Deviation | None
    emitted: Fraction | None
    wanted: Fraction | None
    story: tuple[str, ...]
    trials: int


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    Attributes:
        target: what was audited; way: "replay", "interception", "conditional" (large
            vocabularies) or "sampled".
        verdict: "lossless" (exact), "not rejected" (sampled), "not lossless", "broken" (it crashed, hung, ...) or
            "undecided" (nothing was looked at, or it cannot be audited exactly).
        declared: what a registered verifier declares about itself, None if nothing.
        cases: number of instances audited; skipped: sizes that were too large to enumerate.
        worst: the deviation of largest total variation, the counterexample's included; position: the first position
            that is wrong on any case (by at least a hundredth of the largest deviation).
        failed: family of instances -> how many of it fail, of how many; families that never fail are left out.
        optimum: what the acceptance is compared with: "lossless", or "block-transport" for a verifier that changes
            the target of later positions.
        acceptance: mean and smallest ratio to that optimum, and the largest excess over it.
        frontier: of a stateless verifier that deviates, where it stands below the best of its deviation: `cases`
            solved, and the means of `deviation`, `kept`, `best` and `wasted` over them (see `price`).
        breakdowns: crashes and the like, those met on the way to the counterexample included.
        counterexample: the minimal one; causes: known mistakes whose law equals the code's on every case compared.
        limits: what the audit does not say.
        advice: if it is undecided, what to change so that it can be decided.
        seconds: time taken.
        why: it is lossless, if it is one of those that are reported as biased now and then (see `schemes`), else empty.
    """

    target: str
    way: str
    verdict: str
    declared: bool | None
    optimum: str
    cases: int
    skipped: tuple[str, ...]
    tolerance: float
    largest_total_variation: float
    worst: Deviation | None
    position: int | None
    failed: dict[str, tuple[int, int]]
    acceptance: dict[str, float]
    frontier: dict[str, float] | None
    breakdowns: tuple[Breakdown, ...]
    counterexample: Counterexample | None
    causes: tuple[str, ...]
    limits: str
    advice: str | None
    seconds: float
    why: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def lossless(self) -> bool | None:
        """True if no case showed a deviation or a breakdown; None if that is not decided (also: sampled)."""
        return lossless(self.verdict)

    @property
    def exit_code(self) -> int:
        """0 lossless or not rejected, 1 not lossless or broken, 3 undecided."""
        return EXIT_CODES.get(self.verdict, 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; fractions as strings."""
        found = self.counterexample
        counterexample = found and {
            "instance": found.instance,
            "paths": found.paths,
            "deviation": found.deviation and found.deviation.to_dict(),
            "emitted": None if found.emitted is None else str(found.emitted),
            "wanted": None if found.wanted is None else str(found.wanted),
            "story": list(found.story),
            "trials": found.trials,
        }
        return {
            "target": self.target,
            "way": self.way,
            "verdict": self.verdict,
            "lossless": self.lossless,
            "declared": self.declared,
            "optimum": self.optimum,
            "cases": self.cases,
            "skipped": list(self.skipped),
            "tolerance": self.tolerance,
            "largest_total_variation": self.largest_total_variation,
            "worst": self.worst and self.worst.to_dict(),
            "position": self.position,
            "failed": {family: list(counts) for family, counts in self.failed.items()},
            "acceptance": self.acceptance,
            "frontier": self.frontier,
            "breakdowns": [vars(breakdown) for breakdown in self.breakdowns],
            "counterexample": counterexample,
            "causes": list(self.causes),
            "why": self.why,
            "limits": self.limits,
            "advice": self.advice,
            "seconds": self.seconds,
            **self.details,
        }


COLOURS = {"lossless": "bold green", "not rejected": "bold green", "undecided": "bold yellow"}
WAYS = {
    "replay": "exact, by replaying its draws",
    "interception": "exact, by intercepting its randomness",
    "sampled": "sampled",
    "conditional": "exact conditional laws, by intercepting its randomness",
}


def report_text(report: AuditReport) -> Text:
    """The report for people, as Rich text (`.plain` is without colours)."""
    text = Text()
    text.append(f"{report.target}: ").append(report.verdict, COLOURS.get(report.verdict, "bold red"))
    text.append(f"  ({WAYS[report.way]}; {report.cases} instances, {report.seconds:.1f} s)\n")
    if report.declared is not None:
        text.append(f"It declares itself {'lossless' if report.declared else 'lossy'}.\n")
    if report.why:
        text.append(f"{report.why}\n")
    if report.worst is not None:
        text.append(
            f"First wrong at position {report.position}; total variation up to {report.largest_total_variation:.3g}.\n"
        )
    if report.failed:
        kinds = ", ".join(f"{family} {wrong} of {looked}" for family, (wrong, looked) in report.failed.items())
        text.append(f"{sum(wrong for wrong, _ in report.failed.values())} instances fail: {kinds}.\n")
    for breakdown in report.breakdowns:
        size = f"V={breakdown.vocab} L={breakdown.length} K={breakdown.paths}"
        text.append(f"{breakdown.kind}", "bold red").append(f" at {size}: {breakdown.message}\n")
    if report.acceptance:
        text.append(_acceptance_line(report))
    if report.frontier is not None:
        text.append(_frontier_line(report.frontier))
    if report.counterexample is not None:
        text.append("Smallest counterexample found:\n", "bold")
        for line in report.counterexample.story:
            text.append(f"  {line}\n")
    if report.skipped:
        text.append(f"Too large to enumerate, some or all instances of {', '.join(report.skipped)}.\n")
    if report.advice is not None:
        text.append("To decide it: ", "bold yellow").append(f"{report.advice}\n")
    return text.append(report.limits, "dim")


def _frontier_line(found: dict[str, float]) -> str:
    return (
        f"On {found['cases']} instances where it deviates: total variation {found['deviation']:.4f}, keeps "
        f"{found['kept']:.4f}; the best at that deviation keeps {found['best']:.4f}, so {found['wasted']:.4f} are "
        "wasted (means).\n"
    )


def _acceptance_line(report: AuditReport) -> str:
    found = report.acceptance
    line = (
        f"Accepted tokens per call: mean {found['mean_length']:.4f}, {report.optimum} optimum "
        f"{found['mean_optimum']:.4f}; ratio {found['mean_ratio']:.4f} on average, "
        f"{found['smallest_ratio']:.4f} at worst."
    )
    exact = report.way != "sampled"
    above = exact and found["largest_excess"] > 1e-6 and report.verdict == "not lossless"
    return line + (" It accepts more than any lossless verifier could.\n" if above else "\n")
