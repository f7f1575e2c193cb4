"""Claims about how long to draft. [SpecDec++] arXiv:2405.19715; token verification and block verification.

The object is the semi-Markov decision problem of `theory.stopping`: a draft is stopped on what was drafted so far,
R is the probability that it contains a rejection, a drafted token costs t_d and a target pass t_T.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

from specbound.theory import stopping
from specbound.theory.numbers import Number
from specbound.theory.stopping import StoppingInstance
from specbound.theory.stopping.rounds import Rule, continues, drafted_states

from .instances import rational_rows
from .ledger import Outcome, Paper, claim

SPECDEC = Paper("SpecDec++", "SpecDec++", "2405.19715")
SEARCHED = 400
OTHER_DELTAS = (0, 1, 2, 5, 10, 50)
Level = Literal["token", "block"]


def random_problems(count: int, verifier: Level) -> Iterator[StoppingInstance]:
    """Random order-1 Markov instances in tenths, V = 2..3, caps 2..4, target passes worth 2 to 20 drafted tokens."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        vocab = 2 + seed % 2

        def rows(rng: np.random.Generator = rng, vocab: int = vocab) -> list[list[Fraction]]:
            counts = rng.multinomial(10, rng.dirichlet(np.ones(vocab)), size=vocab) + (rng.random((vocab, vocab)) < 0.9)
            return [
                [Fraction(int(n), int(row.sum())) for n in row] if row.sum() else [Fraction(1, vocab)] * vocab
                for row in counts
            ]

        yield StoppingInstance(rows(), rows(), int(rng.choice([2, 4, 8, 20])), 1, 2 + seed % 3, 0, verifier)  # type: ignore[arg-type]


def simple_problems(verifier: Level, cap: int, times: tuple[int, ...]) -> Iterator[StoppingInstance]:
    """Two-token Markov instances from the simplest on: by denominator, then by the cost of a target pass."""
    for denominator in (1, 2, 3, 4, 5):
        rows = rational_rows(2, denominator)
        for target, draft in itertools.product(itertools.product(rows, repeat=2), repeat=2):
            if all(0 < p < 1 for row in target for p in row):
                for target_time in times:
                    yield StoppingInstance(target, draft, target_time, 1, cap, 0, verifier)


def described(instance: StoppingInstance) -> str:
    """An order-1 Markov instance in one line."""

    def matrix(rows: object) -> str:
        return "; ".join(",".join(str(value) for value in row) for row in rows)  # type: ignore[attr-defined]

    return (
        f"target rows [{matrix(instance.target)}], draft rows [{matrix(instance.draft)}], "
        f"t_T = {instance.target_time}, t_d = {instance.draft_time}, at most {instance.max_length} drafted"
    )


@claim(
    "SPECDEC-theorem",
    paper=SPECDEC,
    kind="stated",
    source="[SpecDec++] Theorem 3.1, as we read it",
    statement="Under token verification there is a Delta such that stopping is optimal whenever the probability of a "
    "rejection is at least (c2 + Delta) / (c1 + c2 + Delta).",
    tested="the condition with the explicit Delta = max Gamma - t_T, at every probability of a rejection, for the "
    "optimal policy and for constant lengths",
    subject="token",
    control="block",
)
def theorem_for_token_verification(verifier: Level, deep: bool) -> Outcome:
    count = 0
    for instance in random_problems(300 if deep else 60, verifier):
        rules = [stopping.constant_length(length) for length in (1, 2)]
        gammas = [stopping.solve(instance).gamma]
        gammas += [stopping.free_token_values(instance, stopping.evaluate(instance, rule).bias) for rule in rules]
        for gamma in gammas:
            if max(gamma) <= 0:
                continue
            count += 1
            condition = stopping.theorem_3_1(instance, gamma)
            if not condition.holds:
                return Outcome(
                    "refuted", f"case {count} of the search fails by {-condition.slack}", described(instance)
                )
    return Outcome(
        "holds", f"in fractions, {count} cases: random Markov instances with the optimal policy and lengths 1, 2"
    )


@claim(
    "SPECDEC-theorem-block",
    paper=SPECDEC,
    kind="reading",
    source="a reading of [SpecDec++] Theorem 3.1 for block verification",
    statement="Under block verification too, stopping is optimal whenever the probability of a rejection is at least "
    "(c2 + Delta) / (c1 + c2 + Delta) with Delta = max Gamma - t_T.",
    tested="this Delta only, which makes the theorem true under token verification; that some Delta exists is not "
    "refuted (a large one empties the condition)",
    subject="block",
    control="token",
)
def theorem_for_block_verification(verifier: Level, deep: bool) -> Outcome:
    problems = itertools.islice(simple_problems(verifier, 3, (4,)), SEARCHED)
    for count, instance in enumerate(problems, start=1):
        solution = stopping.solve(instance)
        if not stopping.theorem_3_1(instance, solution.gamma).holds:
            witness = stopping.worst_stop(instance, solution.gamma, solution.sufficient_threshold)
            if witness is not None:
                evidence = (
                    f"instance {count} of the search: R = {1 - witness.state.rho} is at least the threshold "
                    f"{solution.sufficient_threshold}, yet drafting on gains {witness.gain} units of time: the "
                    f"acceptance probability of a block can recover. {other_deltas(instance, solution.gamma)}"
                )
                return Outcome("refuted", evidence, described(instance))
    return Outcome("holds", f"on {count} two-token instances")


