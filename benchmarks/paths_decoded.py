"""Verifiers of several paths in decoding, on the shipped pair: tokens per call beside theory, and time per verdict.

    python -m benchmarks.paths_decoded        # some twenty minutes of one core; goes on where it was stopped

All prompts are decoded as one batch, by all verifiers in random order from one seed, then from the next seed; a prompt
and a seed are a cluster. Calls that begin within a number of tokens behind the prompt count, all with full drafts.
Block efficiency is kept tokens + 1 per call, over all clusters; intervals are 95 % (Student) of the ratio of sums over
clusters, and the paired differences to `block` (one path) and `two-level` are of the same clusters.

- "decoded": the whole vocabulary. Milliseconds are CPU time of one thread for each request of the batch: the median
  over verdicts, and the mean over whole calls.
- "solved": top-k sampling with small k. At every call that counts, both models' prefix tree is built behind the call's
  context and the verifier's expected acceptance solved exactly (closed forms of theory in float64; `traversal` by
  replaying its code where that is small). What remains random given the contexts are drafts and coins, so the measured
  mean must lie within the 99.9 % interval around the mean of the exact values: z sqrt(sum of exact variances) / calls.

Results go to benchmarks/results/paths_decoded.json, after every setting.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import transformers
from scipy import stats
from torch import Tensor

from benchmarks.decode import machine
from specbound import shipped_pair
from specbound.proofs_checks.laws.law import exact_law
from specbound.proofs_checks.laws.model_trees import trees_along
from specbound.proofs_checks.laws.prediction import agreement
from specbound.runtime.decode import generate
from specbound.runtime.models import Pair, load_pair
from specbound.runtime.registry import Verifier, get
from specbound.runtime.verdict import Batch, Verdict
from specbound.theory.known_values import known_value
from specbound.theory.prefix_tree import PrefixTree

RESULTS = Path(__file__).parent / "results" / "paths_decoded.json"
VERIFIERS = ("block", "specinfer", "kseq", "traversal", "gbv", "two-level", "key-race", "score-race")
BASELINES = {"over_block": "block", "over_two_level": "two-level"}
PATHS = (2, 4, 8)
MOST_REPLAYED = 300  # K-tuples of drafts


@dataclass(frozen=True)
class Setting:
    """What all verifiers share: sampling (top_k = 0: the whole vocabulary), L and K, seeds, and where calls count."""

    temperature: float
    top_k: int
    length: int
    paths: int
    seeds: int
    tokens: int


ENOUGH = {(4, 2): 16, (4, 4): 16, (4, 8): 16, (8, 2): 20, (8, 4): 20, (8, 8): 24}  # tokens, for 200 calls
DECODED = [Setting(t, 0, *shape, seeds=2, tokens=tokens) for t in (0.6, 1.0) for shape, tokens in ENOUGH.items()]
SOLVED = [Setting(t, 2, 4, k, seeds=1, tokens=6) for t in (0.6, 1.0) for k in PATHS]
SOLVED += [Setting(1.0, 2, 8, k, seeds=2, tokens=1) for k in PATHS]  # at the prompts only: large trees


@dataclass
class Runs:
    """What one verifier did in a setting.

    Attributes:
        contexts: of each cluster, the tokens before each call that counts.
        kept: of each cluster, drafted tokens kept by these calls.
        verdict_seconds: CPU time of every verdict per request; call_seconds: of whole calls, the mean of each batch.
    """

    contexts: list[list[Tensor]] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)
    verdict_seconds: list[float] = field(default_factory=list)
    call_seconds: list[float] = field(default_factory=list)


def timed(entry: Verifier, spent: list[float]) -> Verifier:
    """The same verifier, the CPU time of its verdicts noted."""

    def verify(batch: Batch, draws: Any) -> Verdict:
        began = time.process_time()
        verdict = entry.verify(batch, draws)
        spent.append(time.process_time() - began)
        return verdict

    return replace(entry, verify=verify)


def decode(pair: Pair, texts: list[str], name: str, setting: Setting, seed: int, runs: Runs) -> None:
    """Decode all texts as one batch and add what happened."""
    entry = get(name)
    inputs = pair.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    spent: list[float] = []
    began = time.process_time()
    output = generate(
        pair.target,
        pair.draft,
        **inputs,
        verifier=timed(entry, spent),
        paths=1 if entry.paths == "single" else setting.paths,
        length=setting.length,
        generator=torch.Generator().manual_seed(seed),
        do_sample=True,
        temperature=setting.temperature,
        top_k=setting.top_k,
        top_p=1.0,
        max_new_tokens=setting.tokens + setting.length,
        eos_token_id=None,
        pad_token_id=0,
    )
    found = output.statistics
    rows, calls = len(texts), len(found.start)
    runs.call_seconds.append((time.process_time() - began) / calls / rows)
    runs.verdict_seconds += [seconds / rows for seconds in spent]
    prompts = inputs["attention_mask"].sum(dim=1)
    for row, (prompt, text) in enumerate(zip(prompts.tolist(), output.sequences, strict=True)):
        counts = found.active[:, row] & (found.start[:, row] < prompt + setting.tokens)
        starts = found.start[counts, row].tolist()
        padding = inputs["input_ids"].shape[1] - prompt
        runs.contexts.append([text[padding : padding + start] for start in starts])
        runs.kept.append(found.accepted[counts, row].tolist())


def decode_all(pair: Pair, texts: list[str], setting: Setting) -> dict[str, Runs]:
    """Every seed with every verifier in turn."""
    runs, order = {name: Runs() for name in VERIFIERS}, random.Random(0)
    for name in VERIFIERS:  # warms up
        decode(pair, texts[:2], name, replace(setting, tokens=1), 0, Runs())
    for seed in range(setting.seeds):
        for name in order.sample(VERIFIERS, len(VERIFIERS)):
            decode(pair, texts, name, setting, seed, runs[name])
    return runs


def ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, np.ndarray]:
    """sums / counts over all clusters, and what each cluster adds to its error: [m] of mean 0."""
    value = float(sums.sum() / counts.sum())
    return value, (sums - value * counts) / counts.mean()


def half_width(errors: np.ndarray) -> float:
    """Half the 95 % interval of the mean of values [m], m clusters."""
    return float(stats.t.ppf(0.975, len(errors) - 1) * errors.std(ddof=1) / len(errors) ** 0.5)


def summaries(runs: dict[str, Runs]) -> dict[str, dict[str, Any]]:
    """Block efficiency, its differences to the baselines, and times."""
    found = {
        name: ratio(np.array([sum(kept) + len(kept) for kept in run.kept]), np.array([len(kept) for kept in run.kept]))
        for name, run in runs.items()
    }
    rows = {}
    for name, (value, errors) in found.items():
        row: dict[str, Any] = {"calls": sum(len(kept) for kept in runs[name].kept)}
        row["block_efficiency"] = {"mean": value, "half": half_width(errors)}
        for label, baseline in BASELINES.items():
            other, its_errors = found[baseline]
            row[label] = {"mean": value - other, "half": half_width(errors - its_errors)}
        row["verdict_ms"] = 1e3 * statistics.median(runs[name].verdict_seconds)
        row["call_ms"] = 1e3 * statistics.fmean(runs[name].call_seconds)
        rows[name] = row
    return rows


Solve = Callable[[Setting, Tensor, str], list[float] | None]


def solver(pair: Pair) -> Solve:
    """From setting, context and verifier to Pr(at least i drafted tokens kept), i = 0..L; None if it is not solved."""
    trees: dict[tuple[float, ...], PrefixTree] = {}

    def solve(setting: Setting, context: Tensor, name: str) -> list[float] | None:
        sampling = setting.length, setting.top_k, setting.temperature
        key = (*sampling, *context.tolist())
        if key not in trees:
            trees[key] = trees_along(pair.target, pair.draft, context, [len(context)], *sampling, bonus=False)[0]
        tree, closed_form = trees[key], get(name).closed_form
        if closed_form is not None:
            phi = known_value(closed_form, tree, setting.paths).phi
            return [float(phi[level].sum()) for level in tree.levels]
        drafts = int((tree.draft_joint[tree.leaves] > 0).sum())
        return list(exact_law(name, tree, setting.paths).accepted) if drafts**setting.paths <= MOST_REPLAYED else None

    return solve


def predictions(solve: Solve, runs: dict[str, Runs], setting: Setting) -> dict[str, dict[str, Any]]:
    """Measured against exact at every call that counts, by verifier; what cannot be solved is left out."""
    found = {}
    for name, run in runs.items():
        contexts = [context for cluster in run.contexts for context in cluster]
        profiles = [profile for context in contexts if (profile := solve(setting, context, name)) is not None]
        if len(profiles) == len(contexts):
            result = agreement([kept for cluster in run.kept for kept in cluster], profiles)
            found[name] = {"predicted": result.predicted, "within": result.half_width, "agrees": result.agrees}
    return found


def measured(pair: Pair, solve: Solve, texts: list[str], setting: Setting) -> Iterator[dict[str, Any]]:
    """The rows of one setting."""
    runs = decode_all(pair, texts, setting)
    exact = predictions(solve, runs, setting) if setting.top_k else {}
    for name, row in summaries(runs).items():
        yield asdict(setting) | {"verifier": name} | row | exact.get(name, {})


def shown(row: dict[str, Any]) -> str:
    """One line for the screen."""
    own, over = row["block_efficiency"], row["over_two_level"]
    line = f"{row['verifier']:11} {row['calls']:4} calls  {own['mean']:.3f} +-{own['half']:.3f}"
    if "predicted" in row:
        line += (
            f"  exact {row['predicted']:.3f} +-{row['within']:.3f} {'agrees' if row['agrees'] else 'DOES NOT AGREE'}"
        )
    line += f"  over two-level {over['mean']:+.3f} +-{over['half']:.3f}"
    return f"{line}  verdict {row['verdict_ms']:.2f} ms, call {row['call_ms']:.1f} ms"


@click.command()
@click.option("--prompts", default=24, show_default=True, help="How many of the shipped prompts.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS)
def main(prompts: int, out: Path) -> None:
    """Measure setting after setting; settings that the file has already are left alone."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    pair = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT)
    texts = [entry["text"] for entry in shipped_pair.prompts()[:prompts]]
    report: dict[str, Any] = {"machine": machine("cpu"), "prompts": len(texts), "decoded": [], "solved": []}
    if out.exists():
        stored = json.loads(out.read_text(encoding="utf-8"))
        report = stored if stored["prompts"] == len(texts) else report
    solve, began = solver(pair), time.process_time()
    for part, planned in (("decoded", DECODED), ("solved", SOLVED)):
        for number, setting in enumerate(planned, start=1):
            if any(asdict(setting).items() <= row.items() for row in report[part]):
                continue
            for row in measured(pair, solve, texts, setting):
                report[part].append(row)
                click.echo(shown(row))
            out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            spent = time.process_time() - began
            click.echo(f"{part}: {number} of {len(planned)} settings, {setting}; {spent:.0f} CPU seconds", err=True)


if __name__ == "__main__":
    main()
