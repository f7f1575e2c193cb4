"""Certificates of the multi-path optima: two sorts and one walk up the tree, independent of any solver.

K drafts X_1..X_K are drawn independently from the draft model; P, Q are the joints of target and draft, S a set of
full drafts (leaves), g(t) = 1 - (1-t)^K. kappa is the law of ONE selected draft, kappa(w) its mass below node w.

    selectable   B = {kappa >= 0 on leaves : kappa(S) <= g(Q(S)) for every S}
    primal       lossless          max over B of sum phi,  phi(wy) = min(kappa(wy), p(y|w) phi(w)),  phi(root) = 1
                 block-transport   max over B of sum phi,  phi(w)  = min(kappa(w), P(w))
    dual         for any C >= 0 on nodes, C(root) = 0, growing along every path (leaf values C(X)):
                 lossless          E[max_k C(X_k)] + sup over times s, one token ahead, of E_P[s - C(Y_1..Y_s)]
                 block-transport   E[max_k C(X_k)] + E_P[max over d of d - C(Y_1..Y_d)]

Weak duality: the accepted prefix W lies on some draft, so E[C(W)] <= E[max_k C(X_k)]; and W is a prefix of the
target stream: known once the token after it is (lossless: phi(wy) <= p(y|w) phi(w) edge by edge), or chosen knowing
the whole block (block transport). So any kappa gives a lower and any C an upper bound, both evaluated exactly: a
solver can be wrong only by leaving them too far apart.
Rounding is that of float64 sums, below 1e-12 for a million nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, cast

import numpy as np

from ..duality import increments, kept_mass, upper_bound
from ..feasibility import coverage, selected_mass
from ..json_objects import read_object, write_object
from ..numbers import Array, Number, as_floats, is_exact, read_number, read_numbers
from ..prefix_tree import PrefixTree
from ..solution import CertificateError, Solution, certify, check_paths

PathObjective = Literal["lossless", "block-transport"]
FORMAT = "specbound.certificate"
VERSION = 1


def verify_certificate(
    tree: PrefixTree,
    paths: int,
    kappa: Array,
    potential: Array,
    objective: PathObjective,
    *,
    solver: str = "certificate",
    seconds: float = 0.0,
    tolerance: float = np.inf,
) -> Solution:
    """Evaluate both bounds from scratch; nothing is taken on trust.

    kappa is first made selectable (`selectable`), C monotone (`monotone`): either may come from any solver. Tree and
    witnesses in fractions are evaluated in fractions, anything else in float64.

    Args:
        kappa [leaves]: mass on the nodes of depth L; potential [n]: C on all nodes.
        solver, seconds: whose witnesses they are. tolerance: largest gap allowed.
    Raises:
        ValueError: wrong shapes, negative or non-finite entries, unknown objective.
        CertificateError: the lower bound exceeds the upper one by more than rounding (an inconsistent tree), or the
            gap is above the tolerance.
    """
    check_paths(paths)
    check_objective(objective)
    if not (tree.exact and all(isinstance(values, np.ndarray) and is_exact(values) for values in (kappa, potential))):
        tree = tree.as_float() if tree.exact else tree
        kappa, potential = as_floats(kappa), as_floats(potential)
    for name, values, size in (("kappa", kappa, len(tree.bonus)), ("potential", potential, tree.size)):
        if np.shape(values) != (size,):
            raise ValueError(f"{name} has shape {np.shape(values)}; want ({size},)")
        if not ((is_exact(values) or np.isfinite(values).all()) and (values >= 0).all()):
            raise ValueError(f"{name} has a negative or non-finite entry; want numbers of at least 0")
    kappa = selectable(kappa, tree.draft_joint[tree.leaves], paths)
    potential = monotone(tree, potential)
    return certify(
        tree,
        kept_mass(tree, selected_mass(tree, kappa), objective),
        upper_bound(tree, paths, objective, increments(tree, potential)),
        objective=objective,
        paths=paths,
        solver=solver,
        seconds=seconds,
        tolerance=tolerance,
        kappa=kappa,
        potential=potential,
    )


def check_objective(objective: str) -> PathObjective:
    """The objective; raises ValueError unless it is "lossless" or "block-transport"."""
    if objective not in ("lossless", "block-transport"):
        raise ValueError(f"objective is {objective!r}; want 'lossless' or 'block-transport'")
    return cast("PathObjective", objective)


# ---------------------------------------------------------------------- from below


def selectable(kappa: Array, draft: Array, paths: int) -> Array:
    """The nearest-in-profile kappa' in B: sort by kappa/Q, cut the cumulative mass off at g.

    F = min(cumsum kappa, g(cumsum Q)) in the order of decreasing kappa/Q; kappa' = increments of F. A minimum of two
    concave functions is concave, so kappa'/Q is still decreasing and every S is dominated by a prefix: kappa' in B.
    A kappa in B is returned unchanged up to rounding. Leaves that no draft reaches get 0.

    Args:
        kappa [leaves] >= 0; draft [leaves]: Q.
    """
    reached = np.flatnonzero(draft > 0)
    with np.errstate(over="ignore"):
        order = reached[np.argsort(-kappa[reached] / draft[reached], kind="stable")]
    profile = np.minimum(np.cumsum(kappa[order]), coverage(np.cumsum(draft[order]), paths))
    result = draft * 0
    result[order] = np.maximum(np.diff(profile, prepend=draft[:1] * 0), 0)
    return result


def violated(kappa: Array, draft: Array, points: Array, paths: int, share: float = 0.0, least: float = 1e-12) -> Array:
    """In every arc between two tangent points the draft mass t of the leaves of highest kappa/Q that exceed g(t) most.

    Arcs count where the excess is above `least` and above `share` of the largest one.
    """
    reached = np.flatnonzero(draft > 0)
    order = reached[np.argsort(-kappa[reached] / draft[reached], kind="stable")]
    mass = np.minimum(np.cumsum(draft[order]), 1.0)
    violation = np.cumsum(kappa[order]) - coverage(mass, paths)
    arc = np.minimum(np.searchsorted(points, mass), len(points) - 1)
    chosen = [at[np.argmax(violation[at])] for at in (np.flatnonzero(arc == a) for a in np.unique(arc))]
    return np.array([mass[i] for i in chosen if violation[i] > max(share * violation.max(), least)])


def fill_to_base(kappa: Array, draft: Array, paths: int) -> Array:
    """Raise a selectable kappa to total mass 1: lift the smallest kappa/Q to one common level.

    kappa' = max(kappa, level Q). Only the flat end of the cumulative curve is raised, to a chord that ends in
    (1, 1) = (1, g(1)) and starts below g: by concavity kappa' stays in B.

    Args:
        kappa [leaves], draft [leaves] (sum 1).
    Returns:
        kappa' [leaves] >= kappa, sum 1 (up to rounding).
    """
    kappa = selectable(kappa, draft, paths)
    reached = np.flatnonzero(draft > 0)
    with np.errstate(over="ignore"):
        order = reached[np.argsort(kappa[reached] / draft[reached], kind="stable")]
        lifted, mass = np.cumsum(draft[order]), np.cumsum(kappa[order])
        levels = np.maximum(1.0 - (mass[-1] - mass), 0.0) / lifted
        slopes = np.append(kappa[order][1:] / draft[order][1:], np.inf)
    level = levels[np.argmax(np.isfinite(levels) & (levels <= slopes))]
    result = np.zeros(len(kappa))
    result[reached] = np.maximum(kappa[reached], level * draft[reached])
    return result / result.sum()


# ---------------------------------------------------------------------- from above


def monotone(tree: PrefixTree, potential: Array) -> Array:
    """C made a dual point: 0 at the root, never falling along a path, at least L where no draft goes (costless)."""
    result = np.where(tree.draft_joint > 0, potential, np.maximum(potential, tree.length))
    result[0] = result[0] * 0
    for level in tree.levels[1:]:
        result[level] = np.maximum(result[level], result[tree.parent[level]])
    return result


# ---------------------------------------------------------------------- JSON


def certificate_to_json(tree: PrefixTree, solution: Solution) -> str:
    """The instance and the two witnesses, enough to verify again: fields format, version, objective, paths, tree,
    kappa [leaves], potential [n], value, bound. Exact solutions are written in fractions ("131/81").

    Raises:
        ValueError: the solution carries no witnesses.
    """
    if solution.kappa is None or solution.potential is None:
        raise ValueError(f"the solution of {solution.solver} has no witnesses; solve with certified_optimum")
    fields = {name: getattr(solution, name) for name in ("objective", "paths", "kappa", "potential")}
    exact = solution.exact is not None
    fields |= {name: solution.exact if exact else getattr(solution, name) for name in ("value", "bound")}
    return write_object(FORMAT, VERSION, fields | {"tree": json.loads(tree.to_json())})


def certificate_from_json(text: str | Mapping[str, Any]) -> tuple[PrefixTree, Solution]:
    """Read and verify: the bounds returned are evaluated anew, and must confirm those written in the file.

    Raises:
        ValueError: naming the field and the fix.
        CertificateError: the file claims a larger value or a smaller bound than its witnesses prove.
    """
    fields = ("objective", "paths", "tree", "kappa", "potential", "value", "bound")
    data = read_object("the certificate", text, FORMAT, VERSION, fields)
    tree = PrefixTree.from_json(data["tree"])
    kappa, potential = (read_numbers(data[name], name) for name in ("kappa", "potential"))
    found = verify_certificate(tree, data["paths"], kappa, potential, data["objective"])
    check_claims(data, found.value, found.bound, found.exact, tree.length)
    return tree, found


def check_claims(data: Mapping[str, Any], value: float, bound: float, exact: Fraction | None, length: int) -> None:
    """Raises CertificateError if a file claims a larger value or a smaller bound than was proved from it."""
    proven: tuple[tuple[str, Number, int], ...] = (("value", value, 1), ("bound", bound, -1))
    for name, number, sign in proven:
        claim = read_number(data[name], name)
        rounding = 0 if exact is not None and isinstance(claim, Fraction) else 1e-9 * (1 + length)
        if not sign * (claim - (number if exact is None else exact)) <= rounding:
            status = f"the file claims {name} {float(claim):.12g}, its witnesses prove {float(number):.12g}"
            raise CertificateError("certificate", status, "solve the instance again")
