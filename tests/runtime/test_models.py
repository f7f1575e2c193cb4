"""Loading pairs and refusing models that cannot verify drafts."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)

from specbound import shipped_pair
from specbound.runtime.decode import generate
from specbound.runtime.models import check_model, check_pair, check_tokenizers, context_limit, load_pair
from tests.support.tiny_models import tiny

SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_the_shipped_pair_loads_by_path_ready_to_decode():
    pair = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT, device="cpu")
    assert pair.target.dtype == pair.draft.dtype == torch.float32
    ids = pair.tokenizer("import ", return_tensors="pt").input_ids
    ours = generate(pair.target, pair.draft, ids, do_sample=False, max_new_tokens=8)
    assert ours.sequences.tolist() == pair.target.generate(ids, do_sample=False, max_new_tokens=8).tolist()
    double = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT, dtype=torch.float64, device="cpu")
    assert double.target.dtype == torch.float64


def test_pickled_checkpoints_are_read_only_when_asked(tmp_path):
    model = tiny("llama", 0, vocab=9)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for file in shipped_pair.TARGET.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(OSError, match="safetensors"):
        load_pair(tmp_path, tmp_path, device="cpu")
    assert load_pair(tmp_path, tmp_path, device="cpu", safetensors_only=False).target.config.vocab_size == 9


class Words:
    def __init__(self, *words: str) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}


def test_different_tokenizers_are_refused_with_an_example():
    check_tokenizers(Words("a", "b"), Words("a", "b"))
    with pytest.raises(ValueError, match=r"2 have different ids \(e.g. 'a': 0 and 1\)"):
        check_tokenizers(Words("a", "b"), Words("b", "a"))
    with pytest.raises(ValueError, match="1 tokens are in one only"):
        check_tokenizers(Words("a", "b"), Words("a"))


def test_vocabularies_of_quite_different_size_are_refused():
    with pytest.raises(ValueError, match="target has 9 and draft 2000 tokens"):
        check_pair(tiny("llama", 0, vocab=9), tiny("llama", 0, vocab=2000))


def test_models_that_cannot_verify_a_tree_are_refused_with_the_reason():
    model = tiny("llama", 0, vocab=9)
    check_model("target", model)
    with pytest.raises(ValueError, match=r"call target.eval\(\)"):
        check_model("target", LlamaForCausalLM(LlamaConfig(vocab_size=9, **SMALL)))
    with pytest.raises(
        ValueError, match=r"draft \(OpenAIGPTLMHeadModel\) cannot verify drafts: its forward takes no cache"
    ):
        check_model("draft", OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=9, n_embd=8, n_layer=1, n_head=2)).eval())
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="load it with attn_implementation='sdpa'"):
        check_model("target", model)


@pytest.mark.parametrize(("verifier", "paths"), [("block", 1), ("traversal", 3)])
def test_contexts_beyond_a_sliding_window_decode_as_the_target_does(verifier, paths):
    heads = {"num_key_value_heads": 1, "max_position_embeddings": 64, "eos_token_id": None, "initializer_range": 0.6}
    config = MistralConfig(vocab_size=9, sliding_window=6, **SMALL, **heads)
    target, draft = (MistralForCausalLM(config).double().eval() for _ in range(2))
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [5, 6, 1, 1, 1, 2, 3, 4]])
    settings = {"do_sample": False, "max_new_tokens": 30, "pad_token_id": 0}
    ours = generate(target, draft, ids, verifier=verifier, paths=paths, length=3, **settings)
    assert ours.sequences.tolist() == target.generate(ids, **settings).tolist()


def test_positions_are_a_limit_on_the_context():
    model = tiny("llama", 0, vocab=9)
    assert context_limit(model) == 64
    ids = torch.tensor([[1, 2, 3]])
    greedy = generate(model, model, ids, do_sample=False, max_new_tokens=61)
    assert greedy.sequences.tolist() == model.generate(ids, do_sample=False, max_new_tokens=61).tolist()
    with pytest.raises(ValueError, match="the target reads at most 64"):
        generate(model, model, ids, do_sample=False, max_new_tokens=62)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_both_attention_implementations_agree(implementation):
    target, draft = tiny("llama", 0, vocab=20, layers=2), tiny("llama", 1, vocab=20)
    target.set_attn_implementation(implementation)
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    output = generate(target, draft, ids, verifier="traversal", paths=3, do_sample=False, max_new_tokens=20)
    assert output.sequences.tolist() == target.generate(ids, do_sample=False, max_new_tokens=20).tolist()


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, file) -> None:
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "give --allow-pickle"), (("--allow-pickle",), "more than tensors")],
)
def test_the_payload_of_a_pickled_checkpoint_never_runs(tmp_path, capsys, options, message):
    from specbound import cli

    model = tiny("llama", 0, vocab=9)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict() | {"payload": Payload(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    for file in shipped_pair.TARGET.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["decode", "--target", str(tmp_path), "--draft", str(tmp_path), "--prompt", "x", *options])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload would have run"


def test_code_that_a_model_brings_along_never_runs(tmp_path):
    model = tiny("llama", 0, vocab=9)
    model.save_pretrained(tmp_path)
    (tmp_path / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in shipped_pair.TARGET.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_pair(tmp_path, tmp_path, device="cpu")
    assert not (tmp_path / "ran").exists()
