"""Experiments: tasks in the layouts people have, jobs that are recorded once, and what the records are made into."""

from __future__ import annotations

import csv
import io
import json
import math
from itertools import product

import pytest
import torch
from matplotlib.figure import Figure

from specbound import shipped_pair
from specbound.proofs_checks.experiments import (
    block_verification,
    decoding,
    energy,
    experiment,
    gbv,
    specdec,
    spectr_gbv,
)
from specbound.proofs_checks.experiments.experiment import Experiment, Job, Settings, Table, Workplace
from specbound.proofs_checks.experiments.joint_greedy import joint_greedy
from specbound.proofs_checks.experiments.tasks import Prompt, read_tasks
from specbound.runtime.models import load_pair
from tests.support.tiny_models import tiny


def write(path, *entries):
    path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
    return path


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([{"question_id": 81, "category": "writing", "turns": ["a", "b"]}], [("writing", 0, "a")]),
        ([{"task_id": "HumanEval/3", "prompt": "def f", "test": "x"}], [("HumanEval", 0, "def f")]),
        (
            [{"question": "1 + 1?", "answer": "2"}, {"question": "2?", "answer": "2"}],
            [("f", 0, "1 + 1?"), ("f", 1, "2?")],
        ),
        ([{"prompt": "p", "task": "t"}, "", {"text": "q"}], [("t", 0, "p"), ("f", 0, "q")]),
    ],
)
def test_tasks_are_read_in_every_layout(tmp_path, entries, found):
    assert read_tasks(write(tmp_path / "f.jsonl", *entries)) == [Prompt(*entry) for entry in found]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["{"], "line 1: not JSON"),
        ([{"prompt": "p"}, [1]], r"line 2: \[1\] is no JSON object"),
        ([{"turns": []}], "line 1: no prompt; want"),
        ([], "holds no prompts"),
    ],
)
def test_what_is_no_task_is_named(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        read_tasks(write(tmp_path / "f.jsonl", *entries))


def test_the_shipped_tasks_are_four_kinds_with_their_origin_and_were_not_trained_on():
    prompts = read_tasks(shipped_pair.TASKS)
    assert {p.task for p in prompts} == {"code", "docstrings", "tests", "tables"}
    manifest = shipped_pair.manifest()
    assert "Python Software Foundation" in manifest["tasks"]["text"]
    files = {json.loads(line)["file"] for line in shipped_pair.TASKS.read_text(encoding="utf-8").splitlines()}
    assert files == set(manifest["tasks"]["files"])
    assert not files & set(manifest["training_files"])


def counting(calls: list[str]) -> Experiment:
    def job(key: str) -> Job:
        return Job(key, lambda place: calls.append(key) or {"value": len(key)})

    return Experiment(
        "counting", "0000.00000", "for tests", lambda settings: [job("a"), job("bb")],
        lambda found: [Table("t", ("key",), [(record["key"],) for record in found])], lambda found, figure: None,
    )  # fmt: skip


def test_a_run_goes_on_where_it_stopped_and_a_complete_one_only_reads(tmp_path):
    calls: list[str] = []
    settings, place = Settings(()), Workplace(lambda: pytest.fail("no job asks for the pair"))
    steps = experiment.run(counting(calls), settings, place, tmp_path)
    assert [next(steps), next(steps)] == [(0, 2), (1, 2)]
    (tmp_path / "records.jsonl").open("a").write('{"key": "b')
    with (tmp_path / "records.jsonl").open("a") as lines:
        lines.write("\n")
    assert list(experiment.run(counting(calls), settings, place, tmp_path)) == [(1, 2), (2, 2)]
    assert list(experiment.run(counting(calls), settings, place, tmp_path)) == [(2, 2)]
    assert calls == ["a", "bb"]
    assert [record["key"] for record in experiment.records(tmp_path)] == ["a", "bb"]
    with pytest.raises(ValueError, match="holds records of other settings"):
        list(experiment.run(counting(calls), Settings((), seeds=9), place, tmp_path))


def test_records_as_csv_have_one_column_a_plain_field():
    text = experiment.as_csv([{"key": "a", "x": 1, "maps": {}}, {"key": "b", "y": 2.5}])
    assert list(csv.DictReader(io.StringIO(text))) == [
        {"key": "a", "x": "1", "y": ""},
        {"key": "b", "x": "", "y": "2.5"},
    ]


def test_means_and_pairs():
    found = [
        {"turn": t, "method": m, "value": v} for t, m, v in (("1", "a", 2), ("1", "b", 1), ("2", "a", 9), ("2", "b", 3))
    ]
    assert decoding.paired(found, "a", "b", "value").mean == 2.5
    assert math.isnan(decoding.mean([1.0]).half_width)
    assert decoding.mean([]).n == 0
    assert str(decoding.mean([1.0, 3.0])) == "2.000 +- 1.960"


def test_the_map_of_bernoulli_pairs_is_exact():
    values = block_verification.acceptance_lengths(2 / 3, 1 / 3, 2)
    expected = {"token": 10 / 9, "block": 11 / 9, "lossless-optimum": 11 / 9, "block-transport": 4 / 3}
    assert values == pytest.approx(expected)


@pytest.fixture(scope="module")
def pair():
    return load_pair(shipped_pair.TARGET, shipped_pair.DRAFT, device="cpu")


def test_block_verification_runs_on_the_shipped_pair(tmp_path, pair):
    settings = Settings(
        tuple(read_tasks(shipped_pair.TASKS, most=1))[:2], new_tokens=6, seeds=1, quick=True, lengths=(2,)
    )
    chosen = experiment.get("block-verification")
    *_, last = experiment.run(chosen, settings, Workplace(lambda: pair), tmp_path)
    assert last[0] == last[1] == 1 + 2 * 3
    found = experiment.records(tmp_path)
    assert {record["method"] for record in found if record["kind"] == "decoded"} == {"plain", "token L=2", "block L=2"}
    decoded, maps = chosen.tables(found)
    assert [row[0] for row in decoded.rows] == ["code"] * 3 + ["docstrings"] * 3 + ["all"] * 3
    ((length, gain, most, _, least, gap),) = maps.rows
    assert length == 2
    assert 1 < gain < most
    assert least >= -1e-12
    assert gap < 1e-9
    figure = Figure()
    chosen.draw(found, figure)
    assert len(figure.axes) == 5


def test_the_draft_s_own_temperature_scales_its_logits_and_is_taken_back(pair):
    ids = torch.tensor([[1, 2, 3]])
    plain = pair.draft(ids).logits
    with decoding.draft_at(pair, decoding.Temperatures(1.0, 0.5)):
        assert torch.allclose(pair.draft(ids).logits, 2 * plain)
    assert torch.equal(pair.draft(ids).logits, plain)
    with pytest.raises(ValueError, match="want positive ones"), decoding.draft_at(pair, decoding.Temperatures(0, 1)):
        pass


def test_an_unknown_experiment_is_named():
    with pytest.raises(ValueError, match="experiment is 'x'; known are block-verification"):
        experiment.get("x")


@pytest.mark.slow
def test_gbv_runs_on_the_shipped_pair_with_exact_values_beside_measured_ones(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(gbv, "MANY_PATHS", ("gbv", "kseq"))
    settings = Settings(tuple(read_tasks(shipped_pair.TASKS, most=1))[:1], 6, 1, True, (2,), (1, 2))
    chosen = experiment.get("gbv")
    list(experiment.run(chosen, settings, Workplace(lambda: pair), tmp_path))
    found = experiment.records(tmp_path)
    decoded, trees = chosen.tables(found)
    assert [row[1] for row in decoded.rows] == ["plain", "block K=1 L=2", "gbv K=2 L=2", "kseq K=2 L=2"]
    assert [(row[1], row[2]) for row in trees.rows] == [(1, "block"), (1, "gbv"), (1, "kseq"), (2, "gbv"), (2, "kseq")]
    for record in found:
        if record["kind"] == "tree":
            assert max(record["exact"].values()) <= record["bound"] + 1e-9
            for name, value in record["exact"].items():
                assert abs(record["measured"][name][0] - value) < 0.75
    figure = Figure()
    chosen.draw(found, figure)
    assert len(figure.axes) == 1


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("spectr-gbv", ["plain", "token K=1 L=2", "greedy-block K=1 L=2", "kseq K=2 L=2", "gbv K=2 L=2"]),
        ("mjsd", ["plain", "beam search of the target, beams=2", "mjgd k=2 beams=2", "mjgd k=4 beams=2"]),
        ("specdec++", ["plain", "constant L=2", "confidence 0.3", "entropy 0.3", "head 0.3"]),
    ],
)
def test_the_other_experiments_run_on_the_shipped_pair(tmp_path, pair, name, methods, monkeypatch):
    settings = Settings(tuple(read_tasks(shipped_pair.TASKS, most=2))[:2], 4, 1, True, (2,), (2,))
    monkeypatch.setattr(specdec, "WRITTEN", 16)
    monkeypatch.setattr(specdec, "REPEATS", 2)
    chosen = experiment.get(name)
    list(experiment.run(chosen, settings, Workplace(lambda: pair), tmp_path))
    found = experiment.records(tmp_path)
    made = chosen.tables(found)[0]
    assert [row[1] for row in made.rows][: len(methods)] == methods
    decoded = [record for record in found if record["kind"] == "decoded"]
    assert all(record["tokens"] == 4 and record["perplexity"] > 1 for record in decoded)
    figure = Figure()
    chosen.draw(found, figure)
    assert figure.axes


