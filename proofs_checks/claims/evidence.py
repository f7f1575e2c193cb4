"""What several claims ask in the same way: is a verifier lossless, does it keep what theory says, is a value beaten.

A subject is a registered name or a function `verify(batch, draws) -> Verdict`. Cases vary V, L and K independently
and go through every family of `laws.instances` (zeros, one-hot rows, ties, equal and disjoint rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from fractions import Fraction

import torch

from specbound.runtime import registry
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.theory.prefix_tree import Array, PrefixTree

from ..laws import judge
from ..laws.instances import instances
from ..laws.law import Law, exact_law
from .instances import Size, described, sizes_run
from .ledger import Outcome

Verify = Callable[[Batch, Draws], Verdict]
Subject = str | Verify
Case = tuple[PrefixTree, int]
Value = Callable[[PrefixTree, int], Fraction | float]
LAW_TOLERANCE = 1e-12
MOST_FOLLOWED = 9
VALUE_TOLERANCE = 1e-10


def single_path_cases(deep: bool) -> list[Case]:
    """One path, V 1..4 and L 1..3 in every combination."""
    found = instances(range(1, 5), range(1, 4), range(1, 2), 480 if deep else 120)
    return [(case.tree, 1) for case in found]


def many_path_cases(deep: bool) -> list[Case]:
    """V 1..3, L 1..2 and K 1..3 in every combination, and three tokens drafted twice or three times for V = 2."""
    times = 4 if deep else 1
    found = [
        *instances(range(1, 4), range(1, 3), range(1, 4), 54 * times),
        *instances(range(2, 3), range(3, 4), range(2, 4), 4 * times),
    ]
    return [(case.tree, case.paths) for case in found]


def size_of(case: Case) -> Size:
    """(V, L, K)."""
    tree, paths = case
    return tree.vocab, tree.length, paths


def lossless(
    subject: Subject, cases: Iterable[Case], kept: Callable[[PrefixTree, int], Array] | None = None
) -> Outcome:
    """Does the subject emit the target's law on every case, and (if `kept` is given) keep the prefixes as theory says?

    The exact law of the very code of the subject; the first case that fails is the counterexample. A stateful subject
    is followed over several calls on the cases with at most `MOST_FOLLOWED` sets of drafts, the others show what one
    call keeps.
    """
    worst_law = worst_kept = 0.0
    run: list[Size] = []
    followed: list[Size] = []
    for tree, paths in cases:
        law = exact_law(subject, tree, paths)
        run.append((tree.vocab, tree.length, paths))
        where = f"{described(tree)}, K={paths}"
        if not law.stateful or len(tree.bonus) ** paths <= MOST_FOLLOWED:
            worst_law = max(worst_law, judge.evidence(subject, tree, paths, law=law).total_variation)
            followed += [run[-1]] if law.stateful else []
        if worst_law > LAW_TOLERANCE:
            return Outcome("refuted", f"case {len(run)}: total variation {worst_law:.6f} to the target's law", where)
        if kept is not None:
            worst_kept = max(worst_kept, kept_error(law, tree, kept(tree, paths)))
            if worst_kept > VALUE_TOLERANCE:
                return Outcome("refuted", f"case {len(run)}: a kept probability is off by {worst_kept:.6f}", where)
    evidence = f"exact law of the production code, {sizes_run(run)}: total variation <= {worst_law:.0e}"
    if followed:
        evidence += f" over several calls, {sizes_run(followed)}"
    if kept is not None:
        evidence += f", kept probability of each prefix as in theory to {worst_kept:.0e}"
    return Outcome("holds", evidence)


def kept_error(law: Law, tree: PrefixTree, phi: Array) -> float:
    """Largest difference between the kept probabilities of a law and phi."""
    return max(abs(law.kept[tree.prefix(node)] - float(phi[node])) for node in range(1, tree.size))


def wrong_at(name: str, *, vocab: int, length: int, paths: int) -> Verify:
    """The verifier `name`, but at one size its correction is always token 0: a control for lossless claims."""

    def verify(batch: Batch, draws: Draws) -> Verdict:
        verdict = registry.get(name).verify(batch, draws)
        if tuple(batch.draft_probs.shape[1:]) != (paths, length, vocab):
            return verdict
        return replace(verdict, token=torch.zeros_like(verdict.token))

    return verify
