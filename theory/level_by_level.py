"""Verifiers that decide one token at a time with many drafts: exact acceptance, without running them.

At a node w reached by n drafts the next tokens of these n drafts are offered in draft order; the j-th offer, of token
y, is kept with a chance coin_j(y) that depends on n only, and all drafts through wy go on together (those offered
before and after it too). What the future needs is how many they are:

    reach(w, n) = Pr(w is kept, n drafts go through w),  reach(root, K) = 1
    reach(wy, m) = sum_n reach(w, n) [s^m] sum_j  product_{i<j} (R_i - q f_i + s q f_i)  s q coin_j  (1 - q + s q)^(n-j)

with q = q(y|w), f_i = 1 - coin_i(y), R_i = sum_z q(z) f_i(z), and s counting the drafts through wy. phi(wy) is the sum
of reach(wy, m) over m.

Letters: n drafts through a node, K in all; p, q rows of target and draft; P, Q their joint laws; g(t) = 1 - (1-t)^K.
Sources: SpecInfer, arXiv:2305.09781; SpecTr (K-SEQ), arXiv:2310.15141, Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import single_step
from .feasibility import coverage
from .numbers import Array
from .prefix_tree import PrefixTree

Coins = Callable[[Array, Array, int], Array]  # target row, draft row, n -> coins [n, V]


def naive(tree: PrefixTree, paths: int) -> Array:
    """[n] phi of naive sampling (draw from the target, go on while some draft agrees): P(w) g(Q(w))."""
    phi = tree.target_joint * coverage(tree.draft_joint, paths)
    phi[0] = tree.target[0]
    return phi


def specinfer(tree: PrefixTree, paths: int) -> Array:
    """[n] phi of recursive rejection; repeated tokens are rounds of their own (drafts with replacement)."""
    return acceptance(tree, paths, single_step.recursive_rejection_coins)


def kseq(tree: PrefixTree, paths: int) -> Array:
    """[n] phi of K-SEQ, at each node with the best discount for the number of drafts that pass through it."""

    def coins(target: Array, draft: Array, offers: int) -> Array:
        return np.array([single_step.kseq(target, draft, offers).coins] * offers)

    return acceptance(tree, paths, coins)


def acceptance(tree: PrefixTree, paths: int, coins: Coins) -> Array:
    """[n] phi of the verifier whose offers are kept with the given coins."""
    phi = tree.target * 0
    phi[0] = tree.target[0]
    reach = {0: np.concatenate([phi[:1] * 0] * paths + [phi[:1]])}
    for node in range(tree.leaves.start):
        arrived, below = reach.pop(node, None), tree.children[node]
        if arrived is None or below.start == below.stop:
            continue
        target, draft = tree.target[below], tree.draft[below]
        rounds = [(mass, coins(target, draft, n)) for n, mass in enumerate(arrived) if n > 0 and mass > 0]
        if tree.depth[node] == tree.length - 1:
            phi[below] = sum(mass * kept(draft, coin) for mass, coin in rounds)
            continue
        counts = np.stack([arrived * 0] * len(draft))
        for mass, coin in rounds:
            counts[:, : len(coin) + 1] += mass * kept_counts(draft, coin)
        phi[below] = counts.sum(axis=1)
        reach |= {below.start + place: counts[place] for place in np.flatnonzero(phi[below] > 0).tolist()}
    return phi


def kept(draft: Array, coins: Array) -> Array:
    """[V] Pr(token y is kept) for coins [n, V]."""
    law, before = draft * 0, draft.sum() * 0 + 1
    for coin in coins:
        law = law + before * draft * coin
        before = before * (draft * (1 - coin)).sum()
    return law


def kept_counts(draft: Array, coins: Array) -> Array:
    """[V, n+1] Pr(token y is kept, m of the n drafts hold y), for coins [n, V]."""
    law = np.zeros((len(draft), len(coins) + 1), dtype=draft.dtype) + draft[0] * 0
    before = law.copy()
    before[:, 0] += 1
    for coin in coins:
        failing = draft * (1 - coin)
        law = times_linear(law, 1 - draft, draft) + times_linear(before, draft * 0, draft * coin)
        before = times_linear(before, failing.sum() - failing, failing)
    return law


def times_linear(polynomial: Array, constant: Array, slope: Array) -> Array:
    """polynomial [V, n+1] in s times (constant + slope s), for each token; degrees stay at most n."""
    product = polynomial * constant[:, None]
    product[:, 1:] += polynomial[:, :-1] * slope[:, None]
    return product
