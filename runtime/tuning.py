"""Which verifier, how many paths, how long a draft? Measured costs and acceptance statistics, put together.

For one path the probability c_i that the first i drafted tokens are kept, given the draft, does not depend on how
many more are drafted. So one run with long drafts gives, for every shorter length L, an unbiased and low-noise
estimate of the acceptance length at its calls:

    A_L = mean over calls of c_1 + .. + c_L          tokens per second = (1 + A_L) / seconds per call

(the mean is over the contexts where that run's calls began; shorter drafts begin their calls at other places of the
same text). Letters: K paths, L draft length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .verdict import Batch
from .verifiers import entries, get


def kept_probabilities(verifier: str, batch: Batch) -> Tensor:
    """[B, L] Pr(at least i tokens of the given draft are kept), i = 1..L, for a verifier that declares them.

    Raises:
        ValueError: the verifier does not, or the batch has several paths.
    """
    if batch.shape[1] != 1:
        raise ValueError(f"the batch has {batch.shape[1]} paths; want 1")
    if (kept := get(verifier).kept) is None:
        known = " or ".join(repr(entry.name) for entry in entries() if entry.kept is not None)
        raise ValueError(f"verifier is {verifier!r}; want {known}")
    return kept(batch)


def predicted_speed(kept: Tensor, length: int, seconds_per_call: float) -> float:
    """Tokens per second of drafts of `length` tokens: (1 + A_L) / seconds per call.

    Args:
        kept [C, L'] of `kept_probabilities`, L' >= length.

    Raises:
        ValueError: if `kept` covers shorter drafts only or no calls, or the time is not a positive number.
    """
    if not 1 <= length <= kept.shape[1]:
        raise ValueError(f"length is {length}; the run drafted {kept.shape[1]} tokens")
    if len(kept) == 0 or not 0 < seconds_per_call < math.inf:
        raise ValueError(f"{len(kept)} calls of {seconds_per_call} seconds; want at least one, and a positive time")
    return float(1 + kept[:, :length].sum(dim=1, dtype=torch.float64).mean()) / seconds_per_call


@dataclass(frozen=True)
class Recommendation:
    """The candidate with the largest measured speed.

    Attributes:
        name: the candidate.
        confidence: share of bootstrap samples (over prompts) in which it is the fastest, in [0, 1].
        rivals: candidates that are the fastest in at least 5 % of them, itself included, most frequent first.
        speedup: how many times as fast as the first candidate it is, in the middle 95 % of them.
    """

    name: str
    confidence: float
    rivals: tuple[str, ...]
    speedup: tuple[float, float]


def recommend(
    tokens: Mapping[str, Sequence[int]], seconds: Mapping[str, Sequence[float]], samples: int = 2000, seed: int = 0
) -> Recommendation:
    """The fastest candidate, and how sure that is: prompts are drawn anew with replacement.

    Args:
        tokens, seconds: for each candidate one entry per prompt, the same prompts in the same order.

    Raises:
        ValueError: no candidates, unequal numbers of prompts, or numbers out of range.
    """
    if not all(0 < value < math.inf for values in seconds.values() for value in values) or not all(
        0 <= value < math.inf for values in tokens.values() for value in values
    ):
        raise ValueError("seconds wants positive numbers and tokens numbers of at least 0")
    counts = {len(values) for entries in (tokens, seconds) for values in entries.values()}
    if tokens.keys() != seconds.keys() or len(counts) != 1 or 0 in counts:
        raise ValueError("tokens and seconds want the same candidates, each with one entry per prompt")
    names = list(tokens)
    made, spent = (np.array([entries[name] for name in names], dtype=float) for entries in (tokens, seconds))
    drawn = np.random.default_rng(seed).integers(made.shape[1], size=(samples, made.shape[1]))
    with np.errstate(over="ignore"):
        speeds = made[:, drawn].sum(axis=2) / spent[:, drawn].sum(axis=2)
        best = int((made.sum(axis=1) / spent.sum(axis=1)).argmax())
    wins = np.bincount(speeds.argmax(axis=0), minlength=len(names)) / samples
    order = np.argsort(-wins, kind="stable")
    rivals = tuple(names[i] for i in order if wins[i] >= 0.05 or i == best)
    with np.errstate(all="ignore"):
        low, high = np.quantile(speeds[best] / speeds[0], (0.025, 0.975))
    return Recommendation(names[best], float(wins[best]), rivals, (float(low), float(high)))
