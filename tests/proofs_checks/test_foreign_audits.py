# ruff: noqa: NPY002 - the legacy generator is part of what is intercepted
"""Whole audits of foreign code: what is right is cleared, by whichever exact route; what is wrong is found."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.foreign.adapters import enumerated, foreign
from specbound.runtime.verdict import Verdict
from specbound.theory.prefix_tree import PrefixTree

TINY = {"vocab": range(2, 3), "length": range(1, 2), "paths": range(1, 2), "cases": 8}


def float_of_a_tensor(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
    for i, x in enumerate(draft_token_ids.tolist()):
        if float(torch.rand(())) > float(p[i, x] / q[i, x]):
            rest = (p[i] - q[i]).clamp_min(0)
            return [*draft_token_ids[:i].tolist(), int(torch.multinomial(rest, 1))]
    return [*draft_token_ids.tolist(), int(torch.multinomial(p[-1], 1))]


def vectorised_in_float32(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
    """All coins at once, `where` and `cumprod`, as engines do it."""
    q, p = q.float(), p.float()
    places = torch.arange(len(q))
    accepted = torch.rand(len(q)) * q[places, draft_token_ids] < p[places, draft_token_ids]
    kept = accepted.long().cumprod(0).sum()
    rest = torch.cat([(p[:-1] - q).clamp_min(0), p[-1:]])
    corrections = (rest / torch.empty_like(rest).exponential_()).argmax(-1)
    padded = torch.cat([draft_token_ids, torch.zeros(1, dtype=torch.int64)])
    emitted = torch.where(torch.arange(len(padded)) < kept, padded, -1)
    emitted[kept] = corrections[kept]
    return emitted


def filled_buffers(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
    coins = torch.empty(len(q))
    torch.rand(len(q), out=coins)
    for i, x in enumerate(draft_token_ids.tolist()):
        if coins[i] > p[i, x] / q[i, x]:
            rest = (p[i] - q[i]).clamp_min(0)
            noise = torch.empty_like(rest)
            noise.exponential_()
            return [*draft_token_ids[:i].tolist(), int(rest.div_(noise).argmax())]
    return [*draft_token_ids.tolist(), int(torch.multinomial(p[-1], 1))]


def residual_by_rejection(draft_tokens: list[int], q: list, p: list):
    for i, x in enumerate(draft_tokens):
        if random.random() > p[i][x] / q[i][x]:
            while True:
                y = random.choices(range(len(p[i])), p[i])[0]
                if p[i][y] > q[i][y] and random.random() < 1 - q[i][y] / p[i][y]:
                    return [*draft_tokens[:i], y]
    return [*draft_tokens, random.choices(range(len(p[-1])), p[-1])[0]]


def ratio_clamped(draft_tokens: list[int], q: list, p: list):
    for i, x in enumerate(draft_tokens):
        if random.random() > max(p[i][x] / q[i][x], 1e-5):
            rest = [max(a - b, 0.0) for a, b in zip(p[i], q[i], strict=True)]
            return [*draft_tokens[:i], random.choices(range(len(rest)), rest)[0]]
    return [*draft_tokens, random.choices(range(len(p[-1])), p[-1])[0]]


def seeded_in_the_call(draft_tokens, q, p):
    rng = np.random.default_rng(1234)
    for i, x in enumerate(draft_tokens):
        if rng.random() > p[i, x] / q[i, x]:
            rest = np.maximum(p[i] - q[i], 0)
            return [*draft_tokens[:i], rng.choice(len(rest), p=rest / rest.sum())]
    return [*draft_tokens, rng.choice(p.shape[1], p=p[-1])]


def cut_to_tenths(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
    for i, x in enumerate(draft_token_ids.tolist()):
        if (torch.rand(()) * 10).to(torch.int64) / 10 > p[i, x] / q[i, x]:
            rest = (p[i] - q[i]).clamp_min(0)
            return [*draft_token_ids[:i].tolist(), int(torch.multinomial(rest, 1))]
    return [*draft_token_ids.tolist(), int(torch.multinomial(p[-1], 1))]


def uniforms_in_bfloat16(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
    coins = torch.rand(len(q), dtype=torch.bfloat16)
    for i, x in enumerate(draft_token_ids.tolist()):
        if coins[i] > p[i, x] / q[i, x]:
            rest = (p[i] - q[i]).clamp_min(0)
            return [*draft_token_ids[:i].tolist(), int(torch.multinomial(rest, 1))]
    return [*draft_token_ids.tolist(), int(torch.multinomial(p[-1], 1))]


def own_randomness(batch, draws):
    """Asks torch where it should ask its draws."""
    target = batch.target_probs[:, 0, 0]
    none = torch.zeros(len(target), dtype=torch.int64)
    return Verdict(none, none, torch.multinomial(target, 1)[:, 0])


CALLS = SimpleNamespace(count=0)


def every_third_call(batch, draws):
    """Emits the likeliest token in every third call."""
    CALLS.count += 1
    target = batch.target_probs[:, 0, 0]
    none = torch.zeros(len(target), dtype=torch.int64)
    if CALLS.count % 3 == 0:
        return Verdict(none, none, target.argmax(-1))
    return Verdict(none, none, draws.choose(target))


def gumbel_coupled(draft_law, target_law):
    noise = np.random.exponential(size=len(draft_law([])))
    x, y = int(np.argmin(noise / draft_law([]))), int(np.argmin(noise / target_law([])))
    return [x], [y] if x != y else [y, np.random.choice(len(noise), p=target_law([y]))]


def one_uniform_for_draft_and_verdict(draft_law, target_law):
    p, q = target_law([]), draft_law([])
    u = np.random.rand()
    x = min(int(np.searchsorted(np.cumsum(q), u)), len(q) - 1)
    if u * q[x] <= p[x]:
        return [x], [x, np.random.choice(len(q), p=target_law([x]))]
    rest = np.maximum(p - q, 0)
    return [x], [np.random.choice(len(q), p=rest / rest.sum())]


@pytest.mark.parametrize(
    "right, words",
    [
        (float_of_a_tensor, "Found with concrete coins"),
        (vectorised_in_float32, "It computes in float32; (L+1)(4V+8) 2^-24 counts as rounding."),
        (filled_buffers, "taken as continuous"),
        (gumbel_coupled, "The drafts do follow the draft law"),
    ],
)
def test_right_code_is_cleared_and_the_report_says_how(right, words):
    report = audit(right, **TINY)
    assert report.verdict == "lossless", report_text(report).plain
    assert words in report.limits


@pytest.mark.parametrize(
    "wrong, words",
    [
        (seeded_in_the_call, ""),
        (cut_to_tenths, ""),
        (uniforms_in_bfloat16, "Uniforms drawn in bfloat16 have 2^8 values"),
        (one_uniform_for_draft_and_verdict, "coins enumerated jointly"),
    ],
)
def test_what_used_to_be_called_lossless_is_not(wrong, words):
    report = audit(wrong, **TINY)
    assert report.verdict == "not lossless", report_text(report).plain
    assert words in report.limits


def test_a_ratio_clamped_at_1e_5_is_found_among_probabilities_of_1e_6():
    report = audit(ratio_clamped, **{**TINY, "cases": 24})
    assert report.verdict == "not lossless"
    assert report.largest_total_variation < 1e-4


def test_a_residual_sampled_by_rejection_ends_and_says_what_was_left_out():
    tree = PrefixTree.iid([0.9, 0.1], [0.1, 0.9], 1)
    found = enumerated(foreign(residual_by_rejection), tree)
    assert 1e-9 < found.resolution < 1e-3
    assert found.law.total_variation(tree.target_law()) < found.resolution
    assert any("left out" in note for note in found.notes)


def test_a_tensor_verifier_with_randomness_of_its_own_is_undecided():
    report = audit(own_randomness, **TINY)
    assert (report.verdict, report.exit_code) == ("undecided", 3)
    assert "take all randomness from the draws" in report.breakdowns[0].message


def test_a_counter_of_calls_is_found():
    report = audit(every_third_call, **TINY)
    assert report.verdict in ("broken", "not lossless")
    assert report.exit_code == 1
