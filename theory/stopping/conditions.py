"""Statements about optimal stopping, each as a number that is at least 0 when the statement holds.

T1  t_d <= Gamma <= t_T                                           min_length = 0, t_d <= t_T; proved
T2  the gain is nondecreasing in rho: thresholds on R per context  Gamma >= 0; proved
T3  one global threshold on R attains the optimum                 false in general
T4  Theorem 3.1: stop if R >= (c2 + Delta) / (c1 + c2 + Delta)     token level; proved with Delta = max Gamma - t_T
T5  how much of the optimal stopping T4 certifies                 sufficient, not necessary
T6  drafting on is optimal if the next token alone pays           proved
T7  stop if rho max Gamma (remaining cap) <= t_d                   token and block level; proved. T4 fails for block
T8  the best global threshold is at least the best constant length false in general
c1 = t_d, c2 = t_T - t_d. [SpecDec++] arXiv:2405.19715, Theorem 3.1; Delta and T1, T2, T5-T8 are own derivations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..chains import stationary_law
from ..numbers import Number
from .instance import StoppingInstance
from .optimum import FLOAT_TOLERANCE, StoppingSolution, continuation_gain, evaluate
from .rounds import DraftState, continues, drafted_states
from .rules import best_of, constant_length_rates, one_step_gain, threshold_rates
from .thresholds import gain_functions


@dataclass(frozen=True)
class Condition:
    """A statement and its slack: it holds iff slack >= -tolerance (0 when exact)."""

    name: str
    statement: str
    slack: Number
    tolerance: Number

    @property
    def holds(self) -> bool:
        return self.slack >= -self.tolerance


@dataclass(frozen=True)
class StopWitness:
    """A drafted node where a stopping condition applies although drafting on gains time."""

    start: int
    state: DraftState
    gain: Number


def free_token_value_bounds(solution: StoppingSolution) -> Condition:
    """T1: t_d <= Gamma(y) <= t_T. Raises ValueError with a forced minimum or t_d > t_T, where it is not claimed."""
    instance = solution.instance
    if instance.min_length > 0:
        raise ValueError(f"min_length is {instance.min_length}; want 0: T1 needs the choice to stop at once")
    if instance.draft_time > instance.target_time:
        raise ValueError(f"draft_time is {instance.draft_time}; want at most target_time {instance.target_time}")
    slack = min(min(solution.gamma) - instance.draft_time, instance.target_time - max(solution.gamma))
    return _condition("T1", "t_d <= Gamma <= t_T", slack, instance)


def thresholds_are_optimal(instance: StoppingInstance, gamma: Sequence[Number]) -> Condition:
    """T2: the gain is nondecreasing in rho on all of [0, 1], for every context and remaining cap."""
    if min(gamma) < 0:
        raise ValueError(f"gamma has the negative entry {min(gamma)}; want Gamma >= 0")
    steps = [
        later - earlier
        for gain in gain_functions(instance, gamma).values()
        for earlier, later in zip(gain.values, gain.values[1:], strict=False)
    ]
    return _condition("T2", "the gain is nondecreasing in rho", min(steps, default=0 * instance.one), instance)


def global_threshold_is_optimal(solution: StoppingSolution) -> Condition:
    """T3: best rate of a single threshold on R, minus the optimum (negative: what a global threshold loses)."""
    best = best_of(threshold_rates(solution.instance))[1]
    return _condition("T3", "one threshold on R is optimal", best - solution.eta, solution.instance)


def theorem_threshold(instance: StoppingInstance, delta: Number) -> Number:
    """(c2 + Delta) / (c1 + c2 + Delta) with c1 = t_d, c2 = t_T - t_d.

    Raises:
        ValueError: t_T + Delta <= 0, where the condition is empty.
    """
    worth = instance.target_time + delta
    if worth <= 0:
        raise ValueError(f"delta is {delta}; want more than -target_time = {-instance.target_time}")
    return 1 - instance.draft_time / worth


def theorem_3_1(instance: StoppingInstance, gamma: Sequence[Number], delta: Number | None = None) -> Condition:
    """T4: stopping is best wherever R >= `theorem_threshold`; slack = -(largest gain there), over all rho.

    gamma: Gamma of any time-homogeneous rule (from `evaluate`, not only the optimal one), followed from the next
    round on. delta: None for Delta = max Gamma - t_T, or a number to test another (the theorem read with Delta = 0).
    """
    delta = max(gamma) - instance.target_time if delta is None else delta
    reach = 1 - theorem_threshold(instance, delta)
    return _stop_condition("T4", "stop if R >= (c2 + Delta) / (c1 + c2 + Delta)", instance, gamma, lambda left: reach)


def stop_by_remaining_cap(instance: StoppingInstance, gamma: Sequence[Number]) -> Condition:
    """T7: stopping is best wherever rho max Gamma d <= t_d, d drafts left; token and block level."""
    worth = max(gamma)
    if worth <= 0:
        raise ValueError(f"the largest gamma is {worth}; want a positive one")
    return _stop_condition(
        "T7",
        "stop if rho max Gamma (remaining cap) <= t_d",
        instance,
        gamma,
        lambda left: min(instance.one, instance.draft_time / (worth * left)),
    )


def one_step_gain_suffices(instance: StoppingInstance, gamma: Sequence[Number]) -> Condition:
    """T6: gain >= one-step gain at every rho, so a paying next token means drafting on."""
    optional = instance.max_length - instance.min_length
    slacks = [
        value - one_step_gain(instance, gamma, context, rho)
        for (context, left), gain in gain_functions(instance, gamma).items()
        if left <= optional
        for rho, value in zip(gain.positions, gain.values, strict=True)
    ]
    return _condition("T6", "draft on if the next token alone pays", min(slacks, default=0 * instance.one), instance)


def threshold_beats_constant(instance: StoppingInstance) -> Condition:
    """T8: best global threshold minus best constant length, in tokens per unit of time."""
    slack = best_of(threshold_rates(instance))[1] - best_of(constant_length_rates(instance))[1]
    return _condition("T8", "the best threshold is at least the best constant length", slack, instance)


def worst_stop(instance: StoppingInstance, gamma: Sequence[Number], threshold: Number) -> StopWitness | None:
    """The drafted node with R >= threshold where drafting on gains most; None if it gains nowhere.

    Nodes of every round are searched, on or off the optimal path, at depths min_length..K-1.
    """
    gain = continuation_gain(instance, gamma)
    worst: StopWitness | None = None
    for start in range(instance.contexts):
        for state, _ in drafted_states(instance, start, lambda _: True):
            if instance.min_length <= state.depth < instance.max_length and 1 - state.rho >= threshold:
                gained = gain(state.context, state.rho, instance.max_length - state.depth)
                if gained > (worst.gain if worst else 0):
                    worst = StopWitness(start, state, gained)
    return worst


def certified_stop_share(solution: StoppingSolution) -> Number | None:
    """T5: share of optimal stops before the cap that Theorem 3.1's condition explains (None if there are none).

    Stops are weighted by the draft's probability and by the stationary law of round starts.
    """
    instance, rule = solution.instance, solution.rule
    certified = total = 0 * instance.one
    for start, weight in _round_start_law(solution).items():
        for state, mass in drafted_states(instance, start, rule):
            early = instance.min_length <= state.depth < instance.max_length
            if early and not continues(instance, rule, state):
                total += weight * mass
                if 1 - state.rho >= solution.sufficient_threshold:
                    certified += weight * mass
    return certified / total if total > 0 else None


def _round_start_law(solution: StoppingSolution) -> dict[int, Number]:
    """Stationary law of the context a round starts in, on the optimal rule's best closed class."""
    value = evaluate(solution.instance, solution.rule)
    members = sorted(value.best_class)
    law = stationary_law([[value.rounds[s].next_start[z] for z in members] for s in members])
    return dict(zip(members, law, strict=True))


def _stop_condition(
    name: str,
    statement: str,
    instance: StoppingInstance,
    gamma: Sequence[Number],
    reach: Callable[[int], Number],
) -> Condition:
    """Slack of "stopping is best for every rho <= reach(remaining cap)": minus the largest gain there."""
    optional = instance.max_length - instance.min_length
    gains = [
        gain.largest_up_to(min(reach(left), instance.one))
        for (_, left), gain in gain_functions(instance, gamma).items()
        if left <= optional
    ]
    return _condition(name, statement, -max(gains, default=0 * instance.one), instance)


def _condition(name: str, statement: str, slack: Number, instance: StoppingInstance) -> Condition:
    tolerance = 0 if instance.exact else FLOAT_TOLERANCE * instance.target_time
    return Condition(name, statement, slack, tolerance)
