r"""Where a call's time goes: the models' passes, sampling, verification, bookkeeping; and how near the ideal that is.

    python benchmarks/overhead.py [--pair shipped|large] [--prompts 6] [--new-tokens 96]
    python benchmarks/overhead.py --pair large --dtype bfloat16 --settings 1x3,1x4,1x6,2x4,4x3,4x4 \
        --prompts 7 --new-tokens 48 --out benchmarks/results/overhead_bfloat16.json

Every prompt is decoded by plain generation and by each setting in random order before the next. Parts of a call:
    target, draft   inside the models' own forward
    sampling        logits to laws, and drawing the drafted tokens
    verify          the verifier
    bookkeeping     everything else
The ideal speed-up is what the pair's own passes allow: tokens per call x seconds of a plain pass, over the seconds of
the passes of a call. Plain generation spends time beside its passes too, so the measured speed-up may exceed it. All
times are processor time of the one thread, which other work on the machine disturbs less than wall time.
`over_one_path` is the speed over that of the fastest setting of one path, median and 95 % interval over the turns.
Results go to benchmarks/results/overhead_PAIR.json, after every turn.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from decode import interval, machine, ratio
from large_pair import VOCAB, parameters, truncated_pair

from specbound import shipped_pair
from specbound.runtime import kernels
from specbound.runtime.decode import generate
from specbound.runtime.draws import Draws
from specbound.runtime.models import load_pair
from specbound.runtime.sampling import Sampler

RESULTS = Path(__file__).parent / "results"
PARTS = ("target", "draft", "sampling", "verify", "bookkeeping")


class Clock:
    """Seconds by part; the innermost part that runs counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, int] = {}
        self.running: list[str] = []
        self.since = time.process_time()

    def switch(self) -> None:
        """Count what has passed since the last switch."""
        now = time.process_time()
        if self.running:
            self.seconds[self.running[-1]] = self.seconds.get(self.running[-1], 0.0) + now - self.since
        self.since = now

    def count(self, name: str, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What work(*args, **kwargs) gives, its time counted as that of a part."""
        self.switch()
        self.running.append(name)
        self.passes[name] = self.passes.get(name, 0) + 1
        try:
            return work(*args, **kwargs)
        finally:
            self.switch()
            self.running.pop()


@contextmanager
def timed(clock: Clock, target: Any, draft: Any) -> Iterator[None]:
    """Count the models' passes, laws, draws and verification while inside."""

    def wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if "verify" in clock.running:
                return function(*args, **kwargs)
            return clock.count(name, function, *args, **kwargs)

        return run

    places = [
        (target, "forward", "target"),
        (draft, "forward", "draft"),
        (Sampler, "_scores", "sampling"),
        (Sampler, "law", "sampling"),
        (Draws, "choose", "sampling"),
        (kernels, "verify", "verify"),
    ]
    kept = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, part), function in zip(places, kept, strict=True):
        setattr(owner, name, wrapped(function, part))
    try:
        yield
    finally:
        for (owner, name, _), function in zip(places, kept, strict=True):
            setattr(owner, name, function)


