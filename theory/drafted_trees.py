"""The optimum for any drafted tree: which drafts are worth their nodes.

A drafter draws a random tree T of prefixes, all of its branches L tokens long, by a law known from the context. Let
f(S) = Pr(T meets S) for a set S of full drafts (leaves), kappa the law of ONE leaf of T that is selected, kappa(w) its
mass below w, p(y|w), P target conditional and joint.

    maximise    sum_w phi(w),   phi(wy) = min(kappa(wy), p(y|w) phi(w))       (block transport: min(kappa(w), P(w)))
    over        the core of f:  kappa(S) <= f(S) for every set S of leaves

By Hall's theorem these kappa are the laws of the selected leaf, and verifying it alone reaches what any verifier can
(K independent drafts: `multi_path`). f is a coverage function, so the core is the hull of its greedy corners

    v_order(x) = Pr(x is the first leaf of the order that T has)          (Edmonds)

and the best corner for prices C on the leaves takes them by falling C. Hence column generation: an LP over mixtures of
corners proposes prices, one sort and n evaluations of f give the corner they ask for and, by weak duality,

    optimum <= v_order . C + what the target gains against C  (`duality`),    v_order . C = E[max of C over T].

The mixture is a verifier one can run: draw one of its orders, take the first drafted leaf in it, verify that path.

Draft laws (SPEC), all known node by node as a law over sets of children:

    iid:K                         K independent paths
    without-replacement:W1,W2,..  a node at depth d draws W_(d+1) different children, one after the other
    top:W1,W2,..                  its W_(d+1) most probable children
    top-and-sampled:W1,W2,..      all but one of them so, the last one drawn from the rest
    stem:L1,K                     one path of L1 tokens, then K independent paths below it

Given T's node w, the branches below its children are independent, so Pr(T misses S) is a recursion up the tree; tokens
of draft probability 0 are never drafted. Source: own derivation; first tokens: arXiv:2502.18779, arXiv:2511.15898.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy import sparse

from . import linear_program as lp
from .duality import chain_bound, increments, kept_mass, path_sums, transport_bound
from .feasibility import selected_mass
from .json_objects import read_object, write_object
from .multi_path.certificates import PathObjective, check_claims, check_objective
from .numbers import Array, as_floats, is_exact, read_count, read_list, read_numbers, to_array
from .prefix_tree import PrefixTree
from .solution import CertificateError

KINDS = ("iid", "without-replacement", "top", "top-and-sampled", "stem")
GRAMMAR = "iid:K, without-replacement:W1,W2,.., top:W1,W2,.., top-and-sampled:W1,W2,.. or stem:L1,K"
FORMAT = "specbound.drafts-certificate"
VERSION = 1
SOLVER = "HiGHS, corners of the core"
MAX_SETS = 200_000
MAX_EXACT_NODES = 100
MAX_EXACT_SIZE = 16
MAX_EXACT_WORK = 200_000
MAX_ROUNDS = 400
SMOOTHING = (0.0, 0.5, 0.85)
CLOSE = 1e-8
BINDING = 1e-7


@dataclass(frozen=True)
class Drafts:
    """A drafting law, as written in SPEC: its kind, and K, (L1, K), or the number of children at each depth."""

    kind: str
    sizes: tuple[int, ...]

    @classmethod
    def parse(cls, spec: str) -> Drafts:
        """Read SPEC. Raises ValueError naming what is wrong with it."""
        kind, colon, sizes = spec.partition(":")
        if kind not in KINDS or not colon:
            raise ValueError(f"drafts is {spec!r}; want {GRAMMAR}")
        if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6})*", sizes):
            raise ValueError(f"drafts is {spec!r}; want whole numbers after the colon, e.g. {kind}:2")
        drafts = cls(kind, tuple(int(size) for size in sizes.split(",")))
        wanted = {"iid": 1, "stem": 2}.get(kind)
        if wanted is not None and len(drafts.sizes) != wanted:
            raise ValueError(f"drafts is {spec!r}; want {'iid:K' if kind == 'iid' else 'stem:L1,K'}")
        if min(drafts.sizes[1:] if kind == "stem" else drafts.sizes) < 1:
            raise ValueError(f"drafts is {spec!r}; want at least 1")
        return drafts

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(map(str, self.sizes))}"


class DraftLaw:
    """The law of the drafted tree on one instance, in the instance's arithmetic.

    Attributes:
        drafts: what is drafted.
        sets: per node (probability [M], members [M, W]): the law of its set of drafted children, given that the node
            is drafted (of one path's child where several paths follow, see `paths`).
        paths: depth -> K where K independent paths begin (iid, stem).

    Raises:
        ValueError: the spec does not fit the tree's length, or a node has more than 200 000 sets of children.
    """

    def __init__(self, tree: PrefixTree, drafts: Drafts) -> None:
        self.tree, self.drafts = tree, drafts
        self.paths: dict[int, int] = {}
        widths = drafts.sizes
        if drafts.kind in ("iid", "stem"):
            stem = 0 if drafts.kind == "iid" else drafts.sizes[0]
            if stem >= tree.length:
                raise ValueError(f"drafts is {drafts}; want a stem shorter than the draft length {tree.length}")
            self.paths, widths = {stem: drafts.sizes[-1]}, (1,) * tree.length
        if len(widths) != tree.length:
            raise ValueError(f"drafts is {drafts}; want {tree.length} numbers, one per drafted token")
        self.sets: list[tuple[Array, Array] | None] = []
        for node in range(tree.size):
            children = tree.children[node]
            tokens = [child for child in range(children.start, children.stop) if tree.draft[child] > 0]
            self.sets.append(self._law(tokens, widths[tree.depth[node]]) if tokens else None)

    def _law(self, tokens: list[int], width: int) -> tuple[Array, Array]:
        """Law of the set of children among `tokens` (node numbers) by the kind of drafting."""
        width, draft = min(width, len(tokens)), self.tree.draft
        ranked = sorted(tokens, key=lambda child: -draft[child])
        if self.drafts.kind == "top":
            return np.array([draft[0]]), np.array([ranked[:width]])
        if self.drafts.kind == "top-and-sampled":
            kept, rest = ranked[: width - 1], ranked[width - 1 :]
            return draft[rest] / draft[rest].sum(), np.array([[*kept, child] for child in rest])
        if width == 1:
            return draft[tokens], np.array(tokens)[:, None]
        return _without_replacement(tokens, draft, width)

    def corner(self, order: Sequence[int] | Array) -> Array:
        """[leaves] v(x) = Pr(x is the first leaf of T in the order); leaves left out of the order get 0.

        Args:
            order: leaves, as indices of `tree.bonus`.
        """
        tree = self.tree
        miss = tree.draft * 0 + 1
        corner = miss[tree.leaves] * 0
        for leaf in order:
            node = tree.leaves.start + int(leaf)
            missed, miss[node] = miss[0], miss[node] * 0
            while node > 0:
                node = int(tree.parent[node])
                miss[node] = self._missed(node, miss)
            corner[leaf] = missed - miss[0]
        return np.maximum(corner, corner * 0)

    def _missed(self, node: int, miss: Array) -> Any:
        """Pr(T misses what is sought below the node, given that the node is drafted), from that of its children."""
        law = self.sets[node]
        if law is None:
            return miss[node]
        chance = (law[0] * miss[law[1]].prod(axis=1)).sum()
        return chance ** self.paths.get(int(self.tree.depth[node]), 1)

    def reach(self) -> Array:
        """[n] Pr(w is in T), 1 at the root."""
        tree = self.tree
        reach = np.zeros_like(tree.draft)
        for node in range(tree.size):
            miss = tree.draft * 0 + 1
            miss[node] = miss[node] * 0
            above = node
            while above > 0:
                above = int(tree.parent[above])
                miss[above] = self._missed(above, miss)
            reach[node] = 1 - miss[0]
        return reach


def _without_replacement(tokens: list[int], draft: Array, width: int) -> tuple[Array, Array]:
    """Law of the set of `width` tokens drawn one after the other, each in proportion to the draft among those left."""
    total = draft[tokens].sum()
    law: dict[tuple[int, ...], Any] = {(): draft[0]}
    for _ in range(width):
        longer: dict[tuple[int, ...], Any] = {}
        for chosen, chance in law.items():
            left = total - sum(draft[child] for child in chosen)
            for child in tokens:
                if child not in chosen:
                    key = tuple(sorted((*chosen, child)))
                    longer[key] = longer.get(key, 0) + chance * draft[child] / left
        if len(longer) > MAX_SETS:
            raise ValueError(f"{len(longer)} sets of children at one node; lower the number of children or of tokens")
        law = longer
    return np.array(list(law.values()), dtype=draft.dtype), np.array(list(law))


@dataclass(frozen=True, eq=False)
class DraftedOptimum:
    """The optimum of one drafting law on one tree, certified: value <= optimum <= bound.

    Attributes:
        value, bound, gap: expected drafted tokens kept per call, and what no verifier exceeds.
        exact: the value as a fraction, if both are fractions and equal.
        phi [n], kappa [leaves]: acceptance of each prefix, and the law of the selected leaf.
        potential [n]: the prices from above, summed along the path.
        orders, weights: the witness from below; kappa is the mixture of the orders' corners.
        drafts: the drafting law. nodes: expected number of drafted nodes, the root not counted.
        objective, lossless, solver, seconds: as in `solution.Solution`.
    """

    value: float
    bound: float
    gap: float
    exact: Fraction | None
    phi: Array
    kappa: Array
    potential: Array
    orders: tuple[tuple[int, ...], ...]
    weights: Array
    drafts: Drafts
    nodes: Any
    objective: PathObjective
    lossless: bool
    solver: str
    seconds: float


def drafted_optimum(
    tree: PrefixTree,
    drafts: Drafts,
    objective: PathObjective = "lossless",
    tolerance: float = 1e-6,
    max_rounds: int = MAX_ROUNDS,
) -> DraftedOptimum:
    """The largest acceptance length of a verifier of trees drafted by this law; a fraction on small exact trees.

    Raises:
        ValueError: the law does not fit the tree, or objective or tolerance are out of range.
        CertificateError: the bounds stay further apart than the tolerance.
    """
    check_objective(objective)
    if not 0 < tolerance < np.inf:
        raise ValueError(f"tolerance is {tolerance}; want a positive number, e.g. 1e-6")
    start = time.perf_counter()
    plain = tree.as_float()
    law = DraftLaw(plain, drafts)
    small = tree.exact and tree.size <= MAX_EXACT_NODES and max(drafts.sizes) <= MAX_EXACT_SIZE
    search = _Columns(plain, law, law.reach(), objective)
    for _ in range(max_rounds):
        if search.improve() <= (CLOSE if small else tolerance):
            break
    if search.bound - search.value > tolerance:
        status = f"the bounds [{search.value:.9g}, {search.bound:.9g}] are {search.bound - search.value:.3g} apart"
        raise CertificateError(SOLVER, f"{status} after {max_rounds} rounds", "give a larger tolerance")
    if small:
        exact = _in_fractions(tree, drafts, search, start)
        if exact is not None:
            return exact
    return evaluated(plain, drafts, objective, search.orders, search.weights, search.potential, start)


def evaluated(
    tree: PrefixTree,
    drafts: Drafts,
    objective: PathObjective,
    orders: Sequence[Sequence[int]],
    weights: Array,
    potential: Array,
    start: float | None = None,
) -> DraftedOptimum:
    """Both bounds from the witnesses alone, in the tree's arithmetic; the weights are rescaled to sum to at most 1.

    Raises:
        ValueError: witnesses of the wrong shape, negative weights or prices, orders that repeat a leaf.
    """
    leaves = len(tree.bonus)
    if len(weights) != len(orders) or (weights < 0).any():
        raise ValueError(f"weights has {len(weights)} entries; want {len(orders)} of at least 0, one per order")
    if potential.shape != (tree.size,) or (potential < 0).any():
        raise ValueError(f"potential has shape {potential.shape} or negative entries; want ({tree.size},)")
    for order in orders:
        if len({*order}) != len(order) or not all(0 <= leaf < leaves for leaf in order):
            raise ValueError(f"an order has {len(order)} entries; want different leaves, 0..{leaves - 1}")
    law = DraftLaw(tree, drafts)
    reach = law.reach()
    kappa = reach[tree.leaves] * 0
    for order, weight in zip(orders, weights, strict=True):
        kappa = kappa + weight * law.corner(order)
    kappa = kappa / max(weights.sum(), 1)
    phi = kept_mass(tree, selected_mass(tree, kappa), objective)
    potential = _monotone(tree, reach, potential)
    value, bound = phi[1:].sum(), _dual_value(tree, law, objective, potential)
    gap = bound - value
    return DraftedOptimum(
        value=float(value),
        bound=float(max(bound, value)),
        gap=max(0.0, float(gap)),
        exact=Fraction(value) if tree.exact and gap == 0 else None,
        phi=phi,
        kappa=kappa,
        potential=potential,
        orders=tuple(tuple(order) for order in orders),
        weights=weights,
        drafts=drafts,
        nodes=reach[1:].sum(),
        objective=objective,
        lossless=objective == "lossless",
        solver=SOLVER + (", in fractions" if tree.exact else ""),
        seconds=0.0 if start is None else time.perf_counter() - start,
    )


def _dual_value(tree: PrefixTree, law: DraftLaw, objective: PathObjective, potential: Array) -> Any:
    """E[max of C over T] + what the target gains against C: an upper bound from any monotone C >= 0."""
    order = np.argsort(-potential[tree.leaves], kind="stable")
    gain = transport_bound if objective == "block-transport" else chain_bound
    return (law.corner(order) * potential[tree.leaves]).sum() + gain(tree, increments(tree, potential))


def _monotone(tree: PrefixTree, reach: Array, potential: Array) -> Array:
    """C made a dual point: 0 at the root, never falling along a path, at least L where no draft goes (costless)."""
    result = np.where(reach > 0, potential, np.maximum(potential, tree.length))
    result[0] = result[0] * 0
    for level in tree.levels[1:]:
        result[level] = np.maximum(result[level], result[tree.parent[level]])
    return result


# ---------------------------------------------------------------------- JSON


def certificate_to_json(tree: PrefixTree, found: DraftedOptimum) -> str:
    """The instance and the witnesses: fields format, version, objective, drafts (SPEC), tree, orders (lists of leaves),
    weights, potential [n], value, bound; in fractions if the optimum is."""
    names = ("objective", "orders", "weights", "potential")
    fields = {name: getattr(found, name) for name in names} | {"drafts": str(found.drafts)}
    fields |= {name: getattr(found, name) if found.exact is None else found.exact for name in ("value", "bound")}
    return write_object(FORMAT, VERSION, fields | {"tree": json.loads(tree.to_json())})


def certificate_from_json(text: str | Mapping[str, Any]) -> tuple[PrefixTree, DraftedOptimum]:
    """Read and verify: both bounds are evaluated anew, and must confirm those written in the file.

    Raises:
        ValueError: naming the field and the fix.
        CertificateError: the file claims a larger value or a smaller bound than its witnesses prove.
    """
    fields = ("objective", "drafts", "tree", "orders", "weights", "potential", "value", "bound")
    data = read_object("the certificate", text, FORMAT, VERSION, fields)
    objective = check_objective(data["objective"])
    tree = PrefixTree.from_json(data["tree"])
    weights, potential = (read_numbers(data[name], name) for name in ("weights", "potential"))
    if not isinstance(data["drafts"], str):
        raise ValueError(f"drafts is {data['drafts']!r}; want {GRAMMAR}")
    orders = [
        [read_count(leaf, f"orders[{place}]", len(tree.bonus) - 1) for leaf in read_list(order, f"orders[{place}]")]
        for place, order in enumerate(read_list(data["orders"], "orders"))
    ]
    if not (tree.exact and is_exact(weights) and is_exact(potential)):
        tree, weights, potential = tree.as_float(), as_floats(weights), as_floats(potential)
    found = evaluated(tree, Drafts.parse(data["drafts"]), objective, orders, weights, potential)
    check_claims(data, found.value, found.bound, found.exact, tree.length)
    return tree, found


# ---------------------------------------------------------------------- column generation


class _Columns:
    """The corners found so far, the best mixture of them and the best prices."""

    def __init__(self, tree: PrefixTree, law: DraftLaw, reach: Array, objective: PathObjective) -> None:
        self.tree, self.law, self.reach, self.objective = tree, law, reach, objective
        self.reached = np.flatnonzero(reach[tree.leaves] > 0)
        self.orders: list[tuple[int, ...]] = []
        self.columns: list[Array] = []
        self.value, self.bound = -np.inf, np.inf
        self.worths, self.weights, self.potential = np.zeros(0), np.zeros(0), np.zeros(tree.size)
        ratio = tree.target_joint / np.maximum(reach, 1e-300)
        scores = path_sums(tree, np.minimum(ratio, 10.0))
        for score in (scores, ratio, tree.target_joint, reach):
            self.add(score[tree.leaves])

    def add(self, score: Array) -> Array:
        """The corner of the leaves by falling score."""
        order = self.reached[np.argsort(-score[self.reached], kind="stable")]
        corner = self.law.corner(order)
        key = tuple(order.tolist())
        if key not in self.orders:
            self.orders.append(key)
            self.columns.append(selected_mass(self.tree, corner)[1:])
        return corner

    def improve(self) -> float:
        """Solve the mixture, evaluate its prices and mixtures of them with the best prices, add their corners."""
        tree, count = self.tree, len(self.orders)
        masses = sparse.csr_array(np.array(self.columns).T)
        eye = sparse.eye_array(tree.size - 1, format="csr")
        if self.objective == "lossless":
            first = lp.widened(lp.chain_rows(tree, tree.target), count)
        else:
            first = lp.widened(lp.cap_rows(tree, tree.target_joint), count)
        total = np.concatenate([np.zeros(tree.size - 1), np.ones(count)])[None, :]
        blocks = {
            "target": first,
            "link": lp.Rows(sparse.hstack([eye, -masses], format="csr"), np.zeros(tree.size - 1)),
            "total": lp.Rows(sparse.csr_array(total), np.ones(1)),
        }
        answer = lp.maximise(np.concatenate([np.ones(tree.size - 1), np.zeros(count)]), blocks)
        if answer.value > self.value:
            self.value, self.weights = answer.value, np.maximum(answer.x[tree.size - 1 :], 0)
        self.worths = answer.multipliers["link"] @ np.array(self.columns).T - answer.multipliers["total"]
        proposed = path_sums(tree, np.concatenate([[0.0], answer.multipliers["link"]]))
        for share in SMOOTHING:
            prices = proposed if not np.isfinite(self.bound) else share * self.potential + (1 - share) * proposed
            prices = _monotone(tree, self.reach, prices)
            corner = self.add(prices[tree.leaves])
            gain = transport_bound if self.objective == "block-transport" else chain_bound
            bound = corner @ prices[tree.leaves] + gain(tree, increments(tree, prices))
            if bound < self.bound:
                self.bound, self.potential = bound, prices
        self.weights = np.append(self.weights, np.zeros(len(self.orders) - len(self.weights)))
        return self.bound - self.value

    def binding(self) -> list[tuple[int, ...]]:
        """The orders whose corners are worth as much as the mixture at the last prices: all that an optimum needs."""
        return [order for order, worth in zip(self.orders, self.worths, strict=False) if worth > -BINDING]


def _in_fractions(tree: PrefixTree, drafts: Drafts, search: _Columns, start: float) -> DraftedOptimum | None:
    """The mixture of the corners that bind, solved in fractions; None if its two bounds do not meet exactly."""
    law = DraftLaw(tree, drafts)
    orders = search.binding()
    digits = max(mass.denominator.bit_length() for mass in law.corner(orders[0]))
    if digits * len(orders) ** 2 > MAX_EXACT_WORK:
        return None
    program = lp.Program()
    phi, weights = program.columns(tree.size - 1, 1), program.columns(len(orders))
    masses = [selected_mass(tree, law.corner(order)) for order in orders]
    links = []
    for node, column in enumerate(phi, start=1):
        parent = int(tree.parent[node])
        if search.objective == "block-transport":
            program.limit({column: 1}, tree.target_joint[node])
        elif parent == 0:
            program.limit({column: 1}, tree.target[node])
        else:
            program.limit({column: 1, phi[parent - 1]: -tree.target[node]}, 0)
        row = {weight: -mass[node] for weight, mass in zip(weights, masses, strict=True) if mass[node] != 0}
        links.append(program.limit({column: 1} | row, 0))
    program.limit(dict.fromkeys(weights, 1), 1)
    answer = program.in_fractions(program.solve())
    if answer is None:
        return None
    price = to_array([0, *(answer.multipliers["rows"][row] for row in links)])
    mixture = answer.x[weights.start : weights.stop]
    if (price < 0).any() or (mixture < 0).any() or mixture.sum() > 1:
        return None
    used = [place for place, weight in enumerate(mixture) if weight > 0]
    chosen = [orders[place] for place in used]
    found = evaluated(tree, drafts, search.objective, chosen, mixture[used], path_sums(tree, price), start)
    return found if found.exact is not None else None


# ---------------------------------------------------------------------- how many nodes are worth it


def node_curve(tree: PrefixTree, kind: str, most: int, tolerance: float = 1e-6) -> list[tuple[float, float, Drafts]]:
    """(expected drafted nodes, lossless optimum, drafts) of one kind of drafting with 1..`most` paths or children.

    Widths W at the first depth and 1 below it, or W at every depth: for kinds with widths both shapes are listed.
    """
    sizes: list[tuple[int, ...]] = []
    for width in range(1, most + 1):
        if kind == "iid":
            sizes.append((width,))
        elif kind == "stem":
            sizes += [(stem, width) for stem in range(tree.length)]
        else:
            shapes = itertools.product((1, width), repeat=tree.length)
            sizes += [shape for shape in shapes if list(shape) == sorted(shape, reverse=True)]
    found = []
    for shape in dict.fromkeys(sizes):
        drafts = Drafts(kind, shape)
        best = drafted_optimum(tree, drafts, "lossless", tolerance)
        found.append((float(best.nodes), best.value, drafts))
    return sorted(found, key=lambda point: point[:2])
