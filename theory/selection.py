"""Verifiers that select one of K drafts and then run block verification against the selected draft's law.

A selection rule sorts the tokens at each node into levels, lets the first draft (in draft order) of the highest level
go on, and keeps all drafts through the chosen token. kappa(w) = Pr(the selected draft passes through w) is known in
closed form, and block verification with kappa in place of Q is lossless whatever the rule, with

    phi(wy) = min(kappa(wy), p(y|w) phi(w)).

What the rule must remember is count[n] = Pr(n drafts go through w | w was reached). If a draft is passed over with
probability x and anything not above the level has probability y, then a token with draft probability q is selected

    at the top level      with probability  q sum_n count[n] sum_{i+j=n-1} x^i y^j
    when no draft rises   with probability  q sum_n count[n] x^(n-1)

and counting the drafts through the token with s, x and y split into others + s own, gives the next count.

Letters: p, q rows of target and draft; P, Q joint laws; K drafts; a = phi(w)/kappa(w).
Sources: GBV, arXiv:2602.16961; block verification, arXiv:2403.10444; the two-level rule and the bucketed one are this
project's own.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from .feasibility import quotient
from .level_by_level import times_linear
from .numbers import Array
from .prefix_tree import PrefixTree

BUCKETS = 17
SUM_SLACK = 8 * float(np.finfo(float).eps)


def greedy_path(tree: PrefixTree, paths: int) -> Array:
    """[n] kappa of GBV: at each node the highest target/draft ratio goes on (ties: the larger token id).

    Drafts are thereby ranked in a fixed order, so that the law of the highest of K is
    kappa(w) = (below + Q(w))^K - below^K, below = draft mass of the prefixes of the same length ranked below w.
    """
    below = tree.draft * 0
    kappa = tree.draft.copy()
    for node in range(tree.size):
        children = np.arange(tree.children[node].start, tree.children[node].stop)
        reached = below[node]
        for child in sorted(children.tolist(), key=lambda child: (_ratio(tree, child), tree.token[child])):
            mass = tree.draft_joint[child]
            below[child] = reached
            kappa[child] = mass * _power_sum(reached + mass, reached, paths)
            reached = reached + mass
    return kappa


def _ratio(tree: PrefixTree, node: int) -> Any:
    return quotient(tree.target[node], tree.draft[node])


def _power_sum(a: Any, b: Any, terms: int) -> Any:
    """(a^K - b^K) / (a - b) = a^(K-1) + a^(K-2) b + .. + b^(K-1), without cancellation."""
    total = a * 0
    power = a * 0 + 1
    for _ in range(terms):
        total, power = total * b + power, power * a
    return total


def bucketed_path(tree: PrefixTree, paths: int) -> Array:
    """[n] kappa when the ratio counts only by its octave from 23/16 2^i on (17 of them), first draft of the highest."""
    kappa = _none_but_root(tree)
    counts = {0: _at_root(tree, paths)}
    for node in range(tree.leaves.start):
        below = tree.children[node]
        count = counts.pop(node, None)
        if count is None or below.start == below.stop:
            continue
        draft = tree.draft[below]
        bucket = np.array([_bucket(_ratio(tree, child)) for child in range(below.start, below.stop)])
        under = np.array([draft[bucket < own].sum() + draft[0] * 0 for own in bucket])
        upto = np.array([draft[bucket <= own].sum() for own in bucket])
        _, top = _densities(count, (under, draft * 0), (upto - draft, draft))
        density = top.sum(axis=1)
        kappa[below] = kappa[node] * draft * density
        _descend(counts, below, draft, top, density)
    return kappa


def _bucket(ratio: Any) -> int:
    middle = BUCKETS // 2
    inside = min(max(ratio, Fraction(1, 2**middle)), Fraction(2**middle))
    octave = math.frexp(inside)[1] - 1
    return middle + octave + (inside >= Fraction(23, 16) * Fraction(2) ** octave)


@np.errstate(over="ignore")
def two_level_path(tree: PrefixTree, paths: int) -> Array:
    """[n] kappa of two-level selection, in float64 (its levels are roots of polynomials).

    Every draft tosses a coin with the level of its token; the first success goes on, or the first draft if there is
    none. With x the mass that fails, the selected law is q (level k1 + (1 - level) k2), k1 = sum_n count[n] (1 + x +
    .. + x^(n-1)), k2 = sum_n count[n] x^(n-1); the levels bring it as near as possible to the target's share a p.
    """
    tree = tree.as_float()
    kappa, phi = _none_but_root(tree), _none_but_root(tree)
    counts = {0: _at_root(tree, paths)}
    for node in range(tree.leaves.start):
        below = tree.children[node]
        count = counts.pop(node, None)
        if count is None or below.start == below.stop or kappa[node] == 0:
            continue
        draft = tree.draft[below]
        ratio = np.where(draft > 0, phi[node] / kappa[node] * tree.target[below], 0) / np.where(draft > 0, draft, 1)
        level, fails = _levels(ratio, draft, count)
        failing = draft * (1 - level)
        none, top = _densities(count, (fails - failing, failing), (1 - draft, draft))
        law = level[:, None] * top + (1 - level)[:, None] * none
        density = law.sum(axis=1)
        kappa[below] = kappa[node] * draft * density
        phi[below] = np.minimum(kappa[below], tree.target[below] * phi[node])
        _descend(counts, below, draft, law, density)
    return kappa


def _levels(ratio: Array, draft: Array, count: Array) -> tuple[Array, float]:
    """Levels of the tokens, and the mass x whose coin fails: the smallest 1 - x whose clipped law sums to at most 1."""

    def bounds(fails: float) -> tuple[float, float]:
        powers = fails ** np.arange(len(count))
        at_least = count[::-1].cumsum()[::-1]
        return float(at_least @ powers), float(count @ powers)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        k1, k2 = bounds(1 - middle)
        low, high = (middle, high) if np.clip(ratio, k2, k1) @ draft > 1 + SUM_SLACK else (low, middle)
    k1, k2 = bounds(1 - high)
    level = np.clip((ratio - k2) / (k1 - k2), 0, 1) if k1 > k2 else np.ones(len(draft))
    return level, float(draft @ (1 - level))


# ---------------------------------------------------------------------- counting the drafts


def _none_but_root(tree: PrefixTree) -> Array:
    """[n] 1 at the root and 0 elsewhere: prefixes that are never reached stay at 0."""
    values = tree.draft * 0
    values[0] = tree.draft[0]
    return values


def _at_root(tree: PrefixTree, paths: int) -> Array:
    """count[n-1]: all K drafts go through the root."""
    count = np.array([tree.target[0] * 0] * paths)
    count[-1] = tree.target[0]
    return count


def _densities(count: Array, passed: tuple[Array, Array], allowed: tuple[Array, Array]) -> tuple[Array, Array]:
    """[V, K] coefficients in s of sum_n count x^(n-1) and of sum_n count sum_{i+j=n-1} x^i y^j.

    Args:
        passed, allowed: x and y as (others, own) [V], each standing for others + s own.
    """
    none = np.zeros((len(passed[0]), len(count)), dtype=count.dtype) + count[0] * 0
    top = none.copy()
    for probability in count[::-1]:
        none = times_linear(none, *passed)
        none[:, 0] += probability
        top = times_linear(top, *allowed) + none
    return none, top


def _descend(counts: dict[int, Array], below: slice, draft: Array, law: Array, density: Array) -> None:
    for place in range(len(draft)):
        if draft[place] > 0 and density[place] > 0:
            counts[below.start + place] = law[place] / density[place]
