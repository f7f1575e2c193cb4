"""The same rounds from first principles: every drafted block, what the verifier does with it, and every tree.

A second route, independent of phi: a stopping tree is its set of leaves (the blocks sent to the target), and each
leaf has the verifier's own law of (accepted length, next token). Exponential; for small bounds only.
Token level: keep Y_i while coins of min(1, target/draft) succeed, then the residual (target - draft)+.
Block level ([BV] arXiv:2403.10444, Algorithm 2): from i = k down, accept i with probability h_i, where
    h_k = rho_k,   h_i = e_i / (e_i + 1 - rho_i),   e_i = sum (rho_i target - draft)+   (0/0 = 0),   h_0 = 1,
then the next token is from target if i = k, else from (rho_i target - draft)+ normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TypeAlias

from ..numbers import Number
from .instance import StoppingInstance
from .optimum import RuleValue, evaluate_rounds
from .rounds import Round

Block: TypeAlias = tuple[int, ...]
Outcome: TypeAlias = tuple[int, int, Number]

TREE_LIMIT = 200_000


def leaf_law(instance: StoppingInstance, start: int, block: Block) -> list[Outcome]:
    """Every (accepted length, next start context, probability) when the target verifies `block` from `start`."""
    trail, rhos = _trail(instance, start, block)
    token_level = instance.verifier == "token"
    stops = _token_stops(instance, trail, block) if token_level else _block_stops(instance, trail, rhos)
    outcomes = []
    for accepted, (probability, weights) in enumerate(stops):
        total = sum(weights)
        if probability > 0 and total > 0:
            for z, weight in enumerate(weights):
                if weight > 0:
                    following = instance.next_contexts[trail[accepted]][z]
                    outcomes.append((accepted, following, probability * weight / total))
    return outcomes


def block_probability(instance: StoppingInstance, start: int, block: Block) -> Number:
    """Q(block | start)."""
    trail, _ = _trail(instance, start, block)
    probability = instance.one
    for context, token in zip(trail[:-1], block, strict=True):
        probability *= instance.draft[context][token]
    return probability


def _trail(instance: StoppingInstance, start: int, block: Block) -> tuple[list[int], list[Number]]:
    """Contexts and rho after each drafted token, the start included."""
    trail, rhos = [start], [instance.one]
    for token in block:
        context = trail[-1]
        target, draft = instance.target[context][token], instance.draft[context][token]
        if instance.verifier == "token":
            rhos.append(rhos[-1] * min(1, target / draft))
        else:
            rhos.append(min(1, rhos[-1] * target / draft))
        trail.append(instance.next_contexts[context][token])
    return trail, rhos


def _residual(instance: StoppingInstance, context: int, scale: Number) -> list[Number]:
    pairs = zip(instance.target[context], instance.draft[context], strict=True)
    return [max(scale * target - draft, 0) for target, draft in pairs]


def _token_stops(instance: StoppingInstance, trail: list[int], block: Block) -> list[tuple[Number, list[Number]]]:
    """Per accepted length i: its probability and the (unnormalised) law of the next token."""
    stops, reached = [], instance.one
    for context, token in zip(trail[:-1], block, strict=True):
        accept = min(1, instance.target[context][token] / instance.draft[context][token])
        stops.append((reached * (1 - accept), _residual(instance, context, instance.one)))
        reached *= accept
    return [*stops, (reached, list(instance.target[trail[-1]]))]


def _block_stops(instance: StoppingInstance, trail: list[int], rhos: list[Number]) -> list[tuple[Number, list[Number]]]:
    """As `_token_stops`, deciding from the whole block downwards."""
    length = len(trail) - 1
    still = instance.one
    stops: list[tuple[Number, list[Number]]] = []
    for i in range(length, -1, -1):
        weights = list(instance.target[trail[i]]) if i == length else _residual(instance, trail[i], rhos[i])
        accept = rhos[i] if i == length else _block_threshold(sum(weights), rhos[i])
        stops.append((still if i == 0 else still * accept, weights))
        still *= 1 - accept
    return stops[::-1]


def _block_threshold(excess: Number, rho: Number) -> Number:
    return excess / (excess + 1 - rho) if excess > 0 else excess


def stopping_trees(instance: StoppingInstance, context: int, cap: int, forced: int = 0) -> Iterator[tuple[Block, ...]]:
    """Every stopping tree from `context` of depth at most `cap`, as its leaves; `forced` levels must be drafted."""
    if forced <= 0 or cap == 0:
        yield ((),)
    if cap > 0:
        tokens = [z for z in range(instance.vocab) if instance.draft[context][z] > 0]
        below = [
            [
                tuple((z, *leaf) for leaf in tree)
                for tree in stopping_trees(instance, instance.next_contexts[context][z], cap - 1, forced - 1)
            ]
            for z in tokens
        ]
        for choice in product(*below):
            yield tuple(leaf for tree in choice for leaf in tree)


def tree_round(instance: StoppingInstance, start: int, leaves: Sequence[Block]) -> Round:
    """N, T and M of a round that sends one of `leaves` to the target, summed leaf by leaf."""
    tokens = drafted = 0 * instance.one
    following = [0 * instance.one for _ in range(instance.contexts)]
    for block in leaves:
        mass = block_probability(instance, start, block)
        drafted += mass * len(block)
        for accepted, after, probability in leaf_law(instance, start, block):
            tokens += mass * probability * (accepted + 1)
            following[after] += mass * probability
    time = instance.target_time + instance.draft_time * drafted
    return Round(tokens, time, tuple(following), drafted)


def best_by_enumeration(instance: StoppingInstance) -> RuleValue:
    """The best of all combinations of stopping trees, one per start context.

    Raises:
        ValueError: more than 200,000 combinations.
    """
    options = []
    combinations = 1
    for start in range(instance.contexts):
        combinations *= _count_trees(instance, start, instance.max_length, instance.min_length)
        if combinations > TREE_LIMIT:
            raise ValueError(f"max_length is {instance.max_length}: over {TREE_LIMIT:,} rules; lower it")
        trees = stopping_trees(instance, start, instance.max_length, instance.min_length)
        options.append([tree_round(instance, start, leaves) for leaves in trees])
    values = (evaluate_rounds(instance, rounds) for rounds in product(*options))
    return max(values, key=lambda value: value.eta)


def _count_trees(instance: StoppingInstance, context: int, cap: int, forced: int) -> int:
    """How many stopping trees `stopping_trees` yields."""
    deeper = 1
    if cap == 0:
        return 1
    for z in range(instance.vocab):
        if instance.draft[context][z] > 0:
            deeper *= _count_trees(instance, instance.next_contexts[context][z], cap - 1, forced - 1)
            if deeper > TREE_LIMIT:
                return deeper
    return deeper + (forced <= 0)


def horizon_by_enumeration(instance: StoppingInstance, tokens: int) -> list[list[Number]]:
    """`J[n][s]`, least expected time to commit n tokens from s, over all stopping trees of depth <= min(K, n-1).

    min_length is clipped to n-1 as well.
    """
    times: list[list[Number]] = [[0 * instance.one] * instance.contexts]
    for n in range(1, tokens + 1):
        times.append([_best_tree_time(instance, s, n, times) for s in range(instance.contexts)])
    return times


def _best_tree_time(instance: StoppingInstance, start: int, remaining: int, times: list[list[Number]]) -> Number:
    cap = min(instance.max_length, remaining - 1)
    if _count_trees(instance, start, cap, instance.min_length) > TREE_LIMIT:
        raise ValueError(f"max_length is {instance.max_length}: over {TREE_LIMIT:,} trees; lower it")
    costs = []
    for leaves in stopping_trees(instance, start, cap, min(instance.min_length, cap)):
        cost = 0 * instance.one
        for block in leaves:
            later = sum(
                probability * times[remaining - accepted - 1][after]
                for accepted, after, probability in leaf_law(instance, start, block)
            )
            spent = instance.target_time + len(block) * instance.draft_time
            cost += block_probability(instance, start, block) * (spent + later)
        costs.append(cost)
    return min(costs)
