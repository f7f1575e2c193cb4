"""Every claim of the ledger is checked again, and found as the record says: verdict and smallest counterexample."""

from __future__ import annotations

import pytest

from specbound.proofs_checks.claims import ledger


@pytest.mark.parametrize("name", ledger.claims())
def test_a_claim_is_found_as_recorded(name):
    (finding,) = ledger.run([ledger.claims()[name]])
    recorded = ledger.read_record()[name]
    assert finding.recorded, finding
    assert (finding.verdict, finding.counterexample) == (recorded["verdict"], recorded["counterexample"])
