"""The exact law of a verifier: the production code, run through every draft and every random outcome.

A verifier asks all its random questions of a `Draws` object. `ReplayDraws` answers each in every possible way:
a batch row that meets an undecided question takes the first possible answer, multiplies its probability into
its weight, and leaves the other answers behind to be replayed in the next pass. A question with one possible
answer does not fork. When no answers are left, the weights of all finished rows are the exact law, in float64.

Letters: L draft length, K paths, V vocabulary; P target and Q draft joint probabilities on the prefix tree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbound.runtime import registry
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers.spectr_gbv import interpolate
from specbound.theory.prefix_tree import Prefix, PrefixTree
from specbound.theory.solution import check_paths

Verify = Callable[[Batch, Draws], Verdict]
MAX_DRAFTS = 2_000_000
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
NUMBERS_PER_PASS = 20_000_000
NEGLIGIBLE = 1e-15
LOST = 1e-9


class InvalidResult(ValueError):
    """A verifier returned something else than it should."""


class ReplayDraws(Draws):
    """Answers the questions of one pass of a verifier, row by row, along recorded decisions.

    Answers below 1e-15 count as impossible: the last digits of a row depend on its place in the batch, and a question
    that forks in one pass must fork in all.

    Args:
        decisions: for each of the B rows the answers it is to give first; later questions take the first
            possible answer and record the others in `alternatives`.
    """

    def __init__(self, decisions: Sequence[tuple[int, ...]]) -> None:
        super().__init__(None)
        self.decisions = list(decisions)
        self.asked = np.zeros(len(self.decisions), dtype=np.int64)
        self.weight = np.ones(len(self.decisions))
        self.alternatives: list[tuple[int, tuple[int, ...]]] = []

    def accept(self, probability: Tensor) -> Tensor:
        """Coins: the flattened elements of each row are asked one after another."""
        flat = probability.double().reshape(len(self.decisions), -1)
        answers = [self._answer(torch.stack([1 - coin, coin], dim=-1)) for coin in flat.unbind(dim=1)]
        stacked = torch.stack(answers, dim=1) if answers else flat
        return stacked.reshape(probability.shape).bool()

    def accept_while(self, probability: Tensor) -> Tensor:
        """The count of leading successes as one question: it is i with probability p_1..p_i (1 - p_{i+1})."""
        probability = probability.double()
        one = torch.ones_like(probability[:, :1])
        reach = torch.cat([one, probability], dim=1).cumprod(dim=1)
        return self._answer(reach * torch.cat([1 - probability, one], dim=1))

    def accept_last(self, probability: Tensor) -> Tensor:
        """The last success as one question: it is i with probability p_i (1 - p_{i+1})..(1 - p_L)."""
        probability = probability.double()
        one = torch.ones_like(probability[:, :1])
        later_fail = torch.cat([1 - probability, one], dim=1).flip(1).cumprod(dim=1).flip(1)
        return self._answer(torch.cat([one, probability], dim=1) * later_fail)

    def choose(self, weights: Tensor) -> Tensor:
        """A categorical draw; leading axes beyond the batch are asked one after another."""
        flat = weights.double().reshape(len(self.decisions), -1, weights.shape[-1])
        total = flat.sum(dim=-1, keepdim=True)
        if bool((total <= 0).any()) or not bool(torch.isfinite(total).all()):
            raise ValueError("a verifier asked for a draw from weights that are all zero or not finite")
        answers = [self._answer(row) for row in (flat / total).unbind(dim=1)]
        return torch.stack(answers, dim=1).reshape(weights.shape[:-1])

    def smallest_key(self, low: Tensor, high: Tensor) -> Tensor:
        """The winner of a race of uniform keys, by exact integration (see `race_law`)."""
        return self._answer(race_law(low, high))

    def smallest_image(self, like: Tensor, key: Callable[[Tensor], Tensor], knots: Callable[[], Tensor]) -> Tensor:
        """The winner of a race of increasing functions of uniforms, by exact integration (see `image_race_law`)."""
        uniforms = knots()
        keys = torch.stack([key(uniform) for uniform in uniforms.unbind(dim=-1)], dim=-1)
        return self._answer(image_race_law(keys, uniforms))

    def _answer(self, law: Tensor) -> Tensor:
        """int64 [B]: the answer of each row to a question with probabilities `law` [B, N]."""
        laws = law.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(laws).all() or (laws < -1e-12).any() or (laws > 1 + 1e-12).any():
            raise ValueError("a verifier asked a question whose probabilities are not in [0, 1]")
        laws = np.where(laws < NEGLIGIBLE, 0.0, np.minimum(laws, 1.0))
        answers = (laws > 0).argmax(axis=1)
        forks = (laws > 0).sum(axis=1) > 1
        for row in np.flatnonzero(forks):
            decided = self.decisions[row]
            place = self.asked[row]
            if place < len(decided):
                answers[row] = decided[place]
            else:
                options = np.flatnonzero(laws[row] > 0)
                self.alternatives += [(int(row), (*decided, int(other))) for other in options[1:]]
                self.decisions[row] = (*decided, int(options[0]))
            self.asked[row] += 1
        self.weight *= laws[np.arange(len(answers)), answers]
        return torch.as_tensor(answers, device=law.device)


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
    """[B, K]: probability that key_k(u_k) is the smallest, each key increasing and linear between its knots.

        Pr(k wins) = integral of dG_k(t) prod_{j != k} (1 - G_j(t)),   G_k(t) = Pr(key_k <= t) = key_k^{-1}(t)

    Between neighbouring key values at knots of any path all G are linear, and Gauss-Legendre quadrature with K nodes
    is exact up to rounding.

    Args:
        keys, uniforms [B, K, N]: keys at the knots, and the knots; both ascending, uniforms from 0 to 1.

    Raises:
        ValueError: if the winners' probabilities do not sum to 1, which happens when a key is constant somewhere.
    """
    values, places = keys.detach().cpu().double().contiguous(), uniforms.detach().cpu().double().contiguous()
    paths = values.shape[1]
    nodes, weights = (torch.as_tensor(array) for array in np.polynomial.legendre.leggauss(paths))
    ends = values.flatten(1).sort(dim=1).values
    points = ends[:, :-1, None] + (1 + nodes) / 2 * ends.diff(dim=1)[..., None]
    survival = torch.stack(
        [1 - interpolate(points.flatten(1), values[:, k], places[:, k]).view_as(points) for k in range(paths)], dim=1
    )
    one = torch.ones_like(survival[:, :1])
    before = torch.cat([one, survival[:, :-1]], dim=1).cumprod(dim=1)
    after = torch.cat([survival[:, 1:], one], dim=1).flip(1).cumprod(dim=1).flip(1)
    others = (before * after) @ weights / 2
    law = torch.empty(values.shape[:2], dtype=torch.float64)
    for k in range(paths):
        law[:, k] = (interpolate(ends, values[:, k], places[:, k]).diff(dim=1) * others[:, k]).sum(dim=1)
    if ((law.sum(dim=1) - 1).abs() > 1e-9).any():
        raise ValueError("a verifier raced keys that are not strictly increasing in their uniforms")
    return law.to(keys.device)


@dataclass(frozen=True)
class Law:
    """Exact law of one call of a verifier, its emitted block continued from the target.

    Attributes:
        blocks: law of the first L+1 tokens: block -> probability (shorter where the tree ends early).
        accepted: Pr(at least i tokens kept) for i = 0..L.
        kept: prefix -> Pr(the kept prefix passes through it), the phi of theory, root excluded.
        mass: total probability of all replayed outcomes; 1 up to rounding.
        outcomes: number of outcomes replayed.
    """

    blocks: dict[Prefix, float]
    accepted: tuple[float, ...]
    kept: dict[Prefix, float]
    mass: float
    outcomes: int

    @property
    def acceptance_length(self) -> float:
        """Expected number of drafted tokens kept per call; the correction token is not counted."""
        return sum(self.accepted[1:])

    def total_variation(self, other: dict[Prefix, float]) -> float:
        """Total variation distance of the block law to another, e.g. `tree.target_law()`; in [0, 1]."""
        blocks = self.blocks.keys() | other.keys()
        return 0.5 * sum(abs(self.blocks.get(block, 0.0) - float(other.get(block, 0.0))) for block in blocks)


def function_of(verifier: str | Verify | registry.Verifier) -> Verify:
    """The function behind a registered name or an entry of the registry; a function is its own."""
    if isinstance(verifier, str):
        verifier = registry.get(verifier)
    return verifier.verify if isinstance(verifier, registry.Verifier) else verifier


def exact_law(verifier: str | Verify | registry.Verifier, tree: PrefixTree, paths: int = 1) -> Law:
    """Run one call of a verifier through every K-tuple of drafts of the tree and every random outcome.

    Behind the emitted token the block is continued to L+1 tokens: from the target's conditionals, or, for a stateful
    verifier, from the law that its carry puts in their place (the carry must offer `select`, `laws` and `advance`
    as `runtime.carry.Layers` does). Several calls of a stateful verifier: see `stream_law`.

    Args:
        verifier: a registered name, a `Verifier`, or a function `verify(batch, draws) -> Verdict`.
        tree: the instance; taken in float64.
        paths: K.

    Raises:
        ValueError: if the enumeration would need more than 2e6 K-tuples of drafts, or the verifier asks an ill-posed
            question.
        InvalidResult: (a ValueError) if it returns no verdict, or one that is out of range.
    """
    verify = function_of(verifier)
    tree = tree.as_float()
    check_paths(paths)
    drafted = np.flatnonzero(tree.draft_joint[tree.leaves] > 0) + tree.leaves.start
    if paths * math.log(len(drafted)) > math.log(MAX_DRAFTS) or len(drafted) ** paths > MAX_DRAFTS:
        raise ValueError(f"{len(drafted)} drafts and {paths} paths are too many to enumerate; use a smaller tree")
    emitted = np.zeros((tree.size, tree.vocab))
    modified = np.zeros(tree.size)
    stateful = False
    count = 0
    nodes = ancestors(tree)
    for chosen in _chunks(itertools.product(drafted.tolist(), repeat=paths), tree.length * tree.vocab * paths):
        leaves = np.array(chosen)
        weight = tree.draft_joint[leaves].prod(axis=1)
        for outcome in replay(verify, batch_of(tree, leaves)):
            kept = nodes[leaves[outcome.row, outcome.path], outcome.accepted]
            chance = weight[outcome.row] * outcome.probability
            np.add.at(emitted, (kept, outcome.token), chance)
            count += len(kept)
            if outcome.carry is not None:
                stateful = True
                _follow_carry(tree, kept, outcome.token, chance, outcome.carry, modified)
    return _law(tree, emitted, modified if stateful else _continued(tree, emitted), count)


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of a replay: arrays over outcomes, the verdict of batch row `row` with exact `probability`.

    `carry` is the state of a stateful verifier, its rows in the order of the outcomes; None for stateless ones.
    """

    row: np.ndarray
    path: np.ndarray
    accepted: np.ndarray
    token: np.ndarray
    probability: np.ndarray
    carry: Any = None


