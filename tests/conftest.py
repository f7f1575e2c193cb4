"""What every test run shares: which markers a whole file carries, and a word on tests that want the marker `slow`.

`make quick` leaves out what is marked. A test is slow from SLOW seconds of time on; one that got slow unnoticed is
named at the end of the run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

MARKED_FILES = {"test_fuzz_": "fuzz", "test_kernels": "kernels", "test_multi_device": "devices"}
SLOW = 5.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for beginning, marker in MARKED_FILES.items():
            if item.path.name.startswith(beginning):
                item.add_marker(marker)


def unmarked_and_slow(reports: list[pytest.TestReport]) -> Iterator[pytest.TestReport]:
    left_out = {"slow", *MARKED_FILES.values()}
    return (report for report in reports if report.duration > SLOW and not left_out & report.keywords.keys())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in unmarked_and_slow(terminalreporter.stats.get("passed", [])):
        terminalreporter.line(f"{report.nodeid} took {report.duration:.0f} s: make it faster, or mark it slow")
