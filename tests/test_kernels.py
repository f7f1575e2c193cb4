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


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from specbound.runtime.kernels import passes, single_path, two_level

KERNELS = {
    passes: "row_masses row_norms surplus_masses emit_verdict",
    single_path: "block_ratios token_acceptance",
    two_level: "clipped_masses failing_masses select_path open_walk",
}
CONSTANTS = dict(
    BLOCK=4096, TILE=512, CHUNKS=32, DEPTHS=16, PATHS=4, IS_LAW=False, SELECTED=True, DECIDED=False,
    TINY=1.2e-38, ONE=1.000001, REAL=tl.float32,
)
INTEGERS = "start paths length vocab chunks depth step steps requests".split()
POINTERS = dict.fromkeys("lengths nodes first stop valid alive".split(), "*i32")
POINTERS |= dict.fromkeys("tokens path accepted token".split(), "*i64")
POINTERS |= dict(target="*bf16", draft="*bf16", temperatures="*fp32")
POINTERS |= dict(chunk_max="*fp32", chunk_sum="*fp32", masses="*fp32")
for module, names in KERNELS.items():
    for name in names.split():
        kernel = getattr(module, name)
        constants = {arg: CONSTANTS[arg] for arg in kernel.arg_names if arg in CONSTANTS}
        kinds = {arg: "constexpr" if arg in constants else "i32" if arg in INTEGERS else POINTERS.get(arg, "*fp64")
                 for arg in kernel.arg_names}
        source = ASTSource(kernel, kinds, constants)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8}).asm["cubin"]
        print(name)
"""


def test_every_kernel_compiles_for_a_gpu_of_compute_capability_9() -> None:
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert len(run.stdout.split()) == 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without CUDA")
def test_the_benchmark_says_in_one_line_that_there_is_no_gpu() -> None:
    script = HERE.parent / "benchmarks" / "kernels.py"
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "CUDA" in run.stderr
