# ruff: noqa: NPY002 - the legacy generator is part of what is intercepted
"""Drafter and verifier in one call: shared coins are found where they bias, and cleared where they are the point."""

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit.foreign.drafting import draft_and_verify, joint_law
from specbound.proofs_checks.laws.replay import InvalidResult
from specbound.theory.prefix_tree import PrefixTree

TREES = [PrefixTree.random(2, 2, seed=3), PrefixTree.random(3, 1, seed=4)]
ONE = PrefixTree.iid([0.4, 0.4, 0.2], [0.1, 0.2, 0.7], 1)
TWO = PrefixTree.random(2, 1, seed=5)


def law(function, tree, paths=1, kind="numpy"):
    return joint_law(draft_and_verify(function, kind), tree, paths)


def residual(p, q):
    rest = np.maximum(p - q, 0)
    return rest / rest.sum() if rest.any() else p


# ---------------------------------------------------------------------- right


def without_replacement(draft_law, target_law, paths, rng, with_its_law=True):
    """K different drafted tokens, each tried against what is left; wrong if the draft's law stays the first one's."""
    p, q = target_law([]), draft_law([])
    drafted: list[int] = []
    for _ in range(paths):
        left = np.where(np.isin(np.arange(len(q)), drafted), 0, q)
        if not left.any():
            break
        drafted.append(int(rng.choice(len(q), p=left / left.sum())))
    law = q
    for x in drafted:
        if rng.random() * law[x] < p[x]:
            return drafted, [x, int(rng.choice(len(q), p=target_law([x])))]
        p = residual(p, law)
        if with_its_law:
            law = np.where(np.arange(len(q)) == x, 0, law)
            law = law / law.sum() if law.any() else law
    return drafted, [int(rng.choice(len(q), p=p))]


@pytest.mark.parametrize("with_its_law", [True, False])
def test_a_subject_may_bring_its_drafter_that_draws_without_replacement(with_its_law):
    def subject(draft_law, target_law, paths, rng):
        return without_replacement(draft_law, target_law, paths, rng, with_its_law)

    found = law(subject, ONE, paths=2)
    off = found.law.total_variation(ONE.target_law())
    assert off < 1e-12 if with_its_law else off > 1e-3
    assert found.draft_distance > 0.1


def independent_coins(draft_law, target_law, length, vocab, rng):
    drafted = []
    while len(drafted) < length:
        drafted.append(int(rng.choice(vocab, p=draft_law(drafted))))
    for i, x in enumerate(drafted):
        p, q = target_law(drafted[:i]), draft_law(drafted[:i])
        if rng.random() > p[x] / q[x]:
            return drafted, [*drafted[:i], rng.choice(vocab, p=residual(p, q))]
    return drafted, [*drafted, rng.choice(vocab, p=target_law(drafted))]


def gumbel_coupling(draft_law, target_law, length):
    """[2408.07978]: token of the drafter argmin S/q, of the target argmin S/p, on the same exponentials."""
    drafted, emitted = [], []
    agree = True
    for _ in range(length):
        q = draft_law(drafted)
        noise = np.random.exponential(size=len(q))
        x = int(np.argmin(noise / q))
        if agree:
            y = int(np.argmin(noise / target_law(drafted)))
            emitted.append(y)
            agree = x == y
        drafted.append(x)
    if agree:
        p = target_law(drafted)
        emitted.append(int(np.argmin(np.random.exponential(size=len(p)) / p)))
    return drafted, emitted


def gumbel_coupling_in_torch(draft_law, target_law, length):
    drafted, emitted = [], []
    for _ in range(length):
        noise = -torch.log(-torch.log(torch.rand_like(draft_law(drafted))))
        x = int((draft_law(drafted).log() + noise).argmax())
        y = int((target_law(drafted).log() + noise).argmax())
        drafted.append(x)
        emitted.append(y)
        if x != y:
            return emitted
    return [*emitted, int(torch.multinomial(target_law(drafted), 1))]


