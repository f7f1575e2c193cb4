"""Executes a verifier table: the optimum for K drafts on one small tree, solved beforehand and stored as JSON.

    select   every draft draws a score, uniform on the intervals of its leaf; the smallest wins. Which one wins,
             given the drafts, is one categorical draw: Pr(k wins) = integral of density_k prod_{j != k} survival_j,
             a polynomial of degree K - 1 between interval ends, so Gauss-Legendre points integrate it exactly
    keep     walk up from the winning leaf, stopping at node w with probability stop(w)
    correct  draw the child of w by `correction`, or the bonus token after L tokens. In a block-transport table the
             tokens that follow, down to depth L, come from `correction` at their own nodes: the verdict carries that,
             and the next call verifies its drafts against these rows

Letters: B requests, K paths, L draft length, V vocabulary, n nodes, M integration points.
Source: the project's verifier tables; the upward walk is Block Verification, arXiv:2403.10444.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..draws import Draws
from ..parts.block_rule import ratios_and_thresholds
from ..parts.single_path import at, emitted_row, row_at
from ..registry import Verifier, get, register
from ..verdict import Batch, Verdict

FORMAT, VERSION = "specbound.verifier-table", 1
FIELDS = ("paths", "tree", "scores", "stop", "correction", "later")
MAX_PATHS, MAX_NUMBERS, SUM_TOLERANCE = 1024, 100_000_000, 1e-6
SOURCE = "a verifier table solved on its tree; Block Verification, arXiv:2403.10444, for the selected path"


@dataclass(frozen=True)
class Table:
    """A verifier table as tensors.

    Attributes:
        paths, length, vocab: K, L, V.
        child [n, V] int64: node after each token, -1 if the tree has none.
        stop [n]: probability that the upward walk stops.
        emitted [n, V]: law of the token after the node, once stopped there.
        density, survival [n, M]: of a leaf's score at the integration points; weights [M].
        modified: True if later tokens follow `emitted` too (block transport).
    """

    paths: int
    length: int
    vocab: int
    child: Tensor
    stop: Tensor
    emitted: Tensor
    density: Tensor
    survival: Tensor
    weights: Tensor
    modified: bool

    def to(self, device: torch.device) -> Table:
        """The same table on another device."""
        names = ("child", "stop", "emitted", "density", "survival", "weights")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True)
class Place:
    """What a block-transport table carries: the node [B] whose row is in force, -1 where the target's own is.

    A `runtime.carry.Carry`.
    """

    table: Table
    node: Tensor

    def select(self, rows: Tensor | Sequence[int]) -> Place:
        """The state of the requests `rows`."""
        return Place(self.table, self.node[torch.as_tensor(rows, dtype=torch.int64, device=self.node.device)])

    @classmethod
    def joined(cls, parts: Sequence[Place]) -> Place:
        """The states of several batches as one.

        Raises:
            ValueError: no parts, or parts of different tables.
        """
        if len({id(part.table.child) for part in parts}) != 1:
            raise ValueError(f"{len(parts)} parts of one table wanted; join the carries of one table verifier")
        return cls(parts[0].table, torch.cat([part.node for part in parts]))

    def numbers(self) -> Tensor:
        """[B, 1] float64: the state as plain numbers."""
        return self.node.double().unsqueeze(1)

    def laws(self, target_row: Tensor, draft_row: Tensor) -> list[Tensor]:
        """The target's law [B, V] and the one in force."""
        row = self.table.emitted[self.node.clamp_min(0)].to(target_row.dtype)
        return [target_row, torch.where(self.node.unsqueeze(1) >= 0, row, target_row)]

    def advance(self, token: Tensor, laws: Sequence[Tensor], draft_row: Tensor) -> Place:
        """The state one token further; below depth L - 1 the target is in force again."""
        return below(self.table, self.node, token)


def below(table: Table, node: Tensor, token: Tensor) -> Place:
    """The carry at the child of `node` [B] by `token` [B]: nothing where it has no children or `node` is -1."""
    child = torch.where(node >= 0, table.child[node.clamp_min(0), token], -1)
    inner = (table.child[child.clamp_min(0)] >= 0).any(dim=1)
    return Place(table, torch.where((child >= 0) & inner, child, -1))


