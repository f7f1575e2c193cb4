"""Greedy block verification: every exact figure of its theory, and the ways to get the carry wrong."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings

from specbound.proofs_checks.laws.judge import evidence
from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.stream import expected_tokens, stream_law
from specbound.runtime.carry import Layers
from specbound.runtime.draws import Draws
from specbound.runtime.parts.single_path import at, only_path, row_at
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import get, greedy_block, verify
from specbound.runtime.verifiers.greedy_block import verify_greedy_block
from specbound.theory.contexts import ModelPair
from specbound.theory.prefix_tree import PrefixTree
from tests.support.strategies import edge_trees, trees

F = Fraction
HALF, THIRD = F(1, 2), F(1, 3)
EDGES = edge_trees()
PUBLISHED = ModelPair.iid([THIRD, 2 * THIRD], [2 * THIRD, THIRD])


def joint_minimum(tree):
    """Node -> min(P, Q), root excluded."""
    pairs = zip(tree.target_joint, tree.draft_joint, strict=True)
    return {tree.prefix(node): float(min(pair)) for node, pair in enumerate(pairs) if node}


def assert_optimal_and_lossless(tree):
    law = exact_law("greedy-block", tree)
    assert law.kept == pytest.approx(joint_minimum(tree), abs=1e-12)
    if len(tree.bonus) <= 9:
        assert evidence("greedy-block", tree).total_variation < 1e-12


@pytest.mark.parametrize("tree", EDGES.values(), ids=EDGES.keys())
def test_one_call_keeps_the_joint_minimum_and_the_stream_has_the_target_law_at_the_edges(tree):
    assert_optimal_and_lossless(tree)


@given(tree=trees())
@settings(max_examples=30, deadline=None)
def test_one_call_keeps_the_joint_minimum_and_the_stream_has_the_target_law(tree):
    assert_optimal_and_lossless(tree)


@given(tree=trees(same=True))
@settings(max_examples=15, deadline=None)
def test_equal_models_keep_the_whole_draft(tree):
    assert exact_law("greedy-block", tree).acceptance_length == pytest.approx(tree.length, abs=1e-12)


# ---- several calls --------------------------------------------------------------------------------------------

PAIRS = {
    "published": PUBLISHED,
    "three tokens": ModelPair.iid([HALF, THIRD, F(1, 6)], [F(1, 6), THIRD, HALF]),
    "with a zero": ModelPair.iid([F(2, 3), THIRD, 0], [THIRD, THIRD, THIRD]),
    "markov": ModelPair.markov([[F(3, 4), F(1, 4)], [THIRD, 2 * THIRD]], [[HALF, HALF], [2 * THIRD, THIRD]]),
    "markov of three": ModelPair.markov(
        [[0.1, 0.4, 0.5], [0.1, 0.7, 0.2], [0.6, 0.3, 0.1]], [[0.2, 0.1, 0.7], [0.6, 0.2, 0.2], [0.2, 0.5, 0.3]]
    ),
    "markov with one-hot rows": ModelPair.markov([[0, 1], [HALF, HALF]], [[HALF, HALF], [1, 0]]),
    "equal": ModelPair.iid([HALF, HALF], [HALF, HALF]),
    "disjoint": ModelPair.iid([0, 1], [1, 0]),
}
RANDOM = {f"random {seed}": ModelPair.from_tree(PrefixTree.random(2, 7, seed)) for seed in range(6)}


@pytest.mark.parametrize("length, tokens", [(1, 4), (2, 4), (2, 5), (3, 4), (3, 5)])
@pytest.mark.parametrize("pair", (PAIRS | RANDOM).values(), ids=(PAIRS | RANDOM).keys())
def test_the_first_tokens_of_the_stream_have_the_target_law(pair, length, tokens):
    law = stream_law("greedy-block", pair, length, tokens)
    assert law.mass == pytest.approx(1, abs=1e-12)
    assert law.total_variation(pair.target_law(tokens)) < 1e-12


@pytest.mark.parametrize("lengths", [(3, 2, 4, 1), (4, 1, 1, 3), (1, 4, 2), (5, 2)])
def test_the_draft_length_may_change_between_calls(lengths):
    for name, tokens in (("published", 6), ("markov", 6), ("markov of three", 4)):
        pair = PAIRS[name]
        assert stream_law("greedy-block", pair, lengths, tokens).total_variation(pair.target_law(tokens)) < 1e-12


def test_a_shorter_block_must_leave_the_bonus_to_the_layers_that_reach_beyond_it(monkeypatch):
    pair = PAIRS["markov of three"]
    monkeypatch.setattr(greedy_block, "usable_length", lambda carry, length: carry.remaining.sum(1) * 0 + length)
    assert stream_law("greedy-block", pair, (3, 1), 4).total_variation(pair.target_law(4)) > 1e-3


def test_a_block_gives_up_its_last_token_only_to_a_layer_that_reaches_beyond_it():
    carry = Layers(torch.zeros(4, 2), torch.tensor([[0, 0], [0, 2], [1, 3], [2, 4]]))
    assert greedy_block.usable_length(carry, 3).tolist() == [3, 3, 3, 2]


TABLE = {  # expected tokens after 1, 2, 3 calls, exact
    ("1/3 2/3", "2/3 1/3", 2): ("7/3", "40/9", "59/9"),
    ("1/3 2/3", "2/3 1/3", 3): ("77/27", "437/81", "635/81"),
    ("3/4 1/4", "1/2 1/2", 2): ("39/16", "305/64", "1809/256"),
    ("3/4 1/4", "1/2 1/2", 3): ("99/32", "30241/5120", "23006537/2652160"),
    ("9/10 1/10", "1/2 1/2", 2): ("51/25", "1001/250", "14901/2500"),
    ("9/10 1/10", "1/2 1/2", 3): ("609/250", "58053/12500", "8521677/1250000"),
    ("1/2 1/2", "3/4 1/4", 2): ("39/16", "305/64", "1817/256"),
    ("1/2 1/3 1/6", "1/6 1/3 1/2", 2): ("20/9", "13/3", "58/9"),
    ("1/2 1/3 1/6", "1/6 1/3 1/2", 3): ("145/54", "9961/1944", "26863/3564"),
}
BLOCK = {  # tokens per call of block verification
    ("1/3 2/3", "2/3 1/3", 2): "20/9",
    ("1/3 2/3", "2/3 1/3", 3): "8/3",
    ("3/4 1/4", "1/2 1/2", 2): "19/8",
    ("3/4 1/4", "1/2 1/2", 3): "187/64",
    ("9/10 1/10", "1/2 1/2", 2): "2",
    ("9/10 1/10", "1/2 1/2", 3): "23/10",
    ("1/2 1/2", "3/4 1/4", 2): "19/8",
    ("1/2 1/3 1/6", "1/6 1/3 1/2", 2): "13/6",
    ("1/2 1/3 1/6", "1/6 1/3 1/2", 3): "23/9",
}


def fractions(text):
    return [F(entry) for entry in text.split()]


@pytest.mark.parametrize("target, draft, length", TABLE)
def test_tokens_out_after_one_two_three_calls_are_the_rational_figures(target, draft, length):
    pair = ModelPair.iid(fractions(target), fractions(draft))
    greedy = expected_tokens("greedy-block", pair, length, 3)
    assert greedy == pytest.approx([float(F(value)) for value in TABLE[target, draft, length]], abs=1e-12)
    block = expected_tokens("block", pair, length, 3)
    assert block == pytest.approx([n * float(F(BLOCK[target, draft, length])) for n in (1, 2, 3)], abs=1e-12)
    assert greedy[0] > block[0] + 1e-3
    assert greedy[2] < block[2] - 1e-3


def test_the_lag_behind_block_verification_keeps_growing():
    greedy, block = (expected_tokens(name, PUBLISHED, 2, 6) for name in ("greedy-block", "block"))
    lag = [b - g for g, b in zip(greedy, block, strict=True)]
    assert lag == pytest.approx([-1 / 9, 0, 1 / 9, 2 / 9, 3 / 9, 4 / 9], abs=1e-12)


def test_on_random_models_greedy_leads_for_one_call_and_trails_after_three():
    for seed in range(8):
        pair = ModelPair.from_tree(PrefixTree.random(2, 9, seed, concentration=1.0))
        greedy, block = (expected_tokens(name, pair, 2, 3) for name in ("greedy-block", "block"))
        assert greedy[0] >= block[0] - 1e-12
    pair = ModelPair.markov([[0.75, 0.25], [0.4, 0.6]], [[0.5, 0.5], [0.7, 0.3]])
    greedy, block = (expected_tokens(name, pair, 3, 3) for name in ("greedy-block", "block"))
    assert greedy[0] > block[0] + 1e-3
    assert greedy[2] < block[2] - 1e-3


# ---- what the carry must hold ---------------------------------------------------------------------------------


def with_carry(verdict, keep):
    """The verdict with only those layers of its carry that `keep` [B, M] marks."""
    carry = Layers(verdict.carry.log_ratio * keep, verdict.carry.remaining * keep, verdict.carry.paths)
    return Verdict(verdict.path, verdict.accepted, verdict.token, carry)


def without_layers(batch, draws):
    """Later positions follow the target."""
    verdict = verify_greedy_block(batch, draws)
    return with_carry(verdict, torch.zeros_like(verdict.carry.remaining))


def newest_layer_only(batch, draws):
    verdict = verify_greedy_block(batch, draws)
    made = verdict.carry.remaining > 0
    return with_carry(verdict, made & (made.flip(1).cumsum(1).flip(1) == 1))


def ratio_of_the_unmodified_target(batch, draws):
    """The newest layer's rho taken with the target's own rows instead of the laws in force."""
    verdict = verify_greedy_block(batch, draws)
    tokens, draft, target = only_path(batch)
    kept, length = verdict.accepted, tokens.shape[1]
    steps = torch.nn.functional.pad(at(target[:, :-1], tokens).log() - at(draft, tokens).log(), (1, 0)).cumsum(1)
    last = kept.clamp_max(length - 1)
    step = at(row_at(target, last), verdict.token).log() - at(row_at(draft, last), verdict.token).log()
    carry = verdict.carry
    made = (length - kept - 1 > 0) & (carry.remaining[:, -1] > 0)
    log_ratio = carry.log_ratio.clone()
    log_ratio[:, -1] = torch.where(made, at(steps, kept) + step, log_ratio[:, -1])
    return Verdict(verdict.path, kept, verdict.token, Layers(log_ratio, carry.remaining))


@pytest.mark.parametrize(
    "twin, errors",
    [
        (without_layers, ("1/9", "4/27", "38/243")),
        (newest_layer_only, ("0", "1/27", "10/243")),
        (ratio_of_the_unmodified_target, ("4/81", "1/81", "4/243")),
    ],
)
def test_a_mistake_in_the_carry_shows_by_its_exact_distance(twin, errors):
    assert distances(twin) == pytest.approx([float(F(error)) for error in errors], abs=1e-12)


def distances(verifier):
    """Total variation of the first N tokens on the published pair for (L, N) = (2, 4), (3, 4), (3, 5)."""
    return [
        stream_law(verifier, PUBLISHED, length, tokens).total_variation(PUBLISHED.target_law(tokens))
        for length, tokens in ((2, 4), (3, 4), (3, 5))
    ]


def test_carried_layers_applied_newest_first_show_by_their_exact_distance(monkeypatch):
    laws, pushed, made = Layers.laws, Layers.pushed, []

    def wrong_laws(self, target_row, draft_row):
        """The layer just made stays on top; those below it act in the wrong order."""
        new = sum(self is state for state in made)
        old = Layers(self.log_ratio[:, : self.slots - new].flip(1), self.remaining[:, : self.slots - new].flip(1))
        below = laws(old, target_row, draft_row)
        top = laws(Layers(self.log_ratio[:, -1:], self.remaining[:, -1:]), below[-1], draft_row)[1:] if new else []
        return [*reversed(below[:-1]), below[-1], *top]

    def remembered(self, log_ratio, remaining):
        made.append(pushed(self, log_ratio, remaining))
        return made[-1]

    monkeypatch.setattr(Layers, "laws", wrong_laws)
    monkeypatch.setattr(Layers, "pushed", remembered)
    assert distances("greedy-block") == pytest.approx([0, 1 / 405, 16 / 6075], abs=1e-12)


def test_without_the_carry_the_second_token_is_already_wrong():
    law = stream_law(without_layers, PUBLISHED, 2, 2)
    assert law.total_variation(PUBLISHED.target_law(2)) == pytest.approx(1 / 9, abs=1e-12)


@pytest.mark.parametrize("length", [2, 3, 4])
def test_reachable_layers_have_ratios_above_one_and_number_fewer_than_the_draft_length(length):
    most = []

    def watched(batch, draws):
        verdict = verify_greedy_block(batch, draws)
        active = verdict.carry.remaining > 0
        assert (verdict.carry.log_ratio[active] > -1e-9).all()
        assert verdict.carry.slots == length - 1
        assert (verdict.carry.remaining.diff(dim=1)[active[:, :-1]] > 0).all()
        most.append(int(active.sum(1).max()))
        return verdict

    pair = RANDOM["random 1"] if length < 4 else PUBLISHED
    stream_law(watched, pair, length, 5 if length < 4 else 6)
    assert max(most) == length - 1


# ---- tensors --------------------------------------------------------------------------------------------------


def random_batch(requests, length, vocab, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draft = torch.randn(requests, 1, length, vocab, generator=generator).mul(2).softmax(-1)
    target = torch.randn(requests, 1, length + 1, vocab, generator=generator).mul(2).softmax(-1)
    tokens = torch.multinomial(draft.flatten(0, 2), 1, generator=generator).view(requests, 1, length)
    return Batch(tokens, draft.to(dtype), target.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_runs_several_calls_with_its_carry(dtype):
    batch, carry = random_batch(5, 4, 50, dtype), None
    for call in range(4):
        verdict = verify(
            "greedy-block", Batch(batch.tokens, batch.draft_probs, batch.target_probs, carry), Draws(torch.Generator())
        )
        carry = verdict.carry
        assert carry.log_ratio.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.isfinite(carry.numbers()).all(), call


def test_a_large_vocabulary_and_an_empty_batch_run():
    verdict = verify("greedy-block", random_batch(2, 3, 128_000, torch.bfloat16), Draws(torch.Generator()))
    assert verdict.carry.slots == 2
    empty = random_batch(1, 3, 5, torch.float32)
    empty = Batch(empty.tokens[:0], empty.draft_probs[:0], empty.target_probs[:0])
    assert len(verify("greedy-block", empty, Draws()).accepted) == 0


def test_float32_decides_as_float64_on_the_same_coins():
    """With the coins fixed to one half the verdicts agree unless a threshold is within 1e-4 of the coin."""

    class HalfCoins(Draws):
        def accept(self, probability):
            self.margin = (probability - 0.5).abs().amin(1)
            return probability > 0.5

        def choose(self, weights):
            return weights.argmax(-1)

    exact, single = HalfCoins(), HalfCoins()
    batch = random_batch(400, 5, 40, torch.float64)
    wide = verify_greedy_block(batch, exact)
    narrow = verify_greedy_block(Batch(batch.tokens, batch.draft_probs.float(), batch.target_probs.float()), single)
    clear = exact.margin > 1e-4
    assert clear.sum() > 350
    assert torch.equal(wide.accepted[clear], narrow.accepted[clear])


def test_a_batch_decides_each_request_as_it_would_alone():
    class FixedCoins(Draws):
        def accept(self, probability):
            return probability > 0.4

        def choose(self, weights):
            return weights.argmax(-1)

    batch = random_batch(6, 4, 7, torch.float64)
    first = verify_greedy_block(batch, FixedCoins())
    order = [4, 1, 5]
    again = Batch(batch.tokens[order], batch.draft_probs[order], batch.target_probs[order], first.carry.select(order))
    together = verify_greedy_block(again, FixedCoins())
    for place, row in enumerate(order):
        alone = verify_greedy_block(
            Batch(batch.tokens[[row]], batch.draft_probs[[row]], batch.target_probs[[row]], first.carry.select([row])),
            FixedCoins(),
        )
        assert together.accepted[place] == alone.accepted[0]
        assert together.token[place] == alone.token[0]
        assert torch.equal(together.carry.numbers()[place], alone.carry.numbers()[0])


def test_a_carry_of_other_requests_is_refused():
    batch = random_batch(3, 3, 5, torch.float32)
    carry = verify_greedy_block(batch, Draws()).carry
    other = Batch(batch.tokens, batch.draft_probs, batch.target_probs, carry.select([0, 1]))
    with pytest.raises(ValueError, match=r"carry is the state of 2 requests with 1 paths, the batch has 3"):
        verify("greedy-block", other, Draws())
    with pytest.raises(ValueError, match="carry is a int"):
        verify("greedy-block", Batch(batch.tokens, batch.draft_probs, batch.target_probs, 3), Draws())


def test_the_registry_declares_it_stateful_and_lossless():
    entry = get("greedy-block")
    assert (entry.paths, entry.stateful, entry.lossless) == ("single", True, True)
