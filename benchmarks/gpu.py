"""What wants a GPU, in one command under ten minutes: kernels against tensor versions, their times, then decoding.

    python benchmarks/gpu.py               # writes benchmarks/results/gpu.json after every row
    python benchmarks/gpu.py --smoke       # every step on the CPU, tiny sizes; its times mean nothing

First the tests that only run on a device, then `benchmarks/kernels.py --quick` (laws, times against the floor,
torch.compile, flashinfer and vLLM where installed), both within time limits. Then a pair of random weights, a Llama of
some 1.3 billion parameters and its first layers, decodes at batch 1, 8 and 32: plain, block verification of one path
and the score race of several, in turns; tokens per second are medians over the turns. Without CUDA the script says so
and ends with code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from large_pair import VOCAB, parameters, truncated_pair

from specbound.runtime.decode import generate

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "gpu.json"
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "block": {"verifier": "block", "paths": 1, "length": 4},
    "score-race K=2": {"verifier": "score-race", "paths": 2, "length": 4},
    "score-race K=4": {"verifier": "score-race", "paths": 4, "length": 4},
}


def step(name: str, command: list[str], seconds: int, smoke: bool) -> dict[str, Any]:
    """Run a command within a time limit; its exit code (None: stopped by the limit) and the end of what it printed."""
    print(f"{name}: at most {seconds} s", flush=True)
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if smoke else {})
    try:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=seconds, check=False, env=environment
        )
    except subprocess.TimeoutExpired as stopped:
        printed = stopped.stdout.decode() if isinstance(stopped.stdout, bytes) else stopped.stdout or ""
        return {"step": name, "code": None, "printed": printed[-2_000:]}
    return {"step": name, "code": done.returncode, "printed": (done.stdout + done.stderr)[-2_000:]}


def decoded(models: tuple[Any, Any], requests: int, new: int, turns: int) -> list[dict[str, Any]]:
    """Tokens per second of every method at one batch size, in turns; "plain" is the target's own generation."""
    target, draft = models
    generator = torch.Generator().manual_seed(requests)
    prompts = torch.randint(VOCAB, (requests, 32), generator=generator).to(target.device)
    speeds: dict[str, list[float]] = {name: [] for name in METHODS}
    per_call = dict.fromkeys(METHODS, 1.0)
    for turn in range(turns + 1):
        for name, settings in METHODS.items():
            start = time.perf_counter()
            if settings:
                found = generate(target, draft, prompts, max_new_tokens=new, do_sample=True, **settings)
                per_call[name] = requests * new / found.statistics.calls
            else:
                target.generate(prompts, max_new_tokens=new, do_sample=True, top_k=0, pad_token_id=0)
            if target.device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                speeds[name].append(requests * new / (time.perf_counter() - start))
    plain = statistics.median(speeds["plain"])
    return [
        {
            "B": requests,
            "method": name,
            "tokens_per_second": statistics.median(each),
            "times_plain": statistics.median(each) / plain,
            "tokens_per_call": per_call[name],
        }
        for name, each in speeds.items()
    ]


def main() -> None:
    """Every step, the results written after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="on the CPU, tiny sizes, without the first two steps")
    parser.add_argument("--output", type=Path, help="JSON file (default results/gpu.json; none with --smoke)")
    options = parser.parse_args()
    if not (options.smoke or torch.cuda.is_available()):
        print("benchmarks/gpu.py needs a CUDA device; nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    output = options.output or (None if options.smoke else RESULTS)
    device = "cpu" if options.smoke else "cuda"
    found: dict[str, Any] = {"device": "cpu" if options.smoke else torch.cuda.get_device_name(), "steps": []}
    found |= {"torch": torch.__version__, "decoding": []}

    def keep(part: str, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            found[part].append(row)
            print(json.dumps(row), flush=True)
        if output is not None:
            output.write_text(json.dumps(found, indent=1) + "\n")

    if not options.smoke:
        tests = ["-m", "pytest", "-q", "-k", "on_a_device", str(HERE.parent / "tests" / "runtime" / "test_kernels.py")]
        keep("steps", [step("tests on a device", tests, 120, options.smoke)])
        kernels = [str(HERE / "kernels.py"), "--quick", "--output", str(HERE / "results" / "kernels_quick.json")]
        keep("steps", [step("kernels", kernels, 240, options.smoke)])
    size = {"width": 64, "layers": 2} if options.smoke else {"width": 2048, "layers": 24, "kept": 2}
    dtype = torch.float32 if options.smoke else torch.bfloat16
    target, draft = (model.to(device) for model in truncated_pair(**size, dtype=dtype))
    found["parameters"] = {"target": parameters(target), "draft": parameters(draft)}
    for requests in (1, 2) if options.smoke else (1, 8, 32):
        new, turns = (4, 1) if options.smoke else (64, 3)
        keep("decoding", decoded((target, draft), requests, new, turns))


if __name__ == "__main__":
    main()
