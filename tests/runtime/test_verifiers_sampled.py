"""Verifiers at real vocabulary sizes, bfloat16 rows: the first emitted token sampled and compared with the target.

The vocabulary is split into M = 8 bins of similar mass by target/draft. By Hoeffding's inequality and a union bound,
a lossless verifier's bin frequencies in N samples all lie within

    resolution = sqrt(log(2 M / alpha) / (2 N)),      alpha = 1e-9 the false-alarm rate of one check,

of the target's bin probabilities (N = 1024: 0.107). The target is the rounded row, normalised; the verifiers see the
rounded rows, whose sums are off by up to 1e-3, which is far below the resolution.
"""

from __future__ import annotations

import math

import pytest
import torch

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get, verify

from .test_verifiers import best_path_unskewed

pytestmark = pytest.mark.slow

BINS, ALPHA, CHUNK = 8, 1e-9, 128


def resolution(samples: int) -> float:
    return math.sqrt(math.log(2 * BINS / ALPHA) / (2 * samples))


def bfloat16_rows(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Target and draft rows with peaks and long tails, as bfloat16."""
    generator = torch.Generator().manual_seed(vocab)
    logits = 3 * torch.randn(vocab, generator=generator)
    noisy = logits + 1.5 * torch.randn(vocab, generator=generator)
    return torch.softmax(logits, 0).bfloat16(), torch.softmax(noisy, 0).bfloat16()


def first_tokens(verifier, vocab: int, samples: int, paths: int, length: int = 2) -> torch.Tensor:
    """First emitted token of `samples` independent rounds; every node has the same two rows."""
    target, draft = bfloat16_rows(vocab)
    generator = torch.Generator().manual_seed(17)
    draws = Draws(generator)
    emitted = []
    for _ in range(samples // CHUNK):
        drawn = torch.multinomial(draft.float(), CHUNK * paths * length, replacement=True, generator=generator)
        batch = Batch(
            drawn.reshape(CHUNK, paths, length),
            draft.expand(CHUNK, paths, length, vocab),
            target.expand(CHUNK, paths, length + 1, vocab),
        )
        verdict = verifier(batch, draws)
        kept = batch.tokens[torch.arange(CHUNK), verdict.path, 0]
        emitted.append(torch.where(verdict.accepted > 0, kept, verdict.token))
    return torch.cat(emitted)


def largest_deviation(tokens: torch.Tensor, vocab: int) -> float:
    """Largest difference between a bin's frequency and its target probability."""
    target, draft = (row.double() / row.double().sum() for row in bfloat16_rows(vocab))
    order = (target / draft).argsort()
    mass = ((target + draft) / 2)[order].cumsum(0)
    bins = torch.empty_like(order).scatter_(0, order, (mass * BINS).long().clamp_max(BINS - 1))
    wanted = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, target)
    found = torch.bincount(bins[tokens], minlength=BINS) / len(tokens)
    return float((found - wanted).abs().max())


@pytest.mark.parametrize(
    "name", ["token", "block", "specinfer", "kseq", "traversal", "two-level", "gbv-bucketed", "key-race"]
)
def test_first_tokens_follow_the_target_at_vocabulary_32k(name):
    paths = 1 if get(name).paths == "single" else 2
    tokens = first_tokens(get(name).verify, 32_000, 1024, paths)
    assert largest_deviation(tokens, 32_000) < resolution(1024)


def test_first_tokens_of_gbv_follow_the_target_at_vocabulary_32k():
    tokens = first_tokens(get("gbv").verify, 32_000, 512, 2, length=1)
    assert largest_deviation(tokens, 32_000) < resolution(512)


def test_first_tokens_of_the_default_follow_the_target_at_vocabulary_128k():
    tokens = first_tokens(get("two-level").verify, 128_000, 384, 2, length=1)
    assert largest_deviation(tokens, 128_000) < resolution(384)


def test_the_sampled_check_rejects_the_best_path_with_the_draft_law():
    tokens = first_tokens(best_path_unskewed, 32_000, 1024, 16, length=1)
    assert largest_deviation(tokens, 32_000) > resolution(1024)


def test_rounded_rows_pass_validation():
    target, draft = bfloat16_rows(32_000)
    batch = Batch(torch.zeros(1, 1, 1, dtype=torch.int64), draft.expand(1, 1, 1, -1), target.expand(1, 1, 2, -1))
    assert verify("block", batch, Draws()).accepted.shape == (1,)
