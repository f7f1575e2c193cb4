"""The linear programs of theory as CVXPY problems with names, for users who want to change them.

Letters: phi(w) = Pr(the accepted prefix passes through w); p(y|w) target conditional, P(w) target joint; T the set of
drafts of one round, with any law Pr(T); select(T, k) = Pr(T is drafted and its k-th draft is selected); kappa(w) =
Pr(the selected draft passes through w).

    maximise    sum_w phi(w)
    subject to  root       phi(root) = 1
                token      phi(wy) <= min(p, q)(y|w) phi(w)                        (token level)
                chain      phi(wy) <= p(y|w) phi(w)                                (lossless)
                target     phi(w) <= P(w)      flow  sum_y phi(wy) <= phi(w)       (block transport)
                drafts     sum_k select(T, k) = Pr(T)
                selected   phi(w) <= kappa(w)
                antichain  phi(A) <= Pr(T meets A)     (instead of drafts and selected, from a coverage function)

Any accepted prefix belongs to some draft: select that one, and kappa >= phi. So the selected form is exact for every
law of T, dependent draws and draws without replacement included; verify the selected draft against kappa.

    >>> tree = PrefixTree.iid((1/3, 2/3), (2/3, 1/3), length=2)
    >>> model = lossless(tree, independent(tree, 2))
    >>> round(model.solve(), 6)                                   # 131/81
    1.617284

A constraint of one's own, say that at most 30% of the rounds may keep a whole draft (its bonus token costs extra):

    >>> phi = model.variables["phi"]
    >>> capped = model.with_constraints(full=cp.sum(phi[tree.leaves]) <= 0.3)
    >>> round(capped.solve(), 6)
    1.188889

Another law of the drafts: the two drafts of a round must differ.

    >>> round(lossless(tree, without_replacement(tree, 2)).solve(), 6)
    1.819048

Sources: as in `single_path`, `antichain` and `block_transport`; solver HiGHS through CVXPY.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cvxpy as cp
import numpy as np
from scipy import sparse

from . import duality
from .block_transport import sources, to_transport
from .numbers import Array
from .prefix_tree import PrefixTree
from .solution import CertificateError, Objective, check_paths

__all__ = [
    "DraftSets",
    "Model",
    "all_antichains",
    "block_transport",
    "from_coverage",
    "independent",
    "lossless",
    "to_transport",
    "token_level",
    "without_replacement",
]

MAX_ANTICHAINS = 50_000


@dataclass(frozen=True)
class DraftSets:
    """A law of the drafts of one round.

    Attributes:
        drafts [N, K]: number of each draft among the nodes of depth L (0 is the first); repetitions allowed.
        law [N]: Pr(T), sums to 1.

    Raises:
        ValueError: shapes do not match, or law is not a law.
    """

    drafts: Array
    law: Array

    def __post_init__(self) -> None:
        if self.drafts.ndim != 2 or len(self.drafts) != len(self.law):
            raise ValueError(f"drafts has shape {self.drafts.shape}, law {self.law.shape}; want [N, K] and [N]")
        if (self.law < 0).any() or abs(self.law.sum() - 1) > 1e-9:
            raise ValueError(f"law has entries down to {self.law.min()} and sums to {self.law.sum()}; want a law")

    def coverage(self, tree: PrefixTree, nodes: Sequence[int]) -> float:
        """Pr(T meets the set of nodes)."""
        beyond = np.zeros(tree.size, dtype=bool)
        beyond[list(nodes)] = True
        for level in tree.levels[1:]:
            beyond[level] |= beyond[tree.parent[level]]
        return float(self.law[beyond[tree.leaves][self.drafts].any(axis=1)].sum())


def independent(tree: PrefixTree, paths: int) -> DraftSets:
    """K independent drafts of the tree's draft law.

    Raises:
        ValueError: there are too many sets of drafts to list.
    """
    drafts, law = sources(tree, paths)
    return DraftSets(drafts, law / law.sum())


def without_replacement(tree: PrefixTree, paths: int) -> DraftSets:
    """K different drafts, drawn one after another with probabilities proportional to Q among those left.

    Raises:
        ValueError: fewer than K drafts are possible, or paths is out of range.
    """
    check_paths(paths)
    law = tree.draft_joint[tree.leaves].astype(float)
    drafted = np.flatnonzero(law > 0)
    if len(drafted) < paths:
        raise ValueError(f"paths is {paths}, but only {len(drafted)} different drafts are possible")
    ordered = np.array(list(itertools.permutations(drafted.tolist(), paths)))
    masses = law[ordered]
    left = 1 - np.cumsum(masses, axis=1) + masses
    return DraftSets(ordered, (masses / left).prod(axis=1))


@dataclass(frozen=True)
class Model:
    """A CVXPY problem whose parts have names.

    Attributes:
        tree: the instance (float64).
        problem: maximise the expected acceptance length.
        variables: "phi" [n], and "select" [N, K] in the selected form.
        parameters: "target" [n], the conditionals p, and "law" [N], Pr(T); set `.value` and solve again.
        constraints: by the names of the module's program.
        drafts: the sets of drafts, if the model has them.
    """

    tree: PrefixTree
    problem: cp.Problem
    variables: dict[str, cp.Variable]
    parameters: dict[str, cp.Parameter]
    constraints: dict[str, Any]
    drafts: DraftSets | None = None

    def solve(self, **options: Any) -> float:
        """Solve with HiGHS (or `solver=`); the optimal acceptance length.

        Raises:
            CertificateError: the solver found no optimum, or its answer violates a constraint by more than 1e-6.
        """
        self.problem.solve(**{"solver": cp.HIGHS, **options})
        if self.problem.status != cp.OPTIMAL:
            advice = "check the constraints you added, or try another solver"
            raise CertificateError("CVXPY", f"status {self.problem.status}", advice)
        for name, constraint in self.constraints.items():
            if (violation := float(np.max(constraint.violation(), initial=0.0))) > 1e-6:
                status = f"constraint {name!r} is violated by {violation:.3g}"
                raise CertificateError("CVXPY", status, "try another solver, or tighten its tolerances")
        return float(self.problem.value)

    def bound(self) -> float:
        """After `solve`: an upper bound from the prices of the constraint "selected", whatever the solver's accuracy.

        sum_T Pr(T) max_k C(draft k of T) + the best of sum (1 - price) phi, with C the prices along the path. It
        holds for the program as built; constraints added later can only lower the optimum further.
        """
        if self.drafts is None or "selected" not in self.constraints:
            raise ValueError("this model has no constraint 'selected'; build it with lossless or block_transport")
        price = np.maximum(self.constraints["selected"].dual_value, 0)
        price[0] = 0.0
        toll = price.copy()
        for level in self.tree.levels[1:]:
            toll[level] += toll[self.tree.parent[level]]
        charge = toll[self.tree.leaves][self.drafts.drafts].max(axis=1)
        if "chain" in self.constraints:
            rest = duality.chain_bound(self.tree, price, self.parameters["target"].value)
        else:
            rest = duality.transport_bound(self.tree, price)
        return float(self.parameters["law"].value @ charge + rest)

    def with_constraints(self, **constraints: Any) -> Model:
        """The same model with further named constraints (CVXPY expressions of `variables`)."""
        if taken := sorted(set(constraints) & set(self.constraints)):
            raise ValueError(f"constraint {taken[0]!r} exists already; choose another name")
        every = {**self.constraints, **constraints}
        return replace(self, problem=cp.Problem(self.problem.objective, list(every.values())), constraints=every)


def token_level(tree: PrefixTree) -> Model:
    """One draft, every token judged by its own ratio; parameter "ratio" [n] = min(p, q).

    >>> round(token_level(PrefixTree.iid((1/3, 2/3), (2/3, 1/3), 2)).solve(), 6)
    1.111111
    """
    tree = tree.as_float()
    phi = cp.Variable(tree.size, nonneg=True, name="phi")
    ratio = cp.Parameter(tree.size, nonneg=True, name="ratio", value=np.minimum(tree.target, tree.draft))
    constraints = {"root": phi[0] == 1, "token": phi[1:] <= cp.multiply(ratio[1:], phi[tree.parent[1:]])}
    return _model(tree, {"phi": phi}, {"ratio": ratio}, constraints)


def lossless(tree: PrefixTree, drafts: DraftSets) -> Model:
    """The best stateless lossless verifier for any law of the drafts; see the module's program and example."""
    tree = tree.as_float()
    phi = cp.Variable(tree.size, nonneg=True, name="phi")
    target = cp.Parameter(tree.size, nonneg=True, name="target", value=tree.target)
    chain = {"root": phi[0] == 1, "chain": phi[1:] <= cp.multiply(target[1:], phi[tree.parent[1:]])}
    return _selected(tree, drafts, phi, {"target": target}, chain)


