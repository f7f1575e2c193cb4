"""Models over several devices and processes: the same output, the same exact law, and refusals that say what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from transformers import PreTrainedModel, Starcoder2Config, Starcoder2ForCausalLM

from specbound import cli, shipped_pair
from specbound.runtime import cache, models
from specbound.runtime.decode import generate
from specbound.runtime.models import check_place, input_device, load_pair, whole_heads
from tests.support import together
from tests.support.devices import Placed, devices, put
from tests.support.tiny_models import HiddenLength, distance, target_law, tiny

pytestmark = pytest.mark.devices

accelerate = pytest.importorskip("accelerate", reason="device maps and shared prompts want accelerate (multi-device)")
ROOT = Path(__file__).parents[2]


# ---- two processes ---------------------------------------------------------------------------------------------------


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400)


def save_tiny(folder: Path, seed: int, layers: int) -> None:
    """A model whose norms are in float64 throughout (Llama's are in float32, where a law is known to 1e-7 only)."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    no_ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sliding_window"))
    config = Starcoder2Config(
        vocab_size=2, num_hidden_layers=layers, max_position_embeddings=64, initializer_range=0.6, **sizes, **no_ids
    )
    Starcoder2ForCausalLM(config).double().save_pretrained(folder)
    for file in shipped_pair.TARGET.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models and what two processes found out; made once, whichever of pytest's workers comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "multi_device"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            save_tiny(folder / "target", seed=0, layers=2)
            save_tiny(folder / "draft", seed=1, layers=1)
            done = torchrun("-m", "tests.support.together", folder)
            (folder / "log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if not (folder / "found.json").exists():
        pytest.fail((folder / "log").read_text(encoding="utf-8")[-4000:])
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process decodes with the seed of process 0."""
    pair = together.shipped()
    return {name: together.described(together.decoded(pair, name, seed=0)) for name in together.SETTINGS}


def test_matrices_are_cut_and_attention_with_three_heads_is_not(found):
    for gate, query, _ in found["parts"]:
        assert gate == [320, 192]
        assert query == [192, 192]
    assert found["parts"][0][2] == found["parts"][1][2]


@pytest.mark.parametrize("place", ["target cut", "both cut, skewed"])
@pytest.mark.parametrize("name", list(together.SETTINGS))
def test_every_process_decodes_what_one_process_decodes(found, alone, place, name):
    first, second = found[place][name]
    assert first == second == alone[name]
    assert len(first["sequences"][0]) == len(alone[name]["sequences"][0]) > together.NEW_TOKENS


def test_processes_that_draw_for_themselves_are_found_out(found):
    first, second = found["unshared"]
    assert first != second


def as_laws(entries: list[Any]) -> list[dict[tuple[int, ...], float]]:
    return [{tuple(block): weight for block, weight in law} for law in entries]


def law_distance(folder: Path, entries: list[Any]) -> float:
    """Largest total variation to the target's law by plain passes in one process, missing mass included."""
    target = together.tiny_pair(folder).target
    wanted = [target_law(target, prompt, 3) for prompt in together.PROMPTS]
    return max(distance(law, want) for law, want in zip(as_laws(entries), wanted, strict=True))


@pytest.mark.parametrize("which", ["laws", "laws, both cut"])
@pytest.mark.parametrize("name", list(together.LAWS))
def test_a_cut_model_has_the_law_of_the_whole_one(found, folder, which, name):
    assert law_distance(folder, found[which][name]) < 1e-12


def test_the_law_of_a_cut_model_shows_a_wrong_part_in_another_process(found, folder):
    assert law_distance(folder, found["laws, spoiled"]["block"]) > 1e-3


def test_requests_that_differ_between_processes_are_refused_in_all_of_them(found):
    for message in found["refusals"]["request"]:
        assert message.startswith("processes [1] decode another request than process 0")
    for message in found["refusals"]["few"]:
        assert "cut over 3 of 2 processes" in message


def without_times(page: str) -> dict[str, Any]:
    report = json.loads(page)
    del report["total"]["tokens_per_second"]
    report["settings"].pop("target_tp_plan", None)
    for output in report["outputs"]:
        del output["seconds"], output["tokens_per_second"]
    return report


def test_prompts_dealt_out_to_processes_give_the_output_and_the_statistics_of_one(found, capsys):
    with pytest.raises(SystemExit):
        cli.main(together.DECODE)
    wanted = without_times(capsys.readouterr().out)
    assert wanted["total"]["prompts"] == len(wanted["outputs"]) == 3
    assert wanted["total"]["tokens"] == sum(output["tokens"] for output in wanted["outputs"]) == 48
    for command in ("command", "command, cut"):
        first, second = found[command]
        assert without_times(first) == wanted
        assert second == ""


def test_bench_does_not_time_processes_against_each_other(found, folder):
    assert found["bench"] == ["", ""]
    assert "bench times one copy of the models" in (folder / "log").read_text(encoding="utf-8")


def test_a_process_that_fails_ends_the_others():
    began = time.monotonic()
    done = torchrun("-m", "tests.support.together", "failing")
    assert done.returncode != 0
    assert "process 1 fails" in done.stderr
    assert "loaded" in done.stdout
    assert "decoded" not in done.stdout
    assert time.monotonic() - began < 200


def test_the_example_decodes_and_prints_once():
    done = torchrun(ROOT / "examples" / "decode_tensor_parallel.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("def read_lines(path):") == 1
    assert done.stdout.count("--- 2 processes") == 1


# ---- several devices in one process ----------------------------------------------------------------------------------


def map_of(layers: int, first: str, second: str) -> dict[str, str]:
    """The first half of the layers on one device, the rest on another."""
    names = ["model.embed_tokens", "model.rotary_emb", *(f"model.layers.{i}" for i in range(layers))]
    split = 2 + layers // 2
    early, late = names[:split], [*names[split:], "model.norm", "lm_head"]
    return dict.fromkeys(early, first) | dict.fromkeys(late, second)


@pytest.mark.parametrize("rest", ["disk", "cpu"])
def test_weights_that_rest_on_disk_decode_the_same(tmp_path, rest):
    whole = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT, device="cpu", dtype=torch.float64)
    tied = {"lm_head": rest}  # accelerate wants tied weights in one place
    maps = {"target_device_map": map_of(12, rest, "disk") | tied, "draft_device_map": "auto"}
    pair = load_pair(shipped_pair.TARGET, shipped_pair.DRAFT, device="cpu", dtype=torch.float64, **maps)
    kinds = {weight.device.type for weight in pair.target.parameters()}
    assert kinds == ({"meta"} if rest == "disk" else {"cpu", "meta"})
    assert pair.device == input_device(pair.target) == torch.device("cpu")
    ids = pair.tokenizer(shipped_pair.prompts()[0]["text"], return_tensors="pt").input_ids
    settings = {"do_sample": False, "max_new_tokens": 12, "verifier": "two-level", "paths": 2, "length": 3}
    got, wanted = (generate(p.target, p.draft, ids, **settings).sequences for p in (pair, whole))
    assert got.tolist() == wanted.tolist()


def spread(model: PreTrainedModel, first: str, second: str) -> PreTrainedModel:
    layers = model.config.num_hidden_layers
    return accelerate.dispatch_model(model, map_of(layers, first, second), skip_keys="past_key_values")


LAYOUTS = {
    "apart": (lambda model: put(model, "cpu:1"), lambda model: put(model, "cpu:2")),
    "target spread": (lambda model: spread(model, "cpu:1", "cpu:2"), lambda model: put(model, "cpu:3")),
    "draft spread": (lambda model: put(model, "cpu:1"), lambda model: spread(model, "cpu:2", "cpu:3")),
}
ACROSS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "block": {"do_sample": True, "repetition_penalty": 1.2},
    "hidden": {"do_sample": True, "length": HiddenLength(3)},
    "two-level": {"do_sample": True, "verifier": "two-level", "paths": 2, "max_new_tokens": 6},
    "stateful": {"do_sample": True, "verifier": "spectr-gbv", "paths": 2},
    "beams": {"do_sample": True, "verifier": "mjsd", "beams": 3},
}


def across(layout: str, name: str) -> tuple[list[list[int]], list[list[int]]]:
    """Sequences decoded with the models where the layout puts them, and on one device."""
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    settings = {"length": 3, "max_new_tokens": 12, "pad_token_id": 0} | ACROSS[name]

    def decoded(target: PreTrainedModel, draft: PreTrainedModel) -> list[list[int]]:
        generator = torch.Generator().manual_seed(0)
        return generate(target, draft, ids, mask, generator=generator, **settings).sequences.tolist()

    def pair() -> tuple[PreTrainedModel, PreTrainedModel]:
        return tiny("llama", 0, vocab=20, layers=2), tiny("llama", 1, vocab=20, layers=2)

    wanted = decoded(*pair())
    with devices():
        placed = [place(model) for place, model in zip(LAYOUTS[layout], pair(), strict=True)]
        ids, mask = (Placed(tensor, torch.device("cpu:1")) for tensor in (ids, mask))
        return decoded(*placed), wanted


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        *(("apart", name) for name in ACROSS),
        ("target spread", "greedy"),
        ("target spread", "two-level"),
        ("draft spread", "two-level"),
    ],
)
@pytest.mark.usefixtures("arrays")
def test_models_on_different_devices_decode_the_same(layout, name):
    """The devices stand for GPUs, whose tensors no loop of the CPU can reach."""
    got, wanted = across(layout, name)
    assert got == wanted


