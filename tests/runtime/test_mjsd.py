"""MJSD: which prefix is kept, and whole decodes of the two reference chains."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.replay import replay
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get, verify
from specbound.runtime.verifiers.mjsd import DEFAULT_THRESHOLD, longest_valid_prefix, mjsd
from tests.support.strategies import edge_trees, trees

EDGES = edge_trees()
M1 = (
    np.array([[0.1, 0.4, 0.5], [0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]),
    np.array([[0.2, 0.1, 0.7], [0.6, 0.2, 0.2], [0.2, 0.5, 0.3]]),
)
M2 = (
    np.array([[0.3, 0.5, 0.2], [0.1, 0.6, 0.3], [0.4, 0.3, 0.3]]),
    np.array([[0.2, 0.7, 0.1], [0.2, 0.3, 0.5], [0.3, 0.4, 0.3]]),
)
TOKENS = 6


def best_block(draft, context, length=3):
    """The most likely block under the draft chain, the smallest one among ties."""

    def joint(block):
        return math.prod(draft[a, b] for a, b in zip((context, *block), block, strict=False))

    return max(
        itertools.product(range(3), repeat=length), key=lambda block: (round(joint(block), 12), [-y for y in block])
    )


def greedy_block_of(draft, context, length=3):
    """Width-1 beam: the most likely token, step by step."""
    block = []
    for _ in range(length):
        context = int(draft[context].argmax())
        block.append(context)
    return tuple(block)


def batch_after(pair, blocks):
    """One request per context 0, 1, 2, each drafting its block."""
    target, draft = (torch.as_tensor(matrix) for matrix in pair)
    tokens = torch.tensor(blocks)
    before = torch.cat([torch.arange(3)[:, None], tokens], dim=1)
    return Batch(tokens[:, None], draft[before[:, :-1]][:, None], target[before][:, None])


def kept_by_context(pair, blocks, threshold):
    return mjsd(threshold)(batch_after(pair, blocks), Draws()).accepted.tolist()


def test_the_most_likely_blocks_of_the_reference_chains():
    assert [best_block(M1[1], context) for context in range(3)] == [(2, 1, 0), (0, 2, 1), (1, 0, 2)]
    assert [best_block(M2[1], context) for context in range(3)] == [(1, 2, 1), (2, 0, 1), (0, 1, 2)]
    assert [greedy_block_of(M2[1], context) for context in range(3)] == [(1, 2, 1), (2, 1, 2), (1, 2, 1)]


@pytest.mark.parametrize(
    "threshold, kept",
    [
        (0, [3, 3, 3]),
        (0.1, [2, 2, 2]),
        (0.3, [2, 0, 1]),
        (0.5, [1, 0, 1]),
        (0.7, [1, 0, 0]),
        (0.9, [0] * 3),
        (1, [0] * 3),
    ],
)
def test_kept_prefixes_of_the_first_chain(threshold, kept):
    assert kept_by_context(M1, [best_block(M1[1], context) for context in range(3)], threshold) == kept


@pytest.mark.parametrize(
    "threshold, wide, narrow",
    [
        (0.1, [3, 3, 3], [3, 3, 3]),
        (0.3, [3, 3, 3], [3, 2, 3]),
        (0.5, [1, 3, 3], [1, 1, 1]),
        (0.7, [1, 2, 2], [1, 0, 1]),
        (0.9, [0, 0, 2], [0, 0, 0]),
        (1, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_kept_prefixes_of_the_second_chain_with_a_wide_and_a_narrow_beam(threshold, wide, narrow):
    assert kept_by_context(M2, [best_block(M2[1], context) for context in range(3)], threshold) == wide
    assert kept_by_context(M2, [greedy_block_of(M2[1], context) for context in range(3)], threshold) == narrow


def test_a_prefix_may_pass_although_a_shorter_one_fails():
    """Second chain, context 1, block 201: P/Q along it is 3/5, 4/5, 4/7; at 0.7 only the middle one passes."""
    batch = batch_after(M2, [best_block(M2[1], context) for context in range(3)])
    rows = (batch.tokens[:, 0], batch.draft_probs[:, 0], batch.target_probs[:, 0])
    assert longest_valid_prefix(*rows, 0.7)[1] == 2
    ratios = (0.3 / 0.5, 0.3 * 0.4 / (0.5 * 0.3), 0.3 * 0.4 * 0.5 / (0.5 * 0.3 * 0.7))
    assert ratios[0] < 0.7 < ratios[1] and ratios[2] < 0.7  # noqa: PT018


def test_no_threshold_on_a_shorter_prefix_than_the_whole_block_bounds_all_blocks():
    """The published counterexample: draft block (1, 0), one token kept, at threshold 1/2."""
    draft = torch.tensor([[[0.6, 0.4], [1.0, 0.0]]], dtype=torch.float64)
    target = torch.tensor([[[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]]], dtype=torch.float64)
    target[0, 1] = torch.tensor([0.15, 0.85])
    assert longest_valid_prefix(torch.tensor([[1, 0]]), draft, target, 0.5).item() == 1
    assert 0.25 < 0.5 * 0.6


def decode_greedily(pair, threshold):
    """TOKENS tokens from context 0, argmax tokens, most likely drafts: output, number of calls."""
    batch = batch_after(pair, [best_block(pair[1], context) for context in range(3)])
    verdict = mjsd(threshold, token="argmax")(batch, Draws())
    output, calls, context = [], 0, 0
    while len(output) < TOKENS:
        kept = int(verdict.accepted[context])
        output += [*batch.tokens[context, 0, :kept].tolist(), int(verdict.token[context])]
        context, calls = output[-1], calls + 1
    return "".join(str(y) for y in output[:TOKENS]), calls


@pytest.mark.parametrize(
    "threshold, output, calls",
    [
        (0, "210210", 2),
        (0.1, "211020", 2),
        (0.3, "211111", 4),
        (0.5, "202020", 3),
        (0.7, "202020", 3),
        (0.9, "202020", 6),
    ],
)
def test_greedy_decodes_of_the_first_chain(threshold, output, calls):
    assert decode_greedily(M1, threshold) == (output, calls)


@pytest.mark.parametrize(
    "threshold, output, calls",
    [(0.1, "121120", 2), (0.3, "121120", 2), (0.5, "112011", 2), (0.7, "112012", 3), (0.9, "111111", 6)],
)
def test_greedy_decodes_of_the_second_chain(threshold, output, calls):
    assert decode_greedily(M2, threshold) == (output, calls)


def sampled_decode(pair, threshold):
    """Exact exp(E NLL per token) and E calls of TOKENS tokens from context 0, by replay of the verifier."""
    batch = batch_after(pair, [best_block(pair[1], context) for context in range(3)])
    outcomes = list(replay(mjsd(threshold), batch))
    mass = {(0, 0): 1.0}
    surprise = calls = 0.0
    for done in range(TOKENS):
        for context in range(3):
            here = mass.get((done, context), 0.0)
            calls += here
            for part in outcomes:
                for row, kept, token, chance in zip(part.row, part.accepted, part.token, part.probability, strict=True):
                    if row != context or not here:
                        continue
                    block = [*batch.tokens[context, 0, :kept].tolist(), int(token)][: TOKENS - done]
                    steps = zip([context, *block], block, strict=False)
                    surprise -= here * chance * sum(math.log(pair[0][a, b]) for a, b in steps)
                    state = (done + len(block), block[-1])
                    mass[state] = mass.get(state, 0.0) + here * chance
    return math.exp(surprise / TOKENS), calls


@pytest.mark.parametrize(
    "pair, threshold, perplexity, calls",
    [
        (M1, 0, 3.977776, 2),
        (M1, 0.1, 2.996359, 2),
        (M1, 0.3, 2.434731, 3.39),
        (M1, 0.5, 2.274290, 3.697),
        (M1, 0.7, 2.226822, 3.884),
        (M1, 1, 2.397574, 6),
        (M2, 0.3, 2.692913, 2),
        (M2, 0.5, 2.434772, 2.1),
        (M2, 0.7, 2.500801, 3),
        (M2, 0.9, 2.489834, 23373 / 5000),
        (M2, 1, 2.685180, 6),
    ],
)
def test_sampled_decodes_have_the_known_perplexity_and_number_of_calls(pair, threshold, perplexity, calls):
    found = sampled_decode(pair, threshold)
    assert found == pytest.approx((perplexity, calls), abs=1e-6)


@given(tree=trees())
@settings(max_examples=25, deadline=None)
def test_threshold_one_is_plain_sampling_and_threshold_zero_the_draft(tree):
    assert exact_law(mjsd(1), tree).total_variation(tree.target_law()) < 1e-12
    assert exact_law(mjsd(1), tree).acceptance_length == 0
    assert exact_law(mjsd(0), tree).acceptance_length == pytest.approx(tree.length, abs=1e-12)


def test_every_kept_prefix_has_joint_probability_at_least_threshold_times_the_drafts():
    tree = EDGES["random"]
    joint = {tree.prefix(n): (tree.target_joint[n], tree.draft_joint[n]) for n in range(tree.size)}
    for threshold in (0.05, 0.3, 0.5, 0.8):
        law = exact_law(mjsd(threshold), tree)
        kept = {w for w, mass in law.kept.items() if mass > sum(law.kept.get((*w, y), 0) for y in range(3)) + 1e-15}
        assert kept
        assert all(joint[w][0] >= threshold * joint[w][1] for w in kept)


def test_it_is_lossy_as_declared():
    tree = EDGES["published example"]
    assert not get("mjsd").lossless
    assert exact_law("mjsd", tree).total_variation(tree.target_law()) > 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_and_zero_probabilities_run(dtype):
    draft = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]], [[[0.0, 1.0], [1.0, 0.0]]]], dtype=dtype)
    target = torch.tensor([[[[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]], [[[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]]], dtype=dtype)
    verdict = verify("mjsd", Batch(torch.tensor([[[0, 1]], [[1, 0]]]), draft, target), Draws())
    assert verdict.accepted.tolist() == [0, 2]
    assert verdict.token.tolist() == [1, 1]
    assert DEFAULT_THRESHOLD == 0.5


def test_prefixes_of_probability_1e_60_are_compared_in_float32():
    rows = torch.full((1, 1, 60, 10), 0.1)
    batch = Batch(torch.zeros(1, 1, 60, dtype=torch.int64), rows, torch.full((1, 1, 61, 10), 0.1))
    assert verify("mjsd", batch, Draws()).accepted.item() == 60


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan])
def test_a_threshold_outside_the_unit_interval_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold is .*; want a number in \[0, 1\]"):
        mjsd(threshold)


def test_an_unknown_way_to_find_the_token_is_refused():
    with pytest.raises(ValueError, match="token is 'beam'"):
        mjsd(0.5, token="beam")  # type: ignore[arg-type]
