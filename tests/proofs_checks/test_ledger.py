"""The ledger: selection, comparison with the record, and instances from the simplest on."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction

import pytest

from specbound.proofs_checks.claims import instances, ledger
from specbound.proofs_checks.claims.ledger import OWN, Claim, Outcome
from specbound.theory.prefix_tree import PrefixTree
from specbound.theory.solution import CertificateError


def entry(outcome, id="BV-example"):
    return Claim(id, OWN, "own", "a paper", "a claim", "an object", lambda subject, deep: outcome, None, None)


def test_every_claim_of_the_ledger_has_a_record_and_no_record_is_left_over():
    assert list(ledger.read_record()) == list(ledger.claims())


def test_a_finding_that_differs_from_the_record_is_told_apart():
    as_recorded = ledger.read_record()["BV-example"]
    same = Outcome(as_recorded["verdict"], "evidence", as_recorded["counterexample"])
    other = Outcome("refuted", "evidence", "V=1")
    found = list(ledger.run([entry(same), entry(other), entry(same, id="BV-unknown")]))
    assert [finding.recorded for finding in found] == [True, False, False]


def test_the_same_verdict_with_another_counterexample_differs_from_the_record():
    refuted = next(id for id, found in ledger.read_record().items() if found["verdict"] == "refuted")
    as_recorded = Outcome("refuted", "evidence", ledger.read_record()[refuted]["counterexample"])
    found = list(ledger.run([entry(as_recorded, refuted), entry(Outcome("refuted", "evidence", "V=1"), refuted)]))
    assert [finding.recorded for finding in found] == [True, False]


@pytest.mark.parametrize("verdict, counterexample", [("refuted", None), ("refuted", ""), ("holds", "V=1")])
def test_a_counterexample_comes_with_a_refutation_and_only_there(verdict, counterexample):
    with pytest.raises(ValueError, match="want one if refuted"):
        Outcome(verdict, "evidence", counterexample)


def test_an_answer_that_cannot_be_certified_leaves_a_claim_undecided():
    def check(subject, deep):
        raise CertificateError("HiGHS", "status 4", "try again")

    (finding,) = ledger.run([Claim("BV-example", OWN, "own", "", "", "", check, None, None)])
    assert finding.verdict == "undecided"
    assert "status 4" in finding.evidence


def test_the_papers_come_first_and_own_constructions_last():
    papers = [paper.short for paper, _ in itertools.groupby(claim.paper for claim in ledger.claims().values())]
    assert papers[0] == "BV"
    assert papers[-1] == "own"
    assert len(papers) == len(set(papers))
    assert {claim.kind == "own" for claim in ledger.claims().values() if claim.paper is OWN} == {True}


def test_claims_are_selected_by_prefix_in_any_case():
    assert {claim.id for claim in ledger.select(["bv-ex"])} == {"BV-example"}
    assert len(ledger.select([])) == len(ledger.claims())
    with pytest.raises(ValueError, match="no claim starts with 'XY'"):
        ledger.select(["XY"])


def test_a_finding_is_plain_json():
    (finding,) = ledger.run(ledger.select(["BV-example"]))
    assert json.loads(json.dumps(finding.to_dict()))["verdict"] == "proved"
    assert finding.recorded


def test_two_claims_cannot_share_an_id():
    enter = ledger.claim(
        "BV-example", paper=OWN, kind="own", source="", statement="", tested="", subject=None, control=None
    )
    with pytest.raises(ValueError, match="entered twice"):
        enter(lambda subject, deep: Outcome("holds", ""))


def test_rational_rows_are_all_rows_of_that_denominator():
    assert instances.rational_rows(2, 2) == [
        (Fraction(0), Fraction(1)),
        (Fraction(1, 2), Fraction(1, 2)),
        (Fraction(1), Fraction(0)),
    ]
    assert len(instances.rational_rows(3, 4)) == 15
    assert all(sum(row) == 1 for row in instances.rational_rows(3, 5))


def test_simple_instances_come_once_each_and_simplest_first():
    names = [instances.described(tree) for tree in instances.simple_instances(2, 1, 2)]
    assert len(names) == len(set(names)) == 1 + 9
    assert names[0] == "V=1, L=1, iid target (1), draft (1)"


def test_a_tree_is_described_by_its_different_rows():
    def tree(rows):
        table = {prefix: ([Fraction(n, 4) for n in row], [Fraction(1, 2)] * 2) for prefix, row in rows.items()}
        return PrefixTree.from_conditionals(lambda w: table[w[:1]][0], lambda w: table[w[:1]][1], 2, 2)

    text = "after (0,) target (3/4,1/4), draft (1/2,1/2)"
    assert instances.described(tree({(): (1, 3), (0,): (3, 1), (1,): (1, 3)})) == (
        f"V=2, L=2, {text}; otherwise target (1/4,3/4), draft (1/2,1/2)"
    )
    assert instances.described(tree({(): (1, 3), (0,): (3, 1), (1,): (2, 2)})) == (
        f"V=2, L=2, after () target (1/4,3/4), draft (1/2,1/2); {text}; after (1,) target (1/2,1/2), draft (1/2,1/2)"
    )


def test_instances_without_ties_are_those_whose_ratios_differ():
    half, fourth = [Fraction(1, 2)] * 2, [Fraction(1, 4), Fraction(3, 4)]
    assert not instances.without_ties(PrefixTree.iid(half, half, 1))
    assert instances.without_ties(PrefixTree.iid(fourth, half, 2))
    assert instances.without_ties(PrefixTree.iid([*half, Fraction(0)], [*fourth[::-1], Fraction(0)], 1)) is not False


def test_every_verifier_declared_lossless_has_a_claim_that_checks_it():
    from specbound.proofs_checks.claims.baselines import CLAIMED_ELSEWHERE
    from specbound.runtime import registry

    own = {
        "token": "BV-token-lossless",
        "block": "BV-lossless",
        "greedy-block": "GREEDY-lossless",
        "gbv": "GBV-lossless",
    }
    own |= {
        "two-level": "TWO-LEVEL-lossless",
        "key-race": "KEY-RACE",
        "spectr-gbv": "SPECTR-realised",
        "table": "TABLE",
        "global-resolution": "RESOLUTION-lossless",
    }
    for name in registry.names():
        if registry.get(name).lossless:
            assert own.get(name, f"LOSSLESS-{name}") in ledger.claims()
    assert set(own) == set(CLAIMED_ELSEWHERE)