@pytest.mark.usefixtures("arrays")
def test_a_tensor_left_on_the_other_models_device_is_found_out(monkeypatch):
    monkeypatch.setattr(cache, "input_device", lambda model: torch.device("cpu:1"))
    with pytest.raises(RuntimeError, match=r"tensors on \['cpu:1', 'cpu:2'\]"):
        across("apart", "greedy")


def test_the_devices_refuse_what_real_ones_refuse():
    with devices():
        here, there = torch.ones(2, device="cpu:1"), torch.tensor([0, 1], device="cpu:2")
        assert (here[torch.tensor([0, 1])] + there.to("cpu:1")).tolist() == [1.0, 2.0]
        for refused in (lambda: here + there, lambda: here[there], lambda: here + torch.ones(2)):
            with pytest.raises(RuntimeError, match="tensors on"):
                refused()


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_places_that_cannot_be_had_are_refused_with_the_way_out(monkeypatch):
    cpu = torch.device("cpu")
    check_place("target", cpu, "auto", None)
    with pytest.raises(ValueError, match="target_device_map is 'auto' and target_tp_plan 'auto'; give one"):
        check_place("target", cpu, "auto", "auto")
    with pytest.raises(ValueError, match="draft_tp_plan is 'auto', but this is a single process; start"):
        check_place("draft", cpu, None, "auto")
    with pytest.raises(ValueError, match="target_tp_plan is 'rows'; want 'auto'"):
        check_place("target", cpu, None, "rows")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_place("draft", cpu, None, {"lm_head": "colwise_rep"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="device is 'cpu' and target_tp_plan 'auto'"):
        check_place("target", cpu, None, "auto")
    monkeypatch.setattr(models, "is_accelerate_available", lambda: False)
    with pytest.raises(ValueError, match=r"wants accelerate; pip install 'specbound\[multi-device\]'"):
        check_place("target", cpu, "auto", None)


@contextmanager
def leaving(code: int) -> Any:
    with pytest.raises(SystemExit) as stopped:
        yield
    assert stopped.value.code == code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target-tp-plan", "auto"), "this is a single process"),
        (("--draft-device-map", "nowhere"), "--draft-device-map is 'nowhere'"),
        (("--target-device-map", '{"model": "cuda:99"}'), "--target-device-map is 'cuda:99'"),
        (("--target-device-map", "{"), "is not JSON"),
        (("--target-device-map", "{}"), "target_device_map is {}; want at least one module"),
        (("--draft-device-map", '{"model": null}'), "draft_device_map is {'model': None}; want"),
        (("--target-device-map", '{"model.layers": "cpu", "lm_head": "disk"}'), "device_map provided does not give"),
    ],
)
def test_the_command_refuses_places_in_one_line(capsys, options, message):
    with leaving(2):
        cli.main(["decode", "--prompt", "x", *options])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("heads", "groups", "processes", "cut"), [(4, 2, 2, True), (3, 3, 2, False), (4, 1, 2, False)])
def test_attention_is_cut_only_between_heads(heads, groups, processes, cut):
    config = Starcoder2Config(num_attention_heads=heads, num_key_value_heads=groups)
    whole_heads(config, processes)
    assert any("attn" in rule for rule in config.base_model_tp_plan) == cut
    assert any("mlp" in rule for rule in config.base_model_tp_plan)
