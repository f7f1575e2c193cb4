"""Claims about decoding by joint likelihood. [MJSD] arXiv:2407.09722; MJGD is its greedy relative without a draft.

MJGD(k) appends the most probable block of k tokens again and again; MJSD(gamma, tau) accepts the longest prefix x of
the draft with P(x) >= tau Q(x). The objects are the exact laws of `theory.joint_decoding` on two- and three-token
models.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from specbound.theory.contexts import ContextModel, Prefix
from specbound.theory.joint_decoding import JointSpeculation, accepted_length, beam_block, greedy, joint_greedy, mjsd
from specbound.theory.joint_decoding.guarantees import intermediate_prefix_slack

from .instances import rational_rows
from .ledger import Outcome, Paper, claim

MJSD = Paper("MJSD", "Multi-token joint speculative decoding", "2407.09722")
Pairs = Callable[[int], Iterator[tuple[ContextModel, ContextModel]]]
TENTHS = tuple(Fraction(n, 10) for n in range(1, 10))


def random_pairs(count: int) -> Iterator[tuple[ContextModel, ContextModel]]:
    """Random order-1 Markov pairs in tenths, V = 2 and 3 in turn."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        vocab = 2 + seed % 2
        counts = rng.multinomial(10, np.full(vocab, 1 / vocab), size=(2, vocab))
        target, draft = ([[Fraction(int(n), 10) for n in row] for row in matrix] for matrix in counts)
        yield ContextModel.markov(target), ContextModel.markov(draft)


def equal_pairs(count: int) -> Iterator[tuple[ContextModel, ContextModel]]:
    """The same targets, each its own draft: everything is accepted whatever the threshold."""
    return ((target, target) for target, _ in random_pairs(min(count, 300)))


def matrix(model: ContextModel) -> str:
    """Rows of a model in one line."""
    return "; ".join(",".join(str(value) for value in row) for row in model.table)


def without_tied_rows(denominator: int) -> list[tuple[Fraction, ...]]:
    """Two-token rows with one most probable token."""
    return [row for row in rational_rows(2, denominator) if row[0] != row[1]]


@claim(
    "MJSD-mjgd-greedy",
    paper=MJSD,
    kind="reading",
    source="a reading of [MJSD] abstract, first version: MJGD leads to better perplexity of the whole output",
    statement="Choosing the most probable block of k tokens at a time gives text at least as probable as greedy "
    "decoding.",
    tested="joint probability of N = 3 tokens, MJGD(2) against greedy, V = 2 prefix trees whose rows have no ties",
    subject=2,
    control=3,
)
def joint_greedy_against_greedy(window: int, deep: bool) -> Outcome:
    count = 0
    for denominator in (2, 3, 4, 5):
        rows = without_tied_rows(denominator)
        other = (Fraction(3, 5), Fraction(2, 5))
        for root, zero, one, last in itertools.product(rows, repeat=4):
            table: dict[Prefix, tuple[Fraction, ...]] = {
                prefix: other for depth in range(3) for prefix in itertools.product((0, 1), repeat=depth)
            }
            table |= {(): root, (0,): zero, (1,): one, (0, 0): last}
            model = ContextModel.tree(table)
            count += 1
            by_token, by_block = greedy(model, 3), joint_greedy(model, 3, window)
            if model.joint(by_block) < model.joint(by_token):
                found = ", ".join(
                    f"p(.|{''.join(map(str, prefix))})=({row[0]},{row[1]})"
                    for prefix, row in table.items()
                    if row != other
                )
                evidence = (
                    f"model {count} of the search: greedy {by_token} has probability {model.joint(by_token)}, "
                    f"MJGD({window}) {by_block} {model.joint(by_block)}"
                )
                return Outcome(
                    "refuted", evidence, f"V=2, N=3, k={window}, {found}, other rows ({other[0]},{other[1]})"
                )
    return Outcome("holds", f"on {count} models")


def most_probable(draft: ContextModel, length: int) -> Prefix:
    """The most probable block, by a beam of full width."""
    return beam_block(draft, length, draft.vocab**length)


def least_probable(draft: ContextModel, length: int) -> Prefix:
    """The least probable block that is possible."""
    law = draft.block_law(length)
    return min((block for block in law if law[block] > 0), key=law.__getitem__)