def table_verifier(table: str | Path | Mapping[str, Any]) -> Verifier:
    """A verifier that executes a table.

    Args:
        table: the path of a JSON file, or its parsed object.
    Raises:
        ValueError: naming the field that is missing or malformed.
    """
    loaded = read_table(table)

    def verify(batch: Batch, draws: Draws) -> Verdict:
        return verify_with_table(loaded, batch, draws)

    return replace(get("table"), verify=verify, stateful=loaded.modified, needs="")


@register(
    "table",
    summary="executes a solved verifier table on its tree: the optimum",
    source=SOURCE,
    paths="many",
    needs="the table of one tree (`table_verifier`)",
)
def verify_table(batch: Batch, draws: Draws) -> Verdict:
    """Raises ValueError: there is no table; `table_verifier` makes a verifier of one."""
    raise ValueError(
        "verifier 'table' was called without a table; make one with table_verifier('table.json') from "
        "specbound.runtime.verifiers.table"
    )


def verify_with_table(table: Table, batch: Batch, draws: Draws) -> Verdict:
    """Select a path by score, keep what the upward walk leaves, draw the next token.

    Requests with a carry are inside the block of an earlier call, whose later tokens follow the table's rows. Their
    first path is verified against these rows by block verification, and no second table is opened on top.

    Raises:
        ValueError: the batch has other K, L or V than the table, a carry of something else, or a drafted token that its
            tree does not have (this check waits for the device).
    """
    _, paths, length, vocab = batch.shape
    for letter, got, wanted in (("K", paths, table.paths), ("L", length, table.length), ("V", vocab, table.vocab)):
        if got != wanted:
            raise ValueError(f"draft_probs has {letter} = {got}; the table was made for {letter} = {wanted}")
    table = table.to(batch.tokens.device)
    start = carried_place(table, batch)
    fresh = start < 0
    line = [start.clamp_min(0).unsqueeze(1).expand(-1, paths)]
    for token in batch.tokens.unbind(dim=2):
        line.append(torch.where(line[-1] >= 0, table.child[line[-1].clamp_min(0), token], -1))
    if bool((line[-1] < 0)[fresh].any()):
        raise ValueError("tokens has a drafted path that the table's tree does not contain; use drafts from that tree")
    path = torch.zeros_like(start)
    if paths > 1:
        first = torch.eye(paths, dtype=torch.float64, device=path.device)[0]
        path = draws.choose(torch.where(fresh[:, None], winning_law(table, line[-1].clamp_min(0)), first))
    nodes = torch.stack(line, dim=2)[torch.arange(len(path), device=path.device), path]
    stop, emitted = table.stop[nodes[:, 1:].clamp_min(0)], table.emitted[nodes.clamp_min(0)]
    if batch.carry is None:
        kept = draws.accept_last(stop)
        token = draws.choose(row_at(emitted, kept))
    else:
        tokens, draft_probs, target_probs = (
            rows[:, 0] for rows in (batch.tokens, batch.draft_probs, batch.target_probs)
        )
        draft_probs, target_probs = draft_probs.double(), in_force(table, nodes, target_probs.double())
        ratios, blockwise = ratios_and_thresholds(tokens, draft_probs, target_probs)
        kept = draws.accept_last(torch.where(fresh[:, None], stop, blockwise))
        row = emitted_row(at(ratios, kept), kept, draft_probs, target_probs)
        token = draws.choose(torch.where(fresh[:, None], row_at(emitted, kept), row))
    return Verdict(path, kept, token, below(table, at(nodes, kept), token) if table.modified else None)


def carried_place(table: Table, batch: Batch) -> Tensor:
    """[B] node whose row is in force at the start of the batch, -1 where a new block begins.

    Raises:
        ValueError: carry is not the state of these requests.
    """
    if batch.carry is None:
        return torch.full_like(batch.tokens[:, 0, 0], -1)
    if not isinstance(batch.carry, Place) or not table.modified:
        raise ValueError(f"carry is a {type(batch.carry).__name__}; want the carry of this verifier's last verdict")
    if len(batch.carry.node) != len(batch.tokens):
        raise ValueError(
            f"carry is the state of {len(batch.carry.node)} requests, the batch has {len(batch.tokens)}; use "
            "carry.select(rows)"
        )
    return batch.carry.node


def in_force(table: Table, nodes: Tensor, target_probs: Tensor) -> Tensor:
    """The rows [B, L+1, V] that hold at `nodes` [B, L+1]: the table's where its tree goes on, else the target's."""
    inner = (nodes >= 0) & (table.child[nodes.clamp_min(0)] >= 0).any(dim=-1)
    return torch.where(inner.unsqueeze(-1), table.emitted[nodes.clamp_min(0)], target_probs)


