"""Claims about how long to draft. [SpecDec++] arXiv:2405.19715; token verification and block verification.

The object is the semi-Markov decision problem of `theory.stopping`: a draft is stopped on what was drafted so far,
R is the probability that it contains a rejection, a drafted token costs t_d and a target pass t_T.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

import numpy as np

from specbound.theory import stopping
from specbound.theory.stopping import StoppingInstance

from .ledger import Outcome, claim, rational_rows

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
    source="[SpecDec++] Theorem 3.1",
    statement="Under token verification there is a Delta such that stopping is optimal whenever the probability of a "
    "rejection is at least (c2 + Delta) / (c1 + c2 + Delta).",
    tested="the condition with the explicit Delta = max Gamma - t_T, at every probability of a rejection, for the "
    "optimal policy and for constant lengths",
)
def theorem_for_token_verification(deep: bool) -> Outcome:
    count = 0
    for instance in random_problems(300 if deep else 60, "token"):
        rules = [stopping.constant_length(length) for length in (1, 2)]
        gammas = [stopping.solve(instance).gamma]
        gammas += [stopping.free_token_values(instance, stopping.evaluate(instance, rule).bias) for rule in rules]
        for gamma in gammas:
            if max(gamma) <= 0:
                continue
            count += 1
            condition = stopping.theorem_3_1(instance, gamma)
            if not condition.holds:
                return Outcome("refuted", f"after {count} cases", described(instance))
    return Outcome(
        "holds", f"in fractions, {count} cases: random Markov instances with the optimal policy and lengths 1, 2"
    )


@claim(
    "SPECDEC-theorem-block",
    source="[SpecDec++] Theorem 3.1, read for block verification",
    statement="The same condition is sufficient under block verification.",
    tested="the condition with the Delta of the optimal policy, two-token Markov instances",
)
def theorem_for_block_verification(deep: bool) -> Outcome:
    for count, instance in enumerate(simple_problems("block", 3, (4, 10, 20)), start=1):
        solution = stopping.solve(instance)
        if not stopping.theorem_3_1(instance, solution.gamma).holds:
            witness = stopping.worst_stop(instance, solution.gamma, solution.sufficient_threshold)
            if witness is not None:
                evidence = (
                    f"instance {count} of the search: R = {1 - witness.state.rho} is at least the threshold "
                    f"{solution.sufficient_threshold}, yet drafting on gains {witness.gain} units of time: the "
                    "acceptance probability of a block can recover"
                )
                return Outcome("refuted", evidence, described(instance))
    return Outcome("holds", f"on {count} two-token instances")


@claim(
    "SPECDEC-threshold-per-context",
    source="[SpecDec++] Section 3 (threshold policy)",
    statement="The optimal rule stops when the probability of a rejection exceeds a threshold.",
    tested="thresholds that may depend on the context and on the drafts left, token and block verification",
)
def thresholds_per_context(deep: bool) -> Outcome:
    count = 0
    for verifier in ("token", "block"):
        for instance in random_problems(150 if deep else 30, verifier):
            gamma = stopping.solve(instance).gamma
            count += 1
            if not stopping.thresholds_are_optimal(instance, gamma).holds:
                return Outcome("refuted", f"after {count} instances", described(instance))
    return Outcome("holds", f"the gain of drafting on is monotone in R, in fractions, on {count} random instances")


@claim(
    "SPECDEC-threshold-global",
    source="[SpecDec++] Section 3 (threshold policy)",
    statement="One threshold on the probability of a rejection, the same in every context, attains the optimum.",
    tested="the best of all thresholds against the optimum, token verification, two-token Markov instances",
)
def one_global_threshold(deep: bool) -> Outcome:
    for count, instance in enumerate(simple_problems("token", 2, (2, 4, 8)), start=1):
        solution = stopping.solve(instance)
        if not stopping.global_threshold_is_optimal(solution).holds:
            _, best = stopping.best_of(stopping.threshold_rates(instance))
            evidence = f"instance {count} of the search: best threshold {best}, optimum {solution.eta} tokens per time"
            return Outcome("refuted", evidence, described(instance))
    return Outcome("holds", f"on {count} two-token instances")


@claim(
    "SPECDEC-threshold-constant",
    source="[SpecDec++] Section 5 (comparison with constant candidate lengths)",
    statement="The best threshold is at least as good as the best constant length.",
    tested="the best of all global thresholds on R against every constant length from 1 on, token verification",
)
def threshold_against_constant(deep: bool) -> Outcome:
    for count, instance in enumerate(simple_problems("token", 3, (4, 8)), start=1):
        rates = {length: rate for length, rate in stopping.constant_length_rates(instance).items() if length > 0}
        constant, threshold = stopping.best_of(rates), stopping.best_of(stopping.threshold_rates(instance))
        if threshold[1] < constant[1]:
            evidence = (
                f"instance {count} of the search: best threshold gives {threshold[1]}, always {constant[0]} tokens "
                f"{constant[1]} tokens per time"
            )
            return Outcome("refuted", evidence, described(instance))
    return Outcome("holds", f"on {count} two-token instances")
