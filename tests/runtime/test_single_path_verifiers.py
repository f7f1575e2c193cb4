"""Token and block verification: exact laws on every kind of tree, and broken twins that the same check rejects."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from specbound.proofs_checks.laws.law import batch_of, exact_law
from specbound.runtime.draws import Draws
from specbound.runtime.parts.block_rule import block_ratios, block_thresholds
from specbound.runtime.parts.single_path import at, emitted_row, only_path
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import verify
from specbound.runtime.verifiers.token import token_acceptance
from specbound.theory.prefix_tree import PrefixTree
from tests.support.strategies import edge_trees, trees

EDGES = edge_trees()


def lossless_error(verifier, tree, paths=1):
    return exact_law(verifier, tree, paths).total_variation(tree.target_law())


@pytest.mark.parametrize("name", ["token", "block"])
@pytest.mark.parametrize("tree", EDGES.values(), ids=EDGES.keys())
def test_the_emitted_law_is_the_target_law_at_the_edges(name, tree):
    assert lossless_error(name, tree) < 1e-12


@pytest.mark.parametrize("name", ["token", "block"])
@given(tree=trees())
@settings(max_examples=60, deadline=None)
def test_the_emitted_law_is_the_target_law_on_every_tree(name, tree):
    assert lossless_error(name, tree) < 1e-12


def token_value(tree):
    """Sum over nodes of the product of min(target, draft) along the path."""
    product = tree.target * 0 + 1
    for level in tree.levels[1:]:
        least = [min(p, q) for p, q in zip(tree.target[level], tree.draft[level], strict=True)]
        product[level] = product[tree.parent[level]] * least
    return float(product.sum() - 1)


def block_value(tree):
    """Sum over nodes of phi, phi(wy) = min(Q(wy), p(y|w) phi(w))."""
    phi = tree.target * 0 + 1
    for level in tree.levels[1:]:
        chain = tree.target[level] * phi[tree.parent[level]]
        phi[level] = [min(a, b) for a, b in zip(tree.draft_joint[level], chain, strict=True)]
    return float(phi.sum() - 1)


@given(tree=trees())
@settings(max_examples=60, deadline=None)
def test_acceptance_lengths_are_the_closed_forms(tree):
    token, block = exact_law("token", tree).acceptance_length, exact_law("block", tree).acceptance_length
    assert abs(token - token_value(tree)) < 1e-12
    assert abs(block - block_value(tree)) < 1e-12
    assert block >= token - 1e-12


@given(tree=trees(same=True))
@settings(max_examples=20, deadline=None)
def test_equal_models_keep_everything(tree):
    for name in ("token", "block"):
        assert abs(exact_law(name, tree).acceptance_length - tree.length) < 1e-12


# ---------------------------------------------------------------- broken twins


def block_with(batch: Batch, draws: Draws, thresholds=block_thresholds, scale=None) -> Verdict:
    """Block verification with one piece replaced."""
    tokens, draft_probs, target_probs = only_path(batch)
    ratios = block_ratios(tokens, draft_probs, target_probs)
    kept = draws.accept_last(thresholds(ratios, draft_probs, target_probs))
    factor = at(ratios, kept) if scale is None else torch.full_like(at(ratios, kept), scale)
    token = draws.choose(emitted_row(factor, kept, draft_probs, target_probs))
    return Verdict(torch.zeros_like(kept), kept, token)


def with_token_residual(batch: Batch, draws: Draws) -> Verdict:
    return block_with(batch, draws, scale=1.0)


def without_the_one_minus_c_term(batch: Batch, draws: Draws) -> Verdict:
    def thresholds(ratios, draft_probs, target_probs):
        inner = ratios[:, 1:-1, None]
        surplus = (inner * target_probs[:, 1:-1] - draft_probs[:, 1:]).clamp_min(0).sum(dim=-1)
        return torch.cat([(surplus > 0).to(surplus.dtype), ratios[:, -1:]], dim=1)

    return block_with(batch, draws, thresholds)


def with_token_thresholds(batch: Batch, draws: Draws) -> Verdict:
    tokens, draft_probs, target_probs = only_path(batch)
    acceptance = token_acceptance(tokens, draft_probs, target_probs)
    return block_with(batch, draws, lambda *_: acceptance)


def drafted_from_another_law(batch: Batch, draws: Draws) -> Verdict:
    """The verifier is told a tempered draft row, the tokens came from the true one."""
    told = batch.draft_probs.sqrt()
    told = told / told.sum(dim=-1, keepdim=True)
    return verify("block", Batch(batch.tokens, told, batch.target_probs), draws)


def token_without_residual(batch: Batch, draws: Draws) -> Verdict:
    tokens, draft_probs, target_probs = only_path(batch)
    kept = draws.accept_while(token_acceptance(tokens, draft_probs, target_probs))
    return Verdict(
        torch.zeros_like(kept), kept, draws.choose(emitted_row(kept * 0.0 + 1, kept, 0 * draft_probs, target_probs))
    )


TWINS = [
    with_token_residual,
    without_the_one_minus_c_term,
    with_token_thresholds,
    drafted_from_another_law,
    token_without_residual,
]


def test_the_frame_of_the_broken_twins_is_itself_lossless():
    assert lossless_error(block_with, PrefixTree.random(3, 3, seed=1)) < 1e-12


@pytest.mark.parametrize("twin", TWINS)
def test_the_lossless_check_rejects_each_broken_twin(twin):
    assert lossless_error(twin, PrefixTree.random(3, 3, seed=1)) > 1e-3


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize("name", ["token", "block"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_dtype_is_taken(name, dtype):
    batch = batch_of(
        PrefixTree.random(4, 3, seed=2), PrefixTree.random(4, 3, seed=2).leaves.start + torch.arange(8).numpy()[:, None]
    )
    verdict = verify(name, Batch(batch.tokens, batch.draft_probs.to(dtype), batch.target_probs.to(dtype)), Draws())
    assert verdict.accepted.shape == (8,)
    assert int(verdict.accepted.max()) <= 3


@pytest.mark.parametrize("name", ["token", "block"])
def test_an_empty_batch_gives_an_empty_verdict(name):
    verdict = verify(
        name, Batch(torch.zeros(0, 1, 2, dtype=torch.int64), torch.zeros(0, 1, 2, 5), torch.zeros(0, 1, 3, 5)), Draws()
    )
    assert verdict.token.shape == (0,)


def test_ratios_survive_probabilities_whose_quotients_overflow():
    """Ratios 1e-35 then 1e+35 in float32: c is 1e-35, then back at 1 in exact arithmetic."""
    draft = torch.tensor([[[1.0, 0.0], [1e-35, 1.0]]])
    target = torch.tensor([[[1e-35, 1.0], [1.0, 0.0], [0.5, 0.5]]])
    ratios = block_ratios(torch.zeros(1, 2, dtype=torch.int64), draft, target)
    assert torch.allclose(ratios, torch.tensor([[1.0, 1e-35, 1.0]]), rtol=1e-4)
    assert torch.isfinite(block_thresholds(ratios, draft, target)).all()


def good_batch() -> dict[str, torch.Tensor]:
    return {
        "tokens": torch.zeros(2, 1, 3, dtype=torch.int64),
        "draft_probs": torch.full((2, 1, 3, 4), 0.25),
        "target_probs": torch.full((2, 1, 4, 4), 0.25),
    }


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"target_probs": torch.full((2, 1, 3, 4), 0.25)},
            r"target_probs has shape \(2, 1, 3, 4\); want \(2, 1, 4, 4\)",
        ),
        ({"tokens": torch.zeros(2, 3, dtype=torch.int64)}, r"tokens has shape \(2, 3\); want \(2, 1, 3\)"),
        ({"tokens": torch.zeros(2, 1, 3)}, "tokens has dtype torch.float32; want torch.int64"),
        ({"tokens": torch.full((2, 1, 3), 4)}, r"tokens lie in 4\.\.4; want 0\.\.3"),
        ({"draft_probs": torch.full((2, 1, 3, 4), 0.3)}, "draft_probs has a row whose sum is 0.2 away from 1"),
        ({"draft_probs": torch.full((2, 1, 3, 4), float("nan"))}, "draft_probs has a row with NaN"),
        (
            {"target_probs": torch.tensor([-0.5, 0.5, 0.5, 0.5]).expand(2, 1, 4, 4)},
            "target_probs has the negative entry -0.5",
        ),
        (
            {"draft_probs": torch.ones(2, 1, 3, 4, dtype=torch.int64)},
            "draft_probs has dtype torch.int64; want a float dtype",
        ),
        ({"draft_probs": torch.full((2, 3, 4), 0.25)}, r"draft_probs has shape \(2, 3, 4\); want \[B, K, L, V\]"),
    ],
)
def test_malformed_batches_are_refused_with_the_argument_named(change, message):
    verify("block", Batch(**good_batch()), Draws())
    with pytest.raises(ValueError, match=message):
        verify("block", Batch(**{**good_batch(), **change}), Draws())


def test_a_single_path_verifier_refuses_two_paths():
    two = {name: tensor.expand(2, 2, *tensor.shape[2:]) for name, tensor in good_batch().items()}
    with pytest.raises(ValueError, match="'block' takes one path; the batch has 2"):
        verify("block", Batch(**two), Draws())


def test_an_unknown_verifier_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"verifier is 'blok'; known are .*token"):
        verify("blok", Batch(**good_batch()), Draws())
