"""How long should the draft be, exactly: SpecDec++'s decision problem solved, and every simple rule beside it.

    maximise over stopping rules    eta = committed tokens per unit of time, in the long run
    when a round costs              t_T + t_d (drafted tokens)
    and commits                     accepted tokens + 1.
`solve` gives the certified optimum (policy iteration, exact in fractions), `solve_by_dinkelbach` and `solve_by_lp`
reach it two other ways, `best_by_enumeration` tries every rule of a tiny instance. `plan_horizon` commits exactly n
tokens in the least time. `stop_thresholds` gives R*(context, remaining cap); `theorem_3_1` and its neighbours say
which published or proved stopping conditions hold; `solve_report` puts all of it into one JSON-able dictionary.
Letters: V tokens, K most drafts per round, rho = Pr(whole draft accepted | draft), R = 1 - rho, Gamma(y) = time one
more committed token is worth in context y. [SpecDec++] arXiv:2405.19715, section 3 and Theorem 3.1.
"""

from __future__ import annotations

from .conditions import (
    Condition,
    StopWitness,
    certified_stop_share,
    free_token_value_bounds,
    global_threshold_is_optimal,
    one_step_gain_suffices,
    stop_by_remaining_cap,
    theorem_3_1,
    theorem_threshold,
    threshold_beats_constant,
    thresholds_are_optimal,
    worst_stop,
)
from .horizon import HorizonPlan, evaluate_horizon, plan_horizon
from .instance import StoppingInstance
from .leaves import best_by_enumeration, horizon_by_enumeration
from .occupancy_lp import occupancy_problem, solve_by_lp
from .optimum import (
    RuleValue,
    StoppingSolution,
    continuation_gain,
    evaluate,
    free_token_values,
    optimality_residual,
    solve,
    solve_by_dinkelbach,
)
from .report import checked_conditions, solve_report
from .rounds import DraftState, Rule, constant_length, rejection_threshold, round_quantities
from .rules import best_of, constant_length_rates, one_step_rule, threshold_rates
from .thresholds import gain_functions, stop_thresholds

__all__ = [
    "Condition",
    "DraftState",
    "HorizonPlan",
    "Rule",
    "RuleValue",
    "StopWitness",
    "StoppingInstance",
    "StoppingSolution",
    "best_by_enumeration",
    "best_of",
    "certified_stop_share",
    "checked_conditions",
    "constant_length",
    "constant_length_rates",
    "continuation_gain",
    "evaluate",
    "evaluate_horizon",
    "free_token_value_bounds",
    "free_token_values",
    "gain_functions",
    "global_threshold_is_optimal",
    "horizon_by_enumeration",
    "occupancy_problem",
    "one_step_gain_suffices",
    "one_step_rule",
    "optimality_residual",
    "plan_horizon",
    "rejection_threshold",
    "round_quantities",
    "solve",
    "solve_by_dinkelbach",
    "solve_by_lp",
    "solve_report",
    "stop_by_remaining_cap",
    "stop_thresholds",
    "theorem_3_1",
    "theorem_threshold",
    "threshold_beats_constant",
    "threshold_rates",
    "thresholds_are_optimal",
    "worst_stop",
]
