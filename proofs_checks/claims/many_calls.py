"""Claims about target calls for N tokens, where a verifier of one draft may carry numbers from call to call.

Block verification is optimal among verifiers that forget ([BV] arXiv:2403.10444, Theorem 2); over many calls it is
not. What replaces it is this project's own; the proofs stand in `theory.many_calls` and on the page "Many calls".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from specbound.theory import many_calls
from specbound.theory.contexts import ModelPair
from specbound.theory.prefix_tree import PrefixTree

from ..laws.stream import stream_law
from .block_verification import BV
from .instances import rational_rows
from .ledger import OWN, Outcome, claim

Case = tuple[PrefixTree, int, int]
Calls = Callable[[PrefixTree, int, int], Any]
EXACT = 1e-11


def of_policy(policy: many_calls.Policy) -> Calls:
    """Expected calls under a policy."""
    return lambda tree, length, tokens: many_calls.calls(tree, length, tokens, policy)


def fewest(tree: PrefixTree, length: int, tokens: int) -> Any:
    """The certified optimum; a fraction on an exact tree."""
    found = many_calls.optimum(tree, length, tokens)
    return found.value if found.exact is None else found.exact


def simple_cases(lengths: Iterable[int], denominators: Iterable[int] = (2, 3, 4)) -> Iterator[tuple[Case, str]]:
    """iid pairs of two tokens in fractions, N = L + 1 .. L + 3, from the simplest on, and how each reads."""
    for denominator in denominators:
        for target, draft in itertools.product(rational_rows(2, denominator), repeat=2):
            for length in lengths:
                for tokens in range(length + 1, length + 4):
                    rows = [",".join(map(str, row)) for row in (target, draft)]
                    text = f"target {rows[0]}, draft {rows[1]}, L={length}, N={tokens}"
                    yield (PrefixTree.iid(target, draft, tokens - 1), length, tokens), text


def random_cases(count: int, lengths: tuple[int, ...], most: int = 6) -> Iterator[tuple[Case, str]]:
    """Context-dependent random pairs, V 2..3, N from 3 to `most`, every length in turn."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        length = lengths[seed % len(lengths)]
        vocab = int(rng.integers(2, 4))
        tokens = int(rng.integers(3, 1 + (most if vocab == 2 else min(most, 5))))
        tree = PrefixTree.random(vocab, tokens - 1 + length, seed, float(rng.choice([0.2, 0.5, 1.0])))
        yield (
            (tree, length, tokens),
            f"PrefixTree.random({vocab}, {tokens - 1 + length}, seed {seed}), L={length}, N={tokens}",
        )


def never_more(few: Calls, many: Calls, cases: Iterable[tuple[Case, str]]) -> Outcome:
    """Does `few` need no more calls than `many` on every case? The first where it does is the counterexample."""
    count, exact, lengths = 0, 0, set()
    for case, text in cases:
        count += 1
        exact += case[0].exact
        lengths.add(case[1])
        own, other = few(*case), many(*case)
        if own > other + (0 if isinstance(own, Fraction) else EXACT):
            return Outcome("refuted", f"case {count} of the search: {own} calls where {other} suffice", text)
    shown = ", ".join(map(str, sorted(lengths)))
    return Outcome(
        "holds", f"{exact} iid pairs in fractions and {count - exact} random pairs to {EXACT:.0e}, L {shown}"
    )


def all_cases(lengths: tuple[int, ...], deep: bool) -> Iterator[tuple[Case, str]]:
    """Simple pairs first, then random ones."""
    yield from simple_cases(lengths)
    yield from random_cases(400 if deep else 60, lengths)


@claim(
    "BV-many-calls",
    paper=BV,
    kind="reading",
    source="a reading of [BV] Theorem 2 for verifiers that carry numbers from call to call",
    statement="No lossless verifier of one draft needs fewer target calls for N tokens than block verification.",
    tested="expected calls in fractions, block verification against the certified optimum over all carries; the "
    "theorem itself is about single calls of stateless verifiers",
    subject=of_policy(many_calls.block),
    control=fewest,
)
def block_is_optimal_over_many_calls(calls: Calls, deep: bool) -> Outcome:
    return never_more(calls, fewest, all_cases((1, 2), deep))


@claim(
    "CALLS-fewest",
    paper=OWN,
    kind="own",
    source="specbound (own)",
    statement="Runtime verifier `pooled` emits the target's stream and needs the fewest target calls for N tokens of "
    "all lossless verifiers of one draft, for every N and L.",
    tested="exact stream law by replay, its calls against the optimum in closed form, which the dual certifies",
    subject="pooled",
    control="pooled-fill",
)
def pooled_needs_the_fewest_calls(verifier: str, deep: bool) -> Outcome:
    count, worst, farthest = 0, 0.0, 0.0
    for (tree, length, tokens), text in random_cases(48 if deep else 12, (1, 2, 3), most=4):
        count += 1
        pair = ModelPair.from_tree(tree)
        law = stream_law(verifier, pair, length, tokens)
        worst = max(worst, law.total_variation(pair.target_law(tokens)))
        farthest = max(farthest, law.calls - float(fewest(tree, length, tokens)))
        if max(worst, farthest) > EXACT:
            return Outcome("refuted", f"case {count}: {farthest:.3g} calls too many, law {worst:.0e} off", text)
    return Outcome("holds", f"{count} random pairs, L 1..3, N 3..4: law {worst:.0e} off, calls within {EXACT:.0e}")


@claim(
    "CALLS-fill-at-least-block",
    paper=OWN,
    kind="own",
    source="specbound (own)",
    statement="Block verification's share of each phase, filled up from the youngest on, never needs more calls than "
    "block verification.",
    tested="policy `fill` of theory.many_calls (runtime verifier `pooled-fill`); a proof stands in the documentation",
    subject=of_policy(many_calls.fill),
    control=of_policy(many_calls.young),
)
def fill_is_never_behind_block_verification(calls: Calls, deep: bool) -> Outcome:
    return never_more(calls, of_policy(many_calls.block), all_cases((2, 3), deep))


@claim(
    "CALLS-young-two",
    paper=OWN,
    kind="own",
    source="specbound (own)",
    statement="Letting the youngest running calls take first needs the fewest calls if at most two tokens are drafted.",
    tested="policy `young` of theory.many_calls (runtime verifier `pooled-young`); a proof stands in the documentation",
    subject=of_policy(many_calls.young),
    control=of_policy(many_calls.fill),
)
def young_is_optimal_for_two_tokens(calls: Calls, deep: bool) -> Outcome:
    return never_more(calls, fewest, all_cases((1, 2), deep))