def block_transport(tree: PrefixTree, drafts: DraftSets) -> Model:
    """The largest expected prefix that some draft shares with a target block, for any law of the drafts.

    >>> tree = PrefixTree.iid((1/3, 2/3), (2/3, 1/3), 2)
    >>> round(block_transport(tree, independent(tree, 2)).solve(), 6)      # 134/81
    1.654321
    """
    tree = tree.as_float()
    phi = cp.Variable(tree.size, nonneg=True, name="phi")
    return _selected(tree, drafts, phi, {}, _transport(tree, phi))


def from_coverage(
    tree: PrefixTree,
    coverage: Callable[[Sequence[int]], float],
    objective: Objective = "lossless",
    antichains: Sequence[Sequence[int]] | None = None,
) -> Model:
    """The antichain form for a coverage function of one's own, Pr(some draft meets the nodes); tiny trees.

    Args:
        coverage: from the nodes of an antichain to a probability; `DraftSets.coverage`, or a formula.
        antichains: the rows to write; all antichains by default.
    Raises:
        ValueError: there are more than 50,000 antichains.

    >>> tree = PrefixTree.iid((1/3, 2/3), (2/3, 1/3), 2)
    >>> pairs = without_replacement(tree, 2)
    >>> round(from_coverage(tree, lambda nodes: pairs.coverage(tree, nodes)).solve(), 6)
    1.819048
    """
    tree = tree.as_float()
    rows = all_antichains(tree) if antichains is None else [tuple(nodes) for nodes in antichains]
    phi = cp.Variable(tree.size, nonneg=True, name="phi")
    place = np.repeat(np.arange(len(rows)), [len(nodes) for nodes in rows])
    nodes = np.array([node for antichain in rows for node in antichain])
    matrix = sparse.csr_array((np.ones(len(nodes)), (place, nodes)), shape=(len(rows), tree.size))
    covered = cp.Parameter(len(rows), nonneg=True, name="coverage", value=np.array([coverage(row) for row in rows]))
    constraints = _transport(tree, phi)
    parameters = {"coverage": covered}
    if objective == "lossless":
        target = cp.Parameter(tree.size, nonneg=True, name="target", value=tree.target)
        constraints = {"root": phi[0] == 1, "chain": phi[1:] <= cp.multiply(target[1:], phi[tree.parent[1:]])}
        parameters["target"] = target
    elif objective != "block-transport":
        raise ValueError(f"objective is {objective!r}; want 'lossless' or 'block-transport'")
    return _model(tree, {"phi": phi}, parameters, constraints | {"antichain": matrix @ phi <= covered})


