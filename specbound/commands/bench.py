"""`specbound bench`: which verifier, how many paths and how long a draft are fastest for this pair on this machine?"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.decode import ADAPTIVE, encoded, read_length, read_prompts, shipped_head
from specbound.commands.deviation import measured_deviation
from specbound.commands.instance import print_json
from specbound.commands.options import SEED, Number
from specbound.commands.pair import pair_options, read_pair
from specbound.commands.terminal import print_table, progress_console

if TYPE_CHECKING:
    from torch import Tensor

    from specbound.runtime.decode import Generation
    from specbound.runtime.lengths import LengthPolicy
    from specbound.runtime.models import Pair


@dataclass
class Run:
    """One candidate decoded on every prompt.

    Attributes:
        verifier, paths, length: the candidate; verifier "plain" decodes without a draft.
        tokens, seconds: per prompt, prefill included.
        accepted: drafted tokens kept, for each target call.
        parts: seconds by part of the loop.
        verification: what verified, "kernels" or "tensor"; None for "plain".
        drafts: what is drafted, as for `decode --drafts`; None for paths of the draft model.
        adaptive: what stops a draft early, as for `decode --adaptive`; policy: the same as an object.
        nats: of the generated tokens under the target, per prompt.
        deviation: of a lossy verifier of one sampled path, on the first text.
    """

    verifier: str
    paths: int
    length: int
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    verification: str | None = None
    drafts: str | None = None
    adaptive: str | None = None
    policy: int | LengthPolicy | None = None
    nats: list[float] = field(default_factory=list)
    deviation: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        if self.adaptive is not None:
            return f"{self.verifier} {self.adaptive} L<={self.length}"
        if self.drafts is not None:
            return f"{self.verifier} {self.drafts} L={self.length}"
        return self.verifier if self.verifier == "plain" else f"{self.verifier} K={self.paths} L={self.length}"

    @property
    def speed(self) -> float:
        return sum(self.tokens) / sum(self.seconds)

    @property
    def perplexity(self) -> float:
        """Of all generated tokens under the target."""
        return math.exp(sum(self.nats) / sum(self.tokens))


@click.command(
    short_help="Which verifier, K and L are fastest here?",
    epilog="""\b
    Example:
      specbound bench --lengths 2,4,8 --paths 1,2 --new-tokens 64""",
)
@pair_options
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(dir_okay=False),
    help="Prompts, as for `decode`; held-out ones if not given.",
)
@click.option(
    "--count", type=click.IntRange(min=2), default=8, show_default=True, help="How many of the prompts to use."
)
@click.option(
    "--verifiers",
    metavar="NAME,...",
    help="Verifiers to try, or all; if not given, token and block, and the best for several paths.",
)
@click.option("--lengths", help="Draft lengths L to try; 2,4,8 if not given, for batches 1,2,4.")
@click.option("--paths", default="1,2,4", show_default=True, help="Numbers of paths K to try.")
@click.option(
    "--drafts", multiple=True, metavar="SPEC", help="Also what is drafted here, as for `decode`; may be repeated."
)
@click.option(
    "--adaptive",
    type=click.Choice(ADAPTIVE),
    multiple=True,
    help="Also drafts that stop early, as for `decode`; may be repeated.",
)
@click.option("--head", type=click.Path(dir_okay=False), help="Acceptance head of --adaptive head.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Prompts decoded together."
)
@click.option("--new-tokens", type=click.IntRange(min=8), default=96, show_default=True)
@click.option("--temperature", type=Number(min=0), default=1.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0 keeps all tokens.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    models: dict[str, Any],
    prompts_file: str | None,
    count: int,
    verifiers: str | None,
    lengths: str | None,
    paths: str,
    drafts: tuple[str, ...],
    adaptive: tuple[str, ...],
    head: str | None,
    batch_size: int,
    new_tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    as_json: bool,
) -> None:
    """Time plain decoding and every candidate on the same prompts, and recommend one.

    Candidates: token and block verification with one path, the default verifier with several, or those of --verifiers,
    at every length; drafts that stop early, with --adaptive; and whatever --drafts names, trees by the verifiers of
    trees among --verifiers, or the default for such a tree. All of them decode a prompt before the next. Beside each
    measured speed stands the one that theory expects from the acceptance statistics of the longest drafts, and the
    perplexity of the text under the target; beside a lossy verifier, how far it is from the target.
    """
    from rich.progress import track

    from specbound.runtime.processes import is_first, process_count
    from specbound.runtime.tuning import recommend
    from specbound.runtime.verifiers import get

    lengths = lengths or ("2,4,8" if batch_size == 1 else "1,2,4")
    sizes, counts = _numbers("--lengths", lengths), _numbers("--paths", paths)
    candidates = _candidates(verifiers, counts)
    if "head" in adaptive:
        head = head or shipped_head(models)
    elif head is not None:
        raise ValueError(f"--head is {head}; it belongs to --adaptive head")
    texts = _texts(prompts_file)[:count]
    if process_count() > 1 and models["target_tp_plan"] is models["draft_tp_plan"] is None:
        raise ValueError("bench times one copy of the models; under torchrun give --target-tp-plan or --draft-tp-plan")
    pair = read_pair(**models)
    sampling: dict[str, Any] = {"do_sample": False} if temperature == 0 else {"do_sample": True, "top_p": 1.0}
    if temperature:
        sampling |= {"temperature": temperature, "top_k": top_k}
    chosen = [Run(name, number, size) for name, number in candidates for size in sizes]
    stopped, drafted = _stopped(candidates, adaptive, head, sizes), _drafters(drafts, sizes, verifiers)
    runs = [Run("plain", 1, 0), *chosen, *stopped, *drafted]
    batches = _batches(texts, batch_size)
    turns = list(enumerate([batches[0], *batches]))
    for place, batch in track(turns, "decoding", console=progress_console(quiet=not is_first()), transient=True):
        for run in runs:
            _decode(pair, run, batch, 8 if place == 0 else new_tokens, sampling, seed + place, warm_up=place == 0)
    kept = {
        name: _kept(pair, Run(name, 1, max(sizes)), texts, new_tokens, sampling, seed)
        for name, number in candidates
        if number == 1 and get(name).kept is not None
    }
    found = recommend({run.name: run.tokens for run in runs}, {run.name: run.seconds for run in runs})
    best = next(run for run in runs if run.name == found.name)
    report = {
        "settings": sampling
        | {"new_tokens": new_tokens, "prompts": len(texts), "seed": seed, "batch_size": batch_size},
        "decoding": [_described(run, runs[0], kept) for run in runs],
        "recommendation": {"name": found.name, "confidence": found.confidence, "rivals": list(found.rivals)}
        | {"speedup": list(found.speedup)}
        | {name: getattr(best, name) for name in ("verifier", "drafts", "adaptive", "paths", "length")},
    }
    if not is_first():
        return
    if as_json:
        print_json(report)
    else:
        _print_table(report)


def _batches(texts: list[str], size: int) -> list[list[str]]:
    """The prompts in batches of `size`, at least two; taken again where they run out."""
    count = max(2, -(-len(texts) // size))
    return [[texts[(turn * size + row) % len(texts)] for row in range(size)] for turn in range(count)]


def _decode(
    pair: Pair, run: Run, texts: list[str], new_tokens: int, sampling: dict[str, Any], seed: int, warm_up: bool
) -> None:
    """Decode prompts together; what the warm-up measures is thrown away."""
    import torch

    from specbound.runtime.decode import perplexity
    from specbound.runtime.verifiers import get

    inputs = encoded(pair, texts)
    begin = time.perf_counter()
    if run.verifier == "plain":
        torch.manual_seed(seed)
        sequences = pair.target.generate(**inputs, **sampling, max_new_tokens=new_tokens)
        seconds, statistics = time.perf_counter() - begin, None
    else:
        output = _generate(pair, run, inputs, new_tokens, sampling, seed)
        seconds, sequences, statistics = time.perf_counter() - begin, output.sequences, output.statistics
    if warm_up:
        return
    prompt, mask = inputs["input_ids"].shape[1], inputs["attention_mask"]
    lengths = _until_end(sequences[:, prompt:], pair.target.generation_config.eos_token_id)
    run.tokens.append(int(lengths.sum()))
    run.seconds.append(seconds)
    values = perplexity(pair.target, sequences, prompt, lengths, mask)
    run.nats.append(float((lengths * values.log().to(lengths.device)).sum()))
    if statistics is not None:
        if not run.seconds[1:] and _lossy_samples(run, sampling):
            settings = (run.length, sampling["top_k"], sampling["temperature"])
            padding = prompt - int(mask[0].sum())
            text = sequences[0, padding : prompt + int(lengths[0])]
            run.deviation = measured_deviation(pair, get(run.verifier), text, prompt - padding, *settings)
        run.verification = statistics.verification
        run.accepted += statistics.accepted[statistics.active].tolist()
        for part, value in statistics.seconds.items():
            run.parts[part] = run.parts.get(part, 0.0) + value


def _until_end(generated: Tensor, end: int | list[int] | None) -> Tensor:
    """int64 [B]: tokens of each row of `generated` [B, n] up to its first end token, that one included."""
    import torch

    ends = torch.tensor([end] if isinstance(end, int) else end or [], device=generated.device)
    before = torch.isin(generated, ends).long().cumsum(dim=1) == 0
    return (before.sum(dim=1) + 1).clamp_max(generated.shape[1])


def _generate(
    pair: Pair, run: Run, inputs: Any, new_tokens: int, sampling: dict[str, Any], seed: int, on_call: Any = None
) -> Generation:
    import torch

    from specbound.runtime.decode import generate
    from specbound.runtime.drafting.spec import read_drafts
    from specbound.runtime.lengths import AcceptanceHeadLength

    generator = torch.Generator(pair.device).manual_seed(seed)
    length = run.length if run.policy is None else run.policy
    if isinstance(length, AcceptanceHeadLength):
        length.head.to(pair.device)
    chosen: dict[str, Any] = {"verifier": run.verifier, "paths": run.paths, "length": length, "on_call": on_call}
    settings: dict[str, Any] = {**inputs, **chosen, **sampling}
    draft = read_drafts(run.drafts).bind(pair.target, pair.draft, run.length) if run.drafts else pair.draft
    return generate(pair.target, draft, **settings, generator=generator, max_new_tokens=new_tokens)


def _drafters(specs: tuple[str, ...], lengths: list[int], verifiers: str | None) -> list[Run]:
    """One candidate for each way to draft and its verifiers, at every length where the way does not say it itself.

    Raises:
        ValueError: a verifier of trees is named, and no tree that it takes.
    """
    from specbound.runtime import tree_registry
    from specbound.runtime.drafting.spec import SHAPES, read_drafts
    from specbound.runtime.verifiers import default

    runs = []
    named = _of_trees(verifiers)
    for spec in map(read_drafts, specs):
        for size in [len(spec.sizes)] if spec.kind in SHAPES else lengths:
            names = [default(spec.paths).name]
            if spec.tree:
                drafter = spec.grow(size)
                taken = [name for name in named if tree_registry.get(name).takes(drafter)]
                names = taken or [tree_registry.default(drafter).name]
            runs += [Run(name, spec.paths, size, drafts=str(spec)) for name in names]
    unused = set(named) - {run.verifier for run in runs}
    if unused and verifiers != "all":
        wanted = tree_registry.get(min(unused)).requires
        raise ValueError(f"--verifiers has {min(unused)!r}, which wants {wanted}; give one with --drafts")
    return runs


def _of_trees(verifiers: str | None) -> list[str]:
    """The verifiers of trees among --verifiers."""
    from specbound.runtime import tree_registry

    chosen = [] if verifiers is None else [name.strip() for name in verifiers.split(",")]
    return [name for name in tree_registry.names() if verifiers == "all" or name in chosen]


def _kept(pair: Pair, run: Run, texts: list[str], new_tokens: int, sampling: dict[str, Any], seed: int) -> Tensor:
    """[C, L] kept probabilities of the calls with a full draft; an untimed pass over all prompts."""
    import torch

    from specbound.runtime.tuning import kept_probabilities

    found: list[Tensor] = []

    def on_call(batch: Any, verdict: Any, starts: list[int]) -> None:
        if batch.shape[2] == run.length:
            found.append(kept_probabilities(run.verifier, batch))

    for place, text in enumerate(texts, start=1):
        inputs = pair.tokenizer(text, return_tensors="pt", return_token_type_ids=False).to(pair.device)
        _generate(pair, run, inputs, new_tokens, sampling, seed + place, on_call)
    return torch.cat(found)


def _described(run: Run, plain: Run, kept: dict[str, Tensor]) -> dict[str, Any]:
    from specbound.runtime.tuning import predicted_speed

    entry: dict[str, Any] = {"method": run.name, "verifier": run.verifier, "paths": run.paths, "length": run.length}
    entry |= {"tokens_per_second": run.speed, "speedup": run.speed / plain.speed, "seconds": run.parts}
    entry |= {"verification": run.verification, "perplexity": run.perplexity}
    if run.adaptive is not None:
        entry["adaptive"] = run.adaptive
    if run.deviation is not None:
        entry["deviation"] = run.deviation
    if run.accepted:
        entry["block_efficiency"] = 1 + sum(run.accepted) / len(run.accepted)
    if run.accepted and run.drafts is None and run.policy is None and run.verifier in kept:
        per_call = sum(run.seconds) / len(run.accepted)
        entry["predicted_tokens_per_second"] = predicted_speed(kept[run.verifier], run.length, per_call)
    return entry


def _candidates(verifiers: str | None, counts: list[int]) -> list[tuple[str, int]]:
    """(verifier, K): those named, or those of known prediction for one path and the default for several.

    Raises:
        ValueError: a name that cannot be run, or only with another number of paths.
    """
    from specbound.runtime.verifiers import default, entries, get

    if verifiers is None:
        predictable = [entry.name for entry in entries() if entry.kept is not None]
        return [(name, k) for k in counts for name in (predictable if k == 1 else [default(k).name])]
    if verifiers == "all":
        chosen = [entry for entry in entries() if not entry.needs]
    else:
        trees = _of_trees(verifiers)
        chosen = [get(name) for name in map(str.strip, verifiers.split(",")) if name not in trees]
    for entry in chosen:
        if entry.needs:
            raise ValueError(f"--verifiers has {entry.name!r}, which needs {entry.needs}; leave it out")
        if entry.paths == "single" and 1 not in counts and verifiers != "all":
            raise ValueError(f"--verifiers has {entry.name!r}, which takes one path; give --paths 1 too")
    return [(entry.name, k) for k in counts for entry in chosen if k == 1 or entry.paths == "many"]


def _stopped(
    candidates: list[tuple[str, int]], adaptive: tuple[str, ...], head: str | None, lengths: list[int]
) -> list[Run]:
    """The candidates of one path whose drafts may stop early, for every rule and every largest length.

    Raises:
        ValueError: there is no candidate of one path without a state, or no acceptance head.
    """
    from specbound.runtime.verifiers import get

    names = [name for name, number in candidates if number == 1 and not get(name).stateful]
    if adaptive and not names:
        raise ValueError(f"--adaptive is {adaptive[0]}; it wants a candidate of one path, give --paths 1 too")
    return [
        Run(name, 1, size, adaptive=rule, policy=read_length(size, rule, None, head if rule == "head" else None))
        for rule in dict.fromkeys(adaptive)
        for name in names
        for size in lengths
    ]


def _lossy_samples(run: Run, sampling: dict[str, Any]) -> bool:
    """Whether the deviation of this run can be measured: a lossy verifier of one sampled path of fixed length."""
    from specbound.runtime.verifiers import get

    plain = sampling["do_sample"] and run.paths == 1 and run.drafts is None and run.policy is None
    return plain and not get(run.verifier).lossless


def _texts(prompts_file: str | None) -> list[str]:
    if prompts_file is not None:
        texts = read_prompts((), prompts_file)
    else:
        from specbound.shipped_pair import prompts

        texts = [entry["text"] for entry in prompts()]
    if len(texts) < 2:
        raise ValueError(f"--prompts {prompts_file}: {len(texts)} prompts; want at least 2 to say how sure a result is")
    return texts


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise ValueError(f"{option} is {text!r}; want positive integers separated by commas, e.g. 2,4,8")
    return sorted({int(part) for part in parts})


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="by theory: from the acceptance statistics of the longest drafts and the measured call time")
    table.add_column("candidate", no_wrap=True)
    columns = ["tokens/s", "x plain", "tokens per call", "tokens/s by theory", "verify + overhead", "perplexity"]
    lossy = any("deviation" in entry for entry in report["decoding"])
    for column in columns + ["deviation"] * lossy:
        table.add_column(column, justify="right")
    for entry in report["decoding"]:
        parts = entry["seconds"]
        share = (parts["verify"] + parts["overhead"]) / sum(parts.values()) if parts else None
        table.add_row(
            entry["method"],
            f"{entry['tokens_per_second']:.1f}",
            f"{entry['speedup']:.2f}",
            f"{entry['block_efficiency']:.3f}" if "block_efficiency" in entry else "1",
            f"{entry['predicted_tokens_per_second']:.1f}" if "predicted_tokens_per_second" in entry else "",
            "" if share is None else f"{100 * share:.0f} %",
            f"{entry['perplexity']:.1f}",
            *([f"{entry['deviation']['deviation']:.4f}" if "deviation" in entry else ""] * lossy),
        )
    print_table(table)
    console = Console(highlight=False)
    found = report["recommendation"]
    share = 100 * found["confidence"]
    console.print(
        f"[bold]{found['name']}[/] is the fastest here; it stays so in {share:.0f} % of resampled prompt sets."
    )
    if found["verifier"] == "plain":
        console.print("No draft pays here: decode with the target alone.")
    else:
        low, high = found["speedup"]
        console.print(f"It is {low:.2f} to {high:.2f} times as fast as plain decoding (95 % of resampled prompt sets).")
    if len(found["rivals"]) > 1:
        console.print(f"Also in the running: {', '.join(name for name in found['rivals'] if name != found['name'])}.")
