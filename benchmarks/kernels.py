"""Time and law of the fused verifiers on a GPU: against the floor, the tensor versions and other packages.

    python benchmarks/kernels.py [--vocab 128256] [--quick]     # one call, one table
    python benchmarks/kernels.py --only laws kernel             # part of it: torch.compile takes most of the time
    python benchmarks/kernels.py --smoke                        # every step on the CPU; its times mean nothing

First the law: each kernel verifies at least --draws fresh drafts at V tokens, and the empirical law of the first two
tokens is compared with the target's, on 64 groups of pairs fixed beforehand and on single first tokens. With m sets, n
draws and false-alarm rate a the threshold is t = sqrt((m log 2 + log 1/a) / 2n) (Hoeffding, union bound), and a law
t + sqrt(log(1/miss) / 2n) away on the groups is found but for probability miss. A verifier that draws its corrections
from the target instead of the residual must be found.

Then times: medians of CUDA events over many calls, with the inputs rotated so that no call finds its logits in the L2
cache. `kernel` is a captured CUDA graph, `launched` the same launches from Python, as all others are. The floor of a
verifier is the time to move the bytes it has to read at least once, at the copy bandwidth measured in the same run
(bytes read plus bytes written per second of a large copy): both models' rows at every node, E V (N + n) per request
with N distinct prefixes of its paths, n of them shorter than L (N = L + 1, n = L for one path), V logits and E bytes
each.

The tensor versions and torch.compile of them start from the same logits, softmax included. flashinfer's and vLLM's
kernels take part where those packages are installed; they start from probabilities, and their time includes the
softmax. `met` says whether a kernel is within its target: 1.5 times the floor for B >= 64, the floor and 30
microseconds for B = 1. `differ` counts requests, of the last 16, in which the graph's verdict is not that of the
tensor version in float64 with the same uniforms: near a threshold rounding decides, and how exactly two-level finds
its success mass (score-race, two-level and gbv-bucketed start from probabilities there: from logits their knots lie at
octaves of the logits). `unsteady` says that two replays gave different verdicts, which is always a bug.

Results go to --output, after every row anew: what ends the script early does not lose them. A row that fails holds its
error. Without CUDA the script says so and ends with code 2; with a law rejected or not measured, code 1.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from specbound.runtime import kernels
from specbound.runtime.draws import Draws
from specbound.runtime.parts.draft_tree import first_appearance
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers import get

RESULTS = Path(__file__).parent / "results" / "kernels.json"
SINGLE, MANY = ("block", "token"), ("score-race", "two-level", "key-race", "gbv-bucketed")
KINDS = ("laws", "kernel", "launched", "tensor", "flashinfer", "vllm", "compile")
Call = Callable[[int], Any]
Records = Iterator[dict[str, Any]]
Verify = Callable[[Tensor, Tensor, Tensor], Verdict]


@dataclass(frozen=True)
class Sizes:
    """What one run measures.

    Attributes:
        requests, lengths, paths: the cases B, L, K; vocab: V.
        repeats: timed calls per contestant; span: bytes that the rotated inputs have at least.
        copied: bytes of the copy that measures the bandwidth.
        draws, rows: fresh drafts per kernel in the comparison of laws, and how many of them at once.
    """

    requests: tuple[int, ...]
    lengths: tuple[int, ...]
    paths: tuple[int, ...]
    vocab: int
    repeats: int
    span: int
    copied: int
    draws: int
    rows: int


class GpuClock:
    """Events around every call; graphs; the compiler's best backend, for every number of requests."""

    device, backend, compiled = "cuda", "inductor", slice(None)

    def microseconds(self, call: Call, repeats: int) -> Iterator[float]:
        """Time of call(0), call(1), .."""
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for index, (start, end) in enumerate(pairs):
            start.record()
            call(index)
            end.record()
        torch.cuda.synchronize()
        return (1000 * start.elapsed_time(end) for start, end in pairs)

    def captured(self, run: Call, copies: int) -> Call:
        """run(0), .., run(copies - 1) as graphs."""
        run(0)
        torch.cuda.synchronize()
        graphs = [torch.cuda.CUDAGraph() for _ in range(copies)]
        for index, graph in enumerate(graphs):
            with torch.cuda.graph(graph):
                run(index)
        return lambda index: graphs[index % copies].replay()

    def facts(self) -> dict[str, Any]:
        """Device and driver."""
        query = [shutil.which("nvidia-smi") or "true", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        return {"device": torch.cuda.get_device_name(), "driver": driver[0] if driver else "unknown"}


class CpuClock:
    """Wall time; nothing is captured or compiled, and what would be compiled is traced for the most requests only."""

    device, backend, compiled = "cpu", "eager", slice(-1, None)

    def microseconds(self, call: Call, repeats: int) -> Iterator[float]:
        """Time of call(0), call(1), .."""
        for index in range(repeats):
            begin = time.perf_counter()
            call(index)
            yield 1e6 * (time.perf_counter() - begin)

    def captured(self, run: Call, copies: int) -> Call:
        """The calls themselves."""
        return lambda index: run(index % copies)

    def facts(self) -> dict[str, Any]:
        """No device: the interpreter."""
        return {"device": "none (Triton's interpreter)", "driver": "none"}


Clock = GpuClock | CpuClock


def median_time(clock: Clock, call: Call, repeats: int) -> float:
    """Median time of call(i) in microseconds, after a warm-up."""
    for index in range(min(3, repeats)):
        call(index)
    return statistics.median(clock.microseconds(call, repeats))


def copy_bandwidth(clock: Clock, size: int) -> float:
    """Bytes per microsecond, read and written, of a copy of `size` bytes."""
    source = torch.zeros(size, dtype=torch.uint8, device=clock.device)
    sink = torch.empty_like(source)
    return 2 * size / median_time(clock, lambda _: sink.copy_(source), 20)


class Uniforms:
    """Temperatures 1 and the uniforms of one case: `coins`, `choice` of one verification, `race_*` of one per path."""

    def __init__(self, device: str, requests: int, paths: int, length: int) -> None:
        self.temperatures = torch.ones(requests, device=device)
        double = {"device": device, "dtype": torch.float64}
        self.select, self.coins = torch.empty(2, requests, length, **double)
        self.choice = torch.empty(requests, **double)
        self.race_coins = torch.empty(requests, paths, length, **double)
        self.race_choice, self.keys = torch.empty(2, requests, paths, **double)

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw them anew."""
        for tensor in (self.select, self.coins, self.choice, self.race_coins, self.race_choice, self.keys):
            tensor.uniform_(generator=generator)


class Inputs:
    """Several copies of one case's logits, and uniforms; copy i is used by call i.

    The second half of a request's paths begin with the first path's first token; all share the root.
    """

    def __init__(self, device: str, requests: int, paths: int, length: int, vocab: int, span: int) -> None:
        self.shape = (requests, paths, length, vocab)
        self.device = device
        self.copies = max(2, -(-span // (2 * vocab * requests * paths * (2 * length + 1))))
        generator = torch.Generator(device).manual_seed(0)
        self.sets = [self._one(generator) for _ in range(self.copies)]
        self.uniforms = Uniforms(device, requests, paths, length)
        self.uniforms.draw(generator)

    def _one(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Target and draft logits and drafted tokens; paths that share a prefix share its rows."""
        requests, paths, length, vocab = self.shape
        normal = {"device": self.device, "dtype": torch.bfloat16, "generator": generator}
        target = torch.randn(requests, paths, length + 1, vocab, **normal).mul_(2)
        draft = torch.randn(requests, paths, length, vocab, **normal).add_(target[:, :, :-1])
        tokens = torch.zeros(requests, paths, length, dtype=torch.int64, device=self.device)
        row = torch.arange(requests, device=self.device)[:, None]
        for depth in range(length + 1):
            owner = (
                torch.zeros_like(tokens[:, :, 0]) if depth == 0 else first_appearance(tokens[:, :, :depth])[:, :, -1]
            )
            target[:, :, depth] = target[row, owner, depth]
            if depth < length:
                draft[:, :, depth] = draft[row, owner, depth]
                noise = torch.empty_like(draft[:, :, depth], dtype=torch.float32).exponential_(generator=generator)
                tokens[:, :, depth] = (draft[:, :, depth].float() - noise.log_()).argmax(dim=-1)
            if depth == 0:
                tokens[:, paths // 2 :, 0] = tokens[:, :1, 0]
        return target, draft, tokens

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.sets[index % self.copies]

    def floor_bytes(self) -> float:
        """Bytes of logits that a verifier has to read, mean over the copies."""
        requests, paths, _, vocab = self.shape
        own = torch.arange(paths, device=self.device)[:, None]
        nodes = [(first_appearance(tokens) == own).sum(dim=(0, 1)).tolist() for _, _, tokens in self.sets]
        return statistics.mean(2.0 * vocab * (2 * requests + 2 * sum(found[:-1]) + found[-1]) for found in nodes)


def kernel(name: str, given: Uniforms, out: Any, laws: bool = False) -> Verify:
    """The fused verifier on logits (or laws) and tokens, with the given uniforms, in the buffers `out`."""

    def run(target: Tensor, draft: Tensor, tokens: Tensor) -> Verdict:
        if name in SINGLE:
            target, draft, tokens = target[:, 0], draft[:, 0], tokens[:, 0]
        uniforms = [given.coins, given.choice]
        if name == "two-level":
            uniforms = [given.select, *uniforms]
        if name == "score-race":
            uniforms = [given.keys, *uniforms]
        if name == "key-race":
            uniforms = [given.race_coins, given.race_choice, given.keys]
        function = getattr(kernels, f"verify_{name.replace('-', '_')}_logits")
        verdict: Verdict = function(target, draft, given.temperatures, tokens, None, *uniforms, out, laws)
        return verdict

    return run


def launched_call(name: str, inputs: Inputs, block: int) -> Call:
    """The fused verifier, launch by launch, always in the same buffers."""
    run = kernel(name, inputs.uniforms, kernels.workspace(*inputs.shape, inputs.device, block=block))
    return lambda index: run(*inputs[index])


def kernel_call(name: str, inputs: Inputs, clock: Clock, block: int) -> Call:
    """The same, one captured graph per copy of the inputs."""
    return clock.captured(launched_call(name, inputs, block), inputs.copies)


class GivenDraws(Draws):
    """Answers a tensor verifier from given uniforms, in its order."""

    def __init__(self, answers: list[Tensor]) -> None:
        super().__init__(None)
        self.answers = list(answers)

    def _uniform(self, like: Tensor) -> Tensor:
        return self.answers.pop(0).view(like.shape)


def verdicts(name: str, inputs: Inputs, clock: Clock, block: int, requests: int = 16) -> dict[str, Any]:
    """How many of the last requests' verdicts are not the tensor version's, and whether two replays differ."""
    out = kernels.workspace(*inputs.shape, inputs.device, block=block)
    from_laws = name in ("score-race", "two-level", "gbv-bucketed")
    run = kernel(name, inputs.uniforms, out, from_laws)
    target, draft, tokens = inputs[0]
    rows = [logits.float().softmax(dim=-1) if from_laws else logits for logits in (target, draft)]
    replay = clock.captured(lambda index: run(*rows, tokens), 1)
    found = []
    for _ in range(2):
        replay(0)
        found.append(torch.stack([out.verdict.path, out.verdict.accepted, out.verdict.token]))

    paths, given = inputs.shape[1], inputs.uniforms
    answers = [given.coins, given.choice]
    if name == "two-level":
        answers = [*(given.select.unbind(dim=1) if paths > 1 else ()), *answers]
    if name == "score-race" and paths > 1:
        answers = [given.keys, *answers]
    if name == "key-race":
        pairs = zip(given.race_coins.unbind(dim=1), given.race_choice.unbind(dim=1), strict=True)
        answers = [*itertools.chain.from_iterable(pairs), *([given.keys] if paths > 1 else [])]
    target, draft, tokens = (each[-requests:] for each in inputs[0])
    laws = [logits.double().softmax(dim=-1) for logits in (draft, target)]
    draws = GivenDraws([answer[-requests:].contiguous() for answer in answers])
    verdict = get(name).verify(Batch(tokens, *laws), draws)
    wanted = torch.stack([verdict.path, verdict.accepted, verdict.token])
    differ = int((found[0][:, -requests:] != wanted).any(dim=0).sum())
    return {"differ": differ, "compared": len(tokens), "unsteady": not torch.equal(*found)}


def tensor_call(name: str, inputs: Inputs, backend: str | None) -> Call:
    """The tensor verifier on the softmax of the logits; with a backend through torch.compile."""
    draws, verify = Draws(), get(name).verify

    def run(target: Tensor, draft: Tensor, tokens: Tensor) -> Tensor:
        scale = inputs.uniforms.temperatures[:, None, None, None]
        laws = [torch.softmax(logits.float() / scale, dim=-1) for logits in (draft, target)]
        verdict = verify(Batch(tokens, *laws), draws)
        return torch.stack([verdict.path, verdict.accepted, verdict.token])

    torch.compiler.reset()
    chosen = run if backend is None else torch.compile(run, backend=backend, dynamic=False)
    return lambda index: chosen(*inputs[index])


def flashinfer_call(inputs: Inputs) -> Call:
    """flashinfer's chain (token) verification, with the softmax before it.

    Signature of flashinfer 0.2.3 and later, which draw their own uniforms: draft probabilities [B, L, V], drafted
    tokens [B, L] int32, target probabilities [B, L+1, V].
    """
    from flashinfer.sampling import chain_speculative_sampling

    def run(index: int) -> None:
        target, draft, tokens = inputs[index]
        laws = [torch.softmax(logits[:, 0].float(), dim=-1) for logits in (draft, target)]
        chain_speculative_sampling(laws[0], tokens[:, 0].int(), laws[1])

    return run


def vllm_call(inputs: Inputs) -> Call:
    """vLLM's rejection sampler (token verification), with the softmax before it.

    `vllm.v1.sample.rejection_sampler.rejection_sample` of the V1 engine: positions of all requests in one axis of
    B L rows, and one sampled bonus token per request. Its sixth parameter was `target_probs`; newer versions take
    `target_logits` and do the target's softmax inside.
    """
    from vllm.v1.sample.rejection_sampler import rejection_sample

    requests, _, length, vocab = inputs.shape
    counts = torch.arange(1, requests + 1, device=inputs.device, dtype=torch.int32) * length
    temperature = {"temperature": inputs.uniforms.temperatures, "all_greedy": False, "all_random": True}
    settings = SimpleNamespace(**temperature, generators={}, top_k=None, top_p=None)
    from_logits = "target_logits" in inspect.signature(rejection_sample).parameters

    def run(index: int) -> None:
        target, draft, tokens = inputs[index]
        law, rows = (logits[:, 0, :length].reshape(-1, vocab).float() for logits in (draft, target))
        bonus = target[:, 0, -1].float().softmax(dim=-1)
        last = (bonus / torch.empty_like(bonus).exponential_()).argmax(dim=-1, keepdim=True).int()
        rows = rows if from_logits else rows.softmax(dim=-1)
        drafted = tokens[:, 0].reshape(-1).int()
        rejection_sample(drafted, [length] * requests, length, counts, law.softmax(dim=-1), rows, last, settings)

    return run


def contestants(paths: int, clock: Clock, block: int) -> dict[tuple[str, str], Callable[[Inputs], Call]]:
    """What is timed for K paths: (verifier, implementation) -> maker of the call."""
    makers: dict[tuple[str, str], Callable[[Inputs], Call]] = {}
    for rule in SINGLE if paths == 1 else MANY:
        makers[rule, "kernel"] = lambda inputs, rule=rule: kernel_call(rule, inputs, clock, block)
        makers[rule, "launched"] = lambda inputs, rule=rule: launched_call(rule, inputs, block)
        makers[rule, "tensor"] = lambda inputs, rule=rule: tensor_call(rule, inputs, None)
        makers[rule, "compile"] = lambda inputs, rule=rule: tensor_call(rule, inputs, clock.backend)
    for package, make in (("flashinfer", flashinfer_call), ("vllm", vllm_call)):
        if paths == 1 and find_spec(package):
            makers["token", package] = make
    return makers


def attempted(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` finds, or its error."""
    try:
        return work()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def measure(inputs: Inputs, clock: Clock, bandwidth: float, repeats: int, what: Collection[str], block: int) -> Records:
    """One record per contestant of the kinds `what`."""
    requests, paths, length, _ = inputs.shape
    for (rule, kind), make in contestants(paths, clock, block).items():
        if kind not in what:
            continue

        def timed(rule: str = rule, kind: str = kind, make: Callable[[Inputs], Call] = make) -> dict[str, Any]:
            if clock.device == "cuda":
                torch.cuda.empty_cache()
            floor = inputs.floor_bytes() / bandwidth
            time = median_time(clock, make(inputs), repeats)
            found = {"floor_us": floor, "us": time, "ratio": time / floor}
            if clock.device == "cuda" and kind == "kernel" and (requests == 1 or requests >= 64):
                found["met"] = time <= (floor + 30 if requests == 1 else 1.5 * floor)
            return found

        record = {"verifier": rule, "what": kind, "B": requests, "K": paths, "L": length} | attempted(timed)
        if kind == "kernel":
            record |= attempted(lambda rule=rule: verdicts(rule, inputs, clock, block))
        yield record


def measure_all(sizes: Sizes, clock: Clock, bandwidth: float, what: Collection[str], block: int) -> Records:
    """All cases; what torch.compile makes last, which takes longest."""
    slow = {"compile"} & set(what)
    for part in (set(what) - slow, slow):
        numbers = sizes.requests[clock.compiled] if part == slow else sizes.requests
        for requests, paths, length in itertools.product(numbers, sizes.paths, sizes.lengths):
            if part.isdisjoint(kind for _, kind in contestants(paths, clock, block)):
                continue
            try:
                inputs = Inputs(clock.device, requests, paths, length, sizes.vocab, sizes.span)
            except RuntimeError as error:
                yield {"verifier": "all", "what": "inputs", "B": requests, "K": paths, "L": length, "error": str(error)}
                continue
            yield from measure(inputs, clock, bandwidth, sizes.repeats, part, block)
            del inputs


@dataclass(frozen=True)
class Laws:
    """Logits that depend on the depth only, [L+1, V] and [L, V], L = 2; their laws in float64."""

    target: Tensor
    draft: Tensor

    @property
    def laws(self) -> tuple[Tensor, Tensor]:
        """Target [L+1, V] and draft [L, V]."""
        return self.target.double().softmax(dim=-1), self.draft.double().softmax(dim=-1)

    def groups(self) -> Tensor:
        """int64 [2, V]: 8 groups of the tokens at each depth, by target/draft, of about equal target mass."""
        target, draft = self.laws
        order = (target[:2] / draft).argsort(dim=1)
        mass = target[:2].gather(1, order).cumsum(dim=1)
        return torch.empty_like(order).scatter_(1, order, (8 * mass).long().clamp_max(7))


def sampled(laws: Tensor, count: int) -> Tensor:
    """int64 [count]: independent draws from the law `laws` [V], by inversion in float64."""
    sums = laws.cumsum(dim=0)
    point = torch.rand(count, dtype=torch.float64, device=laws.device) * sums[-1]
    return torch.searchsorted(sums, point, right=True).clamp_max(len(laws) - 1)


def emitted(verdict: Verdict, tokens: Tensor, laws: Laws, from_target: bool) -> tuple[Tensor, Tensor]:
    """First and second emitted token [B]: drafted ones kept, the verdict's token, then the target's own.

    Args:
        from_target: replace the verdict's correction by a draw from the target (a verifier that is not lossless).
    """
    target, _ = laws.laws
    rows = torch.arange(len(tokens), device=tokens.device)
    found = []
    for depth in range(2):
        kept, fresh = tokens[rows, verdict.path, depth], sampled(target[depth], len(tokens))
        correction = fresh if from_target else verdict.token
        after = torch.where(verdict.accepted == depth, correction, fresh)
        found.append(torch.where(verdict.accepted > depth, kept, after))
    return found[0], found[1]


def audit(verify: Verify, laws: Laws, paths: int, rows: int, draws: int, from_target: bool = False) -> dict[str, Any]:
    """Distance of the empirical law of `verify` from the target's, with the thresholds of the module's docstring."""
    target, draft = laws.laws
    vocab = draft.shape[1]
    groups = laws.groups()
    whole = [each.expand(rows, paths, -1, -1).contiguous() for each in (laws.target, laws.draft)]
    pairs = torch.zeros(64, dtype=torch.int64, device=target.device)
    firsts = torch.zeros(vocab, dtype=torch.int64, device=target.device)
    calls = -(-draws // rows)
    for _ in range(calls):
        tokens = torch.stack([sampled(law, rows * paths).view(rows, paths) for law in draft], dim=2)
        first, second = emitted(verify(*whole, tokens), tokens, laws, from_target)
        pairs += torch.bincount(8 * groups[0][first] + groups[1][second], minlength=64)
        firsts += torch.bincount(first, minlength=vocab)
    count = calls * rows
    mass = torch.zeros(2, 8, dtype=torch.float64, device=target.device).scatter_add_(1, groups, target[:2])
    found = {}
    for name, counted, wanted in (
        ("groups", pairs, torch.outer(mass[0], mass[1]).flatten()),
        ("tokens", firsts, target[0]),
    ):
        threshold = math.sqrt((len(wanted) * math.log(2) + math.log(1e9)) / (2 * count))
        distance = float((counted / count - wanted).abs().sum() / 2)
        resolution = threshold + math.sqrt(math.log(1000) / (2 * count))
        found[name] = {"distance": distance, "threshold": threshold, "resolution": resolution}
    passed = all(each["distance"] <= each["threshold"] for each in found.values())
    return {"draws": count, "false_alarm": 1e-9, "miss": 1e-3, "passed": passed} | found


def audit_laws(sizes: Sizes, clock: Clock, block: int) -> Records:
    """The audit of every kernel, and of one that draws corrections from the target, at V tokens and L = 2."""
    generator = torch.Generator(clock.device).manual_seed(1)
    target = torch.randn(3, sizes.vocab, generator=generator, device=clock.device).mul_(2)
    draft = target[:2] + torch.randn(2, sizes.vocab, generator=generator, device=clock.device)
    laws = Laws(target.bfloat16(), draft.bfloat16())
    for name, broken in (*((name, False) for name in (*SINGLE, *MANY)), ("block", True)):
        paths = 1 if name in SINGLE else 2
        given = Uniforms(clock.device, sizes.rows, paths, 2)
        run = kernel(name, given, kernels.workspace(sizes.rows, paths, 2, sizes.vocab, clock.device, block=block))

        def verify(
            target: Tensor, draft: Tensor, tokens: Tensor, given: Uniforms = given, run: Verify = run
        ) -> Verdict:
            given.draw()
            return run(target, draft, tokens)

        work = partial(audit, verify, laws, paths, sizes.rows, sizes.draws, broken)
        yield {"verifier": name, "control": broken} | attempted(work)


def environment(clock: Clock, bandwidth: float) -> dict[str, Any]:
    """Device, driver and versions."""
    packages = ("torch", "triton", "flashinfer-python", "vllm")
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    facts = clock.facts() | {"cuda": torch.version.cuda, "python": platform.python_version()}
    return facts | found | {"copy_bandwidth_gb_per_s": bandwidth / 1000}


def line(record: dict[str, Any]) -> str:
    """One row of the table."""
    case = f"{record['verifier']:14}{record['what']:12}{record['B']:5}{record['K']:3}{record['L']:3}"
    if "error" in record:
        return f"{case}  {record['error']}"
    met = {True: "yes", False: "no"}.get(record.get("met"), "")
    differ = f"{record['differ']}/{record['compared']}" if "differ" in record else ""
    differ += " unsteady" if record.get("unsteady") else ""
    return f"{case}{record['us']:12.1f}{record['floor_us']:12.1f}{record['ratio']:10.2f}{met:>5}{differ:>8}".rstrip()


def law_line(record: dict[str, Any]) -> str:
    """What the audit of one verifier found."""
    name = record["verifier"] + (" (control)" if record["control"] else "")
    if "error" in record:
        return f"law of {name:20}{record['error']}"
    parts = [
        f"{kind}: {record[kind]['distance']:.2e}, threshold {record[kind]['threshold']:.2e}, "
        f"resolution {record[kind]['resolution']:.2e}"
        for kind in ("groups", "tokens")
    ]
    return (
        f"law of {name:20}{'passed' if record['passed'] else 'REJECTED'} at {record['draws']} draws; {'; '.join(parts)}"
    )


def ahead(records: list[dict[str, Any]]) -> str:
    """In how many cases the kernel is faster than every other implementation of its verifier that ran."""
    best: dict[tuple[Any, ...], dict[str, float]] = {}
    for record in records:
        if "us" in record and record["what"] != "launched":
            case = tuple(record[key] for key in ("verifier", "B", "K", "L"))
            best.setdefault(case, {})[record["what"]] = record["us"]
    raced = [times for times in best.values() if "kernel" in times and len(times) > 1]
    won = sum(times["kernel"] == min(times.values()) for times in raced)
    return f"the kernel is the fastest in {won} of {len(raced)} cases"


def sizes_of(options: argparse.Namespace) -> Sizes:
    """What the options ask for."""
    if options.smoke:
        return Sizes((1, 2), (1,), (1, 2), 300, 1, 1, 1 << 10, 4, 2)
    if options.quick:
        return Sizes((1, 8), (4,), (1, 4), options.vocab, 20, 256 << 20, 2 << 30, 10**5, 1024)
    return Sizes((1, 8, 64, 256), (4, 8), (1, 4), options.vocab, 100, 256 << 20, 2 << 30, options.draws, 1024)


def options_of() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=128256, help="V (default 128256)")
    parser.add_argument("--draws", type=int, default=10**7, help="fresh drafts per kernel (default 10 million)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="parts of the run (default all)")
    parser.add_argument("--block", type=int, default=4096, help="entries of a row per program (default 4096)")
    parser.add_argument("--quick", action="store_true", help="fewer cases, repeats and draws")
    parser.add_argument("--smoke", action="store_true", help="on the CPU by Triton's interpreter, tiny sizes")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file (default results/kernels.json; none with --quick, --smoke or part of the run)",
    )
    return parser.parse_args()


def main() -> None:
    """Compare the laws, measure every case, print one table, write the results."""
    options = options_of()
    if find_spec("triton") is None or not (options.smoke or torch.cuda.is_available()):
        print("benchmarks/kernels.py needs a CUDA device and triton; nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    clock: Clock = GpuClock()
    if options.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
        clock = CpuClock()
    sizes = sizes_of(options)
    partly = options.quick or options.smoke or set(options.only) != set(KINDS)
    output = options.output or (None if partly else RESULTS)
    bandwidth = copy_bandwidth(clock, sizes.copied)
    facts = environment(clock, bandwidth)
    laws: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []

    def add(to: list[dict[str, Any]], record: dict[str, Any], text: str) -> None:
        to.append(record)
        print(text, flush=True)
        if output is not None:
            found = {"environment": facts, "vocab": sizes.vocab, "block": options.block, "records": records}
            output.write_text(json.dumps(found | {"laws": laws}, indent=1))

    print(json.dumps(facts))
    for record in audit_laws(sizes, clock, options.block) if "laws" in options.only else ():
        add(laws, record, law_line(record))
    columns = f"{'us':>12}{'floor us':>12}{'ratio':>10}{'met':>5}{'differ':>8}"
    print(f"{'verifier':14}{'what':12}{'B':>5}{'K':>3}{'L':>3}{columns}")
    for record in measure_all(sizes, clock, bandwidth, set(options.only) - {"laws"}, options.block):
        add(records, record, line(record))
    print(ahead(records))
    if not options.smoke and any(record.get("passed", record["control"]) == record["control"] for record in laws):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
