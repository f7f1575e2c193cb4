"""`specbound demo`: the main job on real input, from decoding to theory and back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
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
    from specbound.theory.prefix_tree import PrefixTree

QUICK = {"prompts": 2, "new_tokens": 48, "contexts": 1}
PATHS = (1, 2, 4)
MOST_TUPLES = 256
SHOWN, GATE = 0.95, 0.999


@dataclass
class Run:
    """One way of decoding all prompts.

    Attributes:
        verifier: "plain" or a verifier; paths: K.
        tokens, seconds: generated tokens and wall time over all prompts.
        texts: for each prompt its text [n], where its target calls with a full draft began, and how many drafted tokens
            each kept.
    """

    verifier: str
    paths: int = 1
    tokens: int = 0
    seconds: float = 0.0
    texts: list[tuple[torch.Tensor, list[int], list[int]]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.verifier if self.paths == 1 else f"{self.verifier} K={self.paths}"

    @property
    def kept(self) -> list[int]:
        """Drafted tokens kept by every call, text after text."""
        return [count for _, _, counts in self.texts for count in counts]


def _quick_defaults(context: click.Context, parameter: click.Parameter, quick: bool) -> None:
    """Let the sizes that are not given be those of the quick variant."""
    if quick:
        context.default_map = QUICK


@click.command(
    short_help="Decode, and compare with what theory says.",
    epilog="""\b
    Example:
      specbound demo --quick

    takes a quarter of a minute.""",
)
@click.option(
    "--quick",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_quick_defaults,
    help="Unless given otherwise: " + ", ".join(f"--{name.replace('_', '-')} {QUICK[name]}" for name in QUICK) + ".",
)
@click.option("--prompts", type=click.IntRange(min=1), default=8, show_default=True, help="Held-out prompts to decode.")
@click.option("--new-tokens", type=click.IntRange(min=8), default=96, show_default=True, help="Tokens per prompt.")
@click.option("--length", type=click.IntRange(1, 6), default=3, show_default=True, help="Draft length L.")
@click.option("--top-k", type=click.IntRange(1, 8), default=4, show_default=True, help="Top-k sampling of both models.")
@click.option("--temperature", type=Number(min=0, min_open=True), default=1.0, show_default=True)
@click.option(
    "--contexts", type=click.IntRange(min=1), default=2, show_default=True, help="Calls per verifier to replay."
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

    Plain decoding, token and block verification and the default for two and four paths are timed. From every context
    met in the decoding the prefix trees of both models under the same top-k sampling give, in closed form, how many
    tokens the call was to keep; at a sample of them the code itself is run through every random outcome. Exit code 1
    if a verifier is not lossless there, or keeps more or fewer tokens than theory allows; 3 if that is undecided.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from specbound.runtime.verifiers import default
    from specbound.shipped_pair import prompts as shipped_prompts

    texts = [entry["text"] for entry in shipped_prompts()]
    if prompts > len(texts):
        raise ValueError(f"--prompts is {prompts}; the pair ships {len(texts)}")
    pair = read_pair()
    settings = {"length": length, "top_k": top_k, "temperature": temperature, "new_tokens": new_tokens, "seed": seed}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=progress_console(), transient=True) as progress:
        runs = [Run("plain"), Run("token"), *(Run(default(paths).name, paths) for paths in PATHS)]
        _decode_all(pair, runs, texts[:prompts], settings, progress)
        checks = [_check(pair, run, contexts, settings, progress) for run in runs[1:] if run.kept]
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
        _decode(pair, Run(run.verifier, run.paths), texts[0], settings | {"new_tokens": 8})
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
    if run.verifier == "plain":
        torch.manual_seed(settings["seed"])
        sequences = pair.target.generate(**inputs, **sampling)
        run.seconds += time.perf_counter() - start
    else:
        chosen: dict[str, Any] = {"verifier": run.verifier, "paths": run.paths, "length": settings["length"]}
        generator = torch.Generator(pair.device).manual_seed(settings["seed"])
        output = generate(pair.target, pair.draft, **inputs, **sampling, **chosen, generator=generator)
        run.seconds += time.perf_counter() - start
        sequences, statistics = output.sequences, output.statistics
        full = statistics.drafted[:, 0] == settings["length"]
        run.texts.append((sequences[0], statistics.start[full, 0].tolist(), statistics.accepted[full, 0].tolist()))
    run.tokens += sequences.shape[1] - inputs["input_ids"].shape[1]


def _check(pair: Pair, run: Run, contexts: int, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """What theory says of every call of a run, and what the code does at some of them."""
    from specbound.proofs_checks.laws.model_trees import trees_along
    from specbound.proofs_checks.laws.prediction import agreement

    task = progress.add_task(f"prefix trees, {run.name}", total=len(run.kept))
    shape = (settings["length"], settings["top_k"], settings["temperature"])
    trees: list[PrefixTree] = []
    for text, starts, _ in run.texts:
        if starts:
            trees += trees_along(pair.target, pair.draft, text[: max(starts)], starts, *shape, bonus=False)
        progress.advance(task, len(starts))
    phis = _closed_form(run, trees)
    at_least = [[float(phi[level].sum()) for level in tree.levels] for tree, phi in zip(trees, phis, strict=True)]
    gate, shown = agreement(run.kept, at_least, GATE), agreement(run.kept, at_least, SHOWN)
    found = {
        "verifier": run.verifier,
        "paths": run.paths,
        "calls": gate.calls,
        "measured": gate.measured,
        "predicted": gate.predicted,
        "interval": shown.half_width,
        "half_width": gate.half_width,
        "one_path": {name: _mean(_closed_form(Run(name), trees)) for name in ("token", "block")},
    }
    replayed = _replay(pair, run, contexts, settings, progress)
    return found | replayed | {"agrees": gate.agrees and replayed["difference"] < 1e-6}


def _replay(pair: Pair, run: Run, contexts: int, settings: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the verifier's code through every random outcome at some calls' contexts, on trees small enough for that."""
    import numpy as np

    from specbound.proofs_checks.laws.judge import LOSSLESS_TOLERANCE, evidence, lossless, verdict
    from specbound.proofs_checks.laws.model_trees import from_models
    from specbound.theory.optima import certified_optimum

    places = [text[:start] for text, starts, _ in run.texts for start in starts]
    chosen = np.random.default_rng(settings["seed"]).choice(len(places), size=min(contexts, len(places)), replace=False)
    length, top_k = _replayable(settings["length"], settings["top_k"], run.paths)
    task = progress.add_task(f"replay, {run.name}", total=len(chosen))
    distances, differences, kept, best = [], [], [], []
    for index in chosen:
        tree = from_models(pair.target, pair.draft, places[index], length, top_k, settings["temperature"])
        found = evidence(run.verifier, tree, run.paths)
        distances.append(found.total_variation)
        kept.append(found.acceptance_length)
        differences.append(abs(float(_closed_form(run, [tree])[0][1:].sum()) - kept[-1]))
        best.append(certified_optimum(tree, run.paths).value)
        progress.advance(task)
    word = verdict(distances, [], LOSSLESS_TOLERANCE)
    return {
        "replayed": len(chosen),
        "replayed_length": length,
        "replayed_top_k": top_k,
        "difference": max(differences),
        "share_of_optimum": sum(kept) / sum(best) if any(best) else None,
        "total_variation": max(distances),
        "verdict": word,
        "lossless": lossless(word),
    }


