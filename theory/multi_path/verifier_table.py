"""From a selected-path law to a verifier that can be executed: score intervals, stop probabilities, corrections.

kappa is the law of one selected draft (`solver`), K drafts, g(t) = 1 - (1-t)^K, P, Q joints of target and draft,
p(y|w) the target's next token, phi(w) = Pr(the kept prefix passes through w), kappa(w) the mass of kappa below w.

    select   every draft that ends in leaf l draws a score, uniform on a set of intervals of [0, 1] of length Q(l);
             the smallest score wins. Scores of K independent drafts are K independent uniforms on [0, 1], so leaf l
             wins with probability (integral of g' over its intervals) = kappa(l).
    keep     walk up from the winning leaf; at node w stop with probability
             stop(w) = (phi(w) - sum_y phi(wy)) / (kappa(w) - sum_y phi(wy)),   stop(root) = 1
    correct  lossless         Y = y with probability (p(y|w) phi(w) - phi(wy)) / (phi(w) - sum_y phi(wy)), then p
             block-transport  Y = y with probability (P(wy) - phi(wy)) / (P(w) - sum_y phi(wy)), and every further
                              token down to depth L by the same rule at its own node; after depth L, p

Intervals exist because kappa/Q is majorised by g' (Strassen; Hardy, Littlewood, Polya), and are found by the shadow
coupling: by decreasing kappa/Q, cut out of what is left of [0, 1], glued together, the stretch of length Q(l) whose
integral of g' is kappa(l). The upward walk is block verification [BV, arXiv:2403.10444] against kappa.

The file (JSON object, all fields required):
    format      "specbound.verifier-table"
    version     1
    objective   "lossless" or "block-transport"
    paths       K
    value       expected number of drafted tokens kept per round (the correction token is not counted)
    tree        the instance, a JSON object as written by PrefixTree.to_json; n nodes breadth-first, node 0 the root;
                the leaves below are its nodes of depth L, in node order
    scores      [leaves] list of [low, high] pairs for each leaf; empty if no draft ends there
    kappa       [leaves] probability that the leaf is selected, sum 1
    phi         [n] probability that the kept prefix passes through the node
    stop        [n] probability that the upward walk stops at the node, given that it got there
    correction  [n] probability that the next token leads to the node, given that the walk stopped at its parent;
                at the root 1. Rows of siblings sum to 1.
    later       "target": tokens after the correction follow the target; "correction": down to depth L they follow
                `correction` at their own node (block transport)

To run it on one round: map each draft to its leaf; draw for each a uniform on [0, total length of its intervals] and
read off the point of the union at that distance from its left end (if rounding made the total 0, take the left end);
keep the draft with the smallest point; walk up with `stop`; stopped at depth L, draw the bonus token from the bonus row
of the tree; stopped above, draw a child by `correction`, and go on as `later` says.

Example: V = 2, L = 1, K = 2, target (1/3, 2/3), draft (2/3, 1/3):
    {"format": "specbound.verifier-table", "version": 1, "objective": "lossless", "paths": 2,
     "value": 0.8888888888888888,
     "tree": {"format": "specbound.prefix-tree", "version": 1, "vocab": 2, "length": 1, "parent": [-1, 0, 0],
              "token": [-1, 0, 1], "target": ["1", "1/3", "2/3"], "draft": ["1", "2/3", "1/3"],
              "bonus": [["1/3", "2/3"], ["1/3", "2/3"]]},
     "scores": [[[0.3333333333333333, 1.0]], [[0.0, 0.3333333333333333]]],
     "kappa": [0.4444444444444444, 0.5555555555555556], "phi": [1.0, 0.3333333333333333, 0.5555555555555556],
     "stop": [1.0, 0.75, 1.0], "correction": [1.0, 0.0, 1.0], "later": "target"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import brentq

from ..duality import kept_mass
from ..feasibility import coverage, selected_mass
from ..json_objects import read_object, write_object
from ..numbers import Array, as_floats, read_float, read_floats
from ..prefix_tree import PrefixTree
from ..solution import Objective, check_paths
from .certificates import PathObjective, check_objective, fill_to_base

FORMAT = "specbound.verifier-table"
VERSION = 1
TOLERANCE = 1e-9
FIELDS = ("objective", "paths", "value", "tree", "scores", "kappa", "phi", "stop", "correction", "later")
Intervals = tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class VerifierTable:
    """An executable verifier of K drafts on one tree; the fields are those of the file (module docstring).

    Attributes:
        scores: per node of depth L its disjoint intervals, of total length Q. kappa [leaves]; phi, stop,
        correction [n].
    """

    tree: PrefixTree
    paths: int
    objective: PathObjective
    scores: tuple[Intervals, ...]
    kappa: Array
    phi: Array
    stop: Array
    correction: Array

    @property
    def value(self) -> float:
        """Expected number of drafted tokens kept per round."""
        return float(self.phi[1:].sum())

    @property
    def later(self) -> str:
        """What the tokens after the correction follow."""
        return "target" if self.objective == "lossless" else "correction"

    def to_json(self) -> str:
        """The file described in the module docstring."""
        fields = {name: getattr(self, name) for name in FIELDS if name != "tree"}
        return write_object(FORMAT, VERSION, fields | {"tree": json.loads(self.tree.to_json())})

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> VerifierTable:
        """Read a table and check it: every law is a law, and the scores select by kappa.

        Raises:
            ValueError: naming the field, and what is wrong with it.
        """
        data = read_object("the table", text, FORMAT, VERSION, FIELDS)
        tree = PrefixTree.from_json(data["tree"])
        check_paths(data["paths"])
        check_objective(data["objective"])
        kappa, phi, stop, correction = (
            read_floats(name, data[name]) for name in ("kappa", "phi", "stop", "correction")
        )
        table = cls(tree, data["paths"], data["objective"], _read_scores(data["scores"]), kappa, phi, stop, correction)
        _check(table)
        if data["later"] != table.later:
            raise ValueError(f"later is {data['later']!r}; want {table.later!r} for objective {table.objective!r}")
        if not abs(read_float("value", data["value"]) - table.value) <= TOLERANCE:
            raise ValueError(f"value is {data['value']!r}; phi sums to {table.value!r}")
        return table


def verifier_table(tree: PrefixTree, paths: int, kappa: Array | None, objective: Objective) -> VerifierTable:
    """The verifier that selects by kappa and then keeps as much as a single path allows.

    Args:
        kappa [leaves]: any law in B, e.g. `Solution.kappa`; it is raised to total mass 1 (`fill_to_base`), which
            never lowers the value, and cut back to B if it is not in it.
    Raises:
        ValueError: wrong shape, negative or non-finite kappa, paths or objective out of range.
    """
    check_paths(paths)
    objective = check_objective(objective)
    if kappa is None or np.shape(kappa) != (len(tree.bonus),):
        raise ValueError(
            f"kappa has shape {np.shape(np.asarray(kappa))}; want ({len(tree.bonus)},), one entry per node of depth L"
        )
    numbers = as_floats(kappa)
    if not (np.isfinite(numbers).all() and (numbers >= 0).all()):
        raise ValueError("kappa has a negative or non-finite entry; want a law on the nodes of depth L")
    plain = tree.as_float() if tree.exact else tree
    draft = plain.draft_joint[plain.leaves]
    scores = score_intervals(fill_to_base(numbers, draft, paths), draft, paths)
    selected = np.array([_won(intervals, paths) for intervals in scores])
    phi = kept_mass(plain, selected_mass(plain, selected), objective)
    stop, correction = _walk(plain, selected, phi, objective)
    return VerifierTable(tree, paths, objective, scores, selected, phi, stop, correction)


def score_intervals(kappa: Array, draft: Array, paths: int) -> tuple[Intervals, ...]:
    """Disjoint intervals of [0, 1]: leaf l gets length Q(l) and integral of g' equal to kappa(l).

    Args:
        kappa [leaves]: a law in B with sum 1; draft [leaves]: Q, sum 1.
    """
    result: list[Intervals] = [()] * len(kappa)
    low, high = np.zeros(1), np.ones(1)
    reached = np.flatnonzero(draft > 0)
    order = reached[np.argsort(-kappa[reached] / draft[reached], kind="stable")]
    for count, leaf in enumerate(order):
        rest = np.concatenate([[0.0], np.cumsum(high - low)])
        length = min(float(draft[leaf]), rest[-1])
        begin = _stretch(low, high, rest, length, float(kappa[leaf]), paths)
        end = begin + length if count < len(order) - 1 else rest[-1]
        inside_low = low + np.clip(begin - rest[:-1], 0.0, high - low)
        inside_high = low + np.clip(end - rest[:-1], 0.0, high - low)
        taken = inside_high > inside_low
        result[leaf] = tuple(zip(inside_low[taken].tolist(), inside_high[taken].tolist(), strict=True))
        if not taken.any():
            point = float(inside_low[np.argmin(np.abs(rest[:-1] - begin))]) if len(low) else 1.0
            result[leaf] = ((point, point),)
        low, high = np.concatenate([low, inside_high]), np.concatenate([inside_low, high])
        order_left = np.argsort(low, kind="stable")
        low, high = low[order_left], high[order_left]
        low, high = low[high > low], high[high > low]
    return tuple(result)


def _stretch(low: Array, high: Array, rest: Array, length: float, mass: float, paths: int) -> float:
    """Where the stretch of this length with integral of g' equal to mass begins in the glued remainder."""
    won = np.concatenate([[0.0], np.cumsum(coverage(high, paths) - coverage(low, paths))])

    def integral(x: float) -> float:
        piece = min(int(np.searchsorted(rest, x, side="right")) - 1, len(low) - 1)
        return float(won[piece] + coverage(low[piece] + x - rest[piece], paths) - coverage(low[piece], paths))

    def excess(x: float) -> float:
        return integral(x + length) - integral(x) - mass

    last = rest[-1] - length
    if last <= 0.0 or len(low) == 0 or excess(0.0) <= 0.0:
        return 0.0
    if excess(last) >= 0.0:
        return float(last)
    return float(brentq(excess, 0.0, last, xtol=1e-16, rtol=8.9e-16, maxiter=1000))


