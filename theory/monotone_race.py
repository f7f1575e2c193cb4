"""A score race that never falls when a draft is added: best set, with the rule for one draft less as its reserve.

The rule R_K for K drafts runs beside R_1, ..., R_(K-1), all on the rows of the path; R_1 is block verification. For
each k a node w has a measure m, as in `score_race`, of which only the value G(x) of its lowest-score mass x matters. Of
it the rule can still use H(x) = min(G(x), phi(w)):

    G_k(x) >= sigma H_(k-1)(x)  for all x,      phi_k(w) >= sigma phi_(k-1)(w),      sigma = 1 at the root    (order)

Reserve (mirror). For any x_y, sum_y H_wy(x_y) <= H_w(sum_y x_y): sum_y G_wy(x_y) is the value of a mass sum_y x_y of
    m_w, and sum_y phi(wy) <= phi(w). So the values per mass of all children's H under R_(k-1), taken together and
    ordered, times sigma, are weakly majorised by those of m_k, and a doubly stochastic kernel T serves each of these
    pieces with scores of m_k of at least that mean. The best mass x of a child so served is worth at least
    sigma H_wy(x): (order) holds for every child with the same sigma, whatever R_(k-1) does.
Test. The best set is used if h sum_y (sigma(w) - sigma(wy)) r(wy) <= sum_y (phi_k(wy) - sigma(w) r(wy)), r = phi_(k-1),
    h the levels below the children, sigma(wy) the largest for which (order) holds. With F(w) the sum of r strictly
    below w, F <= h r (a level cannot sum to more than the one above) and V_d = sum_{depth <= d} phi_k + sum_{depth d}
    sigma F never falls: V_0 is the acceptance length of R_(k-1), V_L that of R_k.
Last token. Any law with kappa(S) <= G_w(Q(S)) for every set S of children: the best of them (`key_safe_race`).

So the acceptance length never falls in K and is never below block verification. Scores are rounded to `BINS` equal
bins, and drafts of one bin win equally often; T gives each piece of R_(k-1) an interval of m_k with that mean.

Source: this project's own. Weak majorisation and doubly stochastic kernels: Hardy, Littlewood and Polya.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .feasibility import coverage
from .key_safe_race import Family, last_token
from .numbers import Array
from .prefix_tree import PrefixTree
from .score_race import SLACK, Measure, Rows, best_set
from .solution import check_paths

BINS = 64


@dataclass(frozen=True)
class State:
    """One rule at a node, per draft through the node.

    Attributes:
        mass [BINS]: of the scores in each bin; sums to 1.
        ratio: phi / Q.
        slope: sigma.
    """

    mass: Array
    ratio: float
    slope: float


@dataclass(frozen=True)
class Race:
    """K drafts whose scores are rounded to bins.

    Attributes:
        paths: K.
        value [BINS]: g' averaged over each bin, falling.
    """

    paths: int
    value: Array

    @classmethod
    def of(cls, paths: int) -> Race:
        """The race of K drafts."""
        return cls(paths, BINS * np.diff(coverage(np.linspace(0, 1, BINS + 1), paths)))

    def measure(self, mass: Array) -> Measure:
        """The law of the score as a `Measure`, each bin a point where g' has its value."""
        score = 1 - (self.value / self.paths) ** (1 / max(self.paths - 1, 1))
        ends = np.concatenate([[0.0], mass.cumsum()])
        ends /= ends[-1]
        knots = np.concatenate([[0.0], np.repeat(np.clip(score, 0, 1), 2), [1.0]])
        return Measure(knots[None], np.concatenate([[0.0], np.repeat(ends, 2)[1:-1], [1.0]])[None], self.paths)


