"""What every test run shares: no network, and a word on tests that want `slow`, which `make quick` leaves out."""

from __future__ import annotations

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client: a made-up name asks nobody

LEFT_OUT = ("slow", "kernels", "devices", "fuzz")
SLOW = 5.0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that took SLOW seconds or more without a marker."""
    for report in terminalreporter.stats.get("passed", []):
        if report.duration > SLOW and not any(marker in report.keywords for marker in LEFT_OUT):
            terminalreporter.line(f"{report.nodeid} took {report.duration:.0f} s: make it faster, or mark it slow")
