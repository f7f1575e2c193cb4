"""Pieces that several verifiers share, one by one, where a wrong last digit would not show in an emitted law."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from specbound.runtime.parts import block_rule
from specbound.runtime.parts.block_rule import block_ratios
from specbound.runtime.parts.draft_race import entry_scores, hit_chance, leaving, optimal_slopes, race_weights
from specbound.runtime.parts.draft_tree import first_appearance, first_path, target_ratio
from specbound.runtime.parts.roots import falling_root
from specbound.runtime.parts.selected_path import next_ratio
from specbound.runtime.parts.single_path import correction_weights
from specbound.runtime.verifiers import spectr_gbv
from specbound.runtime.verifiers.key_race import key_bounds
from specbound.runtime.verifiers.kseq import smallest_discount
from specbound.runtime.verifiers.many_level import count_after_race, level_of
from specbound.runtime.verifiers.single_step_optimal import offer_optimally
from specbound.runtime.verifiers.spectr_gbv import interpolate
from specbound.runtime.verifiers.spectr_gbv_published import published_residual
from specbound.runtime.verifiers.token import token_acceptance

ROOTS = torch.tensor([2.0**-20, 1e-4, 0.1, 1 / 3, 0.5, 0.75, 0.999, 1 - 2.0**-20], dtype=torch.float64)
FALLING = {
    "line": lambda x: ROOTS - x,
    "steep": lambda x: (ROOTS - x) * 1e6,
    "step": lambda x: torch.where(x < ROOTS, 1.0, -1.0).double(),
    "uneven step": lambda x: torch.where(x < ROOTS, 1e6, -1e-6).double(),
    "flat above": lambda x: (ROOTS - x).clamp_min(0),
    "flat below": lambda x: (ROOTS - x).clamp_max(0) + torch.where(x < ROOTS, 1e-9, 0.0),
    "cubic": lambda x: (ROOTS - x) ** 3,
    "ninth power": lambda x: (ROOTS - x) ** 9,
    "hyperbola": lambda x: ROOTS / x.clamp_min(1e-12) - 1,
}


@pytest.mark.parametrize("dtype, accuracy", [(torch.float32, 2.0**-12), (torch.float64, 2.0**-48)])
@pytest.mark.parametrize("name", FALLING)
def test_a_root_is_met_from_above_to_the_stated_accuracy(name, dtype, accuracy):
    low, high = torch.zeros_like(ROOTS), torch.ones_like(ROOTS)
    found = falling_root(lambda x: FALLING[name](x).to(dtype), low, high)
    assert bool((FALLING[name](found).to(dtype) <= 0).all())
    assert bool((found <= ROOTS + accuracy).all())


SMOOTH = {
    "line": lambda x: ROOTS - x,
    "steep": lambda x: 1e6 * (ROOTS - x),
    "convex": lambda x: torch.expm1(ROOTS - x),
    "concave": lambda x: -torch.expm1(5 * (x - ROOTS)),
}


@pytest.mark.parametrize("width", [1, 4, 63])
@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_root_is_met_far_closer_than_bisection_could(name, width):
    low = torch.zeros_like(ROOTS)
    found = falling_root(lambda x: SMOOTH[name](x / width).float(), low, low + width) / width
    assert bool(((found - ROOTS).abs() < 1e-7).all())


def test_a_function_below_zero_from_the_start_has_its_root_at_the_left_end():
    for dtype, accuracy in ((torch.float32, 2.0**-12), (torch.float64, 2.0**-48)):
        found = falling_root(lambda x, dtype=dtype: (-1 - x).to(dtype), torch.zeros(1).double(), torch.ones(1).double())
        assert 0 <= float(found) <= accuracy


@pytest.mark.parametrize("paths", [1, 2, 3, 5])
def test_the_chance_to_hit_a_set_and_its_slope_are_those_of_fractions(paths):
    count = [Fraction(n + 1, paths * (paths + 1) // 2) for n in range(paths)]
    masses = [Fraction(0), Fraction(1, 7), Fraction(1, 2), Fraction(1)]
    got = hit_chance(
        torch.tensor([[float(t) for t in masses]], dtype=torch.float64),
        torch.tensor([[float(c) for c in count]], dtype=torch.float64),
    )
    for place, t in enumerate(masses):
        chance = sum(c * (1 - (1 - t) ** n) for n, c in enumerate(count, start=1))
        slope = sum(c * n * (1 - t) ** (n - 1) for n, c in enumerate(count, start=1))
        assert abs(float(got[0][0, place]) - float(chance)) < 1e-15
        assert abs(float(got[1][0, place]) - float(slope)) < 1e-14


def raced(wanted: list[float], draft: list[float], count: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Slopes of the law closest to `wanted`, and the law of the winner summed over all drafts, by tokens."""
    tensors = [torch.tensor([values], dtype=torch.float64) for values in (wanted, draft, count)]
    slopes, _ = optimal_slopes(*tensors)
    times = leaving(entry_scores(slopes, tensors[1], tensors[2], 60), tensors[1])[0]
    law = torch.zeros(len(draft), dtype=torch.float64)
    for n, chance in enumerate(count, start=1):
        for drafts in itertools.product(range(len(draft)), repeat=n):
            weights = race_weights(times[list(drafts)].unsqueeze(0), torch.ones(1, n, dtype=torch.bool))[0]
            for token, weight in zip(drafts, weights, strict=True):
                law[token] += chance * weight * float(tensors[1][0, list(drafts)].prod())
    return slopes[0], law