def test_verdict_times_are_a_table_of_their_own():
    entry = {"temperature": "1", "verify_seconds": 0.5, "target_seconds": 1.0, "calls": 10}
    found = [{"temperature": "1", "method": "plain", "calls": 3}]
    found += [entry | {"method": name} for name in ("kseq K=3 L=8", "spectr-gbv K=3 L=8")]
    assert spectr_gbv.verdict_times(found).rows == [
        ("1", "kseq K=3 L=8", "no", "50.000", "100.000"),
        ("1", "spectr-gbv K=3 L=8", "yes", "50.000", "100.000"),
    ]


def best_continuation(model, ids: list[int], size: int, vocab: int) -> tuple[int, ...]:
    """By listing every block."""
    blocks = list(product(range(vocab), repeat=size))
    with torch.no_grad():
        laws = model(torch.tensor([[*ids, *block] for block in blocks])).logits.log_softmax(-1)
    rows = torch.arange(len(blocks))[:, None], torch.arange(len(ids) - 1, len(ids) + size - 1)
    scores = laws[:, : len(ids) + size][rows].gather(-1, torch.tensor(blocks)[..., None]).sum(dim=(1, 2))
    return blocks[int(scores.argmax())]


def test_joint_greedy_decoding_is_exact_where_the_beam_is_as_wide_as_all_blocks():
    """Negative control: the greedy text is another one."""
    model, text, ids = tiny("llama", 11, vocab=4, layers=2), [1], torch.tensor([[1]])
    while len(text) < 7:
        text += best_continuation(model, text, min(3, 7 - len(text)), 4)
    assert joint_greedy(model, ids, 6, window=3, width=16).tolist() == [text]
    greedy = joint_greedy(model, ids, 6, window=1, width=1)
    assert greedy.tolist() == model.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=None).tolist()
    assert greedy.tolist() != [text]
    with pytest.raises(ValueError, match="window is 0"):
        joint_greedy(model, ids, 6, 0, 1)


