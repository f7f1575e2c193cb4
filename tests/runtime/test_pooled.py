"""Pooled verifiers: exact laws of whole streams, the fewest calls, edges, and what the carry asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from specbound.proofs_checks.laws.stream import stream_law
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get
from specbound.runtime.verifiers.pooled import Offers
from specbound.runtime.verifiers.pooled_phases import Phases
from specbound.theory import many_calls
from specbound.theory.contexts import ModelPair
from specbound.theory.prefix_tree import PrefixTree

NAMES = ("pooled", "pooled-fill", "pooled-young")
THIRDS = ([1 / 3, 2 / 3], [2 / 3, 1 / 3])
ZEROS = (
    [[0, 0.5, 0.5], [0.25, 0.75, 0], [1, 0, 0]],
    [[0.5, 0.5, 0], [0.2, 0.4, 0.4], [0, 0, 1]],
)


def expected_calls(name: str, tree: PrefixTree, length: int, tokens: int) -> float:
    if name == "pooled":
        return many_calls.optimum(tree, length, tokens).value
    return float(many_calls.calls(tree, length, tokens, many_calls.POLICIES[name.removeprefix("pooled-")]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("length", "tokens"), [(1, 5), (2, 5), (3, 5), (4, 6)])
def test_the_stream_is_the_target_s_and_takes_the_calls_that_theory_says(name, length, tokens):
    pair = ModelPair.iid(*THIRDS)
    law = stream_law(name, pair, length, tokens)
    assert law.total_variation(pair.target_law(tokens)) < 1e-12
    assert law.calls == pytest.approx(expected_calls(name, PrefixTree.iid(*THIRDS, tokens - 1), length, tokens))


@pytest.mark.parametrize("name", NAMES)
def test_the_stream_is_the_target_s_on_trees_with_zeros_and_on_random_ones(name):
    cases = [(PrefixTree.markov(*ZEROS, 6), 2, 4), (PrefixTree.markov(*ZEROS, 6), 3, 3)]
    rng = np.random.default_rng(5)
    for seed in range(12):
        vocab, length, tokens = int(rng.integers(2, 4)), int(rng.integers(1, 4)), int(rng.integers(2, 5))
        tree = PrefixTree.random(vocab, tokens + length - 1, seed, float(rng.choice([0.2, 0.5, 1.0])))
        cases.append((tree, length, tokens))
    for tree, length, tokens in cases:
        pair = ModelPair.from_tree(tree)
        law = stream_law(name, pair, length, tokens)
        assert law.total_variation(pair.target_law(tokens)) < 1e-12
        assert law.calls == pytest.approx(expected_calls(name, tree, length, tokens), abs=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_row_after_the_path_the_last_drafted_token_is_given_up(name):
    def blind(batch, draws):
        return get(name).verify(replace(batch, draft_after=None), draws)

    pair = ModelPair.iid(*THIRDS)
    law, shorter = stream_law(blind, pair, 3, 5), stream_law(name, pair, 2, 5)
    assert law.total_variation(pair.target_law(5)) < 1e-12
    assert law.calls == pytest.approx(shorter.calls)
    assert stream_law(blind, pair, 1, 3).calls == pytest.approx(3)


@pytest.mark.parametrize("name", NAMES)
def test_a_carry_that_is_lost_is_noticed(name):
    def forgetful(batch, draws):
        return get(name).verify(replace(batch, carry=None), draws)

    pair = ModelPair.iid(*THIRDS)
    assert stream_law(forgetful, pair, 2, 4).total_variation(pair.target_law(4)) > 1e-3


def test_a_wrong_row_after_the_path_is_noticed():
    def swapped(batch, draws):
        return get("pooled").verify(replace(batch, draft_after=batch.draft_after.flip(-1)), draws)

    pair = ModelPair.iid(*THIRDS)
    assert stream_law(swapped, pair, 1, 4).total_variation(pair.target_law(4)) > 1e-3


def random_batch(rows: int, length: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    laws = torch.rand(rows, 1, 2 * length + 2, vocab, generator=generator, dtype=torch.float64) ** 4
    laws = torch.where(torch.rand(laws.shape, generator=generator) < 0.3, 0, laws) + 1e-30
    laws = (laws / laws.sum(-1, keepdim=True)).to(dtype)
    draft, target = laws[:, :, : length + 1], laws[:, :, length + 1 :]
    flat = draft[:, :, :length].double().reshape(-1, vocab)
    tokens = torch.multinomial(flat, 1, generator=generator).reshape(rows, 1, length)
    return Batch(tokens, draft[:, :, :length], target, None, draft[:, :, length])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "length", "vocab"), [(0, 2, 3), (3, 1, 1), (5, 8, 50), (2, 64, 5)])
def test_every_dtype_and_size_runs_and_the_carry_stays_finite(name, dtype, rows, length, vocab):
    length = length if name == "pooled" else min(length, 12)
    carry, draws = None, Draws(torch.Generator().manual_seed(1))
    for call in range(4):
        batch = replace(random_batch(rows, length, vocab, dtype, call), carry=carry)
        batch.validate()
        verdict = get(name).verify(batch, draws)
        carry = verdict.carry
        assert carry.numbers().shape[0] == rows
        assert bool(torch.isfinite(carry.numbers()).all())
        assert bool(((verdict.accepted >= 0) & (verdict.accepted <= length)).all())
        chosen = batch.target_probs[torch.arange(rows), 0, verdict.accepted, verdict.token]
        assert bool((chosen > 0).all())


def test_one_hot_rows_are_kept_or_corrected_for_sure():
    sure = torch.eye(3, dtype=torch.float64)
    draft, target = sure[[0, 1, 2]].view(1, 1, 3, 3), sure[[0, 2, 1, 0]].view(1, 1, 4, 3)
    for name in NAMES:
        batch = Batch(torch.tensor([[[0, 1, 2]]]), draft, target, None, sure[[1]].view(1, 1, 3))
        verdict = get(name).verify(batch, Draws())
        assert (int(verdict.accepted), int(verdict.token)) == (1, 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_row_after_the_path_is_asked_for_only_when_it_is_needed(name):
    asked = []

    def after():
        asked.append(True)
        return torch.full((1, 1, 2), 0.5, dtype=torch.float64)

    draft = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]], dtype=torch.float64)
    hopeless = torch.tensor([[[[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]]]], dtype=torch.float64)
    tokens = torch.tensor([[[0, 0]]])
    get(name).verify(Batch(tokens, draft, hopeless, None, after), Draws())
    assert not asked
    same = torch.cat([draft, torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)], dim=2)
    assert int(get(name).verify(Batch(tokens, draft, same, None, after), Draws()).accepted) == 2
    assert asked


@pytest.mark.parametrize("name", NAMES)
def test_a_carry_of_other_requests_or_another_verifier_is_refused(name):
    batch = random_batch(2, 2, 3, torch.float64)
    carry = get(name).verify(batch, Draws()).carry
    for other in (carry.select([0]), get(name).verify(random_batch(2, 3, 3, torch.float64), Draws()).carry):
        with pytest.raises(ValueError, match="carry is the state of"):
            get(name).verify(replace(batch, carry=other), Draws())
    with pytest.raises(ValueError, match="carry is a"):
        get(name).verify(replace(batch, carry=object()), Draws())


@pytest.mark.parametrize(
    "carries", [[Offers(torch.ones(2, 3)), Offers(torch.ones(1, 3))], [Phases(*torch.ones(2, 2, 3))] * 2]
)
def test_carries_join_and_select_rows(carries):
    joined = type(carries[0]).joined(carries)
    assert torch.equal(joined.select([0, 2]).numbers(), joined.numbers()[[0, 2]])
    with pytest.raises(ValueError, match="want one draft length"):
        type(carries[0]).joined(
            [carries[0], type(carries[0])(*[torch.ones(1, 2)] * (carries[0].numbers().shape[1] // 3))]
        )


def test_rows_of_a_batch_do_not_see_each_other():
    batch = random_batch(4, 3, 6, torch.float64)

    class Fixed(Draws):
        def _uniform(self, like):
            return torch.full(like.shape, 0.4, dtype=torch.float64)

    for name in NAMES:
        whole = get(name).verify(batch, Fixed())
        for row in range(4):
            part = Batch(
                *(t[[row]] for t in (batch.tokens, batch.draft_probs, batch.target_probs)),
                None,
                batch.draft_after[[row]],
            )
            alone = get(name).verify(part, Fixed())
            assert (int(alone.accepted), int(alone.token)) == (int(whole.accepted[row]), int(whole.token[row]))
            assert torch.allclose(alone.carry.numbers(), whole.carry.numbers()[[row]])
