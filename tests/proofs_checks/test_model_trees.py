"""Trees from real models: the rows are the models' own, cached or not, and the exact law is lossless on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specbound.proofs_checks.laws import model_trees
from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.model_trees import from_models, trees_along
from tests.support.architectures import toy

CONTEXT = torch.tensor([3, 1, 4, 1, 5])


def tiny_model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).double().eval()


TARGET, DRAFT = tiny_model(0), tiny_model(1)


def plain_row(model, prefix, top_k, temperature):
    """One uncached forward pass and a hand-made top-k softmax."""
    with torch.inference_mode():
        logits = model(torch.cat([CONTEXT, torch.tensor(prefix, dtype=torch.int64)])[None]).logits[0, -1] / temperature
    row = torch.exp(logits) * (logits >= logits.sort(descending=True).values[top_k - 1])
    return (row / row.sum()).numpy()


def test_every_row_is_the_models_own_row():
    tree = from_models(TARGET, DRAFT, CONTEXT, length=2, top_k=3, temperature=0.7)
    token_id = [int(symbol) for symbol in tree.symbols]
    prefixes = [tuple(token_id[token] for token in tree.prefix(node)) for node in range(tree.size)]
    for model, values in ((TARGET, tree.target), (DRAFT, tree.draft)):
        for node in range(1, tree.size):
            expected = plain_row(model, prefixes[tree.parent[node]], 3, 0.7)[prefixes[node][-1]]
            assert abs(values[node] - expected) < 1e-12
    for leaf in range(tree.leaves.start, tree.leaves.stop):
        expected = plain_row(TARGET, prefixes[leaf], 3, 0.7)[token_id]
        assert np.abs(tree.bonus[leaf - tree.leaves.start] - expected).max() < 1e-12


def test_the_row_check_tells_temperatures_apart():
    tree = from_models(TARGET, DRAFT, CONTEXT, length=1, top_k=3, temperature=0.7)
    other = from_models(TARGET, DRAFT, CONTEXT, length=1, top_k=3, temperature=0.8)
    assert np.abs(np.sort(tree.target[1:]) - np.sort(other.target[1:])).max() > 1e-3


def test_nodes_that_no_draft_reaches_are_left_closed():
    tree = from_models(TARGET, DRAFT, CONTEXT, length=3, top_k=2)
    closed = [
        node
        for node in range(tree.size)
        if tree.depth[node] < 3 and tree.children[node].start == tree.children[node].stop
    ]
    assert closed
    assert all(tree.draft_joint[node] == 0 for node in closed)


@pytest.mark.parametrize("name", ["token", "block"])
def test_the_verifiers_are_lossless_on_model_trees(name):
    tree = from_models(TARGET, DRAFT, CONTEXT, length=3, top_k=3)
    assert exact_law(name, tree).total_variation(tree.target_law()) < 1e-12


def test_equal_models_accept_everything():
    tree = from_models(TARGET, TARGET, CONTEXT, length=2, top_k=4)
    assert abs(exact_law("block", tree).acceptance_length - 2) < 1e-12


@pytest.mark.parametrize(
    "change, message",
    [
        ({"context": torch.zeros(0, dtype=torch.int64)}, r"context has shape \(0,\); want \[T\]"),
        ({"length": 0}, "length is 0 and top_k 3"),
        ({"temperature": 0.0}, "temperature is 0.0; want a positive number"),
        ({"length": 12, "top_k": 11}, "too large a tree"),
    ],
)
def test_arguments_out_of_range_are_named(change, message):
    good = {"context": CONTEXT, "length": 2, "top_k": 3, "temperature": 1.0}
    with pytest.raises(ValueError, match=message):
        from_models(TARGET, DRAFT, **{**good, **change})


def test_trees_along_a_text_are_those_of_its_beginnings():
    found = trees_along(TARGET, DRAFT, CONTEXT, [2, 5], length=2, top_k=3)
    without = trees_along(TARGET, DRAFT, CONTEXT, [2, 5], length=2, top_k=3, bonus=False)
    for start, tree, bare in zip((2, 5), found, without, strict=True):
        alone = from_models(TARGET, DRAFT, CONTEXT[:start], length=2, top_k=3)
        assert alone.symbols == tree.symbols
        for name in ("parent", "target", "draft", "bonus"):
            assert np.abs(getattr(alone, name) - getattr(tree, name)).max() < 1e-12
        assert np.abs(bare.target - tree.target).max() < 1e-12
        assert np.abs(bare.bonus * bare.vocab - 1).max() < 1e-12
    assert np.abs(found[0].target[1:5] - found[1].target[1:5]).max() > 1e-3
    with pytest.raises(ValueError, match=r"starts are \[6\]; want numbers in 1\.\.5"):
        trees_along(TARGET, DRAFT, CONTEXT, [6], length=2, top_k=3)


def apart(trees, others):
    """The largest difference of two lists of trees' laws; infinite if they have different nodes."""
    if any(tree.symbols != other.symbols or tree.size != other.size for tree, other in zip(trees, others, strict=True)):
        return np.inf
    names = ("parent", "token", "target", "draft", "bonus")
    return max(
        np.abs(getattr(tree, name) - getattr(other, name)).max()
        for tree, other in zip(trees, others, strict=True)
        for name in names
    )


def test_the_trees_do_not_depend_on_how_many_prefixes_a_pass_reads(monkeypatch):
    found = trees_along(TARGET, DRAFT, CONTEXT, [2, 4, 4, 3], length=3, top_k=3)
    monkeypatch.setattr(model_trees, "AT_ONCE", 5)
    assert apart(found, trees_along(TARGET, DRAFT, CONTEXT, [2, 4, 4, 3], length=3, top_k=3)) < 1e-12


def test_a_pass_that_sees_the_text_behind_a_beginning_gives_other_trees(monkeypatch):
    found = trees_along(TARGET, DRAFT, CONTEXT, [2, 5], length=2, top_k=3)
    logits = model_trees._Reader._logits
    monkeypatch.setattr(
        model_trees._Reader, "_logits", lambda self, starts, prefixes: logits(self, 0 * starts + 5, prefixes)
    )
    assert apart(found, trees_along(TARGET, DRAFT, CONTEXT, [2, 5], length=2, top_k=3)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "mamba", "olmo_hybrid"])
def test_windows_and_states_are_read_as_well(family):
    """A model with windows of 4 tokens or without slots: the rows of an uncached pass at every node."""
    model = toy(family, **({"sliding_window": 4} if family == "mistral" else {}))
    text = torch.arange(3, 12)
    tree = trees_along(model, model, text, [4, 9], length=2, top_k=2)[0]
    ids = [int(symbol) for symbol in tree.symbols]
    for node in range(tree.size - len(tree.bonus)):
        prefix = torch.tensor([ids[token] for token in tree.prefix(node)], dtype=torch.int64)
        with torch.inference_mode():
            logits = model(input_ids=torch.cat([text[:4], prefix])[None]).logits[0, -1].double()
        kept, index = logits.topk(2)
        expected = dict(zip(index.tolist(), kept.softmax(dim=-1).tolist(), strict=True))
        below = tree.children[node]
        assert {ids[token] for token in tree.token[below.start : below.stop]} == set(expected)
        for child in range(below.start, below.stop):
            assert abs(tree.target[child] - expected[ids[tree.token[child]]]) < 1e-4
