"""Everything about one draft-length problem, as plain JSON data: optimum, simple rules, thresholds, conditions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from ..numbers import Number
from .conditions import (
    Condition,
    certified_stop_share,
    free_token_value_bounds,
    global_threshold_is_optimal,
    one_step_gain_suffices,
    stop_by_remaining_cap,
    theorem_3_1,
    threshold_beats_constant,
    thresholds_are_optimal,
)
from .instance import StoppingInstance
from .occupancy_lp import LP_NODE_LIMIT, count_nodes, solve_by_lp
from .optimum import StoppingSolution, evaluate, solve, solve_by_dinkelbach
from .rules import best_of, constant_length_rates, one_step_rule, threshold_rates
from .thresholds import stop_thresholds

REPORT_VERSION = 1


def solve_report(instance: StoppingInstance) -> dict[str, Any]:
    """The optimum, every constant length, the best thresholds, and how three solvers agree, as plain JSON data.

    A quantity is {"exact": "3/4" or null for float instances, "value": 0.75}; rates are tokens per unit of time and
    carry "share", their ratio to the optimum. Keys: version, instance, eta, gamma, delta, sufficient_threshold,
    stop_thresholds (null when some Gamma < 0), certified_stop_share, constant_lengths, best_constant_length,
    best_threshold, best_lagged_threshold, one_step_look_ahead, solvers, conditions.

    Raises:
        ValueError, RuntimeError: as `solve`.
    """
    solution = solve(instance)
    constants = constant_length_rates(instance)
    look_ahead = evaluate(instance, one_step_rule(instance, solution.gamma)).eta
    share = certified_stop_share(solution)
    rated = {"optimum": solution.eta}

    def rate(value: Number) -> dict[str, Any]:
        return {**_plain(value), "share": float(value / rated["optimum"])}

    def best(rates: dict[Any, Number], name: str) -> dict[str, Any]:
        parameter, value = best_of(rates)
        return {name: parameter if isinstance(parameter, int) else _plain(parameter), "eta": rate(value)}

    return {
        "version": REPORT_VERSION,
        "instance": {
            "verifier": instance.verifier,
            "contexts": instance.contexts,
            "vocab": instance.vocab,
            "target_time": _plain(instance.target_time),
            "draft_time": _plain(instance.draft_time),
            "min_length": instance.min_length,
            "max_length": instance.max_length,
            "exact": instance.exact,
        },
        "eta": _plain(solution.eta),
        "gamma": [_plain(value) for value in solution.gamma],
        "delta": _plain(solution.delta),
        "sufficient_threshold": _plain(solution.sufficient_threshold),
        "stop_thresholds": _threshold_table(solution),
        "certified_stop_share": None if share is None else _plain(share),
        "constant_lengths": [{"length": length, "eta": rate(value)} for length, value in constants.items()],
        "best_constant_length": best(constants, "length"),
        "best_threshold": best(threshold_rates(instance), "theta"),
        "best_lagged_threshold": best(threshold_rates(instance, lag=1), "theta"),
        "one_step_look_ahead": {"eta": rate(look_ahead)},
        "solvers": _solver_agreement(solution),
        "conditions": [_condition_row(condition) for condition in checked_conditions(solution)],
    }


def checked_conditions(solution: StoppingSolution) -> list[Condition]:
    """T1-T4 and T6-T8 of `conditions` on this optimum, leaving out those whose premise it lacks."""
    instance, gamma = solution.instance, solution.gamma
    conditions = [global_threshold_is_optimal(solution), threshold_beats_constant(instance)]
    conditions += [theorem_3_1(instance, gamma), stop_by_remaining_cap(instance, gamma)]
    conditions.append(one_step_gain_suffices(instance, gamma))
    if min(gamma) >= 0:
        conditions.append(thresholds_are_optimal(instance, gamma))
    if instance.min_length == 0 and instance.draft_time <= instance.target_time:
        conditions.append(free_token_value_bounds(solution))
    return sorted(conditions, key=lambda condition: condition.name)


def _solver_agreement(solution: StoppingSolution) -> dict[str, Any]:
    """The certificate, and how far Dinkelbach's method and the LP are from policy iteration."""
    instance = solution.instance
    agreement: dict[str, Any] = {
        "optimality_residual": float(solution.residual),
        "policy_iterations": solution.iterations,
        "dinkelbach_minus_policy_iteration": float(solve_by_dinkelbach(instance).eta - solution.eta),
        "lp_minus_policy_iteration": None,
        "lp_note": None,
    }
    nodes = count_nodes(instance)
    if nodes > LP_NODE_LIMIT:
        agreement["lp_note"] = f"not solved: the LP has more than {LP_NODE_LIMIT:,} nodes"
    else:
        agreement["lp_minus_policy_iteration"] = solve_by_lp(instance) - float(solution.eta)
    return agreement


def _threshold_table(solution: StoppingSolution) -> list[dict[str, Any]] | None:
    if min(solution.gamma) < 0:
        return None
    thresholds = stop_thresholds(solution.instance, solution.gamma)
    return [
        {"context": context, "remaining": left, "stop_if_rejection_at_least": _plain(value)}
        for (context, left), value in sorted(thresholds.items())
    ]


def _condition_row(condition: Condition) -> dict[str, Any]:
    return {
        "name": condition.name,
        "statement": condition.statement,
        "holds": condition.holds,
        "slack": _plain(condition.slack),
    }


def _plain(value: Number) -> dict[str, Any]:
    return {"exact": str(value) if isinstance(value, (Fraction, int)) else None, "value": float(value)}