def list_coupling(draft_law, target_law, paths):
    """[2506.05632]: K lists, X^k = argmin S^k/q, Y = argmin_i min_k S^k_i / p_i."""
    noise = np.random.exponential(size=(paths, len(draft_law([]))))
    drafted = [int(np.argmin(row / draft_law([]))) for row in noise]
    first = noise[0]
    for row in noise[1:]:
        first = np.minimum(first, row)
    y = int(np.argmin(first / target_law([])))
    if y not in drafted:
        return drafted, [y]
    return drafted, [y, np.random.choice(len(target_law([y])), p=target_law([y]))]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(
    "right, kind", [(independent_coins, "numpy"), (gumbel_coupling, "numpy"), (gumbel_coupling_in_torch, "torch")]
)
def test_right_pairs_of_drafter_and_verifier_are_lossless(right, kind, tree):
    found = law(right, tree, kind=kind)
    assert found.law.total_variation(tree.target_law()) < 1e-12
    assert found.draft_distance is None or found.draft_distance < 1e-12


def test_a_gumbel_coupling_keeps_the_known_fraction():
    """Pr(x = y) = sum_i 1 / sum_j max(p_j/p_i, q_j/q_i), at least (1 - TV)/(1 + TV)."""
    p, q = (np.array([float(v) for v in row[:3]]) for row in (ONE.target[1:4], ONE.draft[1:4]))
    matches = sum(1 / np.maximum(p / p[i], q / q[i]).sum() for i in range(3))
    found = law(gumbel_coupling, ONE).law
    assert abs(found.acceptance_length - matches) < 1e-12
    far = 0.5 * np.abs(p - q).sum()
    assert matches >= (1 - far) / (1 + far)


def test_a_list_coupling_is_lossless_and_keeps_more_than_one_list():
    one, two = (law(list_coupling, TWO, paths) for paths in (1, 2))
    for found in (one, two):
        assert found.law.total_variation(TWO.target_law()) < 1e-12
        assert found.draft_distance < 1e-12
    assert two.law.acceptance_length > one.law.acceptance_length + 0.01


# ---------------------------------------------------------------------- wrong: coins shared by mistake


def drafters_noise_in_the_residual(draft_law, target_law):
    """The drafter's exponentials pick the correction too."""
    p, q = target_law([]), draft_law([])
    noise = np.random.exponential(size=len(q))
    x = int(np.argmin(noise / q))
    if np.random.rand() <= p[x] / q[x]:
        return [x], [x, np.random.choice(len(q), p=target_law([x]))]
    rest = residual(p, q)
    scores = [noise[y] / rest[y] if rest[y] > 0 else np.inf for y in range(len(q))]
    return [x], [int(np.argmin(np.array(scores, dtype=object)))]


def one_offset_for_two_streams(draft_law, target_law):
    """Drafting and acceptance read the same place of the same stream."""
    p, q = target_law([]), draft_law([])
    u = np.random.rand()
    x = int(np.searchsorted(np.cumsum(q), u))
    if u <= p[x] / q[x]:
        return [x], [x, np.random.choice(len(q), p=target_law([x]))]
    return [x], [np.random.choice(len(q), p=residual(p, q))]


def acceptance_uniform_as_point_of_the_residual(draft_law, target_law):
    """The coin that rejected draws the correction by inverse CDF."""
    p, q = target_law([]), draft_law([])
    x = int(np.random.choice(len(q), p=q))
    u = np.random.rand()
    if u <= p[x] / q[x]:
        return [x], [x, np.random.choice(len(q), p=target_law([x]))]
    return [x], [int(np.searchsorted(np.cumsum(residual(p, q)), u))]


def drafts_from_the_wrong_law(draft_law, target_law):
    """Lossless in itself only if drafts follow the draft law, which these do not."""
    p, q = target_law([]), draft_law([])
    x = int(np.random.choice(len(q), p=q**2 / (q**2).sum()))
    if np.random.rand() <= p[x] / q[x]:
        return [x], [x, np.random.choice(len(q), p=target_law([x]))]
    return [x], [np.random.choice(len(q), p=residual(p, q))]


@pytest.mark.parametrize(
    "wrong",
    [
        drafters_noise_in_the_residual,
        one_offset_for_two_streams,
        acceptance_uniform_as_point_of_the_residual,
        drafts_from_the_wrong_law,
    ],
)
def test_coins_shared_by_mistake_are_found(wrong):
    found = law(wrong, ONE)
    assert found.law.total_variation(ONE.target_law()) > 1e-3
    assert (found.draft_distance < 1e-9) == (wrong is not drafts_from_the_wrong_law)


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="want draft_law and target_law"):
        draft_and_verify(lambda draft_law, other: [0])
    with pytest.raises(InvalidResult, match=r"emitted \[7\]"):
        law(lambda draft_law, target_law: [7], ONE)
    with pytest.raises(InvalidResult, match="asked behind"):
        law(lambda draft_law, target_law: [draft_law([0])], ONE)
