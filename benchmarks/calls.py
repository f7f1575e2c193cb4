"""Tokens per target call with a carry against block verification, on the same texts, L = 1..8.

    python -m benchmarks.calls                                  # the shipped pair on the CPU
    python -m benchmarks.calls --target NAME --draft NAME --device cuda

Two measurements, both paired:

- "given the text": texts are sampled from the target; of a verifier with one path the expected calls for a given text
  follow from both models' rows along it alone, without any coin (the sum of f_0 of `specbound.theory.many_calls`), so
  what is left is how texts differ.
- "decoded": every prompt and seed is decoded by all verifiers in random order before the next; tokens per call and
  time per call (on the CPU processor time, which other work on the machine disturbs less). The extra draft passes of a
  verifier that reads the draft's row after the whole path are part of its time, and counted.

Intervals are 95 % of the mean of the ratios to block verification, over texts or turns. Speed is tokens per call over
time per call: `tokens_per_second_ratio` takes the first ratio given the text, where the calls' luck is averaged out
exactly, and the second one as decoded; the two are independent, so that their relative half widths add in squares.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from torch import Tensor

from benchmarks.decode import machine, synchronise
from specbound import shipped_pair
from specbound.runtime.decode import Generation, generate
from specbound.runtime.models import Pair, load_pair
from specbound.runtime.verifiers import pooled, pooled_phases

RESULTS = Path(__file__).parent / "results" / "calls.json"
LENGTHS = tuple(range(1, 9))
GIVEN_TEXT = ("block", "pooled-fill", "pooled-young", "pooled")
DECODED = ("block", "pooled")


def calls_given(name: str, target: Tensor, draft: Tensor, tokens: Tensor, length: int) -> float:
    """Expected calls for the N tokens of a text, given that it is what came out.

    Args:
        name: one of `GIVEN_TEXT`.
        target, draft [N, V]: rows at each token of the text, float64; tokens [N].
    """
    calls = 0.0
    offers = pooled.Offers.none(1, length, torch.float64, target.device)
    phases = pooled_phases.Phases(
        torch.zeros(1, length, dtype=torch.float64), torch.zeros(1, length, dtype=torch.float64)
    )
    for p, q, token in zip(target[:, None], draft[:, None], tokens[:, None], strict=True):
        if name == "pooled":
            calls += float(offers.starting)
            offers = offers.behind(token, p, q)
            continue
        kept, offered = phases.with_start()
        calls += float(kept[0, 0])
        rule = {"block": block_shares, "pooled-fill": pooled_phases.fill, "pooled-young": pooled_phases.young}[name]
        phases = phases.behind(token, p, q, rule(kept, offered, p, q))
    return calls


def block_shares(kept: Tensor, offered: Tensor, target_row: Tensor, draft_row: Tensor) -> Tensor:
    """What block verification keeps in each phase, min(c_j q, p f_j): [1, L, V]."""
    return torch.minimum(offered[:, :-1, None] * draft_row[:, None], kept[:, :-1, None] * target_row[:, None])


def texts_of(pair: Pair, prompts: list[Tensor], seeds: int, sampling: dict[str, Any]) -> list[tuple[Tensor, ...]]:
    """(target rows, draft rows, tokens) along texts that the target continues from the prompts."""
    found = []
    for seed in range(seeds):
        for number, prompt in enumerate(prompts):
            torch.manual_seed(1000 * seed + number)
            text = pair.target.generate(prompt, **sampling)
            begin = prompt.shape[1]
            rows = [model(text).logits[0, begin - 1 : -1].double().softmax(-1) for model in (pair.target, pair.draft)]
            found.append((*rows, text[0, begin:]))
    return found


def ratios(values: list[float]) -> dict[str, float]:
    """Mean and the half width of its 95 % interval."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": statistics.fmean(values), "half_width": half}


