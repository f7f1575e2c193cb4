"""The ledger: one function per published claim, each returning what was found and on what evidence.

A claim is entered with `@claim(...)`; `run` checks the claims and compares each verdict and counterexample with the
one recorded in the repository, so that a change in the code that changes a finding does not go unnoticed.

Verdicts
    holds       on everything it was checked on; the evidence says on what and how accurately
    proved      symbolically or in rational arithmetic, for the case stated in the evidence
    refuted     with the smallest counterexample found, in fractions
    undecided   with the reason
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal

from specbound.files import write_text
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError

VerdictWord = Literal["holds", "proved", "refuted", "undecided"]
CHAPTERS = ("block_verification", "multi_path", "spectr_gbv", "draft_length", "joint_decoding")


@dataclass(frozen=True)
class Outcome:
    """What a check found: the verdict, the evidence in one or two sentences, a counterexample if refuted."""

    verdict: VerdictWord
    evidence: str
    counterexample: str | None = None


@dataclass(frozen=True)
class Claim:
    """A published statement and the function that checks it.

    Attributes:
        id: short name, its prefix names the chapter, e.g. "BV-optimal".
        source: paper and place.
        statement: the claim, in one sentence.
        tested: the exact object tested (a paper's formula, public code, or code of this project).
        check: `check(deep) -> Outcome`; `deep` asks for the long version.
    """

    id: str
    source: str
    statement: str
    tested: str
    check: Callable[[bool], Outcome]


@dataclass(frozen=True)
class Finding:
    """A claim with its outcome. `recorded` is False if the outcome differs from the one in the repository."""

    id: str
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


def claim(id: str, *, source: str, statement: str, tested: str) -> Callable[[Callable[[bool], Outcome]], Any]:
    """Decorator that enters a check in the ledger."""

    def enter(check: Callable[[bool], Outcome]) -> Callable[[bool], Outcome]:
        if id in _CLAIMS:
            raise ValueError(f"claim {id!r} is entered twice; choose another id")
        _CLAIMS[id] = Claim(id, source, statement, tested, check)
        return check

    return enter


@cache
def claims() -> dict[str, Claim]:
    """All claims by id, in the order of the chapters."""
    for chapter in CHAPTERS:
        import_module(f"specbound.proofs_checks.claims.{chapter}")
    return dict(_CLAIMS)


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
        try:
            outcome = entry.check(deep)
        except CertificateError as error:
            outcome = Outcome("undecided", f"a solver's answer could not be certified: {error}")
        seconds = time.perf_counter() - start
        expected = recorded.get(entry.id)
        same = expected == {"verdict": outcome.verdict, "counterexample": outcome.counterexample}
        yield Finding(
            entry.id,
            entry.source,
            entry.statement,
            entry.tested,
            outcome.verdict,
            outcome.evidence,
            outcome.counterexample,
            seconds,
            same,
        )


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


# ---------------------------------------------------------------------- instances to check claims on


def rational_rows(vocab: int, denominator: int) -> list[tuple[Fraction, ...]]:
    """All rows of V probabilities with the given common denominator (not in lowest terms necessarily)."""
    cuts = itertools.product(range(denominator + 1), repeat=vocab - 1)
    return [
        tuple(Fraction(part, denominator) for part in (*head, denominator - sum(head)))
        for head in cuts
        if sum(head) <= denominator
    ]


def simple_instances(max_vocab: int, max_length: int, max_denominator: int) -> Iterator[PrefixTree]:
    """iid instances from the simplest on: by V, then L, then denominator. For smallest counterexamples."""
    for vocab in range(1, max_vocab + 1):
        for length in range(1, max_length + 1):
            seen: set[tuple[tuple[Fraction, ...], tuple[Fraction, ...]]] = set()
            for denominator in range(1, max_denominator + 1):
                rows = rational_rows(vocab, denominator)
                for target, draft in itertools.product(rows, rows):
                    if (target, draft) not in seen:
                        seen.add((target, draft))
                        yield PrefixTree.iid(target, draft, length)


def random_instances(count: int, max_vocab: int = 3, max_length: int = 3) -> Iterator[PrefixTree]:
    """Context-dependent random instances, shapes and concentrations in turn, seeds 0, 1, ..."""
    shapes = [(v, d) for v in range(2, max_vocab + 1) for d in range(1, max_length + 1)]
    for seed in range(count):
        vocab, length = shapes[seed % len(shapes)]
        yield PrefixTree.random(vocab, length, seed, concentration=(0.2, 0.5, 1.0, 3.0)[seed // len(shapes) % 4])


def described(tree: PrefixTree) -> str:
    """An instance in one line, in fractions; row by row if it is not iid."""

    def row(values: Any, node: int) -> str:
        children = tree.children[node]
        return f"({','.join(str(value) for value in values[children.start : children.stop])})"

    inner = [node for node in range(tree.size) if tree.children[node].start < tree.children[node].stop]
    rows = {node: (row(tree.target, node), row(tree.draft, node)) for node in inner}
    if len(set(rows.values())) == 1:
        target, draft = rows[0]
        return f"V={tree.vocab}, L={tree.length}, iid target {target}, draft {draft}"
    laws = (f"after {tree.prefix(node)} target {target}, draft {draft}" for node, (target, draft) in rows.items())
    return f"V={tree.vocab}, L={tree.length}, {'; '.join(laws)}"