def acceptance(tree: PrefixTree, paths: int) -> Array:
    """[n] phi of the rule with K = `paths` drafts, in float64, one node after the other.

    Raises:
        ValueError: paths is not a positive integer.
    """
    check_paths(paths)
    tree = tree.as_float()
    races = [Race.of(count) for count in range(1, paths + 1)]
    joint, phi = tree.draft_joint, np.zeros(tree.size)
    phi[0] = 1.0
    level = [(0, [State(np.full(BINS, 1 / BINS), 1.0, 1.0) for _ in races])]
    for below in reversed(range(tree.length)):
        following = []
        for node, states in level:
            places = np.arange(tree.children[node].start, tree.children[node].stop)
            places = places[joint[places] > 0]
            draft, likely = tree.draft[places], tree.target[places] / tree.draft[places]
            if below == 0:
                ratio = _last(races[-1], states[-1], draft, likely)
                phi[places] = ratio * joint[places]
                continue
            split = _all_rules(races, states, draft, likely, below)
            phi[places] = [own[-1].ratio * joint[place] for own, place in zip(split, places, strict=True)]
            following += list(zip(places.tolist(), split, strict=True))
        level = following
    return phi


def _last(race: Race, state: State, draft: Array, likely: Array) -> Array:
    """[M] phi / Q of the best split of the last token."""
    nothing = np.zeros(len(draft))
    return last_token(race.measure(state.mass), Family(nothing, draft, nothing, state.ratio * likely, nothing, nothing))


def _all_rules(races: list[Race], states: list[State], draft: Array, likely: Array, below: int) -> list[list[State]]:
    """[M][K] the children of a node under every rule, R_1 first."""
    single = states[0]
    found = [[State(single.mass, min(1.0, single.ratio * each), 1.0) for each in likely.tolist()]]
    for (fewer, race), (before, state) in zip(pairwise(races), pairwise(states), strict=True):
        found.append(step(fewer, before, found[-1], race, state, draft, likely, below))
    return [list(rules) for rules in zip(*found, strict=True)]


def step(
    fewer: Race,
    before: State,
    reference: list[State],
    race: Race,
    state: State,
    draft: Array,
    likely: Array,
    below: int,
) -> list[State]:
    """The children under R_k: the best set if it passes the test, the mirror of R_(k-1) otherwise.

    Args:
        fewer, before, reference: R_(k-1), its state at the node and at the children.
        draft, likely [M]: q and p/q of the children; below: levels below them.
    """
    bold = [
        State(mass, ratio, _largest_slope(race, mass, ratio, fewer, own, state.slope))
        for mass, ratio, own in zip(
            *_kept(race, state, best_masses(race, state, draft, likely), likely), reference, strict=True
        )
    ]
    kept, owed, slope = (
        np.array(values)
        for values in ([one.ratio for one in bold], [one.ratio for one in reference], [one.slope for one in bold])
    )
    if below * ((state.slope - slope) * owed * draft).sum() <= ((kept - state.slope * owed) * draft).sum() + SLACK:
        return bold
    masses = mirrored(fewer, reference, race, state, draft)
    return [State(mass, ratio, state.slope) for mass, ratio in zip(*_kept(race, state, masses, likely), strict=True)]


def _kept(race: Race, state: State, masses: Array, likely: Array) -> tuple[Array, list[float]]:
    """The masses, and phi / Q of each child."""
    return masses, np.minimum(masses @ race.value, state.ratio * likely).tolist()


def best_masses(race: Race, state: State, draft: Array, likely: Array) -> Array:
    """[M, BINS] the children's masses if the best set takes the lowest scores and each part is cut once."""
    nothing = np.zeros((1, len(draft)))
    rows = Rows(draft[None], state.ratio * likely[None], nothing, np.ones(1))
    split = best_set(race.measure(state.mass), rows, nothing)
    level, first, cut, last = (part[0][:, None] for part in (split.level, split.first, split.cut, split.last))
    low, high = _between(state.mass, first, cut), _between(state.mass, cut, last)
    found = level * _law(low) + (1 - level) * _law(high)
    return found / found.sum(axis=1, keepdims=True)


