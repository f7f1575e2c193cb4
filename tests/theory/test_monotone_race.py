"""The score race that reserves the rule for one draft less: it never falls in K, and is a possible selection."""

from __future__ import annotations

import numpy as np
import pytest

from specbound.theory import monotone_race, score_race, single_path, single_step
from specbound.theory.feasibility import antichain_excess
from specbound.theory.known_values import key_race
from specbound.theory.monotone_race import BINS, Race, State
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import DEGENERATE, INSTANCES

FALLING = PrefixTree.iid([0.077, 0.0093, 0.9137], [0.038, 0.108, 0.854], 1)  # the safe rule falls from K = 2 to 3
RANDOM = [PrefixTree.random(v, d, seed, 0.3) for seed, (v, d) in enumerate([(2, 2), (3, 2), (2, 3)])]
TREES = [FALLING, *RANDOM, *list(INSTANCES.values())[::3], *list(DEGENERATE.values())[::3]]


def value(tree: PrefixTree, paths: int) -> float:
    return float(monotone_race.acceptance(tree, paths)[1:].sum())


def never_falls(tree: PrefixTree, most: int) -> bool:
    values = [value(tree, paths) for paths in range(1, most + 1)]
    return bool((np.diff(values) >= -1e-12).all())


def test_it_never_falls_when_a_draft_is_added_and_begins_with_block_verification():
    for tree in TREES:
        assert value(tree, 1) == pytest.approx(float(single_path.acceptance(tree.as_float())[1:].sum()), abs=1e-12)
        assert never_falls(tree, 3)


def test_the_safe_rule_falls():
    kept = [score_race.acceptance(FALLING, paths)[1:].sum() for paths in (2, 3)]
    assert kept[1] < kept[0] - 0.01


def test_it_never_falls_if_the_mirror_is_taken_everywhere_and_does_without_the_test(monkeypatch):
    best = [value(tree, 3) for tree in RANDOM]
    monkeypatch.setattr(monotone_race, "SLACK", -np.inf)
    assert all(never_falls(tree, 3) for tree in RANDOM)
    assert [value(tree, 3) for tree in RANDOM] != best


def test_without_the_test_it_falls_below_block_verification(monkeypatch):
    """A rare branch that the target likes less than the draft, and below it what is surest."""
    rows = {(): ([0.05, 0.95], [0.1, 0.9]), (0,): ([1, 0], [0.5, 0.5])}

    def both(prefix):
        return rows.get(prefix, ([1, 0], [0, 1] if prefix[:1] == (1,) else [1, 0]))

    decoy = PrefixTree.from_conditionals(lambda w: both(w)[0], lambda w: both(w)[1], 2, 6)
    assert never_falls(decoy, 2)
    monkeypatch.setattr(monotone_race, "SLACK", np.inf)
    assert value(decoy, 2) == pytest.approx(1.1875, abs=1e-9)
    assert value(decoy, 1) == pytest.approx(1.2, abs=1e-12)


def test_a_mirror_that_serves_the_most_demanding_last_is_none(monkeypatch):
    monkeypatch.setattr(monotone_race, "SLACK", -np.inf)
    serve = monotone_race.shadows
    monkeypatch.setattr(monotone_race, "shadows", lambda mass, least, *rest: serve(mass, 0 * least, *rest))
    assert not all(never_falls(tree, 3) for tree in RANDOM)


@pytest.mark.parametrize("paths", [2, 5])
def test_it_keeps_no_more_than_is_possible(paths):
    for tree in TREES[::2]:
        assert antichain_excess(tree.as_float(), monotone_race.acceptance(tree, paths), paths) <= 1e-12


def test_one_token_is_kept_as_often_as_possible_up_to_the_bins():
    for tree in (FALLING, PrefixTree.random(5, 1, 3, 0.3)):
        best = single_step.optimum(tree.target[1:], tree.draft[1:], 4).value
        assert best - 2e-4 < value(tree, 4) <= best + 1e-12


def test_it_can_fall_below_the_key_race():
    sure, doubtful = [1, 0], [0.75, 0.25]
    rows = {(): ([0.5, 0.5], doubtful), (0,): (sure[::-1], doubtful), (1,): (sure[::-1], sure)}
    late = PrefixTree.from_conditionals(
        *(lambda w, side=side: rows.get(w, (sure[::-1], [0.5, 0.5]))[side] for side in (0, 1)), 2, 3
    )
    assert value(late, 2) < key_race(late, 2)[1:].sum() - 0.03


def test_the_mirror_serves_every_child_as_well_as_the_rule_for_one_draft_less():
    rng = np.random.default_rng(5)
    fewer, race, sigma = Race.of(3), Race.of(4), 0.9
    shares, draft = rng.dirichlet(np.ones(3), size=BINS).T / BINS, np.full(3, 1 / 3)
    laws = shares / shares.sum(axis=1, keepdims=True)
    draft = shares.sum(axis=1)
    reference = [
        State(law, share * float(law @ fewer.value), 1.0) for law, share in zip(laws, (1, 0.5, 0.9), strict=True)
    ]
    state = State(np.full(BINS, 1 / BINS), 1.0, sigma)
    served = monotone_race.mirrored(fewer, reference, race, state, draft)
    assert draft @ served == pytest.approx(state.mass, abs=1e-14)
    points = np.linspace(0, 1, 200)

    def short(masses):
        """By how much a child misses sigma min(G of the reference, what it keeps)."""
        return max(
            float((sigma * np.minimum(worth(own.mass, fewer, points), own.ratio) - worth(mass, race, points)).max())
            for own, mass in zip(reference, masses, strict=True)
        )

    assert short(served) < 1e-12
    assert short(np.tile(state.mass, (3, 1))[:, ::-1] * 0 + np.eye(BINS)[-1]) > 0.1


def worth(mass, race, points):
    """Value of the best x of a law of scores, at the points x."""
    ends = np.concatenate([[0.0], mass.cumsum()])
    return np.interp(points, ends, np.concatenate([[0.0], (mass * race.value).cumsum()]))


def test_shadows_use_up_both_sides_and_give_every_piece_its_mean():
    rng = np.random.default_rng(2)
    given, value_of = rng.dirichlet(np.ones(6)), np.sort(rng.random(6))[::-1]
    mass = rng.dirichlet(np.ones(4))
    mixed = np.outer(mass, given)
    least = np.sort(0.9 * (mixed @ value_of) / mass)[::-1]
    kernel = monotone_race.shadows(mass, least, given, value_of)
    assert kernel.sum(axis=1) == pytest.approx(mass, abs=1e-15)
    assert kernel.sum(axis=0) == pytest.approx(given, abs=1e-15)
    assert ((kernel @ value_of) >= least * mass - 1e-15).all()
    greedy = monotone_race.shadows(mass, np.full(4, 2.0), given, value_of)
    assert ((greedy @ value_of) < 2 * mass).all()


def test_paths_out_of_range_are_refused():
    with pytest.raises(ValueError, match="paths is 0"):
        monotone_race.acceptance(FALLING, 0)
