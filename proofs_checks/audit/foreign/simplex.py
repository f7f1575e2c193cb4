"""Exponentials that race more than once: the law of several argmins over the same noise.

Independent standard exponentials E_1..E_n divided by their sum are uniform on the simplex. Every comparison
a E_i < b E_j cuts that simplex by a plane through the origin, so that a string of comparisons leaves a polytope, and
the probability of a further answer is a ratio of volumes. This is what makes verifiers exact whose coins are shared
with the drafter, X = argmin E_i/q_i and Y = argmin E_i/p_i (Gumbel coupling, arXiv:2408.07978; several lists,
arXiv:2506.05632).

Letters: n exponentials; A a matrix, the polytope is {x >= 0, sum x = 1, A x <= 0}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, HalfspaceIntersection

FLAT = 1e-11


@dataclass(frozen=True)
class Cone:
    """What is known of some exponentials: names, and pairs (i, a, j, b) that say a E_i <= b E_j."""

    names: tuple[int, ...]
    planes: tuple[tuple[int, float, int, float], ...] = ()

    @staticmethod
    def joined(cones: Sequence[Cone]) -> Cone:
        """All that the cones say together."""
        names = sorted({name for cone in cones for name in cone.names})
        return Cone(tuple(names), tuple(dict.fromkeys(plane for cone in cones for plane in cone.planes)))

    def where_first(self, winner: int, rates: Mapping[int, float]) -> Cone:
        """The part in which E_winner / rates[winner] is the smallest."""
        others = ((winner, rate, other, rates[winner]) for other, rate in rates.items() if other != winner and rate > 0)
        return Cone(self.names, tuple(dict.fromkeys((*self.planes, *others))))


@lru_cache(maxsize=4096)
def share(cone: Cone) -> float:
    """The probability of a cone: its part of the simplex's volume, up to the factor 1/(n-1)! of both."""
    place = {name: i for i, name in enumerate(cone.names)}
    rows = np.zeros((len(cone.planes), len(place)))
    for row, (i, a, j, b) in zip(rows, cone.planes, strict=True):
        row[place[i]] += a / max(a, b)
        row[place[j]] -= b / max(a, b)
    if len(place) == 1:
        return 1.0
    # x_n = 1 - the others: half-spaces H x + h <= 0 in n-1 dimensions
    rows = np.concatenate([rows, -np.eye(len(place))])
    normals, offsets = rows[:, :-1] - rows[:, -1:], rows[:, -1]
    return _volume(normals, offsets)


def _volume(normals: np.ndarray, offsets: np.ndarray) -> float:
    """Volume of {x : normals x + offsets <= 0}, a bounded polytope, times the factorial of its dimension."""
    dimension = normals.shape[1]
    if dimension == 1:
        slopes = normals[:, 0]
        low = max((-offsets[slopes < 0] / slopes[slopes < 0]).tolist())
        high = min((-offsets[slopes > 0] / slopes[slopes > 0]).tolist())
        return max(0.0, high - low)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    kept = lengths[:, 0] > 0
    inside = linprog(
        [0.0] * dimension + [-1.0],
        A_ub=np.hstack([normals, lengths])[kept],
        b_ub=-offsets[kept],
        bounds=[(None, None)] * dimension + [(0, None)],
    )
    if not inside.success or inside.x[-1] < FLAT:
        return 0.0
    corners = HalfspaceIntersection(np.column_stack([normals, offsets])[kept], inside.x[:-1]).intersections
    return float(ConvexHull(corners).volume) * float(np.prod(np.arange(1, dimension + 1)))
