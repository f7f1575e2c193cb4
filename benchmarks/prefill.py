"""Long prompts: seconds and memory until the first tokens, against plain generation.

    python benchmarks/prefill.py [--repeats 3]

A target of four layers and a draft of its first one, random weights, with full attention and with a window of 512
tokens. Each measurement is a process of its own, so that its peak of memory is its own; repeats are interleaved. Both
models must read the prompt, so `ratio` holds our processor time against that of plain generation with the target and
with the draft added up, each after a short warm-up (which builds what is built once). Memory is the peak of the
process above what it held before the prompt. Two new tokens are decoded; one token of the rows of a padded batch is
missing from one to the next. Results go to benchmarks/results/prefill.json.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from decode import machine
from transformers import MistralConfig, MistralForCausalLM

from specbound.runtime.decode import generate
from specbound.runtime.drafting.early_exit import early_exit

RESULTS = Path(__file__).parent / "results" / "prefill.json"
WAYS = ("plain target", "plain draft", "K=1", "K=2")
CASES = ((4096, 2, None), (4096, 2, 512), (16384, 1, 512), (16384, 1, None))
SAMPLING = {"do_sample": True, "top_k": 0, "max_new_tokens": 2, "eos_token_id": None, "pad_token_id": 0}


def measure(way: str, tokens: int, rows: int, window: int | None) -> dict[str, float]:
    """Processor seconds, and MiB at the peak above those before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=1000,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=window,
        max_position_embeddings=2 * tokens,
    )
    target = MistralForCausalLM(config).eval()
    draft = early_exit(target, 1)
    ids = torch.randint(1000, (rows, tokens))
    mask = (torch.arange(tokens) >= torch.arange(rows)[:, None]).long()

    def run(count: int) -> None:
        inputs = {"input_ids": ids[:, -count:], "attention_mask": mask[:, :count]}
        if way.startswith("plain"):
            (target if way == "plain target" else draft).generate(**inputs, **SAMPLING)
        else:
            generate(target, draft, **inputs, paths=int(way[2:]), length=2, **SAMPLING)

    run(1100)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    run(tokens)
    seconds = time.process_time() - began
    return {"seconds": seconds, "mebibytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


@click.command()
@click.option("--repeats", default=3, show_default=True)
@click.option("--case", nargs=4, default=None, hidden=True, help="Way, tokens, rows, window: of one process.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(repeats: int, case: tuple[str, str, str, str] | None, out: Path) -> None:
    """Measure every way and case, print and write them."""
    transformers.logging.set_verbosity_error()
    if case is not None:
        way, tokens, rows, window = case
        click.echo(json.dumps(measure(way, int(tokens), int(rows), int(window) or None)))
        return
    results = []
    for tokens, rows, window in CASES:
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(repeats):
            for way in WAYS:
                given = ["--case", way, *(str(value or 0) for value in (tokens, rows, window))]
                done = subprocess.run(
                    [sys.executable, __file__, *given], capture_output=True, text=True, check=True, env=os.environ
                )
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
        plain = [a["seconds"] + b["seconds"] for a, b in zip(found["plain target"], found["plain draft"], strict=True)]
        for way in WAYS:
            entry: dict[str, Any] = {"tokens": tokens, "rows": rows, "window": window, "way": way, "repeats": repeats}
            entry |= {key: statistics.median(run[key] for run in found[way]) for key in ("seconds", "mebibytes")}
            if not way.startswith("plain"):
                ratios = [run["seconds"] / sum_of_two for run, sum_of_two in zip(found[way], plain, strict=True)]
                entry |= {"ratio": statistics.median(ratios), "ratios": ratios}
            results.append(entry)
            ratio = f"  x{entry['ratio']:.2f} plain" if "ratio" in entry else ""
            click.echo(
                f"{tokens} tokens, {rows} rows, window {window}: {way:12} {entry['seconds']:.1f} s "
                f"{entry['mebibytes']:.0f} MiB{ratio}"
            )
        report = {"machine": machine("cpu"), "results": results}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