def all_antichains(tree: PrefixTree) -> list[tuple[int, ...]]:
    """Every nonempty set of nodes, root excluded, none above another.

    Raises:
        ValueError: there are more than 50,000 of them.
    """
    found: dict[int, list[tuple[int, ...]]] = {}
    for node in range(tree.size - 1, -1, -1):
        below: list[tuple[int, ...]] = [()]
        for child in range(tree.children[node].start, tree.children[node].stop):
            options = found.pop(child)
            if len(below) * len(options) > MAX_ANTICHAINS:
                raise ValueError(f"the tree has more than {MAX_ANTICHAINS} antichains; give those you want as a list")
            below = [left + right for left in below for right in options]
        found[node] = [*below, (node,)] if node else below[1:]
    return found[0]


def _transport(tree: PrefixTree, phi: cp.Variable) -> dict[str, Any]:
    inner = np.arange(tree.leaves.start)
    children = sparse.csr_array(
        (np.ones(tree.size - 1), (tree.parent[1:], np.arange(1, tree.size))), shape=(len(inner), tree.size)
    )
    return {"root": phi[0] == 1, "target": phi <= tree.target_joint, "flow": children @ phi <= phi[inner]}


def _selected(
    tree: PrefixTree,
    drafts: DraftSets,
    phi: cp.Variable,
    parameters: dict[str, cp.Parameter],
    constraints: dict[str, Any],
) -> Model:
    """Add the law of the drafts, the selection, and phi <= kappa."""
    count, paths = drafts.drafts.shape
    select = cp.Variable((count, paths), nonneg=True, name="select")
    law = cp.Parameter(count, nonneg=True, name="law", value=drafts.law)
    through = _ancestry(tree)[:, tree.leaves.start + drafts.drafts.ravel()]
    kappa = through @ cp.reshape(select, (count * paths,), order="C")
    constraints |= {"drafts": cp.sum(select, axis=1) == law, "selected": phi <= kappa}
    return _model(tree, {"phi": phi, "select": select}, {**parameters, "law": law}, constraints, drafts)


def _ancestry(tree: PrefixTree) -> sparse.csc_array:
    """[n, n] 1 where the row's node is the column's node or above it."""
    pairs = []
    for node in range(tree.size):
        above = node
        while above >= 0:
            pairs.append((above, node))
            above = int(tree.parent[above])
    rows, columns = np.array(pairs).T
    return sparse.csc_array((np.ones(len(pairs)), (rows, columns)), shape=(tree.size, tree.size))


def _model(
    tree: PrefixTree,
    variables: dict[str, cp.Variable],
    parameters: dict[str, cp.Parameter],
    constraints: dict[str, Any],
    drafts: DraftSets | None = None,
) -> Model:
    problem = cp.Problem(cp.Maximize(cp.sum(variables["phi"][1:])), list(constraints.values()))
    return Model(tree, problem, variables, parameters, constraints, drafts)
