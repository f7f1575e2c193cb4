"""`specbound train-head`: an acceptance head for the user's own pair, for `decode --adaptive head`."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import click

from specbound.commands.instance import OutputFile, print_json
from specbound.commands.options import SEED, Number
from specbound.commands.pair import pair_options, read_pair
from specbound.commands.terminal import progress_console
from specbound.files import read_text

if TYPE_CHECKING:
    from torch import Tensor

    from specbound.runtime.models import Pair

AT_ONCE = 16
HELD_OUT = 8


@click.command(
    name="train-head",
    short_help="Train an acceptance head for your pair.",
    epilog="""\b
    Example:
      specbound train-head --data README.md --data notes.txt --out head.safetensors
      specbound decode --prompt "def main(" --adaptive head --head head.safetensors""",
)
@pair_options
@click.option("--data", multiple=True, type=click.Path(dir_okay=False), help="Text to begin with; may be repeated.")
@click.option("--out", type=OutputFile((".safetensors",)), required=True, help="The head, safetensors.")
@click.option(
    "--windows", type=click.IntRange(min=HELD_OUT), default=400, show_default=True, help="Texts to learn from."
)
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Given of each text.")
@click.option(
    "--new-tokens", type=click.IntRange(min=1), default=96, show_default=True, help="Learned from, behind them."
)
@click.option(
    "--from-data", is_flag=True, help="Learn from the files' own text; else from what the target writes after it."
)
@click.option(
    "--temperature", type=Number(min=0, min_open=True), default=1.0, show_default=True, help="It writes with."
)
@click.option("--blocks", type=click.IntRange(min=0), default=2, show_default=True, help="Residual blocks of the head.")
@click.option("--class-weight", type=Number(min=0, min_open=True), help="Weight of a rejection; 6 if not given.")
@click.option("--epochs", type=click.IntRange(min=1), default=8, show_default=True, help="Passes over the examples.")
@click.option("--seed", type=SEED, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def train_head(
    models: dict[str, Any],
    data: tuple[str, ...],
    out: str,
    windows: int,
    prompt_tokens: int,
    new_tokens: int,
    from_data: bool,
    temperature: float,
    blocks: int,
    class_weight: float | None,
    epochs: int,
    seed: int,
    as_json: bool,
) -> None:
    """Train a head that predicts, from the draft's hidden state, whether the target keeps a drafted token.

    The target continues beginnings of the given files (SpecDec++), and the draft is asked at every place. An eighth of
    the texts is kept back; the figures printed are those on it.
    """
    import torch

    from specbound.runtime.acceptance_head import CLASS_WEIGHT, prediction_figures
    from specbound.runtime.acceptance_head import train_head as fit

    if not data:
        raise ValueError("--data is missing; give at least one file of text like that to be decoded")
    texts = [read_text("--data", file) for file in data]
    pair = read_pair(**models)
    length = prompt_tokens + (new_tokens if from_data else 0)
    given = beginnings(pair, texts, windows, length, seed)
    torch.manual_seed(seed)
    written = given if from_data else _written(pair, given, new_tokens, temperature)
    cut = len(written) - max(1, len(written) // HELD_OUT)
    learned, kept_back = (_examples(pair, part, prompt_tokens) for part in (written[:cut], written[cut:]))
    weight = CLASS_WEIGHT if class_weight is None else class_weight
    head = fit(*learned, blocks=blocks, class_weight=weight, epochs=epochs, seed=seed)
    head.save(out)
    found = prediction_figures(head, *kept_back)
    report = {"out": out, "windows": windows, "training_examples": len(learned[1]), "held_out": found}
    if as_json:
        print_json(report)
        return
    correlation = "none" if found["correlation"] is None else f"{found['correlation']:.2f}"
    click.echo(
        f"{out}: trained on {len(learned[1])} drafted tokens; on {found['examples']} others it predicts "
        f"{found['mean_predicted']:.3f} kept ({found['mean_label']:.3f} are), squared error "
        f"{found['squared_error']:.4f} where always saying the mean has "
        f"{found['squared_error_of_the_mean_label']:.4f}, correlation {correlation}"
    )


def beginnings(pair: Pair, texts: list[str], count: int, length: int, seed: int) -> Tensor:
    """[count, length] tokens from random places of the texts, at the beginning of a line where there is one before.

    Raises:
        ValueError: no text has so many tokens.
    """
    import torch

    long_enough = [text for text in texts if len(pair.tokenizer(text)["input_ids"]) >= length]
    if not long_enough:
        raise ValueError(f"--data: no file has {length} tokens; give longer ones, or lower --prompt-tokens")
    pick = random.Random(seed)
    found: list[list[int]] = []
    while len(found) < count:
        text = pick.choice(long_enough)
        start = text.rfind("\n", 0, pick.randrange(len(text))) + 1
        tokens = pair.tokenizer(text[start:], truncation=True, max_length=length)["input_ids"]
        if len(tokens) < length:
            tokens = pair.tokenizer(text, truncation=True, max_length=length)["input_ids"]
        found.append(tokens[:length])
    return torch.tensor(found, device=pair.device)


def _written(pair: Pair, given: Tensor, new_tokens: int, temperature: float) -> Tensor:
    """What the target writes after the beginnings [N, n]: [N, n + new_tokens]."""
    import torch
    from rich.progress import track

    settings: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings |= {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "pad_token_id": 0}
    parts = given.split(AT_ONCE)
    console = progress_console()
    return torch.cat(
        [
            pair.target.generate(part, attention_mask=torch.ones_like(part), **settings)
            for part in track(parts, "the target writes", console=console, transient=True)
        ]
    )


def _examples(pair: Pair, texts: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Hidden states and labels of texts [N, T]."""
    import torch

    from specbound.runtime.acceptance_head import training_examples

    parts = [training_examples(pair.target, pair.draft, part, first) for part in texts.split(AT_ONCE)]
    hidden, labels = zip(*parts, strict=True)
    return torch.cat(hidden).float(), torch.cat(labels)
