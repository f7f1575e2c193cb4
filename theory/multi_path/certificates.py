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
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..feasibility import coverage, selected_mass
from ..json_objects import read_object
from ..numbers import Array, as_floats, read_float, read_floats
from ..prefix_tree import PrefixTree
from ..solution import CertificateError, check_paths

PathObjective = Literal["lossless", "block-transport"]
FORMAT = "specbound.certificate"
VERSION = 1


@dataclass(frozen=True, eq=False)
class Certificate:
    """What proves value <= optimum <= bound for K paths.

    Attributes:
        objective: "lossless" or "block-transport".
        paths: K.
        kappa [leaves]: law of the selected draft on the nodes of depth L; selectable.
        potential [n]: C, at least 0, 0 at the root and growing along every path.
        phi [n]: Pr(the accepted prefix passes through the node) of the verifier that selects by kappa.
        value: sum of phi over non-root nodes, a lower bound.
        bound: dual value of C, an upper bound.
    """

    objective: PathObjective
    paths: int
    kappa: Array
    potential: Array
    phi: Array
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """bound - value, with rounding below 0 counted as 0."""
        return max(0.0, self.bound - self.value)


def verify_certificate(
    tree: PrefixTree, paths: int, kappa: Array, potential: Array, objective: PathObjective
) -> Certificate:
    """Evaluate both bounds from scratch; nothing is taken on trust.

    kappa is first made selectable (`selectable`), C monotone (`monotone`): either may come from any solver.

    Args:
        kappa [leaves]: mass on the nodes of depth L; potential [n]: C on all nodes.
    Raises:
        ValueError: wrong shapes, negative or non-finite entries, unknown objective.
        CertificateError: the lower bound exceeds the upper one by more than rounding (an inconsistent tree).
    """
    check_paths(paths)
    check_objective(objective)
    tree = tree.as_float() if tree.exact else tree
    kappa, potential = as_floats(kappa), as_floats(potential)
    for name, values, size in (("kappa", kappa, len(tree.bonus)), ("potential", potential, tree.size)):
        if np.shape(values) != (size,):
            raise ValueError(f"{name} has shape {np.shape(values)}; want ({size},)")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"{name} has a negative or non-finite entry; want numbers of at least 0")
    kappa = selectable(kappa, tree.draft_joint[tree.leaves], paths)
    potential = monotone(tree, potential)
    phi = kept_mass(tree, kappa, objective)
    value, bound = float(phi[1:].sum()), dual_value(tree, paths, potential, objective)
    if bound < value - 1e-9 * (1 + tree.length):
        status = f"the bound {bound:.12g} is below the value {value:.12g}"
        raise CertificateError("certificate", status, "check that the rows of the tree sum to 1 within rounding")
    return Certificate(objective, paths, kappa, potential, phi, value, bound)


def check_objective(objective: str) -> None:
    """Raises ValueError unless objective is "lossless" or "block-transport"."""
    if objective not in ("lossless", "block-transport"):
        raise ValueError(f"objective is {objective!r}; want 'lossless' or 'block-transport'")


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
    result = np.zeros(len(kappa))
    result[order] = np.maximum(np.diff(profile, prepend=0.0), 0.0)
    return result


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


def kept_mass(tree: PrefixTree, kappa: Array, objective: PathObjective) -> Array:
    """[n] phi of single-path verification against the selected draft's law.

    lossless: phi(wy) = min(kappa(wy), p(y|w) phi(w)), block verification [BV, 2403.10444] with kappa for Q;
    block-transport: phi(w) = min(kappa(w), P(w)). phi(root) = 1 (an empty prefix is always accepted).
    """
    phi = selected_mass(tree, kappa)
    phi[0] = 1.0
    if objective == "block-transport":
        return np.minimum(phi, tree.target_joint)
    for level in tree.levels[1:]:
        phi[level] = np.minimum(phi[level], tree.target[level] * phi[tree.parent[level]])
    return phi


# ---------------------------------------------------------------------- from above


