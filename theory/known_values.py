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

from collections.abc import Callable
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
    names = [name for name in CLOSED_FORMS if name != "single-step-optimal" or tree.length == 1]
    return [known_value(name, tree, paths) for name in names]


def known_value(name: str, tree: PrefixTree, paths: int) -> KnownValue:
    """One of them, by name (`CLOSED_FORMS`); as above.

    Raises:
        ValueError: no such name, paths is not a positive integer, or `single-step-optimal` on a deeper tree.
    """
    check_paths(paths)
    if name not in CLOSED_FORMS:
        raise ValueError(f"name is {name!r}; want one of {', '.join(CLOSED_FORMS)}")
    phi = CLOSED_FORMS[name](tree.as_float() if paths > MAX_EXACT_PATHS else tree, paths)
    value = phi[1:].sum()
    exact = Fraction(value) if all(isinstance(entry, Fraction) for entry in phi) else None
    return KnownValue(name, float(value), exact, phi)


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


def _single_step(tree: PrefixTree, paths: int) -> Array:
    if tree.length != 1:
        raise ValueError(f"the tree has length {tree.length}; single-step-optimal has a value for length 1 only")
    return single_step.optimum(tree.target[1:], tree.draft[1:], paths).phi


CLOSED_FORMS: dict[str, Callable[[PrefixTree, int], Array]] = {
    "token": lambda tree, paths: token_level.acceptance(tree),
    "block": lambda tree, paths: single_path.acceptance(tree),
    "greedy-block": lambda tree, paths: block_transport.acceptance(tree),
    "naive": level_by_level.naive,
    "specinfer": level_by_level.specinfer,
    "kseq": level_by_level.kseq,
    "gbv": lambda tree, paths: single_path.acceptance(tree, selection.greedy_path(tree, paths)),
    "gbv-bucketed": lambda tree, paths: single_path.acceptance(tree, selection.bucketed_path(tree, paths)),
    "two-level": lambda tree, paths: single_path.acceptance(tree.as_float(), selection.two_level_path(tree, paths)),
    "score-race": score_race.acceptance,
    "score-race-2": lambda tree, paths: score_race.acceptance(tree, paths, "two-part"),
    "key-race": key_race,
    "spectr-gbv": spectr_gbv_claim,
    "single-step-optimal": _single_step,
}
