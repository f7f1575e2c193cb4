"""Every cause is named for a stand-in that has it, written independently of the list, and for no right verifier."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit.counterexample import carry_missing, likely_causes
from specbound.proofs_checks.audit.foreign.adapters import Foreign, foreign_law
from specbound.proofs_checks.audit.mistakes import FAMILIES, MISTAKES
from specbound.proofs_checks.laws.judge import Evidence
from specbound.proofs_checks.laws.judge import evidence as evidence_of
from specbound.theory.prefix_tree import PrefixTree
from tests.support import zoo

SMALL = PrefixTree.iid([0.5, 0.3, 0.2], [0.15, 0.25, 0.6], 1)
LARGER = PrefixTree.random(3, 2, seed=1, concentration=1.0)
TIED = PrefixTree.iid([Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)], [Fraction(1, 3)] * 3, 1)


def compared(verify, paths=1, trees=(SMALL, LARGER)):
    """The laws of a program on the instances."""
    found = []
    for tree in trees:
        code = Foreign(verify, lambda call: {"call": call}, lambda block, _: block, "many")
        law = foreign_law(code, tree, paths)
        wanted = {block: float(mass) for block, mass in tree.target_law().items()}
        found.append((tree, paths, Evidence(law.blocks, wanted, law.acceptance_length, law.outcomes, False)))
    return found


def drawn(weights):
    weights = np.asarray(weights, dtype=float)
    return random.choices(range(len(weights)), weights)[0]


def one_path(kept=lambda p, q, x: random.random() < p[x] / q[x], corrected=None, bonus=drawn):
    """Token verification in a style of its own."""

    def verify(call):
        out = []
        for x, q, p in zip(call.tokens[0].tolist(), call.draft_probs[0], call.target_probs[0], strict=False):
            if not kept(p, q, x):
                rest = np.maximum(p - q, 0)
                return [*out, drawn(rest) if corrected is None else corrected(p, q, x)]
            out.append(x)
        return [*out, bonus(call.target_probs[0, -1])]

    return verify


def bfloat16_coin(p, q, x):
    """The coin has 256 values."""
    return bool(torch.rand((), dtype=torch.bfloat16) < p[x] / q[x])


def half_rows(p, q, x):
    p, q = (torch.tensor(row).half().double().numpy() for row in (p, q))
    return random.random() < p[x] / q[x]


def half_rest(p, q, x):
    p, q = (torch.tensor(row).half().double().numpy() for row in (p, q))
    return drawn(np.maximum(p - q, 0))


def row_before(call):
    x, q, p = call.tokens[0].tolist(), call.draft_probs[0], call.target_probs[0]
    for i, token in enumerate(x):
        j = i - 1 if i else 0
        if random.random() > p[j, token] / q[j, token]:
            return [*x[:i], drawn(np.maximum(p[i] - q[i], 0))]
    return [*x, drawn(p[-1])]


def block_coins(call, first=False, shift=0):
    """Block verification, all coins drawn beforehand."""
    x, q, p = call.tokens[0].tolist(), call.draft_probs[0], call.target_probs[0]
    c = [1.0]
    for i, token in enumerate(x):
        c.append(min(1.0, c[-1] * p[i, token] / q[i, token]))
    heads = []
    for i in range(1, len(x) + 1):
        surplus = np.maximum(c[i] * p[i - shift] - q[i - shift], 0).sum() if i < len(x) else 0
        chance = c[i] if i == len(x) else surplus / (surplus + 1 - c[i]) if surplus + 1 - c[i] > 0 else 1.0
        heads.append(random.random() < chance)
        if first and heads[-1]:
            break
    kept = max((i for i, head in enumerate(heads, start=1) if head), default=0)
    rest = p[kept] if kept == len(x) else np.maximum(c[kept] * p[kept] - q[kept], 0)
    return [*x[:kept], drawn(rest)]


def several(call, mixed=False, against_target=False):
    """Recursive rejection; wrong if it keeps tokens of other prefixes, or tests all drafts against the target."""
    out, path, alive = [], 0, list(range(call.paths))
    for i in range(call.length):
        p, q = call.target_probs[path, i].copy(), call.draft_probs[path, i]
        for k in alive:
            x = int(call.tokens[k, i])
            if random.random() < p[x] / q[x]:
                break
            if not against_target:
                p = np.maximum(p - q, 0)
                p /= p.sum()
        else:
            return [*out, drawn(p)]
        out.append(x)
        mine = [j for j in alive if call.tokens[j, i] == x]
        alive = [*mine, *(j for j in alive if j not in mine)] if mixed else mine
        path = mine[0]
    return [*out, drawn(call.target_probs[path, -1])]


def ties_two_ways(call, same=False):
    """Greedy selection of one of K drafts and its law; wrong if ties are sorted otherwise than they are walked."""
    p, q = call.target_probs[0, 0], call.draft_probs[0, 0]
    ranks = np.lexsort((np.arange(len(p)) * (-1 if same else 1), p / q))
    cumulative = np.cumsum(q[ranks]) ** call.paths
    law = np.empty(len(p))
    law[ranks] = np.diff(cumulative, prepend=0.0)
    x = min(call.tokens[:, 0].tolist(), key=lambda y: (-p[y] / q[y], y))
    if random.random() < p[x] / law[x]:
        return [x, drawn(call.target_probs[call.tokens[:, 0].tolist().index(x), 1])]
    return [drawn(np.maximum(p - law, 0))]


ONE_PATH = [
    (
        one_path(lambda p, q, x: random.random() < 1.5 * p[x] / q[x]),
        "lenience: tokens are kept with probability 1.5 p/q",
    ),
    (one_path(lambda p, q, x: random.random() < p[x] / q[x] + 0.1), "with probability p/q + 0.1"),
    (one_path(lambda p, q, x: random.random() < max(p[x] / q[x], 0.4)), "clamped at 0.4 from below"),
    (one_path(lambda p, q, x: p[x] >= 0.2 or random.random() < p[x] / q[x]), "and more are kept without a coin"),
    (one_path(lambda p, q, x: p[x] >= 0.3 * q[x]), "a threshold: tokens are kept if and only if p/q"),
    (
        one_path(bfloat16_coin),
        "the uniform numbers have the 2^8 values of bfloat16, compared as u < p/q",
    ),
    (one_path(half_rows, half_rest), "number format: the rows are rounded to float16"),
    (
        one_path(lambda p, q, x: random.random() < p[x] / q[x] * (1 + 2e-4)),
        "lenience: tokens are kept with probability 1",
    ),
    (
        one_path(corrected=lambda p, q, x: int((p - q).argmax())),
        "the correction is the likeliest token of the residual",
    ),
    (one_path(bonus=lambda p: int(p.argmax())), "the bonus token is the target's likeliest one"),
    (
        one_path(corrected=lambda p, q, x: int((p - q).argmax()), bonus=lambda p: int(p.argmax())),
        "the correction and the bonus token are the likeliest ones",
    ),
    (one_path(lambda p, q, x: drawn(p) == x, lambda p, q, x: drawn(p)), "another one is drawn from the target"),
    (one_path(lambda p, q, x: drawn(p) == x), "if it equals one drawn from the target"),
    (row_before, "the ratio p/q is read from the rows of the position before"),
    (lambda call: block_coins(call, first=True), "stops at the first coin that succeeds"),
    (lambda call: block_coins(call, shift=1), "threshold of block verification is read from the rows of the position"),
]


@pytest.mark.parametrize("verify, words", ONE_PATH, ids=[words[:40] for _, words in ONE_PATH])
def test_one_path_gets_its_cause_and_no_other(verify, words):
    trees = (LARGER,) if "position" in words or "succeeds" in words else (SMALL, LARGER)
    causes = likely_causes(compared(verify, trees=trees))
    assert len(causes) == 1, causes
    assert words in causes[0]


def test_top_p_on_the_correction_only():
    def cut(p, q, x):
        rest = np.maximum(p - q, 0)
        order = np.argsort(-rest, kind="stable")
        before = np.cumsum(rest[order]) - rest[order]
        rest[order[before >= 0.9 * rest.sum()]] = 0
        return drawn(rest)

    tree = PrefixTree.iid([0.5, 0.24, 0.02, 0.24], [0.1, 0.0, 0.0, 0.9], 1)
    causes = likely_causes(compared(one_path(corrected=cut), trees=(tree,)))
    assert len(causes) == 1
    assert "the correction is cut to its likeliest tokens (as by top-p" in causes[0]


@pytest.mark.parametrize(
    "verify, words, trees",
    [
        (lambda call: several(call, mixed=True), "of paths that begin with other tokens than those kept", (LARGER,)),
        (lambda call: several(call, against_target=True), "tested against the target row on its own", (SMALL, LARGER)),
        (ties_two_ways, "broken one way where the drafts are sorted and another way", (SMALL, TIED)),
    ],
)
def test_many_paths_get_their_cause_and_no_other(verify, words, trees):
    causes = likely_causes(compared(verify, 2, trees))
    assert len(causes) == 1, causes
    assert words in causes[0]


RIGHT = [(one_path(), 1, (SMALL, LARGER)), (block_coins, 1, (SMALL, LARGER)), (several, 2, (SMALL, LARGER))]


@pytest.mark.parametrize("verify, paths, trees", [*RIGHT, (lambda call: ties_two_ways(call, same=True), 2, (TIED,))])
def test_right_stand_ins_have_the_targets_law(verify, paths, trees):
    """A cause is looked for only where a law is wrong; and no mistake of the list has the target's law everywhere."""
    assert all(entry.total_variation < 1e-12 for _, _, entry in compared(verify, paths, trees))


def test_what_no_mistake_explains_is_measured_against_number_formats():
    def biased(size):
        return one_path(lambda p, q, x: random.random() < p[x] / q[x] - size * (x == 2))

    for size, words in ((1e-6, "float32"), (1e-2, "float16"), (0.5, None)):
        causes = likely_causes(compared(biased(size)))
        assert causes == () if words is None else f"what rounding in {words} can do" in causes[0]


def test_a_carry_that_is_not_read_is_named():
    broken = zoo.greedy_block_that_ignores_the_carry_it_is_given
    tree = PrefixTree.iid([1 / 3, 2 / 3], [2 / 3, 1 / 3], 2)
    causes = carry_missing((tree, 1, evidence_of(broken, tree, 1, stateful=True)))
    assert causes
    assert all("if its carry is not read in the next call" in cause for cause in causes)
    assert "the stream is that of greedy-block" in causes[0]
    assert carry_missing((tree, 1, evidence_of("greedy-block", tree, 1, stateful=True))) == ()


def test_every_mistake_has_a_sentence_of_its_own():
    causes = [mistake.cause for mistake in MISTAKES.values()] + [family.cause for family in FAMILIES.values()]
    assert len(set(causes)) == len(causes)
