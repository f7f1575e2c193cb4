"""Every lossless verifier on prefix trees of the shipped pair: exact laws on real models."""

from __future__ import annotations

from functools import cache

import pytest

from specbound.proofs_checks.laws.judge import judge
from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.model_trees import from_models
from specbound.runtime.models import load_pair
from specbound.runtime.verifiers import get, names
from specbound.shipped_pair import DRAFT, TARGET, prompts
from specbound.theory.prefix_tree import PrefixTree

LOSSLESS = [name for name in names() if get(name).lossless and name != "table"]


@cache
def shipped_tree(prompt: int, length: int = 2, top_k: int = 3) -> PrefixTree:
    pair = load_pair(TARGET, DRAFT)
    context = pair.tokenizer(prompts()[prompt]["text"], return_tensors="pt")["input_ids"][0]
    return from_models(pair.target, pair.draft, context, length=length, top_k=top_k)


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_lossless_verifier_is_lossless_on_the_shipped_models(name):
    paths = 1 if get(name).paths == "single" else 2
    tree = shipped_tree(0, 1, 2) if get(name).stateful else shipped_tree(0)
    judgement = judge(name, [(tree, paths)])
    assert judgement.verdict == "lossless"
    assert judgement.total_variation < 1e-12


def test_the_published_spectr_gbv_is_not():
    tree = shipped_tree(0)
    assert exact_law("spectr-gbv-published", tree, 2).total_variation(tree.target_law()) > 1e-3
