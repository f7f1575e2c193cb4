"""Claims about decoding by joint likelihood. [MJSD] arXiv:2407.09722; MJGD is its greedy relative without a draft.

MJGD(k) appends the most probable block of k tokens again and again; MJSD(gamma, tau) accepts the longest prefix x of
the draft with P(x) >= tau Q(x). The objects are the exact laws of `theory.joint_decoding` on two- and three-token
models.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from specbound.theory.contexts import ContextModel, Prefix
from specbound.theory.joint_decoding import JointSpeculation, beam_block, greedy, joint_greedy, mjsd
from specbound.theory.joint_decoding.guarantees import intermediate_prefix_slack, round_guarantees

from .ledger import Outcome, claim, rational_rows

TENTHS = tuple(Fraction(n, 10) for n in range(1, 10))


def random_pairs(count: int) -> Iterator[tuple[ContextModel, ContextModel]]:
    """Random order-1 Markov pairs in tenths, V = 2 and 3 in turn."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        vocab = 2 + seed % 2
        counts = rng.multinomial(10, np.full(vocab, 1 / vocab), size=(2, vocab))
        target, draft = ([[Fraction(int(n), 10) for n in row] for row in matrix] for matrix in counts)
        yield ContextModel.markov(target), ContextModel.markov(draft)


def matrix(model: ContextModel) -> str:
    """Rows of a model in one line."""
    return "; ".join(",".join(str(value) for value in row) for row in model.table)


@claim(
    "MJSD-mjgd-greedy",
    source="[MJSD] Section 3 (multi-token joint greedy decoding)",
    statement="Choosing the most probable block of k tokens at a time gives text at least as probable as greedy "
    "decoding.",
    tested="joint probability of N = 3 tokens, MJGD(2) against greedy, V = 2 prefix trees",
)
def joint_greedy_against_greedy(deep: bool) -> Outcome:
    count = 0
    for denominator in (2, 3, 4, 5):
        rows = rational_rows(2, denominator)
        uniform = (Fraction(1, 2), Fraction(1, 2))
        for root, zero, one, last in itertools.product(rows, repeat=4):
            table: dict[Prefix, tuple[Fraction, ...]] = {
                prefix: uniform for depth in range(3) for prefix in itertools.product((0, 1), repeat=depth)
            }
            table |= {(): root, (0,): zero, (1,): one, (0, 0): last}
            model = ContextModel.tree(table)
            count += 1
            by_token, by_block = greedy(model, 3), joint_greedy(model, 3, 2)
            if model.joint(by_block) < model.joint(by_token):
                found = ", ".join(
                    f"p(.|{''.join(map(str, prefix))})=({row[0]},{row[1]})"
                    for prefix, row in table.items()
                    if row != uniform
                )
                evidence = (
                    f"model {count} of the search: greedy {by_token} has probability {model.joint(by_token)}, "
                    f"MJGD(2) {by_block} {model.joint(by_block)}"
                )
                return Outcome("refuted", evidence, f"V=2, N=3, k=2, {found}, other rows (1/2,1/2)")
    return Outcome("holds", f"on {count} models")


@claim(
    "MJSD-guarantee",
    source="[MJSD] (joint acceptance with threshold tau), made explicit",
    statement="An accepted prefix x satisfies P(x) >= tau Q(x); for a draft that is the most probable block of Q also "
    "P(x) >= tau max Q, and, if the whole block is accepted, P(x) >= tau Q(argmax P).",
    tested="inequalities G1-G5 of `theory.joint_decoding.guarantees`, exact beam of full width and greedy drafts",
)
def guarantee_of_an_accepted_prefix(deep: bool) -> Outcome:
    count = attained = 0
    for target, draft in random_pairs(400 if deep else 80):
        for length, tau in itertools.product((1, 2, 3), (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10))):
            for width in (1, target.vocab**length):
                block = beam_block(draft, length, width)
                for found in round_guarantees(JointSpeculation(target, draft, length, width, tau), block):
                    count += 1
                    attained += found.slack == 0
                    if found.slack < 0:
                        evidence = f"{found.name}: {found.statement} fails by {-found.slack}"
                        return Outcome("refuted", evidence, f"target [{matrix(target)}], draft [{matrix(draft)}]")
    return Outcome("holds", f"{count} inequalities in fractions on random Markov pairs in tenths, {attained} attained")


@claim(
    "MJSD-guarantee-prefix",
    source="[MJSD], the guarantee read for a part of the block",
    statement="An accepted prefix of i tokens satisfies P(x) >= tau max over all blocks of i tokens of Q.",
    tested="the most probable draft block, prefixes shorter than the block",
)
def guarantee_of_a_shorter_prefix(deep: bool) -> Outcome:
    for count, (target, draft) in enumerate(random_pairs(20_000), start=1):
        for tau in (Fraction(1, 2), Fraction(7, 10), Fraction(9, 10)):
            block = beam_block(draft, 2, draft.vocab**2)
            slack = intermediate_prefix_slack(JointSpeculation(target, draft, 2, draft.vocab**2, tau), block)
            if slack is not None and slack < 0:
                evidence = f"pair {count} of the search, draft block {block}: fails by {-slack}"
                where = f"tau={tau}, target rows [{matrix(target)}], draft rows [{matrix(draft)}], after token 0"
                return Outcome("refuted", evidence, where)
    return Outcome("undecided", f"no failure among {count} random pairs")


@claim(
    "MJSD-calls-monotone",
    source="[MJSD], a reading of the threshold as a dial between speed and quality",
    statement="A larger tau never needs fewer target calls.",
    tested="number of calls for N = 8 tokens, greedy mode, three-token Markov pairs in tenths",
)
def calls_are_monotone_in_tau(deep: bool) -> Outcome:
    for count, (target, draft) in enumerate(random_pairs(4000), start=1):
        calls = [mjsd(JointSpeculation(target, draft, 3, 1, tau), 8, "greedy").calls for tau in TENTHS]
        for (tau, low), (other, high) in itertools.pairwise(zip(TENTHS, calls, strict=True)):
            if high < low:
                evidence = f"pair {count} of the search: tau={tau} needs {low} calls, tau={other} only {high}"
                return Outcome("refuted", evidence, f"target rows [{matrix(target)}], draft rows [{matrix(draft)}]")
    return Outcome("undecided", f"no failure among {count} random pairs")


@claim(
    "MJSD-perplexity-monotone",
    source="[MJSD], a reading of the threshold as a dial between speed and quality",
    statement="A larger tau never gives text of higher perplexity.",
    tested="exp(E NLL) of N = 6 tokens, sample mode, two- and three-token Markov pairs in tenths",
)
def perplexity_is_monotone_in_tau(deep: bool) -> Outcome:
    for count, (target, draft) in enumerate(random_pairs(200), start=1):
        if any(value == 0 for row in target.table for value in row):
            continue
        laws = [
            mjsd(JointSpeculation(target, draft, 3, 1, tau), 6, "sample")
            for tau in (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10))
        ]
        figures = [law.perplexity_of_mean for law in laws]
        if figures[0] + 1e-9 < max(figures[1:]):
            shown = ", ".join(f"{figure:.6f}" for figure in figures)
            evidence = f"pair {count} of the search: perplexity {shown} at tau = 0.1, 0.5, 0.9"
            return Outcome("refuted", evidence, f"target rows [{matrix(target)}], draft rows [{matrix(draft)}]")
    return Outcome("undecided", f"no failure among {count} random pairs")
