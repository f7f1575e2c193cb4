"""One round of speculative decoding under any stopping rule: tokens, time, and where the next round starts.

Drafting w = (Y_1..Y_k) from context s, let Q(w) be its draft probability and rho(w) the probability that the
verifier keeps the whole block given w; R(w) = 1 - rho(w) is the probability that it rejects something. Then
phi(w) = Q(w) rho(w) = Pr(the accepted prefix passes through w), wherever drafting stops, and losslessness gives
    Pr(accepted = w, next token = z) = phi(w) target(z | w) - phi(wz).
Summed over the drafted nodes w of a stopping tree (its root included in T's t_T, not in the sums):
    N(s) = 1 + sum phi(w)                                       committed tokens
    T(s) = t_T + t_d sum Q(w)                                   time
    M(s, z) = p(s, z) + sum phi(w) [p(w, z) - 1{context(w) = z}]  law of the next start
A rule says of a reached node whether to draft one more token. [SpecDec++] arXiv:2405.19715, section 3 and
Theorem 3.1; block verification: [BV] arXiv:2403.10444.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from ..numbers import Number
from .instance import StoppingInstance

STATE_LIMIT = 1_000_000


class DraftState(NamedTuple):
    """What a rule may look at after `depth` drafted tokens of a round.

    context: where the draft is; rho: Pr(all accepted | drafts); lagged_rho: rho one token earlier (1 at depth 0).
    """

    depth: int
    context: int
    rho: Number
    lagged_rho: Number


Rule: TypeAlias = Callable[[DraftState], bool]


@dataclass(frozen=True)
class Round:
    """N(s) `tokens`, T(s) `time` and M(s, .) `next_start` of one round, and `drafted` = sum of Q."""

    tokens: Number
    time: Number
    next_start: tuple[Number, ...]
    drafted: Number


def continues(instance: StoppingInstance, rule: Rule, state: DraftState) -> bool:
    """True if another token is drafted at `state`: forced below min_length, never at max_length."""
    if state.depth < instance.min_length:
        return True
    return state.depth < instance.max_length and rule(state)


def drafted_states(instance: StoppingInstance, start: int, rule: Rule) -> Iterator[tuple[DraftState, Number]]:
    """Every drafted state of a round from `start` (the root first) with its probability Q.

    Nodes that agree in (depth, context, rho, lagged rho) are merged, which the rule cannot tell apart.
    Raises ValueError beyond a million states.
    """
    layer: dict[DraftState, Number] = {DraftState(0, start, instance.one, instance.one): instance.one}
    seen = 0
    while layer:
        seen += len(layer)
        check_state_count(seen, instance)
        yield from layer.items()
        deeper: dict[DraftState, Number] = {}
        for state, mass in layer.items():
            if continues(instance, rule, state):
                for context, draft, ratio in instance.branches[state.context]:
                    child = DraftState(state.depth + 1, context, instance.next_rho(state.rho, ratio), state.rho)
                    deeper[child] = deeper.get(child, 0) + mass * draft
        layer = deeper


def check_state_count(seen: int, instance: StoppingInstance) -> None:
    """Raise ValueError once a round has more drafting states than memory and patience allow."""
    if seen > STATE_LIMIT:
        raise ValueError(
            f"max_length is {instance.max_length}: a round has more than {STATE_LIMIT:,} drafting states; "
            "lower max_length, or give exact fractions so that equal states merge"
        )


def round_quantities(instance: StoppingInstance, start: int, rule: Rule) -> Round:
    """N, T, M of a round from `start` under `rule`, by the formulas of this module's opening."""
    phi = [0 * instance.one] * instance.contexts
    drafted = 0 * instance.one
    for state, mass in drafted_states(instance, start, rule):
        if state.depth > 0:
            phi[state.context] += mass * state.rho
            drafted += mass
    return round_from_sums(instance, start, phi, drafted)


def round_from_sums(instance: StoppingInstance, start: int, phi: Sequence[Number], drafted: Number) -> Round:
    """The round whose drafted nodes (root excluded) have total phi[c] in context c and total Q `drafted`."""
    following = [-value for value in phi]
    for c in range(instance.contexts):
        weight = phi[c] + 1 if c == start else phi[c]
        for z, probability in enumerate(instance.target[c]):
            following[instance.next_contexts[c][z]] += weight * probability
    time = instance.target_time + instance.draft_time * drafted
    return Round(1 + sum(phi), time, tuple(following), drafted)


def constant_length(length: int) -> Rule:
    """The rule that drafts `length` tokens (within the instance's bounds)."""
    return lambda state: state.depth < length


def rejection_threshold(theta: Number, lag: int = 0) -> Rule:
    """Stop once R > theta, R = 1 - rho; lag=1 reads R one token late, as SpecDec++'s public code does.

    In that code the head's score of the newest token is not yet available when the test is made, and the
    first test of a round always passes; the test is strict and its bounds are inclusive.
    """
    if lag not in (0, 1):
        raise ValueError(f"lag is {lag}; want 0 (rule of the paper) or 1 (rule of the public code)")
    if lag == 1:
        return lambda state: 1 - state.lagged_rho <= theta
    return lambda state: 1 - state.rho <= theta
