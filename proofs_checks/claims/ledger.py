"""The ledger: one function per claim, each returning what was found and on what evidence.

A claim is entered with `@claim(...)`. Its check is a function of a *subject*, the object the claim is about (a
verifier, a value, a rule), and every claim names a *control*: another subject, for which the same check must come out
the other way. The tests run all controls, so a check that cannot fail is noticed. `run` checks the claims and compares
each verdict and counterexample with the one recorded in the repository, so that a change in the code that changes a
finding does not go unnoticed.

Verdicts
    holds       on everything it was checked on; the evidence says on what and how accurately
    proved      symbolically or in rational arithmetic, for the case stated in the evidence
    refuted     with the smallest counterexample found, in fractions
    undecided   with the reason
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal

from specbound.files import write_text
from specbound.theory.solution import CertificateError

VerdictWord = Literal["holds", "proved", "refuted", "undecided"]
Kind = Literal["stated", "reading", "code", "experiment", "own"]
Check = Callable[[Any, bool], "Outcome"]
PAPERS = ("block_verification", "multi_path", "spectr_gbv", "joint_decoding", "draft_length")
CHAPTERS = (*PAPERS, "baselines", "experiments", "own", "many_calls", "field_2026")


@dataclass(frozen=True)
class Paper:
    """Where claims come from.

    Attributes:
        short: how sources cite it, e.g. "BV" for "[BV]".
        title: of the paper, or what the group of claims is.
        arxiv: its number, if it has one.
    """

    short: str
    title: str
    arxiv: str | None

    @property
    def heading(self) -> str:
        """Title and number in one line."""
        return self.title if self.arxiv is None else f"{self.title} (arXiv:{self.arxiv})"


OWN = Paper("own", "This project's own constructions", None)


@dataclass(frozen=True)
class Outcome:
    """What a check found: the verdict, the evidence in one or two sentences, a counterexample exactly if refuted."""

    verdict: VerdictWord
    evidence: str
    counterexample: str | None = None

    def __post_init__(self) -> None:
        if (self.verdict == "refuted") != bool(self.counterexample):
            raise ValueError(
                f"verdict {self.verdict!r} with counterexample {self.counterexample!r}; want one if refuted"
            )


@dataclass(frozen=True)
class Claim:
    """A statement and the function that checks it.

    Attributes:
        id: short name, e.g. "BV-optimal".
        paper: where it comes from; claims of one paper stand together.
        kind: "stated" (in the paper), "reading" (what a reader may take from it), "code" (about its public code),
            "experiment" (the shape of its measurements), "own" (stated by this project).
        source: the place in the paper, or whose reading it is.
        statement: the claim, in one sentence.
        tested: the exact object tested (a paper's formula, public code, or code of this project).
        check: `check(subject, deep) -> Outcome`; `deep` asks for the long version.
        subject: what the claim is about.
        control: a subject for which the same check must not come out as it does for `subject`.
    """

    id: str
    paper: Paper
    kind: Kind
    source: str
    statement: str
    tested: str
    check: Check
    subject: Any
    control: Any


@dataclass(frozen=True)
class Finding:
    """A claim with its outcome. `recorded` is False if the outcome differs from the one in the repository."""

    id: str
    paper: str
    kind: Kind
    source: str
    claim: str
    tested: str
    verdict: VerdictWord
    evidence: str
    counterexample: str | None
    seconds: float
    recorded: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


_CLAIMS: dict[str, Claim] = {}


def claim(
    id: str, *, paper: Paper, kind: Kind, source: str, statement: str, tested: str, subject: Any, control: Any
) -> Callable[[Check], Check]:
    """Decorator that enters a check in the ledger; the arguments are the fields of `Claim`."""

    def enter(check: Check) -> Check:
        if id in _CLAIMS:
            raise ValueError(f"claim {id!r} is entered twice; choose another id")
        _CLAIMS[id] = Claim(id, paper, kind, source, statement, tested, check, subject, control)
        return check

    return enter


@cache
def claims() -> dict[str, Claim]:
    """All claims by id: the papers in the order of the chapters, own constructions last."""
    for chapter in CHAPTERS:
        import_module(f"specbound.proofs_checks.claims.{chapter}")
    papers = [*dict.fromkeys(entry.paper for entry in _CLAIMS.values() if entry.paper != OWN), OWN]
    return {id: entry for paper in papers for id, entry in _CLAIMS.items() if entry.paper == paper}


def select(only: Sequence[str]) -> list[Claim]:
    """The claims whose id starts with one of the prefixes (upper or lower case); all if none is given.

    Raises:
        ValueError: if a prefix matches no claim.
    """
    everything = claims()
    for prefix in only:
        if not any(id.lower().startswith(prefix.lower()) for id in everything):
            raise ValueError(f"no claim starts with {prefix!r}; known are {', '.join(everything)}")
    prefixes = tuple(prefix.lower() for prefix in only)
    return [entry for id, entry in everything.items() if not prefixes or id.lower().startswith(prefixes)]


def run(entries: Sequence[Claim], deep: bool = False) -> Iterator[Finding]:
    """Check the claims one after another and compare each outcome with the recorded one."""
    recorded = read_record()
    for entry in entries:
        start = time.perf_counter()
        outcome = outcome_of(entry, entry.subject, deep)
        seconds = time.perf_counter() - start
        same = recorded.get(entry.id) == {"verdict": outcome.verdict, "counterexample": outcome.counterexample}
        yield Finding(
            entry.id,
            entry.paper.heading,
            entry.kind,
            entry.source,
            entry.statement,
            entry.tested,
            outcome.verdict,
            outcome.evidence,
            outcome.counterexample,
            seconds,
            same,
        )


def outcome_of(entry: Claim, subject: Any, deep: bool = False) -> Outcome:
    """Run a claim's check on a subject; undecided if a solver's answer cannot be certified."""
    try:
        return entry.check(subject, deep)
    except CertificateError as error:
        return Outcome("undecided", f"a solver's answer could not be certified: {error}")


def _record_file() -> Path:
    return Path(str(resources.files("specbound.proofs_checks.claims"))) / "recorded.json"


def read_record() -> dict[str, dict[str, str | None]]:
    """Recorded verdict and counterexample of every claim."""
    return json.loads(_record_file().read_text(encoding="utf-8"))


def write_record(findings: Sequence[Finding]) -> None:
    """Record the findings (those of claims not among them stay as they are, those of removed claims go)."""
    record = read_record() | {
        finding.id: {"verdict": finding.verdict, "counterexample": finding.counterexample} for finding in findings
    }
    kept = {id: record[id] for id in claims() if id in record}
    write_text(_record_file(), json.dumps(kept, indent=2) + "\n")
