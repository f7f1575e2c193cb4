"""The multi-path optima in antichain form: linear programs with exponentially many rows, and an exact separation.

    maximise    sum_w phi(w)                            over nodes w other than the root
    subject to  phi(root) = 1
                lossless:          phi(wy) <= p(y|w) phi(w)
                block transport:   phi(w) <= P(w),   phi(w) >= sum_y phi(wy)
                both:              sum_{w in A} phi(w) <= g(sum_{w in A} Q(w))    for every antichain A of nodes

phi(w) = Pr(the accepted prefix passes through w); p, P target conditional and joint, Q joint draft probability,
K independent drafts, g(t) = 1 - (1-t)^K. The antichain rows say that the accepted prefix is a prefix of some draft
(Hall's theorem). They are generated as they are violated, in two ways at once: the violated antichains themselves
(`feasibility.hull_antichains` finds the worst one exactly), and the tangents of g at their masses, each of which is
a valid row for every antichain (`linear_program.tangent_rows`). Rows are sought at the program's answer and half way
from a feasible phi to it; the feasible points on the way give the value, prices on the nodes (`duality`) the bound.

This is the readable route for trees of up to some hundred nodes, and the way to check somebody else's phi; the
selected-path form of the same optimum is the one that scales.

Sources: the lossless program is the information-agnostic optimum of multi-path verification, cf. arXiv:2602.16961;
block transport for K drafts, cf. arXiv:2604.25925; feasible midpoints: in-out separation of Ben-Ameur and Neto.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from scipy import sparse

from .. import block_transport, duality, single_path
from .. import linear_program as lp
from ..feasibility import Antichain, hull_antichains
from ..numbers import Array
from ..prefix_tree import PrefixTree
from ..solution import CertificateError, Objective, Solution, certify, check_paths

SOLVER = "HiGHS, antichain rows"
MAX_ROUNDS = 60
HALVINGS = 40
VIOLATED = 1e-10
DENOMINATOR = 10**6


@dataclass
class Cuts:
    """The rows generated so far: antichains, and points where tangents of g are taken."""

    antichains: list[tuple[int, ...]] = field(default_factory=list)
    tangents: Array = field(default_factory=lambda: np.array([0.05, 0.2, 0.5, 1.0]))


def optimum(tree: PrefixTree, paths: int, objective: Objective = "lossless", tolerance: float = 1e-7) -> Solution:
    """Multi-path optimum by HiGHS and row generation, certified; small trees.

    On an exact tree the final phi and prices are also rounded to fractions of denominator at most 1e6; if these
    certify without any tolerance, `exact` is the optimum as a fraction, else the certificate is the float64 one.

    Args:
        paths: K.
        objective: "lossless" or "block-transport".
    Raises:
        ValueError: paths, objective or tolerance are out of range.
        CertificateError: HiGHS fails, or the gap stays above the tolerance.
    """
    if objective not in ("lossless", "block-transport"):
        raise ValueError(f"objective is {objective!r}; want 'lossless' or 'block-transport'")
    check_paths(paths)
    start = time.perf_counter()
    phi, price = generate_rows(tree.as_float(), paths, objective, 0.01 * tolerance)

    def certified(instance: PrefixTree, acceptance: Array, prices: Array) -> Solution:
        return certify(
            instance,
            acceptance,
            duality.upper_bound(instance, paths, objective, prices),
            objective=objective,
            paths=paths,
            solver=SOLVER,
            seconds=time.perf_counter() - start,
            tolerance=tolerance,
        )

    if tree.exact:
        try:
            solution = certified(tree, rounded(phi), rounded(price))
        except CertificateError:
            pass
        else:
            if solution.exact is not None:
                return solution
    return certified(tree.as_float(), phi, price)


def generate_rows(tree: PrefixTree, paths: int, objective: Objective, tolerance: float) -> tuple[Array, Array]:
    """A feasible phi [n] and prices [n] whose bound is within `tolerance` of it, or the best after 60 rounds."""
    single = single_path if objective == "lossless" else block_transport
    inside, best_price, cuts = single.acceptance(tree), np.ones(tree.size), Cuts()
    bound = np.inf
    for _ in range(MAX_ROUNDS):
        outside, price = solve(tree, paths, objective, cuts)
        if (new_bound := duality.upper_bound(tree, paths, objective, price)) < bound:
            bound, best_price = new_bound, price
        violated = hull_antichains(tree, outside, paths, above=VIOLATED)
        if not violated:
            return outside, best_price
        inside, violated_halfway = half_way(tree, paths, inside, outside)
        if bound - inside[1:].sum() <= tolerance:
            break
        for found in (violated, violated_halfway):
            extend(tree, cuts, found)
    return inside, best_price


def solve(tree: PrefixTree, paths: int, objective: Objective, cuts: Cuts) -> tuple[Array, Array]:
    """The program with the rows of `cuts` only: phi [n], and the price of each node [n] in its dual."""
    extra = (tree.size - 1) * len(cuts.tangents)
    blocks = {name: lp.widened(rows, extra) for name, rows in fixed_rows(tree, objective).items()}
    blocks |= lp.tangent_rows(tree, cuts.tangents, paths)
    rows = lp.antichain_rows(tree, cuts.antichains, paths)
    scale = 1 / np.clip(rows.limits, VIOLATED, 1)
    blocks["antichain"] = lp.widened(lp.Rows(sparse.diags_array(scale) @ rows.matrix, scale * rows.limits), extra)
    gain = np.concatenate([np.ones(tree.size - 1), np.zeros(extra)])
    answer = lp.maximise(gain, blocks)
    price = answer.multipliers["own"].reshape(len(cuts.tangents), -1).sum(axis=0)
    price += rows.matrix.T @ (scale * answer.multipliers["antichain"])
    return lp.with_root(np.maximum(answer.x[: tree.size - 1], 0)), np.concatenate([[0.0], price])


def fixed_rows(tree: PrefixTree, objective: Objective) -> dict[str, lp.Rows]:
    """The rows of the objective that do not speak about drafts."""
    if objective == "lossless":
        return {"chain": lp.chain_rows(tree, tree.target)}
    return {"target": lp.cap_rows(tree, tree.target_joint), "flow": lp.flow_rows(tree)}


def half_way(tree: PrefixTree, paths: int, inside: Array, outside: Array) -> tuple[Array, list[Antichain]]:
    """Move `inside` half the way to `outside` as often as that stays feasible; then what the next step violates."""
    violated: list[Antichain] = []
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        if violated := hull_antichains(tree, middle, paths, above=1e-13):
            break
        inside = middle
    return inside, violated


def extend(tree: PrefixTree, cuts: Cuts, violated: list[Antichain]) -> None:
    """Add violated antichains, and tangents at the masses of the worst of them between each two old tangents."""
    cuts.antichains = list(dict.fromkeys([*cuts.antichains, *(antichain.nodes for antichain in violated)]))
    cuts.tangents = np.unique(np.concatenate([cuts.tangents, list(_new_tangents(tree, cuts.tangents, violated))]))


def _new_tangents(tree: PrefixTree, tangents: Array, violated: list[Antichain]) -> Iterator[float]:
    ranked = sorted(violated, key=lambda antichain: -antichain.excess)
    served = set()
    for antichain in ranked:
        mass = min(1.0, float(tree.draft_joint[list(antichain.nodes)].sum()))
        arc = int(np.searchsorted(tangents, mass))
        if arc not in served and antichain.excess > 0.1 * ranked[0].excess:
            served.add(arc)
            yield mass


def rounded(values: Array) -> Array:
    """The nearest fractions with denominator at most 1e6, as an object array."""
    return np.array([Fraction(float(value)).limit_denominator(DENOMINATOR) for value in values], dtype=object)