def other_deltas(instance: StoppingInstance, gamma: Sequence[Number]) -> str:
    """For which other Deltas the condition holds on this instance."""
    holding = [delta for delta in OTHER_DELTAS if stopping.theorem_3_1(instance, gamma, delta).holds]
    return f"With Delta = {', '.join(map(str, holding)) or 'none of those tried'} the condition holds here"


@claim(
    "SPECDEC-threshold-per-context",
    paper=SPECDEC,
    kind="reading",
    source="a reading of [SpecDec++] abstract: the optimal policy is a threshold on the probability of a rejection",
    statement="The optimal rule stops when the probability of a rejection exceeds a threshold.",
    tested="thresholds that may depend on the context and on the drafts left: no drafted node where the optimal rule "
    "goes on has a larger R than one where it stops; token and block verification",
    subject=lambda instance: stopping.solve(instance).rule,
    control=lambda instance: stops_where_likely_kept,
)
def thresholds_per_context(rule_of: Callable[[StoppingInstance], Rule], deep: bool) -> Outcome:
    count = 0
    for verifier in ("token", "block"):
        for instance in random_problems(150 if deep else 30, verifier):
            rule = rule_of(instance)
            count += 1
            stopped: dict[tuple[int, int], Number] = {}
            gone_on: dict[tuple[int, int], Number] = {}
            for start in range(instance.contexts):
                for state, _ in drafted_states(instance, start, lambda _: True):
                    if instance.min_length <= state.depth < instance.max_length:
                        place = state.context, instance.max_length - state.depth
                        if continues(instance, rule, state):
                            gone_on[place] = max(gone_on.get(place, 0), 1 - state.rho)
                        else:
                            stopped[place] = min(stopped.get(place, 2), 1 - state.rho)
            for place in stopped.keys() & gone_on.keys():
                if gone_on[place] > stopped[place]:
                    evidence = f"it goes on at R = {gone_on[place]} and stops at R = {stopped[place]}"
                    return Outcome("refuted", evidence, f"{described(instance)}, context {place[0]}")
    return Outcome("holds", f"one threshold per context and drafts left, in fractions, on {count} random instances")


def stops_where_likely_kept(state: stopping.DraftState) -> bool:
    """Draft on only where a rejection is likely: the opposite of a threshold."""
    return 2 * state.rho < 1


def optimum_rate(instance: StoppingInstance) -> Number:
    """Tokens per unit of time of the optimal rule."""
    return stopping.solve(instance).eta


def best_threshold_rate(instance: StoppingInstance) -> Number:
    """Tokens per unit of time of the best single threshold on R."""
    return stopping.best_of(stopping.threshold_rates(instance))[1]


@claim(
    "SPECDEC-threshold-global",
    paper=SPECDEC,
    kind="reading",
    source="a reading of [SpecDec++] abstract: the optimal policy is a threshold on the probability of a rejection",
    statement="One threshold on the probability of a rejection, the same in every context, attains the optimum.",
    tested="the best of all thresholds against the optimum, token verification, two-token Markov instances",
    subject=best_threshold_rate,
    control=optimum_rate,
)
def one_global_threshold(rate: Callable[[StoppingInstance], Number], deep: bool) -> Outcome:
    for count, instance in enumerate(itertools.islice(simple_problems("token", 2, (2, 4, 8)), SEARCHED), start=1):
        best, optimum = rate(instance), optimum_rate(instance)
        if best < optimum:
            evidence = f"instance {count} of the search: best threshold {best}, optimum {optimum} tokens per time"
            return Outcome("refuted", evidence, described(instance))
    return Outcome("holds", f"on {count} two-token instances")


@claim(
    "SPECDEC-threshold-constant",
    paper=SPECDEC,
    kind="reading",
    source="a reading of [SpecDec++] abstract: faster than the baseline speculative decoding",
    statement="The best threshold is at least as good as the best constant length.",
    tested="the best of all global thresholds on R against every constant length from 1 on, token verification",
    subject=best_threshold_rate,
    control=optimum_rate,
)
def threshold_against_constant(rate: Callable[[StoppingInstance], Number], deep: bool) -> Outcome:
    for count, instance in enumerate(itertools.islice(simple_problems("token", 3, (4, 8)), SEARCHED), start=1):
        rates = {length: rate for length, rate in stopping.constant_length_rates(instance).items() if length > 0}
        constant, threshold = stopping.best_of(rates), rate(instance)
        if threshold < constant[1]:
            evidence = (
                f"instance {count} of the search: best threshold gives {threshold}, always {constant[0]} tokens "
                f"{constant[1]} tokens per time"
            )
            return Outcome("refuted", evidence, described(instance))
    return Outcome("holds", f"on {count} two-token instances")
