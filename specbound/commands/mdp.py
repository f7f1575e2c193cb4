"""`specbound mdp`: the draft-length problem of two models at a prompt, for `specbound solve --mdp`."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.instance import OutputFile
from specbound.commands.options import Number
from specbound.commands.pair import pair_options, read_pair
from specbound.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

    from specbound.runtime.models import Pair

REPEATS = 9


@click.command(
    short_help="A draft-length problem from two models.",
    epilog="""\b
    Example:
      specbound mdp --prompt "def main(" --out problem.json
      specbound solve --mdp problem.json""",
)
@pair_options
@click.option("--prompt", required=True, help="The context.")
@click.option("--out", type=OutputFile((".json",)), required=True, help="The problem, JSON.")
@click.option("--depth", type=click.IntRange(1, 12), default=4, show_default=True, help="Tokens looked ahead.")
@click.option("--top-k", type=click.IntRange(1, 8), default=2, show_default=True, help="Top-k sampling of both models.")
@click.option("--temperature", type=Number(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--max-length", type=click.IntRange(min=1), default=4, show_default=True, help="Most drafted tokens.")
@click.option("--min-length", type=click.IntRange(min=0), default=0, show_default=True, help="Least drafted tokens.")
@click.option("--verifier", type=click.Choice(("token", "block")), default="block", show_default=True)
@click.option("--target-time", type=Number(min=0, min_open=True), help="Of a target pass; measured if not given.")
@click.option("--draft-time", type=Number(min=0), help="Of a drafted token, same unit; measured if not given.")
def mdp(
    models: dict[str, Any],
    prompt: str,
    out: str,
    depth: int,
    top_k: int,
    temperature: float,
    max_length: int,
    min_length: int,
    verifier: str,
    target_time: float | None,
    draft_time: float | None,
) -> None:
    """Write the draft-length problem that two models pose behind a prompt, small enough to be solved exactly.

    Its contexts are the prefixes that both models' prefix tree holds under top-k sampling; past its depth a new text
    begins at the prompt. Times are in milliseconds where they are measured.
    """
    from specbound.proofs_checks.laws.model_trees import from_models
    from specbound.proofs_checks.laws.stopping_models import stopping_instance

    if not prompt:
        raise ValueError("--prompt is empty; give some text")
    if (target_time is None) != (draft_time is None):
        raise ValueError("--target-time and --draft-time are in one unit; give both or neither")
    pair = read_pair(**models)
    context = pair.tokenizer(prompt, return_tensors="pt")["input_ids"][0]
    tree = from_models(pair.target, pair.draft, context, depth, top_k, temperature)
    if target_time is None or draft_time is None:
        target_time, draft_time = (_milliseconds(model, context, pair) for model in (pair.target, pair.draft))
    instance = stopping_instance(tree, target_time, draft_time, max_length, verifier, min_length)  # type: ignore[arg-type]
    write_text(out, instance.to_json() + "\n")
    click.echo(
        f"{out}: {instance.contexts} contexts, {instance.vocab} tokens; a target pass takes {target_time:.3g}, a "
        f"drafted token {draft_time:.3g}; specbound solve --mdp {out}"
    )


def _milliseconds(model: Any, context: Tensor, pair: Pair) -> float:
    """Median time of a pass over one more token."""
    import copy

    import torch

    ids = context[None].to(pair.device)
    with torch.inference_mode():
        cache, times = model(ids, use_cache=True).past_key_values, []
        for _ in range(REPEATS):
            past = copy.deepcopy(cache)
            began = time.perf_counter()
            model(ids[:, -1:], past_key_values=past).logits[0, -1].argmax().item()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)
