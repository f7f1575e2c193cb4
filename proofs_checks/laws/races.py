"""Who wins a race of continuous keys, in closed form: the exact answers to `Draws.smallest_key` and `smallest_image`.

    Pr(k wins) = integral of dG_k(t) prod_{j != k} (1 - G_j(t)),   G_k(t) = Pr(key_k <= t)

Between neighbouring ends of all keys the integrand is a polynomial, which Gauss-Legendre quadrature integrates exactly.

Letters: B requests, K keys (one per drafted path).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from specbound.runtime.verifiers.spectr_gbv import interpolate


def race_law(low: Tensor, high: Tensor) -> Tensor:
    """[B, K]: probability that key k, uniform on [low_k, high_k], is the smallest of K independent keys.

        Pr(k wins) = integral over [low_k, high_k] of dt / (high_k - low_k) prod_{j != k} Pr(key_j > t)

    Between two neighbouring end points the integrand is a polynomial of degree at most K - 1, so Gauss-Legendre
    quadrature with K nodes per interval is exact up to rounding. A fixed key (low = high) is the limit: it wins if
    no other is smaller. Ties of fixed keys go to the smaller index, as in `Draws.smallest_key`.
    """
    lows, highs = (ends.detach().to("cpu", torch.float64).numpy() for ends in (low, high))
    paths = lows.shape[1]
    nodes, weights = np.polynomial.legendre.leggauss(paths)
    ends = np.sort(np.concatenate([lows, highs], axis=1), axis=1)
    length = np.diff(ends, axis=1)
    start, offset = ends[:, :-1, None], length[..., None] * (1 + nodes) / 2
    width = highs - lows
    fixed = width < np.finfo(float).tiny
    width = np.where(fixed, 1.0, width)
    law = np.zeros(lows.shape)
    for k in range(paths):
        others = [j for j in range(paths) if j != k]
        beaten = _beyond(start, offset, lows, highs, width, fixed, others)
        inside = (ends[:, :-1] >= lows[:, k, None]) & (ends[:, 1:] <= highs[:, k, None])
        spread = (beaten @ (weights / 2) * inside * length).sum(axis=1) / width[:, k]
        at_low = _beyond(lows[:, k, None, None], 0.0, lows, highs, width, fixed, others)[:, 0, 0]
        tied = fixed[:, :k] & (lows[:, :k] == lows[:, k : k + 1])
        law[:, k] = np.where(fixed[:, k], at_low * ~tied.any(axis=1), spread)
    return torch.as_tensor(law, device=low.device)


def _beyond(
    start: np.ndarray,
    offset: np.ndarray | float,
    lows: np.ndarray,
    highs: np.ndarray,
    width: np.ndarray,
    fixed: np.ndarray,
    keys: list[int],
) -> np.ndarray:
    """Probability that all of `keys` are at least t = start + offset [B, ...], t before the next end point.

    The two parts of t are kept apart: keys may be as narrow as the spacing of floats.
    """
    chance = np.ones(np.broadcast_shapes(np.shape(start), np.shape(offset)))
    for j in keys:
        low, high, span, sure = (ends[:, j, None, None] for ends in (lows, highs, width, fixed))
        reached = np.where(np.greater(offset, 0), low > start, low >= start)
        chance *= np.where(sure, reached, np.clip((high - start - offset) / span, 0, 1))
    return chance


def image_race_law(keys: Tensor, uniforms: Tensor) -> Tensor:
    """[B, K]: probability that key_k(u_k) is the smallest, each key never falling and linear between its knots.

    A key is a score whose probability below key_k(u) is u: `score_race_law`.

    Args:
        keys, uniforms [B, K, N]: keys at the knots, and the knots; both ascending, uniforms from 0 to 1.

    Raises:
        ValueError: a key falls somewhere.
    """
    law = score_race_law(keys, uniforms)
    if (keys.diff(dim=-1) < -1e-9).any() or ((law.sum(dim=1) - 1).abs() > 1e-9).any():
        raise ValueError("a verifier raced keys that fall somewhere; want keys that never fall in their uniforms")
    return law


def score_race_law(score: Tensor, below: Tensor) -> Tensor:
    """[B, K]: probability that score k is the smallest of K independent ones, each piecewise uniform; of equal ones the
    first.

        Pr(k wins) = integral of dG_k(t) prod_{j != k} (1 - G_j(t))
                     + sum over t of Pr(score k = t) prod_{j < k} (1 - G_j(t)) prod_{j > k} (1 - G_j(t-))

    Between neighbouring knots of any path all G are linear, and Gauss-Legendre quadrature with K nodes is exact up to
    rounding; two equal knots are a score of positive probability.

    Args:
        score, below [B, K, J]: knots and the probability of a score below each; both ascending, `below` from 0 to 1.
    """
    values, places = score.detach().cpu().double().contiguous(), below.detach().cpu().double().contiguous()
    paths = values.shape[1]
    nodes, weights = (torch.as_tensor(array) for array in np.polynomial.legendre.leggauss(paths))
    ends = values.flatten(1).sort(dim=1).values
    less, up_to = (
        torch.stack([_probability(ends, values[:, k], places[:, k], equal) for k in range(paths)], dim=1)
        for equal in (False, True)
    )
    wide = (ends.diff(dim=1) > 0).unsqueeze(1)
    step = (less[..., 1:] - up_to[..., :-1]) * wide
    survival = 1 - up_to[..., :-1, None] - (1 + nodes) / 2 * step.unsqueeze(-1)
    inside = (step * ((_before(survival) * _after(survival)) @ weights / 2)).sum(dim=-1)
    first = torch.nn.functional.pad(wide, (1, 0), value=True)
    single = ((up_to - less) * first * _before(1 - up_to) * _after(1 - less)).sum(dim=-1)
    return (inside + single).to(score.device)


def _before(survival: Tensor) -> Tensor:
    """Product of the paths [B, K, ...] before each."""
    return torch.cat([torch.ones_like(survival[:, :1]), survival[:, :-1]], dim=1).cumprod(dim=1)


def _after(survival: Tensor) -> Tensor:
    """Product of the paths [B, K, ...] behind each."""
    return _before(survival.flip(1)).flip(1)


def _probability(points: Tensor, knots: Tensor, below: Tensor, equal: bool) -> Tensor:
    """[B, N] that a score lies below the points, or also on them; knots, below [B, J]."""
    right = torch.searchsorted(knots.contiguous(), points, right=equal)
    found = interpolate(points, knots, below, right)
    found = torch.where(right == 0, torch.zeros_like(found), found)
    return torch.where(right == knots.shape[1], torch.ones_like(found), found)
