"""Families of simple stopping rules, each searched completely: constant lengths and thresholds on R.

A family is nested: growing its parameter only adds drafted nodes. So every node has a level, the least parameter
at which it is drafted, and one pass over the nodes in order of level evaluates the whole family.
    constant length k:           a node at depth j has level j
    global threshold theta:      stop once R > theta; level = largest R at a proper ancestor
    the same, one token late:    level = largest R seen one token late (SpecDec++'s public code)
[SpecDec++] arXiv:2405.19715, section 3 and its public implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from ..numbers import Number
from .instance import StoppingInstance
from .optimum import evaluate_rounds
from .rounds import DraftState, Rule, check_state_count, round_from_sums


def constant_length_rates(instance: StoppingInstance) -> dict[int, Number]:
    """Tokens per unit of time of every constant draft length min_length..max_length."""
    rates = _rates_of(instance, "length")
    return {length: rates.get(length, _last(rates)) for length in range(instance.min_length, instance.max_length + 1)}


def threshold_rates(instance: StoppingInstance, lag: int = 0) -> dict[Number, Number]:
    """Tokens per unit of time of "stop once R > theta" for every theta that makes a difference, smallest first.

    lag=0 tests R of all drafted tokens, lag=1 leaves out the newest (as SpecDec++'s public code does). Since
    R(root) = 0, every theta >= 0 drafts a first token where max_length allows one.
    """
    if lag not in (0, 1):
        raise ValueError(f"lag is {lag}; want 0 (rule of the paper) or 1 (rule of the public code)")
    return dict(_rates_of(instance, "late threshold" if lag else "threshold"))


@lru_cache(maxsize=6)
def _rates_of(instance: StoppingInstance, family: str) -> dict[Number, Number]:
    """The rates of one family; kept, because a report looks at them several times and they are most of its work."""
    if family == "length":
        return _family_rates(instance, lambda state: state.depth + 1, instance.min_length)
    if family == "threshold":
        return _family_rates(instance, lambda state: 1 - state.rho, 0 * instance.one)
    return _family_rates(instance, lambda state: 1 - state.lagged_rho, 0 * instance.one)


def best_of(rates: dict[Number, Number] | dict[int, Number]) -> tuple[Number, Number]:
    """(parameter, rate) of the best rule of a family, the smallest parameter among equals."""
    best = max(rates.values())
    return next((parameter, rate) for parameter, rate in rates.items() if rate == best)


def one_step_rule(instance: StoppingInstance, gamma: Sequence[Number]) -> Rule:
    """Draft on iff the next token alone pays: sum_z q(z|y) rho_z Gamma(z) > t_d (look-ahead of one step)."""
    return lambda state: one_step_gain(instance, gamma, state.context, state.rho) > 0


def one_step_gain(instance: StoppingInstance, gamma: Sequence[Number], context: int, rho: Number) -> Number:
    """-t_d + sum_z q(z|y) rho_z Gamma(z)."""
    total = -instance.draft_time
    for after, draft, ratio in instance.branches[context]:
        total += draft * instance.next_rho(rho, ratio) * gamma[after]
    return total


def _last(rates: dict[Number, Number]) -> Number:
    return rates[max(rates)]


def _family_rates(
    instance: StoppingInstance, demand: Callable[[DraftState], Number], lowest: Number
) -> dict[Number, Number]:
    """Rate per parameter, for the rules "draft on at a state iff demand(state) <= parameter"."""
    added = [_nodes_by_level(instance, s, demand, lowest) for s in range(instance.contexts)]
    phi = [[0 * instance.one] * instance.contexts for _ in added]
    drafted = [0 * instance.one for _ in added]
    rates: dict[Number, Number] = {}
    for level in sorted({lowest}.union(*added)):
        for s, nodes in enumerate(added):
            for context, accepted, mass in nodes.get(level, ()):
                phi[s][context] += accepted
                drafted[s] += mass
        rounds = [round_from_sums(instance, s, phi[s], drafted[s]) for s in range(instance.contexts)]
        rates[level] = evaluate_rounds(instance, rounds).eta
    return rates


def _nodes_by_level(
    instance: StoppingInstance, start: int, demand: Callable[[DraftState], Number], lowest: Number
) -> dict[Number, list[tuple[int, Number, Number]]]:
    """(context, phi, Q) of every node but the root, grouped by the parameter from which on it is drafted."""
    grouped: dict[Number, list[tuple[int, Number, Number]]] = {}
    layer = {(DraftState(0, start, instance.one, instance.one), lowest): instance.one}
    seen = 0
    for depth in range(instance.max_length):
        deeper: dict[tuple[DraftState, Number], Number] = {}
        for (state, level), mass in layer.items():
            entry = level if depth < instance.min_length else max(level, demand(state))
            for context, draft, ratio in instance.branches[state.context]:
                child = DraftState(depth + 1, context, instance.next_rho(state.rho, ratio), state.rho)
                deeper[child, entry] = deeper.get((child, entry), 0) + mass * draft
        for (state, level), mass in deeper.items():
            grouped.setdefault(level, []).append((state.context, mass * state.rho, mass))
        layer = deeper
        seen += len(layer)
        check_state_count(seen, instance)
    return grouped
