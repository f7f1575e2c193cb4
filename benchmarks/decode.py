"""Tokens per second of plain generation, transformers' assisted generation and specbound, side by side in one run.

    python benchmarks/decode.py                                        # the shipped pair on the CPU
    python benchmarks/decode.py --target NAME --draft NAME --device cuda
    python benchmarks/decode.py --batches 1,4,16 --seeds 3             # plain and block verification by batch size

Every prompt and seed is decoded by all contestants, in random order, before the next, so that what else the machine
does falls on all of them; a ratio is the median over prompts and seeds of the ratios within one such turn, with its
95 % interval. "Best" is the setting of largest median speed among those tried, for both sides alike. Time is wall
time; on the CPU the processor time of the process, which other work on the machine disturbs less, is recorded beside.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import Tensor

from specbound import shipped_pair
from specbound.runtime import registry
from specbound.runtime.decode import Generation, generate
from specbound.runtime.models import Pair, load_pair

RESULTS = Path(__file__).parent / "results" / "decode.json"
BATCHED_RESULTS = RESULTS.with_name("decode_batched.json")
LENGTHS = (3, 4, 5, 6, 8)
PARTS = ("prefill", "draft", "target", "verify", "overhead")


@dataclass
class Contestant:
    """One way to decode, and what it took: one entry per prompt and seed."""

    name: str
    group: str
    settings: dict[str, Any]
    run: Callable[[Any], Tensor | Generation]
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def forget(self) -> None:
        """Drop what was measured so far."""
        for found in (self.wall, self.processor, self.outputs):
            found.clear()


def contestants(
    pair: Pair, sampling: dict[str, Any], length: int, paths: int, verifiers: list[str]
) -> list[Contestant]:
    """Plain, assisted at several settings, the verifiers at one length and block at all lengths."""

    def assisted(tokens: int, schedule: str, threshold: float) -> Callable[[Tensor], Tensor]:
        def run(ids: Tensor) -> Tensor:
            config = pair.draft.generation_config
            config.num_assistant_tokens, config.num_assistant_tokens_schedule = tokens, schedule
            config.assistant_confidence_threshold = threshold
            return pair.target.generate(ids, assistant_model=pair.draft, **sampling)

        return run

    def ours(verifier: str, paths: int, length: int) -> Callable[[Tensor], Generation]:
        return lambda ids: generate(
            pair.target, pair.draft, ids, verifier=verifier, paths=paths, length=length, **sampling
        )

    found = [Contestant("plain", "plain", {}, lambda ids: pair.target.generate(ids, **sampling))]
    for tokens in LENGTHS:
        settings = {"length": tokens, "schedule": "constant", "threshold": 0.0}
        found.append(Contestant(f"assisted {tokens}", "assisted", settings, assisted(*settings.values())))
    for schedule, threshold in (("constant", 0.4), ("heuristic", 0.4), ("heuristic", 0.0)):
        settings = {"length": 20 if threshold else 5, "schedule": schedule, "threshold": threshold}
        name = f"assisted {schedule} {threshold}"
        found.append(Contestant(name, "assisted", settings, assisted(*settings.values())))
    for name in verifiers:
        count = 1 if registry.get(name).paths == "single" else paths
        settings = {"verifier": name, "paths": count, "length": length}
        found.append(Contestant(f"{name} K={count} L={length}", name, settings, ours(name, count, length)))
    for other in LENGTHS:
        if other != length:
            settings = {"verifier": "block", "paths": 1, "length": other}
            found.append(Contestant(f"block K=1 L={other}", "block", settings, ours("block", 1, other)))
    return found


def measure(contestant: Contestant, inputs: Any, seed: int, new_tokens: int) -> None:
    """Decode once; record seconds per token of a row."""
    torch.manual_seed(seed)
    synchronise()
    wall, processor = time.perf_counter(), time.process_time()
    output = contestant.run(inputs)
    synchronise()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    sequences = output.sequences if isinstance(output, Generation) else output
    prompt = inputs if isinstance(inputs, Tensor) else inputs["input_ids"]
    tokens = sequences.shape[1] - prompt.shape[1]
    if tokens != new_tokens:
        raise RuntimeError(f"{contestant.name} generated {tokens} tokens instead of {new_tokens}")
    contestant.wall.append(wall / tokens)
    contestant.processor.append(processor / tokens)
    if isinstance(output, Generation):
        contestant.outputs.append(output.statistics)


def batched(
    pair: Pair, texts: list[str], sampling: dict[str, Any], length: int, sizes: list[int], seeds: int
) -> list[dict[str, Any]]:
    """Plain generation and block verification of B prompts at a time; both in each turn, in random order.

    A turn takes the next B of the prompts, left-padded. Tokens count over all rows.
    """
    order, found = random.Random(0), []
    for size in sizes:
        turns = [[texts[(seed * size + row) % len(texts)] for row in range(size)] for seed in range(seeds)]
        plain = Contestant("plain", "plain", {}, lambda inputs: pair.target.generate(**inputs, **sampling))
        block = Contestant(
            "block",
            "block",
            {"length": length},
            lambda inputs: generate(pair.target, pair.draft, **inputs, verifier="block", length=length, **sampling),
        )
        for number, turn in enumerate([turns[0], *turns]):
            inputs = pair.tokenizer(
                turn, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
            ).to(pair.device)
            for contestant in order.sample([plain, block], 2):
                measure(contestant, inputs, number, sampling["max_new_tokens"])
            if number == 0:  # the first turn warms up
                plain.forget()
                block.forget()
            click.echo(f"batch of {size}, turn {number}", err=True)
        for contestant in (plain, block):
            entry = summary(contestant, {"plain": plain})
            for speed in ("tokens_per_second", "tokens_per_processor_second"):
                entry[speed] *= size
            found.append({"batch": size} | entry)
    return found


def synchronise() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(contestant: Contestant, rivals: dict[str, Contestant]) -> dict[str, Any]:
    """Medians, ratios of speed to each rival, block efficiency and the split of time."""
    entry: dict[str, Any] = {
        "name": contestant.name,
        "group": contestant.group,
        **contestant.settings,
        "tokens_per_second": statistics.median(1 / seconds for seconds in contestant.wall),
        "tokens_per_processor_second": statistics.median(1 / seconds for seconds in contestant.processor),
        "speed_ratio": {name: ratio(rival.wall, contestant.wall) for name, rival in rivals.items()},
        "speed_ratio_interval": {name: interval(rival.wall, contestant.wall) for name, rival in rivals.items()},
        "processor_speed_ratio": {name: ratio(rival.processor, contestant.processor) for name, rival in rivals.items()},
    }
    if contestant.outputs:
        calls = sum(output.calls for output in contestant.outputs)
        split = {part: sum(output.seconds[part] for output in contestant.outputs) for part in PARTS}
        entry["calls"] = calls
        entry["block_efficiency"] = sum(o.block_efficiency * o.calls for o in contestant.outputs) / calls
        entry["time_share"] = {part: seconds / sum(split.values()) for part, seconds in split.items()}
        entry["milliseconds_per_call"] = {part: 1e3 * seconds / calls for part, seconds in split.items()}
    return entry


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of how many times faster `fast` was, turn by turn."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def interval(slow: list[float], fast: list[float]) -> list[float]:
    """The 95 % interval of that median by order statistics: the number of turns below it is Binomial(n, 1/2)."""
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    turns, left_out, chance = len(ratios), 0, 0.5 ** len(ratios)
    while chance <= 0.025:
        left_out += 1
        chance += math.comb(turns, left_out) * 0.5**turns
    place = max(left_out - 1, 0)
    return [ratios[place], ratios[turns - 1 - place]]


def best(found: list[Contestant]) -> Contestant:
    """Largest median speed."""
    return min(found, key=lambda contestant: statistics.median(contestant.wall))


def machine(device: str) -> dict[str, Any]:
    """Where the figures come from."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@click.command()
