"""One step, K drafts: the best probability of keeping some draft's token, and what the known rules reach.

    maximise    sum_y phi(y)
    subject to  phi(y) <= p(y),   phi(S) <= g(q(S)) for every set S of tokens,   g(t) = 1 - (1-t)^K

phi(y) = Pr(token y is kept); p target row, q draft row; K independent drafts. g(q(S)) = Pr(some draft is in S).

    optimum   1 + min over S of [ g(q(S)) - p(S) ],  S among the sets of tokens of highest ratio p/q
              phi = min(p, c q) on the best S with c such that phi(S) = g(q(S)), phi = p off S
    dual      price 1 on the antichain S:  phi(S) <= g(q(S)),  and phi <= p on the rest

Sets of highest ratio suffice because g is concave: g(x) - y is least at a vertex of the hull of the points
(q(S), p(S)). All functions take rows of floats or fractions (then results are exact unless said otherwise).

Sources: the transport problem and K-SEQ: SpecTr, arXiv:2310.15141; recursive rejection: SpecInfer,
arXiv:2305.09781, and arXiv:2402.14160.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.optimize import brentq

from . import duality
from .feasibility import coverage, quotient
from .numbers import Array, Row
from .prefix_tree import PrefixTree
from .solution import Solution, certify, check_paths


def optimum(target: Row, draft: Row, paths: int) -> Solution:
    """The single-step optimum in closed form, certified; phi [V+1] has the root's 1 in front.

    Raises:
        ValueError: the rows are not two laws on the same tokens, or paths is out of range.
        CertificateError: the certificate fails (it does not, up to rounding).
    """
    check_paths(paths)
    start = time.perf_counter()
    tree = PrefixTree.iid(target, draft, 1)
    p, q = tree.target[1:], tree.draft[1:]
    best = best_set(p, q, paths)
    kept = p.copy()
    kept[best] = filled(p[best], q[best], coverage(q[best].sum(), paths))
    phi, price = tree.target.copy(), tree.target * 0
    phi[1:] = kept
    price[best + 1] += 1
    bound = duality.upper_bound(tree, paths, "lossless", price)
    seconds = time.perf_counter() - start
    return certify(
        tree, phi, bound, objective="lossless", paths=paths, solver="closed form", seconds=seconds, tolerance=1e-9
    )


def best_set(target: Array, draft: Array, paths: int) -> Array:
    """Tokens of the highest-ratio set S that minimises g(draft(S)) - target(S); int64, most favoured first."""
    order = by_ratio(target, draft)
    covered = coverage(np.cumsum(draft[order]), paths)
    slack = np.concatenate([covered[:1] * 0, covered - np.cumsum(target[order])])
    return order[: int(np.argmin(slack))]


def by_ratio(target: Array, draft: Array) -> Array:
    """Tokens in the order of decreasing target/draft, those that are never drafted first (if target > 0)."""
    ratios = np.array([quotient(p, q) for p, q in zip(target, draft, strict=True)])
    return np.argsort(-ratios, kind="stable")


def filled(cap: Array, draft: Array, total: Any) -> Array:
    """min(cap, c draft) with c such that it sums to `total`, at most the sum of cap (water filling)."""
    order = by_ratio(cap, draft)[::-1]
    left_draft, left_total = draft.sum(), total
    for position, token in enumerate(order):
        if cap[token] * left_draft >= left_total * draft[token]:
            rest = order[position:]
            level = cap.copy()
            level[rest] = draft[rest] * left_total / left_draft if left_draft > 0 else draft[rest] * 0
            return level
        left_draft, left_total = left_draft - draft[token], left_total - cap[token]
    return cap


# ---------------------------------------------------------------------- what known rules keep


def naive(target: Array, draft: Array, paths: int) -> Array:
    """[V] Pr(y is kept) when a token drawn from the target is kept if some draft has it: p g(q)."""
    return target * coverage(draft, paths)


@dataclass(frozen=True)
class KSeq:
    """K-SEQ with its best discount: each draft in turn is kept with probability min(1, target / (discount draft)).

    Attributes:
        discount: rho in [1, K], the root of 1 - (1 - beta(rho))^K = rho beta(rho), or 1.
        mass: beta(rho) = sum_y min(draft, target / rho), the chance that one draft is kept.
        coins [V]: min(1, target / (rho draft)).
    """

    discount: Any
    mass: Any
    coins: Array

    def value(self, paths: int) -> Any:
        """Pr(some draft is kept) = 1 - (1 - beta)^K."""
        return coverage(self.mass, paths)


def kseq(target: Array, draft: Array, paths: int) -> KSeq:
    """The smallest discount for which K-SEQ is lossless; a fraction if it is 1, else a float to machine precision."""

    def mass(discount: Any) -> Any:
        return np.minimum(draft, target / discount).sum()

    def excess(discount: float) -> float:
        kept = float(mass(discount))
        return coverage(kept, paths) - discount * kept

    discount: Any = Fraction(1) if target.dtype == object else 1.0
    one = mass(discount)
    if paths > 1 and coverage(one, paths) > one:
        target, draft = target.astype(float), draft.astype(float)
        discount = brentq(excess, 1.0, float(paths), xtol=1e-14, maxiter=1000) if excess(paths) < 0 else float(paths)
    coins = target * 0 + 1
    np.divide(target, discount * draft, out=coins, where=target < discount * draft)
    return KSeq(discount, mass(discount), coins)


def recursive_rejection_coins(target: Array, draft: Array, paths: int) -> Array:
    """[K, V] chance that the token of round k is kept if it is reached: min(1, residual_k / draft).

    residual_1 = target, residual_{k+1} = norm(max(0, residual_k - draft)). Every one of the independent drafts is a
    round, repeated tokens too (drafts with replacement).
    """
    residual, coins = target, []
    for _ in range(paths):
        coin = target * 0 + 1
        np.divide(residual, draft, out=coin, where=residual < draft)
        coins.append(coin)
        left = np.maximum(residual - draft, 0)
        residual = left / left.sum() if left.sum() > 0 else residual
    return np.array(coins)


def recursive_rejection(target: Array, draft: Array, paths: int) -> Any:
    """Pr(some draft is kept) by recursive rejection with replacement: 1 - product of the rounds' rejections."""
    rejected = target[0] * 0 + 1
    for coin in recursive_rejection_coins(target, draft, paths):
        rejected = rejected * (draft * (1 - coin)).sum()
    return 1 - rejected
