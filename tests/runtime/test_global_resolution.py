"""Global resolution: lossless however far its steps have come, and close to the single-step optimum after some."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime.verifiers.global_resolution import best_tokens, global_resolution, resolve, selected
from specbound.theory import single_step
from specbound.theory.prefix_tree import PrefixTree


def rows(vocab, seed):
    return np.random.default_rng(seed).dirichlet([0.5] * vocab, size=2)


@pytest.mark.parametrize("paths", [1, 2, 3])
@pytest.mark.parametrize("steps", [0, 1, 20])
def test_it_is_lossless_after_any_number_of_steps(paths, steps):
    tree = PrefixTree.random(3, 1 if paths == 3 else 2, paths)
    law = exact_law(global_resolution(steps), tree, paths)
    assert law.total_variation(tree.target_law()) < 1e-12


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("paths", [2, 3])
def test_its_steps_lead_to_the_single_step_optimum(paths, seed):
    target, draft = rows(4, seed)
    best = single_step.optimum(target, draft, paths).value
    count = torch.full((1,), float(paths), dtype=torch.float64)
    short = []
    for steps in (0, 60, 400):
        _, _, law = resolve(torch.as_tensor(target)[None], torch.as_tensor(draft)[None], count, steps)
        short.append(best - float(np.minimum(target, law[0].numpy()).sum()))
    assert -1e-12 <= short[2] <= max(short[1], 1e-9) + 1e-12
    assert short[2] < 1e-3


def test_the_selected_law_is_the_one_of_all_drafts_counted():
    _, draft = rows(3, 1)
    weights = torch.tensor([[-1.0, 0.0, 2.0]], dtype=torch.float64)
    inside = torch.tensor([[False, True, True]])
    law = selected(weights, inside, torch.as_tensor(draft)[None], torch.tensor([2.0], dtype=torch.float64))[0]
    counted, w = np.zeros(3), weights[0].exp().numpy()
    for x in range(3):
        for y in range(3):
            among = [z for z in (x, y) if inside[0, z]] or [x, y]
            for z in among:
                counted[z] += draft[x] * draft[y] * w[z] / w[among].sum()
    np.testing.assert_allclose(law.numpy(), counted, atol=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_set_is_that_of_the_closed_form(seed):
    target, draft = rows(5, seed)
    found = best_tokens(torch.as_tensor(target)[None], torch.as_tensor(draft)[None], torch.tensor([3.0]))
    assert set(np.flatnonzero(found[0].numpy())) == set(single_step.best_set(target, draft, 3).tolist())
