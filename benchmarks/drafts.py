"""What drafts are worth: look-up against plain decoding, trees against independent paths at equal drafted nodes.

    python benchmarks/drafts.py look-up    prompt look-up and plain decoding in turn, on text that repeats itself
    python benchmarks/drafts.py trees      tokens per call of the shipped pair, tree by tree
    python benchmarks/drafts.py exact      the certified optimum and the verifiers' exact values, on small random trees

Each part writes its own section of results/drafts.json. Differences and ratios are paired: by turn, by prompt, by
instance. Nodes are counted as they are drafted: K paths of L tokens are K L nodes.
"""

from __future__ import annotations

import ast
import json
import math
import random
import statistics
import sysconfig
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from decode import Contestant, interval, machine, measure, ratio

from specbound import shipped_pair
from specbound.proofs_checks.laws.drafted_trees import tree_law
from specbound.proofs_checks.laws.law import exact_law
from specbound.runtime import tree_registry
from specbound.runtime.decode import generate
from specbound.runtime.drafting.given import PromptLookup
from specbound.runtime.drafting.spec import DraftSpec, read_drafts
from specbound.runtime.models import Pair, load_pair
from specbound.runtime.verifiers import default
from specbound.theory.drafted_trees import KINDS, Drafts, drafted_optimum, node_curve
from specbound.theory.prefix_tree import PrefixTree

RESULTS = Path(__file__).parent / "results" / "drafts.json"
LOOKED_UP = 8
TREES = {
    8: [
        ("iid:1", 8),
        ("iid:2", 4),
        ("iid:4", 2),
        ("stem:2,2", 5),
        ("without-replacement:2,1,1,1", 4),
        ("without-replacement:4,1", 2),
        ("top-and-sampled:2,1,1,1", 4),
        ("top:2,1,1,1", 4),
        ("dynamic:4,8", 4),
    ],
    16: [
        ("iid:2", 8),
        ("iid:4", 4),
        ("stem:4,3", 8),
        ("without-replacement:4,1,1,1", 4),
        ("without-replacement:2,1,1,1,1,1,1,1", 8),
        ("top-and-sampled:4,1,1,1", 4),
        ("top:4,1,1,1", 4),
        ("dynamic:6,16", 6),
    ],
}
SMALL = ("iid:2", "stem:1,3", "without-replacement:2,1", "top-and-sampled:2,1", "top:2,1")  # 4 nodes, 2 tokens deep
CLOSE_TO = 1e-6
VOCAB, LENGTH = 3, 2
BUDGETS = [2, 3, 4, 5, 6, 8]
WIDEST = 4


# ---------------------------------------------------------------------- prompt look-up