def _won(intervals: Intervals, paths: int) -> float:
    """Integral of g' over the intervals: the probability to be the leaf of the smallest of K uniform scores."""
    return float(sum(coverage(high, paths) - coverage(low, paths) for low, high in intervals))


def _walk(tree: PrefixTree, kappa: Array, phi: Array, objective: PathObjective) -> tuple[Array, Array]:
    """stop [n] and correction [n] of the module docstring; rows that cannot be reached follow the target."""
    below = tree.child_sums(phi)
    here, arriving = np.maximum(phi - below, 0.0), selected_mass(tree, kappa) - below
    stop = np.ones(tree.size)
    np.divide(here, arriving, out=stop, where=arriving > 0)
    stop = np.minimum(stop, 1.0)
    stop[0] = 1.0
    parent = np.maximum(tree.parent, 0)
    offered = tree.target * phi[parent] if objective == "lossless" else tree.target_joint
    missing = np.maximum(offered - phi, 0.0)
    missing[0] = 0.0
    total = tree.child_sums(missing)[parent]
    correction = tree.target.copy()
    np.divide(missing, total, out=correction, where=total > 0)
    correction[0] = 1.0
    return stop, correction


# ---------------------------------------------------------------------- checks


def _read_scores(value: Any) -> tuple[Intervals, ...]:
    if not isinstance(value, list) or not all(isinstance(intervals, list) for intervals in value):
        raise ValueError("scores must be a list with one list of [low, high] pairs per node of depth L")
    for leaf, intervals in enumerate(value):
        for pair in intervals:
            ends = read_floats(f"scores[{leaf}]", pair)
            if ends.shape != (2,) or not 0.0 <= ends[0] <= ends[1] <= 1.0:
                raise ValueError(f"scores[{leaf}] has {pair!r}; want [low, high] with 0 <= low <= high <= 1")
    return tuple(tuple((float(low), float(high)) for low, high in intervals) for intervals in value)


