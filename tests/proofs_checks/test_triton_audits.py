"""Triton kernels without a GPU: interpreted, with concrete coins for `tl.rand`, and their time told beforehand."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from specbound.proofs_checks.audit import audit, report_text

pytestmark = [pytest.mark.slow, pytest.mark.kernels]
KERNELS = "tests.support.triton_verifier"
TINY = {"vocab": range(2, 3), "length": range(1, 2), "paths": range(1, 2), "cases": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU its kernels are compiled")
def test_a_kernel_is_audited_by_its_name_without_a_gpu():
    report = audit(f"{KERNELS}:verify", **TINY)
    assert report.verdict == "lossless", report_text(report).plain
    assert "Found with concrete coins" in report.limits


def test_coins_of_a_kernel_belong_to_seed_and_offset():
    """One (seed, offset) is one coin, asked twice or not; an integer made of it is a seed and nothing else."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-m", KERNELS], env=environment, capture_output=True, text=True, check=True)
    laws = json.loads(run.stdout)
    apart = {"(True, True)": 1 / 8, "(True, False)": 1 / 8, "(False, True)": 3 / 8, "(False, False)": 3 / 8}
    assert laws["one stream"] == pytest.approx(
        {"(True, True)": 1 / 4, "(False, True)": 1 / 4, "(False, False)": 1 / 2}, abs=1e-6
    )
    assert laws["two places"] == pytest.approx(apart, abs=1e-6)
    assert laws["a derived seed"] == pytest.approx(apart, abs=1e-6)
    assert laws["a race"] == pytest.approx({"0": 1 / 3, "1": 2 / 3}, abs=1e-6)
    assert "for something else than a seed" in laws["an integer"]


def test_the_time_left_is_told_after_every_instance():
    def slow(draft_token_ids: torch.Tensor, q: torch.Tensor, p: torch.Tensor):
        time.sleep(0.002)
        for i, x in enumerate(draft_token_ids.tolist()):
            if torch.rand(()) > p[i, x] / q[i, x]:
                return [*draft_token_ids[:i].tolist(), int(torch.multinomial((p[i] - q[i]).clamp_min(0), 1))]
        return [*draft_token_ids.tolist(), int(torch.multinomial(p[-1], 1))]

    left: list[float] = []
    started = time.monotonic()
    audit(slow, **{**TINY, "cases": 5}, pace=left.append)
    assert len(left) == 4
    assert all(0 < seconds < 20 * (time.monotonic() - started) for seconds in left)