def repeating(pair: Pair, kind: str, count: int) -> list[str]:
    """Prompts of held-out files that ask for text which is largely there already.

    "edit": a function, then its first two lines again, to be written anew. "summary": the names that a class defines,
    one by one, then the class's list of names.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for name in shipped_pair.manifest()["held_out_files"]:
        source = (library / name).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if kind == "edit" and isinstance(node, ast.FunctionDef):
                text = ast.get_source_segment(source, node, padded=True) or ""
                again = "".join(text.splitlines(keepends=True)[:2])
                found.append(f"{text}\n\n{again}")
            if kind == "summary" and isinstance(node, ast.ClassDef):
                names = [part.name for part in node.body if isinstance(part, ast.FunctionDef)]
                lines = "".join(f"    def {part}(self):\n        ...\n\n" for part in names)
                if len(names) > 2:
                    found.append(f'class {node.name}:\n{lines}\n\n__all__ = ["{names[0]}", "{names[1]}", ')
    fitting = [text for text in found if 60 <= len(pair.tokenizer(text)["input_ids"]) <= 240]
    return random.Random(0).sample(sorted(set(fitting)), min(count, len(set(fitting))))


def look_up(pair: Pair, prompts: int, new_tokens: int) -> list[dict[str, Any]]:
    """Plain decoding and look-up in every turn, in random order; one turn a prompt."""
    order, found = random.Random(0), []
    for kind in ("edit", "summary"):
        texts = repeating(pair, kind, prompts)
        for temperature in (0.0, 0.6, 1.0):
            sampling: dict[str, Any] = {"do_sample": False}
            if temperature:
                sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            sampling |= {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}

            def plain(ids: Any, settings: dict[str, Any] = sampling) -> Any:
                return pair.target.generate(ids, **settings)

            def looked_up(ids: Any, settings: dict[str, Any] = sampling) -> Any:
                return generate(pair.target, PromptLookup(), ids, length=LOOKED_UP, **settings)

            both = [Contestant("plain", "plain", {}, plain), Contestant("look-up", "look-up", {}, looked_up)]
            for number, text in enumerate([texts[0], *texts]):
                ids = pair.tokenizer(text, return_tensors="pt").input_ids
                for contestant in order.sample(both, 2):
                    measure(contestant, ids, number, new_tokens)
                if number == 0:  # the first turn warms up
                    for contestant in both:
                        contestant.forget()
                click.echo(f"{kind}, temperature {temperature}, turn {number}", err=True)
            slow, fast = both
            found.append(
                {"text": kind, "temperature": temperature, "prompts": len(texts)}
                | {"speed_ratio": ratio(slow.wall, fast.wall), "interval": interval(slow.wall, fast.wall)}
                | {"processor_speed_ratio": ratio(slow.processor, fast.processor)}
                | {"processor_interval": interval(slow.processor, fast.processor)}
                | {"block_efficiency": _efficiency(fast.outputs)}
            )
    return found


def _efficiency(statistics_: list[Any]) -> float:
    calls = sum(one.calls for one in statistics_)
    return float(sum(one.block_efficiency * one.calls for one in statistics_) / calls)


# ---------------------------------------------------------------------- trees, measured


def trees(pair: Pair, seeds: int, new_tokens: int) -> list[dict[str, Any]]:
    """Tokens per call of every way to draft and its verifiers, on all shipped prompts; against the best of iid."""
    texts = [entry["text"] for entry in shipped_pair.prompts()]
    inputs = pair.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    sampling = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    found = []
    for nodes, ways in TREES.items():
        measured: dict[tuple[str, int, str], list[float]] = {}
        for text, length in ways:
            spec = read_drafts(text)
            draft = spec.bind(pair.target, pair.draft, length)
            for verifier in verifiers_of(spec, length):
                rows: list[float] = []
                for seed in range(seeds):
                    generator = torch.Generator().manual_seed(seed)
                    output = generate(
                        pair.target, draft, **inputs, verifier=verifier, paths=spec.paths, length=length,
                        generator=generator, max_new_tokens=new_tokens, **sampling,
                    )  # fmt: skip
                    statistics_ = output.statistics
                    counts = statistics_.active.sum(dim=0)
                    kept = ((statistics_.accepted + 1) * statistics_.active).sum(dim=0)
                    rows += (kept / counts).tolist()
                measured[text, length, verifier] = rows
                click.echo(f"{nodes} nodes: {text} L={length} {verifier}: {statistics.mean(rows):.3f}", err=True)
        paths = {key: rows for key, rows in measured.items() if key[0].startswith("iid")}
        best = max(paths, key=lambda key: statistics.mean(paths[key]))
        for (text, length, verifier), rows in measured.items():
            found.append(
                {"nodes": nodes, "drafts": text, "length": length, "verifier": verifier}
                | {"tokens_per_call": _mean(rows)}
                | {"against": best[0], "difference": _mean([a - b for a, b in zip(rows, paths[best], strict=True)])}
            )
    return found


def verifiers_of(spec: DraftSpec, length: int) -> list[str]:
    """The default for paths; for a tree every verifier that takes it, sampler match alone where all nodes are given."""
    if not spec.tree:
        return [default(spec.paths).name]
    drafter = spec.grow(length)
    if drafter.children == "given":
        return ["tree-match"]
    return [entry.name for entry in tree_registry.entries() if entry.takes(drafter) and entry.name != "tree-match"]


def _mean(values: list[float]) -> dict[str, float]:
    """The mean and half the width of its 95 % interval."""
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "half_width": half}


# ---------------------------------------------------------------------- exact


def exact(instances: int) -> dict[str, Any]:
    """Of small random trees: what each way to draft allows, what its verifiers keep, and the curve over nodes."""
    small = [PrefixTree.random(VOCAB, LENGTH, seed, 1.0) for seed in range(instances)]
    ways = []
    for text in SMALL:
        optima = [drafted_optimum(tree, Drafts.parse(text), tolerance=CLOSE_TO).value for tree in small]
        spec = read_drafts(text)
        kept: dict[str, float] = {}
        for name in verifiers_of(spec, LENGTH):
            laws = [
                tree_law(spec.grow(LENGTH), tree_registry.get(name).verify, tree)
                if spec.tree
                else exact_law(name, tree, spec.paths)
                for tree in small
            ]
            kept[name] = statistics.mean(law.acceptance_length for law in laws)
        ways.append({"drafts": text, "optimum": statistics.mean(optima), "kept": kept})
        click.echo(json.dumps(ways[-1]), err=True)
    curves: dict[str, list[float | None]] = {}
    for kind in KINDS:
        best: list[list[float]] = [[] for _ in BUDGETS]
        for tree in small:
            points = [(drafted(drafts, LENGTH), value) for _, value, drafts in node_curve(tree, kind, WIDEST, CLOSE_TO)]
            for found, budget in zip(best, BUDGETS, strict=True):
                found += [max([value for nodes, value in points if nodes <= budget], default=math.nan)]
        curves[kind] = [None if math.isnan(mean) else mean for mean in map(statistics.mean, best)]
        click.echo(f"{kind}: {curves[kind]}", err=True)
    return {
        "vocab": VOCAB,
        "length": LENGTH,
        "instances": instances,
        "ways": ways,
        "budgets": BUDGETS,
        "curves": curves,
    }


def drafted(drafts: Drafts, length: int) -> int:
    """Nodes drafted by this law, tokens drawn twice counted twice."""
    if drafts.kind == "iid":
        return drafts.sizes[0] * length
    if drafts.kind == "stem":
        stem, paths = drafts.sizes
        return stem + paths * (length - stem)
    return sum(math.prod(drafts.sizes[: depth + 1]) for depth in range(length))


# ---------------------------------------------------------------------- the command


@click.command()
@click.argument("part", type=click.Choice(["look-up", "trees", "exact"]))
@click.option("--prompts", default=12, show_default=True, help="Prompts of each kind, of look-up.")
@click.option("--seeds", default=2, show_default=True, help="Of trees.")
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--instances", default=12, show_default=True, help="Of exact.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(part: str, prompts: int, seeds: int, new_tokens: int, instances: int, out: Path) -> None:
    """Run one part and write it into the results."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    report = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    if part == "exact":
        report[part] = exact(instances)
    else:
        pair = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT)
        results = look_up(pair, prompts, new_tokens) if part == "look-up" else trees(pair, seeds, new_tokens)
        settings = {"new_tokens": new_tokens} | ({"seeds": seeds} if part == "trees" else {"length": LOOKED_UP})
        report[part] = {"machine": machine("cpu"), "settings": settings, "results": results}
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(report[part], indent=1))


if __name__ == "__main__":
    main()
