"""Train the shipped pair: a target and a draft language model of Python source, with one tokenizer.

The text is the one that every Python installation carries: the standard library's own source. About 3 % of
its files are held out; they give the perplexities, the acceptance figures and the prompts.

1. A byte-level BPE tokenizer is trained on the training files.
2. The target, a deep narrow Llama, learns to predict the next token.
3. The draft, a single Llama layer, learns the target's law: with t and d the two next-token laws and y the
   token of the text, its loss is

       KL(t || d) + TV(t, d) - 0.1 log d(y),        TV(t, d) = 1 - sum_x min(t(x), d(x)).

   1 - TV(t, d) is the probability that token verification keeps a token drafted from d, so the second term is
   the quantity that speculative decoding needs ([SD] Leviathan et al., arXiv:2211.17192, Corollary 3.6).

The result is a folder with target/, draft/, prompts.json and manifest.json. The manifest names every file that
was read, with its SHA-256, so the same text can be asked for again (torch 2.9 or later, for its Muon optimizer):

    python examples/train_pair.py --out pair                       # the manifest's files, else refuse
    python examples/train_pair.py --out pair --corpus installed    # whatever this Python carries

The shipped pair came from two runs, as its manifest says; the second trained the first's weights further:

    python examples/train_pair.py --out first --target-steps 600 --draft-steps 600
    python examples/train_pair.py --out pair --start first --seed 1 --target-steps 520 --draft-steps 400
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAIR = Path(__file__).parent / "pair"
VOCAB = 2048
END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
TOKENIZER_SETTINGS: dict[str, Any] = {
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "pad_token": PAD,
    "model_max_length": 1024,
    "clean_up_tokenization_spaces": False,
}
TARGET_SHAPE = {"num_hidden_layers": 12, "hidden_size": 192, "intermediate_size": 640, "num_attention_heads": 3}
DRAFT_SHAPE = {"num_hidden_layers": 1, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 3}
TOKENS_PER_STEP = 2048
WINDOWS = ((0.7, 256), (1.0, 512))  # window length until this share of the steps
MUON_RATE, ADAM_RATE, WEIGHT_DECAY, WARM_UP_STEPS = 0.02, 3e-3, 0.05, 50
HELD_OUT_PER_MILLE = 30
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
SKIPPED = {"encodings", "pydoc_data", "html/entities.py", "__phello__", "lib2to3"}  # tables, and near-duplicates


# ---- text -----------------------------------------------------------------------------------------------------


def library_files(root: Path) -> list[str]:
    """Paths below `root` of the standard library's own modules, sorted, with forward slashes."""

    def wanted(path: Path) -> bool:
        parts = path.parts
        of_this_machine = parts[0].startswith(("_sysconfigdata", "config-"))
        skipped = parts[0] in SKIPPED or path.as_posix() in SKIPPED or of_this_machine
        return not skipped and not SKIPPED_FOLDERS & set(parts)

    found = (path.relative_to(root) for path in root.rglob("*.py") if path.stat().st_size)
    return sorted(path.as_posix() for path in found if wanted(path))


def is_held_out(path: str) -> bool:
    """Whether a file belongs to the held-out 3 %: decided by a hash of its path alone."""
    return int(hashlib.sha256(path.encode()).hexdigest()[:12], 16) % 1000 < HELD_OUT_PER_MILLE


def digests(root: Path, files: list[str]) -> dict[str, str]:
    """SHA-256 of each file's bytes."""
    return {path: hashlib.sha256((root / path).read_bytes()).hexdigest() for path in files}


def refuse_other_text(here: dict[str, str], manifest: dict[str, Any]) -> None:
    """Raise a usage error that says how this installation's files differ from the manifest's, if they do."""
    wanted = {**manifest["training_files"], **manifest["held_out_files"]}
    missing, new = sorted(wanted.keys() - here.keys()), sorted(here.keys() - wanted.keys())
    changed = sorted(path for path in wanted.keys() & here.keys() if wanted[path] != here[path])
    if missing or new or changed:
        example = (changed + missing + new)[0]
        raise click.UsageError(
            f"this Python {platform.python_version()} does not carry the text of the manifest "
            f"(Python {manifest['python']}): {len(changed)} files changed, {len(missing)} missing, {len(new)} new, "
            f"for instance {example}. Run Python {manifest['python']}, or pass --corpus installed to train on "
            "what is here."
        )


def read(root: Path, path: str) -> str:
    """The file's text; bytes that are not UTF-8 (a few old modules) become U+FFFD."""
    return (root / path).read_text(encoding="utf-8", errors="replace")


