"""Solutions with a certificate: an optimum is a feasible phi from below and a dual bound from above, or an error.

phi(w) = Pr(the accepted prefix passes through w); the value is the expected acceptance length E[tau], the sum of
phi over all prefixes but the empty one (drafted tokens kept per round; the correction token is not counted).

    objective        maximises sum phi over                          verifiers it speaks about
    token            phi(wy) <= min(p, q)(y|w) phi(w)                each token judged by its own ratio, one draft
    lossless         phi(wy) <= p(y|w) phi(w), antichains            stateless and lossless, K independent drafts
    block-transport  phi <= P, superadditive, antichains             couplings with one target block

The constraints are spelled out in `feasibility`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from . import feasibility
from .numbers import ROW_TOLERANCE, Array
from .prefix_tree import PrefixTree

Objective = Literal["token", "lossless", "block-transport"]
FEASIBILITY_TOLERANCE = 10 * ROW_TOLERANCE
ROUNDING = 1e-9


class CertificateError(RuntimeError):
    """A solver's answer that cannot be certified.

    Attributes:
        solver: which solver gave it.
        status: what failed, with the figures.
        advice: what to try.
    """

    def __init__(self, solver: str, status: str, advice: str) -> None:
        super().__init__(f"{solver}: {status}; {advice}")
        self.solver, self.status, self.advice = solver, status, advice


@dataclass(frozen=True, eq=False)
class Solution:
    """A certified optimum: value <= optimum <= bound. Build it with `certify`.

    Attributes:
        value: expected acceptance length of phi, drafted tokens kept per round, in [0, L].
        phi [n]: Pr(the accepted prefix passes through the node), 1 at the root; fractions on an exact tree.
        bound: a dual value that no feasible phi exceeds.
        gap: bound - value, at least 0 and at most the tolerance asked for.
        solver: how phi was found.
        seconds: wall-clock time of the solver.
        lossless: True if phi is that of a stateless lossless verifier (objectives "token" and "lossless").
        exact: the value as a fraction, if phi and the bound are fractions and the gap is exactly 0.
        paths, objective: K, and what was maximised.
        kappa [leaves]: the witness from below, the law of the one draft that is selected (total mass at most 1);
        potential [n]: the witness from above, the prices of `duality` summed along the path. From these two
            `certificates.verify_certificate` proves both bounds again; None where a solver gives only phi and a bound.
    """

    value: float
    phi: Array
    bound: float
    gap: float
    solver: str
    seconds: float
    lossless: bool
    exact: Fraction | None = None
    paths: int = 1
    objective: Objective = "lossless"
    kappa: Array | None = None
    potential: Array | None = None


def certify(
    tree: PrefixTree,
    phi: Array,
    bound: Any,
    *,
    objective: Objective,
    paths: int = 1,
    solver: str,
    seconds: float,
    tolerance: float = 1e-6,
    kappa: Array | None = None,
    potential: Array | None = None,
) -> Solution:
    """Check phi against every constraint of the objective and the bound against its value; then a `Solution`.

    Args:
        phi [n]: floats, or fractions (checked without any tolerance).
        bound: value of a dual feasible point (a number; its validity is the caller's theorem).
        paths: K.
        tolerance: largest gap allowed.
        kappa [leaves]: law of the selected draft, kappa(w) >= phi(w), as evidence for the antichain constraints
            (one sort); without it they are checked by `feasibility.worst_antichain`. Not needed for one path.
        potential [n]: the dual point that `bound` is the value of, to be carried along.
    Raises:
        ValueError: phi has the wrong shape, or objective, paths or tolerance are out of range.
        CertificateError: phi is infeasible, or the bound is below the value, or the gap above the tolerance.
    """
    if objective not in ("token", "lossless", "block-transport"):
        raise ValueError(f"objective is {objective!r}; want 'token', 'lossless' or 'block-transport'")
    check_paths(paths)
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; want a positive number, e.g. 1e-6")
    if phi.shape != (tree.size,):
        raise ValueError(f"phi has shape {phi.shape}; want ({tree.size},), one entry per node")
    if phi.dtype.kind not in "fO":
        raise ValueError(f"phi has dtype {phi.dtype}; want float64 or fractions")
    exact = phi.dtype == object
    if not exact and not (np.isfinite(phi).all() and np.isfinite(float(bound))):
        raise CertificateError(solver, "phi or the bound is not finite", "solve again with a looser tolerance")
    for name, excess in _excesses(tree, phi, objective, paths, kappa):
        if excess > (0 if exact else FEASIBILITY_TOLERANCE):
            status = f"phi fails the {name} constraints by {float(excess):.3g}"
            raise CertificateError(solver, status, "repair phi before certifying it, or tighten the solver's tolerance")
    value = phi[1:].sum()
    gap = bound - value
    if gap < (0 if exact else -ROUNDING * (1 + tree.length)):
        status = f"the bound {float(bound):.12g} is below the value {float(value):.12g}"
        raise CertificateError(solver, status, "the dual point is not feasible: evaluate the bound again from scratch")
    if gap > tolerance:
        status = f"the gap {float(gap):.3g} is above the tolerance {tolerance:.3g}"
        raise CertificateError(solver, status, "allow more iterations, or accept a larger tolerance")
    return Solution(
        value=float(value),
        phi=phi,
        bound=float(max(bound, value)),
        gap=max(0.0, float(gap)),
        solver=solver,
        seconds=seconds,
        lossless=objective != "block-transport",
        exact=Fraction(value) if exact and gap == 0 else None,
        paths=paths,
        objective=objective,
        kappa=kappa,
        potential=potential,
    )


def check_paths(paths: int) -> None:
    """Raises ValueError unless paths is a positive integer."""
    if isinstance(paths, bool) or not isinstance(paths, int | np.integer) or paths < 1:
        raise ValueError(f"paths is {paths!r}; want a positive integer, the number of independent drafts")


def _excesses(
    tree: PrefixTree, phi: Array, objective: Objective, paths: int, kappa: Array | None
) -> list[tuple[str, Any]]:
    """Name and excess of each family of constraints; see `feasibility`."""
    if objective == "token":
        return [("token", feasibility.token_excess(tree, phi))]
    family = (
        ("chain", feasibility.chain_excess) if objective == "lossless" else ("transport", feasibility.transport_excess)
    )
    first = (family[0], family[1](tree, phi))
    if first[1] > FEASIBILITY_TOLERANCE:
        return [first]
    if paths == 1:
        return [first, ("draft", feasibility.draft_excess(tree, phi))]
    if kappa is not None:
        return [first, ("selection", feasibility.selection_excess(tree, phi, kappa, paths))]
    return [first, ("antichain", feasibility.antichain_excess(tree, phi, paths))]
