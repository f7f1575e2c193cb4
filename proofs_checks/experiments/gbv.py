"""Greedy multi-path block verification (arXiv:2602.16961): verifiers of K drafted paths, K = 1..8, at several lengths.

Decoded: block efficiency and wall time of every verifier by K. On prefix trees: both models' trees at prompts of the
tasks under top-k sampling, small enough to solve; the exact value of every verifier that has one and the certified
optimum, beside single calls of the runtime's code from the very same contexts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from specbound.runtime.decode import generate
from specbound.runtime.registry import get, names, of_closed_form
from specbound.theory.known_values import known_values
from specbound.theory.optima import certified_optimum

from ..laws.model_trees import from_models
from .decoding import Mean, Method, Temperatures, decode_jobs, draft_at, groups, mean, paired, temperatures, value_of
from .experiment import Experiment, Job, Record, Settings, Table, Workplace, choose
from .tasks import Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_PATH = "block"
MANY_PATHS = ("gbv", "score-race", "two-level", "key-race", "traversal", "specinfer", "kseq", "naive")
TOP_K, DEPTH, TOLERANCE = 3, 2, 1e-4


def verifiers() -> list[str]:
    """Those of the experiment that are registered."""
    return [name for name in MANY_PATHS if name in names()]


def jobs(settings: Settings) -> list[Job]:
    """The trees, then plain decoding and every verifier at every L and K."""
    lengths = choose(settings.lengths, settings.quick, (4,), (4, 8))
    counts = choose(settings.paths, settings.quick, (1, 4), range(1, 9))
    heats = temperatures(settings, (1.0,))
    methods = [Method("plain", "plain")]
    for length in lengths:
        methods += [Method(f"block K=1 L={length}", ONE_PATH, length=length)]
        methods += [
            Method(f"{name} K={k} L={length}", name, k, length) for name in verifiers() for k in counts if k > 1
        ]
    first = [prompt for prompt in settings.prompts if prompt.number == 0][: 2 if settings.quick else None]
    trees = [
        tree_job(p, k, heat, 12 if settings.quick else 48) for heat in heats for p in first for k in counts if k <= 4
    ]
    return [*trees, *decode_jobs(settings, methods, heats, kind="decoded")]


def tree_job(prompt: Prompt, paths: int, heat: Temperatures, calls: int) -> Job:
    """Exact values on the tree at the prompt's end, and the mean of single calls from there."""

    def run(place: Workplace) -> Record:
        pair = place.pair
        ids = pair.tokenizer(prompt.text, return_tensors="pt", return_token_type_ids=False).input_ids.to(pair.device)
        with draft_at(pair, heat):
            tree = from_models(pair.target, pair.draft, ids[0], DEPTH, TOP_K, heat.target)
            exact = {of_closed_form(known.name).name: known.value for known in known_values(tree, paths)}
            optimum = certified_optimum(tree, paths, "lossless", TOLERANCE)
            chosen = [name for name in (ONE_PATH, *verifiers()) if paths == 1 or get(name).paths == "many"]
            measured = {}
            for name in chosen:
                kept = [_one_call(place, ids, name, paths, heat.target, seed) for seed in range(calls)]
                found = mean(kept)
                measured[name] = [found.mean, found.half_width]
        about = {"kind": "tree", "task": prompt.task, "paths": paths, "temperature": heat.label, "nodes": tree.size}
        about |= {"calls": calls, "optimum": optimum.value, "bound": optimum.bound}
        return about | {"exact": {name: value for name, value in exact.items() if name in chosen}, "measured": measured}

    return Job(f"tree/{prompt.task}/{prompt.number}/{heat.label}/{paths}/{calls}", run)


