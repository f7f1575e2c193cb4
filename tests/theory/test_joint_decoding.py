"""Joint decoding: exact output laws and call counts against hand-worked tables, and the guarantees with their limits.

M1 and M2 are three-token Markov pairs; every printed figure beside them was worked out by enumeration beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction as Q
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbound.theory.contexts import ContextModel
from specbound.theory.joint_decoding import (
    DecodingLaw,
    JointSpeculation,
    accepted_length,
    beam_block,
    beam_sampling_law,
    committed_per_call,
    greedy,
    joint_greedy,
    mjsd,
    most_probable_block,
    speculative_sampling,
)
from specbound.theory.joint_decoding.guarantees import intermediate_prefix_slack, round_guarantees
from specbound.theory.stopping.instance import StoppingInstance
from specbound.theory.stopping.leaves import block_probability, leaf_law
from tests.support.strategies import row

TAUS = ["0", "1/10", "3/10", "1/2", "7/10", "9/10", "1"]


def markov(text: str, start: int = 0) -> ContextModel:
    return ContextModel.markov([line.split() for line in text.split("|")], start)


def tree(rows: dict[str, str]) -> ContextModel:
    return ContextModel.tree({tuple(map(int, prefix)): law.split() for prefix, law in rows.items()})


def word(tokens: tuple[int, ...]) -> str:
    return "".join(map(str, tokens))


M1 = (markov(".1 .4 .5 | .1 .7 .2 | .6 .3 .1"), markov(".2 .1 .7 | .6 .2 .2 | .2 .5 .3"))
M2 = (markov(".3 .5 .2 | .1 .6 .3 | .4 .3 .3"), markov(".2 .7 .1 | .2 .3 .5 | .3 .4 .3"))


def near(value: object, printed: float) -> bool:
    """True if `value` rounds to a decimal printed with six digits."""
    return abs(float(value) - printed) <= 0.51e-6  # type: ignore[arg-type]


# tau: greedy-mode output, P, calls; sample-mode exp(E NLL), E PPL, E calls; accepted per context; committed per call
M1_TABLE = [
    ("0", "210210", "9/40000", 2, 3.977776, 3.978870, "2", (3, 3, 3), "4"),
    ("1/10", "211020", "63/20000", 2, 2.996359, 3.032767, "2", (2, 2, 2), "3"),
    ("3/10", "211111", "7203/200000", 4, 2.434731, 2.499878, "339/100", (2, 0, 1), "1.4"),
    ("1/2", "202020", "27/1000", 3, 2.274290, 2.334053, "3697/1000", (1, 0, 1), "1.38"),
    ("7/10", "202020", "27/1000", 3, 2.226822, 2.275113, "971/250", (1, 0, 0), "1.35"),
    ("9/10", "202020", "27/1000", 6, 2.397574, 2.478405, "6", (0, 0, 0), "1"),
    ("1", "202020", "27/1000", 6, 2.397574, 2.478405, "6", (0, 0, 0), "1"),
]


@pytest.mark.parametrize("width", [1, 2, 27])
@pytest.mark.parametrize("tau, output, joint, calls, nll, ppl, sampled_calls, accepted, rate", M1_TABLE)
def test_mjsd_on_m1_has_the_reference_laws(width, tau, output, joint, calls, nll, ppl, sampled_calls, accepted, rate):
    speculation = JointSpeculation(*M1, 3, width, tau)
    fixed, sampled = mjsd(speculation, 6, "greedy"), mjsd(speculation, 6, "sample")
    assert (word(fixed.tokens), M1[0].joint(fixed.tokens), fixed.calls) == (output, Q(joint), calls)
    assert near(sampled.perplexity_of_mean, nll)
    assert near(sampled.mean_perplexity, ppl)
    assert sampled.calls == Q(sampled_calls)
    assert sum(sampled.law.values()) == 1
    assert accepted_per_context(speculation) == accepted
    assert committed_per_call(speculation, "sample") == Q(rate)


def accepted_per_context(speculation: JointSpeculation) -> tuple[int, ...]:
    return tuple(len(next(iter(speculation.accepted_prefixes(c, c)))) for c in range(3))


def test_m1_drafts_the_same_blocks_at_every_width_and_calls_are_not_monotone_in_tau():
    for width in (1, 2, 27):
        assert [word(beam_block(M1[1], 3, width, c)) for c in range(3)] == ["210", "021", "102"]
    calls = [mjsd(JointSpeculation(*M1, 3, 1, tau), 8, "greedy").calls for tau in TAUS]
    assert calls == [2, 3, 6, 4, 4, 8, 8]


def test_m1_baselines_have_the_reference_figures():
    target = M1[0]
    assert word(greedy(target, 6)) == word(joint_greedy(target, 6, 2)) == "202020"
    assert target.joint(greedy(target, 6)) == Q(27, 1000)
    assert near(perplexity(target, greedy(target, 6)), 1.825742)
    for window in range(3, 7):
        assert word(joint_greedy(target, 6, window)) == "111111"
    assert target.joint((1,) * 6) == Q(16807, 250000)
    assert near(perplexity(target, (1,) * 6), 1.568225)


@pytest.mark.parametrize(
    "pair, temperature, nll, ppl, calls",
    [
        (M1, 1, 2.397574, 2.478405, 3.178310),
        (M1, 0.5, 1.883387, 1.911714, 4.132379),
        (M2, 1, 2.685180, 2.738779, 2.552040),
        (M2, 0.5, 2.242764, 2.284308, 3.194019),
    ],
)
def test_speculative_sampling_has_the_reference_perplexity_and_calls(pair, temperature, nll, ppl, calls):
    decoded = speculative_sampling(*pair, 3, 6, temperature)
    assert near(decoded.perplexity_of_mean, nll)
    assert near(decoded.mean_perplexity, ppl)
    assert near(decoded.calls, calls)


def test_the_perplexity_of_a_long_text_is_that_of_its_tokens():
    """Every token has probability 3/5, also where that of the whole text is below the range of floats."""
    for number in (0.6, Q(3, 5)):
        model = ContextModel.markov([[number, 1 - number]] * 2)
        for length in (10, 1500, 3000):
            decoded = DecodingLaw({(0,) * length: 1.0}, 1.0, model)
            assert near(decoded.perplexity_of_mean, 5 / 3)
            assert near(decoded.mean_perplexity, 5 / 3)
    impossible = DecodingLaw({(0, 1): 1.0}, 1.0, ContextModel.markov([[1, 0]] * 2))
    assert math.isinf(impossible.perplexity_of_mean)


def test_blocks_whose_probability_vanishes_in_floats_are_refused_and_in_fractions_found():
    rows = [[Q(2, 5), Q(3, 5)]] * 2
    assert most_probable_block(ContextModel.markov(rows), 1600) == (1,) * 1600
    for find in (most_probable_block, lambda model, size: beam_block(model, size, 2)):
        assert find(ContextModel.markov([[0.4, 0.6]] * 2), 1300) == (1,) * 1300
        with pytest.raises(ValueError, match="blocks of 1600 tokens have probabilities below 2e-308; give exact"):
            find(ContextModel.markov([[0.4, 0.6]] * 2), 1600)


def perplexity(model: ContextModel, tokens: tuple[int, ...]) -> float:
    return float(model.joint(tokens)) ** (-1 / len(tokens))


# tau: greedy-mode output, PPL, calls; sample-mode exp(E NLL), E calls; accepted per context
M2_WIDE = [
    ("0", "121120", 2.599616, 2, 2.692913, "2", (3, 3, 3)),
    ("1/10", "121120", 2.599616, 2, 2.692913, "2", (3, 3, 3)),
    ("3/10", "121120", 2.599616, 2, 2.692913, "2", (3, 3, 3)),
    ("1/2", "112011", 2.126977, 2, 2.434772, "21/10", (1, 3, 3)),
    ("7/10", "112012", 2.387450, 3, 2.500801, "3", (1, 2, 2)),
    ("9/10", "111111", 1.718089, 6, 2.489834, "23373/5000", (0, 0, 2)),
    ("1", "111111", 1.718089, 6, 2.685180, "6", (0, 0, 0)),
]
M2_NARROW = [
    ("0", "121121", 2.727296, 2, 2.884400, "2", (3, 3, 3)),
    ("1/10", "121121", 2.727296, 2, 2.884400, "2", (3, 3, 3)),
    ("3/10", "121121", 2.727296, 2, 2.884400, "2", (3, 2, 3)),
    ("1/2", "112011", 2.126977, 3, 2.627234, "3", (1, 1, 1)),
    ("7/10", "111111", 1.718089, 5, 2.459954, "507/125", (1, 0, 1)),
    ("9/10", "111111", 1.718089, 6, 2.685180, "6", (0, 0, 0)),
    ("1", "111111", 1.718089, 6, 2.685180, "6", (0, 0, 0)),
]


@pytest.mark.parametrize("width, line", [(27, line) for line in M2_WIDE] + [(1, line) for line in M2_NARROW], ids=str)
def test_mjsd_on_m2_has_the_reference_laws(width, line):
    tau, output, ppl, calls, nll, sampled_calls, accepted = line
    speculation = JointSpeculation(*M2, 3, width, tau)
    fixed, sampled = mjsd(speculation, 6, "greedy"), mjsd(speculation, 6, "sample")
    assert (word(fixed.tokens), fixed.calls) == (output, calls)
    assert near(fixed.mean_perplexity, ppl)
    assert near(fixed.perplexity_of_mean, ppl)
    assert near(sampled.perplexity_of_mean, nll)
    assert sampled.calls == Q(sampled_calls)
    assert accepted_per_context(speculation) == accepted


def test_m2_has_the_reference_blocks_ratios_and_stationary_rates():
    target, draft = M2
    assert [word(beam_block(draft, 3, 27, c)) for c in range(3)] == ["121", "201", "012"]
    assert [word(beam_block(draft, 3, 1, c)) for c in range(3)] == ["121", "212", "121"]
    ratios = [
        [
            joint / other
            for joint, other in zip(target.prefix_joints(block, c)[1:], draft.prefix_joints(block, c)[1:], strict=True)
        ]
        for c, block in enumerate([(1, 2, 1), (2, 0, 1), (0, 1, 2)])
    ]
    assert ratios == [
        [Q(5, 7), Q(3, 7), Q(9, 28)],
        [Q(3, 5), Q(4, 5), Q(4, 7)],
        [Q(4, 3), Q(20, 21), Q(4, 7)],
    ]
    rates = {tau: committed_per_call(JointSpeculation(*M2, 3, 27, tau), "sample") for tau in ("1/2", "7/10", "9/10")}
    assert near(rates["1/2"], 3.62)
    assert near(rates["7/10"], 2.790909)
    assert near(rates["9/10"], 1.575)
    assert word(greedy(target, 6)) == "111111"
    assert target.joint((1,) * 6) == Q(243, 6250)
    assert all(word(joint_greedy(target, 6, k)) == "111111" for k in range(2, 7))


def test_accepting_only_when_every_intermediate_prefix_passes_is_another_rule():
    target, draft = M2
    block = (2, 0, 1)
    targets, drafts = target.prefix_joints(block, 1), draft.prefix_joints(block, 1)
    first_failure = next(i for i in range(1, 4) if targets[i] < Q(7, 10) * drafts[i]) - 1
    assert accepted_length(targets, drafts, Q(7, 10)) == 2 != first_failure


# ---- beam search and beam sampling --------------------------------------------------------------------------------


def test_beam_sampling_on_m1_has_the_reference_law():
    draft = M1[1]
    plain = {(y, z): draft.table[0][y] * draft.table[y][z] for y, z in product(range(3), repeat=2)}
    assert beam_sampling_law(draft, 2, 1) == plain
    law = {word(block): mass for block, mass in beam_sampling_law(draft, 2, 2).items()}
    exact = {
        "00": Q(57947, 14086800),
        "01": Q(17, 18900),
        "02": Q(185281, 2124200),
        "10": Q(143561, 14545440),
        "11": Q(139, 163800),
        "20": Q(2824182277, 93371335200),
    }
    assert {block: law[block] for block in exact} == exact
    assert near(law["21"], 0.666141)
    assert near(law["22"], 0.200657)
    assert "12" not in law
    assert sum(law.values()) == 1


def markov_models(vocab: int = 3, zeros: bool = True) -> st.SearchStrategy[ContextModel]:
    sizes = st.integers(2, vocab)
    return sizes.flatmap(lambda v: st.lists(row(v, zeros), min_size=v, max_size=v)).map(ContextModel.markov)


@st.composite
def pairs(draw: st.DrawFn, vocab: int = 3, zeros: bool = True) -> tuple[ContextModel, ContextModel]:
    v = draw(st.integers(2, vocab))
    chains = [[draw(row(v, zeros)) for _ in range(v)] for _ in range(2)]
    return ContextModel.markov(chains[0]), ContextModel.markov(chains[1])


@st.composite
def binary_trees(draw: st.DrawFn, depth: int) -> ContextModel:
    prefixes = [w for length in range(depth) for w in product((0, 1), repeat=length)]
    return ContextModel.tree({w: draw(row(2)) for w in prefixes})


@settings(max_examples=80, deadline=None)
@given(markov_models(), st.integers(1, 4))
def test_a_full_beam_is_viterbi_is_the_argmax_over_all_blocks(model, size):
    joints = {block: model.joint(block) for block in product(range(model.vocab), repeat=size)}
    largest = max(joints.values())
    first = min(block for block, joint in joints.items() if joint == largest)
    assert most_probable_block(model, size) == first
    assert beam_block(model, size, model.vocab**size) == first
    assert beam_block(model, size, 1) == greedy(model, size)


@settings(max_examples=30, deadline=None)
@given(markov_models(), st.integers(1, 2))
def test_beam_sampling_is_a_law_that_full_width_makes_certain(model, width):
    law = beam_sampling_law(model, 2, width)
    assert sum(law.values()) == 1
    assert all(model.joint(block) > 0 for block in law)
    assert beam_sampling_law(model, 2, model.vocab**2) == {most_probable_block(model, 2): 1}


# ---- MJGD against greedy ------------------------------------------------------------------------------------------

WORSE = [
    (
        tree({"": "3/5 2/5", "0": "3/5 2/5", "1": "0 1", "00": "1 0", "01": ".5 .5", "10": ".5 .5", "11": ".5 .5"}),
        "000",
        Q(9, 25),
        "110",
        Q(1, 5),
    ),
    (
        ContextModel.markov_with_start_row([["0", "1"], ["3/5", "2/5"]], ["2/5", "3/5"]),
        "101",
        Q(9, 25),
        "010",
        Q(6, 25),
    ),
    (markov("0 2/5 3/5 | 0 0 1 | 0 3/5 2/5"), "212", Q(9, 25), "121", Q(6, 25)),
]


@pytest.mark.parametrize("model, plain, plain_joint, joint, joint_joint", WORSE)
def test_joint_greedy_decoding_can_be_less_probable_than_greedy(model, plain, plain_joint, joint, joint_joint):
    assert (word(greedy(model, 3)), word(joint_greedy(model, 3, 2))) == (plain, joint)
    assert model.joint(greedy(model, 3)) == plain_joint
    assert model.joint(joint_greedy(model, 3, 2)) == joint_joint < plain_joint


@settings(max_examples=60, deadline=None)
@given(binary_trees(4), st.integers(1, 4))
def test_joint_greedy_is_greedy_for_one_token_and_optimal_for_the_whole_text(model, window):
    assert joint_greedy(model, 4, 1) == greedy(model, 4)
    assert model.joint(joint_greedy(model, 4, 4 + window)) == max(model.block_law(4).values())


@settings(max_examples=60, deadline=None)
@given(binary_trees(3))
def test_joint_greedy_over_three_binary_tokens_keeps_at_least_half_of_greedy(model):
    assert 2 * model.joint(joint_greedy(model, 3, 2)) >= model.joint(greedy(model, 3))


def test_binary_markov_chains_show_no_failure_of_joint_greedy_in_14140_cases():
    cases = 0
    for d in range(2, 14):
        for first, second in product(range(d + 1), repeat=2):
            rows = [[Q(first, d), Q(d - first, d)], [Q(second, d), Q(d - second, d)]]
            for start in (0, 1):
                model = ContextModel.markov(rows, start)
                for length, window in [(3, 2), (4, 2), (5, 2), (6, 2), (4, 3), (5, 3), (7, 3)]:
                    cases += 1
                    assert model.joint(joint_greedy(model, length, window)) >= model.joint(greedy(model, length))
    assert cases == 14140


# ---- second routes ------------------------------------------------------------------------------------------------


def simulated(target: ContextModel, draft: ContextModel, gamma: int, length: int) -> tuple[dict, Q]:
    """Output law and calls of token-level speculative sampling, from every drafted block and verifier outcome."""
    problem = StoppingInstance(target.table, draft.table, 1, 1, gamma)
    law: dict[tuple[int, ...], Q] = {}
    pending, calls = {(): Q(1)}, Q(0)
    while pending:
        text, mass = pending.popitem()
        if len(text) >= length:
            law[text[:length]] = law.get(text[:length], 0) + mass
            continue
        calls += mass
        start = text[-1] if text else target.start
        for block in product(range(target.vocab), repeat=gamma):
            if all(draft.table[c][z] > 0 for c, z in zip((start, *block), block, strict=False)):
                weight = mass * block_probability(problem, start, block)
                for accepted, token, probability in leaf_law(problem, start, block):
                    longer = (*text, *block[:accepted], token)
                    pending[longer] = pending.get(longer, 0) + weight * probability
    return law, calls


@settings(max_examples=25, deadline=None)
@given(pairs(), st.integers(1, 2))
def test_speculative_sampling_is_what_running_the_verifier_gives(pair, gamma):
    decoded = speculative_sampling(*pair, gamma, 3)
    law, calls = simulated(*pair, gamma, 3)
    assert dict(decoded.law) == law == pair[0].block_law(3)
    assert decoded.calls == calls


@settings(max_examples=40, deadline=None)
@given(pairs(), st.integers(1, 3), st.integers(1, 3), st.sampled_from(TAUS))
def test_mjsd_is_what_decoding_one_text_at_a_time_gives(pair, gamma, width, tau):
    target, draft = pair
    speculation = JointSpeculation(target, draft, gamma, width, tau)
    text: tuple[int, ...] = ()
    calls = 0
    while len(text) < 5:
        context = text[-1] if text else 0
        block = beam_block(draft, gamma, width, context)
        kept = 0
        for i in range(1, gamma + 1):
            trail = list(zip((context, *block), block[:i], strict=False))
            p = math.prod(target.table[c][z] for c, z in trail)
            q = math.prod(draft.table[c][z] for c, z in trail)
            if Q(tau) < 1 and (p >= Q(tau) * q):
                kept = i
        text += block[:kept]
        text += (target.argmax(text[-1] if text else 0),)
        calls += 1
    decoded = mjsd(speculation, 5, "greedy")
    assert (decoded.tokens, decoded.calls) == (text[:5], calls)


@settings(max_examples=40, deadline=None)
@given(pairs(), st.integers(1, 3))
def test_accepting_nothing_is_plain_decoding_and_accepting_all_commits_every_draft(pair, gamma):
    target, draft = pair
    nothing = JointSpeculation(target, draft, gamma, 2, 1)
    assert mjsd(nothing, 4, "greedy").tokens == greedy(target, 4)
    sampled = mjsd(nothing, 4, "sample")
    assert dict(sampled.law) == target.block_law(4)
    assert sampled.calls == 4
    assert committed_per_call(JointSpeculation(target, draft, gamma, 2, 0), "greedy") == gamma + 1


@settings(max_examples=40, deadline=None)
@given(pairs(zeros=False), st.integers(1, 3), st.sampled_from(TAUS))
def test_the_stationary_rate_is_that_of_the_chain_of_round_starts(pair, gamma, tau):
    target, _ = pair
    speculation = JointSpeculation(*pair, gamma, 2, tau)
    prefixes = [next(iter(speculation.accepted_prefixes(c, c))) for c in range(target.vocab)]
    last = [prefix[-1] if prefix else c for c, prefix in enumerate(prefixes)]
    chain = np.array([[float(p) for p in target.table[c]] for c in last])
    starts = np.linalg.matrix_power(chain, 2000)[0]
    rate = committed_per_call(speculation, "sample")
    assert isinstance(rate, Q)
    assert float(rate) == pytest.approx(sum(starts * [len(prefix) + 1 for prefix in prefixes]), abs=1e-12)


def test_sampled_beams_mix_the_laws_of_their_blocks():
    target, draft = M1
    speculation = JointSpeculation(target, draft, 2, 2, "1/2", beam="sampled")
    expected: dict[tuple[int, ...], Q] = {}
    for block, mass in beam_sampling_law(draft, 2, 2).items():
        kept = block[: accepted_length(target.prefix_joints(block), draft.prefix_joints(block), Q(1, 2))]
        expected[kept] = expected.get(kept, 0) + mass
    assert speculation.accepted_prefixes(0, 0) == expected
    assert sum(mjsd(speculation, 3, "greedy").law.values()) == 1
    one_wide = JointSpeculation(target, draft, 2, 1, 0, beam="sampled")
    first_two: dict[tuple[int, ...], Q] = {}
    for text, mass in mjsd(one_wide, 3, "sample").law.items():
        first_two[text[:2]] = first_two.get(text[:2], 0) + mass
    assert first_two == draft.block_law(2)


def test_prefix_trees_decode_like_the_markov_chain_they_unroll():
    def unrolled(model: ContextModel) -> ContextModel:
        prefixes = [w for depth in range(6) for w in product(range(3), repeat=depth)]
        return ContextModel.tree({w: model.table[w[-1] if w else 0] for w in prefixes})

    chain, unfolded = (JointSpeculation(*models, 2, 3, "1/2") for models in (M2, tuple(map(unrolled, M2))))
    for mode in ("greedy", "sample"):
        assert mjsd(chain, 4, mode).law == mjsd(unfolded, 4, mode).law
        assert mjsd(chain, 4, mode).calls == mjsd(unfolded, 4, mode).calls
    assert speculative_sampling(*M2, 2, 4).calls == speculative_sampling(*map(unrolled, M2), 2, 4).calls


# ---- guarantees ---------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(pairs(), st.integers(1, 3), st.fractions(Q(1, 10), Q(9, 10), max_denominator=10), st.booleans())
def test_the_guarantees_hold_on_random_models(pair, gamma, tau, wide):
    width = pair[0].vocab ** gamma if wide else 1
    speculation = JointSpeculation(*pair, gamma, width, tau)
    block = beam_block(pair[1], gamma, width)
    found = round_guarantees(speculation, block)
    assert all(guarantee.slack >= 0 for guarantee in found)
    accepted = len(next(iter(speculation.accepted_prefixes(0, 0))))
    names = [guarantee.name for guarantee in found]
    assert names[: 1 + wide] == ([] if accepted == 0 else ["G1", "G2"][: 1 + wide])
    assert ("G3" in names) >= (wide and accepted == gamma)


def test_the_full_block_guarantees_are_attained():
    same = ContextModel.markov([["1/2", "1/2"]] * 2)
    half = ContextModel.markov([["1/4", "3/4"]] * 2)
    by_name = {g.name: g.slack for g in round_guarantees(JointSpeculation(half, same, 1, 2, "1/2"), (0,))}
    assert by_name == {"G1": 0, "G2": 0, "G3": 0, "G4": 0, "G5": 0}


def test_the_guarantee_for_an_intermediate_prefix_is_false():
    target = ContextModel.markov_with_start_row([["1/2", "1/2"], ["1/2", "1/2"]], ["3/4", "1/4"])
    draft = ContextModel.markov_with_start_row([["1/2", "1/2"], ["1", "0"]], ["3/5", "2/5"])
    speculation = JointSpeculation(target, draft, 2, 4, "1/2")
    block = beam_block(draft, 2, 4)
    assert block == (1, 0)
    assert next(iter(speculation.accepted_prefixes(target.start, draft.start))) == (1,)
    assert intermediate_prefix_slack(speculation, block) == Q(1, 4) - Q(3, 10) < 0
    assert [(g.name, g.slack) for g in round_guarantees(speculation, block)] == [("G1", Q(1, 20)), ("G2", Q(1, 20))]


def test_the_guarantees_reject_a_block_below_the_threshold_that_is_accepted_anyway(monkeypatch):
    speculation = JointSpeculation(*M1, 3, 27, "1/2")
    block = beam_block(M1[1], 3, 27)
    assert all(guarantee.slack >= 0 for guarantee in round_guarantees(speculation, block))
    monkeypatch.setattr("specbound.theory.joint_decoding.guarantees.accepted_length", lambda *_: 3)
    broken = {guarantee.name: guarantee.slack for guarantee in round_guarantees(speculation, block)}
    assert broken["G1"] < 0
    assert broken["G2"] < 0


@settings(max_examples=60, deadline=None)
@given(pairs(), st.integers(1, 3))
def test_a_larger_tau_never_accepts_more_of_one_block(pair, gamma):
    block = beam_block(pair[1], gamma, 2)
    joints = pair[0].prefix_joints(block), pair[1].prefix_joints(block)
    accepted = [accepted_length(*joints, Q(tau)) for tau in TAUS]
    assert accepted == sorted(accepted, reverse=True)
    assert (accepted[0], accepted[-1]) == (gamma, 0)


def test_perplexity_is_not_monotone_in_tau_and_can_beat_plain_sampling():
    wide = [mjsd(JointSpeculation(*M2, 3, 27, tau), 6, "greedy").mean_perplexity for tau in ("1/2", "7/10", "9/10")]
    assert wide[0] < wide[1] > wide[2]
    plain, seeking = (mjsd(JointSpeculation(*M1, 3, 1, tau), 6, "sample").perplexity_of_mean for tau in ("1", "7/10"))
    assert seeking < plain


# ---- perplexity, temperature, errors ------------------------------------------------------------------------------


def test_perplexities_of_a_law_are_those_of_its_outputs():
    coin = ContextModel.markov([["1/4", "3/4"]] * 2)
    mixed = DecodingLaw({(0, 0): Q(1, 2), (1, 1): Q(1, 2)}, Q(2), coin)
    assert mixed.perplexity_of_mean == pytest.approx(math.sqrt(4 * Q(4, 3)), abs=1e-12)
    assert mixed.mean_perplexity == pytest.approx(float((4 + Q(4, 3)) / 2), abs=1e-12)
    impossible = DecodingLaw({(0,): Q(1)}, Q(1), ContextModel.markov([[0, 1]] * 2))
    assert impossible.mean_perplexity == impossible.perplexity_of_mean == math.inf
    assert DecodingLaw({(): Q(1)}, Q(0), coin).mean_perplexity == 1
    with pytest.raises(ValueError, match="the law has 2 outputs"):
        mixed.tokens  # noqa: B018


def test_temperature_sharpens_rows_and_zero_is_the_argmax():
    model = ContextModel.markov([["1/4", "3/4"], ["1/2", "1/2"]])
    assert model.tempered(1) is model
    assert model.tempered(0).table == ((0, 1), (1, 0))
    assert model.tempered(Q(1, 2)).table[0] == pytest.approx((1 / 10, 9 / 10))
    assert ContextModel.markov([[1e-300, 1.0]] * 2).tempered(0.01).table[0] == (0.0, 1.0)
    greedy_target = speculative_sampling(model, M_UNIFORM, 2, 4, temperature=0)
    assert greedy_target.tokens == greedy(model, 4)


M_UNIFORM = ContextModel.markov([["1/2", "1/2"]] * 2)


def test_floats_are_kept_as_floats():
    floating = ContextModel.markov([[0.1, 0.4, 0.5], [0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    law = mjsd(JointSpeculation(floating, M1[1], 3, 2, 0.5), 6, "sample")
    assert isinstance(law.calls, float)
    assert law.calls == pytest.approx(3.697, abs=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: ContextModel.markov([["1/2", "1/4"], [1, 0]]), r"rows\[0\] sums to 3/4"),
        (lambda: ContextModel.markov([[1, 0]]), "1 rows for 2 tokens"),
        (lambda: ContextModel.markov([[1, 0], [0, 1]], start=2), "start is 2; want at most 1"),
        (lambda: ContextModel.tree({(0,): [1]}), "no row for the empty prefix"),
        (
            lambda: ContextModel.tree({(): ["1/2", "1/2"], (1,): [1, 0]}),
            "2 prefixes; want a row for each of the 3 words",
        ),
        (lambda: M_UNIFORM.tempered(-1), "temperature is -1; want at least 0"),
        (lambda: M_UNIFORM.tempered(math.nan), "temperature is nan"),
        (lambda: joint_greedy(M_UNIFORM, 3, 0), "window is 0; want at least 1"),
        (lambda: greedy(M_UNIFORM, -1), "length is -1"),
        (lambda: beam_block(M_UNIFORM, 2, 0), "width is 0; want at least 1"),
        (lambda: beam_sampling_law(M_UNIFORM, 2, 0), "width is 0; want at least 1"),
        (lambda: JointSpeculation(M_UNIFORM, M1[1], 2, 1, 0.5), "draft has 3 tokens and target 2"),
        (lambda: JointSpeculation(*M1, 0, 1, 0.5), "draft_length is 0; want at least 1"),
        (lambda: JointSpeculation(*M1, 2, 0, 0.5), "width is 0; want at least 1"),
        (lambda: JointSpeculation(*M1, 2, 1, math.inf), "tau is inf"),
        (lambda: JointSpeculation(*M1, 2, 1, 0.5, beam="wide"), "beam is 'wide'"),
        (lambda: mjsd(JointSpeculation(*M1, 2, 1, 0.5), 3, "fast"), "mode is 'fast'"),
        (lambda: speculative_sampling(M_UNIFORM, M1[1], 2, 3), "draft has 3 tokens and target 2"),
        (lambda: round_guarantees(JointSpeculation(*M1, 2, 1, 1), (0, 0)), "tau is 1; want 0 < tau < 1"),
        (lambda: round_guarantees(JointSpeculation(*M1, 2, 1, "1/2"), (0,)), "block has 1 tokens"),
        (
            lambda: committed_per_call(
                JointSpeculation(ContextModel.markov([["0", "1/2", "1/2"], [0, 1, 0], [0, 0, 1]]), M1[1], 1, 1, 1),
                "sample",
            ),
            "several closed classes",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_lengths_of_zero_need_no_call():
    empty = mjsd(replace(JointSpeculation(*M1, 2, 1, "1/2")), 0, "sample")
    assert (dict(empty.law), empty.calls) == ({(): 1}, 0)
    assert greedy(M1[0], 0) == ()
    assert speculative_sampling(*M1, 2, 0).calls == 0