@claim(
    "MJSD-guarantee",
    paper=MJSD,
    kind="reading",
    source="a reading of [MJSD], joint acceptance with threshold tau as we read it, made explicit",
    statement="If the draft is the most probable block of Q, an accepted prefix x satisfies P(x) >= tau max Q, and "
    "P(x) >= tau Q(argmax P) if it is the whole block.",
    tested="both inequalities in fractions, most probable blocks by exact beams. P(x) >= tau Q(x) is no finding but "
    "the acceptance rule itself; these follow from it and from max Q <= Q(x)",
    subject=most_probable,
    control=least_probable,
)
def guarantee_of_an_accepted_prefix(drafted: Callable[[ContextModel, int], Prefix], deep: bool) -> Outcome:
    count = attained = 0
    for target, draft in random_pairs(400 if deep else 80):
        for length, tau in itertools.product((1, 2, 3), (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10))):
            block = drafted(draft, length)
            accepted = accepted_length(target.prefix_joints(block), draft.prefix_joints(block), tau)
            if accepted == 0:
                continue
            reached, drafts = target.joint(block[:accepted]), draft.block_law(length)
            bounds = [max(drafts.values())]
            if accepted == length:
                targets = target.block_law(length)
                bounds.append(drafts.get(max(targets, key=targets.__getitem__), Fraction(0)))
            for bound in bounds:
                count += 1
                attained += reached == tau * bound
                if reached < tau * bound:
                    where = f"tau={tau}, target rows [{matrix(target)}], draft rows [{matrix(draft)}], block {block}"
                    return Outcome("refuted", f"P(x) = {reached} is below tau times {bound}", where)
    return Outcome("holds", f"{count} inequalities in fractions on random Markov pairs in tenths, {attained} attained")


def slack_of_the_whole_block(settings: JointSpeculation, block: Prefix) -> Any:
    """P(x) - tau Q(x) for the accepted prefix x: the acceptance rule, which cannot fail."""
    target, draft = settings.target, settings.draft
    accepted = accepted_length(target.prefix_joints(block), draft.prefix_joints(block), settings.tau)
    return target.joint(block[:accepted]) - settings.tau * draft.joint(block[:accepted]) if accepted else None


@claim(
    "MJSD-guarantee-prefix",
    paper=MJSD,
    kind="reading",
    source="a reading of [MJSD], the guarantee for a part of the block",
    statement="An accepted prefix of i tokens satisfies P(x) >= tau max over all blocks of i tokens of Q.",
    tested="the most probable draft block, prefixes shorter than the block",
    subject=intermediate_prefix_slack,
    control=slack_of_the_whole_block,
)
def guarantee_of_a_shorter_prefix(slack_of: Callable[[JointSpeculation, Prefix], Any], deep: bool) -> Outcome:
    for count, (target, draft) in enumerate(random_pairs(1000), start=1):
        for tau in (Fraction(1, 2), Fraction(7, 10), Fraction(9, 10)):
            block = beam_block(draft, 2, draft.vocab**2)
            slack = slack_of(JointSpeculation(target, draft, 2, draft.vocab**2, tau), block)
            if slack is not None and slack < 0:
                evidence = f"pair {count} of the search, draft block {block}: fails by {-slack}"
                where = f"tau={tau}, target rows [{matrix(target)}], draft rows [{matrix(draft)}], after token 0"
                return Outcome("refuted", evidence, where)
    return Outcome("undecided", f"no failure among {count} random pairs")


@claim(
    "MJSD-calls-monotone",
    paper=MJSD,
    kind="reading",
    source="a reading of [MJSD], the threshold as a dial between speed and quality",
    statement="A larger tau never needs fewer target calls.",
    tested="number of calls for N = 8 tokens, greedy mode, two- and three-token Markov pairs in tenths",
    subject=random_pairs,
    control=equal_pairs,
)
def calls_are_monotone_in_tau(pairs: Pairs, deep: bool) -> Outcome:
    for count, (target, draft) in enumerate(pairs(4000), start=1):
        calls = [mjsd(JointSpeculation(target, draft, 3, 1, tau), 8, "greedy").calls for tau in TENTHS]
        for (tau, low), (other, high) in itertools.pairwise(zip(TENTHS, calls, strict=True)):
            if high < low:
                evidence = f"pair {count} of the search: tau={tau} needs {low} calls, tau={other} only {high}"
                return Outcome("refuted", evidence, f"target rows [{matrix(target)}], draft rows [{matrix(draft)}]")
    return Outcome("undecided", f"no failure among {count} pairs")


@claim(
    "MJSD-perplexity-monotone",
    paper=MJSD,
    kind="reading",
    source="a reading of [MJSD], the threshold as a dial between speed and quality",
    statement="A larger tau never gives text of higher perplexity.",
    tested="exp(E NLL) of N = 6 tokens, sample mode, two- and three-token Markov pairs in tenths",
    subject=random_pairs,
    control=equal_pairs,
)
def perplexity_is_monotone_in_tau(pairs: Pairs, deep: bool) -> Outcome:
    for count, (target, draft) in enumerate(pairs(40), start=1):
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
    return Outcome("undecided", f"no failure among {count} pairs")