@pytest.mark.parametrize("count", [[0.0, 1.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]])
@pytest.mark.parametrize("wanted", [[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [0.6, 0.25, 0.15]])
def test_the_race_gives_every_token_exactly_its_slope(wanted, count):
    draft = [0.2, 0.3, 0.5]
    slopes, law = raced(wanted, draft, count)
    assert abs(float(law.sum()) - 1) < 1e-12
    assert float((law - slopes * torch.tensor(draft, dtype=torch.float64)).abs().max()) < 1e-11


def exact_slopes(wanted, draft, paths):
    """`optimal_slopes` in fractions, all of `paths` drafts at the node."""
    sets = range(len(draft) + 1)
    hit = [1 - (1 - sum(draft[:j], Fraction(0))) ** paths for j in sets]
    split = min(sets, key=lambda j: hit[j] - sum(wanted[:j]))
    cap = max((hit[split] - sum(wanted[j:split])) / sum(draft[:j]) for j in range(1, split + 1))
    floor = min((1 - hit[split] - sum(wanted[split:j])) / sum(draft[j:]) for j in range(split, len(draft)))
    ratios = [p / q for p, q in zip(wanted, draft, strict=True)]
    return [min(ratio, cap) if j < split else max(ratio, floor) for j, ratio in enumerate(ratios)], cap


@pytest.mark.parametrize("paths", [1, 2, 3])
@pytest.mark.parametrize("rare", [Fraction(1, 10**3), Fraction(1, 10**9), Fraction(1, 10**17), Fraction(1, 10**300)])
def test_the_slopes_of_favoured_tokens_that_are_hardly_drafted_are_those_of_fractions(rare, paths):
    wanted = [Fraction(n, 10) for n in (5, 2, 2, 1)]
    draft = [rare / 2, rare / 2, Fraction(1, 2) - rare, Fraction(1, 2)]
    count = torch.zeros(1, paths, dtype=torch.float64)
    count[0, -1] = 1
    rows = (torch.tensor([[float(x) for x in row]], dtype=torch.float64) for row in (wanted, draft))
    slopes, cap = optimal_slopes(*rows, count)
    exact, exact_cap = exact_slopes(wanted, draft, paths)
    assert slopes[0].tolist() == pytest.approx([float(slope) for slope in exact], rel=1e-12)
    assert float(cap) == pytest.approx(float(exact_cap), rel=1e-12)


def test_a_wanted_law_that_rounding_lifts_above_one_has_finite_slopes():
    """Then all drafted tokens are on the favoured side, and those never drafted, never wanted have no floor."""
    wanted = torch.tensor([[0.6000000000000004, 0.4, 0.0]], dtype=torch.float64)
    draft = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64)
    count = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert float(wanted.cumsum(dim=1)[0, -1]) > 1
    slopes, _ = optimal_slopes(wanted, draft, count)
    assert slopes[0, :2].tolist() == pytest.approx([1.2, 0.8])
    assert bool(torch.isfinite(slopes).all())


