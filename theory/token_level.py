"""Token verification: the best that can be done when each token is judged before the next one is looked at.

    maximise    sum_w phi(w)                            over nodes w other than the root
    subject to  phi(root) = 1,   phi(wy) <= min(p(y|w), q(y|w)) phi(w)

phi(w) = Pr(the accepted prefix passes through w); p, q target and draft conditionals; one draft, K = 1.

Why these constraints: any lossless verifier has phi(wy) <= p(y|w) phi(w). If it also decides to keep w before it
looks at the token drafted after w, then that token still has law q(.|w) given that w is kept, and only drafted
tokens can be kept: phi(wy) <= q(y|w) phi(w). Token verification meets every constraint with equality, so it is the
best causal lossless verifier, and the optimum is sum_w of the product of min(p, q) along w. Block verification
(`single_path`) looks ahead and does better.

Sources: speculative sampling, arXiv:2211.17192 (Algorithm 1) and arXiv:2302.01318; the value at one step is
1 - total variation(p, q).
"""

from __future__ import annotations

import time

import numpy as np

from . import duality
from .numbers import Array
from .prefix_tree import PrefixTree
from .solution import Solution, certify


def acceptance(tree: PrefixTree) -> Array:
    """[n] phi of token verification, the product of min(p, q) along the path; 1 at the root."""
    phi = np.minimum(tree.target, tree.draft)
    for level in tree.levels[1:]:
        phi[level] *= phi[tree.parent[level]]
    return phi


def optimum(tree: PrefixTree) -> Solution:
    """Value of token verification in closed form, with its dual: worth(w) = 1 + sum_y min(p, q)(y|w) worth(wy).

    Raises:
        CertificateError: the certificate fails (it does not, up to rounding).
    """
    start = time.perf_counter()
    phi = acceptance(tree)
    bound = duality.chain_bound(tree, phi * 0, np.minimum(tree.target, tree.draft))
    seconds = time.perf_counter() - start
    return certify(tree, phi, bound, objective="token", solver="closed form", seconds=seconds, tolerance=1e-9)
