"""The shipped pair is what its manifest says: sizes, tokenizer, perplexity and acceptance on the prompts."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specbound import shipped_pair

PRINTED = ("target_perplexity", "draft_perplexity", "acceptance")
TOLERANCE = 1e-3  # relative: float32 sums in another order; other libraries and processors move far less


@pytest.fixture(scope="module", autouse=True)
def offline():
    """No test may reach a model hub."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(shipped_pair.TARGET)


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def target():
    return load(shipped_pair.TARGET)


@pytest.fixture(scope="module")
def draft():
    return load(shipped_pair.DRAFT)


@pytest.fixture(scope="module")
def training_script() -> ModuleType:
    path = shipped_pair.TARGET.parents[1] / "train_pair.py"
    spec = importlib.util.spec_from_file_location("train_pair", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def next_token_laws(model, ids: torch.Tensor) -> np.ndarray:
    """Softmax rows [T, V] in float64, written out in NumPy."""
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0].double().numpy()
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def figures(target, draft, tokenizer) -> dict[str, float]:
    """Perplexities and acceptance over tokens 2, 3, ... of every prompt, token by token."""
    target_nats, draft_nats, kept = [], [], []
    for prompt in shipped_pair.prompts():
        ids = tokenizer(prompt["text"], return_tensors="pt").input_ids
        t, d = next_token_laws(target, ids), next_token_laws(draft, ids)
        for place, token in enumerate(ids[0, 1:].tolist()):
            target_nats.append(-math.log(t[place, token]))
            draft_nats.append(-math.log(d[place, token]))
            kept.append(np.minimum(t[place], d[place]).sum())
    return {
        "tokens": len(kept),
        "target_perplexity": math.exp(np.mean(target_nats)),
        "draft_perplexity": math.exp(np.mean(draft_nats)),
        "acceptance": float(np.mean(kept)),
    }


def reproduces(measured: dict[str, float]) -> bool:
    recorded = shipped_pair.manifest()["results"]["prompts"]
    return all(abs(measured[key] / recorded[key] - 1) < TOLERANCE for key in PRINTED)


def test_the_manifest_figures_come_out_again_on_the_prompts(target, draft, tokenizer):
    measured = figures(target, draft, tokenizer)
    assert measured["tokens"] == shipped_pair.manifest()["results"]["prompts"]["tokens"]
    assert reproduces(measured)


def test_the_figures_of_shuffled_weights_are_told_apart(target, draft, tokenizer):
    shuffled = load(shipped_pair.DRAFT)
    order = torch.randperm(len(tokenizer), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shuffled.model.embed_tokens.weight.copy_(shuffled.model.embed_tokens.weight[order])
    assert not reproduces(figures(target, shuffled, tokenizer))


def test_two_swapped_attention_heads_in_the_target_are_told_apart(draft, tokenizer):
    damaged = load(shipped_pair.TARGET)
    weight = damaged.model.layers[3].self_attn.q_proj.weight
    with torch.no_grad():
        weight.copy_(torch.cat([weight[64:128], weight[:64], weight[128:]]))
    assert not reproduces(figures(damaged, draft, tokenizer))


def test_acceptance_is_realistic_on_held_out_text_and_on_the_targets_own_text():
    results = shipped_pair.manifest()["results"]
    for sample in ("held_out", "prompts", "generated"):
        assert 0.5 < results[sample]["acceptance"] < 0.8
    assert results["held_out"]["target_perplexity"] < results["held_out"]["draft_perplexity"]


def test_bits_per_byte_and_perplexity_tell_the_same_story():
    held_out = shipped_pair.manifest()["results"]["held_out"]
    for model in ("target", "draft"):
        bits = held_out["tokens"] * math.log2(held_out[f"{model}_perplexity"]) / held_out["bytes"]
        assert math.isclose(bits, held_out[f"{model}_bits_per_byte"], rel_tol=1e-9)


def test_both_models_are_small_enough_to_ship():
    sizes = {f: (f / "model.safetensors").stat().st_size for f in (shipped_pair.TARGET, shipped_pair.DRAFT)}
    assert sizes[shipped_pair.TARGET] < 16e6
    assert sizes[shipped_pair.DRAFT] < 1.8e6


def test_the_weights_are_bfloat16_by_default():
    for folder in (shipped_pair.TARGET, shipped_pair.DRAFT):
        assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_the_models_share_one_tokenizer_and_its_special_tokens(target, draft, tokenizer):
    other = AutoTokenizer.from_pretrained(shipped_pair.DRAFT)
    assert other.get_vocab() == tokenizer.get_vocab()
    for model in (target, draft):
        assert model.config.vocab_size == len(tokenizer)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


@pytest.mark.parametrize(
    "text",
    ["def f(x):\n    return x  # y\n", "", " ", "\t\tif x :\r\n\r\n", "naïve – 日本語 🙂 \x00\x7f", "a , b . c ! n't"],
)
def test_decoding_returns_the_encoded_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_prompts_are_held_out_pieces_of_32_to_96_tokens(tokenizer):
    prompts, manifest = shipped_pair.prompts(), shipped_pair.manifest()
    assert len(prompts) == len({p["id"] for p in prompts}) == len({p["text"] for p in prompts}) == 24
    for prompt in prompts:
        assert prompt["file"] in manifest["held_out_files"]
        assert 32 <= len(tokenizer(prompt["text"])["input_ids"]) <= 96
        assert tokenizer.decode(tokenizer(prompt["text"])["input_ids"]) == prompt["text"]
    assert not manifest["held_out_files"].keys() & manifest["training_files"].keys()


def test_the_target_uses_512_tokens_of_context(target, tokenizer):
    text = "\n\n".join(p["text"] for p in shipped_pair.prompts())
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :512]
    assert ids.shape[1] == 512
    rows = next_token_laws(target, ids)[:-1]
    nats = -np.log(rows[np.arange(511), ids[0, 1:].numpy()])
    assert nats[256:].mean() < 1.25 * nats[:256].mean()


def test_reading_the_folder_needs_neither_torch_nor_transformers():
    code = (
        "import sys, json; from specbound import shipped_pair; shipped_pair.prompts(); shipped_pair.manifest();"
        "print(json.dumps(sorted({'torch', 'transformers'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_script_refuses_text_that_differs_from_the_manifest(training_script):
    manifest = shipped_pair.manifest()
    here = {**manifest["training_files"], **manifest["held_out_files"]}
    training_script.refuse_other_text(here, manifest)
    changed, missing, new = {**here, "ast.py": "0" * 64}, dict(here), {**here, "zzz.py": "0" * 64}
    del missing["enum.py"]
    for other, count, name in ((changed, "1 files changed", "ast.py"), (missing, "1 missing", "enum.py"),
                               (new, "1 new", "zzz.py")):  # fmt: skip
        with pytest.raises(click.UsageError, match=f"{count}.*{name}.*--corpus installed"):
            training_script.refuse_other_text(other, manifest)


def test_held_out_files_are_chosen_by_the_hash_of_the_path(training_script):
    manifest = shipped_pair.manifest()
    assert all(training_script.is_held_out(path) for path in manifest["held_out_files"])
    assert not any(training_script.is_held_out(path) for path in manifest["training_files"])
