"""Draft-length decisions: every optimum against a second route, and every published or proved condition.

Two-context instances A-F and the printed values beside them were worked out by hand-checked enumeration before this
code existed; a row of an instance is the law after token 0, then after token 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction as Q
from itertools import product
from pathlib import Path

import cvxpy as cp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbound.theory.stopping import (
    StoppingInstance,
    StoppingSolution,
    best_by_enumeration,
    best_of,
    certified_stop_share,
    checked_conditions,
    constant_length,
    constant_length_rates,
    continuation_gain,
    evaluate,
    evaluate_horizon,
    free_token_value_bounds,
    free_token_values,
    gain_functions,
    global_threshold_is_optimal,
    horizon_by_enumeration,
    occupancy_problem,
    one_step_gain_suffices,
    one_step_rule,
    optimality_residual,
    plan_horizon,
    rejection_threshold,
    round_quantities,
    solve,
    solve_by_dinkelbach,
    solve_by_lp,
    solve_report,
    stop_by_remaining_cap,
    stop_thresholds,
    theorem_3_1,
    theorem_threshold,
    threshold_beats_constant,
    threshold_rates,
    thresholds_are_optimal,
    worst_stop,
)
from specbound.theory.stopping import leaves as leaves_route
from specbound.theory.stopping.optimum import evaluate_connected, optimal_rule
from specbound.theory.stopping.rounds import DraftState, Rule, drafted_states
from tests.support.strategies import row

MODELS = {
    "A": ("3/4 1/4 | 1/3 2/3", "1/2 1/2 | 2/3 1/3", 10),
    "B": ("1/4 3/4 | 1/4 3/4", "1/4 3/4 | 1 0", 4),
    "B8": ("1/4 3/4 | 1/4 3/4", "1/4 3/4 | 1 0", 8),
    "C": ("1/4 3/4 | 3/4 1/4", "0 1 | 3/4 1/4", 4),
    "D": ("1/2 1/4 1/4 | 1/4 1/2 1/4 | 1/3 1/3 1/3", "1/4 1/2 1/4 | 1/2 1/4 1/4 | 1/3 1/2 1/6", 8),
    "E": ("4/5 1/5 | 1/5 4/5", "0 1 | 4/5 1/5", 20),
    "E2": ("1/5 4/5 | 1/10 9/10", "9/10 1/10 | 3/5 2/5", 20),
    "F": ("1/10 9/10 | 1/2 1/2", "1/10 9/10 | 1 0", 2),
}
BOTH = ("token", "block")


def instance(name: str, cap: int, verifier: str, forced: int = 0) -> StoppingInstance:
    target, draft, time = MODELS[name]
    rows = [[line.split() for line in text.split("|")] for text in (target, draft)]
    return StoppingInstance(*rows, time, 1, cap, forced, verifier)  # type: ignore[arg-type]


def fractions(text: str) -> list[Q]:
    return [Q(item) for item in text.split(",")]


# name, K, verifier: eta; Gamma; constant lengths 0..K; best threshold "theta rate"
REFERENCE = [
    (
        ("A", 4, "token"),
        "3942113/19104560",
        "2497580/563159,3038080/563159",
        "1/10,161/1034,77/416,2737/13768,67211/330848",
        "1/2,3942113/19104560",
    ),
    (
        ("A", 4, "block"),
        "830483/3567008",
        "3348032/830483,3858976/830483",
        "1/10,161/1034,2933/15264,19715/91312,2486171/10746720",
        "3/4,830483/3567008",
    ),
    (("A", 6, "token"), "760625303/3595898384", None, None, None),
    (("A", 6, "block"), "9228917999/36303438832", None, None, None),
    (("B", 4, "token"), "341/1109", "344/341,4", None, "0,1361/5189"),
    (("B", 4, "block"), "341/1109", "344/341,4", None, "0,1361/5189"),
    (("B8", 4, "token"), "341/2133", None, None, "3/4,15227/103296"),
    (("B8", 4, "block"), "341/2133", None, None, "3/4,15227/103296"),
    (("C", 4, "token"), "34955/71664", None, None, "7/16,175901/365568"),
    (("C", 4, "block"), "34955/71664", None, None, "7/16,175901/365568"),
    (("D", 3, "token"), "191147/739858", None, "1/8,209/1062,3399/14360,4427/17224", "1/2,191147/739858"),
    (("D", 3, "block"), "1616835/5952416", None, "1/8,209/1062,33/136,14957/55136", "2/3,1616835/5952416"),
    (("E", 6, "token"), "97654/1533185", None, None, "4/5,158990918/2512292725"),
    (("E", 6, "block"), "2441229/35673385", None, None, "4/5,2118991/31198450"),
    (("E2", 6, "token"), "3626554500/43250272921", None, None, "7/9,3626554500/43250272921"),
    (("E2", 6, "block"), "14291441651/159629080329", None, None, "77/81,14291441651/159629080329"),
    (("F", 3, "token"), "7777/12779", "1112/1111,2", None, None),
]
BEST_CONSTANT = [
    ("B", 4, "token", 1, "17/65"),
    ("B8", 4, "token", 2, "381/2440"),
    ("C", 4, "token", 4, "175901/365568"),
    ("E", 6, "token", 2, "398/6325"),
    ("E", 6, "block", 3, "41224/623875"),
    ("E2", 6, "token", 3, "681861/8579000"),
    ("E2", 6, "block", 4, "85186647/1002620000"),
]


@pytest.mark.parametrize("key, eta, gamma, constants, threshold", REFERENCE, ids=lambda v: str(v)[:24])
def test_reference_optima_and_rules_are_reproduced_as_fractions(key, eta, gamma, constants, threshold):
    problem = instance(*key)
    solution = solve(problem)
    assert solution.eta == Q(eta)
    assert solution.residual == 0
    if gamma:
        assert list(solution.gamma) == fractions(gamma)
    if constants:
        assert constant_length_rates(problem) == dict(enumerate(fractions(constants)))
    if threshold:
        assert best_of(threshold_rates(problem)) == tuple(fractions(threshold))


@pytest.mark.parametrize("name, cap, verifier, length, rate", BEST_CONSTANT)
def test_reference_best_constant_lengths_are_reproduced(name, cap, verifier, length, rate):
    assert best_of(constant_length_rates(instance(name, cap, verifier))) == (length, Q(rate))


@pytest.mark.parametrize("key", [case[0] for case in REFERENCE], ids=str)
def test_policy_iteration_dinkelbach_and_the_occupancy_lp_agree(key):
    problem = instance(*key)
    eta = solve(problem).eta
    assert solve_by_dinkelbach(problem).eta == eta
    assert solve_by_lp(problem) == pytest.approx(float(eta), abs=1e-12)


@pytest.mark.parametrize("forced", [0, 1, 2])
@pytest.mark.parametrize("name", ["A", "B", "C", "E", "F"])
@pytest.mark.parametrize("verifier", BOTH)
def test_the_optimum_beats_every_combination_of_stopping_trees(name, verifier, forced):
    problem = instance(name, 3, verifier, forced)
    best = best_by_enumeration(problem)
    assert solve(problem).eta == best.eta
    assert solve_by_dinkelbach(problem).eta == best.eta
    assert solve_by_lp(problem) == pytest.approx(float(best.eta), abs=1e-12)


def test_the_round_of_instance_a_has_the_reference_tokens_time_and_next_start():
    solution = solve(instance("A", 4, "token"))
    rounds = evaluate(solution.instance, solution.rule).rounds
    assert [r.tokens for r in rounds] == fractions("2419/864,3341/1296")
    assert [r.time for r in rounds] == fractions("235/18,235/18")
    assert [r.next_start[0] for r in rounds] == fractions("223/324,2657/7776")


def leaves_of(problem: StoppingInstance, start: int, rule: Rule) -> list[tuple[int, ...]]:
    """The blocks a rule sends to the target, by walking tokens (Markov instances)."""
    leaves, pending = [], [((), DraftState(0, start, problem.one, problem.one))]
    while pending:
        block, state = pending.pop()
        if state.depth < problem.max_length and (state.depth < problem.min_length or rule(state)):
            for after, _, ratio in problem.branches[state.context]:
                rho = problem.next_rho(state.rho, ratio)
                pending.append(((*block, after), DraftState(state.depth + 1, after, rho, state.rho)))
        else:
            leaves.append(block)
    return leaves


def test_instance_a_stops_early_exactly_at_the_reference_leaves():
    solution = solve(instance("A", 4, "token"))
    early = [
        sorted("".join(map(str, leaf)) for leaf in leaves_of(solution.instance, s, solution.rule) if len(leaf) < 4)
        for s in (0, 1)
    ]
    assert early == [["010", "10", "110"], ["001", "01", "101"]]
    assert solution.sufficient_threshold == Q(2474921, 3038080)


@pytest.mark.parametrize(
    "name, cap, verifier, theta, rate",
    [
        ("A", 4, "token", "1/2", "1388933/6774512"),
        ("B8", 4, "token", "0", "923/5880"),
    ],
)
def test_the_public_codes_late_test_has_the_reference_rate(name, cap, verifier, theta, rate):
    assert best_of(threshold_rates(instance(name, cap, verifier), lag=1)) == (Q(theta), Q(rate))


def test_instance_b_needs_different_decisions_at_the_same_rejection_probability():
    solution = solve(instance("B", 4, "token"))
    assert solution.delta == 0
    assert all(context == 0 for _, context, _ in solution.continue_states[0])
    assert (0, 0, Q(1)) in solution.continue_states[0]
    assert not solution.continue_states[1]
    assert 1 - best_of(constant_length_rates(solution.instance))[1] / solution.eta == pytest.approx(0.149, abs=1e-3)
    assert float(solution.eta) / float(Q(1361, 5189)) - 1 == pytest.approx(0.172, abs=1e-3)


def test_one_step_look_ahead_loses_a_fifth_on_instance_c():
    solution = solve(instance("C", 4, "token"))
    short_sighted = evaluate(solution.instance, one_step_rule(solution.instance, solution.gamma))
    assert short_sighted.eta == Q(341, 854)
    assert 1 - short_sighted.eta / solution.eta == pytest.approx(Q(181, 1000), abs=1e-3)
    at_depth_3 = {(context, rho) for depth, context, rho in solution.continue_states[0] if depth == 3}
    assert (1, Q(9, 16)) in at_depth_3
    assert (0, Q(1)) not in at_depth_3


@pytest.mark.parametrize(
    "name, start, contexts, rho, gain",
    [
        ("E", 1, (0, 1), Q(1, 20), 0.28715),
        ("E2", 0, (0, 0), Q(4, 81), 0.18939),
    ],
)
def test_theorem_3_1_fails_for_block_verification_at_the_reference_node(name, start, contexts, rho, gain):
    problem = instance(name, 6, "block")
    solution = solve(problem)
    witness = worst_stop(problem, solution.gamma, solution.sufficient_threshold)
    assert (witness.start, witness.state.context, witness.state.depth) == (start, contexts[-1], 2)
    assert witness.state.rho == rho
    assert float(witness.gain) == pytest.approx(gain, abs=5e-6)
    assert not theorem_3_1(problem, solution.gamma).holds
    assert not theorem_3_1(problem, solution.gamma, delta=Q(0)).holds
    assert (witness.state.depth, witness.state.context, rho) in solution.continue_states[0] or name == "E"
    assert stop_by_remaining_cap(problem, solution.gamma).holds


def test_rho_recovers_along_the_path_of_instance_e_under_block_verification():
    problem = instance("E", 6, "block")
    context, rho, path = 1, Q(1), []
    for token in (0, 1, 1, 1, 1):
        rho = problem.next_rho(rho, problem.target[context][token] / problem.draft[context][token])
        context = token
        path.append(rho)
    assert path == [Q(1, 4), Q(1, 20), Q(1, 5), Q(4, 5), Q(1)]


def test_a_forced_minimum_makes_delta_positive_and_the_zero_delta_theorem_false():
    free, forced = solve(instance("F", 3, "token")), solve(instance("F", 3, "token", 1))
    assert free.delta == 0
    assert forced.eta == Q(77455, 141146)
    assert list(forced.gamma) == fractions("11071/22130,56581/22130")
    assert forced.delta == Q(12321, 22130)
    assert forced.sufficient_threshold == theorem_threshold(forced.instance, forced.delta) == Q(34451, 56581)
    gain = continuation_gain(forced.instance, forced.gamma)
    assert gain(0, Q(1, 2), 2) == Q(8547, 44260)
    assert theorem_threshold(forced.instance, Q(0)) == Q(1, 2)
    assert all(depth >= 1 for states in forced.continue_states for depth, _, _ in states)
    assert theorem_3_1(forced.instance, forced.gamma).holds
    assert not theorem_3_1(forced.instance, forced.gamma, delta=Q(0)).holds
    witness = worst_stop(forced.instance, forced.gamma, Q(1, 2))
    assert (witness.start, witness.state.context, witness.state.rho) == (1, 0, Q(1, 2))
    assert witness.gain == Q(8547, 44260)


# name, verifier: eta(K=14); Gamma; R*(0), R*(1); theorem's threshold; c2/(c1+c2)
LONG_CAP = [
    ("A", "token", ".21325478", "4.23549 5.29420", ".7094 .6852", ".8111", ".9"),
    ("A", "block", ".28227989", "3.27725 3.89636", ".8464 .8544", ".7434", ".9"),
    ("B", "token", ".30769231", "1 4", ".6923 .0000", ".75", ".75"),
    ("B", "block", ".30769231", "1 4", ".6923 .0000", ".75", ".75"),
    ("E", "token", ".06369427", "18 13.4", ".6269 .8408", ".9444", ".95"),
    ("E", "block", ".06843690", "15.28 13.944", ".7493 .9608", ".9346", ".95"),
    ("E2", "token", ".08398336", "15.8199 11.4180", ".7811 .8374", ".9368", ".95"),
    ("E2", "block", ".09024718", "14.4020 10.6655", ".9636 .9640", ".9306", ".95"),
]


def agrees(value: object, printed: str) -> bool:
    """True if `value` rounds to the printed decimal."""
    digits = len(printed.partition(".")[2])
    return abs(float(value) - float(printed)) <= 0.5000001 * 10**-digits  # type: ignore[arg-type]


@pytest.mark.parametrize("name, verifier, eta, gamma, thresholds, sufficient, simple", LONG_CAP)
def test_thresholds_per_context_for_long_drafts(name, verifier, eta, gamma, thresholds, sufficient, simple):
    problem = instance(name, 14, verifier)
    floating = replace(problem, target_time=float(problem.target_time))
    solution = solve(floating)
    table = stop_thresholds(floating, solution.gamma)
    assert agrees(solution.eta, eta)
    digits = 5 if name == "A" else 4
    for value, printed in zip(solution.gamma, gamma.split(), strict=True):
        assert agrees(value, printed) if "." in printed else round(value, digits) == float(printed)
    assert all(agrees(table[c, 14], printed) for c, printed in enumerate(thresholds.split()))
    assert agrees(solution.sufficient_threshold, sufficient)
    assert agrees(theorem_threshold(floating, 0.0), simple)
    exceeded = any(float(table[c, 14]) > solution.sufficient_threshold + 1e-9 for c in (0, 1))
    assert exceeded == (verifier == "block" and name != "B")


def test_instance_b_tends_to_four_thirteenths_as_drafts_grow():
    problem = replace(instance("B", 14, "token"), max_length=40)
    assert abs(solve(problem).eta - Q(4, 13)) < Q(1, 10**20)


HORIZONS = [
    ("A", "token", 1, "10,10"),
    ("A", "token", 2, "27/2,43/3"),
    ("A", "token", 3, "419/24,337/18"),
    ("A", "token", 4, "6271/288,5033/216"),
    ("A", "block", 3, "133/8,161/9"),
    ("A", "block", 4, "5767/288,4565/216"),
    ("B", "token", 1, "4,4"),
    ("B", "token", 2, "5,8"),
    ("B", "token", 3, "33/4,45/4"),
    ("B", "token", 4, "23/2,29/2"),
    ("E", "token", 1, "20,20"),
    ("E", "token", 2, "37,33"),
    ("E", "token", 3, "54,237/5"),
    ("E", "token", 4, "1766/25,1554/25"),
    ("E", "block", 3, "258/5,237/5"),
    ("E", "block", 4, "1651/25,1554/25"),
    ("A", "token", 6, "1327415/41472,347947/10368"),
    ("A", "block", 6, "136811/4608,317155/10368"),
    ("B", "token", 6, "4611/256,21"),
    ("E", "token", 6, "64378/625,57882/625"),
    ("E", "block", 6, "59467/625,11446/125"),
]


@pytest.mark.parametrize("name, verifier, tokens, times", HORIZONS)
def test_finite_horizons_have_the_reference_times(name, verifier, tokens, times):
    plan = plan_horizon(instance(name, 4, verifier), tokens)
    assert list(plan.time[tokens]) == fractions(times)
    assert plan.cost_identity_residual() == 0


def test_finite_horizons_have_the_reference_calls_and_discarded_drafts():
    plan = plan_horizon(instance("A", 4, "token"), 6)
    assert list(plan.calls[6]) == fractions("216997/82944,18955/6912")
    assert list(plan.discarded[6]) == fractions("204193/82944,59693/20736")
    plan = plan_horizon(instance("B", 4, "token"), 6)
    assert list(plan.calls[6]) == fractions("1025/256,5")
    assert list(plan.discarded[6]) == [0, 0]


@pytest.mark.parametrize("name", ["A", "B", "E"])
@pytest.mark.parametrize("verifier", BOTH)
def test_finite_horizons_beat_every_stopping_tree_leaf_by_leaf(name, verifier):
    problem = instance(name, 4, verifier)
    assert [list(times) for times in plan_horizon(problem, 4).time] == horizon_by_enumeration(problem, 4)


@pytest.mark.parametrize("verifier, slope", [("token", 4.8462740667), ("block", 4.2951005620)])
def test_the_horizon_settles_to_the_long_run_rate(verifier, slope):
    problem = instance("A", 4, verifier)
    solution = solve(problem)
    plan = plan_horizon(replace(problem, target_time=10.0), 200)
    assert plan.time[200][0] - plan.time[199][0] == pytest.approx(slope, abs=5e-11)
    assert 1 / float(solution.eta) == pytest.approx(slope, abs=5e-11)
    difference = plan.time[200][1] - plan.time[200][0]
    assert difference == pytest.approx(float(-(solution.bias[1] - solution.bias[0]) / solution.eta), abs=1e-9)


def test_never_drafting_past_the_remaining_tokens_costs_nothing():
    problem = instance("A", 4, "token")
    capped, longer = plan_horizon(problem, 4), plan_horizon(replace(problem, max_length=9), 4)
    assert capped.time == longer.time


def heap_tree(verifier: str) -> tuple[StoppingInstance, list[int]]:
    """The five-token binary tree whose node n has children 2n, 2n+1 and laws from n mod 7."""
    prefixes = [w for depth in range(5) for w in product((0, 1), repeat=depth)]
    heap = {w: int("1" + "".join(map(str, w)), 2) for w in prefixes}
    target = {w: [Q(3 * n % 7 + 1, 9), 1 - Q(3 * n % 7 + 1, 9)] for w, n in heap.items()}
    draft = {w: [Q(5 * n % 7 + 1, 9), 1 - Q(5 * n % 7 + 1, 9)] for w, n in heap.items()}
    problem = StoppingInstance.prefix_tree(target, draft, target_time=5, draft_time=1, max_length=4, verifier=verifier)
    return problem, list(heap.values())


@pytest.mark.parametrize(
    "verifier, best, constants, mixed",
    [
        ("token", "3331/243", "25,116761/6561,102965/6561,33038/2187,3415/243", {5: "1", 10: "1,2/5"}),
        ("block", "27971/2187", "25,116761/6561,101675/6561,10648/729,28181/2187", {10: "1,2/5"}),
    ],
)
def test_a_whole_prefix_tree_is_solved_with_nodes_as_contexts(verifier, best, constants, mixed):
    problem, heap = heap_tree(verifier)
    plan = plan_horizon(problem, 5)
    assert plan.time[5][0] == Q(best)
    assert plan.cost_identity_residual() == 0
    fixed = [evaluate_horizon(problem, 5, lambda n, depth, context, rho, k=k: depth < k).time[5][0] for k in range(5)]
    assert fixed == fractions(constants)
    remaining = [5 - (n.bit_length() - 1) for n in heap]
    values = [plan.free_token_value(left, c) for c, left in enumerate(remaining)]
    assert (min(values), max(values)) == (1, 5)
    states = [state for s, left in enumerate(remaining) for state in plan.continue_states[left][s]]
    went_on = {node: {rho for _, context, rho in states if heap[context] == node} for node in mixed}
    assert went_on == {node: set(fractions(rhos)) for node, rhos in mixed.items()}


# ---- random instances ---------------------------------------------------------------------------------------------


@st.composite
def problems(draw: st.DrawFn, vocab: int = 3, cap: int = 3, forced: bool = False) -> StoppingInstance:
    """Order-1 instances with zeros and one-hot rows; token 0 always possible, so that one closed class is sure."""
    v = draw(st.integers(2, vocab))
    target = [draw(row(v).filter(lambda law: law[0] > 0)) for _ in range(v)]
    drafts = [draw(row(v)) for _ in range(v)]
    longest = draw(st.integers(0, cap if v == 2 else min(cap, 2)))
    least = draw(st.integers(0, min(2, longest))) if forced else 0
    times = draw(st.integers(2, 20)), draw(st.sampled_from([Q(0), Q(1, 2), Q(1), Q(2)]))
    return StoppingInstance(target, drafts, *times, longest, least, draw(st.sampled_from(BOTH)))


@settings(max_examples=40, deadline=None)
@given(problems(forced=True))
def test_policy_iteration_is_dinkelbach_is_the_lp_is_enumeration(problem):
    solution = solve(problem)
    assert solution.residual == 0
    assert solve_by_dinkelbach(problem).eta == solution.eta
    assert solve_by_lp(problem) == pytest.approx(float(solution.eta), abs=1e-9)
    if problem.vocab == 2 or problem.max_length < 2:
        assert best_by_enumeration(problem).eta == solution.eta


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 3))
def test_round_quantities_are_those_of_the_leaves(problem, length):
    for rule in (constant_length(length), solve(problem).rule):
        for start in range(problem.contexts):
            leaves = leaves_of(problem, start, rule)
            assert round_quantities(problem, start, rule) == leaves_route.tree_round(problem, start, leaves)


@settings(max_examples=80, deadline=None)
@given(problems(cap=4))
def test_every_proved_condition_holds_on_random_instances(problem):
    solution = solve(problem)
    gamma = solution.gamma
    if problem.draft_time <= problem.target_time:
        assert free_token_value_bounds(solution).holds
    assert thresholds_are_optimal(problem, gamma).holds
    assert one_step_gain_suffices(problem, gamma).holds
    assert stop_by_remaining_cap(problem, gamma).holds
    if problem.verifier == "token":
        assert theorem_3_1(problem, gamma).holds
        assert theorem_3_1(problem, gamma, delta=problem.one - 1).holds
        assert worst_stop(problem, gamma, solution.sufficient_threshold) is None


@settings(max_examples=60, deadline=None)
@given(problems(cap=4, forced=True), st.integers(0, 4))
def test_theorem_3_1_holds_for_any_fixed_rule_under_token_verification(problem, length):
    problem = replace(problem, verifier="token")
    value = evaluate_connected(problem, constant_length(length))
    gamma = [g / value.eta for g in free_token_values(problem, value.bias)]
    assert theorem_3_1(problem, gamma).holds


@settings(max_examples=40, deadline=None)
@given(problems(cap=4))
def test_no_simple_rule_beats_the_optimum(problem):
    solution = solve(problem)
    rates = [
        *constant_length_rates(problem).values(),
        *threshold_rates(problem).values(),
        *threshold_rates(problem, lag=1).values(),
        evaluate(problem, one_step_rule(problem, solution.gamma)).eta,
    ]
    assert max(rates) <= solution.eta
    assert evaluate(problem, solution.rule).eta == solution.eta


@settings(max_examples=40, deadline=None)
@given(problems(cap=4, forced=True))
def test_families_of_rules_are_swept_as_they_would_be_evaluated_one_by_one(problem):
    for lag in (0, 1):
        for theta, rate in threshold_rates(problem, lag).items():
            assert rate == evaluate(problem, rejection_threshold(theta, lag)).eta
    for length, rate in constant_length_rates(problem).items():
        assert rate == evaluate(problem, constant_length(length)).eta


@settings(max_examples=40, deadline=None)
@given(problems(cap=4, forced=True), st.fractions(0, 1, max_denominator=50))
def test_the_gain_as_a_function_of_rho_is_the_gain_of_the_tree(problem, rho):
    gamma = [abs(value) for value in solve(problem).gamma]
    gain = continuation_gain(problem, gamma)
    thresholds = stop_thresholds(problem, gamma)
    assert {left for _, left in thresholds} == set(range(1, problem.max_length - problem.min_length + 1))
    for (context, left), function in gain_functions(problem, gamma).items():
        assert function(rho) == gain(context, rho, left)
        if (context, left) in thresholds:
            assert (1 - rho >= thresholds[context, left]) == (function(rho) <= 0)


@settings(max_examples=30, deadline=None)
@given(problems(cap=3, forced=True))
def test_horizon_plans_match_enumeration_and_the_cost_identity(problem):
    plan = plan_horizon(problem, 3)
    assert [list(times) for times in plan.time] == horizon_by_enumeration(problem, 3)
    assert plan.cost_identity_residual() == 0


@settings(max_examples=25, deadline=None)
@given(problems(cap=3))
def test_floats_give_the_exact_optimum_to_machine_precision(problem):
    floating = replace(problem, target_time=float(problem.target_time))
    assert not floating.exact
    assert solve(floating).eta == pytest.approx(float(solve(problem).eta), rel=1e-12)
    assert solve_by_dinkelbach(floating).eta == pytest.approx(float(solve(problem).eta), rel=1e-12)


@pytest.mark.parametrize("verifier", BOTH)
def test_a_global_threshold_loses_to_the_best_constant_length_on_instance_b8(verifier):
    problem = instance("B8", 4, verifier)
    assert threshold_beats_constant(problem).slack == Q(15227, 103296) - Q(381, 2440)
    assert not threshold_beats_constant(problem).holds
    loss = global_threshold_is_optimal(solve(problem))
    assert loss.slack == Q(15227, 103296) - Q(341, 2133)
    assert not loss.holds
    assert global_threshold_is_optimal(solve(instance("A", 4, verifier))).holds


def test_the_late_test_stops_one_token_later():
    constant = StoppingInstance([["9/10", "1/10"]] * 2, [[1, 0]] * 2, 10, 1, 12)
    prompt, late = (round_quantities(constant, 0, rejection_threshold(Q(3, 10), lag)).drafted for lag in (0, 1))
    assert (prompt, late) == (4, 5)


def test_theorem_3_1_explains_only_part_of_the_optimal_stops():
    assert certified_stop_share(solve(instance("A", 4, "token"))) == 0
    assert certified_stop_share(solve(instance("A", 4, "block"))) == 1
    share = certified_stop_share(solve(instance("E", 6, "token")))
    assert isinstance(share, Q)
    assert 0 < share < 1
    assert certified_stop_share(solve(instance("A", 0, "token"))) is None


# ---- broken twins: what each check must reject --------------------------------------------------------------------


def decides_by_the_gain(solution: StoppingSolution, rule: Rule) -> bool:
    """True if `rule` drafts on exactly where the gain is positive, at every node of the full tree."""
    problem = solution.instance
    gain = continuation_gain(problem, solution.gamma)
    return all(
        rule(state) == (gain(state.context, state.rho, problem.max_length - state.depth) > 0)
        for start in range(problem.contexts)
        for state, _ in drafted_states(problem, start, lambda _: True)
        if state.depth < problem.max_length
    )


def test_the_returned_rule_carries_no_stale_action_at_unreachable_nodes():
    problem = StoppingInstance(
        [["1/5", "4/5"], ["9/10", "1/10"]], [["1/10", "9/10"], ["2/5", "3/5"]], 4, 1, 4, verifier="block"
    )
    solution = solve(problem)
    rule = constant_length(0)
    while (value := evaluate_connected(problem, rule)).eta < solution.eta:
        gamma = [g / value.eta for g in free_token_values(problem, value.bias)]
        rule = optimal_rule(problem, gamma)
    assert evaluate(problem, rule).eta == solution.eta
    assert not decides_by_the_gain(solution, rule)
    assert decides_by_the_gain(solution, solution.rule)


@pytest.mark.parametrize("key", [("A", 4, "token"), ("E", 6, "block"), ("F", 3, "token", 1)], ids=str)
def test_the_certificate_rejects_free_token_values_of_any_other_rule(key):
    problem = instance(*key)
    gamma = list(solve(problem).gamma)
    assert optimality_residual(problem, gamma) == 0
    assert optimality_residual(problem, [gamma[0] + Q(1, 10**9), *gamma[1:]]) > 0
    shortest = evaluate(problem, constant_length(problem.min_length))
    assert optimality_residual(problem, [g / shortest.eta for g in free_token_values(problem, shortest.bias)]) > 0


def test_a_solution_without_a_certificate_is_refused(monkeypatch):
    monkeypatch.setattr("specbound.theory.stopping.optimum.optimality_residual", lambda *_: Q(1))
    with pytest.raises(RuntimeError, match="residual of 1 in the optimality equation"):
        solve(instance("A", 2, "token"))


def test_dinkelbachs_method_without_a_certificate_is_refused(monkeypatch):
    def only_the_inner_problem(problem, gamma, *surplus):
        return Q(0) if surplus else Q(1)

    monkeypatch.setattr("specbound.theory.stopping.optimum.optimality_residual", only_the_inner_problem)
    with pytest.raises(RuntimeError, match="Dinkelbach's method left a residual of 1"):
        solve_by_dinkelbach(instance("E", 0, "token"))


def test_a_horizon_plan_that_is_not_the_dps_is_refused(monkeypatch):
    monkeypatch.setattr("specbound.theory.stopping.horizon._Values.rule", lambda *_: False)
    with pytest.raises(RuntimeError, match="the plan's time differs from the DP's value"):
        plan_horizon(instance("A", 3, "token"), 3)


def test_t1_rejects_free_token_values_outside_its_bounds():
    solution = solve(instance("A", 4, "token"))
    assert free_token_value_bounds(solution).slack == min(solution.gamma) - 1
    assert free_token_value_bounds(replace(solution, gamma=(Q(1, 2), Q(3)))).slack == Q(-1, 2)
    assert free_token_value_bounds(replace(solution, gamma=(Q(3), Q(11)))).slack == -1


def test_the_leaf_route_rejects_block_verification_with_the_token_residual(monkeypatch):
    problem = instance("A", 2, "block")
    rule = constant_length(2)
    leaves = leaves_of(problem, 0, rule)
    right = leaves_route.tree_round(problem, 0, leaves)
    honest = leaves_route._residual
    monkeypatch.setattr(leaves_route, "_residual", lambda problem, context, scale: honest(problem, context, 1))
    assert right == round_quantities(problem, 0, rule) != leaves_route.tree_round(problem, 0, leaves)


def test_the_cost_identity_rejects_a_count_that_forgets_the_first_rejected_token():
    plan = plan_horizon(instance("A", 4, "token"), 4)
    forgetful = tuple(
        tuple(discarded - (0 if n < 2 else Q(1, 10)) for discarded in row) for n, row in enumerate(plan.discarded)
    )
    assert plan.cost_identity_residual() == 0
    assert replace(plan, discarded=forgetful).cost_identity_residual() > 0


def test_the_remaining_cap_in_t7_is_needed_under_block_verification():
    problem = instance("E", 6, "block")
    gamma = solve(problem).gamma
    largest = max(gamma)
    reach = problem.draft_time / largest
    gains = gain_functions(problem, gamma)
    assert stop_by_remaining_cap(problem, gamma).holds
    assert max(gain.largest_up_to(reach) for gain in gains.values()) > 0


def test_dropping_the_restart_law_from_the_lp_changes_its_value():
    problem = instance("A", 3, "token")
    program = occupancy_problem(problem)
    without_flow = cp.Problem(program.objective, program.constraints[1:])
    without_flow.solve(solver=cp.SCIPY)
    assert without_flow.value > float(solve(problem).eta) + 0.01


# ---- edges --------------------------------------------------------------------------------------------------------


def test_equal_models_draft_as_much_as_allowed_and_commit_all_of_it():
    same = [["1/2", "1/2"], ["1/4", "3/4"]]
    for verifier in BOTH:
        solution = solve(StoppingInstance(same, same, 10, 1, 5, verifier=verifier))
        assert solution.eta == Q(6, 15)


def test_disjoint_supports_never_draft():
    target, draft = [[0, 1, 0], [0, 0, 1], [0, 1, 0]], [[1, 0, 0]] * 3
    solution = solve(StoppingInstance(target, draft, 7, 1, 5))
    assert solution.eta == Q(1, 7)
    assert not any(solution.continue_states)


def test_drafting_dearer_than_the_target_never_drafts():
    assert solve(replace(instance("A", 3, "token"), draft_time=Q(11))).eta == Q(1, 10)


def test_one_token_is_drafted_to_the_cap():
    solution = solve(StoppingInstance([[1]], [[1]], 4, 1, 6))
    assert solution.eta == Q(7, 10)
    assert solve(StoppingInstance([[1]], [[1]], 4, 1, 0)).eta == Q(1, 4)


def test_a_gain_that_is_zero_everywhere_stops_at_every_rejection_probability():
    problem = StoppingInstance([[0, 1], [0, 1]], [[1, 0], [1, 0]], 4, 0, 2)
    assert set(stop_thresholds(problem, solve(problem).gamma).values()) == {0}


def test_free_drafts_are_always_worth_taking():
    problem = replace(instance("A", 3, "token"), draft_time=Q(0))
    assert solve(problem).eta == constant_length_rates(problem)[3]


def test_caps_up_to_64_are_solved_exactly():
    problem = instance("B", 64, "token")
    solution = solve(problem)
    assert solution.residual == 0
    assert 0 < Q(4, 13) - solution.eta < Q(1, 10**35)
    assert solve(instance("A", 64, "token")).eta > solve(instance("A", 14, "token")).eta


def test_probabilities_of_1e_minus_300_are_survived():
    tiny = 1e-300
    for verifier in BOTH:
        problem = StoppingInstance([[0.5, 0.5]] * 2, [[1 - tiny, tiny]] * 2, 10.0, 1.0, 4, verifier=verifier)
        solution = solve(problem)
        assert solution.eta == pytest.approx(solve_by_lp(problem), abs=1e-9)


@pytest.mark.parametrize("verifier", BOTH)
def test_a_periodic_chain_whose_rounds_split_is_still_solved(verifier):
    flip = [[0, 1], [1, 0]]
    problem = StoppingInstance(flip, flip, 3, 1, 1, verifier=verifier)
    assert evaluate(problem, constant_length(1)).closed_classes == 2
    solution = solve(problem)
    assert solution.eta == Q(1, 2) == best_by_enumeration(problem).eta
    assert solve_by_dinkelbach(problem).eta == Q(1, 2)


def test_a_rule_whose_rounds_split_is_worth_its_best_closed_class():
    stay = [[1, 0], [0, 1]]
    for drafts in ([[1, 0], [1, 0]], [[0, 1], [0, 1]]):
        value = evaluate(StoppingInstance(stay, drafts, 3, 1, 1), constant_length(1))
        assert (value.eta, value.closed_classes) == (Q(1, 2), 2)
        assert value.best_class == {drafts[0].index(1)}


def test_a_target_with_two_closed_classes_is_refused_by_name():
    with pytest.raises(ValueError, match="2 closed classes"):
        solve(StoppingInstance([[1, 0], [0, 1]], [[1, 0], [0, 1]], 3, 1, 1))


def test_in_fractions_a_step_of_any_probability_connects_the_contexts():
    """The rates at 1e-13 and 1e-40 are those at 1e-6, up to terms of that order: in the limit, half of each context."""

    def problem(rare: Q) -> StoppingInstance:
        return StoppingInstance([[1 - rare, rare], [rare, 1 - rare]], [[Q(1, 2)] * 2, [Q(9, 10), Q(1, 10)]], 4, 1, 2)

    nearby = problem(Q(1, 10**6))
    for rare in (Q(1, 10**13), Q(1, 10**40)):
        found = problem(rare)
        assert evaluate(found, constant_length(1)).closed_classes == 1
        assert abs(solve(found).eta - solve(nearby).eta) < Q(1, 10**5)
        for rate, close in zip(
            constant_length_rates(found).values(), constant_length_rates(nearby).values(), strict=True
        ):
            assert abs(rate - close) < Q(1, 10**5)


def test_rounds_too_large_to_enumerate_are_refused_by_name(monkeypatch):
    monkeypatch.setattr("specbound.theory.stopping.rounds.STATE_LIMIT", 100)
    with pytest.raises(ValueError, match=r"max_length is 12.*more than 100 drafting states"):
        evaluate(instance("A", 12, "block"), constant_length(12))
    with pytest.raises(ValueError, match=r"max_length is 14: the occupancy LP has more than"):
        solve_by_lp(instance("A", 14, "token"))
    with pytest.raises(ValueError, match=r"max_length is 8: over 200,000 rules"):
        best_by_enumeration(instance("A", 8, "token"))


# ---- JSON and the report ------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[2] / "examples" / "stopping.json"


def test_the_shipped_example_is_instance_a_and_survives_a_round_trip():
    problem = StoppingInstance.from_json(EXAMPLE.read_text())
    assert problem == instance("A", 4, "block")
    assert StoppingInstance.from_json(problem.to_json()) == problem
    floating = replace(problem, draft_time=0.1)
    assert StoppingInstance.from_json(floating.to_json()) == floating
    tree, _ = heap_tree("token")
    assert StoppingInstance.from_json(tree.to_json()) == tree


def edited(**fields: object) -> str:
    document = {**json.loads(EXAMPLE.read_text()), **fields}
    return json.dumps({name: value for name, value in document.items() if value is not ...}, default=str)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"version": 2}, "version is 2; this release reads version 1"),
        ({"version": True}, "version is True"),
        ({"paths": 3}, "unknown field 'paths'"),
        ({"target": [["1/2", "1/2"]]}, "draft has 2 rows and target 1"),
        ({"target": []}, "target is empty"),
        ({"target": [["1/2", "1/4"], ["1/3", "2/3"]]}, r"target\[0\] sums to 3/4; want 1"),
        ({"target": [[0.5, 0.4], [0.5, 0.5]]}, r"target\[0\] sums to 0.9; want 1"),
        ({"draft": [["3/2", "-1/2"], ["1/3", "2/3"]]}, r"draft\[0\]\[1\] is -1/2; want a probability"),
        ({"draft": [["x", "1"], ["1/3", "2/3"]]}, r"draft\[0\]\[0\] is 'x'"),
        ({"draft": [[True, 0], ["1/3", "2/3"]]}, r"draft\[0\]\[0\] is True"),
        ({"draft": [["1"], ["1"]]}, r"draft\[0\] has 1 entries; want 2"),
        ({"target_time": 0}, "target_time is 0; want a positive time"),
        ({"target_time": float("nan")}, "target_time is nan; want a finite number"),
        ({"target_time": float("inf")}, "target_time is inf; want a finite number"),
        ({"draft_time": "-1/2"}, "draft_time is -1/2; want a time, at least 0"),
        ({"max_length": 2.5}, "max_length is 2.5; want an integer"),
        ({"max_length": -1}, "max_length is -1; want an integer, at least 0"),
        ({"min_length": 5}, "min_length is 5; want at most 4"),
        ({"verifier": "greedy"}, "verifier is 'greedy'"),
        ({"successor": [[0, 2], [0, 1]]}, r"successor\[0\]\[1\] is 2; want at most 1"),
        ({"successor": [[0, 1]]}, "successor has 1 rows; want 2"),
        ({"target": [["1", "0", "0"], ["1/3", "1/3", "1/3"]]}, r"draft\[0\] has 2 entries; want 3"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_a_bad_file_is_refused_with_the_field_and_its_value(fields, message):
    with pytest.raises(ValueError, match=message):
        StoppingInstance.from_json(edited(**fields))


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("[]", "JSON list; want an object"),
        (edited(target=...), "field 'target' is missing"),
        (edited(version=...), "field 'version' is missing"),
    ],
)
def test_a_file_of_another_shape_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        StoppingInstance.from_json(text)


def test_numbers_with_huge_exponents_are_refused_at_once():
    with pytest.raises(ValueError, match="target_time is '1e999999999999'"):
        StoppingInstance.from_json(edited(target_time="1e999999999999"))


@pytest.mark.parametrize("unit", [1e-12, 1.0, 2.0**63])
def test_the_lp_does_not_depend_on_the_unit_of_time(unit):
    instance = StoppingInstance([[0.25, 0.75]], [[0.5, 0.5]], 1.5 * unit, 0.1 * unit, 2, successor=[[0, 0]])
    assert solve_by_lp(instance) * unit == pytest.approx(float(solve(instance).eta) * unit, rel=1e-9)


def test_a_report_walks_through_each_family_of_rules_once(monkeypatch):
    from specbound.theory.stopping import rules

    walks = []
    walk = rules._family_rates
    monkeypatch.setattr(rules, "_family_rates", lambda *a: (walks.append(a[0]), walk(*a))[1])
    rules._rates_of.cache_clear()
    solve_report(StoppingInstance([[Q(1, 4), Q(3, 4)]], [[Q(1, 2), Q(1, 2)]], 7, 1, 4, successor=[[0, 0]]))
    assert len(walks) == 3, "constant lengths, thresholds, thresholds one token late"


def test_prefix_trees_must_be_whole():
    rows = {(): ["1/2", "1/2"], (0,): ["1/2", "1/2"]}
    with pytest.raises(ValueError, match=r"2 prefixes; want a row for each of the 3 words"):
        StoppingInstance.prefix_tree(rows, rows, target_time=2, draft_time=1, max_length=1)
    with pytest.raises(ValueError, match=r"draft has rows for 1 prefixes"):
        StoppingInstance.prefix_tree(rows, {(): ["1/2", "1/2"]}, target_time=2, draft_time=1, max_length=1)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rejection_threshold(Q(1), lag=2), "lag is 2"),
        (lambda: threshold_rates(instance("A", 2, "token"), lag=3), "lag is 3"),
        (lambda: theorem_threshold(instance("A", 2, "token"), Q(-10)), "delta is -10"),
        (lambda: stop_thresholds(instance("A", 2, "token"), [Q(-1), Q(2)]), "negative entry -1"),
        (lambda: thresholds_are_optimal(instance("A", 2, "token"), [Q(-1), Q(2)]), "negative entry -1"),
        (lambda: stop_by_remaining_cap(instance("A", 2, "token"), [Q(0), Q(0)]), "largest gamma is 0"),
        (lambda: free_token_value_bounds(solve(instance("F", 3, "token", 1))), "min_length is 1; want 0"),
        (
            lambda: free_token_value_bounds(solve(replace(instance("A", 2, "token"), draft_time=Q(11)))),
            "draft_time is 11",
        ),
        (lambda: plan_horizon(instance("A", 2, "token"), -1), "tokens is -1"),
        (lambda: plan_horizon(instance("A", 2, "token"), 3).free_token_value(4, 0), "remaining is 4"),
    ],
)
def test_arguments_out_of_range_are_refused(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_report_holds_the_optimum_every_rule_and_three_agreeing_solvers():
    report = json.loads(json.dumps(solve_report(StoppingInstance.from_json(EXAMPLE.read_text()))))
    assert report["eta"] == {"exact": "830483/3567008", "value": float(Q(830483, 3567008))}
    assert [entry["length"] for entry in report["constant_lengths"]] == [0, 1, 2, 3, 4]
    assert report["best_constant_length"]["length"] == 4
    assert report["best_threshold"]["theta"]["exact"] == "3/4"
    assert report["best_threshold"]["eta"]["share"] == 1
    assert report["best_lagged_threshold"]["eta"]["share"] < 1
    assert report["solvers"]["optimality_residual"] == 0
    assert report["solvers"]["dinkelbach_minus_policy_iteration"] == 0
    assert abs(report["solvers"]["lp_minus_policy_iteration"]) < 1e-12
    assert len(report["stop_thresholds"]) == 8
    assert [condition["name"] for condition in report["conditions"]] == ["T1", "T2", "T3", "T4", "T6", "T7", "T8"]


def test_the_report_says_what_it_left_out():
    long = solve_report(instance("A", 14, "token"))
    assert long["solvers"]["lp_minus_policy_iteration"] is None
    assert "more than 10,000 nodes" in long["solvers"]["lp_note"]
    forced = solve(instance("F", 3, "token", 1))
    assert "T1" not in [condition.name for condition in checked_conditions(forced)]
    floating = solve_report(replace(instance("A", 2, "token"), draft_time=0.5))
    assert floating["eta"]["exact"] is None