def test_an_entry_score_never_passes_the_mass_entered_before_even_if_rounding_makes_the_law_impossible():
    """Slopes a hair above the largest possible ones: the line runs above g, and Newton's step would leave [0, T]."""
    draft = torch.tensor([[0.25, 0.25, 0.5]], dtype=torch.float64)
    count = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    hit, _ = hit_chance(draft.cumsum(dim=1), count)
    edge = torch.cat([hit[:, :1], hit.diff(dim=1)], dim=1) / draft
    before = torch.tensor([[0.0, 0.25, 0.5]], dtype=torch.float64)
    for excess in (0.0, 1e-15, 1e-12, 1e-6):
        entry = entry_scores(edge * (1 + excess), draft, count, 60)
        assert bool((entry <= before).all())
        assert bool(torch.isfinite(leaving(entry, draft)).all())
        assert torch.allclose(entry, before, atol=2 * excess**0.5 + 1e-7)


def test_the_winner_of_a_race_follows_the_order_of_entering():
    alive = torch.tensor([[True, True, False, True]])
    times = torch.tensor([[0.7, 0.0, 0.0, 0.7]], dtype=torch.float64)
    # second alone until 0.7, then three at rate 1 each
    alone = 1 - torch.exp(torch.tensor(-0.7, dtype=torch.float64))
    share = float((1 - alone) / 3)
    wanted = torch.tensor([[share, float(alone) + share, 0.0, share]], dtype=torch.float64)
    assert torch.allclose(race_weights(times, alive), wanted, atol=1e-15)


def test_paths_are_grouped_by_their_common_prefixes():
    tokens = torch.tensor([[[0, 1, 2], [0, 1, 1], [1, 1, 2], [0, 1, 2]]])
    assert first_appearance(tokens).tolist() == [[[0, 0, 0], [0, 0, 1], [2, 2, 2], [0, 0, 0]]]
    mask = torch.tensor([[False, True, True], [False, False, False], [True, False, True]])
    assert first_path(mask).tolist() == [1, 0, 0]


def test_ratios_and_residuals_at_zero_probabilities():
    ratio = target_ratio(torch.tensor([[0.0, 0.5, 0.5]]), torch.tensor([[0.0, 0.0, 1.0]]))
    assert ratio[0, 0] == 0
    assert ratio[0, 1] > 1e30
    assert ratio[0, 2] == 0.5
    same = torch.tensor([[0.25, 0.75]])
    assert correction_weights(torch.ones(1), same, same).tolist() == same.tolist()
    assert correction_weights(torch.tensor([0.5]), same, same * 0).tolist() == [[0.125, 0.375]]


def test_interpolation_is_that_of_numpy_and_takes_the_lower_end_of_a_jump():
    rng = np.random.default_rng(0)
    knots, values, at = (np.sort(rng.random((4, size)), axis=1) for size in (6, 6, 50))
    at = 1.4 * at - 0.2
    found = interpolate(*(torch.as_tensor(array) for array in (at, knots, values)))
    wanted = np.stack([np.interp(*row) for row in zip(at, knots, values, strict=True)])
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-15)
    x, knots, values = ([0.2, 0.5, 0.7], [0.0, 0.5, 0.5, 1.0], [0.0, 0.1, 0.9, 1.0])
    found = interpolate(*(torch.tensor([row], dtype=torch.float64) for row in (x, knots, values)))
    np.testing.assert_allclose(found.numpy(), [[0.04, 0.1, 0.94]], atol=1e-15)