def _one_call(place: Workplace, ids: torch.Tensor, name: str, paths: int, temperature: float, seed: int) -> int:
    """Drafted tokens kept by one call from the context, sampled from the tree's laws."""
    output = generate(
        place.pair.target,
        place.pair.draft,
        ids,
        verifier=name,
        paths=paths,
        length=DEPTH,
        generator=torch.Generator(place.pair.device).manual_seed(seed),
        do_sample=True,
        temperature=temperature,
        top_k=TOP_K,
        top_p=1.0,
        max_new_tokens=DEPTH + 1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return int(output.statistics.accepted[0, 0])


def tables(found: list[Record]) -> list[Table]:
    """Decoded: a row a temperature and method. Trees: a row a verifier and K."""
    decoded = [record for record in found if record["kind"] == "decoded"]
    rows: list[tuple[object, ...]] = []
    for (heat,), part in groups(decoded, "temperature").items():
        for (method,), own in groups(part, "method").items():
            base = f"block K=1 {str(method).rpartition(' ')[2]}"
            rows.append(
                (
                    heat,
                    method,
                    str(mean(value_of(record, "block_efficiency") for record in own)),
                    str(paired(part, method, base, "block_efficiency")) if method != "plain" else "",
                    f"{mean(value_of(record, 'tokens_per_second') for record in own).mean:.1f}",
                    f"{1e3 * sum(r.get('verify_seconds', 0.0) for r in own) / sum(r['calls'] for r in own):.2f}",
                )
            )
    names_of_rows = ("temperature", "method", "block efficiency", "to block, K = 1", "tokens/s", "verify ms a call")
    solved = []
    trees = [record for record in found if record["kind"] == "tree"]
    for (heat, paths), part in groups(trees, "temperature", "paths").items():
        best = sum(record["optimum"] for record in part) / len(part)
        for name in part[0]["measured"]:
            known = [record["exact"][name] for record in part if name in record["exact"]]
            exact = f"{sum(known) / len(known):.4f}" if len(known) == len(part) else ""
            measured = sum(record["measured"][name][0] for record in part) / len(part)
            half = sum(record["measured"][name][1] ** 2 for record in part) ** 0.5 / len(part)
            solved.append((heat, paths, name, exact, f"{measured:.3f} +- {half:.3f}", f"{best:.4f}"))
    columns = ("temperature", "K", "verifier", "exact", "measured", "lossless optimum")
    note = f"drafted tokens kept per call, means over prompts; L = {DEPTH}, top-k {TOP_K}, optimum to {TOLERANCE:g}"
    return [
        Table("Verifiers of K paths, decoded", names_of_rows, rows, "+- 95 % intervals over prompts and seeds, paired"),
        Table("The same contexts as prefix trees", columns, solved, note),
    ]


def draw(found: list[Record], figure: Figure) -> None:
    """Block efficiency against K, a picture a length."""
    decoded = [r for r in found if r["kind"] == "decoded" and r["method"] != "plain"]
    lengths = sorted({str(record["method"]).rpartition("=")[2] for record in decoded}, key=int)
    places = figure.subplots(1, len(lengths), squeeze=False)[0]
    for place, length in zip(places, lengths, strict=True):
        lines: dict[str, list[tuple[int, Mean]]] = {}
        for (method,), own in groups(decoded, "method").items():
            name, count, size = str(method).split(" ")
            if size == f"L={length}":
                kept = mean(value_of(record, "block_efficiency") for record in own)
                lines.setdefault(name, []).append((int(count[2:]), kept))
        for step, (name, points) in enumerate(lines.items()):
            several = sorted((count, kept.mean, kept.half_width) for count, kept in points if count > 1)
            if several:
                counts, means, half_widths = zip(*several, strict=True)
                place.errorbar([count + 0.05 * step for count in counts], means, half_widths, marker=".", label=name)
            else:
                place.axhline(points[0][1].mean, color="black", linestyle="--", label=f"{name}, one path")
        place.set_title(f"L = {length}")
        place.set_xlabel("drafted paths K")
        place.set_ylabel("tokens per target call, 95 % intervals")
    figure.legend(*places[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)


EXPERIMENT = Experiment(
    "gbv", "2602.16961", "verifiers of K drafted paths by K and L; exact values on trees of the same contexts",
    jobs, tables, draw,
)  # fmt: skip
