"""Exact conditional laws at large vocabularies: right code to 1e-9, wrong code found, what has no such form refused."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.foreign.adapters import foreign, foreign_law
from specbound.proofs_checks.audit.foreign.conventions import subject
from specbound.proofs_checks.audit.large import LargeInstance, large_instance, large_law
from specbound.proofs_checks.laws import instances as laws_instances
from specbound.theory.prefix_tree import PrefixTree
from tests.support import stand_ins

V = 1100
SIZES = {"vocab": range(V, V + 1), "length": range(1, 2)}


def numpy_verifier(draft_tokens, q, p, cut=None, twice=False, subtract=1.0):
    """Categorical draws; wrong if the target is cut to its first tokens, the drawn token is moved, or less than q is
    subtracted."""
    for i, x in enumerate(draft_tokens):
        if np.random.rand() * q[i, x] > p[i, x]:  # noqa: NPY002
            rest = np.maximum(p[i] - subtract * q[i], 0)[:cut]
            y = np.random.choice(len(rest), p=rest / rest.sum())  # noqa: NPY002
            return [*draft_tokens[:i], y ^ 1 if twice else y]
    return [*draft_tokens, np.random.choice(len(p[-1]), p=p[-1])]  # noqa: NPY002


def by_race(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
    """All corrections drawn beforehand as races, one of them used."""
    rest = torch.cat([(p[:-1] - q).clamp_min(0), p[-1:]])
    corrections = (rest / torch.empty_like(rest).exponential_()).argmax(-1)
    for i, x in enumerate(draft_token_ids.tolist()):
        if torch.rand(()) * q[i, x] > p[i, x]:
            return [*draft_token_ids[:i].tolist(), int(corrections[i])]
    return [*draft_token_ids.tolist(), int(corrections[-1])]


def by_thresholds(draft_tokens: list[int], q: list, p: list):
    """Inverse transform of one uniform."""
    for i, x in enumerate(draft_tokens):
        if random.random() * q[i][x] > p[i][x]:
            return [*draft_tokens[:i], _inverted([max(a - b, 0.0) for a, b in zip(p[i], q[i], strict=True)])]
    return [*draft_tokens, _inverted(p[-1])]


def _inverted(weights):
    point = random.random() * sum(weights)
    return int((np.cumsum(weights) < point).sum())


@pytest.mark.parametrize("verify", [numpy_verifier, by_race, by_thresholds])
@pytest.mark.parametrize("length", [1, 2])
def test_right_code_has_the_targets_law_to_rounding(verify, length):
    found = large_law(foreign(verify), large_instance(150, length, 1))
    assert found.deviation is None
    assert found.total_variation < 1e-12


@pytest.mark.parametrize(
    "change, position", [({"cut": 1024}, 1), ({"cut": V - 1}, 1), ({"cut": None}, None)], ids=["block", "last", "right"]
)
def test_a_cut_at_a_block_of_1024_is_found(change, position):
    """What small vocabularies cannot show: tokens from 1024 on are never drawn in a correction."""
    report = audit(partial(numpy_verifier, **change), **SIZES)
    assert report.way == "conditional"
    assert report.verdict == ("lossless" if position is None else "not lossless"), report_text(report).plain
    assert report.position == position
    assert "Nothing was sampled." in report.limits
    assert f"at V={V} L=1: all 4 drafts" in report.limits


def test_a_token_that_is_not_the_one_drawn_is_refused():
    report = audit(partial(numpy_verifier, twice=True), **SIZES)
    assert (report.verdict, report.exit_code) == ("undecided", 3)
    assert "not the one that was drawn" in report.breakdowns[0].message


def test_tensor_verifiers_are_sent_to_small_sizes_without_growing_a_tree(monkeypatch):
    monkeypatch.setattr(laws_instances, "random_tree", None)
    report = audit("token", range(10, 11), range(4, 5), cases=1)
    assert (report.verdict, report.skipped) == ("undecided", ("V=10 L=4 K=1",))


def test_rows_behind_drafts_agree_with_the_enumeration_of_small_vocabularies():
    """On a vocabulary that can be enumerated both ways the law and the distance are the same."""
    tree = PrefixTree.random(3, 2, seed=5)
    rows, drafts = tree.rows(tree.target), tree.rows(tree.draft)
    rows[tree.leaves] = tree.bonus
    prefixes = {tree.prefix(w): w for w in range(tree.size)}
    instance = LargeInstance(
        3,
        2,
        {w: drafts[node] for w, node in prefixes.items() if len(w) < 2},
        {w: rows[node] for w, node in prefixes.items()},
    )
    code = foreign(partial(numpy_verifier, subtract=0.5), kind="numpy")
    found, law = large_law(code, instance), foreign_law(code, tree)
    assert found.total_variation == pytest.approx(law.total_variation(tree.target_law()), abs=1e-12)
    assert found.acceptance_length == pytest.approx(law.acceptance_length, abs=1e-12)


def test_an_engines_signature_at_a_large_vocabulary():
    wrong = partial(stand_ins.flash, verify=stand_ins.target_as_residual)
    found = large_law(subject(wrong, "flashinfer-chain", "float64"), large_instance(V, 1, 2))
    assert found.deviation.position == 1
    assert found.total_variation > 0.01
