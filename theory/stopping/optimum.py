"""The optimal stopping rule: most committed tokens per unit of time, with a certificate.

    maximise  eta = lim  committed tokens / time      over all stopping rules of all rounds.
Optimality equation, with N, T, M as in `rounds` and h(reference) = 0:
    h(s) = max over stopping trees  { N(s) - eta T(s) + sum_z M(s, z) h(z) }.
Free-token value G(y) = 1 + (p h)(y) - h(y); Gamma(y) = G(y) / eta is the time one more committed token is worth
in context y. The maximum over trees is a backward DP on (context, rho, remaining cap d):
    gain(y, rho, d) = -t_d + sum_z q(z|y) [rho_z Gamma(z) + c(z, rho_z, d-1)],    c = max(0, gain),  c(., ., 0) = 0,
drafting on iff the gain is positive, and the optimality equation reads Gamma(s) = t_T - c(s, 1, K).
Policy iteration evaluates a rule, takes Gamma from it and the DP rule from Gamma, until that equation holds; exact
in Fractions. Any eta, h with h(s) >= the right-hand side bound every rule's rate by eta, so a zero residual proves
optimality. Dinkelbach's method reaches the same eta by maximising N - eta T and raising eta to N / T.
Source: theory of [SpecDec++] arXiv:2405.19715 (section 3) as a semi-Markov decision problem (own derivation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..chains import closed_classes, solve_linear
from ..numbers import Number, magnitude
from .instance import StoppingInstance
from .rounds import Round, Rule, check_state_count, constant_length, drafted_states, round_quantities
from .rounds import continues as rule_continues

Gain: TypeAlias = Callable[[int, Number, int], Number]

FLOAT_TOLERANCE = 1e-9
_MAX_ITERATIONS = 200


@dataclass(frozen=True)
class RuleValue:
    """Long-run value of one rule.

    Attributes:
        eta: committed tokens per unit of time. If the rule splits the start contexts into several closed
            classes, the best class's value (`closed_classes` says how many there are).
        bias: h per context with h(0) = 0; empty when there are several closed classes.
        rounds: N, T, M per start context.
        best_class: the start contexts of the best closed class.
    """

    eta: Number
    bias: tuple[Number, ...]
    rounds: tuple[Round, ...]
    closed_classes: int
    best_class: frozenset[int]


@dataclass(frozen=True)
class StoppingSolution:
    """A certified optimum.

    Attributes:
        eta: optimal committed tokens per unit of time.
        gamma: Gamma per context, the time one more committed token is worth there.
        bias: h per context, h(0) = 0.
        continue_states: per start context, the reachable states (depth, context, rho) where drafting goes on by
            choice (forced ones, below min_length, left out).
        residual: max over s of |Gamma(s) - (t_T - c(s, 1, K))|, the certificate: 0 in Fractions.
        iterations: rule improvements made.
    """

    instance: StoppingInstance
    eta: Number
    gamma: tuple[Number, ...]
    bias: tuple[Number, ...]
    continue_states: tuple[frozenset[tuple[int, int, Number]], ...]
    residual: Number
    iterations: int
    solver: str

    @property
    def rule(self) -> Rule:
        """The optimal rule, as a function of the drafting state."""
        return optimal_rule(self.instance, self.gamma)

    @property
    def delta(self) -> Number:
        """Delta of SpecDec++'s Theorem 3.1 for the optimal policy: max Gamma - t_T."""
        return max(self.gamma) - self.instance.target_time

    @property
    def sufficient_threshold(self) -> Number:
        """(c2 + Delta) / (c1 + c2 + Delta) = 1 - t_d / max Gamma, with c1 = t_d, c2 = t_T - t_d."""
        return 1 - self.instance.draft_time / max(self.gamma)


