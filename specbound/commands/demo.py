"""`specbound demo`: the main job on real input, from decoding to theory and back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.instance import print_json
from specbound.commands.options import SEED, Number
from specbound.commands.pair import read_pair
from specbound.commands.terminal import print_table, progress_console

if TYPE_CHECKING:
    import torch
    from rich.progress import Progress

    from specbound.runtime.models import Pair

VERIFIERS = ("token", "block")
QUICK = {"prompts": 2, "new_tokens": 48, "contexts": 6}


@dataclass
class Run:
    """One way of decoding all prompts.

    Attributes:
        name: "plain" or a verifier.
        tokens, seconds: generated tokens and wall time over all prompts.
        calls: for each target call with a full draft, the tokens before it [n] and the number of drafted tokens kept.
    """

    name: str
    tokens: int = 0
    seconds: float = 0.0
    calls: list[tuple[torch.Tensor, int]] = field(default_factory=list)


def _quick_defaults(context: click.Context, parameter: click.Parameter, quick: bool) -> None:
    """Let the sizes that are not given be those of the quick variant."""
    if quick:
        context.default_map = QUICK


@click.command(
    short_help="Decode, and compare with what theory says.",
    epilog="""\b
    Example:
      specbound demo --quick

    takes some ten seconds.""",
)
@click.option(
    "--quick",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_quick_defaults,
    help="Unless given otherwise: " + ", ".join(f"--{name.replace('_', '-')} {QUICK[name]}" for name in QUICK) + ".",
)
@click.option(
    "--prompts", type=click.IntRange(min=1), default=12, show_default=True, help="Held-out prompts to decode."
)
@click.option("--new-tokens", type=click.IntRange(min=8), default=96, show_default=True, help="Tokens per prompt.")
@click.option("--length", type=click.IntRange(1, 6), default=4, show_default=True, help="Draft length L.")
@click.option("--top-k", type=click.IntRange(1, 8), default=4, show_default=True, help="Top-k sampling of both models.")
@click.option("--temperature", type=Number(min=0, min_open=True), default=1.0, show_default=True)
@click.option(
    "--contexts", type=click.IntRange(min=1), default=60, show_default=True, help="Calls per verifier to solve exactly."
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(
    prompts: int,
    new_tokens: int,
    length: int,
    top_k: int,
    temperature: float,
    contexts: int,
    seed: int,
    as_json: bool,
) -> int:
    """Decode held-out prompts with the shipped pair, and compare with what theory says of these very calls.

    Plain decoding, token verification and block verification are timed; from contexts met in the decoding, prefix
    trees of both models under the same top-k sampling are solved exactly. Exit code 1 if a verifier is not lossless
    on one of these trees, or keeps more or fewer tokens than its exact law allows; 3 if that is undecided.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from specbound.shipped_pair import prompts as shipped_prompts

    texts = [entry["text"] for entry in shipped_prompts()]
    if prompts > len(texts):
        raise ValueError(f"--prompts is {prompts}; the pair ships {len(texts)}")
    pair = read_pair()
    settings = {"length": length, "top_k": top_k, "temperature": temperature, "new_tokens": new_tokens, "seed": seed}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress_console(), transient=True) as progress:
        runs = [Run(name) for name in ("plain", *VERIFIERS)]
        _decode_all(pair, runs, texts[:prompts], settings, progress)
        checks = [_check(pair, run, contexts, settings, progress) for run in runs[1:]]
    report = _report(runs, checks, settings | {"prompts": prompts})
    if as_json:
        print_json(report)
    else:
        _print_tables(report)
    if not all(entry["agrees"] and entry["lossless"] is not False for entry in report["checks"]):
        return 1
    return 3 if any(entry["lossless"] is None for entry in report["checks"]) else 0


def _decode_all(pair: Pair, runs: list[Run], texts: list[str], settings: dict[str, Any], progress: Progress) -> None:
    """Decode every prompt in every way, the ways in turn, so that a busy moment of the machine hits all alike."""
    task = progress.add_task("decoding", total=len(texts))
    for run in runs:
        _decode(pair, Run(run.name), texts[0], settings | {"new_tokens": 8})
    for number, text in enumerate(texts):
        for run in runs:
            _decode(pair, run, text, settings | {"seed": settings["seed"] + number})
        progress.advance(task)


def _decode(pair: Pair, run: Run, text: str, settings: dict[str, Any]) -> None:
    """Decode one prompt and add what happened to the run."""
    import torch

    from specbound.runtime.decode import generate

    inputs = pair.tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(pair.device)
    sampling = {"do_sample": True, "top_k": settings["top_k"], "top_p": 1.0, "temperature": settings["temperature"]}
    sampling |= {"max_new_tokens": settings["new_tokens"]}
    start = time.perf_counter()
    if run.name == "plain":
        torch.manual_seed(settings["seed"])
        sequences = pair.target.generate(**inputs, **sampling)
        run.seconds += time.perf_counter() - start
    else:
        chosen: dict[str, Any] = {**inputs, **sampling, "verifier": run.name, "length": settings["length"]}
        generator = torch.Generator(pair.device).manual_seed(settings["seed"])
        output = generate(pair.target, pair.draft, **chosen, generator=generator)
        run.seconds += time.perf_counter() - start
        sequences, statistics = output.sequences, output.statistics
        full = statistics.drafted[:, 0] == settings["length"]
        starts, accepted = statistics.start[full, 0].tolist(), statistics.accepted[full, 0].tolist()
        run.calls += [(sequences[0, :begin].cpu(), kept) for begin, kept in zip(starts, accepted, strict=True)]
    run.tokens += sequences.shape[1] - inputs["input_ids"].shape[1]


