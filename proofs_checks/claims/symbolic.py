"""Proofs for all parameter values of a small case, by SymPy: every identity is a polynomial identity per case.

The case: two tokens (V = 2), draft length L <= 2, arbitrary conditionals. Node w has target joint P(w), draft joint
Q(w). Block verification accepts phi(wy) = min(Q(wy), p(y|w) phi(w)); which side of each minimum is the smaller one
is a finite case split, and inside one case everything is a polynomial in the conditionals.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import sympy

Node = tuple[int, ...]


@dataclass(frozen=True)
class Proof:
    """How many cases a proof went through, and in how many of them the identity failed (a proof needs 0)."""

    cases: int
    failed: int

    @property
    def holds(self) -> bool:
        return self.cases > 0 and self.failed == 0


def _conditionals(letter: str, length: int) -> dict[Node, sympy.Expr]:
    """Conditional probability of every non-root node; one free symbol in [0, 1] per inner node."""
    conditional: dict[Node, sympy.Expr] = {}
    for depth in range(length):
        for prefix in itertools.product((0, 1), repeat=depth):
            first = sympy.Symbol(letter + "".join(map(str, prefix)) + "_", nonnegative=True)
            conditional[(*prefix, 0)], conditional[(*prefix, 1)] = first, 1 - first
    return conditional


def _product(conditional: dict[Node, sympy.Expr], node: Node) -> sympy.Expr:
    return sympy.Mul(*(conditional[node[:depth]] for depth in range(1, len(node) + 1)))


def block_verification_is_optimal(length: int) -> Proof:
    """In every case the value of block verification equals the value of a dual point that is feasible by its form.

        primal   sum phi,  phi(wy) = Q(wy) if the draft constraint binds at wy, else p(y|w) phi(w)
        dual     worth(w) = 1 + sum over children whose chain binds of p(y|w) worth(wy)
                 price(w) = worth(w) where the draft constraint binds, else 0;   value sum price Q + chain part

    worth is a polynomial in the p with non-negative coefficients, so the prices are non-negative for all parameter
    values and weak duality bounds every lossless single-path verifier by the dual value. The identity of both
    values, checked here, makes block verification optimal for every V = 2 instance of this draft length.
    """
    target, draft = _conditionals("p", length), _conditionals("q", length)
    nodes = sorted(target, key=len)
    cases = failed = 0
    for pattern in itertools.product((False, True), repeat=len(nodes)):
        draft_binds = dict(zip(nodes, pattern, strict=True))
        phi: dict[Node, sympy.Expr] = {(): sympy.Integer(1)}
        for node in nodes:
            phi[node] = _product(draft, node) if draft_binds[node] else target[node] * phi[node[:-1]]
        worth = {node: sympy.Integer(1) for node in [(), *nodes]}
        for node in reversed(nodes):
            if not draft_binds[node]:
                worth[node[:-1]] += target[node] * worth[node]
        dual = worth[()] - 1 + sum(worth[node] * _product(draft, node) for node in nodes if draft_binds[node])
        cases += 1
        failed += sympy.expand(sum(phi[node] for node in nodes) - dual) != 0
    return Proof(cases, failed)


def block_verification_is_lossless(length: int) -> Proof:
    """In every case c(w) is the probability of keeping w given that it was drafted, and the stream is the target's.

    From the deepest nodes up, with c(wy) = min(1, c(w) p(y|w)/q(y|w)), s(w) = sum_y (c(w) p(y|w) - q(y|w))+ and
    h(w) = s/(s + 1 - c) (h = 1 at the root):

        kept      sum_y q(y|w) c(wy) + (1 - sum_y q(y|w) c(wy)) h(w) = c(w)
        stream    q(y|w) c(wy) + (1 - sum_z q(z|w) c(wz)) h(w) (c(w) p(y|w) - q(y|w))+ / s(w) = c(w) p(y|w)

    Cases: which of c(w) p(y|w) and q(y|w) is smaller, at every node. Both children with c p > q is impossible (the
    sums are c <= 1 and 1), and so is neither where c = 1, but for equal rows: then nothing stops at w and both
    identities hold at once. These cases are left out.
    """
    target, draft = _conditionals("p", length), _conditionals("q", length)
    nodes = sorted(target, key=len)
    inner = [(), *(node for node in nodes if len(node) < length)]
    cases = failed = 0
    for pattern in itertools.product((False, True), repeat=len(nodes)):
        draft_binds = dict(zip(nodes, pattern, strict=True))
        ratio: dict[Node, sympy.Expr] = {(): sympy.Integer(1)}
        for node in nodes:
            ratio[node] = sympy.Integer(1) if draft_binds[node] else ratio[node[:-1]] * target[node] / draft[node]
        if any(not _possible(ratio[node], draft_binds[(*node, 0)], draft_binds[(*node, 1)]) for node in inner):
            continue
        cases += 1
        failed += not all(_node_is_lossless(node, ratio, target, draft, draft_binds) for node in inner)
    return Proof(cases, failed)


def _possible(ratio: sympy.Expr, first: bool, second: bool) -> bool:
    """Can the draft bind at these children of a node with this ratio, rows being different?"""
    return first != second or (not first and ratio != 1)


def _node_is_lossless(
    node: Node,
    ratio: dict[Node, sympy.Expr],
    target: dict[Node, sympy.Expr],
    draft: dict[Node, sympy.Expr],
    draft_binds: dict[Node, bool],
) -> bool:
    children = [(*node, 0), (*node, 1)]
    residual = {
        child: ratio[node] * target[child] - draft[child] if draft_binds[child] else sympy.Integer(0)
        for child in children
    }
    surplus = sum(residual.values())
    deeper = sum(draft[child] * ratio[child] for child in children)
    keep = sympy.Integer(1) if node == () else surplus / (surplus + 1 - ratio[node])
    identities = [deeper + (1 - deeper) * keep - ratio[node]]
    for child in children:
        emitted = (1 - deeper) * keep * residual[child] / surplus if surplus != 0 else sympy.Integer(0)
        identities.append(draft[child] * ratio[child] + emitted - ratio[node] * target[child])
    return all(sympy.simplify(identity) == 0 for identity in identities)
