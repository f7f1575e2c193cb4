"""The check before decoding: what it finds, when it runs, what it says."""

from __future__ import annotations

import pytest
import torch

from specbound.runtime import models, self_check
from specbound.runtime.decode import generate
from specbound.runtime.models import tolerance
from specbound.runtime.self_check import check_laws, deviation
from tests.support.architectures import VOCAB, toy
from tests.support.tiny_models import tiny

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])
GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_a_sound_model_is_off_by_rounding_only(family):
    assert deviation(tiny(family, 0, vocab=20, layers=2)) < 1e-12


def test_a_model_that_ignores_the_mask_is_refused_with_the_figure(monkeypatch):
    model, draft = toy("gpt_neo"), toy("gpt2", bos_token_id=None)
    with pytest.raises(ValueError, match=r"target \(GPTNeoForCausalLM\) .* its laws are 0\.\d+ off") as refusal:
        generate(model, draft, IDS, **GREEDY)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"draft \(GPTNeoForCausalLM\)"):
        generate(draft, model, IDS, **GREEDY)
    assert generate(model, draft, IDS, check=False, **GREEDY).sequences.shape == (1, 12)


def test_positions_that_are_read_otherwise_are_seen():
    with pytest.raises(ValueError, match="off those of a plain pass"):
        check_laws("target", toy("roberta", is_decoder=True))


def test_a_model_that_fails_on_trees_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"over caches and trees it fails \(.+\)$") as refusal:
        check_laws("target", toy("falcon", alibi=True))
    assert "\n" not in str(refusal.value)


def test_the_check_runs_once_for_a_kind_of_model_and_again_for_another_attention(monkeypatch):
    counted: list[object] = []
    measure = self_check.deviation
    monkeypatch.setattr(self_check, "deviation", lambda model: counted.append(model) or measure(model))
    first, second = (tiny("llama", seed, vocab=17, layers=3) for seed in (0, 1))
    for model in (first, first, second):
        check_laws("target", model)
    assert len(counted) == 1
    first.set_attn_implementation("eager")
    check_laws("target", first)
    assert len(counted) == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gemma2", "qwen2"])
def test_windows_are_checked_on_a_few_tokens(family, dtype):
    model = toy(family, **({"use_sliding_window": True, "max_window_layers": 2} if family == "qwen2" else {}))
    found = check_laws("target", model.to(dtype))
    assert found.windows is not None
    assert found.windows <= tolerance(model)
    assert model.config.sliding_window == 6


def test_a_model_whose_windows_cannot_be_masked_is_refused_beyond_them_only(monkeypatch):
    model = toy("mistral", eos_token_id=None)
    monkeypatch.setattr(self_check, "_windows", lambda model: 0.4)
    monkeypatch.setattr(self_check, "_FOUND", {})
    assert generate(model, model, IDS[:, :2], do_sample=False, max_new_tokens=4).sequences.shape == (1, 6)
    with pytest.raises(ValueError, match="the target reads at most 6"):
        generate(model, model, IDS, **GREEDY)


def test_texts_avoid_special_tokens():
    texts = self_check._texts(toy("llama"))
    assert texts.min() >= 3
    assert texts.max() < VOCAB


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """Any question to a hub fails the test; the folder of the test holds `models` with one model in it."""
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("the hub was asked"))
    (tmp_path / "models" / "one").mkdir(parents=True)
    (tmp_path / "models" / "one" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("wrong", ["nowhere/at/all", "./nowhere", "~/nowhere", "/nowhere", "nowhere/", "a b"])
@pytest.mark.usefixtures("no_hub")
def test_a_folder_that_is_not_there_is_an_error_at_once(wrong):
    with pytest.raises(ValueError, match="there is no such folder"):
        models.load_pair(wrong, "org/name")


@pytest.mark.usefixtures("no_hub")
def test_a_mistyped_name_in_a_folder_is_an_error_at_once_unless_it_was_downloaded(monkeypatch):
    with pytest.raises(ValueError, match="target is models/two; there is no two in the folder models"):
        models.load_pair("models/two", "models/one")
    models.check_name("draft", "models/one")
    monkeypatch.setattr(models.constants, "HF_HUB_OFFLINE", False)
    models.check_name("draft", "org/name")
    monkeypatch.setattr(models.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"draft is org/name; .* HF_HUB_OFFLINE is set"):
        models.check_name("draft", "org/name")
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    for name in ("org/name", "models/two"):
        models.check_name("draft", name)


def test_a_name_in_place_of_a_draft_is_refused_with_the_way_to_load_it():
    with pytest.raises(ValueError, match=r"draft is 'gpt2'; want a model, such as AutoModel.*from_pretrained"):
        generate(tiny("llama", 0, vocab=20), "gpt2", IDS, **GREEDY)


def test_a_compiled_draft_decodes_as_its_original_does():
    target, draft = tiny("llama", 0, vocab=20, layers=2), tiny("llama", 1, vocab=20)
    with torch.compiler.set_stance("force_eager"):  # compiling for the shapes of one text takes a minute
        ours = generate(target, torch.compile(draft), IDS, **GREEDY)
    assert ours.sequences.tolist() == generate(target, draft, IDS, **GREEDY).sequences.tolist()


@pytest.mark.filterwarnings("ignore")
def test_a_model_quantised_as_it_runs_is_refused_with_the_figure_and_decodes_without_the_check():
    target, draft = tiny("llama", 0, vocab=20, layers=2).float(), tiny("llama", 1, vocab=20).float()
    quantised = torch.ao.quantization.quantize_dynamic(target, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match="off those of a plain pass"):
        generate(quantised, draft, IDS, **GREEDY)
    assert generate(quantised, draft, IDS, check=False, **GREEDY).sequences.shape == (1, 12)
