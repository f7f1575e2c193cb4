"""Losslessness of every other verifier that is declared lossless: the papers' baselines, one claim each.

SpecInfer, SpecTr, traversal verification and what else the registry holds. A verifier that is registered as lossless
becomes a claim here, under the paper that its source names first, or among this project's own.
"""

from __future__ import annotations

import re

from specbound.runtime import registry

from .evidence import Subject, lossless, many_path_cases, single_path_cases, wrong_at
from .ledger import OWN, Outcome, Paper, claim

PAPER = re.compile(r"(?P<title>.+?),? (?:arXiv:(?P<arxiv>\d+\.\d+)|openreview )")
CLAIMED_ELSEWHERE = (
    "token",
    "block",
    "greedy-block",
    "gbv",
    "two-level",
    "key-race",
    "spectr-gbv",
    "table",
    "global-resolution",
)
SPECULATIVE_DECODING = Paper("token", "Speculative decoding", "2211.17192")


@claim(
    "BV-token-lossless",
    paper=SPECULATIVE_DECODING,
    kind="stated",
    source="arXiv:2211.17192, Theorem 1 (Appendix A.1); restated in [BV] Section 2",
    statement="Token verification leaves the target's law unchanged.",
    tested="runtime verifier `token`",
    subject="token",
    control=wrong_at("token", vocab=3, length=2, paths=1),
)
def token_verification_is_lossless(verifier: Subject, deep: bool) -> Outcome:
    return lossless(verifier, single_path_cases(deep))


def paper_of(source: str) -> Paper:
    """The paper that a registered source names first ("SpecTr, arXiv:2310.15141, ..."); own constructions otherwise."""
    named = PAPER.match(source)
    if named is None or source.startswith("specbound (own)"):
        return OWN
    return Paper(named["title"], named["title"], named["arxiv"])


def _declared_lossless(name: str) -> None:
    entry = registry.get(name)
    paper = paper_of(entry.source)
    paths = 1 if entry.paths == "single" else 2

    @claim(
        f"LOSSLESS-{name}",
        paper=paper,
        kind="own" if paper is OWN else "stated",
        source=entry.source,
        statement=f"The verifier `{name}` leaves the target's law unchanged.",
        tested=f"runtime verifier `{name}`, the law that its code emits",
        subject=name,
        control=wrong_at(name, vocab=2, length=2, paths=paths),
    )
    def check(verifier: Subject, deep: bool) -> Outcome:
        return lossless(verifier, (single_path_cases if paths == 1 else many_path_cases)(deep))


for _name in registry.names():
    if registry.get(_name).lossless and _name not in CLAIMED_ELSEWHERE:
        _declared_lossless(_name)
