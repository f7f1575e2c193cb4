"""Right verifiers that are reported as biased now and then, and why they are not.

A scheme is recognised by its acceptance length: the law of what is emitted is the target's for all of them. It is named
only where it keeps less than the optimum, so that it can be told from verifiers that use the draft's law.

Letters: p target row, x the drafted tokens, K paths.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from ..laws.instances import is_greedy
from .foreign.adapters import Call, Foreign, symbolic_law
from .foreign.interception import Interception
from .report import Case

SAME = 1e-9
COMPARED = 2
FEWER = 1e-6


MATCH = (
    "It keeps a drafted token with its target probability, as if it were compared with a token drawn from the target, "
    "and else emits that token: what is emitted is a draw from the target, wherever the drafted tokens come from. The "
    "draft's row plays no part (its probability counts as 1), which looks like a missing ratio p/q and costs "
    "acceptance, not exactness."
)
CHILDREN = (
    "It takes drafted tokens as deterministic children: each is kept with its share of the target's mass that earlier "
    "siblings left, so that one draw from the target decides among all of them and the rest. The draft's law plays no "
    "part (its probability counts as 1), which costs acceptance, not exactness."
)
GREEDY = (
    "At temperature 0 the target's law is a single token: keeping a drafted token if and only if it is that token, and "
    "emitting that token otherwise, is a draw from that law. No coin is needed, and none is missing."
)


def deterministic_children(call: Call) -> list[int]:
    """Every different child once, in the order drawn, against the mass that is left; with one path, sampler match."""
    paths = list(range(call.paths))
    kept: list[int] = []
    for i in range(call.length):
        rest = call.target_probs[paths[0], i].tolist()
        for token in dict.fromkeys(int(call.tokens[k, i]) for k in paths):
            if random.random() * sum(rest) < rest[token]:
                break
            rest[token] = 0.0
        else:
            return [*kept, random.choices(range(len(rest)), rest)[0]]
        kept.append(token)
        paths = [k for k in paths if call.tokens[k, i] == token]
    last = call.target_probs[paths[0], call.length].tolist()
    return [*kept, random.choices(range(len(last)), last)[0]]


def why_lossless(cases: Sequence[Case]) -> str:
    """The sentence for cases on which a verifier was found to be lossless; empty if none applies."""
    exact = [case for case in cases if case.evidence is not None and not case.evidence.stateful]
    if not exact:
        return ""
    if all(is_greedy(case.instance.tree) for case in exact):
        return GREEDY
    order = sorted(exact, key=lambda case: case.acceptance_length - case.optimum)
    several = [case for case in order if case.instance.paths > 1]
    single = [case for case in order if case.instance.paths == 1]
    compared = [*several[:COMPARED], *single[:COMPARED]]
    code = Foreign(deterministic_children, lambda call: {"call": call}, lambda block, _: block, "many")
    fewer = False
    with Interception() as interception:
        for case in compared:
            tree, paths = case.instance.tree, case.instance.paths
            made = symbolic_law(interception, code, tree, paths).acceptance_length
            slack = SAME + (case.evidence.resolution if case.evidence else 0.0) * (tree.length + 1)
            if abs(made - case.acceptance_length) > slack:
                return ""
            fewer = fewer or made < case.optimum - FEWER - slack
    return (CHILDREN if several else MATCH) if fewer else ""
