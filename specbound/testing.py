"""For the test suite of a project that carries a verifier of its own.

from specbound.testing import assert_lossless
from yourpackage.sampler import rejection_sample

def test_our_verifier_is_lossless():
    assert_lossless(rejection_sample, convention="vllm-v1")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def assert_lossless(
    verifier: str | Callable[..., Any],
    convention: str | None = None,
    *,
    dtype: str = "float32",
    vocab: range = range(2, 4),
    length: range = range(1, 3),
    paths: range = range(1, 3),
    cases: int = 12,
    seed: int = 0,
    seconds: float = 60.0,
) -> None:
    """Fail with the smallest counterexample unless a verifier's exact law is the target's.

    Args:
        verifier: a function (run in this process), a registered name, or "package.module:function" (in a sandbox).
        convention: how it is called, one of `specbound audit --conventions`; None to go by its parameters' names.
        dtype: number format of the rows that it gets by a convention.
        vocab, length, paths, cases, seed, seconds: of the audit.

    Raises:
        AssertionError: if it is not lossless, breaks down, or cannot be decided; the message is the audit's report.
        ValueError: if the function does not fit the convention.
    """
    __tracebackhide__ = True
    from specbound.proofs_checks.audit import audit, report_text

    target: Any = verifier
    report = audit(target, vocab, length, paths, cases, seed=seed, seconds=seconds, convention=convention, dtype=dtype)
    if report.verdict != "lossless":
        raise AssertionError(report_text(report).plain)
