"""Held against reality: do real calls of the unmodified code, with real coins, agree with the law found exactly?

Replay and interception put their own answers in the place of the code's random numbers. Where they misunderstand the
code, the exact law is that of something else. Some hundred real calls show gross misunderstandings at once: code that
seeds its generator in every call, reads another generator, or answers all requests of a batch from the first one.

Every beginning w of the emitted tokens has the probability P(w) by the exact law and was seen c(w) times in n calls. If
the law is right, c(w) is binomial, so that the smallest of its tails over m beginnings is below a / 2m with probability
at most a.

Letters: L draft length, K paths, V vocabulary, n calls, a false-alarm rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.theory.contexts import ModelPair, Prefix
from specbound.theory.prefix_tree import PrefixTree

from ..laws.replay import Verify

CALLS = 300
FALSE_ALARM = 1e-9


@dataclass(frozen=True)
class Disagreement:
    """The beginning of the emitted tokens that contradicts the exact law most.

    Attributes:
        prefix: the tokens before the one whose law is doubted.
        exact, seen: token after them -> probability of both together, by the exact law and in the real calls.
        calls: number of real calls.
    """

    prefix: Prefix
    exact: dict[int, float]
    seen: dict[int, float]
    calls: int

    def __str__(self) -> str:
        after = f" {' '.join(map(str, self.prefix))} and then" if self.prefix else ""
        return (
            f"{self.calls} real calls do not have the law found exactly: they emit{after} {_shown(self.seen)}, by the "
            f"exact law {_shown(self.exact)}; what was enumerated is not what the code does"
        )


def _shown(law: Mapping[int, float]) -> str:
    return ", ".join(f"{token} with {law[token]:.4g}" for token in sorted(law) if law[token]) or "nothing"


def disagreement(
    exact: Mapping[Prefix, float], seen: Mapping[Prefix, int], false_alarm: float = FALSE_ALARM
) -> Disagreement | None:
    """Where the exact law is least likely to be that of the calls; None if that is not beyond doubt.

    Args:
        exact: law of the first N tokens. seen: how often each was emitted by real calls, of the same N tokens.
        false_alarm: probability that a right law is doubted.
    """
    calls = sum(seen.values())
    law, counts = beginnings(exact), beginnings(seen)
    prefixes = sorted(law.keys() | counts.keys())
    if not calls or not prefixes:
        return None
    chance = np.clip([law.get(prefix, 0.0) for prefix in prefixes], 0.0, 1.0)
    count = np.array([counts.get(prefix, 0) for prefix in prefixes])
    from scipy.stats import binom  # half a second, in every process that audits

    tails = np.minimum(binom.cdf(count, calls, chance), binom.sf(count - 1, calls, chance))
    worst = int(tails.argmin())
    if tails[worst] >= false_alarm / (2 * len(prefixes)):
        return None
    before = prefixes[worst][:-1]
    exact_after, seen_after = (
        {prefix[-1]: mass for prefix, mass in masses.items() if prefix[:-1] == before} for masses in (law, counts)
    )
    return Disagreement(before, exact_after, {y: number / calls for y, number in seen_after.items()}, calls)


def beginnings(blocks: Mapping[Prefix, float]) -> dict[Prefix, float]:
    """The mass of every beginning of one token or more."""
    total: Counter[Prefix] = Counter()
    for block, mass in blocks.items():
        for length in range(1, len(block) + 1):
            total[block[:length]] += mass  # type: ignore[assignment]
    return dict(total)


def continued(tree: PrefixTree, seen: Mapping[Prefix, int], seed: int) -> dict[Prefix, int]:
    """Emitted blocks of 1 to L+1 tokens, continued from the target to L+1 tokens by random draws.

    A block that leaves the tree stands for itself, as in the exact law.
    """
    tree = tree.as_float()
    rng = np.random.default_rng(seed)
    node = {tree.prefix(w): w for w in range(tree.size)}
    rows = tree.rows(tree.target)
    rows[tree.leaves] = tree.bonus
    total: Counter[Prefix] = Counter()
    for block, count in seen.items():
        for _ in range(count):
            longer = block
            while longer in node and rows[node[longer]].any():
                row = rows[node[longer]]
                longer = (*longer, int(rng.choice(len(row), p=row / row.sum())))
            total[longer] += 1
    return dict(total)


def real_streams(
    verify: Verify, pair: ModelPair, length: int, paths: int, count: int, seed: int, tokens: int
) -> dict[Prefix, int]:
    """How often `count` streams begin with which tokens: real calls with real coins, the carry passed on.

    All streams that still need tokens are verified in one batch, each in its own context.
    """
    rng = np.random.default_rng(seed)
    draws = Draws(torch.Generator().manual_seed(seed))
    out: list[list[int]] = [[] for _ in range(count)]
    context = np.full(count, pair.start)
    going, carry = np.arange(count), None
    while len(going):
        drafts, contexts = _drafted(rng, pair, context[going], length, paths)
        draft_probs, target_probs = (
            torch.as_tensor(rows) for rows in (pair.draft.rows[contexts[..., :-1]], pair.target.rows[contexts])
        )
        verdict = verify(Batch(torch.as_tensor(drafts), draft_probs, target_probs, carry), draws)
        path, kept, token = (part.numpy() for part in (verdict.path, verdict.accepted, verdict.token))
        for place, stream in enumerate(going):
            out[stream] += [*drafts[place, path[place], : kept[place]].tolist(), int(token[place])]
        context[going] = pair.successor[contexts[np.arange(len(going)), path, kept], token]
        short = np.array([len(out[stream]) < tokens for stream in going])
        carry = None if verdict.carry is None else verdict.carry.select(np.flatnonzero(short).tolist())
        going = going[short]
    return dict(Counter(tuple(stream[:tokens]) for stream in out))


def _drafted(
    rng: np.random.Generator, pair: ModelPair, start: np.ndarray, length: int, paths: int
) -> tuple[np.ndarray, np.ndarray]:
    """Drafted tokens [B, K, L], drawn from the draft's rows, and the contexts [B, K, L+1] along them."""
    context = np.repeat(start[:, None], paths, axis=1)
    tokens, contexts = [], [context]
    for _ in range(length):
        sums = pair.draft.rows[context].cumsum(axis=-1)
        point = rng.random((*context.shape, 1)) * sums[..., -1:]
        token = np.minimum((sums <= point).sum(axis=-1), pair.vocab - 1)
        context = pair.successor[context, token]
        tokens.append(token)
        contexts.append(context)
    return np.stack(tokens, axis=-1), np.stack(contexts, axis=-1)
