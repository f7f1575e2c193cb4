"""Second routes to the optima of one draft and of transport: the same programs handed to HiGHS, for tests only."""

from __future__ import annotations

import time

import numpy as np
from scipy import sparse

from specbound.theory import duality, linear_program
from specbound.theory.block_transport import certified_plan, to_transport
from specbound.theory.numbers import Array
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import Solution, certify


def block_verification_by_lp(tree: PrefixTree) -> Solution:
    """The same program solved by HiGHS, in float64; the bound is the value of HiGHS's own multipliers.

    Raises:
        CertificateError: HiGHS fails, or its answer leaves a gap above 1e-6.
    """
    start = time.perf_counter()
    tree = tree.as_float()
    blocks = {
        "chain": linear_program.chain_rows(tree, tree.target),
        "draft": linear_program.cap_rows(tree, tree.draft_joint),
    }
    answer = linear_program.maximise(np.ones(tree.size - 1), blocks)
    phi = clipped(tree, linear_program.with_root(answer.x), tree.target, tree.draft_joint)
    price = np.concatenate([[0.0], answer.multipliers["draft"]])
    bound = duality.upper_bound(tree, 1, "lossless", price)
    return certify(tree, phi, bound, objective="lossless", solver="HiGHS", seconds=time.perf_counter() - start)


def token_verification_by_lp(tree: PrefixTree) -> Solution:
    """The same program solved by HiGHS, in float64.

    Raises:
        CertificateError: HiGHS fails, or its answer does not reach the bound within 1e-6.
    """
    start = time.perf_counter()
    tree = tree.as_float()
    ratio = np.minimum(tree.target, tree.draft)
    answer = linear_program.maximise(np.ones(tree.size - 1), {"token": linear_program.chain_rows(tree, ratio)})
    phi = clipped(tree, linear_program.with_root(answer.x), ratio)
    bound = duality.chain_bound(tree, np.zeros(tree.size), ratio)
    return certify(tree, phi, bound, objective="token", solver="HiGHS", seconds=time.perf_counter() - start)


def transport_by_lp(tree: PrefixTree, paths: int = 1) -> Solution:
    """The same transport problem as a linear program in HiGHS; certified by its plan and its potentials.

    Raises:
        CertificateError: HiGHS stopped without an optimum, or the certificate fails.
        ValueError: the problem is too large to enumerate.
    """
    start = time.perf_counter()
    a, b, cost = to_transport(tree, paths)
    rows, columns = cost.shape
    per_source = sparse.kron(sparse.eye_array(rows), np.ones((1, columns)))
    per_target = sparse.kron(np.ones((1, rows)), sparse.eye_array(columns))
    limits = np.concatenate([a / a.sum(), b / b.sum()])
    # The marginals add up to the same total on both sides: the last one is redundant, and rounding would make it false.
    marginals = linear_program.Rows(sparse.vstack([per_source, per_target], format="csr")[:-1], limits[:-1])
    answer = linear_program.maximise(-cost.ravel(), {}, equal=marginals)
    plan, potential = answer.x.reshape(cost.shape), -answer.equal_multipliers[:rows]
    return certified_plan(tree, paths, (a, b, cost), plan, potential, "HiGHS", start)


def clipped(tree: PrefixTree, phi: Array, ratio: Array, cap: Array | None = None) -> Array:
    """[n] the largest phi' <= phi with phi'(wy) <= ratio(wy) phi'(w) and phi' <= cap: removes a solver's rounding."""
    phi = np.maximum(phi, 0) if cap is None else np.clip(phi, 0, cap)
    for level in tree.levels[1:]:
        phi[level] = np.minimum(phi[level], ratio[level] * phi[tree.parent[level]])
    return phi
