"""Coins shared by drafter and verifier: joint laws in closed form, and texts that do not depend on the draft."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers.gumbel_coupling import match, shared, winner
from specbound.runtime.verifiers.list_coupling import list_law, list_winner
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import INSTANCES, small_trees

P, Q = (torch.tensor(row, dtype=torch.float64) for row in ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.3, 0.0]))
SAMPLES, FALSE_ALARM = 400_000, 1e-9


def joint(p, q):
    """Pr(x, y) [V, V] from the conditional law."""
    size = len(p)
    same, others = match(torch.arange(size), q.expand(size, size), p.expand(size, size))
    return q.unsqueeze(1) * (others + torch.diag(same))


def test_the_joint_law_has_both_laws_as_its_margins():
    for seed in range(20):
        rows = torch.as_tensor(np.random.default_rng(seed).dirichlet([0.3] * 5, size=2))
        law = joint(*rows)
        torch.testing.assert_close(law.sum(dim=0), rows[0], atol=1e-14, rtol=0)
        torch.testing.assert_close(law.sum(dim=1), rows[1], atol=1e-14, rtol=0)


def test_the_joint_law_is_that_of_the_race_by_integration():
    """Pr(x = i, y = j) = integral over S_i, S_j; done over r = S_j / S_i, where it is 1 / A(r)^2."""
    p, q = P.tolist(), Q.tolist()
    law = joint(P, Q)
    for i, j in itertools.product(range(3), range(4)):
        if i == j:
            expected = 1 / sum(max(p[k] / p[i], q[k] / q[i]) for k in range(4))
        else:
            rest = [k for k in range(4) if k not in (i, j)]

            def density(r, i=i, j=j, rest=rest):
                return (1 + r + sum(max(q[k] / q[i], p[k] * r / p[j]) for k in rest)) ** -2

            low, high = q[j] / q[i], p[j] / p[i]
            expected = quad(density, low, high, epsabs=1e-13)[0] if low < high else 0.0
        assert law[i, j] == pytest.approx(expected, abs=1e-10)


def hoeffding(comparisons):
    """Deviation of a frequency that any of so many comparisons exceeds by chance with probability 1e-9."""
    return math.sqrt(math.log(2 * comparisons / FALSE_ALARM) / (2 * SAMPLES))


def test_the_conditional_laws_are_those_of_the_coins_and_swapped_laws_are_not():
    generator = torch.Generator().manual_seed(3)
    coins = torch.empty(SAMPLES, 2, 4, dtype=torch.float64).exponential_(generator=generator)
    x = winner(coins, Q.expand(SAMPLES, 2, 4))
    y = list_winner(coins, torch.ones(SAMPLES, 2, dtype=torch.bool), P.expand(SAMPLES, 4))
    counts = torch.zeros(4, 4, 4, dtype=torch.float64)
    counts.index_put_((x[:, 0], x[:, 1], y), torch.ones(SAMPLES, dtype=torch.float64), accumulate=True)
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    given = list_law(pairs, torch.ones(9, 2, dtype=torch.bool), Q.expand(9, 4), P.expand(9, 4))
    wanted = torch.zeros(4, 4, 4, dtype=torch.float64)
    wanted[pairs[:, 0], pairs[:, 1]] = given * (Q[pairs[:, 0]] * Q[pairs[:, 1]]).unsqueeze(1)
    assert (counts / SAMPLES - wanted).abs().max() < hoeffding(64)
    assert (counts / SAMPLES - wanted.flip(2)).abs().max() > 5 * hoeffding(64)
    single = winner(coins[:, 0], P.expand(SAMPLES, 4))
    table = torch.zeros(4, 4, dtype=torch.float64)
    table.index_put_((x[:, 0], single), torch.ones(SAMPLES, dtype=torch.float64), accumulate=True)
    assert (table / SAMPLES - joint(P, Q)).abs().max() < hoeffding(16)
    assert (table / SAMPLES - joint(P, Q).T).abs().max() > 5 * hoeffding(16)


def test_of_one_path_list_coupling_is_gumbel_coupling():
    same, others = match(torch.arange(3), Q.expand(3, 4), P.expand(3, 4))
    single = list_law(torch.arange(3).unsqueeze(1), torch.ones(3, 1, dtype=torch.bool), Q.expand(3, 4), P.expand(3, 4))
    torch.testing.assert_close(single, others + torch.eye(3, 4, dtype=torch.float64) * same.unsqueeze(1))


@pytest.mark.parametrize("name", ["gumbel-coupling", "list-coupling"])
@pytest.mark.parametrize("tree", [*INSTANCES.values(), *small_trees(6)])
def test_the_text_has_the_law_of_the_target(name, tree):
    for paths in (1, 2) if name == "list-coupling" else (1,):
        law = exact_law(name, tree, paths)
        assert law.total_variation(tree.target_law()) < 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_a_match_is_at_least_as_likely_as_the_paper_says_and_less_likely_than_by_resampling(seed):
    tree = PrefixTree.random(4, 1, seed)
    kept = exact_law("gumbel-coupling", tree).acceptance_length
    distance = 0.5 * abs(tree.target[1:] - tree.draft[1:]).sum()
    assert (1 - distance) / (1 + distance) - 1e-12 <= kept <= 1 - distance + 1e-12


def text(coins, target_row, draft_row, calls, length):
    """What decoding with shared coins writes: rows are functions of the last token."""
    written = [0]
    while len(written) <= calls:
        place, context, tokens, laws = len(written), written[-1], [], []
        for i in range(length):
            laws.append(draft_row(context))
            tokens.append(context := int(winner(coins[place + i], laws[-1])))
        targets = [target_row(token) for token in (written[-1], *tokens)]
        batch = Batch(
            torch.tensor(tokens).view(1, 1, -1), torch.stack(laws)[None, None], torch.stack(targets)[None, None]
        )
        verdict = shared(coins[None, place : place + length + 1])(batch, Draws())
        written += [*tokens[: int(verdict.accepted)], int(verdict.token)]
    return written[: calls + 1]


def test_with_shared_coins_the_text_does_not_depend_on_the_draft():
    coins = torch.empty(60, 4, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(0))
    rows = {name: torch.softmax(torch.randn(4, 4, generator=torch.Generator().manual_seed(s)), 1).double()
            for s, name in enumerate(("target", "one", "other"))}  # fmt: skip
    texts = [text(coins, rows["target"].__getitem__, rows[name].__getitem__, 40, 3) for name in ("one", "other")]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 4
    resampled = [text(coins.flip(0), rows["target"].__getitem__, rows["one"].__getitem__, 40, 3)]
    assert resampled[0] != texts[0]
