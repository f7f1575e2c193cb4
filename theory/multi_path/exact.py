"""The multi-path optimum of a small rational instance as a fraction, with a certificate in fractions.

    maximise    sum over nodes of phi(w)
    subject to  lossless           phi(wy) <= p(y|w) phi(w),  phi(root) = 1
                block transport    phi(w) <= P(w)
                link               phi(w) <= kappa(w) = sum of kappa over the full drafts below w      price(w)
                cover              kappa(S) <= g(Q(S))    for sets S of full drafts, as they are found violated

kappa is the law of one selected draft, K independent drafts, g(t) = 1 - (1-t)^K. A sort by kappa/Q finds every violated
set. The sets are collected in float64, starting from those at which the float optimum of `solver` is tight; then the
vertex is solved in fractions (`linear_program.Program`) and the sets are checked again, in fractions. kappa and the
prices prove the optimum (`certificates`): nothing else is trusted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from ..duality import path_sums
from ..feasibility import coverage, quotient
from ..linear_program import Coefficients, Optimum, Program
from ..numbers import to_array
from ..prefix_tree import PrefixTree
from ..solution import CertificateError, Solution
from .certificates import PathObjective, verify_certificate

SOLVER = "HiGHS, in fractions"
MAX_ROUNDS = 60
VIOLATED = 1e-10
TIE = 1e-5


def exact_optimum(tree: PrefixTree, paths: int, objective: PathObjective, near: Solution) -> Solution | None:
    """The optimum in fractions; None if it was not found (too many rounds, or a vertex that is not what it seemed).

    Args:
        tree: in fractions, up to about a hundred nodes. near: the optimum in float64, with its witnesses.
    """
    start = time.perf_counter()
    program = _Selection(tree, paths, objective)
    program.cover(_level_sets(tree, near))
    try:
        answer = _solve(program)
    except CertificateError:
        return None
    if answer is None:
        return None
    price = to_array([0, *(answer.multipliers["rows"][row] for row in program.links)])
    kappa = answer.x[program.kappa.start : program.kappa.stop]
    if (price < 0).any() or (kappa < 0).any():
        return None
    potential = path_sums(tree, price)
    seconds = time.perf_counter() - start
    found = verify_certificate(tree, paths, kappa, potential, objective, solver=SOLVER, seconds=seconds)
    return found if found.exact is not None else None


class _Selection(Program):
    """The program above, with the sets found so far."""

    def __init__(self, tree: PrefixTree, paths: int, objective: PathObjective) -> None:
        super().__init__()
        self.paths, self.drafted = paths, tree.draft_joint[tree.leaves]
        self.known: set[frozenset[int]] = set()
        self.phi, self.kappa = self.columns(tree.size - 1, 1), self.columns(len(self.drafted))
        below = _leaves_below(tree)
        self.links = []
        for node, column in enumerate(self.phi, start=1):
            parent = int(tree.parent[node])
            if objective == "block-transport":
                self.limit({column: 1}, tree.target_joint[node])
            elif parent == 0:
                self.limit({column: 1}, tree.target[node])
            else:
                self.limit({column: 1, self.phi[parent - 1]: -tree.target[node]}, 0)
            self.links.append(self.limit({column: 1} | {self.kappa[leaf]: -1 for leaf in below[node]}, 0))
        self.cover([range(len(self.drafted)), *([leaf] for leaf in range(len(self.drafted)))])

    def cover(self, sets: Iterable[Iterable[int]]) -> bool:
        """Add the constraints of these sets of leaves; True if any of them is new."""
        new = {frozenset(leaves) for leaves in sets} - self.known
        for leaves in new:
            row: Coefficients = {self.kappa[leaf]: 1 for leaf in sorted(leaves)}
            self.limit(row, coverage(self.drafted[sorted(leaves)].sum(), self.paths))
        self.known |= new
        return bool(new)

    def violated(self, answer: Optimum, above: float) -> list[list[int]]:
        """Sets of leaves of highest kappa/Q above their limit by more than `above`; none only if no set is."""
        kappa = np.maximum(answer.x[self.kappa.start : self.kappa.stop], 0)
        order = sorted(self.kappa_leaves, key=lambda leaf: -quotient(kappa[leaf], self.drafted[leaf]))
        kept, reached = np.cumsum(kappa[order]), np.cumsum(self.drafted[order])
        excess = kept - coverage(reached, self.paths)
        return [order[: place + 1] for place in range(len(order)) if excess[place] > above]

    @property
    def kappa_leaves(self) -> range:
        """The leaves, as numbers of the columns of kappa."""
        return range(len(self.kappa))


def _solve(program: _Selection) -> Optimum | None:
    for _ in range(MAX_ROUNDS):
        answer = program.solve()
        if program.cover(program.violated(answer, VIOLATED)):
            continue
        exact = program.in_fractions(answer)
        if exact is None or not program.cover(program.violated(exact, 0)):
            return exact
    return None


def _level_sets(tree: PrefixTree, near: Solution) -> list[list[int]]:
    """The sets of leaves above each level of the potential, and above each level of kappa/Q."""
    if near.kappa is None or near.potential is None:
        return []
    drafted = tree.draft_joint[tree.leaves].astype(float)
    density = np.zeros(len(drafted))
    np.divide(near.kappa.astype(float), drafted, out=density, where=drafted > 0)
    sets = []
    for score in (near.potential[tree.leaves].astype(float), density):
        order = np.argsort(-score, kind="stable")
        ends = np.flatnonzero(np.diff(score[order], append=-np.inf) < -TIE)
        sets += [order[: end + 1].tolist() for end in ends]
    return sets


def _leaves_below(tree: PrefixTree) -> list[list[int]]:
    """Per node the leaves below it, as indices of `bonus`."""
    below: list[list[int]] = [[] for _ in range(tree.size)]
    for leaf in range(len(tree.bonus)):
        node = tree.leaves.start + leaf
        while node > 0:
            below[node].append(leaf)
            node = int(tree.parent[node])
    return below
