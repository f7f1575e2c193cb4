"""Brute force: the best lossless verifier as a linear program over everything that can happen in one round.

A round draws K drafts T (law Pr(T)), accepts a prefix w of one of them, emits one more token y, and later tokens
come from the target. A verifier is the joint law pi(T, wy), and e(v) = Pr(the stream passes v, its token y being
emitted at v or above):

    maximise    sum |w| pi(T, wy)
    subject to  sum_{wy} pi(T, wy) = Pr(T)                          for every T        (drafts)
                e(v) = sum_T pi(T, v) + target(v) e(parent of v)    for every node v   (stream)
                e(b) = P(b)                                         for every block b  (target law)
                pi >= 0,  w a prefix of some draft of T

Blocks b have L+1 tokens: one more level of nodes below the tree, the bonus tokens (blocks are shorter where the tree
ends early). Nothing is assumed about how the verifier decides, so this is the ground truth for `antichain` and for
the certified solver. By symmetry T may be taken unordered. Sizes grow like V^(LK): tiny instances only.

The dual bound takes any worth(b) of the blocks, with worth(v) the mean over the blocks below v, and charges every T
its best stop: sum_T Pr(T) max (|w| - worth(wy)) + sum_b P(b) worth(b).
"""

from __future__ import annotations

import time

import numpy as np
from scipy import sparse

from .. import linear_program as lp
from ..block_transport import sources
from ..numbers import Array
from ..prefix_tree import PrefixTree
from ..solution import Solution, certify

MAX_VARIABLES = 300_000


def optimum(tree: PrefixTree, paths: int) -> Solution:
    """The lossless optimum by brute force, certified; phi is read off pi.

    Raises:
        ValueError: the program would have more than 3e5 variables.
        CertificateError: HiGHS fails, or its answer leaves a gap above 1e-6.
    """
    start = time.perf_counter()
    tree = tree.as_float()
    phi, bound = coupled(tree, *sources(tree, paths))
    seconds = time.perf_counter() - start
    return certify(tree, phi, bound, objective="lossless", paths=paths, solver="HiGHS, coupling", seconds=seconds)


def coupled(tree: PrefixTree, drafts: Array, weights: Array) -> tuple[Array, float]:
    """phi [n] of the best coupling with drafted sets of any law, and an upper bound on its value.

    Args:
        drafts [N, M]: leaves of each set, as indices of `bonus`, repeated where a set has fewer; weights [N]: its law.
    Raises:
        ValueError, CertificateError: as `optimum`.
    """
    parent, target = with_bonus_level(tree)
    joint = target.copy()
    for node in range(1, len(parent)):
        joint[node] *= joint[parent[node]]
    source, stop = events(tree, drafts, parent)
    possible = np.minimum(weights[source], joint[stop])
    source, stop, most = source[possible > 0], stop[possible > 0], possible[possible > 0]
    if len(source) > MAX_VARIABLES:
        raise ValueError(f"{len(source)} variables are too many for brute force; lower paths, vocab or length")
    rows = equalities(weights, parent, joint, source, stop, most)
    kept = tree.depth[parent[stop]].astype(float)
    answer = lp.maximise(np.concatenate([most * kept, np.zeros(len(parent))]), {}, equal=rows)
    phi = np.bincount(parent[stop], weights=most * answer.x[: len(stop)], minlength=tree.size)
    for level in reversed(tree.levels[1:]):
        np.add.at(phi, tree.parent[level], phi[level])
    bound = dual_value(weights, answer.equal_multipliers[: len(weights)], parent, target, source, stop, kept)
    return phi, bound


