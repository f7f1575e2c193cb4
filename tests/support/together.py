"""What two processes of a torchrun find out together, for test_multi_device.py; process 0 writes it as JSON.

    torchrun --standalone --nproc-per-node 2 -m tests.support.together FOLDER   # tiny models in FOLDER/target, draft

Each function is one question; the tests compare the answers with those of a single process.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from specbound import cli, shipped_pair
from specbound.runtime.decode import Generation, generate, loop
from specbound.runtime.lengths import ConfidenceLength
from specbound.runtime.models import Pair, load_pair
from specbound.runtime.processes import agreement, own
from tests.support.tiny_models import on_a_grid, replayed_law

PROMPTS = [[1, 0, 1], [1]]
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "block": {"do_sample": True, "top_k": 0, "length": 4},
    "two-level": {"do_sample": True, "top_k": 0, "verifier": "two-level", "paths": 3, "length": 4},
    "stateful": {"do_sample": True, "top_k": 0, "verifier": "spectr-gbv", "paths": 2, "length": 4},
    "adaptive": {"do_sample": True, "top_k": 0, "length": ConfidenceLength(0.4, maximum=6)},
    "beams": {"do_sample": True, "top_k": 0, "verifier": "mjsd", "beams": 3, "length": 4},
}
LAWS: dict[str, dict[str, Any]] = {
    "block": {"verifier": "block", "length": 2},
    "two-level": {"verifier": "two-level", "paths": 2, "length": 2},
}
NEW_TOKENS = 24
DECODE = ("decode", "--prompt", "def main(", "--prompt", "import os", "--prompt", "class A:", "--max-new-tokens", "16")
DECODE = (*DECODE, "--json", "--dtype", "float64")


def shipped(**places: Any) -> Pair:
    return load_pair(shipped_pair.TARGET, shipped_pair.DRAFT, dtype=torch.float64, **places)


def decoded(pair: Pair, name: str, seed: int, new_tokens: int = NEW_TOKENS) -> Generation:
    """The first two shipped prompts, of different lengths, as a batch."""
    texts = [entry["text"] for entry in shipped_pair.prompts()[:2]]
    pair.tokenizer.pad_token = pair.tokenizer.eos_token
    inputs = pair.tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    generator = torch.Generator().manual_seed(seed)
    return generate(pair.target, pair.draft, **inputs, **SETTINGS[name], generator=generator, max_new_tokens=new_tokens)


def described(output: Generation) -> dict[str, Any]:
    """Everything about an output but its times."""
    counts = {name: value for name, value in vars(output.statistics).items() if isinstance(value, Tensor)}
    return {"sequences": output.sequences.tolist()} | {name: count.tolist() for name, count in counts.items()}


def gathered(value: Any) -> list[Any]:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def outputs(places: dict[str, str], skew: float = 1.0) -> dict[str, list[Any]]:
    """Of every process, in every setting; each process comes with a seed of its own.

    Args:
        skew: process 1 sees all logits multiplied by this, as rounding or other hardware might change them.
    """
    pair = shipped(**places)
    if dist.get_rank() == 1:
        for model in (pair.target, pair.draft):
            model.get_output_embeddings().register_forward_hook(lambda module, inputs, logits: skew * logits)
    return {name: gathered(described(decoded(pair, name, seed=dist.get_rank()))) for name in SETTINGS}


def parts() -> list[Any]:
    """The shapes of a matrix as each process holds it, and the logits' bytes in each process."""
    pair = shipped(target_tp_plan="auto")
    with torch.no_grad():
        logits = pair.target(torch.arange(2, 40)[None]).logits
    layer = pair.target.model.layers[0]
    weights = (layer.mlp.gate_proj.weight, layer.self_attn.q_proj.weight)
    local = [getattr(weight, "to_local", lambda weight=weight: weight)().shape for weight in weights]
    return gathered([*map(list, local), logits.numpy().tobytes().hex()])


def tiny_pair(folder: Path, **places: str) -> Pair:
    pair = load_pair(folder / "target", folder / "draft", dtype=torch.float64, **places)
    for model in (pair.target, pair.draft):
        model.get_output_embeddings().register_forward_hook(on_a_grid)
    return pair


def laws(pair: Pair) -> dict[str, Any]:
    """Exact laws of the loop, by replay, as lists of (block, probability)."""
    found = {name: replayed_law(pair.target, pair.draft, PROMPTS, 3, **settings) for name, settings in LAWS.items()}
    return {name: [sorted(law.items()) for law in of_prompts] for name, of_prompts in found.items()}


def spoiled(folder: Path) -> Pair:
    """Broken twin: process 1 holds another part of the target than it should."""
    pair = tiny_pair(folder, target_tp_plan="auto")
    if dist.get_rank() == 1:
        with torch.no_grad():
            pair.target.model.layers[0].self_attn.v_proj.weight.to_local().mul_(1.5)
    return pair


def unshared() -> list[Any]:
    """Broken twin: every process draws and decides for itself, with a seed of its own."""
    pair, kept = shipped(target_tp_plan="auto"), loop.agreement
    loop.agreement = lambda *models: own
    try:
        return gathered(decoded(pair, "block", seed=dist.get_rank(), new_tokens=1).sequences.tolist())
    finally:
        loop.agreement = kept


def refusals() -> dict[str, list[str]]:
    """What each process says of requests that differ, and of a model cut over too few processes."""

    def refusal(call: Any) -> str:
        try:
            call()
        except ValueError as error:
            return str(error)
        return "nothing"

    pair = shipped(target_tp_plan="auto")
    other = refusal(lambda: decoded(pair, "greedy", 0, new_tokens=8 + dist.get_rank()))
    few = refusal(lambda: agreement(SimpleNamespace(tp_size=3)))
    return {"request": gathered(other), "few": gathered(few)}


def command(*arguments: str) -> list[Any]:
    """What the command prints in each process."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        cli.main(arguments)
    return gathered(page.getvalue())


def failing() -> None:
    """Process 1 raises after the first call."""

    def fail(*_: object) -> None:
        if dist.get_rank() == 1:
            raise RuntimeError("process 1 fails")

    pair = shipped(target_tp_plan="auto")
    print("loaded", flush=True)
    generate(pair.target, pair.draft, torch.tensor([[2, 3]]), on_call=fail, max_new_tokens=50)
    print("decoded", flush=True)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found = {
        "target cut": outputs({"target_tp_plan": "auto"}),
        "both cut, skewed": outputs({"target_tp_plan": "auto", "draft_tp_plan": "auto"}, skew=0.5),
        "parts": parts(),
        "laws": laws(tiny_pair(folder, target_tp_plan="auto")),
        "laws, both cut": laws(tiny_pair(folder, target_tp_plan="auto", draft_tp_plan="auto")),
        "laws, spoiled": laws(spoiled(folder)),
        "unshared": unshared(),
        "refusals": refusals(),
        "command": command(*DECODE),
        "command, cut": command(*DECODE, "--target-tp-plan", "auto"),
        "bench": command("bench", "--count", "2", "--lengths", "2", "--paths", "1", "--new-tokens", "8"),
    }
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    failing() if sys.argv[1] == "failing" else main(Path(sys.argv[1]))