# ---- tokenizer ------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with VOCAB tokens; decoding what it encoded returns the text, byte for byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[END_OF_TEXT, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **TOKENIZER_SETTINGS,
    )


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one int64 tensor: end-of-text, text, end-of-text, text, ..., end-of-text."""
    ids = [tokenizer.eos_token_id]
    for encoding in tokenizer(texts, add_special_tokens=False)["input_ids"]:
        ids += [*encoding, tokenizer.eos_token_id]
    return torch.tensor(ids)


# ---- models and training --------------------------------------------------------------------------------------


def new_model(shape: dict[str, int], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of the given shape with fresh weights; matrices that write to the residual stream start at zero."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    layers = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not q for q in layers)]
    return [
        torch.optim.Muon(layers, lr=MUON_RATE, weight_decay=WEIGHT_DECAY, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine from 1 to 0.02."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / WARM_UP_STEPS) * (0.02 + 0.98 * cosine)


def fit(
    name: str, model: LlamaForCausalLM, loss: Callable[[torch.Tensor], torch.Tensor], stream: torch.Tensor,
    steps: int, seed: int,
) -> None:  # fmt: skip
    """Minimise `loss(windows [B, T + 1])` over random windows of the stream, TOKENS_PER_STEP tokens a step."""
    generator = torch.Generator().manual_seed(seed)
    parts = optimizers(model)
    rates = [group["lr"] for part in parts for group in part.param_groups]
    mean, began = float("nan"), time.time()
    for step in range(steps):
        length = next(length for share, length in WINDOWS if step < share * steps)
        starts = torch.randint(len(stream) - length, (TOKENS_PER_STEP // length, 1), generator=generator)
        value = loss(stream[starts + torch.arange(length + 1)])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for rate, group in zip(rates, (group for part in parts for group in part.param_groups), strict=True):
            group["lr"] = rate * rate_factor(step, steps)
        for part in parts:
            part.step()
            part.zero_grad()
        mean = value.item() if step == 0 else 0.95 * mean + 0.05 * value.item()
        if step % 50 == 49 or step == steps - 1:
            minutes = (time.time() - began) / 60
            left = minutes * (steps - 1 - step) / (step + 1)
            click.echo(f"{name} step {step + 1}/{steps}  loss {mean:.3f}  {minutes:.1f} min, {left:.1f} left")


def next_token_loss(model: LlamaForCausalLM) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mean of -log model(y) over the windows, in bfloat16 arithmetic."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    return loss


def distillation_loss(draft: LlamaForCausalLM, target: LlamaForCausalLM) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mean of KL(t || d) + TV(t, d) - 0.1 log d(y) over the windows."""

    def loss(windows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                target_logits = target(input_ids=windows[:, :-1], use_cache=False).logits
            draft_logits = draft(input_ids=windows[:, :-1], use_cache=False).logits
        t, d = log_softmax(target_logits.float(), -1), log_softmax(draft_logits.float(), -1)
        divergence = (t.exp() * (t - d)).sum(-1) + 0.5 * (t.exp() - d.exp()).abs().sum(-1)
        return divergence.mean() + 0.1 * cross_entropy(d.flatten(0, 1), windows[:, 1:].flatten())

    return loss


# ---- measuring ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def held_out_figures(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, stream: torch.Tensor, n_bytes: int
) -> dict[str, float]:
    """Perplexities and acceptance over the stream, cut into windows of 512 so that each token is predicted once."""
    target_nats = draft_nats = accepted = 0.0
    for start in range(0, len(stream) - 1, 512):
        window = stream[start : start + 513]
        t = log_softmax(target(input_ids=window[None, :-1]).logits[0].float(), -1)
        d = log_softmax(draft(input_ids=window[None, :-1]).logits[0].float(), -1)
        target_nats -= t.gather(-1, window[1:, None]).sum().item()
        draft_nats -= d.gather(-1, window[1:, None]).sum().item()
        accepted += torch.minimum(t.exp(), d.exp()).sum().item()
    n = len(stream) - 1
    return {
        "tokens": n,
        "bytes": n_bytes,
        "target_perplexity": math.exp(target_nats / n),
        "draft_perplexity": math.exp(draft_nats / n),
        "target_bits_per_byte": target_nats / math.log(2) / n_bytes,
        "draft_bits_per_byte": draft_nats / math.log(2) / n_bytes,
        "acceptance": accepted / n,
    }


@torch.inference_mode()
def prompt_figures(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[dict[str, str]]
) -> dict[str, float]:
    """The same figures over the prompts: tokens 2, 3, ... of each, given the ones before."""
    target_nats = draft_nats = accepted = n = 0.0
    for prompt in prompts:
        ids = tokenizer(prompt["text"], return_tensors="pt").input_ids
        t = log_softmax(target(input_ids=ids).logits[0, :-1].float(), -1)
        d = log_softmax(draft(input_ids=ids).logits[0, :-1].float(), -1)
        target_nats -= t.gather(-1, ids[0, 1:, None]).sum().item()
        draft_nats -= d.gather(-1, ids[0, 1:, None]).sum().item()
        accepted += torch.minimum(t.exp(), d.exp()).sum().item()
        n += ids.shape[1] - 1
    return {
        "tokens": int(n),
        "target_perplexity": math.exp(target_nats / n),
        "draft_perplexity": math.exp(draft_nats / n),
        "acceptance": accepted / n,
    }


