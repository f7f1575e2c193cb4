"""Prefix trees: two language models looked at L tokens deep, small enough to solve exactly.

Letters: V vocabulary size, L draft length, n nodes. A node w is a prefix; target(y|w) and draft(y|w) are the
conditional laws of the next token, P(w) and Q(w) the products along the path from the root.

A node's children need not be the whole vocabulary: a real model under top-k sampling gives at most 2k of them.
A node that no draft reaches, Q(w) = 0, may be left without children: no accepted prefix ever passes through it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from .contexts import Law, ModelPair
from .contexts import Prefix as Prefix
from .json_objects import read_object, write_object
from .numbers import ROW_TOLERANCE, Row, is_exact, read_list, read_number, to_array
from .numbers import Array as Array

FORMAT = "specbound.prefix-tree"
VERSION = 1
MAX_NODES = 20_000_000
MAX_TOKENS = 10**9
MAX_VOCAB = 2**31 - 1
MAX_BONUS = 200_000_000


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """Target and draft conditionals on the prefixes of length 0..L, in breadth-first order.

    Attributes:
        vocab: V; tokens are 0..V-1.
        length: L, the draft length.
        parent [n] int64: index of the parent, -1 for the root (node 0); siblings stand together.
        token [n] int64: last token of the prefix, -1 for the root.
        target, draft [n]: conditional probability given the parent, 1 for the root; float64, or
            `fractions.Fraction` objects (then every result of theory is exact).
        bonus [leaves, V]: target law of the token after each node of depth L (the bonus token), in node order.
        symbols: optional names of the V tokens, for people.

    Raises:
        ValueError: naming the field and the node, if the arrays do not describe such a tree.
    """

    vocab: int
    length: int
    parent: Array
    token: Array
    target: Array
    draft: Array
    bonus: Array
    symbols: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name, values in _as_arrays(self).items():
            object.__setattr__(self, name, values)
        _check_shape(self)
        _check_order(self)
        _check_probabilities(self)

    # ------------------------------------------------------------------ constructors

    @classmethod
    def unrolled(cls, pair: ModelPair, length: int) -> PrefixTree:
        """A pair of models looked at `length` tokens deep; a child for every token whose context is known."""
        _check_size(pair.vocab, length)
        contexts = np.array([pair.start])
        parent, token = [np.array([-1])], [np.array([-1])]
        target, draft = [pair.target.rows[:1, 0] * 0 + 1], [pair.draft.rows[:1, 0] * 0 + 1]
        first = 0
        for _ in range(length):
            following = pair.successor[contexts]
            place, below = np.nonzero(following >= 0)
            parent.append(first + place)
            token.append(below)
            target.append(pair.target.rows[contexts[place], below])
            draft.append(pair.draft.rows[contexts[place], below])
            first += len(contexts)
            contexts = following[place, below]
        nodes, tokens, targets, drafts = map(np.concatenate, (parent, token, target, draft))
        return cls(pair.vocab, length, nodes, tokens, targets, drafts, pair.target.rows[contexts])

    @classmethod
    def from_conditionals(cls, target: Law, draft: Law, vocab: int, length: int) -> PrefixTree:
        """The full V-ary tree of two functions from a prefix (tuple of tokens) to a row of V probabilities."""
        _check_size(vocab, length)
        return cls.unrolled(ModelPair.from_conditionals(target, draft, vocab, length), length)

    @classmethod
    def iid(cls, target: Row, draft: Row, length: int) -> PrefixTree:
        """Every token drawn from the same two rows of V probabilities, whatever came before."""
        if len(target) != len(draft):
            raise ValueError(f"target has {len(target)} entries and draft {len(draft)}; give one per token to both")
        return cls.unrolled(ModelPair.iid(target, draft), length)

    @classmethod
    def markov(cls, target: Sequence[Row], draft: Sequence[Row], length: int, start: int = 0) -> PrefixTree:
        """Order-1 chains: row y of each V x V matrix follows token y; `start` is the token before the draft."""
        if len(target) != len(draft):
            raise ValueError(f"target has {len(target)} rows and draft {len(draft)}; give one per token to both")
        return cls.unrolled(ModelPair.markov(target, draft, start), length)

    @classmethod
    def random(cls, vocab: int, length: int, seed: int, concentration: float = 0.5) -> PrefixTree:
        """Independent Dirichlet(concentration) rows: target levels 0..L-1, draft levels 0..L-1, then bonus rows.

        All drawn from `numpy.random.default_rng(seed)` in that order, so that a seed names one instance.
        """
        _check_size(vocab, length)
        if not 0 < concentration <= sys.float_info.max:
            raise ValueError(f"concentration is {concentration}; want a positive number, e.g. 0.5")
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed is {seed!r}; want an integer of at least 0")
        rng = np.random.default_rng(seed)
        alpha = np.full(vocab, float(concentration))
        levels = [[rng.dirichlet(alpha, size=vocab**d).ravel() for d in range(length)] for _ in range(2)]
        target, draft = (np.concatenate([[1.0], *rows]) for rows in levels)
        bonus = rng.dirichlet(alpha, size=vocab**length)
        sizes = [vocab**d for d in range(length + 1)]
        firsts = np.cumsum([0, *sizes])
        parent = np.concatenate([[-1], *(np.repeat(np.arange(a, b), vocab) for a, b in pairwise(firsts[:-1]))])
        token = np.concatenate([[-1], *(np.tile(np.arange(vocab), size) for size in sizes[:-1])])
        return cls(vocab, length, parent, token, target, draft, bonus)

    # ------------------------------------------------------------------ JSON

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> PrefixTree:
        """Read the JSON form written by `to_json` (a string or an already parsed object).

        Probabilities are numbers, or strings such as "1/3"; if none is a decimal number the tree is exact.
        Without `bonus` the bonus token is uniform (it does not enter any optimum).

        Raises:
            ValueError: naming the field, its value and the fix.
        """
        required = ("vocab", "length", "parent", "token", "target", "draft")
        data = read_object("the instance", text, FORMAT, VERSION, required, ("bonus", "symbols"))
        vocab, length = _integer("vocab", data["vocab"]), _integer("length", data["length"])
        parent = _integers("parent", data["parent"])
        bonus = _parsed("bonus", data["bonus"]) if "bonus" in data else _uniform(vocab, _count_deepest(parent, length))
        target, draft, bonus = to_array(_parsed("target", data["target"]), _parsed("draft", data["draft"]), bonus)
        symbols = data.get("symbols")
        if symbols is not None and not (
            isinstance(symbols, list) and all(isinstance(symbol, str) for symbol in symbols)
        ):
            raise ValueError(f"symbols is {symbols!r}; want a list of strings, one per token")
        token = _integers("token", data["token"])
        names = None if symbols is None else tuple(symbols)
        return cls(vocab, length, parent, token, target, draft, bonus, names)

    def to_json(self) -> str:
        """One JSON object; fractions are written as strings ("1/3"), floats in full precision."""
        fields = ("vocab", "length", "parent", "token", "target", "draft", "bonus")
        data = {name: getattr(self, name) for name in fields}
        if self.symbols is not None:
            data["symbols"] = list(self.symbols)
        return write_object(FORMAT, VERSION, data)

    # ------------------------------------------------------------------ structure

    @property
    def size(self) -> int:
        """Number of nodes, root included."""
        return len(self.parent)

    @property
    def exact(self) -> bool:
        """True if the probabilities are fractions."""
        return is_exact(self.target)

    @cached_property
    def depth(self) -> Array:
        """[n] int64: length of the prefix."""
        return _depths(self.parent)

    @cached_property
    def levels(self) -> list[slice]:
        """Slice of the nodes of depth 0, 1, ..., L."""
        bounds = np.searchsorted(self.depth, np.arange(self.length + 2))
        return [slice(int(a), int(b)) for a, b in pairwise(bounds)]

    @cached_property
    def children(self) -> list[slice]:
        """Slice of each node's children (empty for a leaf)."""
        bounds = np.searchsorted(self.parent, np.arange(self.size + 1))
        return [slice(int(a), int(b)) for a, b in pairwise(bounds)]

    @property
    def leaves(self) -> slice:
        """The nodes of depth L: full drafts."""
        return self.levels[-1]

    def prefix(self, node: int) -> Prefix:
        """Tokens from the root to the node."""
        tokens: list[int] = []
        while node > 0:
            tokens.append(int(self.token[node]))
            node = int(self.parent[node])
        return tuple(reversed(tokens))

    # ------------------------------------------------------------------ laws

    @cached_property
    def target_joint(self) -> Array:
        """[n] P(w), the target probability of each prefix."""
        return self._joint(self.target)

    @cached_property
    def draft_joint(self) -> Array:
        """[n] Q(w), the draft probability of each prefix."""
        return self._joint(self.draft)

    def _joint(self, conditional: Array) -> Array:
        joint = conditional.copy()
        for level in self.levels[1:]:
            joint[level] = conditional[level] * joint[self.parent[level]]
        return joint

    def child_sums(self, values: Array) -> Array:
        """[n] the sum of `values` over each node's children (0 at leaves)."""
        sums = values * 0
        np.add.at(sums, self.parent[1:], values[1:])
        return sums

    def rows(self, conditional: Array) -> Array:
        """[n, V] the conditional law of the next token at each node; zero rows at nodes without children."""
        rows = np.zeros((self.size, self.vocab), dtype=conditional.dtype)
        rows[self.parent[1:], self.token[1:]] = conditional[1:]
        return rows

    def target_law(self) -> dict[Prefix, Any]:
        """The target's law of the next L+1 tokens: block -> probability, impossible blocks left out.

        Where the tree ends early (below a prefix that no draft reaches) the block is that shorter prefix.
        """
        law: dict[Prefix, Any] = {}
        for node in range(1 if self.length else 0, self.size):
            joint = self.target_joint[node]
            if joint == 0 or self.children[node].start != self.children[node].stop:
                continue
            prefix = self.prefix(node)
            if len(prefix) < self.length:
                law[prefix] = joint
                continue
            for y, probability in enumerate(self.bonus[node - self.leaves.start]):
                if probability > 0:
                    law[(*prefix, y)] = joint * probability
        return law

    def truncated(self, length: int) -> PrefixTree:
        """The same models looked at only `length` tokens deep, 1 <= length <= L.

        The bonus rows are the target's rows at that depth (uniform below prefixes that were left without children).

        Raises:
            ValueError: if length is out of range.
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"length is {length}; want 1..{self.length}")
        if length == self.length:
            return self
        size, leaves = self.levels[length].stop, self.levels[length]
        bonus = self.rows(self.target)[leaves]
        empty = bonus.sum(axis=1) == 0
        bonus[empty] = Fraction(1, self.vocab) if self.exact else 1 / self.vocab
        arrays = (values[:size] for values in (self.parent, self.token, self.target, self.draft))
        parent, token, target, draft = arrays
        return PrefixTree(self.vocab, length, parent, token, target, draft, bonus, self.symbols)

    def as_float(self) -> PrefixTree:
        """The same tree in float64."""
        target, draft, bonus = (np.asarray(values, dtype=float) for values in (self.target, self.draft, self.bonus))
        return PrefixTree(self.vocab, self.length, self.parent, self.token, target, draft, bonus, self.symbols)


# ---------------------------------------------------------------------- checks


def _check_size(vocab: int, length: int) -> None:
    for name, value in (("vocab", vocab), ("length", length)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} is {value!r}; want an integer of at least 1")
    if length > MAX_NODES or (vocab > 1 and length > math.log2(MAX_NODES)):
        raise ValueError(
            f"vocab {vocab} and length {length} make more than {MAX_NODES:.0e} nodes; lower vocab or length"
        )
    _check_vocab(vocab)
    nodes = length + 1 if vocab == 1 else (vocab ** (length + 1) - 1) // (vocab - 1)
    if nodes > MAX_NODES:
        raise ValueError(
            f"vocab {vocab} and length {length} make {nodes:.3g} nodes, more than {MAX_NODES:.0e}; "
            "lower vocab or length"
        )
    if nodes * length > MAX_TOKENS:
        raise ValueError(f"length {length} makes prefixes of {nodes * length:.3g} tokens in all; lower length")


def _check_vocab(vocab: int) -> None:
    if vocab > MAX_VOCAB:
        raise ValueError(f"vocab is {vocab}; want at most {MAX_VOCAB}")


def _as_arrays(tree: PrefixTree) -> dict[str, Array]:
    """The fields as arrays, if some were given as lists: probabilities all exact or all float64."""
    arrays = {name: np.asarray(getattr(tree, name)) for name in ("parent", "token")}
    laws = {name: getattr(tree, name) for name in ("target", "draft", "bonus")}
    if all(isinstance(values, np.ndarray) for values in laws.values()):
        return arrays
    listed = [_parsed(name, read_list(values, name)) for name, values in laws.items()]
    return arrays | dict(zip(laws, to_array(*listed), strict=True))


def _check_shape(tree: PrefixTree) -> None:
    if tree.vocab < 1 or tree.length < 1:
        raise ValueError(f"vocab is {tree.vocab} and length {tree.length}; both want at least 1")
    _check_vocab(tree.vocab)
    size = len(tree.parent)
    for name in ("parent", "token", "target", "draft"):
        values = getattr(tree, name)
        if values.ndim != 1 or len(values) != size:
            raise ValueError(f"{name} has shape {values.shape}; want ({size},), one entry per node")
    for name in ("parent", "token"):
        values = getattr(tree, name)
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} has dtype {values.dtype}; want integers")
    if tree.symbols is not None and len(tree.symbols) != tree.vocab:
        raise ValueError(f"symbols has {len(tree.symbols)} names; want {tree.vocab}, one per token")


def _check_order(tree: PrefixTree) -> None:
    parent, token = tree.parent, tree.token
    if len(parent) == 0 or parent[0] != -1 or token[0] != -1:
        raise ValueError("node 0 must be the root, with parent -1 and token -1")
    nodes = np.arange(1, len(parent))
    if len(bad := nodes[parent[1:] < 0]):
        raise ValueError(f"parent[{bad[0]}] is {parent[bad[0]]}; only node 0 is a root")
    if len(bad := nodes[parent[1:] >= nodes]):
        raise ValueError(
            f"parent[{bad[0]}] is {parent[bad[0]]}: a cycle, or nodes out of order; list parents before children"
        )
    if len(bad := nodes[1:][np.diff(parent[1:]) < 0]):
        raise ValueError(
            f"parent[{bad[0]}] is {parent[bad[0]]}, below the one before; list nodes breadth-first, siblings together"
        )
    if len(bad := nodes[(token[1:] < 0) | (token[1:] >= tree.vocab)]):
        raise ValueError(f"token[{bad[0]}] is {token[bad[0]]}; want 0..{tree.vocab - 1}")
    edges = parent[1:] * tree.vocab + token[1:]
    order = np.argsort(edges, kind="stable")
    if len(twice := order[1:][np.diff(edges[order]) == 0]):
        node = int(twice[0]) + 1
        raise ValueError(f"node {node} repeats token {token[node]} under node {parent[node]}")
    if tree.depth.max() > tree.length:
        node = int(np.argmax(tree.depth > tree.length))
        raise ValueError(f"node {node} has depth {tree.depth[node]}; length is {tree.length}")


def _check_probabilities(tree: PrefixTree) -> None:
    for name in ("target", "draft", "bonus"):
        values = getattr(tree, name)
        if values.dtype != (object if tree.exact else np.float64):
            raise ValueError(f"{name} has dtype {values.dtype}; target, draft and bonus are all float64 or all object")
        flat = values.ravel()
        if not tree.exact and not np.isfinite(flat).all():
            index = int(np.argmin(np.isfinite(flat)))
            raise ValueError(f"{name} has the entry {flat[index]} (at {index}); want finite probabilities")
        if len(bad := np.flatnonzero(flat < 0)):
            raise ValueError(f"{name} has the negative entry {flat[bad[0]]} (at {bad[0]}); want probabilities")
    tolerance = 0 if tree.exact else ROW_TOLERANCE
    parents = np.unique(tree.parent[1:])
    for name in ("target", "draft"):
        values = getattr(tree, name)
        if abs(values[0] - 1) > tolerance:
            raise ValueError(f"{name}[0] is {values[0]}; the root has probability 1")
        sums = tree.child_sums(values)[parents]
        if len(bad := np.flatnonzero(abs(sums - 1) > tolerance)):
            raise ValueError(f"{name} sums to {sums[bad[0]]} over the children of node {parents[bad[0]]}; want 1")
    childless = np.ones(tree.size, dtype=bool)
    childless[parents] = False
    early = np.flatnonzero(childless & (tree.depth < tree.length))
    if len(bad := early[tree.draft_joint[early] > 0]):
        raise ValueError(
            f"node {bad[0]} has depth {tree.depth[bad[0]]} and no children, but drafts reach it; "
            f"want leaves at depth {tree.length}"
        )
    leaves = tree.leaves.stop - tree.leaves.start
    if tree.bonus.shape != (leaves, tree.vocab):
        raise ValueError(f"bonus has shape {tree.bonus.shape}; want ({leaves}, {tree.vocab}) = [leaves, V]")
    sums = tree.bonus.sum(axis=1)
    if len(bad := np.flatnonzero(abs(sums - 1) > tolerance)):
        raise ValueError(f"bonus[{bad[0]}] sums to {sums[bad[0]]}; want 1")


def _uniform(vocab: int, leaves: int) -> Array:
    _check_vocab(vocab)
    if leaves * vocab > MAX_BONUS:
        raise ValueError(
            f"vocab is {vocab}: {leaves} bonus rows of that length are too large; number the tokens in use"
        )
    return np.full((leaves, max(vocab, 0)), Fraction(1, max(vocab, 1)), dtype=object)


def _count_deepest(parent: Array, length: int) -> int:
    """Number of nodes of depth `length`, for any integers in `parent` (checked later)."""
    depth = {0: 0}
    for node, above in enumerate(parent.tolist()[1:], start=1):
        depth[node] = depth.get(above, -1) + 1
    return sum(value == length for value in depth.values())


def _depths(parent: Array) -> Array:
    depth = np.zeros(len(parent), dtype=np.int64)
    first, last = 0, 1
    level = 0
    while last < len(parent):
        first, last = last, int(np.searchsorted(parent, last))
        level += 1
        depth[first:last] = level
    return depth


def _parsed(name: str, value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}; want a list")
    if name != "bonus":
        return [read_number(entry, name) for entry in value]
    rows = [row.tolist() if isinstance(row, np.ndarray) else row for row in value]
    if not all(isinstance(row, list | tuple) for row in rows) or len({len(row) for row in rows}) > 1:
        raise ValueError("bonus must be a list of rows of equal length, one per node of depth L")
    return [[read_number(entry, name) for entry in row] for row in rows]


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; want an integer")
    return value


def _integers(name: str, value: Any) -> Array:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}; want a list of integers")
    integers = [_integer(name, entry) for entry in value]
    if too_large := [entry for entry in integers if abs(entry) > MAX_VOCAB]:
        raise ValueError(f"{name} is {too_large[0]}; want a node or a token, below {MAX_VOCAB}")
    return np.array(integers, dtype=np.int64)