def _check(pair: Pair, run: Run, contexts: int, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Solve the prefix trees at some calls of a run exactly, and compare the run with its exact laws there."""
    import numpy as np

    from specbound.proofs_checks.laws.judge import combined, judge
    from specbound.proofs_checks.laws.law import exact_law
    from specbound.proofs_checks.laws.model_trees import from_models
    from specbound.proofs_checks.laws.prediction import agreement
    from specbound.theory import block_transport, single_path, token_level

    rng = np.random.default_rng(settings["seed"])
    chosen = rng.choice(len(run.calls), size=min(contexts, len(run.calls)), replace=False)
    task = progress.add_task(f"exact trees, {run.name}", total=len(chosen))
    laws, trees, optima = [], [], []
    for index in chosen:
        context = run.calls[index][0]
        tree = from_models(
            pair.target, pair.draft, context, settings["length"], settings["top_k"], settings["temperature"]
        )
        laws.append(exact_law(run.name, tree))
        trees.append((tree, 1))
        token, block = token_level.optimum(tree), single_path.optimum(tree)
        optima.append((token.value, block.value, block.bound, block_transport.optimum(tree).value))
        progress.advance(task)
    found = {name: judge(name, trees) for name in VERIFIERS}
    together = combined(list(found.values()))
    result = agreement([run.calls[index][1] for index in chosen], laws)
    names = ("token", "block", "lossless-optimum", "block-transport-optimum")
    return {
        "verifier": run.name,
        "contexts": result.calls,
        "measured": result.measured,
        "predicted": result.predicted,
        "half_width": result.half_width,
        "agrees": result.agrees,
        "theory": dict(zip(names, (1 + np.array(optima).mean(axis=0)).tolist(), strict=True)),
        "total_variation": {name: judged.total_variation for name, judged in found.items()},
        "verdict": together.verdict,
        "lossless": together.lossless,
    }


def _report(runs: list[Run], checks: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    from specbound.proofs_checks.laws.prediction import mean_interval

    plain_speed = runs[0].tokens / runs[0].seconds
    decoding = []
    for run in runs:
        tokens_per_call = [kept + 1 for _, kept in run.calls]
        speed = run.tokens / run.seconds
        entry = {"method": run.name, "tokens": run.tokens, "seconds": run.seconds, "tokens_per_second": speed}
        entry |= {"speedup": speed / plain_speed, "calls": len(tokens_per_call)}
        if tokens_per_call:
            entry["block_efficiency"] = sum(tokens_per_call) / len(tokens_per_call)
            entry["interval"] = list(mean_interval(tokens_per_call)) if len(tokens_per_call) > 1 else None
        decoding.append(entry)
    return {"settings": settings, "decoding": decoding, "checks": checks}


def _print_tables(report: dict[str, Any]) -> None:
    from rich.table import Table

    settings = report["settings"]
    speed = Table(
        title=f"{settings['prompts']} prompts x {settings['new_tokens']} tokens, top-k {settings['top_k']}, "
        f"temperature {settings['temperature']:g}, L = {settings['length']}",
        caption="target calls with a full draft; block efficiency: tokens per such call, with its 95 % interval",
    )
    speed.add_column("method")
    for column in ("tokens/s", "x plain", "target calls", "block efficiency"):
        speed.add_column(column, justify="right")
    for entry in report["decoding"]:
        efficiency = "1"
        if "block_efficiency" in entry:
            interval = "  [{:.3f}, {:.3f}]".format(*entry["interval"]) if entry["interval"] else ""
            efficiency = f"{entry['block_efficiency']:.3f}{interval}"
        calls = str(entry["calls"] or entry["tokens"])
        speed.add_row(
            entry["method"], f"{entry['tokens_per_second']:.1f}", f"{entry['speedup']:.2f}", calls, efficiency
        )
    print_table(speed)
    theory = Table(
        title="what theory says of these very calls",
        caption="tokens per target call, correction token counted; +- 99.9 % interval of the mean under the exact laws",
    )
    theory.add_column("")
    rows: list[list[str]] = [["calls solved exactly"], ["measured there"], ["predicted by the exact law"], ["agree"]]
    optima = {"token": "token verification", "block": "block verification"}
    optima |= {"lossless-optimum": "lossless optimum", "block-transport-optimum": "block-transport optimum"}
    rows += [[f"  {label}, exact"] for label in optima.values()] + [
        ["largest total variation to the target"],
        ["lossless"],
    ]
    for check in report["checks"]:
        theory.add_column(f"calls of {check['verifier']}", justify="right")
        values = [str(check["contexts"]), f"{check['measured']:.3f}"]
        values += [f"{check['predicted']:.3f} +- {check['half_width']:.3f}", "yes" if check["agrees"] else "NO"]
        values += [f"{check['theory'][name]:.3f}" for name in optima]
        distances = [distance for distance in check["total_variation"].values() if distance is not None]
        values += [f"{max(distances):.0e}" if distances else ""]
        values += ["yes, exactly" if check["lossless"] else check["verdict"].upper()]
        for row, value in zip(rows, values, strict=True):
            row.append(value)
    for row in rows:
        theory.add_row(*row)
    print_table(theory)
