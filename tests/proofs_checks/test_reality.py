"""Exact verdicts held against real calls: a law that is not the code's is doubted, a right one never."""

from __future__ import annotations

import random

import numpy as np
import pytest

from specbound.proofs_checks.audit import audit, report_text
from specbound.proofs_checks.audit.reality import beginnings, continued, disagreement, real_streams
from specbound.proofs_checks.audit.subject import ForeignSubject, TensorSubject
from specbound.proofs_checks.laws.judge import Evidence, looped_pair
from specbound.proofs_checks.laws.stream import stream_law
from specbound.runtime.verifiers import get
from specbound.theory.prefix_tree import PrefixTree
from tests.support import zoo
from tests.support.strategies import PUBLISHED

SIZES = {"vocab": range(2, 3), "length": range(2, 3), "paths": range(1, 2), "cases": 2}
TREE = PrefixTree.random(3, 2, seed=4)


def drawn(law, count, seed):
    """Counts of `count` draws from a law of blocks."""
    blocks = sorted(law)
    chosen = np.random.default_rng(seed).choice(len(blocks), size=count, p=[law[block] for block in blocks])
    return {blocks[place]: int(number) for place, number in enumerate(np.bincount(chosen)) if number}


def test_calls_that_have_the_exact_law_are_not_doubted_at_a_false_alarm_rate_of_one_in_a_billion():
    law = {block: float(mass) for block, mass in TREE.target_law().items()}
    assert all(disagreement(law, drawn(law, 300, seed)) is None for seed in range(50))


@pytest.mark.parametrize("moved", [0.35, 0.5])
def test_calls_that_do_not_have_it_are_told_with_both_laws(moved):
    exact, real = {(0, 0): 0.5, (0, 1): 0.5}, {(0, 0): 0.5 - moved, (0, 1): 0.5 + moved}
    found = disagreement(exact, drawn(real, 300, 1))
    assert found.prefix == (0,)
    assert found.exact == {0: 0.5, 1: 0.5}
    assert found.seen[1] == pytest.approx(0.5 + moved, abs=0.1)
    assert "they emit 0 and then" in str(found)
    assert "by the exact law 0 with 0.5, 1 with 0.5" in str(found)


def test_one_impossible_token_is_enough():
    assert disagreement({(0,): 1.0}, {(0,): 299, (1,): 1}).seen == {0: 299 / 300, 1: 1 / 300}
    assert disagreement({(0,): 1.0}, {(0,): 300}) is None
    assert disagreement({(0,): 1.0}, {}) is None


def test_beginnings_sum_to_one_at_every_length():
    law = beginnings({(0, 1): 0.25, (0, 0): 0.25, (1,): 0.5})
    assert law == {(0,): 0.5, (0, 1): 0.25, (0, 0): 0.25, (1,): 0.5}


def test_emitted_blocks_are_continued_by_the_target():
    tree = PrefixTree.iid([0.0, 1.0], [0.5, 0.5], 2)
    assert continued(tree, {(0,): 3, (1,): 2, (1, 1, 1): 1}, 0) == {(0, 1, 1): 3, (1, 1, 1): 3}
    assert continued(tree, {(5,): 2}, 0) == {(5,): 2}


@pytest.mark.parametrize("name, paths", [("greedy-block", 1), ("spectr-gbv", 2), ("block", 1)])
def test_real_streams_have_the_exact_law_of_a_stream(name, paths):
    pair = looped_pair(PUBLISHED)
    seen = real_streams(get(name).verify, pair, 2, paths, 2000, 3, 4)
    assert sum(seen.values()) == 2000
    assert disagreement(stream_law(name, pair, 2, 4, paths).tokens, seen) is None


def test_real_streams_show_a_carry_that_is_not_read():
    """2000 streams see one ninth of total variation."""
    wrong = zoo.greedy_block_that_ignores_the_carry_it_is_given
    pair = looped_pair(PUBLISHED)
    seen = real_streams(wrong, pair, 2, 1, 2000, 3, 4)
    assert disagreement(stream_law("greedy-block", pair, 2, 4).tokens, seen) is not None
    assert disagreement(stream_law(wrong, pair, 2, 4).tokens, seen) is None


def pretended(self, tree, paths, stateful=False, thorough=True):
    """What an interception would say that takes every random number for what the code does not take it for."""
    wanted = {block: float(mass) for block, mass in tree.target_law().items()}
    return Evidence(wanted, wanted, 0.0, 1, stateful)


@pytest.mark.parametrize("subject", [TensorSubject, ForeignSubject])
@pytest.mark.parametrize("lossy", [True, False])
def test_an_exact_law_that_real_calls_contradict_decides_nothing(monkeypatch, subject, lossy):
    def always_zero(batch, draws):
        verdict = zoo.correct_tensors(batch, draws)
        return type(verdict)(verdict.path, verdict.accepted * 0, verdict.token * 0)

    def zero(draft_tokens, q, p):
        return [0]

    law = (
        pretended if not lossy else lambda *a, **o: Evidence({(1, 1, 1): 1.0}, pretended(*a, **o).wanted, 0.0, 1, False)
    )
    monkeypatch.setattr(subject, "evidence", law)
    report = audit(always_zero if subject is TensorSubject else zero, **SIZES)
    assert (report.verdict, report.lossless, report.exit_code) == ("undecided", None, 3)
    assert report.breakdowns[0].kind == "disagrees"
    assert "300 real calls do not have the law found exactly" in report_text(report).plain
    assert report.counterexample is None
    assert report.advice is not None


def test_code_that_breaks_down_in_real_calls_only_is_broken():
    def verify(draft_tokens: list[int], q: list, p: list):
        if type(random.random()) is float:
            raise RuntimeError("real")
        return zoo.correct_python(draft_tokens, q, p)

    report = audit(verify, **SIZES)
    assert report.verdict in ("broken", "undecided")
    if report.verdict == "broken":
        assert "real" in report.breakdowns[0].message


def test_the_global_generators_are_left_as_they_were():
    random.seed(5)
    before = random.getstate()
    ForeignSubject(zoo_subject().code).sample(PUBLISHED.as_float(), 1, 20, 3, "cpu")
    assert random.getstate() == before


def zoo_subject():
    from specbound.proofs_checks.audit.subject import subject_of

    return subject_of(zoo.correct_python)


def test_a_verifier_that_takes_its_own_random_numbers_is_undecided_not_accused():
    import torch

    def verify(batch, draws):
        token = torch.multinomial(batch.target_probs[:, 0, 0], 1)[:, 0]
        return type(zoo.correct_tensors(batch, draws))(token * 0, token * 0, token)

    report = audit(verify, **SIZES)
    assert (report.verdict, report.exit_code) == ("undecided", 3)
    assert "global generator" in report.breakdowns[0].message


class Counting:
    """Right on odd calls, wrong on even ones."""

    def __init__(self):
        self.calls = 0

    def __call__(self, batch, draws):
        self.calls += 1
        return (zoo.correct_tensors if self.calls % 2 else zoo.correction_from_the_target_row)(batch, draws)


def test_an_answer_that_depends_on_earlier_calls_is_told():
    counting = Counting()
    report = audit(lambda batch, draws: counting(batch, draws), **SIZES)
    assert report.exit_code == 1
    assert "depends on" in report.breakdowns[0].message
