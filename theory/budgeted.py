"""Block verification with a budget of deviation: the acceptance of a rule that decoding can execute, in closed form.

A verifier whose law may deviate from the target's by eps in total variation (see `frontier`). Everything is told per
unit of draft mass Q(w). What is kept at w consists of `true` mass t, which must go on as the target does, and of
`moved` mass v, which deviates already and may go anywhere; `owed` mass u is what was moved away from under w and is
missing there; b is what is left of the budget. At the root t = 1, v = u = 0, b = eps. With rows p, q:

    surplus S = (t p - q)+,  room D = (q - t p)+      what would be emitted, and what drafts could still bring, at w
    f = min(D, u p), scaled to sum at most S          owed anyway: letting S fall short instead of D costs nothing
    m = min(b, sum S - sum f)                         moved now: taken from S, placed in D
    emitted at w: S less f and m, which are taken from tokens that drafts can have first, there in proportion to S.
    Below a drafted token y, s the sum of S over tokens with q > 0:
    t' = (min(q, t p) + f) / q,                  v' = (v + m) (D - f) / (q sum (D - f)),
    u' = (u p - f + S min(1, (sum f + m) / s)) / q,  b' = (b - m) t' / sum (min(q, t p) + f)

phi(w) = Q(w) (t + v). Moved mass never dies: sum (D - f) >= v + m, as sum D - sum S = 1 - t >= v.

Why the deviation is at most eps: the stream's law is R = P - U + V with U, V >= 0 the owed and the moved mass, so that
its distance to P is at most the mass that was ever moved, sum_w Q(w) m(w) = E(sum of m along the draft); and m plus the
mean of b' over a drafted token is at most b. Budget goes where true mass goes, for no more can be moved than is true.
eps = 0 is block verification, eps = 1 keeps every draft.

Letters: p(y|w), q(y|w) rows of target and draft, P, Q joint; fractions give fractions. Source: specbound (own), after
Block Verification, arXiv:2403.10444.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .prefix_tree import Array, PrefixTree


@np.errstate(over="ignore")
def acceptance(tree: PrefixTree, deviation: Any) -> tuple[Array, Array]:
    """phi and R [n] of the rule with budget `deviation`: Pr(the accepted prefix, the stream passes through the node).

    Raises:
        ValueError: the deviation is not in [0, 1].
    """
    if not 0 <= deviation <= 1:
        raise ValueError(f"deviation is {deviation}; want a total variation in [0, 1]")
    zero = tree.target * 0
    true, moved, owed, left = zero.copy(), zero.copy(), zero.copy(), zero.copy()
    true[0], left[0] = tree.target[0], deviation
    phi, stream = tree.target.copy(), tree.target.copy()
    for node in range(tree.size):
        below = tree.children[node]
        if below.start == below.stop:
            continue
        mass, p, q = tree.draft_joint[node], tree.target[below], tree.draft[below]
        surplus, room = np.maximum(true[node] * p - q, 0), np.maximum(q - true[node] * p, 0)
        free = np.minimum(room, owed[node] * p)
        free = free * _share(surplus.sum(), free.sum())
        spent = min(left[node], surplus.sum() - free.sum())
        owing = free.sum() + spent
        offered = np.where(q > 0, surplus, surplus * 0)
        first = offered * _share(owing, offered.sum())
        taken = first + (surplus - offered) * _share(owing - first.sum(), (surplus - offered).sum())
        placed = (room - free) * _share(moved[node] + spent, (room - free).sum())
        kept = np.minimum(q, true[node] * p) + free
        drafted = q > 0
        for values, new in ((true, kept), (moved, placed), (owed, owed[node] * p - free + taken)):
            np.divide(new, q, out=values[below], where=drafted)
        left[below] = true[below] * _share(left[node] - spent, kept.sum())
        phi[below] = mass * (kept + placed)
        stream[below] = p * (stream[node] - phi[node]) + phi[below] + mass * (surplus - taken)
    return phi, stream


def _share(part: Any, whole: Any) -> Any:
    """min(1, part / whole); 0 if the whole is 0."""
    return whole if whole == 0 else min(part / whole, whole / whole)