def replay(verify: Verify, batch: Batch) -> Iterator[Outcomes]:
    """Every random outcome of `verify` on every row of the batch; probabilities sum to 1 per row.

    Depth first, in passes of bounded size: many answers of many paths would not fit into memory at once.

    Raises:
        InvalidResult: if it returns no verdict, or one that is out of range.
        ValueError: if the probabilities of a row do not sum to 1: given the same answers it asked other questions.
    """
    requests, paths, length, vocab = batch.shape
    total = np.zeros(requests)
    pending: list[tuple[int, tuple[int, ...]]] = [(row, ()) for row in range(requests)]
    most = max(1, NUMBERS_PER_PASS // max(1, paths**2 * length * vocab))
    while pending:
        pending, now = pending[:-most], pending[-most:]
        rows = [row for row, _ in now]
        draws = ReplayDraws([decisions for _, decisions in now])
        carry = None if batch.carry is None else batch.carry.select(rows)
        verdict = verify(Batch(batch.tokens[rows], batch.draft_probs[rows], batch.target_probs[rows], carry), draws)
        limits = {"path": paths, "accepted": length + 1, "token": vocab}
        path, accepted, token = (_read(verdict, name, limit, len(rows)) for name, limit in limits.items())
        yield Outcomes(np.array(rows), path, accepted, token, draws.weight, getattr(verdict, "carry", None))
        np.add.at(total, rows, draws.weight)
        pending += [(rows[row], decisions) for row, decisions in draws.alternatives]
    if not (abs(total - 1) <= LOST).all():
        worst = total[np.argmax(abs(total - 1))]
        raise ValueError(
            f"the outcomes of one request have probability {worst:.12g} in all: after the same answers the verifier "
            "asked other questions than before"
        )


def _read(verdict: Any, name: str, limit: int, rows: int) -> np.ndarray:
    """One part of a verdict: int64 [rows] in 0..limit-1.

    Raises:
        InvalidResult: it is something else.
    """
    if not isinstance(getattr(verdict, name, None), Tensor):
        raise InvalidResult(f"the verifier returned {_shown(verdict)}; want a Verdict with the tensor {name!r}")
    values: Tensor = getattr(verdict, name)
    if values.dtype not in INTEGERS or values.shape != (rows,) or values.device.type == "meta":
        found = f"{values.dtype} of shape {tuple(values.shape)} on {values.device}"
        raise InvalidResult(f"the verdict's {name} is {found}; want int64 of shape ({rows},)")
    numbers = values.cpu().long().numpy()
    if (numbers < 0).any() or (numbers >= limit).any():
        raise InvalidResult(f"the verdict's {name} is {numbers}; want {rows} values in 0..{limit - 1}")
    return numbers


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def ancestors(tree: PrefixTree) -> np.ndarray:
    """[n, L+1] int64: the node's ancestor at each depth; the node itself from its own depth on."""
    line = np.tile(np.arange(tree.size)[:, None], (1, tree.length + 1))
    for depth in range(tree.length - 1, -1, -1):
        line[:, depth] = np.where(
            tree.depth[line[:, depth + 1]] > depth, tree.parent[line[:, depth + 1]], line[:, depth + 1]
        )
    return line


def batch_of(tree: PrefixTree, leaves: np.ndarray) -> Batch:
    """The batch of B requests whose K drafts are the given leaf nodes [B, K]; float64 tensors."""
    path = ancestors(tree)[leaves]
    target_rows = tree.rows(tree.target)
    target_rows[tree.leaves] = tree.bonus
    return Batch(
        torch.as_tensor(tree.token[path[..., 1:]]),
        torch.as_tensor(tree.rows(tree.draft)[path[..., :-1]]),
        torch.as_tensor(target_rows[path]),
    )


def _chunks(items: Iterator[tuple[int, ...]], numbers: int) -> Iterator[list[tuple[int, ...]]]:
    size = max(1, NUMBERS_PER_PASS // numbers)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _continued(tree: PrefixTree, emitted: np.ndarray) -> np.ndarray:
    """[n] Pr(a correction was emitted, and the stream passes through the node after it), following the target."""
    continued = np.zeros(tree.size)
    for level in tree.levels[1:]:
        parent, token = tree.parent[level], tree.token[level]
        continued[level] = continued[parent] * tree.target[level] + emitted[parent, token]
    return continued


def _follow_carry(
    tree: PrefixTree, kept: np.ndarray, token: np.ndarray, chance: np.ndarray, carry: Any, continued: np.ndarray
) -> None:
    """Add to `continued` [n] what the outcomes pass on, following the law that each outcome's carry leaves in force."""
    child = np.full((tree.size, tree.vocab), -1)
    child[tree.parent[1:], tree.token[1:]] = np.arange(1, tree.size)
    target, draft = (torch.as_tensor(tree.rows(conditional)) for conditional in (tree.target, tree.draft))
    device = carry.select([]).numbers().device
    nodes = child[kept, token]
    rows = np.flatnonzero(nodes >= 0)
    nodes, chance, carry = nodes[rows], chance[rows], carry.select(rows)
    while len(nodes):
        np.add.at(continued, nodes, chance)
        draft_row = draft[nodes].to(device)
        laws = carry.laws(target[nodes].to(device), draft_row)
        rows, tokens = np.nonzero((child[nodes] >= 0) & (laws[-1].cpu().numpy() > 0))
        chance = chance[rows] * laws[-1].cpu().numpy()[rows, tokens]
        carry = carry.select(rows).advance(
            torch.as_tensor(tokens, device=device), [law[rows] for law in laws], draft_row[rows]
        )
        nodes = child[nodes[rows], tokens]


def _law(tree: PrefixTree, emitted: np.ndarray, continued: np.ndarray, outcomes: int) -> Law:
    """From Pr(kept prefix = node, next token = y) [n, V] and what follows it to the law of blocks."""
    kept = emitted.sum(axis=1)
    for level in reversed(tree.levels[1:]):
        np.add.at(kept, tree.parent[level], kept[level])
    inside = np.zeros_like(emitted, dtype=bool)
    inside[tree.parent[1:], tree.token[1:]] = True
    final = np.where(inside, 0.0, emitted)
    final[tree.leaves] += continued[tree.leaves, None] * tree.bonus
    blocks = {(*tree.prefix(w), int(y)): float(final[w, y]) for w, y in zip(*np.nonzero(final), strict=True)}
    for node in range(tree.size - len(tree.bonus)):
        if tree.children[node].start == tree.children[node].stop and continued[node] > 0:
            blocks[tree.prefix(node)] = float(continued[node])
    accepted = tuple(float(kept[level].sum()) for level in tree.levels)
    passes = {tree.prefix(node): float(kept[node]) for node in range(1, tree.size)}
    return Law(blocks, accepted, passes, float(emitted.sum()), outcomes)
