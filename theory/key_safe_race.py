"""A score race that is never below the key race: best set, the key race as its reserve, and an optimal last token.

Block verification of one path keeps phi_1(w); t = phi_1 / P. The key race keeps b(w) = P g(t) (`known_values`), which
is at least phi_1 and grows with K. With M_w(s) = m_w([0, s]) the rule has, at every node, a shift s0 and a tau with

    M_w(s) >= tau P(w) min((s - s0)^+ / (1 - s0), t(w))  for all s,   phi(w) >= sigma b(w),   sigma = tau (1-s0)^(K-1)

The root has s0 = 0, tau = 1 with equality.

Reserve. Order the masses tau P(wy) min(r, t(wy)) by r and give them, in that order, the lowest scores of m_w; what is
    left of Q(wy) is taken from the rest. Since sum_y P(wy) min(r, t(wy)) <= P(w) min(r, t(w)), the mass for r lies at
    scores of at most s0 + (1 - s0) r: the inequality holds for the children with the same s0 and tau. As g' falls,
    kappa(wy) >= tau P(wy) times the integral of g'(s0 + (1-s0) r) dr over [0, t], which is sigma b(wy); and
    p phi(w) >= sigma P(wy) g(t(w)) >= sigma b(wy).
Test. The best set is used if h sum_y (sigma(w) - sigma(wy)) b(wy) <= sum_y (phi(wy) - sigma(w) b(wy)), h the levels
    below the children. With F(w) the sum of b strictly below w, F <= h b and
    V_d = sum_{depth <= d} phi + sum_{depth d} sigma F never falls: V_0 is the key race, V_L this rule.
Last token. kappa there may be any law with kappa(S) <= G_w(c(S)) for every set S of children. The largest x <= d below
    such a law is, in order of falling d/c, the increments of min_j G_w(c(S_j)) + d(S_k) - d(S_j), S_j the first j.

Source: this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import single_path
from .known_values import key_race
from .numbers import Array
from .prefix_tree import PrefixTree
from .score_race import SLACK, Measure, Rows, best_set, children
from .solution import check_paths


@dataclass(frozen=True)
class Reserve:
    """What a node still owes the key race: M(s) >= tau P min((s - shift)^+ / (1 - shift), t)."""

    shift: float
    tau: float

    def slope(self, paths: int) -> float:
        """sigma."""
        return self.tau * (1 - self.shift) ** (paths - 1)


@dataclass(frozen=True)
class Family:
    """The children of a node that a draft can reach, [M] each, per draft through the node.

    Attributes:
        node: [M] their places in the tree.
        draft: q(y|w).
        likely: P / Q.
        wanted: phi(w) p(y|w) / Q.
        least: b / Q, the key race.
        time: t = phi_1 / P.
    """

    node: Array
    draft: Array
    likely: Array
    wanted: Array
    least: Array
    time: Array


def acceptance(tree: PrefixTree, paths: int) -> Array:
    """[n] phi of the rule with K = `paths` drafts, in float64, one node after the other.

    Raises:
        ValueError: paths is not a positive integer.
    """
    check_paths(paths)
    tree = tree.as_float()
    target, draft, single = tree.target_joint, tree.draft_joint, single_path.acceptance(tree)
    time = np.minimum(np.divide(single, target, out=np.zeros(tree.size), where=target > 0), 1)
    least = key_race(tree, paths)
    phi = np.zeros(tree.size)
    phi[0] = 1.0
    whole = np.array([[0.0, 1.0]])
    level = [(0, Measure(whole, whole, paths), Reserve(0.0, 1.0))]
    for below in reversed(range(tree.length)):
        following = []
        for node, measure, reserve in level:
            places = np.arange(tree.children[node].start, tree.children[node].stop)
            places = places[draft[places] > 0]
            mass = draft[places]
            family = Family(
                places,
                tree.draft[places],
                target[places] / mass,
                phi[node] * tree.target[places] / mass,
                least[places] / mass,
                time[places],
            )
            if below == 0:
                phi[places] = last_token(measure, family) * mass
                continue
            for place, ratio, own, owed in step(measure, reserve, family, below):
                phi[place] = ratio * draft[place]
                following.append((place, own, owed))
        level = following
    return phi


def last_token(measure: Measure, family: Family) -> Array:
    """[M] phi / Q of the best split of the last token."""
    order = np.argsort(-family.wanted, kind="stable")
    mass = np.concatenate([[0.0], np.cumsum(family.draft[order])])
    share = np.concatenate([[0.0], np.cumsum((family.draft * family.wanted)[order])])
    value = measure.value(np.minimum(mass / mass[-1], 1)[None])[0]
    most = np.minimum.accumulate(value - share) + share
    phi = np.zeros(len(order))
    phi[order] = np.maximum(np.diff(most), 0) / family.draft[order]
    return np.minimum(phi, family.wanted)


def step(measure: Measure, reserve: Reserve, family: Family, below: int) -> list[tuple[int, float, Measure, Reserve]]:
    """The children: place, phi / Q, measure and reserve: best set if it passes the test, the reserve otherwise."""
    slope, paths = reserve.slope(measure.paths), measure.paths
    rows = Rows(family.draft[None], family.wanted[None], np.zeros((1, len(family.draft))), np.ones(1))
    together = children(measure, best_set(measure, rows, rows.kept), np.ones_like(rows.draft, dtype=bool))
    measures = [Measure(*parts, paths) for parts in zip(together.score[:, None], together.below[:, None], strict=True)]
    phi = _kept(measures, family)
    owed = [
        strongest(own, reserve, likely, time)
        for own, likely, time in zip(measures, family.likely.tolist(), family.time.tolist(), strict=True)
    ]
    after = np.array([one.slope(paths) for one in owed])
    risk = below * ((slope - after) * family.least * family.draft).sum()
    if risk > ((phi - slope * family.least) * family.draft).sum() + SLACK:
        measures, owed = key_split(measure, reserve, family), [reserve] * len(owed)
        phi = _kept(measures, family)
    return list(zip(family.node.tolist(), phi.tolist(), measures, owed, strict=True))


def _kept(measures: list[Measure], family: Family) -> Array:
    """[M] phi / Q."""
    return np.minimum([float(own.worth[0, -1]) for own in measures], family.wanted)


def strongest(measure: Measure, reserve: Reserve, likely: float, time: float) -> Reserve:
    """The reserve of largest sigma that a measure (of mass 1) keeps: at most its node's, tau at most 1."""
    if likely * time == 0:
        return reserve
    score, below = measure.score[0], measure.below[0]
    most, found = reserve.slope(measure.paths), []
    for shift in np.unique(np.append(score[score < 1], reserve.shift)).tolist():
        end = shift + (1 - shift) * time
        at = np.append(score[(score > shift) & (score < end)], end)
        need = likely * (at - shift) / (1 - shift)
        tau = np.divide(np.interp(at, score, below), need, out=np.ones_like(need), where=need > 0)
        discount = (1 - shift) ** (measure.paths - 1)
        found.append(Reserve(shift, min(1.0, float(tau.min()), most / discount)))
    return max(found, key=lambda one: one.slope(measure.paths))


def key_split(measure: Measure, reserve: Reserve, family: Family) -> list[Measure]:
    """The reserve: the key race's masses on the lowest scores in its order, the remainders on the others."""
    share = reserve.tau * family.draft * family.likely
    times = np.concatenate([[0.0], np.unique(family.time[family.time > 0])])
    taken = np.minimum((share[:, None] * np.minimum(times, family.time[:, None])), family.draft[:, None])
    ends = np.append(np.minimum(taken.sum(axis=0), 1), 1.0)
    mass = np.concatenate([taken, family.draft[:, None]], axis=1)
    score = np.union1d(measure.score[0], measure.at(ends[None])[0][0])
    below = np.interp(score, measure.score[0], measure.below[0])
    keep = np.append(np.diff(ends) > 0, True)
    return [
        Measure(score[None], np.interp(below, ends[keep], own[keep])[None] / own[-1], measure.paths) for own in mass
    ]