def winning_law(table: Table, leaf: Tensor) -> Tensor:
    """[B, K] probability that each path has the smallest score, for leaf nodes [B, K]."""
    survival = table.survival[leaf]
    one = torch.ones_like(survival[:, :1])
    before = torch.cat([one, survival.cumprod(dim=1)], dim=1)[:, :-1]
    after = torch.cat([survival.flip(1).cumprod(dim=1).flip(1), one], dim=1)[:, 1:]
    law = (table.density[leaf] * before * after) @ table.weights
    return torch.where(law.sum(dim=1, keepdim=True) > 0, law, 1.0)


# ---------------------------------------------------------------------- reading


def read_table(table: str | Path | Mapping[str, Any]) -> Table:
    """Read the JSON form written by theory, from a file or as a parsed object; numbers become float64.

    Raises:
        ValueError: naming the field that is missing or malformed.
    """
    data = table if isinstance(table, Mapping) else _parse(Path(table))
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise ValueError(
            f"the table has format {data.get('format')!r}, version {data.get('version')!r}; want {FORMAT!r}, {VERSION}"
        )
    if missing := [name for name in FIELDS if name not in data]:
        raise ValueError(f"the table lacks field {missing[0]!r}; want {', '.join(FIELDS)}")
    later = data["later"]
    if later not in ("target", "correction"):
        raise ValueError(f"later is {later!r}; want 'target' or 'correction'")
    paths = _count("paths", data["paths"], MAX_PATHS)
    vocab, length, parent, token, depth = _shape_of(data["tree"])
    stop, correction = (_numbers(name, data[name], len(parent)) for name in ("stop", "correction"))
    leaves = np.flatnonzero(depth == length)
    child = np.full((len(parent), vocab), -1)
    child[parent[1:], token[1:]] = np.arange(1, len(parent))
    emitted = np.zeros((len(parent), vocab))
    emitted[parent[1:], token[1:]] = correction[1:]
    _check_laws("correction", emitted[np.unique(parent[1:])])
    emitted[leaves] = _bonus(data["tree"], len(leaves), vocab)
    _check_laws("tree.bonus", emitted[leaves])
    if not isinstance(data["scores"], list) or len(data["scores"]) != len(leaves):
        raise ValueError(f"scores must be a list of {len(leaves)} entries, one per node of depth L")
    density, survival, weights = _score_laws(data["scores"], leaves, len(parent), paths)
    return Table(
        paths=paths,
        length=length,
        vocab=vocab,
        child=torch.as_tensor(child),
        stop=torch.as_tensor(stop),
        emitted=torch.as_tensor(emitted),
        density=torch.as_tensor(density),
        survival=torch.as_tensor(survival),
        weights=torch.as_tensor(weights),
        modified=later == "correction",
    )


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"table {str(path)!r} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"table {str(path)!r} is not JSON: {error}") from None
    if not isinstance(data, Mapping):
        raise ValueError(f"table {str(path)!r} is a JSON {type(data).__name__}; want an object")
    return data


def _count(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} is {value!r}; want an integer in 1..{most}")
    return value


def _shape_of(tree: Any) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
    """V, L, and parent, token, depth [n] of a tree in breadth-first order.

    Raises:
        ValueError: naming the field that does not describe such a tree.
    """
    if not isinstance(tree, Mapping) or not {"vocab", "length", "parent", "token"} <= tree.keys():
        raise ValueError("tree is not an instance; want an object with vocab, length, parent and token")
    vocab, length = (_count(f"tree.{name}", tree[name], MAX_NUMBERS) for name in ("vocab", "length"))
    lists = tree["parent"], tree["token"]
    if not all(isinstance(values, list) and all(type(value) is int for value in values) for values in lists):
        raise ValueError("tree.parent and tree.token must be lists of integers")
    size = len(lists[0])
    if size < 1 or len(lists[1]) != size or (lists[0][0], lists[1][0]) != (-1, -1):
        raise ValueError("tree.parent and tree.token must have one entry per node, -1 for the root (node 0)")
    if size * vocab > MAX_NUMBERS:
        raise ValueError(f"tree has {size} nodes and {vocab} tokens; want at most {MAX_NUMBERS} entries in a table")
    depth = np.zeros(size, dtype=np.int64)
    for node in range(1, size):
        if not max(0, lists[0][node - 1]) <= lists[0][node] < node:
            raise ValueError(f"tree.parent[{node}] is {lists[0][node]}; list the nodes breadth-first")
        if not 0 <= lists[1][node] < vocab:
            raise ValueError(f"tree.token[{node}] is {lists[1][node]}; want 0..{vocab - 1}")
        depth[node] = depth[lists[0][node]] + 1
    if len(set(zip(*lists, strict=True))) < size:
        raise ValueError("tree has two children with the same token under one node")
    if depth[-1] != length:
        raise ValueError(f"tree.length is {length}; the deepest node has depth {depth[-1]}")
    parent, token = (np.array(values, dtype=np.int64) for values in lists)
    return vocab, length, parent, token, depth


