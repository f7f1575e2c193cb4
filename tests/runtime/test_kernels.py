"""The fused kernels: under Triton's interpreter in a process of their own, compiled for a GPU, and when they are used.

Nothing here runs on a GPU.
"""

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from specbound.commands import bench
from specbound.runtime import kernels
from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import entries, get, names

pytestmark = pytest.mark.kernels

TESTS = Path(__file__).parents[1]
SCRIPT = TESTS.parent / "benchmarks" / "kernels.py"
WITH_KERNEL = [entry.name for entry in entries() if entry.kernel]
FLOATS = (torch.float32, torch.float32)
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="the optional package triton is not installed")


def interpreted(name: str) -> str:
    """Output of the tests in a file of `support`, all passed, in a process of its own.

    Triton decides on the interpreter when it is first imported.
    """
    options = ["-q", "-s", "-W", "ignore", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, TESTS / "support" / name],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    return run.stdout


@needs_triton
def test_histograms_of_rows_are_those_of_the_tensor_version_under_the_interpreter() -> None:
    interpreted("interpreted_histograms.py")


@needs_triton
def test_kernels_write_the_same_under_the_interpreter_as_it_is_and_made_fast() -> None:
    interpreted("interpreted_twice.py")


@needs_triton
def test_the_kernels_decide_as_the_tensor_versions_do_under_the_interpreter() -> None:
    output = interpreted("interpreted_kernels.py")
    counted = re.search(r"(\d+) requests compared; (\d+) left out, with a uniform near a threshold", output)
    assert counted is not None
    print(counted.group(0))
    compared, near = (int(group) for group in counted.groups())
    assert compared >= 200
    assert near <= 0.02 * compared


def decided(name: str, environment: dict[str, str], device: str = "cuda", triton: bool = True) -> str:
    return kernels.decide(get(name), device, FLOATS, environment, triton)


@pytest.mark.parametrize("name", names())
def test_every_verifier_with_a_kernel_uses_it_on_cuda(name: str) -> None:
    has_one = name in ("block", "token", "score-race", "two-level", "key-race", "gbv-bucketed")
    assert (get(name).kernel is not None) == has_one
    assert decided(name, {}) == ("kernels" if has_one else "tensor")


@pytest.mark.parametrize(
    ("wish", "device", "answer"),
    [
        (None, "cuda", "kernels"),
        ("1", "cuda", "kernels"),
        ("0", "cuda", "tensor"),
        (None, "cpu", "tensor"),
        ("1", "cpu", "tensor"),
        ("0", "cpu", "tensor"),
        ("interpret", "cpu", "kernels"),
        ("interpret", "cuda", "kernels"),
        (None, "mps", "tensor"),
    ],
)
def test_the_environment_and_the_device_decide(wish: str | None, device: str, answer: str) -> None:
    environment = {"TRITON_INTERPRET": "1"} | ({} if wish is None else {"SPECBOUND_KERNELS": wish})
    assert decided("block", environment, device) == answer
    assert decided("kseq", environment, device) == "tensor"
    assert decided("block", environment, device, triton=False) == "tensor"


@needs_triton
@pytest.mark.parametrize(
    ("environment", "programs", "answer"),
    [
        ({}, {"gcc"}, True),
        ({}, {"clang"}, True),
        ({"CC": "mycc"}, set(), True),
        ({}, set(), False),
        ({"TRITON_INTERPRET": "1"}, set(), True),
    ],
)
def test_kernels_want_a_compiler_unless_interpreted(monkeypatch, tmp_path, environment, programs, answer) -> None:
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(kernels.os, "environ", environment)
    monkeypatch.setattr(kernels.shutil, "which", lambda program: program if program in programs else None)
    monkeypatch.setattr(kernels.sysconfig, "get_path", lambda name: str(tmp_path))
    assert kernels.can_launch.__wrapped__() == answer
    (tmp_path / "Python.h").unlink()
    assert kernels.can_launch.__wrapped__() == ("TRITON_INTERPRET" in environment)


