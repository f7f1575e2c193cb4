"""Proofs for all parameter values of a small case, by SymPy: every identity is a polynomial identity per case.

The case: two tokens (V = 2), draft length L <= 2, arbitrary conditionals. Node w has target joint P(w), draft joint
Q(w). Block verification accepts phi(wy) = min(Q(wy), p(y|w) phi(w)); which side of each minimum is the smaller one
is a finite case split, and inside one case everything is a polynomial in the conditionals.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import sympy

Node = tuple[int, ...]


@dataclass(frozen=True)
class Proof:
    """How many cases a proof went through, and those in which the identity failed (a proof needs none)."""

    cases: int
    failed: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return self.cases > 0 and not self.failed


Accepted = Callable[[bool, sympy.Expr, sympy.Expr, sympy.Expr, sympy.Expr], sympy.Expr]
Keep = Callable[[sympy.Expr, sympy.Expr], sympy.Expr]


def block_acceptance(
    draft_binds: bool, above: sympy.Expr, target: sympy.Expr, draft: sympy.Expr, drafted: sympy.Expr
) -> sympy.Expr:
    """phi(wy) = min(Q(wy), p(y|w) phi(w)) in a case: `drafted` is Q(wy), `above` phi(w)."""
    return drafted if draft_binds else target * above


def token_acceptance(
    draft_binds: bool, above: sympy.Expr, target: sympy.Expr, draft: sympy.Expr, drafted: sympy.Expr
) -> sympy.Expr:
    """phi(wy) = min(q, p)(y|w) phi(w) in a case: token verification, whose value the dual point does not attain."""
    return (draft if draft_binds else target) * above


def block_keep(surplus: sympy.Expr, ratio: sympy.Expr) -> sympy.Expr:
    """h = s / (s + 1 - c), the probability that block verification keeps a prefix after which it stops."""
    return surplus / (surplus + 1 - ratio)


def always_keep(surplus: sympy.Expr, ratio: sympy.Expr) -> sympy.Expr:
    """h = 1 everywhere, as if every drafted prefix could stand."""
    return sympy.Integer(1)


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


def block_verification_is_optimal(length: int, accepted: Accepted = block_acceptance) -> Proof:
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
    cases, failed = 0, []
    for pattern in itertools.product((False, True), repeat=len(nodes)):
        draft_binds = dict(zip(nodes, pattern, strict=True))
        phi: dict[Node, sympy.Expr] = {(): sympy.Integer(1)}
        for node in nodes:
            drafted = _product(draft, node)
            phi[node] = accepted(draft_binds[node], phi[node[:-1]], target[node], draft[node], drafted)
        worth = {node: sympy.Integer(1) for node in [(), *nodes]}
        for node in reversed(nodes):
            if not draft_binds[node]:
                worth[node[:-1]] += target[node] * worth[node]
        dual = worth[()] - 1 + sum(worth[node] * _product(draft, node) for node in nodes if draft_binds[node])
        cases += 1
        if sympy.expand(sum(phi[node] for node in nodes) - dual) != 0:
            failed.append(_named(draft_binds))
    return Proof(cases, tuple(failed))


def block_verification_is_lossless(length: int, keep: Keep = block_keep) -> Proof:
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
    cases, failed = 0, []
    for pattern in itertools.product((False, True), repeat=len(nodes)):
        draft_binds = dict(zip(nodes, pattern, strict=True))
        ratio: dict[Node, sympy.Expr] = {(): sympy.Integer(1)}
        for node in nodes:
            ratio[node] = sympy.Integer(1) if draft_binds[node] else ratio[node[:-1]] * target[node] / draft[node]
        if any(not _possible(ratio[node], draft_binds[(*node, 0)], draft_binds[(*node, 1)]) for node in inner):
            continue
        cases += 1
        if not all(_node_is_lossless(node, ratio, target, draft, draft_binds, keep) for node in inner):
            failed.append(_named(draft_binds))
    return Proof(cases, tuple(failed))


def _named(draft_binds: dict[Node, bool]) -> str:
    bound = [str(node) for node, binds in draft_binds.items() if binds]
    return f"the draft constraint binds at {', '.join(bound) or 'no node'}"


def _possible(ratio: sympy.Expr, first: bool, second: bool) -> bool:
    """Can the draft bind at these children of a node with this ratio, rows being different?"""
    return first != second or (not first and ratio != 1)


def _node_is_lossless(
    node: Node,
    ratio: dict[Node, sympy.Expr],
    target: dict[Node, sympy.Expr],
    draft: dict[Node, sympy.Expr],
    draft_binds: dict[Node, bool],
    keep: Keep = block_keep,
) -> bool:
    children = [(*node, 0), (*node, 1)]
    residual = {
        child: ratio[node] * target[child] - draft[child] if draft_binds[child] else sympy.Integer(0)
        for child in children
    }
    surplus = sum(residual.values())
    deeper = sum(draft[child] * ratio[child] for child in children)
    kept = sympy.Integer(1) if node == () else keep(surplus, ratio[node])
    identities = [deeper + (1 - deeper) * kept - ratio[node]]
    for child in children:
        emitted = (1 - deeper) * kept * residual[child] / surplus if surplus != 0 else sympy.Integer(0)
        identities.append(draft[child] * ratio[child] + emitted - ratio[node] * target[child])
    return all(sympy.simplify(identity) == 0 for identity in identities)