def _bonus(tree: Mapping[str, Any], leaves: int, vocab: int) -> list[np.ndarray]:
    """[leaves, V] the bonus rows, uniform if there are none."""
    rows = tree.get("bonus", [[Fraction(1, vocab)] * vocab] * leaves)
    if not isinstance(rows, list) or len(rows) != leaves:
        raise ValueError(f"tree.bonus must be a list of {leaves} rows, one per node of depth L")
    return [_numbers("tree.bonus", row, vocab) for row in rows]


def _check_laws(name: str, rows: np.ndarray) -> None:
    sums = rows.sum(axis=-1)
    if (abs(sums - 1) > SUM_TOLERANCE).any():
        raise ValueError(f"{name} has siblings that sum to {sums[abs(sums - 1).argmax()]:.9g}; want 1")


def _numbers(name: str, values: Any, count: int) -> np.ndarray:
    """float64 array of probabilities given as numbers or as fractions ("1/3")."""
    if not isinstance(values, list):
        raise ValueError(f"{name} is {values!r}; want a list of {count} probabilities")
    try:
        array = np.array([float(Fraction(value) if _is_fraction(value) else value) for value in values])
    except (TypeError, ValueError, ArithmeticError):
        raise ValueError(f"{name} has an entry that is not a number") from None
    if array.shape != (count,) or not ((array >= 0) & (array <= 1 + 1e-9)).all():
        raise ValueError(f"{name} has shape {array.shape} or entries outside [0, 1]; want {count} probabilities")
    return array.clip(0, 1)


def _is_fraction(value: Any) -> bool:
    """Fractions and text such as "1/3"; other text is left to float, which no exponent keeps busy."""
    return isinstance(value, Fraction) or (isinstance(value, str) and "/" in value)


def _score_laws(
    scores: Sequence[Any], leaves: np.ndarray, nodes: int, paths: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """density, survival [nodes, M] of the leaves' scores at Gauss-Legendre points between all ends, and weights [M]."""
    intervals_of = [[_interval(pair) for pair in _pairs(intervals)] for intervals in scores]
    ends = np.unique([0.0, 1.0, *(end for intervals in intervals_of for pair in intervals for end in pair)])
    abscissae, weights = np.polynomial.legendre.leggauss((paths + 1) // 2)
    if nodes * (len(ends) - 1) * len(weights) > MAX_NUMBERS:
        raise ValueError(f"scores has {len(ends)} different ends; too many for {nodes} nodes and {paths} paths")
    middle, half = (ends[1:] + ends[:-1]) / 2, np.diff(ends) / 2
    points = (middle[:, None] + half[:, None] * abscissae).ravel()
    density, survival = np.zeros((nodes, len(points))), np.ones((nodes, len(points)))
    for leaf, intervals in zip(leaves, intervals_of, strict=True):
        total = sum(high - low for low, high in intervals)
        for low, high in intervals:
            if total >= np.finfo(float).tiny:
                density[leaf] += ((points > low) & (points < high)) / total
                survival[leaf] -= np.clip(points - low, 0, high - low) / total
    return density, survival.clip(0, 1), (half[:, None] * weights).ravel()


def _pairs(intervals: Any) -> list[Any]:
    if not isinstance(intervals, list):
        raise ValueError(f"scores has the entry {intervals!r}; want a list of [low, high] pairs")
    return intervals


def _interval(pair: Any) -> tuple[float, float]:
    if isinstance(pair, list) and len(pair) == 2 and all(type(end) in (int, float) for end in pair):
        low, high = pair
        if 0 <= low <= high <= 1 + 1e-9:
            return float(low), float(high)
    raise ValueError(f"scores has the entry {pair!r}; want a pair low <= high in [0, 1]")
