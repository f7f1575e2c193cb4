"""The best lossless verifier of one draft: block verification, and the proof that nothing beats it.

    maximise    sum_w phi(w)                            over nodes w other than the root
    subject to  phi(root) = 1,   phi(wy) <= p(y|w) phi(w)   (chain)      multiplier  stream(wy) >= 0
                phi(w) <= Q(w)                              (draft)      multiplier  price(w) >= 0

phi(w) = Pr(the accepted prefix passes through w); p(y|w) target conditional, Q(w) joint draft probability.
The chain says that the stream passes through wy by accepting it or by emitting y at w; the draft constraints say
that only drafted prefixes can be accepted. They cover every stateless lossless verifier, whatever it looks at.

    optimum     phi(wy) = min(Q(wy), p(y|w) phi(w))
    dual        worth(w) = 1 + sum of p(y|w) worth(wy) over the children whose chain constraint binds;
                price(w) = worth(w) where Q(w) < p phi(parent), else 0
    dual value  sum_w price(w) Q(w) + chain_bound(price)          (`duality.upper_bound`; equal to the optimum)

Source: Block Verification, arXiv:2403.10444, Algorithm 2 and Theorem 2 (the value and its optimality among
single-path verifiers).
"""

from __future__ import annotations

import time

import numpy as np

from . import duality
from .numbers import Array
from .prefix_tree import PrefixTree
from .solution import Solution, certify


def acceptance(tree: PrefixTree, drafted: Array | None = None) -> Array:
    """[n] phi of block verification: phi(wy) = min(Q(wy), p(y|w) phi(w)), 1 at the root.

    Args:
        drafted [n]: the joint law of the path that is verified, if it is not Q itself (the law of one path selected
            among K drafts, say).
    """
    return duality.kept_mass(tree, tree.draft_joint if drafted is None else drafted, "lossless")


def prices(tree: PrefixTree, phi: Array) -> Array:
    """[n] optimal multipliers of the draft constraints, by backward recursion from the optimal phi."""
    chain_binds = tree.target * phi[tree.parent] <= tree.draft_joint
    worth = phi * 0 + 1
    for level in reversed(tree.levels[1:]):
        np.add.at(worth, tree.parent[level], np.where(chain_binds[level], tree.target[level] * worth[level], 0))
    price = np.where(chain_binds, phi * 0, worth)
    price[0] = phi[0] * 0
    return price


def optimum(tree: PrefixTree) -> Solution:
    """Optimal acceptance length for one draft, in closed form with its dual; the gap is exactly 0 for fractions.

    Raises:
        CertificateError: the certificate fails (it does not, up to rounding).
    """
    start = time.perf_counter()
    phi = acceptance(tree)
    price = prices(tree, phi)
    bound = duality.upper_bound(tree, 1, "lossless", price)
    return certify(
        tree,
        phi,
        bound,
        objective="lossless",
        solver="closed form",
        seconds=time.perf_counter() - start,
        tolerance=1e-9,
        kappa=tree.draft_joint[tree.leaves],
        potential=duality.path_sums(tree, price),
    )
