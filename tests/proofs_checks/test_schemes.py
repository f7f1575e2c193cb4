"""Right verifiers that are reported as biased come out lossless, with the reason; others come without one."""

from __future__ import annotations

import random

import pytest
import torch

from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.schemes import CHILDREN, GREEDY, MATCH
from specbound.proofs_checks.laws.instances import greedy, instances, is_greedy
from tests.support import stand_ins, zoo

SMALL = {"vocab": range(2, 4), "length": range(1, 2), "paths": range(1, 2), "cases": 4}


def sampler_match(draft_tokens: list[int], q: list, p: list):
    """A token is drawn from the target at every position; the drafted one is kept if it is that token."""
    for i, x in enumerate(draft_tokens):
        y = random.choices(range(len(p[i])), p[i])[0]
        if y != x:
            return [*draft_tokens[:i], y]
    return [*draft_tokens, random.choices(range(len(p[-1])), p[-1])[0]]


def exact_match(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
    """Kept while it is the target's likeliest token."""
    best = p.argmax(-1)
    kept = int((draft_token_ids == best[:-1]).long().cumprod(0).sum())
    return best[: kept + 1].tolist()


def exact_match_with_a_wrong_bonus(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
    kept = exact_match(draft_token_ids, q, p)
    return [*kept[:-1], int(p[-1].argmin())] if len(kept) == len(p) else kept


def test_sampler_match_is_lossless_and_told_why():
    report = audit(sampler_match, **SMALL)
    assert (report.verdict, report.why) == ("lossless", MATCH)
    assert MATCH in report_text(report).plain
    assert report.to_dict()["why"] == MATCH


@pytest.mark.parametrize("function, name", [(stand_ins.tree_walk, "sglang-tree"), (stand_ins.eagle, "eagle-posterior")])
def test_deterministic_children_are_lossless_and_told_why(function, name):
    report = audit(function, **{**SMALL, "vocab": range(2, 3), "paths": range(1, 3), "cases": 6}, convention=name)
    assert (report.verdict, report.why) == ("lossless", CHILDREN)


def test_exact_match_is_lossless_at_temperature_0_only():
    report = audit(exact_match, **SMALL, temperature_0=True)
    assert (report.verdict, report.why) == ("lossless", GREEDY)
    report = audit(exact_match, **{**SMALL, "vocab": range(2, 3)})
    assert (report.verdict, report.why) == ("not lossless", "")
    wrong = audit(exact_match_with_a_wrong_bonus, **{**SMALL, "vocab": range(2, 3)}, temperature_0=True)
    assert wrong.verdict == "not lossless"
    assert wrong.counterexample.wanted in (0, 1)


@pytest.mark.parametrize("verifier", [zoo.correct_python, zoo.correct_tensors])
def test_verifiers_that_use_the_drafts_law_get_no_such_reason(verifier):
    assert audit(verifier, **{**SMALL, "cases": 3}).why == ""


def test_instances_at_temperature_0_keep_their_drafts():
    for case in instances(range(2, 4), range(1, 3), range(1, 2), 30):
        made = greedy(case)
        assert is_greedy(made.tree)
        assert (made.tree.draft == case.tree.draft).all()
        rows, new = case.tree.rows(case.tree.target), made.tree.rows(made.tree.target)
        inner = case.tree.leaves.start
        assert (rows[:inner].astype(float).argmax(1) == new[:inner].astype(float).argmax(1)).all()


def test_a_sampled_audit_is_at_temperature_1():
    with pytest.raises(ValueError, match="temperature_0 is set"):
        audit(sampler_match, **SMALL, temperature_0=True, resolution=0.5)