@click.command()
@click.option("--pair", "which", type=click.Choice(["shipped", "large"]), default="shipped", show_default=True)
@click.option("--prompts", default=6, show_default=True)
@click.option("--new-tokens", default=96, show_default=True)
@click.option("--batch", default=1, show_default=True, help="Prompts decoded side by side.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the large pair.",
)
@click.option("--settings", default="1x3,1x5,2x3,4x3", show_default=True, help="Paths x draft length.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="results/overhead_PAIR.json.")
def main(
    which: str, prompts: int, new_tokens: int, batch: int, dtype: str, settings: str, out: Path | None
) -> None:  # fmt: skip
    """Measure, print, and write as JSON."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    if which == "shipped":
        pair = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT, device="cpu")
        target, draft = pair.target, pair.draft
        texts = [entry["text"] for entry in shipped_pair.prompts()][: prompts * batch]
        coded = [pair.tokenizer(text, return_tensors="pt").input_ids for text in texts]
        width = min(tokens.shape[1] for tokens in coded)
        rows = [tokens[:, :width] for tokens in coded]
    else:
        target, draft = truncated_pair(dtype=getattr(torch, dtype))
        rows = list(torch.randint(VOCAB, (prompts * batch, 1, 32), generator=torch.Generator().manual_seed(0)))
    inputs = [torch.cat(rows[place * batch : (place + 1) * batch]) for place in range(len(rows) // batch)]
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": None}
    sampling |= {"pad_token_id": 0, "max_new_tokens": new_tokens}
    choices = [tuple(map(int, setting.split("x"))) for setting in settings.split(",")]

    def plain(ids: torch.Tensor) -> None:
        target.generate(ids, **sampling)

    def speculative(paths: int, length: int) -> Callable[[torch.Tensor], Any]:
        return lambda ids: generate(target, draft, ids, paths=paths, length=length, **sampling).statistics

    runs: dict[str, Callable[[torch.Tensor], Any]] = {"plain": plain}
    runs |= {f"K={paths} L={length}": speculative(paths, length) for paths, length in choices}
    clocks: dict[str, list[Clock]] = {name: [] for name in runs}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    calls: dict[str, list[Any]] = {name: [] for name in runs}
    order = random.Random(0)
    for number, ids in enumerate([inputs[0], *inputs]):
        for name in order.sample(list(runs), len(runs)):
            torch.manual_seed(number)
            clock, began = Clock(), time.process_time()
            with timed(clock, target, draft):
                found = clock.count("bookkeeping", runs[name], ids)
            if number:  # the first turn warms up
                taken[name].append(time.process_time() - began)
                clocks[name].append(clock)
                calls[name].append(found)
        click.echo(f"turn {number} of {len(inputs)}", err=True)
        if number:
            results = [summary(name, taken, clocks, calls, batch) for name in runs]
            settings_used = {
                "pair": which,
                "dtype": str(target.dtype),
                "batch": batch,
                "turns": number,
                "new_tokens": new_tokens,
            }
            report = {"machine": machine("cpu"), "parameters": parameters(target), **settings_used, "results": results}
            (out or RESULTS / f"overhead_{which}.json").write_text(
                json.dumps(report, indent=1) + "\n", encoding="utf-8"
            )
    for entry in results:
        shares = "  ".join(f"{part} {value:.2f}" for part, value in entry["milliseconds_per_call"].items())
        ours = sum(entry["share"][part] for part in ("sampling", "verify", "bookkeeping"))
        extra = (
            f"  {entry['tokens_per_call']:.2f} a call, ideal x{entry['ideal_speedup']:.2f}" if "calls" in entry else ""
        )
        click.echo(
            f"{entry['name']:10} x{entry['speedup']:.2f}{extra}  beside the passes {100 * ours:.1f} %  ms: {shares}"
        )


def summary(
    name: str, taken: dict[str, list[float]], clocks: dict[str, list[Clock]], calls: dict[str, list[Any]], batch: int
) -> dict[str, Any]:
    """What a setting took: parts of a call, speed over plain generation and over the fastest setting of one path."""
    seconds = {part: sum(clock.seconds.get(part, 0.0) for clock in clocks[name]) for part in PARTS}
    total, passes = sum(seconds.values()), sum(clock.passes["target"] for clock in clocks[name])
    entry: dict[str, Any] = {"name": name, "share": {part: value / total for part, value in seconds.items()}}
    entry["milliseconds_per_call"] = {part: 1e3 * value / passes for part, value in seconds.items()}
    entry |= {"speedup": ratio(taken["plain"], taken[name]), "speedup_interval": interval(taken["plain"], taken[name])}
    if name == "plain":
        return entry
    one = min((other for other in taken if other.startswith("K=1 ")), key=lambda other: statistics.median(taken[other]))
    entry["over_one_path"] = {"than": one, "median": ratio(taken[one], taken[name])}
    entry["over_one_path"]["interval"] = interval(taken[one], taken[name])
    tokens = sum(int(found.emitted.sum()) for found in calls[name]) / batch
    entry |= {"calls": passes, "tokens_per_call": tokens / passes}
    entry["block_efficiency"] = statistics.mean(found.block_efficiency for found in calls[name])
    plain = statistics.median(clock.seconds["target"] / clock.passes["target"] for clock in clocks["plain"])
    entry["ideal_speedup"] = plain * tokens / (seconds["target"] + seconds["draft"])
    return entry


if __name__ == "__main__":
    main()