@click.option("--target", default=None, help="Name or path; the shipped target if not given.")
@click.option("--draft", default=None, help="Name or path; the shipped draft if not given.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of torch on the CPU.")
@click.option("--prompts", default=8, show_default=True, help="How many of the shipped prompts.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--new-tokens", default=96, show_default=True)
@click.option("--length", default=5, show_default=True, help="L of the comparison at equal settings.")
@click.option("--paths", default=2, show_default=True, help="K of the many-path verifiers.")
@click.option("--verifiers", default=None, help="Names with commas between; every lossless one if not given.")
@click.option("--batches", default=None, help="Batch sizes with commas between: time plain and block at each, only.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="results/decode.json or decode_batched.json."
)
def main(
    target: str | None, draft: str | None, device: str, threads: int, prompts: int, seeds: int, new_tokens: int,
    length: int, paths: int, verifiers: str | None, batches: str | None, out: Path | None,
) -> None:  # fmt: skip
    """Run the comparison, print it and write it as JSON."""
    if length not in LENGTHS:
        raise click.BadParameter(f"--length is {length}; want one of {LENGTHS}")
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    pair = load_pair(target or shipped_pair.TARGET, draft or shipped_pair.DRAFT, device=device)
    texts = [entry["text"] for entry in shipped_prompts(prompts)]
    ids = [pair.tokenizer(text, return_tensors="pt").input_ids.to(device) for text in texts]
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    sampling |= {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}
    if batches is not None:
        found_batched = batched(pair, texts, sampling, length, [int(size) for size in batches.split(",")], seeds)
        settings = {"prompts": len(texts), "seeds": seeds, **sampling}
        write({"machine": machine(device), "settings": settings, "results": found_batched}, out or BATCHED_RESULTS)
        return
    known = [name for name in registry.names() if registry.get(name).lossless and name != "table"]  # solved for a tree
    found = contestants(pair, sampling, length, paths, verifiers.split(",") if verifiers else known)
    began, order = time.time(), random.Random(0)
    for contestant in found:
        contestant.run(ids[0])
    for seed in range(seeds):
        for number, prompt in enumerate(ids):
            for contestant in order.sample(found, len(found)):
                measure(contestant, prompt, 1000 * seed + number, new_tokens)
            click.echo(f"seed {seed}, prompt {number}: {time.time() - began:.0f} s", err=True)
    by_name = {contestant.name: contestant for contestant in found}
    rivals = {
        "plain": by_name["plain"],
        "assisted_equal": by_name[f"assisted {length}"],
        "assisted_best": best([contestant for contestant in found if contestant.group == "assisted"]),
    }
    ours = best([contestant for contestant in found if contestant.outputs])
    block = best([contestant for contestant in found if contestant.group == "block"])
    report = {
        "machine": machine(device),
        "settings": {"prompts": len(ids), "seeds": seeds, **sampling},
        "assisted_best": rivals["assisted_best"].name,
        "best_block": block.name,
        "best_ours": ours.name,
        "results": [summary(contestant, rivals) for contestant in found],
    }
    write(report, out or RESULTS)


def write(report: dict[str, Any], out: Path) -> None:
    """As JSON, and a line per result on the screen."""
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for entry in report["results"]:
        ratios = "  ".join(f"{name} x{value:.2f}" for name, value in entry["speed_ratio"].items())
        extra = f"  efficiency {entry['block_efficiency']:.2f}" if "block_efficiency" in entry else ""
        name = f"{entry['name']} B={entry['batch']}" if "batch" in entry else entry["name"]
        click.echo(f"{name:32} {entry['tokens_per_second']:7.1f} tokens/s  {ratios}{extra}")


def shipped_prompts(count: int) -> list[dict[str, str]]:
    """The first held-out prompts of the shipped pair."""
    return shipped_pair.prompts()[:count]


if __name__ == "__main__":
    main()
