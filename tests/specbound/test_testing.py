"""`specbound.testing` in a repository of somebody else's, which has specbound installed and nothing else of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "audit_engine_signature.py"
TEST = """
from specbound.testing import assert_lossless
from yourpackage.sampler import forgets_the_draft, rejection_sample


def test_right():
    assert_lossless(rejection_sample, convention="vllm-v1")


def test_wrong():
    assert_lossless(forgets_the_draft, convention="vllm-v1")
"""


@pytest.mark.slow
def test_the_assertion_works_in_another_repository(tmp_path):
    package = tmp_path / "yourpackage"
    package.mkdir()
    shutil.copy(EXAMPLE, package / "sampler.py")
    (package / "__init__.py").touch()
    (tmp_path / "test_sampler.py").write_text(TEST)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "--durations=2"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "1 failed, 1 passed" in run.stdout, run.stdout + run.stderr
    assert "AssertionError: yourpackage.sampler:forgets_the_draft: not lossless" in run.stdout
    assert "the correction is drawn from the target row, not from max(0, p - q)" in run.stdout
