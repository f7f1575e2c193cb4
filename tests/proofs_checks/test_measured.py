"""What is measured of a verifier agrees with what it declares; a lossy one that declares itself lossless is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specbound.proofs_checks.laws.measured import measure, measure_tree
from specbound.runtime import tree_registry
from specbound.runtime.drafting.tree import TreeVerdict
from specbound.runtime.verdict import Verdict
from specbound.runtime.verifiers import get, names

LOSSY = {"mjsd", "spectr-gbv-published", "hsd", "budgeted", "ensemble", "lenient", "cactus", "fuzzy", "cascade"}
LOSSY |= {"spectr-gbv-published-later-laws", "top-cascade", "entropy", "relaxed", "typical", "forgiving"}


@pytest.mark.parametrize("name", names())
def test_a_verifier_is_measured_lossless_if_and_only_if_it_declares_so(name):
    assert measure(get(name)).lossless == get(name).lossless
    assert get(name).lossless == (name not in LOSSY)


@pytest.mark.parametrize("entry", tree_registry.entries(), ids=lambda entry: entry.name)
def test_a_verifier_of_trees_is_measured_as_it_declares(entry):
    found = measure_tree(entry)
    assert (found.verdict, found.lossless) == ("lossless", entry.lossless)
    assert found.total_variation < 1e-12


def test_a_verifier_of_trees_that_draws_another_token_or_none_is_found():
    entry = tree_registry.get("tree-match")

    def first_token(batch, draws):
        verdict = entry.verify(batch, draws)
        return TreeVerdict(verdict.node, verdict.accepted, verdict.token * 0)

    assert measure_tree(replace(entry, verify=first_token)).verdict == "not lossless"
    broken = measure_tree(replace(entry, verify=lambda batch, draws: 1 / 0))
    assert (broken.verdict, broken.reason) == ("broken", "ZeroDivisionError: division by zero")


def test_what_a_verifier_declares_does_not_enter():
    pretender = replace(get("spectr-gbv-published"), lossless=True)
    assert measure(pretender) == measure(get("spectr-gbv-published"))
    assert measure(pretender).verdict == "not lossless"
    assert measure(pretender).total_variation > 1e-3


def test_one_tree_on_which_it_is_wrong_makes_a_verifier_lossy():
    """This one emits token 0 for certain where the vocabulary has two tokens, and is right elsewhere."""

    def verify(batch, draws):
        verdict = get("token").verify(batch, draws)
        if batch.shape[3] > 2:
            return verdict
        return Verdict(verdict.path, verdict.accepted, verdict.token * 0)

    assert measure(replace(get("token"), verify=verify)).total_variation > 1e-3