def rows(*values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_a_token_that_the_draft_cannot_have_drawn_is_accepted_and_changes_no_ratio():
    tokens = torch.tensor([[0, 1, 0, 1]])
    draft = rows([0.5, 0.5], [1, 0], [1, 0], [0.5, 0.5]).unsqueeze(0)
    target = rows([0.25, 0.75], [0.5, 0.5], [1, 0], [0.75, 0.25], [1, 0]).unsqueeze(0)
    assert block_ratios(tokens, draft, target)[0].tolist() == pytest.approx([1, 0.5, 0.5, 0.5, 0.25], rel=1e-15)
    assert token_acceptance(torch.tensor([[1, 1, 1, 1]]), draft, target).tolist() == [[1, 1, 1, 0.5]]
    draft[0, 2], target[0, 2] = rows([0, 1]), rows([0, 1])
    assert block_ratios(tokens, draft, target)[0, 2:4].tolist() == pytest.approx([0.5, 0.5], rel=1e-15)
    assert token_acceptance(tokens, draft, target).tolist() == [[0.5, 1, 1, 0.5]]
    ratio = torch.full((3,), 0.5, dtype=torch.float64)
    assert next_ratio(ratio, *rows([0.3, 0, 0.25], [0, 0, 0.5])).tolist() == [0.5, 0.5, 0.25]


def test_thresholds_of_nothing_left_are_one_and_rounding_lifts_none_above_one():
    row = rows([0.25, 0.75])
    assert block_rule.threshold(torch.ones(1).double(), row, row).tolist() == [1]
    above, children, selected = rows([2e-16, 0, 0.5], [0, 0, 0.25], [1e-16, 0, 0.75])
    assert spectr_gbv.threshold(above, children, selected).tolist() == [1, 1, 0.5]


def test_the_key_of_a_longer_prefix_is_bounded_by_draft_over_scaled_target():
    """c = 1, 1, 1/2, 1 and t = 1, 1/2, 1/2, 1/2 (1/4) / (1/2 3/4)."""
    bounds = key_bounds(rows([1, 1, 0.5, 1]), rows([0.5, 0.25, 0.75]), rows([0.25, 0.5, 0.25]))
    assert bounds[0].tolist() == pytest.approx([1, 1 / 2, 1 / 2, 1 / 3], rel=1e-15)


def test_the_discount_is_at_least_one_where_the_models_share_no_token():
    discount = smallest_discount(rows([1, 0]), rows([0, 1]), torch.tensor([3.0], dtype=torch.float64))
    assert 1 <= float(discount) < 1 + 2.0**-40


def test_levels_of_a_large_vocabulary_are_sixths_of_octaves_about_the_middle():
    ratio = torch.ones(1, 70, dtype=torch.float64)
    ratio[0, :6] = torch.tensor([torch.inf, 0, 2, 0.5, 2.0**20, 2.0**-20])
    assert level_of(ratio)[0].tolist() == [0, 63, 26, 38, 0, 63] + 64 * [32]
    assert level_of(rows([1, 3, 2])).tolist() == [[2, 0, 1]]


def test_a_winner_that_the_race_never_selects_leaves_the_count_of_paths():
    count, even, nothing = rows([0.25, 0.75]), rows([0.5, 0.5]), torch.zeros(1, dtype=torch.float64)
    place = torch.tensor([1])
    assert count_after_race(count, rows([0, 0.5]), 0 * even, even, place, even[:, 0], nothing).tolist() == [
        [0.25, 0.75]
    ]


def test_the_single_step_optimum_does_not_see_how_its_rows_are_scaled():
    target, draft = rows([0.5, 0.3, 0.2]), rows([0.2, 0.3, 0.5])
    for tokens, alive in ([0, 2, 1], [True, True, True]), ([2, 2, 1], [True, False, True]):
        paths = torch.tensor([tokens]), torch.tensor([alive])
        wanted, got = offer_optimally(target, draft, *paths), offer_optimally(0.99 * target, 1.02 * draft, *paths)
        assert float(wanted.coins.amin()) < 0.9
        assert got.coins[0].tolist() == pytest.approx(wanted.coins[0].tolist(), abs=1e-12)
        assert float(got.excess) == pytest.approx(float(wanted.excess) * 0.99 / 1.02, abs=1e-12)


def test_the_published_correction_keeps_what_the_draft_lacks_and_nothing_of_what_both_lack():
    ratios = torch.tensor([-torch.inf, 0], dtype=torch.float64)
    target, draft = rows([0.5, 0.5, 0], [0.5, 0.5, 0]), rows([0, 1, 0], [0, 1, 0])
    assert published_residual(ratios, target, draft, 2).tolist() == [[0.5, 0, 0], [0.5, 0, 0]]
