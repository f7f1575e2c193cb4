"""What a verifier that is not lossless pays and wastes: its points below the frontier on the instances of an audit.

The frontier of an instance is the largest acceptance length of any stateless verifier with K independent drafts whose
law of one call deviates as much from the target's, see `specbound.theory.frontier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specbound.theory import frontier
from specbound.theory.solution import CertificateError

from .report import Case

MOST_CASES, MOST_NODES = 24, 121


@dataclass(frozen=True)
class Price:
    """Means over the instances that were solved.

    Attributes:
        cases: number of instances on which the verifier deviates and the frontier was solved.
        deviation: total variation of the law of a call to the target's.
        kept: tokens kept per call; best: the most that any verifier of that deviation keeps; wasted: the difference.
    """

    cases: int
    deviation: float
    kept: float
    best: float
    wasted: float


def price(failed: Sequence[Case]) -> Price | None:
    """The price on the first 24 deviating instances of at most 121 nodes; None if there are none, or
    if it keeps more than the frontier: then it is no verifier of independent drafts."""
    rows: list[tuple[float, float, float]] = []
    for case in failed:
        tree = case.instance.tree.as_float()
        if len(rows) == MOST_CASES or tree.size > MOST_NODES:
            continue
        try:
            best = frontier.optimum(tree, min(1.0, case.total_variation), case.instance.paths).bound
        except CertificateError:
            continue
        if case.acceptance_length > best + 1e-6:
            return None
        rows.append((case.total_variation, case.acceptance_length, best))
    if not rows:
        return None
    deviation, kept, best = map(float, np.mean(rows, axis=0))
    return Price(len(rows), deviation, kept, best, max(0.0, best - kept))