def test_dtypes_without_a_kernel_and_verifiers_of_ones_own_are_left_to_the_tensor_version() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        assert kernels.decide(get("block"), "cuda", (dtype, torch.float32), {}, True) == "kernels"
    assert kernels.decide(get("block"), "cuda", (torch.float32, torch.float8_e4m3fn), {}, True) == "tensor"
    own = replace(get("block"), verify=lambda batch, draws: get("block").verify(batch, draws))
    assert kernels.decide(own, "cuda", FLOATS, {}, True) == "tensor"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SPECBOUND_KERNELS": "yes"}, "SPECBOUND_KERNELS is 'yes'; want 0 .off., 1 .on CUDA devices. or interpret"),
        ({"SPECBOUND_KERNELS": "interpret"}, "without TRITON_INTERPRET=1; set both"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decided("block", environment, "cpu")


def small_batch() -> Batch:
    laws = torch.softmax(torch.randn(3, 1, 3, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    return Batch(torch.zeros(3, 1, 2, dtype=torch.int64), laws[:, :, :2], laws)


class Counting(Draws):
    """A caller's own draws."""


def test_draws_of_ones_own_are_asked_the_questions_of_the_tensor_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECBOUND_KERNELS", "interpret")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(kernels, "can_launch", lambda: True)
    assert kernels.implementation(get("block"), small_batch(), Draws()) == "kernels"
    assert kernels.implementation(get("block"), small_batch(), Counting()) == "tensor"


def test_the_decision_is_what_verify_does(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = Verdict(*(torch.full((3,), 7) for _ in range(3)))
    monkeypatch.setattr(kernels, "verify_laws", lambda name, batch, generator: mark)
    for answer in ("kernels", "tensor"):
        monkeypatch.setattr(kernels, "implementation", lambda verifier, batch, draws, answer=answer: answer)
        assert (kernels.verify(get("block"), small_batch(), Draws()) is mark) == (answer == "kernels")


@pytest.mark.parametrize("name", ["block", "token", "kseq"])
def test_without_a_kernel_the_tensor_version_answers(name: str) -> None:
    first, second = (Draws(torch.Generator().manual_seed(7)) for _ in range(2))
    got, want = kernels.verify(get(name), small_batch(), first), get(name).verify(small_batch(), second)
    assert torch.equal(got.token, want.token)
    assert torch.equal(got.accepted, want.accepted)


def test_bench_says_which_implementation_verified() -> None:
    plain = bench.Run("plain", 1, 0, tokens=[4], seconds=[1.0])
    run = bench.Run("block", 1, 2, tokens=[4], seconds=[1.0], accepted=[1], verification="kernels")
    assert bench._described(run, plain, {})["verification"] == "kernels"
    assert bench._described(plain, plain, {})["verification"] is None


COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from specbound.runtime.kernels import gbv_bucketed, histograms, key_race, passes, rows, score_race, single_path
from specbound.runtime.kernels import two_level, walk

KERNELS = {
    rows: "row_masses",
    histograms: "row_histograms",
    passes: "surplus_masses emit_verdict",
    single_path: "block_ratios token_acceptance",
    walk: "begin_race",
    two_level: "walk_by_levels",
    gbv_bucketed: "walk_by_buckets",
    key_race: "end_race",
    score_race: "race_walk pick_winner",
}
COMMON = dict(BLOCK=4096, SPAN=8, TILE=256, CHUNKS=32, DEPTHS=16, SPANS=4, ROUNDS=4, SECTIONS=16, LAW=32, SLACK=1e-6)
LOGITS = COMMON | dict(IS_LAW=False, SHARED=False, SELECTED=1, DECIDED=False, PATHS=4, REAL=tl.float32)
LAWS = COMMON | dict(BLOCK=1024, TILE=64, CHUNKS=8, IS_LAW=True, SHARED=True, SELECTED=2, DECIDED=True, PATHS=2)
LAWS |= dict(REAL=tl.float64)
VARYING = "start depth requests paths length".split()
INTEGERS = [*VARYING, "vocab", "chunks"]
KINDS = dict.fromkeys("lengths path_lengths nodes path_nodes windows first stop valid path_valid".split(), "*i32")
KINDS |= dict.fromkeys("tokens path accepted token path_accepted path_token".split(), "*i64")
KINDS |= dict.fromkeys("out_path out_accepted out_token chosen_path".split(), "*i64") | dict.fromkeys(INTEGERS, "i32")
ONES = LOGITS | dict(vocab=1, chunks=1) | dict(
    BLOCK=256, SPANS=1, PATHS=2, DEPTHS=2, CHUNKS=1, SHARED=True, SELECTED=2
)
for constants, logits, real in ((LOGITS, "*bf16", "*fp32"), (LAWS, "*fp64", "*fp64"), (ONES, "*fp16", "*fp32")):
    kinds = KINDS | dict.fromkeys("temperatures chunk_max chunk_sum histograms selection tables masses".split(), real)
    kinds |= {"target": logits, "draft": logits}
    for module, names in KERNELS.items():
        for name in names.split():
            kernel = getattr(module, name)
            assert all(parameter.do_not_specialize == (parameter.name in VARYING) for parameter in kernel.params)
            fixed = {arg: constants[arg] for arg in kernel.arg_names if arg in constants}
            signature = {arg: "constexpr" if arg in fixed else kinds.get(arg, "*fp64") for arg in kernel.arg_names}
            source = ASTSource(kernel, signature, fixed)
            warps = {walk: 1, single_path: 1, histograms: 4}.get(module, 8)
            target = GPUTarget("cuda", 90, 32)
            made = triton.compile(source, target=target, options={"num_warps": warps})
            assert made.asm["cubin"]
            assert f"!tt.ptr<{logits[1:]}>, i32" not in made.asm["ttgir"], "rows lie up to 2^32 entries behind"
            print(name)
"""


@needs_triton
def test_every_kernel_compiles_for_a_gpu_of_compute_capability_9() -> None:
    run = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env={key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert len(run.stdout.split()) == 36
    sources = [path.read_text() for path in Path(kernels.__file__).parent.glob("*.py")]
    launched = {
        "".join(names)
        for text in sources
        for names in re.findall(r"^ +(\w+)\[\(|rule=(\w+),", text, flags=re.MULTILINE)
    }
    assert launched == {"rule", *run.stdout.split()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this is about machines without CUDA")
def test_the_benchmark_says_in_one_line_that_there_is_no_gpu() -> None:
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "CUDA" in run.stderr


@pytest.mark.slow
def test_the_script_for_a_gpu_decodes_with_tiny_sizes_and_keeps_every_row(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT.with_name("gpu.py"), "--smoke", "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    rows = json.loads(output.read_text())["decoding"]
    assert [row["B"] for row in rows] == [1] * 4 + [2] * 4
    assert all(row["tokens_per_second"] > 0 for row in rows)
    assert len(run.stdout.splitlines()) == len(rows)


FAST = """
import runpy
import sys
from tests.support.fast_interpreter import speed_up

speed_up()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@needs_triton
def test_the_whole_benchmark_runs_on_the_interpreter_with_tiny_sizes(tmp_path: Path) -> None:
    output = tmp_path / "kernels.json"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FAST, SCRIPT, "--smoke", "--output", output],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(output.read_text())
    kinds = ("kernel", "launched", "tensor", "compile")
    own = [record for record in found["records"] if record["what"] in kinds]
    assert [record for record in own if "error" in record] == []
    fused = [record for record in own if record["what"] == "kernel"]
    assert [(record["compared"], record["differ"], record["unsteady"]) for record in fused] == [
        (record["B"], 0, False) for record in fused
    ]
    single, many = ({"block", "token"}, {"score-race", "two-level", "key-race", "gbv-bucketed"})
    for requests in (1, 2):
        for paths, verifiers in ((1, single), (2, many)):
            cases = [record for record in own if (record["B"], record["K"]) == (requests, paths)]
            wanted = {(name, what) for name in verifiers for what in kinds if requests == 2 or what != "compile"}
            assert wanted == {(record["verifier"], record["what"]) for record in cases}
    assert [law["control"] for law in found["laws"]] == [False] * 6 + [True]
    assert len(run.stdout.splitlines()) == 2 + len(found["records"]) + 1 + 7


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernels_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_run_that_is_ended_early_keeps_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, benchmark: ModuleType, tmp_path: Path
) -> None:
    row = {"verifier": "block", "what": "kernel", "B": 1, "K": 1, "L": 1, "us": 2.0, "floor_us": 1.0, "ratio": 2.0}

    def ended(*_: Any) -> Iterator[dict[str, Any]]:
        yield row
        raise KeyboardInterrupt

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(benchmark, "find_spec", lambda name: True)
    monkeypatch.setattr(benchmark, "measure_all", ended)
    output = tmp_path / "kernels.json"
    monkeypatch.setattr(sys, "argv", ["kernels.py", "--smoke", "--only", "kernel", "--output", str(output)])
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    found = json.loads(output.read_text())
    assert (found["records"], found["laws"], found["block"]) == ([row], [], 4096)


def test_a_row_that_fails_says_why_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, benchmark: ModuleType) -> None:
    def broken(inputs: Any) -> Callable[[int], None]:
        raise torch.OutOfMemoryError("no room")

    makers = {("block", "tensor"): broken, ("token", "tensor"): lambda inputs: lambda index: None}
    monkeypatch.setattr(benchmark, "contestants", lambda paths, clock, block: makers)
    sizes = benchmark.Sizes((1, 2), (1,), (1,), 20, 1, 1, 1, 1, 1)
    inputs = benchmark.Inputs

    def no_room_for_two(device: str, requests: int, *shape: int) -> Any:
        if requests == 2:
            raise torch.OutOfMemoryError("nor here")
        return inputs(device, requests, *shape)

    monkeypatch.setattr(benchmark, "Inputs", no_room_for_two)
    first, second, third = benchmark.measure_all(sizes, benchmark.CpuClock(), 1.0, {"tensor"}, 4096)
    assert first["error"] == "OutOfMemoryError: no room"
    assert second["us"] >= 0
    assert (third["B"], third["what"], third["error"]) == (2, "inputs", "nor here")
    assert "no room" in benchmark.line(first)
    assert "nor here" in benchmark.line(third)


def test_verdicts_are_compared_with_the_tensor_versions_on_the_same_uniforms(
    monkeypatch: pytest.MonkeyPatch, benchmark: ModuleType
) -> None:
    clock = benchmark.CpuClock()
    out = SimpleNamespace(verdict=None)
    monkeypatch.setattr(kernels, "workspace", lambda *shape, block: out)
    drawn: dict[str, Callable[[Any], list[Tensor]]] = {
        "block": lambda given: [given.coins, given.choice],
        "gbv-bucketed": lambda given: [given.coins, given.choice],
        "two-level": lambda given: [given.select[:, 0], given.select[:, 1], given.coins, given.choice],
        "score-race": lambda given: [given.keys, given.coins, given.choice],
        "key-race": lambda given: [
            given.race_coins[:, 0], given.race_choice[:, 0], given.race_coins[:, 1], given.race_choice[:, 1], given.keys
        ],
    }  # fmt: skip
    for name, answers in drawn.items():
        inputs = benchmark.Inputs("cpu", 20, 1 if name == "block" else 2, 2, 30, 1)
        calls = []

        def stand_in(
            name: str, given: Any, out: Any, laws: bool, answers: Any = answers, calls: Any = calls
        ) -> Callable[..., None]:
            def run(target: Tensor, draft: Tensor, tokens: Tensor) -> None:
                calls.append(0)
                rows = [row.double() if laws else row.double().softmax(dim=-1) for row in (draft, target)]
                draws = benchmark.GivenDraws([answer.contiguous() for answer in answers(given)])
                verdict = get(name).verify(Batch(tokens, *rows), draws)
                accepted = verdict.accepted + (torch.arange(20) % 10 == 3) + (len(calls) == 4)
                out.verdict = replace(verdict, accepted=accepted)

            return run

        monkeypatch.setattr(benchmark, "kernel", stand_in)
        assert benchmark.verdicts(name, inputs, clock, 4096) == {"differ": 1, "compared": 16, "unsteady": False}
        assert benchmark.verdicts(name, inputs, clock, 4096)["unsteady"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("vocab", [300, 50257])
@pytest.mark.parametrize("name", WITH_KERNEL)
def test_on_a_device_graphs_decide_as_the_tensor_versions_do(benchmark: ModuleType, name: str, vocab: int) -> None:
    inputs = benchmark.Inputs("cuda", 16, 1 if name in ("block", "token") else 4, 3, vocab, 1)
    found = benchmark.verdicts(name, inputs, benchmark.GpuClock(), 4096)
    assert not found["unsteady"]
    assert found["differ"] <= 1


def test_the_sampled_audit_passes_lossless_verifiers_and_rejects_a_correction_from_the_target(
    benchmark: ModuleType,
) -> None:
    """By the tensor versions; a lossless one fails with probability 2e-9."""
    generator = torch.Generator().manual_seed(1)
    target = 2 * torch.randn(3, 40, generator=generator)
    laws = benchmark.Laws(target, target[:2] + torch.randn(2, 40, generator=generator))

    def tensor_version(name: str) -> Callable[..., Verdict]:
        def verify(target: Tensor, draft: Tensor, tokens: Tensor) -> Verdict:
            batch = Batch(tokens, draft.double().softmax(-1), target.double().softmax(-1))
            return get(name).verify(batch, Draws())

        return verify

    torch.manual_seed(0)
    for name, paths in (("block", 1), ("gbv-bucketed", 2)):
        found = benchmark.audit(tensor_version(name), laws, paths, rows=10_000, draws=200_000)
        assert found["passed"]
        assert found["draws"] == 200_000
        assert found["groups"]["resolution"] < 0.02
    broken = benchmark.audit(tensor_version("block"), laws, 1, 10_000, 200_000, from_target=True)
    assert not broken["passed"]
    assert broken["groups"]["distance"] > broken["groups"]["threshold"]


def test_the_floor_counts_shared_prefixes_once(benchmark: ModuleType) -> None:
    inputs = benchmark.Inputs("cpu", requests=3, paths=4, length=2, vocab=8, span=1)
    target, draft, tokens = inputs[0]
    inputs.sets = inputs.sets[:1]
    nodes = [len({tuple(path[:depth]) for path in request}) for request in tokens.tolist() for depth in range(3)]
    drafted = sum(nodes) - sum(nodes[2::3])
    assert inputs.floor_bytes() == 2 * 8 * (sum(nodes) + drafted)
    assert sum(nodes) <= 3 * (1 + 3 + 4)
    for request, path in ((0, 2), (1, 3), (2, 1)):
        assert torch.equal(target[request, path, 0], target[request, 0, 0])
        assert torch.equal(draft[request, path, 0], draft[request, 0, 0])
    assert torch.equal(target[:, 3, 1], target[:, 0, 1])
    assert torch.equal(tokens[:, 3, 0], tokens[:, 0, 0])


@pytest.mark.parametrize("sixth", ["target_probs", "target_logits"])
def test_other_packages_are_called_as_they_document(
    monkeypatch: pytest.MonkeyPatch, benchmark: ModuleType, sixth: str
) -> None:
    inputs = benchmark.Inputs("cpu", requests=3, paths=1, length=2, vocab=8, span=1)
    calls = []

    def chain_speculative_sampling(draft_probs: Tensor, draft_token_ids: Tensor, target_probs: Tensor) -> None:
        assert (draft_probs.shape, draft_token_ids.shape, target_probs.shape) == ((3, 2, 8), (3, 2), (3, 3, 8))
        assert torch.allclose(target_probs.sum(-1), torch.ones(3, 3))
        assert torch.allclose(draft_probs.sum(-1), torch.ones(3, 2))
        assert draft_token_ids.dtype == torch.int32
        calls.append("flashinfer")

    names = ["draft_token_ids", "num_draft_tokens", "max_spec_len", "cu_num_draft_tokens", "draft_probs", sixth]
    names += ["bonus_token_ids", "sampling_metadata"]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]

    def rejection_sample(*given: Any) -> None:
        tokens, counts, most, ends, draft, target, bonus, sampling = (
            inspect.signature(rejection_sample).bind(*given).args
        )
        assert (tokens.shape, draft.shape, target.shape, bonus.shape) == ((6,), (6, 8), (6, 8), (3, 1))
        assert (counts, most, ends.tolist()) == ([2, 2, 2], 2, [2, 4, 6])
        assert all(each.is_contiguous() for each in (tokens, draft, target, bonus))
        assert torch.allclose(draft.sum(-1), torch.ones(6))
        rows = inputs[0][0][:, 0, :2].reshape(6, 8).float()
        assert torch.equal(target, rows if sixth == "target_logits" else rows.softmax(-1))
        assert sampling.temperature.shape == (3,)
        calls.append("vllm")

    rejection_sample.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    sampling = SimpleNamespace(chain_speculative_sampling=chain_speculative_sampling)
    modules = {"flashinfer": SimpleNamespace(), "flashinfer.sampling": sampling}
    modules |= {name: SimpleNamespace() for name in ("vllm", "vllm.v1", "vllm.v1.sample")}
    modules["vllm.v1.sample.rejection_sampler"] = SimpleNamespace(rejection_sample=rejection_sample)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    benchmark.flashinfer_call(inputs)(0)
    benchmark.vllm_call(inputs)(0)
    assert calls == ["flashinfer", "vllm"]