def monotone(tree: PrefixTree, potential: Array) -> Array:
    """C made a dual point: 0 at the root, never falling along a path, at least L where no draft goes (costless)."""
    result = np.where(tree.draft_joint > 0, potential, np.maximum(potential, tree.length))
    result[0] = 0.0
    for level in tree.levels[1:]:
        result[level] = np.maximum(result[level], result[tree.parent[level]])
    return result


def dual_value(tree: PrefixTree, paths: int, potential: Array, objective: PathObjective) -> float:
    """Dual value of a monotone C: E[max_k C(X_k)] plus what the target may gain against it (module docstring)."""
    gain = stopping_gain if objective == "lossless" else hindsight_gain
    leaves = tree.leaves
    return expected_maximum(potential[leaves], tree.draft_joint[leaves], paths) + gain(tree, potential)


def expected_maximum(potential: Array, draft: Array, paths: int) -> float:
    """E[max_k C(X_k)] = sum_j g(Q(j largest)) (C_(j) - C_(j+1)), C_(j) sorted downwards and 0 at the end."""
    reached = np.flatnonzero(draft > 0)
    order = reached[np.argsort(-potential[reached], kind="stable")]
    drops = -np.diff(potential[order], append=0.0)
    return float(coverage(np.cumsum(draft[order]), paths) @ drops)


def stopping_gain(tree: PrefixTree, potential: Array) -> float:
    """sup of E_P[s - C(Y_1..Y_s)] over times s that look one token ahead ({s = d} is known from Y_1..Y_(d+1)).

    D(w) = 1 - (C(w) - C(parent)) + sum_y p(y|w) max(D(wy), 0); the answer is sum over depth 1 of p max(D, 0).
    """
    worth = np.zeros(tree.size)
    for level in reversed(tree.levels[1:]):
        parent = tree.parent[level]
        going_on = worth[level] + 1.0 - (potential[level] - potential[parent])
        worth += np.bincount(parent, tree.target[level] * np.maximum(going_on, 0.0), minlength=tree.size)
    return float(worth[0])


def hindsight_gain(tree: PrefixTree, potential: Array) -> float:
    """E_P[max over d of d - C(Y_1..Y_d)]: the best stop chosen after seeing the whole target block."""
    best = tree.depth - potential
    for level in tree.levels[1:]:
        best[level] = np.maximum(best[level], best[tree.parent[level]])
    return float(tree.target_joint[1:] @ (best[1:] - best[tree.parent[1:]]))


# ---------------------------------------------------------------------- JSON


def certificate_to_json(tree: PrefixTree, certificate: Certificate) -> str:
    """The instance and the two witnesses, enough to verify again: fields format, version, objective, paths, tree,
    kappa [leaves], potential [n], value, bound."""
    data = {"format": FORMAT, "version": VERSION, "objective": certificate.objective, "paths": certificate.paths}
    data |= {"kappa": certificate.kappa.tolist(), "potential": certificate.potential.tolist()}
    data |= {"value": certificate.value, "bound": certificate.bound, "tree": json.loads(tree.to_json())}
    return json.dumps(data)


def certificate_from_json(text: str | Mapping[str, Any]) -> tuple[PrefixTree, Certificate]:
    """Read and verify: the bounds returned are evaluated anew, and must confirm those written in the file.

    Raises:
        ValueError: naming the field and the fix.
        CertificateError: the file claims a larger value or a smaller bound than its witnesses prove.
    """
    fields = ("objective", "paths", "tree", "kappa", "potential", "value", "bound")
    data = read_object("the certificate", text, FORMAT, VERSION, fields)
    tree = PrefixTree.from_json(data["tree"])
    kappa, potential = (read_floats(name, data[name]) for name in ("kappa", "potential"))
    found = verify_certificate(tree, data["paths"], kappa, potential, data["objective"])
    for name, claim, proven, sign in (
        ("value", data["value"], found.value, 1),
        ("bound", data["bound"], found.bound, -1),
    ):
        if not sign * (read_float(name, claim) - proven) <= 1e-9 * (1 + tree.length):
            status = f"the file claims {name} {claim:.12g}, its witnesses prove {proven:.12g}"
            raise CertificateError("certificate", status, "solve the instance again")
    return tree, found
