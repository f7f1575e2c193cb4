"""Every claim of the ledger is checked again and found as recorded, and its control comes out the other way."""

from __future__ import annotations

import itertools

import pytest

from specbound.proofs_checks.claims import evidence, ledger
from specbound.proofs_checks.claims.instances import sizes_run

pytestmark = pytest.mark.slow

ESTABLISHED = ("holds", "proved")


@pytest.mark.parametrize("name", ledger.claims())
def test_a_claim_is_found_as_recorded(name):
    (finding,) = ledger.run([ledger.claims()[name]])
    recorded = ledger.read_record()[name]
    assert finding.recorded, finding
    assert (finding.verdict, finding.counterexample) == (recorded["verdict"], recorded["counterexample"])


@pytest.mark.parametrize("name", ledger.claims())
def test_the_control_of_a_claim_turns_its_verdict(name):
    """A claim that holds fails for its control; one that is refuted is not refuted for its control."""
    entry = ledger.claims()[name]
    recorded, turned = ledger.read_record()[name]["verdict"], ledger.outcome_of(entry, entry.control)
    if recorded in ESTABLISHED:
        assert turned.verdict not in ESTABLISHED, turned
    else:
        assert recorded == "refuted"
        assert turned.verdict != "refuted", turned


SIZES = [*itertools.product((1, 2, 3), (1, 2), (1, 2, 3)), (2, 3, 2), (2, 3, 3)]


@pytest.mark.parametrize("vocab, length, paths", [size for size in SIZES if size[0] > 1])
def test_a_verifier_that_is_wrong_at_one_size_only_is_not_lossless(vocab, length, paths):
    wrong = evidence.wrong_at("traversal", vocab=vocab, length=length, paths=paths)
    here = [case for case in evidence.many_path_cases(False) if evidence.size_of(case) == (vocab, length, paths)]
    elsewhere = [case for case in evidence.many_path_cases(False) if evidence.size_of(case) != (vocab, length, paths)]
    assert evidence.lossless(wrong, here).verdict == "refuted"
    assert evidence.lossless(wrong, elsewhere[:20]).verdict == "holds"


def test_every_size_that_the_evidence_names_was_run():
    cases = evidence.many_path_cases(False)
    assert {evidence.size_of(case) for case in cases} == set(SIZES)
    shown = sizes_run([evidence.size_of(case) for case in cases])
    assert shown == "58 cases: L 1..2 with every V 1..3, K 1..3; L 3 with V 2, K 2..3"


def test_a_pair_of_sizes_that_was_not_run_is_not_named():
    assert sizes_run([(2, 1, 2), (3, 1, 3)]) == "2 cases: L 1 with V/K 2/2, 3/3"
    assert sizes_run([(2, 1, 2), (2, 1, 3), (3, 1, 2), (3, 1, 3)]) == "4 cases: L 1 with every V 2..3, K 2..3"
    assert sizes_run([(2, 1, 2), (2, 2, 2), (2, 4, 5)]) == "3 cases: L 1..2 with V 2, K 2; L 4 with V 2, K 5"


def test_a_wrong_kept_probability_refutes_a_lossless_verifier():
    here = [case for case in evidence.many_path_cases(False) if evidence.size_of(case) == (3, 1, 2)]
    outcome = evidence.lossless("two-level", here, kept=lambda tree, paths: tree.draft_joint)
    assert outcome.verdict == "refuted"
