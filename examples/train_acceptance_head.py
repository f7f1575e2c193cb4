"""Train the shipped pair's acceptance head: from the draft's hidden state to the chance that a token is accepted.

1. Windows of the text that the pair was trained on (the standard library's source) stand for what the target
   writes; SpecDec++ lets the target write them, which costs far more time and gives the same kind of text.
2. At every place of a window the draft draws a token; its soft label is min(1, target/draft). The draft reads the
   window with 85 % of the tokens replaced by those draws, and its last hidden states are the inputs
   (`specbound.runtime.acceptance_head.training_examples`).
3. The head learns the labels with a weighted loss, and is calibrated for the bias that the weight brings.

The result is a folder with head.safetensors and head.json (settings, and figures on continuations of the pair's
held-out prompts). SpecDec++, arXiv:2405.19715, Section 3.3.

    python examples/train_acceptance_head.py --out head
"""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specbound import shipped_pair
from specbound.runtime.acceptance_head import (
    CLASS_WEIGHT,
    TARGET_SHARE,
    prediction_figures,
    train_head,
    training_examples,
)

PROMPT_TOKENS = 32
CONTINUATION = 96
WINDOWS_AT_ONCE = 64


def training_windows(tokenizer: Any, count: int, length: int, seed: int) -> torch.Tensor:
    """[count, length] tokens from random places of the pair's training files."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [root / name for name in shipped_pair.manifest()["training_files"]]
    files = [path for path in files if path.exists()]
    if not files:
        raise click.UsageError(f"none of the pair's training files are in {root}; use a Python with its library source")
    pick = random.Random(seed)
    windows: list[list[int]] = []
    while len(windows) < count:
        text = pick.choice(files).read_text(encoding="utf-8", errors="replace")
        start = text.rfind("\n", 0, pick.randrange(len(text))) + 1
        tokens = tokenizer(text[start:], truncation=True, max_length=length)["input_ids"]
        if len(tokens) == length:
            windows.append(tokens)
    return torch.tensor(windows)


def held_out_windows(target: Any, tokenizer: Any) -> torch.Tensor:
    """What the target writes at temperature 1 after the first PROMPT_TOKENS tokens of the pair's prompts."""
    tokens = [tokenizer(prompt["text"])["input_ids"] for prompt in shipped_pair.prompts()]
    ids = torch.tensor([piece[:PROMPT_TOKENS] for piece in tokens if len(piece) >= PROMPT_TOKENS])
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    return target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=CONTINUATION,
        max_new_tokens=CONTINUATION,
        **settings,
    )


def examples_of(target: Any, draft: Any, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and labels of all windows."""
    parts = [training_examples(target, draft, some, PROMPT_TOKENS) for some in windows.split(WINDOWS_AT_ONCE)]
    hidden, labels = zip(*parts, strict=True)
    return torch.cat(hidden), torch.cat(labels)


@click.command(help=__doc__.split("\n")[0], context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
@click.option("--windows", type=click.IntRange(min=1), default=1000, help="Windows of training text.")
@click.option("--length", type=click.IntRange(min=PROMPT_TOKENS + 1), default=160, help="Tokens per window.")
@click.option("--blocks", type=click.IntRange(min=0), default=2, help="Residual blocks of the head.")
@click.option("--class-weight", type=float, default=CLASS_WEIGHT, help="Weight of a rejection in the loss.")
@click.option("--calibrated/--raw", default=True, help="Whether predictions undo the bias of the weighted loss.")
@click.option("--epochs", type=click.IntRange(min=1), default=8, help="Passes over the examples.")
@click.option("--seed", type=int, default=0, help="Seed of everything random.")
def main(
    out: Path,
    windows: int,
    length: int,
    blocks: int,
    class_weight: float,
    calibrated: bool,
    epochs: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(shipped_pair.TARGET)
    target, draft = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for path in (shipped_pair.TARGET, shipped_pair.DRAFT)
    )
    hidden, labels = examples_of(target, draft, training_windows(tokenizer, windows, length, seed))
    head = train_head(
        hidden, labels, blocks=blocks, class_weight=class_weight, calibrated=calibrated, epochs=epochs, seed=seed
    )
    report = {
        "settings": {
            "windows": windows,
            "length": length,
            "target_share": TARGET_SHARE,
            "blocks": blocks,
            "class_weight": class_weight,
            "calibrated": calibrated,
            "epochs": epochs,
            "seed": seed,
        },
        "training_examples": len(labels),
        "held_out": prediction_figures(head, *examples_of(target, draft, held_out_windows(target, tokenizer))),
    }
    out.mkdir(parents=True, exist_ok=True)
    head.save(out / "head.safetensors")
    (out / "head.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(report["held_out"], indent=1))


if __name__ == "__main__":
    main()
