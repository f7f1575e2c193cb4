"""The ledger: selection, comparison with the record, and instances from the simplest on."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from specbound.proofs_checks.claims import ledger
from specbound.proofs_checks.claims.ledger import Claim, Outcome


def entry(outcome, id="BV-example"):
    return Claim(id, "a paper", "a claim", "an object", lambda deep: outcome)


def test_every_claim_of_the_ledger_has_a_record_and_no_record_is_left_over():
    assert set(ledger.read_record()) == set(ledger.claims())


def test_a_finding_that_differs_from_the_record_is_told_apart():
    as_recorded = ledger.read_record()["BV-example"]
    same = Outcome(as_recorded["verdict"], "evidence", as_recorded["counterexample"])
    other = Outcome("refuted", "evidence", "V=1")
    found = list(ledger.run([entry(same), entry(other), entry(same, id="BV-unknown")]))
    assert [finding.recorded for finding in found] == [True, False, False]


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
    with pytest.raises(ValueError, match="entered twice"):
        ledger.claim("BV-example", source="", statement="", tested="")(lambda deep: Outcome("holds", ""))


def test_rational_rows_are_all_rows_of_that_denominator():
    assert ledger.rational_rows(2, 2) == [
        (Fraction(0), Fraction(1)),
        (Fraction(1, 2), Fraction(1, 2)),
        (Fraction(1), Fraction(0)),
    ]
    assert len(ledger.rational_rows(3, 4)) == 15
    assert all(sum(row) == 1 for row in ledger.rational_rows(3, 5))


def test_simple_instances_come_once_each_and_simplest_first():
    names = [ledger.described(tree) for tree in ledger.simple_instances(2, 1, 2)]
    assert len(names) == len(set(names)) == 1 + 9
    assert names[0] == "V=1, L=1, iid target (1), draft (1)"


def test_every_verifier_declared_lossless_has_a_claim_that_checks_it():
    from specbound.proofs_checks.claims.multi_path import CLAIMED_ELSEWHERE
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
    }
    for name in registry.names():
        if registry.get(name).lossless:
            assert own.get(name, f"LOSSLESS-{name}") in ledger.claims()
    assert set(own) == set(CLAIMED_ELSEWHERE)