def continuation_gain(instance: StoppingInstance, gamma: Sequence[Number]) -> Gain:
    """gain(y, rho, d): time gained by drafting one more token with at most d left, then going on optimally.

    For d >= 1; below min_length the maximum with 0 is dropped, since stopping is not allowed there.
    """
    forced_above = instance.max_length - instance.min_length
    zero = 0 * instance.one
    known: dict[tuple[int, Number, int], Number] = {}

    def best(context: int, rho: Number, left: int) -> Number:
        if left == 0:
            return zero
        value = gain(context, rho, left)
        return value if left > forced_above or value > 0 else zero

    def gain(context: int, rho: Number, left: int) -> Number:
        key = (context, rho, left)
        if key not in known:
            total = -instance.draft_time
            for after, draft, ratio in instance.branches[context]:
                rho_after = instance.next_rho(rho, ratio)
                total += draft * (rho_after * gamma[after] + best(after, rho_after, left - 1))
            known[key] = total
            check_state_count(len(known), instance)
        return known[key]

    return gain


def optimal_rule(instance: StoppingInstance, gamma: Sequence[Number]) -> Rule:
    """Draft on iff the continuation gain under the free-token values `gamma` is positive."""
    gain = continuation_gain(instance, gamma)
    return lambda state: gain(state.context, state.rho, instance.max_length - state.depth) > 0


def evaluate(instance: StoppingInstance, rule: Rule) -> RuleValue:
    """Committed tokens per unit of time under `rule`."""
    return evaluate_rounds(instance, [round_quantities(instance, s, rule) for s in range(instance.contexts)])


def evaluate_rounds(instance: StoppingInstance, rounds: Sequence[Round]) -> RuleValue:
    """Long-run value of one round per start context, with bias: h + eta T = N + M h, h(0) = 0."""
    classes = closed_classes([current.next_start for current in rounds])
    rates = [_solve_bias(rounds, members)[0] for members in classes]
    best = max(range(len(classes)), key=lambda i: rates[i])
    bias = tuple(_solve_bias(rounds, range(instance.contexts))[1]) if len(classes) == 1 else ()
    return RuleValue(rates[best], bias, tuple(rounds), len(classes), frozenset(classes[best]))


def _solve_bias(rounds: Sequence[Round], members: Sequence[int]) -> tuple[Number, list[Number]]:
    """eta and h on `members` (h = 0 at the first) from h + eta T = N + M h."""
    matrix: list[list[Number]] = []
    for s in members:
        row = [(1 if s == z else 0) - rounds[s].next_start[z] for z in members]
        matrix.append([rounds[s].time, *row[1:]])
    solved = solve_linear(matrix, [rounds[s].tokens for s in members])
    return solved[0], [0 * solved[0], *solved[1:]]


def evaluate_connected(instance: StoppingInstance, rule: Rule) -> RuleValue:
    """`evaluate`, after making the rule connect: outside its best closed class, stop as soon as allowed.

    Stopping at once commits one token per round, so starts walk along the target's own chain into that class.
    Raises ValueError when that does not connect them either (the optimum then depends on the start context).
    """
    value = evaluate(instance, rule)
    if value.closed_classes == 1:
        return value
    shortest = constant_length(instance.min_length)
    best = value.best_class
    connected = evaluate_rounds(
        instance,
        [value.rounds[s] if s in best else round_quantities(instance, s, shortest) for s in range(instance.contexts)],
    )
    if connected.closed_classes > 1:
        raise ValueError(
            f"target splits the start contexts into {connected.closed_classes} closed classes that rounds never "
            "leave; want one (solve each class as its own instance)"
        )
    return connected


def free_token_values(instance: StoppingInstance, bias: Sequence[Number]) -> tuple[Number, ...]:
    """G(y) = 1 + (p h)(y) - h(y) per context."""
    return tuple(1 + instance.expect_target(y, list(bias)) - bias[y] for y in range(instance.contexts))


def optimality_residual(instance: StoppingInstance, gamma: Sequence[Number], surplus: Number = 0) -> Number:
    """max over s of |Gamma(s) - surplus - (t_T - c(s, 1, K))|; 0 exactly at the optimum.

    `surplus` is the average reward of a round in time units, for Dinkelbach's inner problem (0 at the optimum).
    """
    gain = continuation_gain(instance, gamma)
    worst: Number = 0 * instance.one
    for s in range(instance.contexts):
        first = gain(s, instance.one, instance.max_length) if instance.max_length else 0 * instance.one
        best = first if instance.min_length or first > 0 else 0 * instance.one
        worst = max(worst, magnitude(gamma[s] - surplus - (instance.target_time - best)))
    return worst