def dual_value(
    weights: Array,
    multipliers: Array,
    parent: Array,
    target: Array,
    source: Array,
    stop: Array,
    kept: Array,
) -> float:
    """Upper bound from multipliers of the draft rows (Pr(T) times what T is charged); any values give a valid one.

    The least worth of the nodes under which no stop earns more than its T is charged is an optimal stopping value:
    least(v) = max(reward(v), mean of least over the children). Where it exceeds that mean all blocks below are lifted
    alike. Charges of very rare T are lost in rounding and do not enter; every T is charged anew in the end.
    """
    frequent = weights[source] > 1e-7
    reward = (kept - (multipliers / weights)[source])[frequent]
    least = np.full(len(parent), reward.min())
    np.maximum.at(least, stop[frequent], reward)
    mean = np.zeros(len(parent))
    inner = np.zeros(len(parent), dtype=bool)
    inner[parent[1:]] = True
    for node in range(len(parent) - 1, 0, -1):
        least[node] = max(least[node], mean[node]) if inner[node] else least[node]
        mean[parent[node]] += target[node] * least[node]
    lift = np.zeros(len(parent))
    for node in range(1, len(parent)):
        lift[node] = lift[parent[node]] + (least[node] - mean[node] if inner[node] else 0.0)
    worth = np.where(inner, mean, least) + lift
    charge = np.full(len(weights), -np.inf)
    np.maximum.at(charge, source, kept - worth[stop])
    return float(weights @ charge + mean[0])


def with_bonus_level(tree: PrefixTree) -> tuple[Array, Array]:
    """parent and target conditional of the nodes of the tree and of the bonus tokens below its leaves."""
    leaves = np.arange(tree.size)[tree.leaves]
    parent = np.concatenate([tree.parent, np.repeat(leaves, tree.vocab)])
    return parent, np.concatenate([tree.target, tree.bonus.ravel()])


def events(tree: PrefixTree, drafts: Array, parent: Array) -> tuple[Array, Array]:
    """All pairs (T, wy) with w a prefix of a draft of T: number of T, number of the node wy; two equal-long arrays."""
    children: dict[int, list[int]] = {}
    for node in range(1, len(parent)):
        children.setdefault(int(parent[node]), []).append(node)
    pairs: list[tuple[int, int]] = []
    for number, leaves in enumerate(drafts):
        prefixes = {0}
        for leaf in set(leaves.tolist()):
            node = leaf + tree.leaves.start
            while node > 0:
                prefixes.add(node)
                node = int(tree.parent[node])
        pairs += [(number, stop) for node in sorted(prefixes) for stop in children[node]]
    source, stop = np.array(pairs).T
    return source, stop


def equalities(weights: Array, parent: Array, joint: Array, source: Array, stop: Array, most: Array) -> lp.Rows:
    """The rows of the program.

    Every variable is scaled to [0, 1] and every row to limits 0 or 1, so that rare tokens count as much as frequent
    ones: pi(T, v) = most * x with most = min(Pr(T), P(v)), and e(v) = P(v) * x. Nodes with P(v) = 0 have no row.
    """
    count, size = len(source), len(parent)
    nodes = np.flatnonzero(joint[1:] > 0) + 1
    blocks = np.setdiff1d(nodes, parent[nodes])
    blocks = blocks[np.argsort(joint[blocks], kind="stable")]
    variables = np.arange(count)
    drawn = sparse.csr_array((most / weights[source], (source, variables)), shape=(len(weights), count + size))
    entered = sparse.csr_array((most / joint[stop], (stop, variables)), shape=(size, count))
    inner = nodes[parent[nodes] > 0]
    carried = sparse.csr_array((np.ones(len(inner)), (inner, parent[inner])), shape=(size, size))
    stream = sparse.hstack([entered, carried - sparse.eye_array(size)], format="csr")[nodes]
    places = (np.arange(len(blocks)), count + blocks)
    emitted = sparse.csr_array((np.ones(len(blocks)), places), shape=(len(blocks), count + size))
    limits = np.concatenate([np.ones(len(weights)), np.zeros(len(nodes)), np.ones(len(blocks))])
    # Drafts and blocks have the same total probability: one row is redundant, and rounding would make it false.
    return lp.Rows(sparse.vstack([drawn, stream, emitted], format="csr")[:-1], limits[:-1])
