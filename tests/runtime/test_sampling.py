"""From logits to laws: greedy ties, padded vocabularies, dtypes, and what each kind of processor is shown."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper

from specbound.runtime.sampling import Sampler, check_rows

CPU = torch.device("cpu")
LOGITS = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PATHS = torch.randint(6, (2, 3, 3), generator=torch.Generator().manual_seed(1))
KNOWN = [torch.tensor([0, 0, 5]), torch.tensor([1, 2, 3, 4])]


def test_greedy_puts_all_mass_on_the_first_of_equal_logits():
    laws = Sampler([], True, 4, [0], CPU).laws(torch.tensor([[[[1.0, 3.0, 3.0, 0.0]]]]), [], PATHS)
    assert laws.tolist() == [[[[0, 1, 0, 0]]]]


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("wrong", [[0.0, math.nan, 1.0], [math.inf, 0.0, 1.0], [0.0, math.inf, 1.0], [-math.inf] * 3])
def test_logits_that_give_no_law_are_found_wherever_they_stand(wrong, greedy):
    sampler, fine = Sampler([], greedy, 3, [0], CPU), [0.0, -math.inf, 1.0]
    good, bad = (sampler.laws(torch.tensor([[[fine, row]]]), [], PATHS) for row in (fine, wrong))
    check_rows(good, good)
    for laws in ((bad, good), (good, bad), (bad,)):
        with pytest.raises(ValueError, match="no law to sample from"):
            check_rows(*laws)


@pytest.mark.parametrize(("given", "computed"), [("bfloat16", "float32"), ("float32", "float32"), ("float64",) * 2])
def test_laws_are_computed_in_float32_or_better(given, computed):
    logits = LOGITS.to(getattr(torch, given))
    laws = Sampler([TemperatureLogitsWarper(0.5)], False, 6, [0, 0], CPU).laws(logits, [], PATHS)
    assert laws.dtype == getattr(torch, computed)
    wanted = (logits.to(laws.dtype) / 0.5).softmax(dim=-1)
    torch.testing.assert_close(laws, wanted, rtol=1e-6, atol=0)


def test_a_smaller_vocabulary_is_padded_with_tokens_of_probability_zero():
    laws = Sampler([TopKLogitsWarper(2)], False, 9, [0, 0], CPU).laws(LOGITS, [], PATHS)
    assert laws.shape == (2, 3, 4, 9)
    assert (laws[..., 6:] == 0).all()
    assert ((laws > 0).sum(dim=-1) == 2).all()


class Witness(LogitsProcessor):
    """Notes the tokens it is shown."""

    def __init__(self) -> None:
        self.shown: list[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.shown += input_ids.tolist()
        return scores


def test_an_unknown_processor_sees_what_the_loop_of_transformers_shows_it():
    witness = Witness()
    sampler = Sampler([witness], False, 6, [2, 0], CPU)
    sampler.next_laws(LOGITS[:, :, 2], KNOWN, PATHS[:, :, :2])
    assert witness.shown == [[*KNOWN[b].tolist(), *PATHS[b, k, :2].tolist()] for b in range(2) for k in range(3)]


@pytest.mark.parametrize("shape", [None, torch.tensor([2, 0])])
def test_a_repetition_penalty_looks_at_the_row_s_own_tokens_only(shape):
    """Row 0 has two tokens of padding, id 0, which must not be penalised; its own tokens are 5 and the drafted ones."""
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    processor.prompt_ignore_length = shape
    laws = Sampler([processor], False, 6, [2, 0], CPU).laws(LOGITS, KNOWN, PATHS)
    for b, own in enumerate(([5], [1, 2, 3, 4])):
        for k in range(3):
            for i in range(4):
                row = LOGITS[b, k, i].clone()
                for token in {*own, *PATHS[b, k, :i].tolist()}:
                    row[token] = row[token] * 1.7 if row[token] < 0 else row[token] / 1.7
                torch.testing.assert_close(laws[b, k, i], row.softmax(dim=-1), rtol=1e-12, atol=0)
