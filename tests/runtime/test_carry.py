"""The carried layers: their law and their movement against rational arithmetic written out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from specbound.runtime.carry import Layers, layer_law

F = Fraction
TARGET = [F(1, 2), F(1, 3), F(1, 6)]
DRAFT = [F(1, 6), F(1, 3), F(1, 2)]


def tensor(row):
    return torch.tensor([[float(entry) for entry in row]], dtype=torch.float64)


def exact_layer(target, draft, rho, paths):
    """target (1 - min(1, draft / (rho target)))^K, normalised, in fractions."""
    weights = [p * (1 - min(F(1), q / (rho * p))) ** paths if p else F(0) for p, q in zip(target, draft, strict=True)]
    return [weight / sum(weights) for weight in weights]


def layers(*pairs, paths=1):
    """One request with the layers (rho, remaining), oldest first."""
    return Layers(
        torch.tensor([[math.log(rho) for rho, _ in pairs]], dtype=torch.float64),
        torch.tensor([[remaining for _, remaining in pairs]]),
        paths,
    )


def close(actual, wanted):
    return torch.allclose(actual, tensor(wanted), rtol=0, atol=1e-14)


@pytest.mark.parametrize("paths", [1, 2, 3, 7])
@pytest.mark.parametrize("rho", [F(3, 2), F(2), F(100)])
def test_a_layer_is_the_target_thinned_by_the_profile(rho, paths):
    state = layers((rho, 1), paths=paths)
    assert close(state.laws(tensor(TARGET), tensor(DRAFT))[-1], exact_layer(TARGET, DRAFT, rho, paths))


def test_layers_are_applied_oldest_first():
    old, new = F(4), F(3, 2)
    both = layers((old, 1), (new, 1)).laws(tensor(TARGET), tensor(DRAFT))[-1]
    assert close(both, exact_layer(exact_layer(TARGET, DRAFT, old, 1), DRAFT, new, 1))
    assert not close(both, exact_layer(exact_layer(TARGET, DRAFT, new, 1), DRAFT, old, 1))


def test_two_layers_act_at_a_node_like_one_with_the_combined_ratio():
    old, new = F(4), F(3, 2)
    mass = sum(max(F(0), old * p - q) for p, q in zip(TARGET, DRAFT, strict=True))
    both = layers((old, 1), (new, 1)).laws(tensor(TARGET), tensor(DRAFT))[-1]
    assert close(both, exact_layer(TARGET, DRAFT, old * new / (mass + new), 1))
    assert not close(both, exact_layer(TARGET, DRAFT, old * new, 1))


def test_a_token_moves_every_ratio_by_the_law_below_its_layer():
    state = layers((F(3, 2), 3), (F(6, 5), 4))
    laws = state.laws(tensor(TARGET), tensor(DRAFT))
    moved = state.widened(3).advance(torch.tensor([0]), [laws[0], *laws], tensor(DRAFT))
    below = exact_layer(TARGET, DRAFT, F(3, 2), 1)
    wanted = [F(3, 2) * TARGET[0] / DRAFT[0], F(6, 5) * below[0] / DRAFT[0]]
    assert moved.log_ratio.exp()[0].tolist() == pytest.approx([float(rho) for rho in wanted], abs=1e-13)
    assert moved.remaining.tolist() == [[2, 3]]
    assert float(wanted[1]) != pytest.approx(float(F(6, 5) * TARGET[0] / DRAFT[0]), abs=1e-3)


def test_a_layer_ends_with_its_last_position_and_leaves_no_hole():
    state = layers((F(2), 3), (F(2), 1), (F(2), 2))
    laws = state.laws(tensor(TARGET), tensor(DRAFT))
    moved = state.advance(torch.tensor([0]), laws, tensor(DRAFT))
    assert moved.slots == 2
    assert moved.remaining.tolist() == [[2, 1]]
    assert moved.log_ratio[0, 0].exp().item() == pytest.approx(6.0)


def test_a_token_that_the_draft_cannot_draw_drops_every_layer():
    draft = [F(1, 2), F(1, 2), F(0)]
    state = layers((F(2), 5), (F(3), 6))
    moved = state.advance(torch.tensor([2]), state.laws(tensor(TARGET), tensor(draft)), tensor(draft))
    assert moved.remaining.tolist() == [[0]]
    assert moved.log_ratio.tolist() == [[0.0]]


def test_no_slots_leave_the_target_row_itself():
    state = Layers.empty(1, 1, torch.float64, torch.device("cpu"))
    row = tensor(TARGET)
    assert state.laws(row, tensor(DRAFT)) == [row]
    assert state.advance(torch.tensor([0]), [row], tensor(DRAFT)) is state
    assert state.numbers().shape == (1, 0)


def test_rows_can_be_selected_repeated_and_joined():
    state = Layers.joined([layers((F(2), 1)), layers((F(3), 2), (F(4), 3))])
    assert state.remaining.tolist() == [[0, 1], [2, 3]]
    picked = state.select([1, 0, 1])
    assert picked.remaining.tolist() == [[2, 3], [0, 1], [2, 3]]
    assert torch.equal(picked.numbers(), state.numbers()[[1, 0, 1]])
    assert state.select(torch.tensor([], dtype=torch.int64)).remaining.shape == (0, 2)


def test_states_with_different_numbers_of_paths_do_not_join():
    with pytest.raises(ValueError, match=r"parts have paths \[1, 2\]"):
        Layers.joined([layers((F(2), 1)), layers((F(2), 1), paths=2)])


@pytest.mark.parametrize("paths", [1, 2, 64])
@pytest.mark.parametrize("log_ratio", [-math.inf, -1e4, -1.0, 0.0, 1e-9, 50.0, 1e4, math.inf])
def test_extreme_ratios_give_a_probability_row(log_ratio, paths):
    rows = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1e-30, 0.0, 1.0]])
    draft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    law = layer_law(rows, draft, torch.full((3,), log_ratio), paths)
    assert torch.isfinite(law).all()
    assert torch.allclose(law.sum(dim=-1), torch.ones(3))
    assert ((law > 0) <= (rows > 0)).all()


@pytest.mark.parametrize("state, rows", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_a_state_and_rows_of_different_precision_go_together(state, rows):
    target, draft = torch.tensor([[0.25, 0.75]], dtype=rows), torch.tensor([[0.5, 0.5]], dtype=rows)
    for log_ratio, wanted in ((math.log(2.0), [0.0, 1.0]), (math.inf, [0.25, 0.75]), (-200.0, [0.25, 0.75])):
        law = layer_law(target, draft, torch.tensor([log_ratio], dtype=state), 1)
        assert law[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_ratios_of_prefixes_of_probability_1e_70_stay_exact():
    """100 tokens of draft probability 1/5 (1e-70 together), in float32: rho is beyond its range, log rho is not."""
    target, draft = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.2, 0.8]])
    state = Layers(torch.tensor([[math.log(2.0)]]), torch.tensor([[200]]))
    for _ in range(100):
        laws = state.widened(2).laws(target, draft)
        state = state.widened(2).advance(torch.tensor([0]), laws, draft)
    assert state.log_ratio.item() == pytest.approx(math.log(2) + 100 * math.log(4), rel=1e-5)
    assert torch.allclose(state.laws(target, draft)[-1], target, rtol=0, atol=1e-7)
