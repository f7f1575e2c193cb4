"""What is measured of a verifier agrees with what it declares; a lossy one that declares itself lossless is found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from specbound.proofs_checks.measured import LOSSLESS_TOLERANCE, lossless_error
from specbound.runtime.verifiers import get, names


@pytest.mark.parametrize("name", [name for name in names() if name != "table"])
def test_a_verifier_is_measured_lossless_if_and_only_if_it_is(name):
    found = lossless_error(get(name)) <= LOSSLESS_TOLERANCE
    assert found == (name not in ("mjsd", "spectr-gbv-published"))


def test_what_a_verifier_declares_does_not_enter():
    pretender = replace(get("spectr-gbv-published"), lossless=True)
    assert lossless_error(pretender) == lossless_error(get("spectr-gbv-published")) > 1e-3