def given_text(texts: list[tuple[Tensor, ...]], lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Tokens per call by L and verifier, and the ratio to block verification on the same text."""
    found = []
    for length in lengths:
        calls = {name: [calls_given(name, *text, length) for text in texts] for name in GIVEN_TEXT}
        total = sum(len(text[2]) for text in texts)
        for name, spent in calls.items():
            gain = [block / own for block, own in zip(calls["block"], spent, strict=True)]
            found.append({"length": length, "verifier": name, "tokens_per_call": total / sum(spent)} | ratios(gain))
        click.echo(f"given the text, L = {length}", err=True)
    return found


def decoded(
    pair: Pair, prompts: list[Tensor], turns: int, lengths: tuple[int, ...], sampling: dict[str, Any]
) -> list[dict[str, Any]]:
    """Tokens per call, time per call and extra draft passes by L and verifier, and both ratios to block."""
    found, order = [], random.Random(0)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for length in lengths:
        runs: dict[str, list[tuple[float, float, Generation]]] = {name: [] for name in DECODED}
        for name in DECODED:
            generate(pair.target, pair.draft, prompts[0], verifier=name, length=length, **sampling)
        for turn in range(turns):
            for name in order.sample(DECODED, len(DECODED)):
                torch.manual_seed(turn)
                synchronise()
                began = clock()
                prompt = prompts[turn % len(prompts)]
                output = generate(pair.target, pair.draft, prompt, verifier=name, length=length, **sampling)
                synchronise()
                seconds = clock() - began
                runs[name].append((output.statistics.block_efficiency, seconds / output.statistics.calls, output))
        for name, run in runs.items():
            calls = sum(output.statistics.calls for _, _, output in run)
            kept = sum(efficiency * output.statistics.calls for efficiency, _, output in run)
            pairs = list(zip(run, runs["block"], strict=True))
            entry = {"length": length, "verifier": name, "calls": calls, "tokens_per_call": kept / calls}
            entry["tokens_per_call_ratio"] = ratios([own[0] / block[0] for own, block in pairs])
            entry["milliseconds_per_call"] = 1e3 * statistics.median(seconds for _, seconds, _ in run)
            entry["time_per_call_ratio"] = ratios([own[1] / block[1] for own, block in pairs])
            entry["extra_draft_passes_per_call"] = sum(output.statistics.rows_after for _, _, output in run) / calls
            found.append(entry)
        click.echo(f"decoded, L = {length}", err=True)
    return found


def speed(entry: dict[str, Any], given: list[dict[str, Any]]) -> dict[str, float]:
    """Ratio of tokens per second to block verification: tokens per call given the text over time per call decoded."""
    keys = ("length", "verifier")
    (tokens,) = (row for row in given if all(row[key] == entry[key] for key in keys))
    call = entry["time_per_call_ratio"]
    mean = tokens["mean"] / call["mean"]
    return {
        "mean": mean,
        "half_width": mean * math.hypot(*(part["half_width"] / part["mean"] for part in (tokens, call))),
    }


@click.command()
@click.option("--target", default=None, help="Name or path; the shipped target if not given.")
@click.option("--draft", default=None, help="Name or path; the shipped draft if not given.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="Of torch on the CPU.")
@click.option("--prompts", default=16, show_default=True, help="How many of the shipped prompts.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--turns", default=16, show_default=True, help="Of the decoded part: prompts decoded by all verifiers.")
@click.option("--new-tokens", default=96, show_default=True)
@click.option("--temperature", default=1.0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
@torch.no_grad()
def main(
    target: str | None, draft: str | None, device: str, threads: int, prompts: int, seeds: int, turns: int,
    new_tokens: int, temperature: float, out: Path,
) -> None:  # fmt: skip
    """Measure, print and write as JSON."""
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    pair = load_pair(target or shipped_pair.TARGET, draft or shipped_pair.DRAFT, device=device)
    ids = [pair.tokenizer(entry["text"], return_tensors="pt").input_ids.to(device) for entry in shipped_pair.prompts()]
    ids = ids[:prompts]
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    sampling |= {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}
    texts = texts_of(pair, ids, seeds, sampling)
    report = {
        "machine": machine(device),
        "settings": {"prompts": len(ids), "seeds": seeds, "turns": turns, **sampling},
        "given_text": given_text(texts, LENGTHS),
    }
    report["decoded"] = decoded(pair, ids, turns, LENGTHS, sampling)
    for entry in report["decoded"]:
        entry["tokens_per_second_ratio"] = speed(entry, report["given_text"])
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