def solve(instance: StoppingInstance) -> StoppingSolution:
    """The optimal stopping rule by policy iteration; exact when the instance is.

    Raises:
        ValueError: the target has several closed classes of contexts, or a round has too many states.
        RuntimeError: the optimality equation does not hold at the end (no certificate, so no answer).
    """
    rule = constant_length(instance.min_length)
    for iteration in range(_MAX_ITERATIONS):
        value = evaluate_connected(instance, rule)
        gamma = tuple(g / value.eta for g in free_token_values(instance, value.bias))
        residual = optimality_residual(instance, gamma)
        if residual <= _allowed_residual(instance):
            return _solution(instance, value.eta, gamma, value.bias, residual, iteration, "policy iteration")
        rule = optimal_rule(instance, gamma)
    raise RuntimeError(_not_certified("policy iteration", residual))


def solve_by_dinkelbach(instance: StoppingInstance) -> StoppingSolution:
    """The same optimum by Dinkelbach's method: maximise the average of N - eta T per round, set eta = N / T.

    The inner problem is an average-reward decision problem per round, solved by policy iteration with the same DP;
    eta grows until the best average reward is 0. Raises as `solve`.
    """
    rule = constant_length(instance.min_length)
    eta = evaluate_connected(instance, rule).eta
    for iteration in range(_MAX_ITERATIONS):
        value, gamma, bias = _best_average_reward(instance, eta, rule)
        if value.eta - eta <= (0 if instance.exact else FLOAT_TOLERANCE * eta):
            residual = optimality_residual(instance, gamma)
            if residual > _allowed_residual(instance):
                raise RuntimeError(_not_certified("Dinkelbach's method", residual))
            return _solution(instance, eta, gamma, bias, residual, iteration, "Dinkelbach")
        eta, rule = value.eta, optimal_rule(instance, gamma)
    raise RuntimeError(_not_certified("Dinkelbach's method", value.eta - eta))


def _best_average_reward(
    instance: StoppingInstance, eta: Number, rule: Rule
) -> tuple[RuleValue, tuple[Number, ...], tuple[Number, ...]]:
    """A rule maximising the average of N - eta T per round: its value, G / eta and bias."""
    for _ in range(_MAX_ITERATIONS):
        value = evaluate_connected(instance, rule)
        reward, bias = _average_reward(value.rounds, eta)
        gamma = tuple(g / eta for g in free_token_values(instance, bias))
        residual = optimality_residual(instance, gamma, reward / eta)
        if residual <= _allowed_residual(instance):
            return value, gamma, tuple(bias)
        rule = optimal_rule(instance, gamma)
    raise RuntimeError(_not_certified("the inner problem of Dinkelbach's method", residual))


def _average_reward(rounds: Sequence[Round], eta: Number) -> tuple[Number, list[Number]]:
    """g and h from h + g = N - eta T + M h, h(0) = 0: reward per round, not per unit of time."""
    unit = [Round(r.tokens - eta * r.time, r.time / r.time, r.next_start, r.drafted) for r in rounds]
    return _solve_bias(unit, range(len(unit)))


def _allowed_residual(instance: StoppingInstance) -> Number:
    return 0 if instance.exact else FLOAT_TOLERANCE * instance.target_time


def _not_certified(method: str, residual: Number) -> str:
    return (
        f"{method} left a residual of {float(residual):.3g} in the optimality equation; "
        "give the instance in exact fractions"
    )


def _solution(
    instance: StoppingInstance,
    eta: Number,
    gamma: tuple[Number, ...],
    bias: tuple[Number, ...],
    residual: Number,
    iterations: int,
    solver: str,
) -> StoppingSolution:
    rule = optimal_rule(instance, gamma)
    chosen = tuple(_chosen_states(instance, s, rule) for s in range(instance.contexts))
    return StoppingSolution(instance, eta, gamma, bias, chosen, residual, iterations, solver)


def _chosen_states(instance: StoppingInstance, start: int, rule: Rule) -> frozenset[tuple[int, int, Number]]:
    return frozenset(
        (state.depth, state.context, state.rho)
        for state, _ in drafted_states(instance, start, rule)
        if state.depth >= instance.min_length and rule_continues(instance, rule, state)
    )