def _replayable(length: int, top_k: int, paths: int) -> tuple[int, int]:
    """The largest (L, top-k), L first, whose K-tuples of drafts are few enough to go through."""
    for shorter in range(length, 0, -1):
        if top_k ** (shorter * paths) <= MOST_TUPLES:
            return shorter, top_k
    return 1, max(2, math.floor(MOST_TUPLES ** (1 / paths)))


def _closed_form(run: Run, trees: list[PrefixTree]) -> list[Any]:
    """phi [n] of the run's verifier on every tree."""
    from specbound.theory import score_race, single_path, token_level

    if run.paths > 1:
        return score_race.acceptances(trees, run.paths)
    closed = token_level.acceptance if run.verifier == "token" else single_path.acceptance
    return [closed(tree) for tree in trees]


def _mean(phis: list[Any]) -> float:
    """Tokens per call, the correction token counted."""
    return 1 + sum(float(phi[1:].sum()) for phi in phis) / len(phis)


def _report(runs: list[Run], checks: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    from specbound.proofs_checks.laws.prediction import mean_interval

    plain_speed = runs[0].tokens / runs[0].seconds
    decoding = []
    for run in runs:
        tokens_per_call = [kept + 1 for kept in run.kept]
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
        caption="tokens per target call, correction token counted; closed forms on both models' prefix trees at every "
        "call, +- 95 % of the mean; agree: within 99.9 %; replayed: the code, run through every random outcome, keeps "
        "what the closed form says and writes the target's law",
    )
    theory.add_column("")
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("target calls", lambda check: str(check["calls"])),
        ("measured", lambda check: f"{check['measured']:.3f}"),
        ("predicted", lambda check: f"{check['predicted']:.3f} +- {check['interval']:.3f}"),
        ("agree", lambda check: "yes" if check["agrees"] else "NO"),
        ("token would keep", lambda check: f"{check['one_path']['token']:.3f}"),
        ("block would keep", lambda check: f"{check['one_path']['block']:.3f}"),
        ("replayed", lambda check: f"{check['replayed']} calls, L = {check['replayed_length']}"),
        ("  total variation", lambda check: f"{check['total_variation']:.0e}"),
        ("  lossless", lambda check: "yes, exactly" if check["lossless"] else check["verdict"].upper()),
        ("  of the optimum", lambda check: _percent(check["share_of_optimum"])),
    ]
    for check in report["checks"]:
        name = check["verifier"] if check["paths"] == 1 else f"{check['verifier']} K={check['paths']}"
        theory.add_column(name, justify="right")
    for name, shown in rows:
        theory.add_row(name, *map(shown, report["checks"]))
    print_table(theory)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
