"""Verifiers of several paths on the shipped pair: tokens kept per call and time per verdict, on the same drafts.

    python benchmarks/paths.py [--contexts 208] [--repeats 4] [--temperatures 0.6 1.0]

Contexts are places in the held-out prompts with the 16 tokens before each. At each, 8 paths of 8 tokens are
drafted from the draft model at the whole vocabulary; a setting of K paths and L tokens takes the first K and L of them,
and every verifier judges the same drafts, `repeats` times with coins of its own. Block efficiency (kept tokens + 1) is
the mean over contexts with its 95 % interval, `over_two_level` the mean of the paired differences. Milliseconds are CPU
time of one thread per request, at batches of 26. Results go to benchmarks/results/paths.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbound import shipped_pair
from specbound.runtime.draws import Draws
from specbound.runtime.models import load_pair
from specbound.runtime.verdict import Batch
from specbound.runtime.verifiers import get

RESULTS = Path(__file__).parent / "results" / "paths.json"
VERIFIERS = ("block", "specinfer", "kseq", "traversal", "gbv", "key-race", "two-level", "score-race-2", "score-race")
TEMPERATURES, PATHS, LENGTHS = (0.6, 1.0), (2, 4, 8), (4, 8)
WINDOW, BATCH = 16, 26


def law(model: Any, tokens: Tensor, temperature: float, last: int) -> Tensor:
    """[N, last, V] laws of the tokens after each of the last positions of `tokens` [N, T]."""
    return torch.softmax(model(input_ids=tokens, logits_to_keep=last).logits.float() / temperature, dim=-1)


def sampled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """[N, 1] one token per row [N, V]."""
    return torch.multinomial(rows, 1, generator=generator)


def contexts(pair: Any, count: int) -> Tensor:
    """[count, WINDOW] tokens before places in the held-out prompts, the same number from each as far as it goes."""
    coded = [torch.as_tensor(pair.tokenizer(prompt["text"])["input_ids"]) for prompt in shipped_pair.prompts()]
    ends = range(WINDOW, max(len(tokens) for tokens in coded) + 1, 2)
    found = [tokens[end - WINDOW : end] for end in ends for tokens in coded if len(tokens) >= end]
    return torch.stack(found[:count])


def drafted(pair: Any, context: Tensor, temperature: float, generator: torch.Generator) -> Batch:
    """8 paths of 8 tokens after each context [B, T]."""
    paths, length = max(PATHS), max(LENGTHS)
    tokens, rows = context.repeat_interleave(paths, dim=0), []
    for _ in range(length):
        rows.append(law(pair.draft, tokens, temperature, 1)[:, -1])
        tokens = torch.cat([tokens, sampled(rows[-1], generator)], dim=1)
    target = law(pair.target, tokens, temperature, length + 1)
    shape = len(context), paths
    return Batch(
        tokens[:, -length:].view(*shape, length),
        torch.stack(rows, dim=1).view(*shape, length, -1),
        target.view(*shape, length + 1, -1),
    )


def part(batch: Batch, paths: int, length: int) -> Batch:
    """The first paths and tokens of a batch."""
    rows = (batch.draft_probs[:, :paths, :length], batch.target_probs[:, :paths, : length + 1])
    return Batch(batch.tokens[:, :paths, :length].contiguous(), *(row.contiguous() for row in rows))


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and half the width of its 95 % interval (normal approximation over contexts)."""
    return {"mean": float(values.mean()), "half": float(1.96 * values.std(ddof=1) / len(values) ** 0.5)}


@torch.inference_mode()
def main() -> None:
    """Draft once per temperature, judge every setting, print and write a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=208)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--temperatures", type=float, nargs="+", default=list(TEMPERATURES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT)
    settings = {"contexts": options.contexts, "repeats": options.repeats, "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    for temperature in options.temperatures:
        generator = torch.Generator().manual_seed(1)
        places = contexts(pair, options.contexts)
        batches = [drafted(pair, some, temperature, generator) for some in places.split(BATCH)]
        for paths in PATHS:
            for length in LENGTHS:
                kept: dict[str, np.ndarray] = {}
                spent = {}
                for name in VERIFIERS:
                    draws, found, start = Draws(torch.Generator().manual_seed(2)), [], 0.0
                    for batch in batches:
                        given = part(batch, 1 if get(name).paths == "single" else paths, length)
                        begin = time.process_time()
                        accepted = [get(name).verify(given, draws).accepted for _ in range(options.repeats)]
                        start += time.process_time() - begin
                        found.append(torch.stack(accepted, dim=1).double().mean(dim=1))
                    kept[name] = torch.cat(found).numpy() + 1
                    spent[name] = 1e3 * start / options.repeats / options.contexts
                for name in VERIFIERS:
                    row = {"temperature": temperature, "paths": paths, "length": length, "verifier": name}
                    row |= {"block_efficiency": interval(kept[name]), "milliseconds": spent[name]}
                    rows.append(row | {"over_two_level": interval(kept[name] - kept["two-level"])})
                    own, over = row["block_efficiency"], rows[-1]["over_two_level"]
                    print(
                        f"T={temperature} K={paths} L={length} {name:13} {own['mean']:.3f} +-{own['half']:.3f}  over "
                        f"two-level {over['mean']:+.3f} +-{over['half']:.3f}  {spent[name]:.2f} ms",
                        flush=True,
                    )
                record = settings | {"python": platform.python_version(), "rows": rows}
                RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
