"""The fused kernels: under Triton's interpreter in a process of their own, compiled for a GPU, and when they are used.

Nothing here runs on a GPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from specbound.runtime import kernels
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get

triton = pytest.importorskip("triton", reason="the optional package triton is not installed")
HERE = Path(__file__).parent


def test_the_kernels_decide_as_the_tensor_versions_do_under_the_interpreter() -> None:
    """Triton decides on the interpreter when it is first imported, hence the process of its own."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            HERE / "interpreted_kernels.py",
        ],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


def test_kernels_are_for_cuda_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECBOUND_KERNELS", raising=False)
    assert kernels.available("cuda:0")
    assert not kernels.available("cpu")
    monkeypatch.setenv("SPECBOUND_KERNELS", "0")
    assert not kernels.available("cuda:0")


@pytest.mark.parametrize("name", ["block", "token", "kseq"])
def test_without_a_kernel_the_tensor_version_answers(name: str) -> None:
    laws = torch.softmax(torch.randn(3, 1, 3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    batch = Batch(torch.zeros(3, 1, 2, dtype=torch.int64), laws[:, :, :2], laws)
    first, second = (Draws(torch.Generator().manual_seed(7)) for _ in range(2))
    got, want = kernels.verify(get(name), batch, first), get(name).verify(batch, second)
    assert torch.equal(got.token, want.token)
    assert torch.equal(got.accepted, want.accepted)