def test_energy_is_the_sum_of_the_packages_and_absent_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_devices", list)
    assert energy.joules(tmp_path) is None
    for name, value in (("intel-rapl:0", "5000000"), ("intel-rapl:1", "1000000"), ("intel-rapl:0:0", "9000000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(value + "\n")
    assert energy.joules(tmp_path) == 6.0
    assert energy.used(6.0, 8.5) == 2.5
    assert energy.used(6.0, 1.0) is energy.used(None, 1.0) is None


def test_modelled_speed_is_tokens_per_call_by_the_cost_of_drafting():
    base = {"kind": "decoded", "tokens": 30, "calls": 10, "drafted": 40, "draft_seconds": 4.0, "target_seconds": 10.0}
    quantity = specdec.modelled([base, base | {"tokens": 20}, {"kind": "decoded", "tokens": 9}])
    assert quantity([base]) == f"{3 / (1 + 4 * 0.1):.3f}"
    assert quantity([{"tokens": 9}]) == ""


def test_a_stopping_job_finds_rules_that_are_never_above_the_optimum(pair):
    prompt = read_tasks(shipped_pair.TASKS, most=1)[0]
    found = specdec.stopping_job(prompt, 5).run(Workplace(lambda: pair))
    assert found["contexts"] > 5
    for rule in specdec.RULES:
        assert 0 < found[rule] <= found["optimum"] + 1e-12
    assert specdec._solved([found]).rows[0][:2] == (5, 1)