@torch.inference_mode()
def generated_figures(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[dict[str, str]],
    new_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Acceptance along texts that the target itself continues from the prompts at temperature 1."""
    torch.manual_seed(seed)
    accepted, entropy, n = 0.0, 0.0, 0
    for prompt in prompts:
        ids = tokenizer(prompt["text"], return_tensors="pt").input_ids
        text = target.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            max_new_tokens=new_tokens,
        )  # fmt: skip
        here = slice(ids.shape[1] - 1, text.shape[1] - 1)
        t = log_softmax(target(input_ids=text).logits[0, here].float(), -1)
        d = log_softmax(draft(input_ids=text).logits[0, here].float(), -1)
        accepted += torch.minimum(t.exp(), d.exp()).sum().item()
        entropy -= (t.exp() * t).sum().item()
        n += text.shape[1] - ids.shape[1]
    return {"tokens": n, "acceptance": accepted / n, "target_entropy_nats": entropy / n}


@torch.inference_mode()
def forward_milliseconds(model: LlamaForCausalLM, threads: int, repeats: int = 200) -> float:
    """Time of one forward pass of one token after 64 cached ones: the fastest repeat, so that load counts least."""
    torch.set_num_threads(threads)
    cache = model(input_ids=torch.arange(64)[None], use_cache=True).past_key_values
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        model(input_ids=torch.tensor([[64]]), past_key_values=cache, use_cache=True)
        seconds.append(time.perf_counter() - began)
    return round(1000 * min(seconds), 3)


# ---- prompts --------------------------------------------------------------------------------------------------


def cut_prompts(
    root: Path, files: list[str], tokenizer: PreTrainedTokenizerFast, count: int = 24
) -> list[dict[str, str]]:
    """`count` pieces of held-out files, 32 to 96 tokens each: from the head of a def or class to a line's end.

    The files take turns. Turn k starts at the def that lies a share of frac(k * golden ratio) into the file, so
    that the turns spread over it; the wanted length grows with the prompt's number.
    """
    prompts: list[dict[str, str]] = []
    for turn in range(1, 1 + count):
        for path in files:
            lines = read(root, path).splitlines(keepends=True)
            heads = [i for i, line in enumerate(lines) if line.lstrip().startswith(("def ", "class ", "async def "))]
            if heads and len(prompts) < count:
                first = heads[int(len(heads) * (turn * 0.6180339887 % 1))]
                text = longest_head(lines[first:], tokenizer, limit=40 + 56 * len(prompts) // count)
                if text and all(text != other["text"] for other in prompts):
                    prompts.append({"id": f"p{len(prompts):02d}", "file": path, "text": text})
    return prompts


def longest_head(lines: list[str], tokenizer: PreTrainedTokenizerFast, limit: int) -> str | None:
    """The most whole lines that fit in `limit` tokens, without the last line break; None below 32 tokens."""
    for end in range(min(len(lines), 40), 0, -1):
        text = "".join(lines[:end]).rstrip()
        if 32 <= len(tokenizer(text)["input_ids"]) <= limit:
            return text
    return None


# ---- the pair -------------------------------------------------------------------------------------------------


def train(root: Path, files: list[str], out: Path, start: Path | None, run: dict[str, int]) -> int:
    """Train tokenizer, target and draft; save both models, in bfloat16, below `out`.

    Args:
        files: training files below `root`.
        start: folder of a pair whose tokenizer and weights are trained further; None starts afresh.
        run: "seed", "target_steps" and "draft_steps".
    Returns:
        Length of the training files in tokens.
    """
    torch.manual_seed(run["seed"])
    texts = [read(root, path) for path in files]
    if start is None:
        tokenizer = train_tokenizer(iter(texts))
        target, draft = new_model(TARGET_SHAPE, tokenizer), new_model(DRAFT_SHAPE, tokenizer)
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(start / "target" / "tokenizer.json"), **TOKENIZER_SETTINGS
        )
        target, draft = load(start / "target"), load(start / "draft")
    stream = token_stream(tokenizer, texts)
    fit("target", target, next_token_loss(target), stream, run["target_steps"], run["seed"])
    save(target, tokenizer, out / "target")
    teacher = load(out / "target").requires_grad_(False)
    fit("draft", draft, distillation_loss(draft, teacher), stream, run["draft_steps"], run["seed"] + 1)
    save(draft, tokenizer, out / "draft")
    return len(stream)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model in bfloat16, with its tokenizer."""
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """The model that `save` wrote; its bfloat16 weights are exact in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()


def measure(root: Path, held_out: list[str], out: Path, prompts: list[dict[str, str]]) -> dict[str, Any]:
    """Every figure of the pair in `out`: float32 arithmetic on the shipped bfloat16 weights, temperature 1."""
    threads = torch.get_num_threads()
    target, draft = load(out / "target"), load(out / "draft")
    tokenizer = AutoTokenizer.from_pretrained(out / "target", local_files_only=True)
    stream = token_stream(tokenizer, [read(root, path) for path in held_out])
    n_bytes = sum((root / path).stat().st_size for path in held_out)
    results: dict[str, Any] = {
        "held_out": held_out_figures(target, draft, stream, n_bytes),
        "prompts": prompt_figures(target, draft, tokenizer, prompts),
        "generated": generated_figures(target, draft, tokenizer, prompts, new_tokens=128, seed=0),
        "parameters": {"target": target.num_parameters(), "draft": draft.num_parameters()},
        "forward_ms": {
            f"{name}, {str(dtype).removeprefix('torch.')}, {n} thread{'s' * (n > 1)}": forward_milliseconds(
                load(out / name, dtype), n
            )
            for name in ("target", "draft")
            for dtype in (torch.bfloat16, torch.float32)
            for n in (1, 2)
        },
        "load_average": getattr(os, "getloadavg", lambda: (None,))()[0],
    }
    torch.set_num_threads(threads)
    return results


def hyper_parameters() -> dict[str, Any]:
    """What, besides the text and the runs' seeds and steps, decides the weights."""
    return {
        "vocabulary": VOCAB,
        "target": TARGET_SHAPE,
        "draft": DRAFT_SHAPE,
        "tokens_per_step": TOKENS_PER_STEP,
        "windows": WINDOWS,
        "muon_rate": MUON_RATE,
        "adam_rate": ADAM_RATE,
        "weight_decay": WEIGHT_DECAY,
        "warm_up_steps": WARM_UP_STEPS,
        "threads": torch.get_num_threads(),
    }


def read_json(path: Path) -> Any:
    """Read JSON in UTF-8."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON with a final line break."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option(
    "--start",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Train the pair in this folder further instead of starting afresh.",
)
@click.option("--seed", default=0, help="Seed of the weights and of the order of the text.")
@click.option("--target-steps", default=3000, type=click.IntRange(1), help=f"Steps of {TOKENS_PER_STEP} tokens.")
@click.option("--draft-steps", default=3000, type=click.IntRange(1), help=f"Steps of {TOKENS_PER_STEP} tokens.")
@click.option(
    "--corpus",
    type=click.Choice(["manifest", "installed"]),
    default="manifest",
    help="Go on only if this Python carries the very files of the shipped pair's manifest, or with what it carries.",
)
@click.option("--measure-only", is_flag=True, help="Train nothing: measure the pair in --out again.")
def main(
    out: Path, start: Path | None, seed: int, target_steps: int, draft_steps: int, corpus: str, measure_only: bool
) -> None:
    """Train a target and a draft language model on the standard library's source.

    The default takes about 40 minutes on 2 cores. A first taste, on the text that is here:

    python examples/train_pair.py --out pair --corpus installed --target-steps 200 --draft-steps 200
    """
    root = Path(sysconfig.get_path("stdlib"))
    here = digests(root, library_files(root))
    if corpus == "manifest":
        refuse_other_text(here, read_json(PAIR / "manifest.json"))
    training_files = [path for path in here if not is_held_out(path)]
    held_out = [path for path in here if is_held_out(path)]

    if measure_only:
        manifest = read_json(out / "manifest.json")
    else:
        run = {"seed": seed, "target_steps": target_steps, "draft_steps": draft_steps}
        stream_tokens = train(root, training_files, out, start, run)
        tokenizer = AutoTokenizer.from_pretrained(out / "target", local_files_only=True)
        write_json(out / "prompts.json", cut_prompts(root, held_out, tokenizer))
        manifest = {
            "text": "source of the Python standard library, Python Software Foundation License",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "runs": [*(read_json(start / "manifest.json")["runs"] if start else []), run],
            "hyper_parameters": hyper_parameters(),
            "stream_tokens": stream_tokens,
            "training_files": {path: here[path] for path in training_files},
            "held_out_files": {path: here[path] for path in held_out},
        }
    results = measure(root, held_out, out, read_json(out / "prompts.json"))
    write_json(out / "manifest.json", {"results": results, **{k: v for k, v in manifest.items() if k != "results"}})
    click.echo(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
