"""What is measured of a verifier agrees with what it declares; a lossy one that declares itself lossless is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specbound.proofs_checks.laws.judge import LOSSLESS_TOLERANCE, lossless_error
from specbound.runtime.verdict import Verdict
from specbound.runtime.verifiers import get, names

LOSSY = {"mjsd", "spectr-gbv-published", "hsd", "budgeted", "ensemble", "lenient", "cactus", "fuzzy", "cascade"}
LOSSY |= {"top-cascade", "entropy", "relaxed", "typical", "forgiving"}


@pytest.mark.parametrize("name", [name for name in names() if name != "table"])
def test_a_verifier_is_measured_lossless_if_and_only_if_it_is(name):
    found = lossless_error(get(name)) <= LOSSLESS_TOLERANCE
    assert found == (name not in LOSSY)


def test_what_a_verifier_declares_does_not_enter():
    pretender = replace(get("spectr-gbv-published"), lossless=True)
    assert lossless_error(pretender) == lossless_error(get("spectr-gbv-published")) > 1e-3


def test_one_tree_on_which_it_is_wrong_makes_a_verifier_lossy():
    """This one emits token 0 for certain where the vocabulary has two tokens, and is right elsewhere."""

    def verify(batch, draws):
        verdict = get("token").verify(batch, draws)
        if batch.shape[3] > 2:
            return verdict
        return Verdict(verdict.path, verdict.accepted, verdict.token * 0)

    assert lossless_error(replace(get("token"), verify=verify)) > 1e-3
