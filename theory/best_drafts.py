"""The best law of drafted trees for a budget of nodes, on toy instances: one linear program.

A drafter does not know the target, only how likely each of several targets is; the verifier knows it. mu(T) is the
probability to draft the tree T (any set of prefixes with every prefix's beginnings), lambda_i(T, x) that its end x is
then selected when the target is i. p_i(y|w) target i, weight_i its probability, phi_i its acceptance:

    maximise    sum_i weight_i sum_w phi_i(w)
    subject to  phi_i(wy) <= p_i(y|w) phi_i(w),    phi_i(w) <= sum over T and ends x below w of lambda_i(T, x),
                sum_x lambda_i(T, x) = mu(T),      sum_T mu(T) = 1,      sum_T mu(T) |T| <= nodes

Selecting an end and verifying its path is all a verifier can do (`drafted_trees`). A drafter that samples trees from a
draft law is one mu among all, so the optimum bounds every drafting law with that many nodes on average.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .linear_program import Coefficients, Optimum, Program
from .numbers import read_number
from .prefix_tree import PrefixTree

MAX_TREES = 3000


@dataclass(frozen=True)
class BestDrafts:
    """The best drafting law.

    Attributes:
        value: expected drafted tokens kept per call; exact: the same as a fraction, if the program was solved in them.
        nodes: expected number of drafted nodes of this law, at most the budget.
        price: by how much the value rises per node more.
        law: (probability, nodes) of each drafted tree; nodes as numbers of the instance, the root left out.
    """

    value: float
    exact: Fraction | None
    nodes: Any
    price: float
    law: tuple[tuple[Any, tuple[int, ...]], ...]


def best_drafts(targets: Sequence[PrefixTree], weights: Sequence[Any], nodes: Any) -> BestDrafts:
    """Solve the program above for targets on the same prefixes.

    Args:
        targets: trees with equal parents and tokens; their draft laws are not used. weights: sum 1.
        nodes: budget, the expected number of drafted nodes.

    Raises:
        ValueError: no target, different trees, weights that are no law, a negative budget, more than 3000 trees T.
        CertificateError: HiGHS found no optimum.
    """
    if not targets or len(weights) != len(targets) or min(weights) < 0 or abs(float(sum(weights)) - 1) > 1e-9:
        raise ValueError(f"weights is {list(weights)}; want a law on the {len(targets)} targets")
    first = targets[0]
    if any(not np.array_equal(tree.parent, first.parent) or tree.vocab != first.vocab for tree in targets):
        raise ValueError("targets have different prefixes; want the same parent and token arrays")
    budget = read_number(nodes, "nodes")
    if budget < 0:
        raise ValueError(f"nodes is {nodes}; want a budget of at least 0")
    drafted = drafted_sets(first)
    program = Program()
    chance = program.columns(len(drafted))
    program.equal(dict.fromkeys(chance, 1), 1)
    spent = program.limit({column: len(tree) for column, tree in zip(chance, drafted, strict=True) if tree}, budget)
    for tree, weight in zip(targets, weights, strict=True):
        _target_rows(program, tree, weight, drafted, chance)
    near = program.solve()
    answer = program.in_fractions(near) if all(tree.exact for tree in targets) else None
    exact = answer is not None and answer.value == _dual_value(program, answer)
    found = answer if answer is not None and exact else near
    law = [(found.x[column], tree) for column, tree in zip(chance, drafted, strict=True) if found.x[column] > 1e-12]
    return BestDrafts(
        value=float(found.value),
        exact=Fraction(found.value) if exact else None,
        nodes=sum(probability * len(tree) for probability, tree in law),
        price=float(found.multipliers["rows"][spent]),
        law=tuple(law),
    )


def drafted_sets(tree: PrefixTree) -> list[tuple[int, ...]]:
    """All sets of nodes that hold the parent of each of their nodes; the root is left out, the empty set is one.

    Raises:
        ValueError: there are more than 3000.
    """
    below: dict[int, list[tuple[int, ...]]] = {}
    for node in range(tree.size - 1, -1, -1):
        children = range(tree.children[node].start, tree.children[node].stop)
        options = [[(), *((child, *rest) for rest in below[child])] for child in children]
        if math.prod(map(len, options)) > MAX_TREES:
            raise ValueError(f"more than {MAX_TREES} trees can be drafted; lower vocab or length")
        below[node] = [tuple(itertools.chain(*choice)) for choice in itertools.product(*options)]
    return below[0]


def _target_rows(
    program: Program, tree: PrefixTree, weight: Any, drafted: Sequence[tuple[int, ...]], chance: range
) -> None:
    """The columns phi_i and lambda_i of one target, and their rows."""
    phi = program.columns(tree.size - 1, weight)
    kept: list[Coefficients] = [{column: 1} for column in phi]
    for column, nodes in zip(chance, drafted, strict=True):
        ends = [node for node in nodes if not any(tree.parent[other] == node for other in nodes)] or [0]
        selected = program.columns(len(ends))
        program.equal(dict.fromkeys(selected, 1) | {column: -1}, 0)
        for end, one in zip(ends, selected, strict=True):
            while end > 0:
                kept[end - 1][one] = -1
                end = int(tree.parent[end])
    for node, column in enumerate(phi, start=1):
        parent = int(tree.parent[node])
        row: Coefficients = {column: 1} | ({phi[parent - 1]: -tree.target[node]} if parent else {})
        program.limit(row, 0 if parent else tree.target[node])
        program.limit(kept[node - 1], 0)


def _dual_value(program: Program, answer: Optimum) -> Any:
    """The dual value of the multipliers, or None if they are not feasible."""
    prices = answer.multipliers["rows"]
    left: list[Any] = list(program.gain)
    total: Any = Fraction(0)
    rows = [
        *zip(program.inequalities, prices, strict=True),
        *zip(program.equalities, answer.equal_multipliers, strict=True),
    ]
    for (row, limit), price in rows:
        total += price * limit
        for column, entry in row.items():
            left[column] -= price * entry
    return total if max(left) <= 0 and min(prices) >= 0 else None
