"""The acceptance head: its loss and the bias it causes, soft labels, training, and its file."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from specbound import shipped_pair
from specbound.runtime.acceptance_head import (
    AcceptanceHead,
    biased,
    calibrated,
    soft_labels,
    train_head,
    training_examples,
    weighted_loss,
)

HEAD = shipped_pair.DRAFT.parent / "head"


def test_the_weighted_loss_is_the_published_formula():
    logits = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
    labels = torch.tensor([0.9, 0.25], dtype=torch.float64)
    accept = logits.softmax(-1)[:, 1]
    terms = 6 * (1 - labels) * -(1 - accept).log() + labels * -accept.log()
    wanted = terms.sum() / (6 * (1 - labels) + labels).sum()
    assert weighted_loss(logits, labels, 6.0).item() == pytest.approx(wanted.item(), abs=1e-14)


@pytest.mark.parametrize(
    "label, minimiser", [(0.5, 0.142857), (0.7, 0.28), (0.8, 0.4), (0.9, 0.6), (0.95, 0.76), (0.99, 0.942857)]
)
def test_the_weighted_loss_is_least_at_the_biased_prediction(label, minimiser):
    """Known minimisers for w = 6, and the derivative of the loss in the log-odds vanishes there and only there."""
    labels = torch.tensor([label], dtype=torch.float64)
    assert biased(labels, 6.0).item() == pytest.approx(minimiser, abs=1e-6)
    assert calibrated(biased(labels, 6.0), 6.0).item() == pytest.approx(label, abs=1e-14)

    def slope(prediction):
        odds = torch.tensor([prediction]).double().logit().requires_grad_()
        weighted_loss(torch.stack([torch.zeros_like(odds), odds], dim=-1), labels, 6.0).backward()
        return odds.grad.item()

    assert slope(biased(labels, 6.0).item()) == pytest.approx(0, abs=1e-7)
    assert abs(slope(label)) > 1e-3


def test_soft_labels_are_acceptance_probabilities():
    target = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]])
    draft = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])
    assert soft_labels(target, draft, torch.tensor([0, 2])).tolist() == [1.0, 0.0]
    assert soft_labels(target, draft, torch.tensor([1, 1])).tolist() == pytest.approx([2 / 3, 1.0])


def test_a_calibrated_head_undoes_the_bias_of_the_raw_one():
    torch.manual_seed(0)
    raw = AcceptanceHead(5, blocks=2, class_weight=6.0, calibrated=False)
    fair = AcceptanceHead(5, blocks=2, class_weight=6.0, calibrated=True)
    fair.load_state_dict(raw.state_dict())
    hidden = torch.randn(40, 5)
    assert torch.allclose(fair.acceptance(hidden), calibrated(raw.acceptance(hidden), 6.0), atol=1e-6)
    assert (fair.acceptance(hidden) > raw.acceptance(hidden)).all()
    assert torch.allclose(raw.acceptance(hidden), raw(hidden).softmax(-1)[:, 1], atol=1e-6)


def test_every_block_has_its_own_weights_and_adds_to_its_input():
    head = AcceptanceHead(3, blocks=2)
    assert len({id(block.weight) for block in head.blocks}) == 2
    hidden = torch.randn(4, 3)
    state = hidden
    for block in head.blocks:
        state = state + nn.functional.silu(state @ block.weight.T + block.bias)
    assert torch.allclose(head(hidden), state @ head.output.weight.T + head.output.bias, atol=1e-6)


def test_half_precision_states_are_read_in_float32():
    head = AcceptanceHead(4)
    hidden = torch.randn(6, 4).bfloat16()
    assert head.acceptance(hidden).dtype == torch.float32
    assert torch.equal(head.acceptance(hidden), head.acceptance(hidden.float()))


# ---- training -------------------------------------------------------------------------------------------------


class FixedModel(nn.Module):
    """A causal model whose rows depend on the last token; its hidden state is the token itself, twice."""

    def __init__(self, rows):
        super().__init__()
        self.rows = torch.tensor(rows)

    def forward(self, ids, output_hidden_states=False):
        hidden = torch.stack([ids, ids], dim=-1).float()
        return SimpleNamespace(logits=self.rows[ids].log(), hidden_states=(hidden * 0, hidden))


TARGET = FixedModel([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
DRAFT = FixedModel([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]])


def test_training_examples_pair_each_drafted_token_with_its_label():
    """The hidden state shows which token was read; its label must be target/draft after the true prefix."""
    sequences = torch.tensor([[0, 1, 2, 0, 1, 1, 2, 0]]).expand(300, -1)
    hidden, labels = training_examples(TARGET, DRAFT, sequences, 2, generator=torch.Generator().manual_seed(0))
    assert len(hidden) == len(labels)
    assert 0.8 * 300 * 6 < len(labels) < 0.9 * 300 * 6
    allowed = set()
    for before in sequences[0, 1:-1].tolist():
        for y in range(3):
            allowed.add((y, round(min(1.0, (TARGET.rows[before, y] / DRAFT.rows[before, y]).item()), 5)))
    found = {(int(h[0]), round(a.item(), 5)) for h, a in zip(hidden, labels, strict=True)}
    assert found == allowed


def test_with_no_target_tokens_mixed_in_every_place_is_an_example():
    sequences = torch.tensor([[0, 1, 2, 0]])
    hidden, labels = training_examples(TARGET, DRAFT, sequences, 1, target_share=0.0)
    assert hidden.shape == (3, 2)
    assert labels.shape == (3,)


def data(count=2000):
    """Acceptance probability 0.9 or 0.3, told by the sign of the first coordinate; labels scatter around it."""
    generator = torch.Generator().manual_seed(1)
    hidden = 0.1 * torch.randn(count, 4, generator=generator)
    hidden[:, 0] = torch.where(hidden[:, 0] > 0, 1.0, -1.0)
    mean = torch.where(hidden[:, 0] > 0, 0.9, 0.3)
    return hidden, (mean + 0.1 * (torch.rand(count, generator=generator) - 0.5)).clamp(0, 1)


def test_training_finds_the_acceptance_probability_and_calibration_removes_the_bias():
    hidden, labels = data()
    head = train_head(hidden, labels, blocks=1, epochs=20, batch_size=200, learning_rate=1e-2)
    for sign, mean in ((1, 0.9), (-1, 0.3)):
        chosen = hidden[:, 0] == sign
        assert head.acceptance(hidden[chosen]).mean().item() == pytest.approx(mean, abs=0.02)
        raw = head(hidden[chosen]).softmax(-1)[:, 1].mean().item()
        assert raw == pytest.approx(mean / (mean + 6 * (1 - mean)), abs=0.03)
        assert raw < mean - 0.1


def test_training_is_reproducible_and_leaves_the_global_seed_alone():
    hidden, labels = data(300)
    torch.manual_seed(5)
    first = train_head(hidden, labels, epochs=1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    again = train_head(hidden, labels, epochs=1)
    other = train_head(hidden, labels, epochs=1, seed=1)
    assert torch.equal(first.output.weight, again.output.weight)
    assert not torch.equal(first.output.weight, other.output.weight)


def test_a_head_survives_its_file(tmp_path):
    head = AcceptanceHead(6, blocks=2, class_weight=4.0, calibrated=False)
    head.save(tmp_path / "head.safetensors")
    loaded = AcceptanceHead.load(tmp_path / "head.safetensors")
    assert (loaded.class_weight, loaded.calibrated, len(loaded.blocks)) == (4.0, False, 2)
    hidden = torch.randn(5, 6)
    assert torch.equal(loaded.acceptance(hidden), head.acceptance(hidden))
    assert not loaded.training


def test_another_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="has format None"):
        AcceptanceHead.load(tmp_path / "other.safetensors")


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="hidden_size is 0"):
        AcceptanceHead(0)
    with pytest.raises(ValueError, match="class_weight is 0"):
        AcceptanceHead(4, class_weight=0)
    with pytest.raises(ValueError, match=r"hidden has shape \(2, 3\); want \[..., 4\]"):
        AcceptanceHead(4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="labels lie in"):
        train_head(torch.zeros(2, 3), torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"labels \(3,\)"):
        train_head(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="hidden has NaN"):
        train_head(torch.tensor([[0.0, torch.nan]]), torch.zeros(1))
    with pytest.raises(ValueError, match="epochs is 0"):
        train_head(torch.zeros(2, 3), torch.zeros(2), epochs=0)
    with pytest.raises(ValueError, match="first is 4"):
        training_examples(TARGET, DRAFT, torch.zeros(1, 4, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="target_share is 1"):
        training_examples(TARGET, DRAFT, torch.zeros(1, 4, dtype=torch.int64), 1, target_share=1)


# ---- the shipped head -----------------------------------------------------------------------------------------


def test_the_shipped_head_fits_the_shipped_draft():
    head = AcceptanceHead.load(HEAD / "head.safetensors")
    config = json.loads((shipped_pair.DRAFT / "config.json").read_text())
    report = json.loads((HEAD / "head.json").read_text())
    assert head.hidden_size == config["hidden_size"]
    assert head.calibrated == report["settings"]["calibrated"]
    held_out = report["held_out"]
    assert held_out["squared_error"] < held_out["squared_error_of_the_mean_label"]
    assert held_out["mean_predicted"] == pytest.approx(held_out["mean_label"], abs=0.05)
