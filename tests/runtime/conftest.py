"""What tests of the runtime share."""

from __future__ import annotations

import pytest

from specbound.runtime import compiled


@pytest.fixture(params=["loops", "arrays"])
def host(request, monkeypatch):
    """Histograms and walks on the host by compiled loops, and by arrays; the name of the way."""
    if request.param == "loops":
        assert compiled.usable(), "numba is part of the extra `dev`"
    else:
        monkeypatch.setattr(compiled, "usable", lambda device="cpu": False)
    return request.param


@pytest.fixture
def arrays(monkeypatch):
    """Histograms and walks on the host by arrays."""
    monkeypatch.setattr(compiled, "usable", lambda device="cpu": False)
