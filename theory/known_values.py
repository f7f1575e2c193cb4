"""Acceptance lengths of the known verifiers, without running them: the phi of each in closed form or by recursion.

phi(w) = Pr(the accepted prefix passes through w), E[tau] = sum of phi over the nonempty prefixes. Fractions give
fractions except where a rule involves a root (K-SEQ, two-level selection, the score races).

    token           product of min(p, q) along w                                  `token_level`
    block           phi(wy) = min(Q(wy), p(y|w) phi(w))                           `single_path`
    greedy-block    min(P, Q)                                                     `block_transport`
    naive           P g(Q)                                                        `level_by_level`
    specinfer, kseq                                                               `level_by_level`
    gbv, gbv-bucketed, two-level     block verification against kappa             `selection`
    score-race, score-race-2         block verification against kappa             `score_race`
    key-race        P g(phi_block / P)        K block verifications and a lottery of their keys
    spectr-gbv      F = P g(min(1, Q/P))      what SpecTr-GBV aims at

g(t) = 1 - (1-t)^K; p, P target, q, Q draft, conditional and joint; K drafts; token, block and greedy-block use one.

Sources: the registry of verifiers names each one's paper. The key race and the realisation of F are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from . import block_transport, level_by_level, score_race, selection, single_path, single_step, token_level
from .feasibility import antichain_excess, coverage, transport_excess
from .numbers import Array
from .prefix_tree import PrefixTree
from .solution import check_paths

MAX_EXACT_PATHS = 8


@dataclass(frozen=True, eq=False)
class KnownValue:
    """The acceptance length of one verifier on one tree.

    Attributes:
        name: what entries of the registry of verifiers call their `closed_form`.
        value: expected number of drafted tokens kept per call, in [0, L].
        exact: the same as a fraction, or None.
        phi [n]: acceptance of each prefix.
    """

    name: str
    value: float
    exact: Fraction | None
    phi: Array


def known_values(tree: PrefixTree, paths: int) -> list[KnownValue]:
    """The verifiers above on this tree with K = `paths` drafts; exact up to 8 paths on an exact tree.

    `single-step-optimal` is listed for trees of depth 1 only (further down its value depends on the realisation).

    Raises:
        ValueError: paths is not a positive integer.
    """
    check_paths(paths)
    if paths > MAX_EXACT_PATHS:
        tree = tree.as_float()
    phis = {
        "token": token_level.acceptance(tree),
        "block": single_path.acceptance(tree),
        "greedy-block": block_transport.acceptance(tree),
        "naive": level_by_level.naive(tree, paths),
        "specinfer": level_by_level.specinfer(tree, paths),
        "kseq": level_by_level.kseq(tree, paths),
        "gbv": single_path.acceptance(tree, selection.greedy_path(tree, paths)),
        "gbv-bucketed": single_path.acceptance(tree, selection.bucketed_path(tree, paths)),
        "two-level": single_path.acceptance(tree.as_float(), selection.two_level_path(tree, paths)),
        "score-race": score_race.acceptance(tree, paths),
        "score-race-2": score_race.acceptance(tree, paths, "two-part"),
        "key-race": key_race(tree, paths),
        "spectr-gbv": spectr_gbv_claim(tree, paths),
    }
    if tree.length == 1:
        phis["single-step-optimal"] = single_step.optimum(tree.target[1:], tree.draft[1:], paths).phi
    return [_known(name, phi) for name, phi in phis.items()]


def key_race(tree: PrefixTree, paths: int) -> Array:
    """[n] phi of the key race: P g(phi_block / P).

    Each draft runs block verification and draws a key; given a target stream Z and a uniform key S, it keeps the
    longest prefix of Z with phi_block / P >= S, and the smallest of the K keys wins.
    """
    return _covered(tree, single_path.acceptance(tree), paths)


def spectr_gbv_claim(tree: PrefixTree, paths: int) -> Array:
    """[n] F(w) = P g(min(1, Q/P)), which SpecTr-GBV aims at and its paper calls optimal.

    It is feasible for block transport (`claim_excess`), but in general below the optimum for independent drafts.
    """
    return _covered(tree, block_transport.acceptance(tree), paths)


def claim_excess(tree: PrefixTree, paths: int) -> Any:
    """By how much F fails the constraints of block transport: 0 up to rounding (exactly 0 for fractions)."""
    phi = spectr_gbv_claim(tree, paths)
    return max(transport_excess(tree, phi), antichain_excess(tree, phi, paths))


def _covered(tree: PrefixTree, part: Array, paths: int) -> Array:
    """P g(part / P), 0 where P = 0."""
    joint = tree.target_joint
    share = joint * 0
    np.divide(part, joint, out=share, where=joint > 0)
    return joint * coverage(share, paths)


def _known(name: str, phi: Array) -> KnownValue:
    value = phi[1:].sum()
    exact = Fraction(value) if all(isinstance(entry, Fraction) for entry in phi) else None
    return KnownValue(name, float(value), exact, phi)