def _between(mass: Array, first: Array, last: Array) -> Array:
    """[M, BINS] the masses of each bin between the quantiles first and last [M, 1]."""
    ends = np.concatenate([[0.0], mass.cumsum()])
    return np.maximum(np.minimum(ends[1:], last) - np.maximum(ends[:-1], first), 0)


def _law(mass: Array) -> Array:
    """Rows divided by their sums; rows of nothing stay so."""
    total = mass.sum(axis=1, keepdims=True)
    return np.divide(mass, total, out=np.zeros_like(mass), where=total > 0)


def _largest_slope(race: Race, mass: Array, ratio: float, fewer: Race, own: State, most: float) -> float:
    """The largest sigma, at most `most`, for which (order) holds at a child."""
    if own.ratio == 0:
        return most
    enough = np.interp(own.ratio, *_corners(own.mass, fewer.value)[::-1])
    points = np.concatenate([mass.cumsum(), own.mass.cumsum(), [enough]])
    points = np.unique(points[(points > 0) & (points <= enough)])
    worth = _value(mass, race.value, points) / _value(own.mass, fewer.value, points)
    first = race.value[np.argmax(mass > 0)] / fewer.value[np.argmax(own.mass > 0)]
    return min(most, float(worth.min()), float(first), ratio / own.ratio)


def _corners(mass: Array, value: Array) -> tuple[Array, Array]:
    """Where G bends, and its values there."""
    return np.concatenate([[0.0], mass.cumsum()]), np.concatenate([[0.0], (mass * value).cumsum()])


def _value(mass: Array, value: Array, points: Array) -> Array:
    """G at the masses `points`."""
    return np.interp(points, *_corners(mass, value))


def mirrored(fewer: Race, reference: list[State], race: Race, state: State, draft: Array) -> Array:
    """[M, BINS] the children's masses under R_k for which (order) holds with the node's sigma."""
    mass = np.array([own.mass for own in reference]) * draft[:, None]
    most = np.array([[own.ratio] for own in reference]) * draft[:, None]
    needed = np.diff(np.minimum((mass * fewer.value).cumsum(axis=1), most), axis=1, prepend=0.0) / fewer.value
    pieces = np.stack([needed, mass - needed], axis=1)
    least = np.broadcast_to(np.stack([state.slope * fewer.value, np.zeros(BINS)]), pieces.shape).ravel()
    order = np.argsort(-least, kind="stable")
    kernel = np.zeros((pieces.size, BINS))
    kernel[order] = shadows(pieces.ravel()[order], least[order], state.mass, race.value)
    return _law(kernel.reshape(len(draft), -1, BINS).sum(axis=1))


def shadows(mass: Array, least: Array, given: Array, value: Array) -> Array:
    """[I, J] how to serve pieces that want a mean of `least` from pieces of known value, using up both.

    One wanting piece after the other gets an interval of what is left, ordered by value, whose mean is what it wants
    (the last interval if that is worth more).

    Args:
        mass, least [I]: the wanting pieces, the most demanding first.
        given, value [J]: masses and their values, falling; sum(given) = sum(mass), and the best x of them are worth at
            least what any x of the wanting pieces want.
    """
    left, kernel = given.copy(), np.zeros((len(mass), len(given)))
    for piece in np.flatnonzero(mass > 0):
        ends = np.concatenate([[0.0], left.cumsum()])
        size = min(mass[piece], ends[-1])
        starts = np.unique(np.clip(np.concatenate([ends, ends - size]), 0, ends[-1] - size))
        worth = _value(left, value, starts + size) - _value(left, value, starts)
        start = float(np.interp(-least[piece] * size, -worth, starts))
        kernel[piece] = _between(left, np.array([[start]]), np.array([[start + size]]))[0]
        left = np.maximum(left - kernel[piece], 0)
    return kernel