def _check(table: VerifierTable) -> None:
    """Raises ValueError unless the fields are what `verifier_table` would have made of the same scores."""
    tree = table.tree.as_float() if table.tree.exact else table.tree
    leaves = len(tree.bonus)
    for name, size in (("scores", leaves), ("kappa", leaves), ("phi", tree.size)):
        if len(getattr(table, name)) != size:
            raise ValueError(f"{name} has {len(getattr(table, name))} entries; want {size}")
    draft = tree.draft_joint[tree.leaves]
    for leaf, intervals in enumerate(table.scores):
        length = sum(high - low for low, high in intervals)
        if abs(length - draft[leaf]) > TOLERANCE or (draft[leaf] > 0 and not intervals):
            raise ValueError(f"scores[{leaf}] has total length {length:.12g}; want the draft's {draft[leaf]:.12g}")
    pairs = sorted(pair for intervals in table.scores for pair in intervals)
    for (_, high), (low, _) in pairwise(pairs):
        if low < high - TOLERANCE:
            raise ValueError(f"scores overlap around {low:.12g}; every score belongs to one leaf")
    kappa = np.array([_won(intervals, table.paths) for intervals in table.scores])
    phi = kept_mass(tree, selected_mass(tree, kappa), table.objective)
    stop, correction = _walk(tree, kappa, phi, table.objective)
    for name, wanted in (("kappa", kappa), ("phi", phi), ("stop", stop), ("correction", correction)):
        given = getattr(table, name)
        if given.shape != wanted.shape or not np.isfinite(given).all():
            raise ValueError(f"{name} has shape {given.shape} or entries that are not finite; want {wanted.shape}")
        # stop and correction are ratios: compare them where the walk gets to, weighted by how often
        weight = 1.0 if name in ("kappa", "phi") else _reach(tree, kappa, phi, name)
        excess = np.abs(given - wanted) * weight
        if excess.max() > TOLERANCE:
            place = int(np.argmax(excess))
            raise ValueError(
                f"{name}[{place}] is {given[place]:.12g}; the scores and the tree make it {wanted[place]:.12g}"
            )
        if (given < 0).any() or (given > 1 + TOLERANCE).any():
            raise ValueError(f"{name} has an entry outside [0, 1]")


def _reach(tree: PrefixTree, kappa: Array, phi: Array, name: str) -> Array:
    """[n] how often the walk asks for stop(w), or corrects at the parent of w."""
    below = tree.child_sums(phi)
    if name == "stop":
        return np.maximum(selected_mass(tree, kappa) - below, 0.0)
    return np.maximum(phi - below, 0.0)[np.maximum(tree.parent, 0)]
