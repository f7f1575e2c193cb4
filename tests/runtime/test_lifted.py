"""Single-step rules lifted to trees: UniVer and layer verification, and what the lift makes of a lossy rule."""

from __future__ import annotations

import pytest
import torch

from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.replay import replay
from specbound.runtime.parts.lift import Served, children_first, verify_lifted
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers.layer import layer, serve_in_turn, serve_optimally
from specbound.runtime.verifiers.univer import serve_first_sampled, verify_univer
from specbound.theory import single_path, single_step
from specbound.theory.multi_path import lossless_optimum
from specbound.theory.prefix_tree import PrefixTree
from tests.support.reference import INSTANCES, small_trees

TREES = [INSTANCES["I1"], INSTANCES["I7"], *small_trees(6)]


@pytest.mark.parametrize("name", ["univer", "layer"])
@pytest.mark.parametrize("tree", [*INSTANCES.values(), *small_trees(8)])
def test_of_one_path_the_lift_is_block_verification(name, tree):
    assert abs(exact_law(name, tree).acceptance_length - single_path.optimum(tree).value) < 1e-12


@pytest.mark.parametrize("paths", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_of_one_step_layer_verification_is_the_single_step_optimum(paths, seed):
    tree = PrefixTree.random(3, 1, seed)
    best = single_step.optimum(tree.target[1:], tree.draft[1:], paths).value
    assert abs(exact_law("layer", tree, paths).acceptance_length - best) < 1e-12


@pytest.mark.parametrize("tree", TREES)
def test_the_lift_of_recursive_rejection_is_traversal_verification(tree):
    lifted, known = (exact_law(verifier, tree, 2) for verifier in (layer(serve_in_turn), "traversal"))
    assert lifted.total_variation(tree.target_law()) < 1e-12
    assert lifted.kept == pytest.approx(known.kept, abs=1e-12)


@pytest.mark.parametrize("tree", TREES)
def test_the_lift_of_the_optimal_rule_is_lossless_and_stays_below_the_optimum(tree):
    law = exact_law("layer", tree, 2)
    assert law.total_variation(tree.target_law()) < 1e-12
    assert law.acceptance_length <= lossless_optimum(tree, 2).bound + 1e-9


def careless(wanted, draft, tokens, alive):
    """The optimal rule, but its correction does not know what was kept."""
    return Served(serve_optimally(wanted, draft, tokens, alive).shares, wanted)


def keeps_the_given(wanted, draft, tokens, alive):
    """UniVer with the given children's mass left in the correction."""
    served = serve_first_sampled(wanted, draft, tokens, alive)
    return Served(served.shares, (wanted - draft).clamp_min(0))


@pytest.mark.parametrize("rule", [careless, keeps_the_given])
def test_the_lift_of_a_lossy_rule_is_found_lossy(rule):
    tree = PrefixTree.random(3, 2, 1)
    law = exact_law(lambda batch, draws: verify_lifted(batch, draws, rule), tree, 2)
    assert law.total_variation(tree.target_law()) > 1e-3


def test_univer_takes_deterministic_siblings_as_rows_that_are_zero_there():
    """V=4, L=1: siblings 0 and 1 are always drafted, one more token is sampled from the draft off them."""
    target = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    draft = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64) * torch.tensor([0, 0, 1, 1])
    draft = draft / draft.sum()
    emitted = torch.zeros(4, dtype=torch.float64)
    for sampled in (2, 3):
        tokens = torch.tensor([[[sampled], [0], [1]]])
        batch = Batch(tokens, draft.expand(1, 3, 1, 4).contiguous(), target.expand(1, 3, 2, 4).contiguous())
        for outcome in replay(verify_univer, batch):
            for path, kept, token, chance in zip(
                outcome.path, outcome.accepted, outcome.token, outcome.probability, strict=True
            ):
                first = int(tokens[0, path, 0]) if kept else int(token)
                emitted[first] += draft[sampled] * chance
    torch.testing.assert_close(emitted, target, atol=1e-14, rtol=0)


def test_children_come_before_their_parents_and_the_root_last():
    first = torch.tensor([[[0, 0], [1, 1], [0, 2]]])
    path, depth = children_first(first)
    places = {(int(p), int(d)): place for place, (p, d) in enumerate(zip(path[0], depth[0], strict=True))}
    assert places[0, 2] < places[0, 1] < places[0, 0]
    assert places[2, 2] < places[0, 1] < places[1, 2] < places[1, 1]
    assert {int(d) for d in depth[0, -3:]} == {0}
