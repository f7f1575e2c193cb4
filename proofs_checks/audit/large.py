"""Audits at large vocabularies: exact laws of what is emitted, on drafts of a few tokens and targets of all.

The draft's row behind every prefix holds four tokens, the first and the last of the vocabulary and tokens beside
multiples of 1024 among them; the target's row holds all V. Every draft is verified, every decision followed, and draws
over many tokens are kept as rows (see `foreign.wide`), so that the law of the first L+1 tokens is exact at V = 32000.
Not looked at: draft rows of many tokens. Rows are handed over in float64 where the code takes it.

Letters: V vocabulary, L draft length, w a prefix of drafted tokens, y the token behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from specbound.theory.prefix_tree import Prefix

from ..laws.deviation import Deviation
from .foreign.adapters import Call, Foreign
from .foreign.formats import coarser, name_of, rounding
from .foreign.interception import Interception
from .foreign.sandbox import alive
from .foreign.wide import emitted_rows

LARGE = 64
DRAFTED = 4
EDGE = 1024
TOLERANCE = 1e-9


@dataclass(frozen=True)
class LargeInstance:
    """Rows of a large vocabulary.

    Attributes:
        draft: prefix of 0..L-1 tokens -> [V]; target: prefix of 0..L tokens -> [V]. Prefixes hold drafted tokens only.
    """

    vocab: int
    length: int
    draft: dict[Prefix, np.ndarray]
    target: dict[Prefix, np.ndarray]

    @property
    def drafts(self) -> list[Prefix]:
        """All drafts of positive probability."""
        return [prefix for prefix in self.target if len(prefix) == self.length]

    def call(self, draft: Prefix) -> Call:
        """The call that verifies a draft."""
        prefixes = [draft[:depth] for depth in range(self.length + 1)]
        return Call(
            np.array([draft]),
            np.stack([self.draft[prefix] for prefix in prefixes[:-1]])[None],
            np.stack([self.target[prefix] for prefix in prefixes])[None],
        )


def large_instance(
    vocab: int, length: int, seed: int, row_of: Callable[[np.ndarray], np.ndarray] | None = None
) -> LargeInstance:
    """A random instance; every row is drawn anew, so that rows that are mixed up show.

    Args:
        row_of: see `Foreign.row`.
    """
    rng = np.random.default_rng(seed)
    made = row_of or np.asarray
    draft: dict[Prefix, np.ndarray] = {}
    target: dict[Prefix, np.ndarray] = {}
    layer: list[Prefix] = [()]
    for depth in range(length + 1):
        behind: list[Prefix] = []
        for prefix in layer:
            tokens = _tokens(rng, vocab)
            dense = rng.dirichlet(np.full(vocab, 0.5))
            shared = np.zeros(vocab)
            shared[tokens] = rng.dirichlet(np.ones(len(tokens)))
            target[prefix] = made((dense + shared) / 2)
            if depth < length:
                row = np.zeros(vocab)
                row[tokens] = rng.dirichlet(np.ones(len(tokens)))
                draft[prefix] = made(row)
                behind += [(*prefix, int(token)) for token in np.flatnonzero(draft[prefix])]
        layer = behind
    return LargeInstance(vocab, length, draft, target)


def _tokens(rng: np.random.Generator, vocab: int) -> np.ndarray:
    """Four different tokens where indices go wrong, and anywhere."""
    edges = [0, vocab - 1, *(edge + side for edge in range(EDGE, vocab, EDGE) for side in (-1, 0))]
    candidates = np.unique([*edges[:2], *rng.choice(edges, 2), *rng.choice(vocab, DRAFTED, replace=False)])
    return rng.choice(candidates, DRAFTED, replace=False)


@dataclass(frozen=True)
class LargeLaw:
    """What was found on one instance.

    Attributes:
        total_variation: of the first L+1 tokens to the target's, exact up to `resolution`.
        deviation: None if within it.
        acceptance_length: expected number of drafted tokens kept.
        notes: what was exact, and those of the interception.
    """

    total_variation: float
    resolution: float
    deviation: Deviation | None
    acceptance_length: float
    notes: tuple[str, ...]


def large_law(code: Foreign, instance: LargeInstance) -> LargeLaw:
    """The exact law of what foreign code emits on a large instance.

    Raises:
        NotExact: if a draw over many tokens is not of the form of `foreign.wide`.
        InvalidResult: if it emits something that is not a block of tokens.
    """
    emitted: dict[Prefix, np.ndarray] = {w: np.zeros(instance.vocab) for w in instance.target}
    accepted = 0.0
    with Interception(code.function) as interception:
        for draft in instance.drafts:
            alive()
            weight = float(np.prod([instance.draft[draft[:i]][x] for i, x in enumerate(draft)]))
            call = partial(code, instance.call(draft))
            for prefix, row in emitted_rows(interception, call, instance.vocab).items():
                if prefix not in emitted:
                    emitted[prefix] = np.zeros(instance.vocab)
                emitted[prefix] += weight * row
                accepted += weight * len(prefix) * row.sum()
    total = sum(_compared(instance, emitted).values())
    kind = coarser(code.dtype, interception.arithmetic)
    resolution = max(TOLERANCE, rounding(instance.vocab, instance.length, kind))
    said = (
        f"Exact conditional laws at V={instance.vocab} L={instance.length}: all {len(instance.drafts)} drafts of a "
        f"draft law of {DRAFTED} tokens a row, every decision, and draws over many tokens as whole rows, computed in "
        f"{name_of(kind)}; total variation {total:.2g}, exact to {resolution:.2g}."
    )
    notes = tuple(filter(None, (said, code.note, *interception.notes)))
    return LargeLaw(total, resolution, _deviation(instance, emitted, total, resolution), accepted, notes)


def _streams(instance: LargeInstance, emitted: dict[Prefix, np.ndarray]) -> dict[Prefix, np.ndarray]:
    """w -> [V], Pr(the stream starts with w, y): emitted there, kept through, or continued from the target."""
    continued: dict[Prefix, float] = {(): 0.0}
    kept = {w: float(row.sum()) for w, row in emitted.items()}
    for w in sorted(kept, key=len, reverse=True):
        if w:
            kept[w[:-1]] = kept.get(w[:-1], 0.0) + kept[w]
    rows: dict[Prefix, np.ndarray] = {}
    for w in sorted(instance.target, key=len):
        rows[w] = continued[w] * instance.target[w] + emitted[w]
        for y in np.flatnonzero(instance.draft[w]).tolist() if w in instance.draft else ():
            continued[*w, y] = float(rows[w][y])
            rows[w][y] += kept.get((*w, y), 0.0)
    return rows


def _joint(instance: LargeInstance) -> dict[Prefix, float]:
    joint: dict[Prefix, float] = {}
    for w in sorted(instance.target, key=len):
        joint[w] = joint[w[:-1]] * float(instance.target[w[:-1]][w[-1]]) if w else 1.0
    return joint


def _compared(instance: LargeInstance, emitted: dict[Prefix, np.ndarray]) -> dict[Prefix, float]:
    """w -> half the sum of absolute differences of the blocks that leave the drafts behind w."""
    rows, joint = _streams(instance, emitted), _joint(instance)
    found: dict[Prefix, float] = {}
    for w, row in rows.items():
        apart = np.abs(row - joint[w] * instance.target[w])
        if w in instance.draft:
            apart[instance.draft[w] > 0] = 0.0
        found[w] = float(apart.sum()) / 2
    strange = [w for w in emitted if w not in instance.target]
    found.update({w: float(emitted[w].sum()) for w in strange})
    return found


def _deviation(
    instance: LargeInstance, emitted: dict[Prefix, np.ndarray], total: float, resolution: float
) -> Deviation | None:
    if total <= resolution:
        return None
    rows, joint = _streams(instance, emitted), _joint(instance)
    for depth in range(instance.length + 1):
        excess = {w: row - joint[w] * instance.target[w] for w, row in rows.items() if len(w) == depth}
        if sum(float(np.abs(values).sum()) for values in excess.values()) / 2 > resolution or depth == instance.length:
            break
    w = max(excess, key=lambda prefix: float(excess[prefix].max()))
    y = int(excess[w].argmax())
    return Deviation(total, depth + 1, w, y, float(rows[w][y]), joint[w] * float(instance.target[w][y]))
