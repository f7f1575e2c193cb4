"""This project's own constructions: two-level selection, the key race, verifier tables, a realisation of F.

Two-level selection was conjectured here to keep at least what block verification and K-SEQ keep. It does not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction

from specbound.runtime.verifiers.table import table_verifier
from specbound.theory import (
    key_safe_race,
    known_values,
    level_by_level,
    monotone_race,
    multi_path,
    score_race,
    selection,
    single_path,
)
from specbound.theory.multi_path.verifier_table import verifier_table
from specbound.theory.prefix_tree import Array, Prefix, PrefixTree

from ..laws.law import exact_law
from .evidence import LAW_TOLERANCE, Case, Subject, Value, lossless, many_path_cases, size_of, wrong_at
from .instances import described, random_instances, simple_instances, sizes_run
from .ledger import OWN, Outcome, claim
from .multi_path import CERTIFIED, block_value, gbv_value, key_race_value, lossless_bound

FALL = 1e-10
Row = tuple[Fraction, ...]


def two_level_phi(tree: PrefixTree, paths: int) -> Array:
    """Kept probabilities of two-level selection followed by block verification."""
    plain = tree.as_float()
    return single_path.acceptance(plain, selection.two_level_path(plain, paths))


def two_level_value(tree: PrefixTree, paths: int) -> float:
    """Acceptance length of two-level selection followed by block verification."""
    return float(two_level_phi(tree, paths)[1:].sum())


def kseq_value(tree: PrefixTree, paths: int) -> float:
    """Acceptance length of K-SEQ."""
    return float(level_by_level.kseq(tree, paths)[1:].sum())


@claim(
    "TWO-LEVEL-lossless",
    paper=OWN,
    kind="own",
    source="specbound (own)",
    statement="Two-level selection followed by block verification leaves the target's law unchanged.",
    tested="runtime verifier `two-level`",
    subject="two-level",
    control=wrong_at("two-level", vocab=2, length=2, paths=2),
)
def two_level_is_lossless(verifier: Subject, deep: bool) -> Outcome:
    return lossless(verifier, many_path_cases(deep), kept=two_level_phi)


def never_below(better: Value, worse: Value, cases: Iterable[Case]) -> Outcome:
    """Is `better` at least `worse` on every case? The first that fails is the counterexample."""
    run = []
    for case in cases:
        run.append(size_of(case))
        low, high = better(*case), worse(*case)
        if low < high - FALL:
            evidence = f"case {len(run)} of the search: {float(low):.9f} where at least {float(high):.9f} was claimed"
            return Outcome("refuted", evidence, f"{described(case[0])}, K={case[1]}")
    return Outcome("holds", f"never below by more than {FALL:.0e}, {sizes_run(run)}")


def from_rows(rows: Mapping[Prefix, tuple[Row, Row]], otherwise: tuple[Row, Row], length: int) -> PrefixTree:
    """A tree of (target, draft) rows by prefix, and one pair of rows for all other prefixes."""
    return PrefixTree.from_conditionals(
        lambda prefix: rows.get(prefix, otherwise)[0],
        lambda prefix: rows.get(prefix, otherwise)[1],
        len(otherwise[0]),
        length,
    )


def lonely_branches(max_denominator: int) -> Iterator[Case]:
    """Three tokens, two paths: token 0 opens the only branch worth following, and selection draws it too seldom.

    Root target (a, 1-a), draft (b, 1-b), a < b; after 0 target (1, 0), draft (r, 1-r); after 1 the laws are disjoint;
    then both are sure of token 0. Simplest fractions first.
    """
    sure = (Fraction(1), Fraction(0))
    parts = [
        Fraction(n, d) for d in range(2, max_denominator + 1) for n in range(1, d) if Fraction(n, d).denominator == d
    ]
    triples = [(a, b, r) for a, b, r in itertools.product(parts, repeat=3) if a < b]
    for a, b, r in sorted(triples, key=lambda triple: (max(part.denominator for part in triple), triple)):
        rows = {(): ((a, 1 - a), (b, 1 - b)), (0,): (sure, (r, 1 - r)), (1,): (sure, sure[::-1])}
        yield from_rows(rows, (sure, sure), 3), 2


@claim(
    "TWO-LEVEL-at-least-block",
    paper=OWN,
    kind="own",
    source="specbound (own), conjectured in earlier versions",
    statement="Two-level selection never keeps fewer tokens than block verification of one path.",
    tested="closed-form values on trees with one branch worth following, L = 3, K = 2",
    subject=two_level_value,
    control=key_race_value,
)
def two_level_against_block(value: Value, deep: bool) -> Outcome:
    return never_below(value, block_value, lonely_branches(5))


@claim(
    "TWO-LEVEL-at-least-block-short",
    paper=OWN,
    kind="own",
    source="specbound (own), a theorem (proof in the docstring of the check)",
    statement="For at most two drafted tokens two-level selection never keeps fewer than block verification.",
    tested="closed-form values, random trees and every family of degenerate ones",
    subject=two_level_value,
    control=gbv_value,
)
def two_level_against_block_for_two_tokens(value: Value, deep: bool) -> Outcome:
    """Proof: what the first token gains pays for what the second can lose.

    Let kappa be the law of the selected path's first token, q the draft's, p the target's. The rule clips p to
    [k2 q, k1 q], k2 <= 1 <= k1, with sum kappa = 1. Where kappa < q, kappa >= p, so min(kappa, p) = min(q, p); where
    kappa > q, kappa <= p, so min(kappa, p) - min(q, p) = kappa - q. The first token gains sum (kappa - q)+, which is
    sum (q - kappa)+. Below y the second selection does at least as well as one path drawn with kappa(y) q(.|y), so
    where kappa >= q nothing is lost, and where kappa < q the acceptance phi(y) = p(y) is the same and the loss is at
    most sum_z (q(y) - kappa(y)) q(z|y) = q(y) - kappa(y). Summed over y, that is at most the gain.
    """
    cases = [(tree, paths) for tree in random_instances(400 if deep else 60, 3, 2) for paths in (2, 3, 6)]
    return never_below(
        value, block_value, [*cases, *((tree, k) for tree, k in many_path_cases(deep) if tree.length < 3)]
    )


THREE_WAYS = from_rows(
    {
        (): ((Fraction(1), Fraction(0), Fraction(0)), (Fraction(9, 10), Fraction(1, 10), Fraction(0))),
        (0,): (
            (Fraction(1, 10), Fraction(0), Fraction(9, 10)),
            (Fraction(3, 40), Fraction(1, 5), Fraction(29, 40)),
        ),
    },
    ((Fraction(1), Fraction(0), Fraction(0)),) * 2,
    2,
)


def with_random(case: Case) -> list[Case]:
    """A known case, then random ones, K 2..3."""
    return [case, *((tree, paths) for tree in random_instances(18) for paths in (2, 3))]


@claim(
    "TWO-LEVEL-at-least-kseq",
    paper=OWN,
    kind="own",
    source="specbound (own), conjectured in earlier versions",
    statement="Two-level selection never keeps fewer tokens than K-SEQ.",
    tested="closed-form values, K = 5 (K-SEQ adapts to how many paths came, two-level to the law of that number)",
    subject=two_level_value,
    control=lossless_bound,
)
def two_level_against_kseq(value: Value, deep: bool) -> Outcome:
    return never_below(value, kseq_value, with_random((THREE_WAYS, 5)))


@claim(
    "TWO-LEVEL-at-least-traversal",
    paper=OWN,
    kind="own",
    source="specbound (own), observed in a survey",
    statement="Two-level selection never keeps fewer tokens than traversal verification.",
    tested="closed-form value against the exact law of the runtime verifier `traversal`, three paths",
    subject=two_level_value,
    control=lossless_bound,
)
def two_level_against_traversal(value: Value, deep: bool) -> Outcome:
    def traversal(tree: PrefixTree, paths: int) -> float:
        return exact_law("traversal", tree, paths).acceptance_length

    sure, draft = (Fraction(1), Fraction(0)), (Fraction(1, 6), Fraction(5, 6))
    rows = {(): ((Fraction(1, 60), Fraction(59, 60)), draft), (0,): (sure, draft), (1,): (sure[::-1], draft)}
    return never_below(value, traversal, with_random((from_rows(rows, (sure, sure), 2), 3)))


@claim(
    "TWO-LEVEL-monotone",
    paper=OWN,
    kind="own",
    source="specbound (own), a conjecture of earlier versions",
    statement="The acceptance length of two-level selection does not fall when a path is added.",
    tested="closed-form values, K against K - 1",
    subject=two_level_value,
    control=key_race_value,
)
def two_level_is_monotone(value: Value, deep: bool) -> Outcome:
    rare = PrefixTree.iid([Fraction(1, 120), Fraction(119, 120)], [Fraction(1, 20), Fraction(19, 20)], 2)
    return never_below(value, lambda tree, paths: value(tree, paths - 1), with_random((rare, 3)))


@claim(
    "TWO-LEVEL-gap",
    paper=OWN,
    kind="own",
    source="specbound (own)",
    statement="On random trees, V <= 3, L <= 3, two or three paths, two-level selection reaches "
    "99 % of the lossless optimum on average.",
    tested="value over certified optimum; at larger V, L and K the share is smaller",
    subject=two_level_value,
    control=gbv_value,
)
def two_level_gap(value: Value, deep: bool) -> Outcome:
    return mean_share(value, 0.99, 300 if deep else 40)


def mean_share(value: Value, wanted: float, count: int) -> Outcome:
    """Is a value at least that share of the certified optimum on average, over random trees with K = 2 and 3?"""
    cases = [(tree, paths) for tree in random_instances(count) for paths in (2, 3)]
    shares = [float(value(*case)) / multi_path.lossless_optimum(*case).bound for case in cases]
    mean = sum(shares) / len(shares)
    sizes = sizes_run([size_of(case) for case in cases])
    evidence = f"{100 * mean:.2f} % on average, {100 * min(shares):.1f} % at worst, {sizes}"
    if mean >= wanted:
        return Outcome("holds", evidence)
    return Outcome("refuted", evidence, f"the average over the {len(cases)} cases named in the evidence")


@claim(
    "TWO-LEVEL-optimal",
    paper=OWN,
    kind="own",
    source="specbound (own)",
    statement="Two-level selection attains the lossless optimum.",
    tested="value against the certified optimum, iid instances, K = 2",
    subject=two_level_value,
    control=lambda tree, paths: multi_path.lossless_optimum(tree, paths).value,
)
def two_level_is_optimal(value: Value, deep: bool) -> Outcome:
    for count, tree in enumerate(simple_instances(2, 2, 5), start=1):
        kept, best = value(tree, 2), multi_path.lossless_optimum(tree, 2)
        if kept < best.value - CERTIFIED:
            evidence = f"instance {count} of the search: it keeps {kept:.9f}, the optimum is at least {best.value:.9f}"
            return Outcome("refuted", evidence, f"{described(tree)}, K=2")
    return Outcome("holds", f"on {count} iid instances")


@claim(
    "KEY-RACE",
    paper=OWN,
    kind="own",
    source="specbound (own), construction C2",
    statement="K block verifications and a lottery of their keys are lossless and keep each prefix w with probability "
    "P g(phi_block / P).",
    tested="runtime verifier `key-race`",
    subject="key-race",
    control="two-level",
)
def key_race_realises_its_profile(verifier: Subject, deep: bool) -> Outcome:
    return lossless(verifier, many_path_cases(deep), kept=known_values.key_race)


def optimal_selection(tree: PrefixTree, paths: int) -> Array | None:
    """The law of the selected path in the certified lossless optimum."""
    return multi_path.lossless_optimum(tree, paths).kappa


def greedy_selection(tree: PrefixTree, paths: int) -> Array:
    """The law of the path that GBV selects: valid, but not optimal."""
    return selection.greedy_path(tree, paths)[tree.leaves]


@claim(
    "TABLE",
    paper=OWN,
    kind="own",
    source="specbound (own), from optimum to verifier",
    statement="The verifier table recovered from the optimal law of the selected path is lossless and attains the "
    "lossless optimum.",
    tested="tables of certified optima, executed by the runtime verifier `table`, K = 2 and 3",
    subject=optimal_selection,
    control=greedy_selection,
)
def table_attains_the_optimum(selected: Callable[[PrefixTree, int], Array | None], deep: bool) -> Outcome:
    worst_law = worst_value = 0.0
    sizes = []
    for tree, paths in itertools.product(random_instances(40 if deep else 8, 3, 2), (2, 3)):
        best = multi_path.lossless_optimum(tree, paths).value
        emitted = verifier_table(tree, paths, selected(tree, paths), "lossless").to_json()
        law = exact_law(table_verifier(json.loads(emitted)).verify, tree, paths)
        sizes.append((tree.vocab, tree.length, paths))
        worst_law = max(worst_law, law.total_variation(tree.target_law()))
        worst_value = max(worst_value, abs(law.acceptance_length - best))
        if worst_law > LAW_TOLERANCE or worst_value > CERTIFIED:
            evidence = (
                f"total variation {worst_law:.6f}, it keeps {law.acceptance_length:.6f}, the optimum is {best:.6f}"
            )
            return Outcome("refuted", evidence, f"{described(tree)}, K={paths}")
    evidence = f"total variation <= {worst_law:.0e}, value of the optimum within {worst_value:.0e}, {sizes_run(sizes)}"
    return Outcome("holds", evidence)


@claim(
    "SPECTR-realised",
    paper=OWN,
    kind="own",
    source="specbound (own), construction C3, for the acceptance of [SpecTr-GBV]",
    statement="A race of path keys with the modified target law carried realises F exactly and is lossless.",
    tested="runtime verifier `spectr-gbv`, exact law of one call and of several, its carry passed on",
    subject="spectr-gbv",
    control="key-race",
)
def profile_is_realised(verifier: Subject, deep: bool) -> Outcome:
    return lossless(verifier, many_path_cases(deep), kept=known_values.spectr_gbv_claim)


# ---------------------------------------------------------------------- the score race


def score_race_value(tree: PrefixTree, paths: int) -> float:
    """Acceptance length of the score race with the safe rule, the default of `score-race`."""
    return float(score_race.acceptance(tree, paths)[1:].sum())


@claim(
    "SCORE-RACE-at-least-block",
    paper=OWN,
    kind="own",
    source="specbound (own), a theorem",
    statement="The score race with the safe rule never keeps fewer tokens than block verification of one path.",
    tested="values in theory on the trees that refute it of two-level selection, and on random trees",
    subject=score_race_value,
    control=two_level_value,
)
def score_race_against_block(value: Value, deep: bool) -> Outcome:
    cases = [*itertools.islice(lonely_branches(5), 60), *((tree, k) for tree in random_instances(12) for k in (2, 3))]
    return never_below(value, block_value, cases)


def falling() -> PrefixTree:
    """One token of three: the best set of two drafts is not that of three."""
    rows = [Fraction(n, 10_000) for n in (770, 93, 9137)], [Fraction(n, 1000) for n in (38, 108, 854)]
    return PrefixTree.iid(*rows, length=1)


@claim(
    "SCORE-RACE-monotone",
    paper=OWN,
    kind="own",
    source="specbound (own), a conjecture that failed",
    statement="The acceptance length of the score race does not fall when a path is added.",
    tested="values in theory, the safe rule, K against K - 1",
    subject=score_race_value,
    control=key_race_value,
)
def score_race_is_monotone(value: Value, deep: bool) -> Outcome:
    return never_below(value, lambda tree, paths: value(tree, paths - 1), with_random((falling(), 3)))


@claim(
    "SCORE-RACE-gap",
    paper=OWN,
    kind="own",
    source="specbound (own)",
    statement="On random trees, V <= 3, L <= 3, two or three paths, the score race reaches 99.8 % of the lossless "
    "optimum on average.",
    tested="value in theory over certified optimum",
    subject=score_race_value,
    control=two_level_value,
)
def score_race_gap(value: Value, deep: bool) -> Outcome:
    return mean_share(value, 0.998, 300 if deep else 40)


# ---------------------------------------------------------------------- towards a monotone rule


def key_safe_value(tree: PrefixTree, paths: int) -> float:
    """Acceptance length of the score race with the key race as its reserve."""
    return float(key_safe_race.acceptance(tree, paths)[1:].sum())


def monotone_value(tree: PrefixTree, paths: int) -> float:
    """Acceptance length of the score race with the rule for one draft less as its reserve."""
    return float(monotone_race.acceptance(tree, paths)[1:].sum())


def late_token() -> PrefixTree:
    """Two tokens, L = 3: the target wants token 1 from the second place on, the draft doubts it."""
    half, sure = Fraction(1, 2), (Fraction(1), Fraction(0))
    doubtful = (Fraction(3, 4), Fraction(1, 4))
    rows = {(): ((half, half), doubtful), (0,): (sure[::-1], doubtful), (1,): (sure[::-1], sure)}
    return from_rows(rows, (sure[::-1], (half, half)), 3)


@claim(
    "SCORE-RACE-at-least-key-race",
    paper=OWN,
    kind="own",
    source="specbound (own), a question",
    statement="The score race with the safe rule never keeps fewer tokens than the key race.",
    tested="values in theory, small rational trees",
    subject=score_race_value,
    control=key_safe_value,
)
def score_race_against_key_race(value: Value, deep: bool) -> Outcome:
    return never_below(value, key_race_value, with_random((late_token(), 2)))


@claim(
    "KEY-SAFE-at-least-key-race",
    paper=OWN,
    kind="own",
    source="specbound (own), a theorem",
    statement="A score race whose fallback reserves the key race never keeps fewer tokens than the key race, hence "
    "than block verification of one path.",
    tested="theory.key_safe_race (no runtime verifier) on trees that refute it of the score race, and on random trees",
    subject=key_safe_value,
    control=score_race_value,
)
def key_safe_against_key_race(value: Value, deep: bool) -> Outcome:
    cases = [(late_token(), paths) for paths in (2, 3, 4, 8)]
    cases += itertools.islice(lonely_branches(5), 200 if deep else 15)
    return never_below(value, key_race_value, cases + [(t, k) for t in random_instances(12) for k in (2, 3)])


@claim(
    "MONOTONE-race",
    paper=OWN,
    kind="own",
    source="specbound (own), a theorem",
    statement="A score race whose fallback mirrors the rule for one draft less never keeps fewer tokens when a draft "
    "is added, hence never fewer than block verification of one path.",
    tested="theory.monotone_race (no runtime verifier), K against K - 1 and block verification, on trees that refute "
    "it of the score race and of two-level selection, and on random trees",
    subject=monotone_value,
    control=score_race_value,
)
def monotone_race_is_monotone(value: Value, deep: bool) -> Outcome:
    cases = [(falling(), 3), *itertools.islice(lonely_branches(5), 200 if deep else 4)]
    cases += [(tree, paths) for tree in random_instances(60 if deep else 6) for paths in (2, 3)]
    return never_below(value, lambda tree, paths: max(value(tree, paths - 1), block_value(tree, 1)), cases)


@claim(
    "MONOTONE-gap",
    paper=OWN,
    kind="own",
    source="specbound (own)",
    statement="On random trees, V <= 3, L <= 3, two or three paths, that monotone rule reaches 99 % of the lossless "
    "optimum on average.",
    tested="value in theory over certified optimum",
    subject=monotone_value,
    control=key_race_value,
)
def monotone_race_gap(value: Value, deep: bool) -> Outcome:
    return mean_share(value, 0.99, 60 if deep else 12)


@claim(
    "MONOTONE-at-least-key-race",
    paper=OWN,
    kind="own",
    source="specbound (own), a question",
    statement="That monotone rule never keeps fewer tokens than the key race.",
    tested="values in theory, small rational trees",
    subject=monotone_value,
    control=key_safe_value,
)
def monotone_race_against_key_race(value: Value, deep: bool) -> Outcome:
    return never_below(value, key_race_value, [(late_token(), 2)])
