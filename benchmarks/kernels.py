"""Time of the fused verifiers on a GPU: against the floor, the tensor versions, torch.compile and other packages.

    python benchmarks/kernels.py [--vocab 128256] [--quick]

Times are medians of CUDA events over many calls, with the inputs rotated so that no call finds its logits in the L2
cache. The kernels run as a captured CUDA graph. The floor is the time to move the bytes of all logits of the case
once at the copy bandwidth measured in the same run (bytes read plus bytes written per second of a large copy); the
two-level kernel reads only the rows of the selected path and can be below it. The tensor versions and torch.compile
of them start from the same logits, softmax included. flashinfer's and vLLM's kernels take part where those packages
are installed; they start from probabilities, and their time includes the softmax. Results go to
benchmarks/results/kernels.json. Without CUDA the script says so and ends with code 2.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get

RESULTS = Path(__file__).parent / "results" / "kernels.json"
CACHE = 512 << 20  # bytes that the rotated inputs span at least, several times any L2 cache
REQUESTS, LENGTHS, PATHS = (1, 8, 64, 256), (4, 8), (1, 4)
Call = Callable[[int], Any]


class Inputs:
    """Several copies of one case's logits and uniforms; copy i is used by call i."""

    def __init__(self, requests: int, paths: int, length: int, vocab: int) -> None:
        self.shape = (requests, paths, length, vocab)
        self.bytes = 2 * vocab * requests * paths * (2 * length + 1)
        self.copies = max(2, -(-CACHE // self.bytes))
        generator = torch.Generator("cuda").manual_seed(0)
        normal = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
        self.sets = [self._one(normal) for _ in range(self.copies)]
        self.temperatures = torch.ones(requests, device="cuda")
        uniform = {"device": "cuda", "dtype": torch.float64, "generator": generator}
        self.select, self.coins = torch.rand(2, requests, length, **uniform)
        self.choice = torch.rand(requests, **uniform)

    def _one(self, normal: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Target and draft logits, and drafts of which the second half of the paths share the first one's start."""
        requests, paths, length, vocab = self.shape
        target = torch.randn(requests, paths, length + 1, vocab, **normal).mul_(2)
        draft = torch.randn(requests, paths, length, vocab, **normal).add_(target[:, :, :-1])
        tokens = torch.empty(requests, paths, length, dtype=torch.int64, device="cuda")
        for request in range(requests):
            rows = draft[request].float().flatten(0, 1)
            noise = torch.empty_like(rows).exponential_(generator=normal["generator"])
            tokens[request] = (rows.sub_(noise.log_())).argmax(dim=-1).view(paths, length)
        for path in range(paths // 2, paths):
            target[:, path, 0], draft[:, path, 0] = target[:, 0, 0], draft[:, 0, 0]
            tokens[:, path, 0] = tokens[:, 0, 0]
        return target, draft, tokens

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.sets[index % self.copies]


def median_time(call: Call, repeats: int) -> float:
    """Median time of call(i), in microseconds, by events around each."""
    for index in range(3):
        call(index)
    torch.cuda.synchronize()
    pairs = []
    for index in range(repeats):
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        pair[0].record()
        call(index)
        pair[1].record()
        pairs.append(pair)
    torch.cuda.synchronize()
    return 1000 * statistics.median(start.elapsed_time(end) for start, end in pairs)


def copy_bandwidth() -> float:
    """Bytes per microsecond, read and written, of a copy of 2 GiB."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    sink = torch.empty_like(source)
    return 2 * source.numel() / median_time(lambda _: sink.copy_(source), 20)


def kernel_call(name: str, inputs: Inputs) -> Call:
    """The fused verifier, one captured graph per copy of the inputs, all on the same buffers."""
    from specbound.runtime import kernels

    requests, paths, length, vocab = inputs.shape
    out = kernels.workspace(requests, paths, length, vocab, "cuda")

    def run(index: int) -> None:
        target, draft, tokens = inputs[index]
        rest = (inputs.coins, inputs.choice, out)
        if name == "two-level":
            kernels.verify_two_level_logits(target, draft, inputs.temperatures, tokens, None, inputs.select, *rest)
            return
        single = {"block": kernels.verify_block_logits, "token": kernels.verify_token_logits}[name]
        single(target[:, 0], draft[:, 0], inputs.temperatures, tokens[:, 0], None, *rest)

    run(0)
    torch.cuda.synchronize()
    graphs = [torch.cuda.CUDAGraph() for _ in range(inputs.copies)]
    for index, graph in enumerate(graphs):
        with torch.cuda.graph(graph):
            run(index)
    return lambda index: graphs[index % inputs.copies].replay()


def tensor_call(name: str, inputs: Inputs, compiled: bool) -> Call:
    """The tensor verifier on the softmax of the logits, plain or through torch.compile."""
    draws, verify = Draws(), get(name).verify

    def run(target: Tensor, draft: Tensor, tokens: Tensor) -> Tensor:
        scale = inputs.temperatures[:, None, None, None]
        laws = [torch.softmax(logits.float() / scale, dim=-1) for logits in (draft, target)]
        verdict = verify(Batch(tokens, *laws), draws)
        return torch.stack([verdict.path, verdict.accepted, verdict.token])

    chosen = torch.compile(run) if compiled else run
    return lambda index: chosen(*inputs[index])


def flashinfer_call(inputs: Inputs) -> Call:
    """flashinfer's chain (token) verification, with the softmax before it."""
    from flashinfer.sampling import chain_speculative_sampling

    def run(index: int) -> None:
        target, draft, tokens = inputs[index]
        laws = [torch.softmax(logits[:, 0].float(), dim=-1) for logits in (draft, target)]
        chain_speculative_sampling(laws[0], tokens[:, 0].int(), laws[1])

    return run


def vllm_call(inputs: Inputs) -> Call:
    """vLLM's rejection sampler (token verification), with the softmax before it."""
    from vllm.v1.sample.rejection_sampler import rejection_sample

    requests, _, length, vocab = inputs.shape
    counts = torch.arange(1, requests + 1, device="cuda", dtype=torch.int32) * length

    settings = SimpleNamespace(all_greedy=False, all_random=True, temperature=inputs.temperatures, generators={})

    def run(index: int) -> None:
        target, draft, tokens = inputs[index]
        laws = [logits[:, 0, :length].reshape(-1, vocab).float().softmax(dim=-1) for logits in (draft, target)]
        bonus = target[:, 0, -1].float().softmax(dim=-1)
        last = (bonus / torch.empty_like(bonus).exponential_()).argmax(dim=-1, keepdim=True).int()
        drafted = tokens[:, 0].reshape(-1).int()
        rejection_sample(drafted, [length] * requests, length, counts, laws[0], laws[1], last, settings)

    return run


def contestants(paths: int) -> dict[str, Callable[[Inputs], Call]]:
    """What is timed for K paths: name -> maker of the call."""
    rules = ("block", "token") if paths == 1 else ("two-level",)
    makers: dict[str, Callable[[Inputs], Call]] = {}
    for rule in rules:
        makers[f"{rule} kernel"] = lambda inputs, rule=rule: kernel_call(rule, inputs)
        makers[f"{rule} tensor"] = lambda inputs, rule=rule: tensor_call(rule, inputs, False)
        makers[f"{rule} torch.compile"] = lambda inputs, rule=rule: tensor_call(rule, inputs, True)
    if paths == 1 and find_spec("flashinfer"):
        makers["token flashinfer"] = flashinfer_call
    if paths == 1 and find_spec("vllm"):
        makers["token vllm"] = vllm_call
    return makers


def measure(inputs: Inputs, bandwidth: float, repeats: int) -> list[dict[str, Any]]:
    """One record per contestant; one that fails is recorded with its error."""
    requests, paths, length, _ = inputs.shape
    floor = inputs.bytes / bandwidth
    records = []
    for name, make in contestants(paths).items():
        record: dict[str, Any] = {"what": name, "B": requests, "K": paths, "L": length, "floor_us": floor}
        try:
            record["us"] = median_time(make(inputs), repeats)
            record["ratio"] = record["us"] / floor
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"[:200]
        torch.cuda.empty_cache()
        records.append(record)
    return records


def environment(bandwidth: float) -> dict[str, Any]:
    """Device, driver and versions."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    import triton

    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver[0] if driver else "unknown",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "copy_bandwidth_gb_per_s": bandwidth / 1000,
    }


def times(record: dict[str, Any]) -> str:
    """Time, floor and their ratio as columns."""
    return f"{record['us']:12.1f}{record['floor_us']:12.1f}{record['ratio']:8.2f}"


def main() -> None:
    """Measure every case, print one table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=128256, help="V (default 128256)")
    parser.add_argument("--quick", action="store_true", help="fewer cases and repeats, nothing written")
    options = parser.parse_args()
    if not torch.cuda.is_available() or find_spec("triton") is None:
        print("benchmarks/kernels.py needs a CUDA device and triton; nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    bandwidth = copy_bandwidth()
    facts = environment(bandwidth)
    print(json.dumps(facts))
    print(f"{'what':24}{'B':>5}{'K':>3}{'L':>3}{'us':>12}{'floor us':>12}{'ratio':>8}")
    records = []
    for requests in REQUESTS[:2] if options.quick else REQUESTS:
        for paths in PATHS:
            for length in LENGTHS[:1] if options.quick else LENGTHS:
                inputs = Inputs(requests, paths, length, options.vocab)
                for record in measure(inputs, bandwidth, 20 if options.quick else 100):
                    records.append(record)
                    case = f"{record['what']:24}{requests:5}{paths:3}{length:3}"
                    outcome = f"  {record['error']}" if "error" in record else times(record)
                    print(case + outcome, flush=True)
                del inputs
                torch.cuda.empty_cache()
    if not options.quick:
        RESULTS.write_text(json.dumps({"environment": facts, "vocab": options.vocab, "records": records}, indent=1))


if __name__ == "__main__":
    main()
