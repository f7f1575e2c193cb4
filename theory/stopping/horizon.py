"""Committing exactly n tokens in the least expected time: the finite-horizon problem by dynamic programming.

J(n, s) is the least expected time to commit n tokens from context s; a round drafts at most min(K, n-1) tokens, so
nothing is committed beyond n. With the value of one more committed token
    Gamma_n(w) = J(n - |w|, w) - sum_z p(z | w) J(n - |w| - 1, wz)
and c_n the backward DP of `optimum` on these values,
    J(n, s) = t_T + sum_z p(z | s) J(n-1, z) - c_n(s, 1),     J(0, .) = 0.
Cost identity (exact, for every rule): time = t_d #discarded + (t_T - t_d) #calls + t_d n, where #discarded counts
the first rejected token of a round; so SpecDec++'s c1 = t_d and c2 = t_T - t_d.
[SpecDec++] arXiv:2405.19715, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ..numbers import Number, magnitude, read_count
from .instance import StoppingInstance
from .optimum import FLOAT_TOLERANCE
from .rounds import check_state_count

HorizonRule: TypeAlias = Callable[[int, int, int, Number], bool]
HorizonState: TypeAlias = tuple[int, int, Number]
DraftedNode: TypeAlias = tuple[int, int, Number, Number]


@dataclass(frozen=True)
class HorizonPlan:
    """Expected totals to commit n tokens from context s, each indexed `[n][s]`, n = 0..tokens.

    Attributes:
        time: J(n, s); calls: target calls; drafted, discarded: draft tokens, and those not committed.
        continue_states: `[n][s]`, the reachable states (depth, context, rho) of the first round where it drafts on by
            choice.
    """

    instance: StoppingInstance
    time: tuple[tuple[Number, ...], ...]
    calls: tuple[tuple[Number, ...], ...]
    drafted: tuple[tuple[Number, ...], ...]
    discarded: tuple[tuple[Number, ...], ...]
    continue_states: tuple[tuple[frozenset[HorizonState], ...], ...]

    def cost_identity_residual(self) -> Number:
        """Largest |time - (t_d discarded + (t_T - t_d) calls + t_d n)| over all n, s; 0 when exact."""
        c1 = self.instance.draft_time
        c2 = self.instance.target_time - c1
        residuals = [
            magnitude(self.time[n][s] - (c1 * self.discarded[n][s] + c2 * self.calls[n][s] + c1 * n))
            for n in range(len(self.time))
            for s in range(self.instance.contexts)
        ]
        return max(residuals)

    def free_token_value(self, remaining: int, context: int) -> Number:
        """Gamma with `remaining` tokens still to commit in `context`: what one committed for free would save."""
        if not 1 <= remaining < len(self.time):
            raise ValueError(f"remaining is {remaining}; want 1..{len(self.time) - 1}")
        later = self.instance.expect_target(context, self.time[remaining - 1])
        return self.time[remaining][context] - later


def plan_horizon(instance: StoppingInstance, tokens: int) -> HorizonPlan:
    """The optimal plan for every n up to `tokens`; exact when the instance is.

    Raises:
        ValueError: tokens is not an integer of at least 0, or a round has too many states.
        RuntimeError: the plan's expected time is not the DP's value (no certificate, so no answer).
    """
    values = _Values(instance)
    planned = _totals(instance, read_count(tokens, "tokens"), values.rule, values)
    if values.residual > (0 if instance.exact else FLOAT_TOLERANCE * instance.target_time):
        raise RuntimeError(
            f"the plan's time differs from the DP's value by {float(values.residual):.3g}; "
            "give the instance in exact fractions"
        )
    return planned


def evaluate_horizon(instance: StoppingInstance, tokens: int, rule: HorizonRule) -> HorizonPlan:
    """The same totals under a given rule(remaining tokens at the round's start, depth, context, rho)."""
    return _totals(instance, read_count(tokens, "tokens"), rule, None)


class _Values:
    """J, Gamma and the backward DP on them, grown one n at a time."""

    def __init__(self, instance: StoppingInstance) -> None:
        self.instance = instance
        self.residual: Number = 0 * instance.one
        self._worth: list[list[Number]] = [[0 * instance.one] * instance.contexts]
        self._time: list[tuple[Number, ...]] = [tuple(self._worth[0])]
        self._known: dict[tuple[int, Number, int, int, int], Number] = {}

    def rule(self, n: int, depth: int, context: int, rho: Number) -> bool:
        cap, forced = _bounds(self.instance, n)
        return self._gain(context, rho, n - depth, cap - depth, max(0, forced - depth)) > 0

    def record(self, n: int, time: tuple[Number, ...]) -> None:
        """Note J(n, .), found by rolling the rule forward, and its distance from the Bellman equation."""
        instance = self.instance
        worth = [time[s] - instance.expect_target(s, self._time[n - 1]) for s in range(instance.contexts)]
        cap, forced = _bounds(instance, n)
        for s in range(instance.contexts):
            bellman = instance.target_time - self._best(s, instance.one, n, cap, forced)
            self.residual = max(self.residual, magnitude(worth[s] - bellman))
        self._time.append(time)
        self._worth.append(worth)

    def _best(self, context: int, rho: Number, remaining: int, left: int, forced: int) -> Number:
        if left == 0:
            return 0 * self.instance.one
        value = self._gain(context, rho, remaining, left, forced)
        return value if forced > 0 or value > 0 else 0 * self.instance.one

    def _gain(self, context: int, rho: Number, remaining: int, left: int, forced: int) -> Number:
        key = (context, rho, remaining, left, forced)
        if key not in self._known:
            total = -self.instance.draft_time
            for after, draft, ratio in self.instance.branches[context]:
                rho_after = self.instance.next_rho(rho, ratio)
                later = self._best(after, rho_after, remaining - 1, left - 1, max(0, forced - 1))
                total += draft * (rho_after * self._worth[remaining - 1][after] + later)
            self._known[key] = total
            check_state_count(len(self._known), self.instance)
        return self._known[key]


def _bounds(instance: StoppingInstance, n: int) -> tuple[int, int]:
    """Most and fewest tokens a round may draft with n left to commit."""
    cap = min(instance.max_length, n - 1)
    return cap, min(instance.min_length, cap)


def _totals(instance: StoppingInstance, tokens: int, rule: HorizonRule, values: _Values | None) -> HorizonPlan:
    zeros: tuple[Number, ...] = (0 * instance.one,) * instance.contexts
    time, calls, drafted, discarded = [zeros], [zeros], [zeros], [zeros]
    chosen: list[tuple[frozenset[HorizonState], ...]] = [(frozenset(),) * instance.contexts]
    for n in range(1, tokens + 1):
        rounds = [_first_round(instance, n, s, rule) for s in range(instance.contexts)]
        calls.append(_expected(instance, n, rounds, calls, lambda rho, mass: 0 * mass, 1))
        drafted.append(_expected(instance, n, rounds, drafted, lambda rho, mass: mass, 0))
        discarded.append(_expected(instance, n, rounds, discarded, lambda rho, mass: mass * (1 - rho), 0))
        spent = zip(calls[n], drafted[n], strict=True)
        time.append(tuple(instance.target_time * call + instance.draft_time * draft for call, draft in spent))
        chosen.append(tuple(states for _, states in rounds))
        if values:
            values.record(n, time[n])
    return HorizonPlan(instance, tuple(time), tuple(calls), tuple(drafted), tuple(discarded), tuple(chosen))


def _first_round(
    instance: StoppingInstance, n: int, start: int, rule: HorizonRule
) -> tuple[list[DraftedNode], frozenset[HorizonState]]:
    """Drafted nodes (depth, context, rho, Q) of a round with n tokens to go, and where it drafts on by choice."""
    cap, forced = _bounds(instance, n)
    nodes: list[DraftedNode] = []
    chosen = []
    layer: dict[tuple[int, Number], Number] = {(start, instance.one): instance.one}
    for depth in range(cap):
        deeper: dict[tuple[int, Number], Number] = {}
        for (context, rho), mass in layer.items():
            if depth >= forced and not rule(n, depth, context, rho):
                continue
            if depth >= forced:
                chosen.append((depth, context, rho))
            for after, draft, ratio in instance.branches[context]:
                child = (after, instance.next_rho(rho, ratio))
                deeper[child] = deeper.get(child, 0) + mass * draft
        nodes += [(depth + 1, context, rho, mass) for (context, rho), mass in deeper.items()]
        check_state_count(len(nodes), instance)
        layer = deeper
    return nodes, frozenset(chosen)


def _expected(
    instance: StoppingInstance,
    n: int,
    rounds: list[tuple[list[DraftedNode], frozenset[HorizonState]]],
    totals: list[tuple[Number, ...]],
    per_node: Callable[[Number, Number], Number],
    per_round: int,
) -> tuple[Number, ...]:
    """Per start: per_round + sum of per_node(rho, Q) over the first round's nodes, plus the later rounds' total.

    Later: E[totals(n - tau - 1, next start)] by Pr(accepted = w, next = z) = phi(w) p(z|w) - phi(wz).
    """
    expected = []
    for start, (nodes, _) in enumerate(rounds):
        total = per_round + instance.expect_target(start, totals[n - 1])
        for depth, context, rho, mass in nodes:
            after = instance.expect_target(context, totals[n - depth - 1])
            total += per_node(rho, mass) + mass * rho * (after - totals[n - depth][context])
        expected.append(total)
    return tuple(expected)
