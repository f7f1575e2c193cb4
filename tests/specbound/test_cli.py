"""The command line: contracts of the JSON output, exit codes, one clear line for bad input, light start-up."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction

import pytest
import torch

from specbound import cli, shipped_pair
from specbound.commands import bench
from specbound.commands.decode import MarkedStream
from specbound.proofs_checks.claims import ledger
from specbound.theory.prefix_tree import PrefixTree


@pytest.fixture
def run(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


PUBLISHED = ("solve", "--target", "1/3,2/3", "--draft", "2/3,1/3", "--length", "2")


def test_help_loads_neither_torch_nor_cvxpy():
    program = (
        "import sys, specbound.cli\n"
        "try: specbound.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'cvxpy', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_command_explains_itself_with_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Example:" in out


def test_solve_prints_the_published_example_exactly(run):
    code, out, _ = run(*PUBLISHED, "--json")
    data = json.loads(out)
    assert code == 0
    exact = {result["name"]: Fraction(result["exact"]) for result in data["results"] if result["exact"]}
    assert exact["token"] == Fraction(10, 9)
    assert exact["block"] == exact["lossless-optimum"] == Fraction(11, 9)
    assert exact["block-transport-optimum"] == Fraction(12, 9)
    fields = {"name", "value", "exact", "bound", "gap", "lossless", "source", "seconds"}
    assert all(fields <= set(result) for result in data["results"])
    assert data["instance"]["length"] == 2


def test_solve_proves_the_best_acceptance_at_a_deviation_in_fractions(run, tmp_path):
    code, out, _ = run(*PUBLISHED, "--deviation", "1/9", "--frontier", str(tmp_path / "f.png"), "--json")
    results = {result["name"]: result for result in json.loads(out)["results"]}
    assert code == 0
    assert results["lossy-optimum"]["exact"] == results["budgeted"]["exact"] == "40/27"
    assert results["lossy-optimum"]["gap"] == 0
    assert results["lossy-optimum"]["deviation"] == "1/9"
    assert not results["lossy-optimum"]["lossless"]
    assert (tmp_path / "f.png").stat().st_size > 10_000
    code, out, _ = run(*PUBLISHED, "--deviation", "0", "--paths", "2", "--json")
    results = {result["name"]: result for result in json.loads(out)["results"]}
    assert results["lossy-optimum"]["exact"] == results["lossless-optimum"]["exact"] == "131/81"


def test_solve_reads_an_instance_file(run, tmp_path):
    file = tmp_path / "tree.json"
    file.write_text(PrefixTree.random(3, 2, seed=5).to_json())
    _, from_file, _ = run("solve", "--instance", str(file), "--json")
    _, from_seed, _ = run("solve", "--random", "3", "--length", "2", "--seed", "5", "--json")
    values = [[result["value"] for result in json.loads(text)["results"]] for text in (from_file, from_seed)]
    assert values[0] == values[1]


def test_solve_prints_a_table_for_people(run):
    code, out, _ = run(*PUBLISHED)
    assert code == 0
    assert "11/9" in out
    assert "lossless-optimum" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("solve",), "give one instance"),
        (("solve", "--target", "1/3,2/3"), "--length is missing"),
        (("solve", "--target", "1/3,2/3", "--length", "2"), "--draft is missing"),
        (("solve", "--target", "1/3,1/3", "--draft", "1/2,1/2", "--length", "1"), "sums to 0.666"),
        (("solve", "--target", "x,1", "--draft", "1/2,1/2", "--length", "1"), "'x' is not a number"),
        (("solve", "--target=-1,2", "--draft", "1/2,1/2", "--length", "1"), "not negative"),
        (("solve", "--random", "3", "--target", "1", "--draft", "1", "--length", "1"), "give one instance"),
        (("solve", "--random", "3", "--length", "0"), "0 is not in the range"),
        (("solve", "--random", "3", "--length", "2", "--concentration", "nan"), "concentration is nan"),
        (("solve", "--instance", "no-such-file.json"), "--instance no-such-file.json: No such file"),
        ((*PUBLISHED, "--deviation", "1.5"), "--deviation is 1.5"),
        ((*PUBLISHED, "--deviation", "x"), "'x' is not a number"),
        (("solve", "--random", "8", "--length", "3", "--frontier", "f.png"), "take up to 400"),
        (("solve", "--no-such-option"), "No such option"),
        (("no-such-command",), "No such command"),
        (("check", "--only", "XY"), "no claim starts with 'XY'"),
        (("audit", "table"), "which needs the table of one tree"),
        (("audit", "nothing"), "verifier is 'nothing'"),
        (("audit", "block", "--paths", "2"), "takes one path"),
        (("audit", "block", "--vocab", "3..2"), "'3..2' is empty"),
        (("decode", "--target", "somewhere", "--prompt", "x"), "--draft is missing"),
        (("decode", "--target", "./nowhere", "--draft", "./nowhere", "--prompt", "x"), "no such folder"),
        (("decode", "--verifier", "blok", "--prompt", "x"), "verifier is 'blok'"),
        (("audit", "examples/audit_tensor_verifier.py:verify"), "a file; write package.module:function"),
        (("audit", "examples.audit_tensor_verifier"), "write a function as package.module:function"),
        (
            ("sweep", "--out", "x", "--dry-run", "--methods", "./mine.py:verify"),
            "'./mine.py:verify', a file",
        ),
        (("decode", "--prompt", ""), "--prompt is empty"),
        (("decode", "--prompt", "x", "--adaptive", "head", "--head", "nowhere"), "--head is nowhere; there is no"),
        (("decode", "--prompt", "x", "--top-p", "nan"), "'--top-p': nan is not a number"),
        (("audit", "block", "--seconds", "nan"), "'--seconds': nan is not a number"),
        (("demo", "--temperature", "nan"), "'--temperature': nan is not a number"),
        (("decode", "--prompt", "x", "--seed", str(2**70)), "is not in the range 0<=x<="),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("specbound: ")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "x"}', '{"version": 1}', "null"])
def test_malformed_instances_are_refused(run, tmp_path, text):
    file = tmp_path / "tree.json"
    file.write_text(text)
    code, _, err = run("solve", "--instance", str(file))
    assert code == 2
    assert err.count("\n") == 1


def test_check_prints_findings_as_json(run):
    code, out, _ = run("check", "--only", "BV-example", "--json")
    (finding,) = json.loads(out)["findings"]
    assert code == 0
    assert {"id", "source", "claim", "verdict", "evidence", "counterexample", "seconds"} <= set(finding)
    assert finding["verdict"] == "proved"


def test_check_exits_1_when_a_finding_is_not_the_recorded_one(run, monkeypatch):
    monkeypatch.setattr(ledger, "read_record", lambda: {"BV-example": {"verdict": "refuted", "counterexample": None}})
    code, _, err = run("check", "--only", "BV-example")
    assert code == 1
    assert "differs from the record: BV-example" in err


def test_verifiers_lists_declared_and_measured_facts(run):
    code, out, _ = run("verifiers", "--json")
    entries = {entry["name"]: entry for entry in json.loads(out)["verifiers"]}
    assert code == 0
    assert entries["block"]["lossless"]
    assert entries["block"]["measured_lossless"]
    assert entries["block"]["paths"] == "single"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--plot", "x.xyz"), "'x.xyz' wants one of the endings .png, .svg, .pdf"),
        (("--emit", "none/x.json"), "'none/x.json' is in a folder that does not exist"),
        (("--certificate", "x" * 300), "too long for the name of a file"),
    ],
)
def test_where_nothing_can_be_written_is_told_before_the_work(run, monkeypatch, arguments, message):
    from specbound.commands import solve

    monkeypatch.setattr(solve, "certified_optima", lambda *a: pytest.fail("worked first"))
    code, out, err = run(*PUBLISHED, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"Invalid value for '{arguments[0]}'" in err
    assert message in err


@pytest.mark.parametrize(
    "error, code, words",
    [
        (MemoryError("Unable to allocate 9 GiB"), 2, "out of memory: Unable to allocate 9 GiB; use a smaller"),
        (RuntimeError("two\nlines"), 1, "two lines"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply: maximum recursion depth exceeded"),
        (ValueError("9" * 5000), 2, "9 ... 9"),
    ],
)
def test_whatever_goes_wrong_is_one_short_line(run, monkeypatch, error, code, words):
    def fail(only):
        raise error

    monkeypatch.setattr(ledger, "select", fail)
    found, _, err = run("check")
    assert found == code
    assert words in err
    assert err.count("\n") == 1
    assert len(err) < 1100


def test_a_tolerance_that_cannot_be_met_names_the_option(run):
    code, _, err = run("solve", "--random", "3", "--length", "3", "--paths", "3", "--tolerance", "1e-300")
    assert code == 1
    assert "give a larger --tolerance" in err
    assert "max_rounds" not in err


def test_an_interrupt_ends_without_a_traceback(run, monkeypatch):
    def interrupted(only):
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "select", interrupted)
    code, _, err = run("check")
    assert code == 130
    assert err.strip() == "specbound: interrupted"


def test_solve_covers_several_paths_with_certified_optima(run):
    code, out, _ = run(*PUBLISHED, "--paths", "2", "--json")
    results = {result["name"]: result for result in json.loads(out)["results"]}
    assert code == 0
    assert Fraction(results["gbv"]["exact"]) == Fraction(131, 81)
    assert abs(results["lossless-optimum"]["value"] - 131 / 81) < 1e-6
    assert abs(results["block-transport-optimum"]["value"] - 134 / 81) < 1e-6
    assert results["lossless-optimum"]["gap"] <= 1e-6


@pytest.mark.parametrize("objective", ["lossless", "block-transport"])
def test_objectives_select_verifiers_and_their_optimum(run, objective):
    _, out, _ = run(*PUBLISHED, "--paths", "2", "--objective", objective, "--json")
    names = {result["name"] for result in json.loads(out)["results"]}
    assert f"{objective}-optimum" in names
    assert ("greedy-block" in names) == (objective == "block-transport")
    assert ("two-level" in names) == (objective == "lossless")


def test_a_certificate_is_saved_and_verified_and_a_forged_one_is_not(run, tmp_path):
    file = tmp_path / "certificate.json"
    code, _, _ = run(*PUBLISHED, "--paths", "2", "--objective", "lossless", "--certificate", str(file))
    assert code == 0
    code, out, _ = run("check", "--certificate", str(file), "--json")
    assert code == 0
    assert json.loads(out)["verified"]
    forged = json.loads(file.read_text())
    assert forged["value"] == forged["bound"] == "131/81"
    forged["bound"] = "1310/811"
    file.write_text(json.dumps(forged))
    code, _, err = run("check", "--certificate", str(file))
    assert code == 1
    assert "its witnesses prove" in err


def test_solve_draws_a_picture(run, tmp_path):
    file = tmp_path / "plot.png"
    code, _, _ = run(*PUBLISHED, "--paths", "2", "--objective", "lossless", "--plot", str(file))
    assert code == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert file.stat().st_size > 20_000


def test_the_draft_length_example_is_solved(run):
    code, out, _ = run("solve", "--mdp", "examples/stopping.json", "--json")
    assert code == 0
    assert json.loads(out)["eta"]["exact"] == "830483/3567008"


def test_audit_clears_a_right_verifier_and_tells_the_story_of_a_wrong_one(run):
    code, out, _ = run("audit", "block", "--cases", "10", "--length", "1..2", "--json")
    assert code == 0
    assert json.loads(out)["verdict"] == "lossless"
    code, out, _ = run("audit", "spectr-gbv-published", "--vocab", "2", "--length", "1", "--paths", "2", "--cases", "5")
    assert code == 1
    assert "not lossless" in out
    assert "Smallest counterexample" in out


def test_bench_recommends_a_candidate_and_says_how_sure(run):
    code, out, _ = run("bench", "--count", "2", "--lengths", "2", "--paths", "1,2", "--new-tokens", "8", "--json")
    report = json.loads(out)
    assert code == 0
    methods = [entry["method"] for entry in report["decoding"]]
    assert methods == ["plain", "block K=1 L=2", "token K=1 L=2", "score-race K=2 L=2"]
    assert report["recommendation"]["name"] in methods
    assert 0 <= report["recommendation"]["confidence"] <= 1


def test_bench_compares_drafters_and_says_how_much_faster_the_best_is(run):
    small = ("--count", "2", "--lengths", "2", "--new-tokens", "8", "--top-k", "3")
    chosen = ("--verifiers", "block,tree-traversal,tree-score-race", "--paths", "1")
    drafts = ("--drafts", "without-replacement:2,1", "--drafts", "stem:1,2", "--drafts", "prompt-lookup:2")
    code, out, err = run("bench", *small, *chosen, *drafts, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert [entry["method"] for entry in report["decoding"]] == [
        "plain",
        "block K=1 L=2",
        "tree-traversal without-replacement:2,1 L=2",
        "tree-score-race stem:1,2 L=2",
        "tree-traversal stem:1,2 L=2",
        "block prompt-lookup:2 L=2",
    ]
    found = report["recommendation"]
    low, high = found["speedup"]
    assert 0 < low <= high
    assert found["name"].startswith(found["verifier"])


def test_bench_takes_any_verifier_and_drafts_that_stop_early(run):
    small = ("--count", "2", "--lengths", "3", "--paths", "1,2", "--new-tokens", "8", "--top-k", "3")
    chosen = ("--verifiers", "typical,key-race", "--adaptive", "entropy", "--adaptive", "head")
    code, out, err = run("bench", *small, *chosen, "--json")
    assert code == 0, err
    entries = {entry["method"]: entry for entry in json.loads(out)["decoding"]}
    names = [f"{name} K={k} L=3" for k, name in ((1, "typical"), (1, "key-race"), (2, "key-race"))]
    stopped = [f"{name} {rule} L<=3" for rule in ("entropy", "head") for name in ("typical", "key-race")]
    assert list(entries) == ["plain", *names, *stopped]
    assert all(entry["perplexity"] > 1 for entry in entries.values())
    assert [name for name, entry in entries.items() if "deviation" in entry] == [names[0]]
    assert 0 < entries[names[0]]["deviation"]["deviation"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--verifiers", "tokn"), "verifier is 'tokn'"),
        (("--verifiers", "table"), "--verifiers has 'table', which needs"),
        (("--verifiers", "token", "--paths", "2"), "takes one path; give --paths 1 too"),
        (("--adaptive", "entropy", "--paths", "2"), "wants a candidate of one path"),
        (("--head", "x"), "belongs to --adaptive head"),
        (("--verifiers", "tree-univer"), "'tree-univer', which wants any tree with known laws; give one with --drafts"),
        (("--verifiers", "tree-score-race", "--drafts", "top:2"), "wants a stem, then independent paths"),
    ],
)
def test_bench_refuses_candidates_that_cannot_run(run, options, message):
    code, _, err = run("bench", *options)
    assert code == 2
    assert message in err


def test_bench_decodes_batches_and_takes_the_measured_length(run):
    options = ("--count", "2", "--verifiers", "block", "--paths", "1", "--lengths", "1", "--adaptive", "speed")
    code, out, _ = run("bench", *options, "--batch-size", "3", "--new-tokens", "8", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["settings"]["batch_size"] == 3
    assert [entry["method"] for entry in report["decoding"]] == ["plain", "block K=1 L=1", "block speed L<=1"]


def test_bench_counts_tokens_up_to_the_end_of_each_row():
    rows = torch.tensor([[5, 1, 0, 0], [5, 6, 7, 8], [1, 1, 1, 1]])
    assert bench._until_end(rows, 1).tolist() == [2, 4, 1]
    assert bench._until_end(rows, [7, 8]).tolist() == [4, 3, 4]
    assert bench._until_end(rows, None).tolist() == [4, 4, 4]


def test_decode_marks_every_token_with_its_origin(run):
    code, out, _ = run("decode", "--prompt", "def main(", "--max-new-tokens", "12", "--top-k", "4", "--json")
    (output,) = json.loads(out)["outputs"]
    assert code == 0
    assert output["tokens"] == len(output["origins"]) == 12
    assert output["origins"].count("correction") <= output["calls"]
    assert output["origins"].count("draft") <= sum(output["accepted"])


@pytest.mark.parametrize(
    "options",
    [
        ("--adaptive", "entropy"),
        ("--adaptive", "head"),
        ("--adaptive", "speed"),
        ("--verifier", "mjsd", "--beams", "2", "--threshold", "0.2"),
    ],
)
def test_decode_takes_adaptive_lengths_and_joint_acceptance(run, options):
    code, out, _ = run("decode", "--prompt", "def main(", "--max-new-tokens", "10", *options, "--json")
    (output,) = json.loads(out)["outputs"]
    assert code == 0
    assert output["tokens"] == 10
    assert output["perplexity"] > 1


def test_decoding_in_batches_gives_each_prompt_what_it_gets_alone(run):
    """Greedily, where the seed decides nothing; statistics, origins and perplexity by row."""
    prompts = ("--prompt", "def main(", "--prompt", "import", "--prompt", "class A:\n    x = ")
    options = ("--temperature", "0", "--max-new-tokens", "9", "--json")
    alone, together = (json.loads(run("decode", *prompts, *options, "--batch-size", size)[1]) for size in ("1", "2"))
    for one, other in zip(alone["outputs"], together["outputs"], strict=True):
        for name in ("prompt", "text", "tokens", "origins", "calls", "accepted", "drafted", "block_efficiency"):
            assert one[name] == other[name]
        assert one["perplexity"] == pytest.approx(other["perplexity"], rel=1e-4)
    assert [output["batch"] for output in together["outputs"]] == [2, 2, 1]
    assert "class A:" in run("decode", *prompts, *options[:-1], "--batch-size", "3")[1]


def test_greedy_mjsd_from_the_command_line_is_mjsd_with_its_threshold(run):
    options = ("--prompt", "def main(", "--temperature", "0", "--max-new-tokens", "16", "--verifier", "mjsd", "--json")
    kept = []
    for threshold in ("0", "0.3", "1"):
        report = json.loads(run("decode", *options, "--threshold", threshold, "--correction", "argmax")[1])
        assert report["settings"]["verifier_settings"] == {"threshold": float(threshold), "token": "argmax"}
        kept.append(report["outputs"][0]["block_efficiency"])
    assert kept[0] == 5 > kept[1] > kept[2] == 1


def test_the_settings_that_decode_reports_repeat_the_run(run):
    options = ("--adaptive", "head", "--min-length", "2", "--threshold", "0.3", "--top-k", "9", "--seed", "3")
    first = json.loads(run("decode", "--prompt", "def main(", "--max-new-tokens", "10", *options, "--json")[1])
    assert {"specbound", "torch", "transformers"} == first["settings"].pop("versions").keys()
    again, settings = [], first["settings"]
    assert settings.pop("verifier_settings") == {}
    assert settings.pop("do_sample")
    for name, value in settings.items():
        if value not in (None, False):
            again += [f"--{name.replace('_', '-')}", str(value)]
    second = json.loads(run("decode", "--prompt", first["outputs"][0]["prompt"], *again, "--json")[1])
    assert second["outputs"][0]["origins"] == first["outputs"][0]["origins"]
    assert second["outputs"][0]["text"] == first["outputs"][0]["text"]
    third = json.loads(run("decode", "--prompt", "def main(", *again, "--json", "--seed", "4")[1])
    assert third["outputs"][0]["text"] != first["outputs"][0]["text"]


@pytest.mark.parametrize(
    ("options", "most"),
    [(("--deviation", "0.02"), 0.02), (("--verifier", "typical", "--setting", "floor=0.2"), 1.0)],
)
def test_decode_measures_the_deviation_of_a_lossy_verifier_beside_the_perplexity(run, options, most):
    sampling = ("--length", "2", "--top-k", "3", "--max-new-tokens", "8")
    code, out, _ = run("decode", "--prompt", "def main(", *sampling, *options, "--json")
    (output,) = json.loads(out)["outputs"]
    found = output["deviation"]
    assert code == 0
    assert output["perplexity"] > 1
    assert 0 < found["deviation"] <= found["largest"] <= most + 1e-9
    assert found["kept"] <= found["best"] <= found["length"] == 2
    _, out, _ = run("decode", "--prompt", "def main(", *sampling, *options)
    assert "deviation of a call's law" in out


@pytest.mark.parametrize(
    "options, message",
    [
        (("--verifier", "token", "--deviation", "0.1"), "belongs to --verifier budgeted"),
        (("--setting", "floor"), "want NAME=NUMBER"),
        (("--verifier", "typical", "--setting", "ceiling=1"), "has no setting ceiling"),
        (("--verifier", "typical", "--setting", "floor=-1"), "floor is -1"),
        (("--beams", "2"), "only --verifier mjsd takes a beam draft"),
        (("--threshold", "0.5"), "belongs to --adaptive and to --verifier mjsd"),
        (("--adaptive", "head", "--target", "gpt2", "--draft", "gpt2"), "--head is missing"),
        (("--head", "x"), "belongs to --adaptive head"),
        (("--drafts", "top:2", "--verifier", "tree-score-race"), "wants a stem, then independent paths"),
        (("--drafts", "stem:4,2"), "want a stem shorter than the draft length 4"),
        (("--min-length", "2"), "belongs to --adaptive"),
        (("--correction", "argmax"), "--correction is argmax; it belongs to --verifier mjsd"),
        (("--adaptive", "entropy", "--verifier", "mjsd", "--threshold", "0.5"), "--verifier mjsd both have one"),
        (("--paths", "2", "--adaptive", "entropy"), "wants one sampled path"),
    ],
)
def test_decode_refuses_settings_that_do_not_go_together(run, options, message):
    code, _, err = run("decode", "--prompt", "x", *options)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("text", ["3", '{"a": 1}', "[]", '[{"a": 1}]', "[", '[""]'])
def test_prompt_files_that_hold_no_prompts_are_refused(run, tmp_path, text):
    file = tmp_path / "prompts.json"
    file.write_text(text)
    code, out, err = run("decode", "--prompts", str(file))
    assert code == 2
    assert out == ""
    assert f"--prompts {file}" in err


@pytest.mark.parametrize("device", ["cuda:99", "nowhere"])
def test_a_device_that_torch_cannot_use_is_named(run, device):
    code, _, err = run("decode", "--prompt", "x", "--device", device)
    assert code == 2
    assert f"--device is {device!r}" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("solve", "--mdp", "examples/stopping.json", "--paths", "3"), "leave out --paths"),
        (("solve", "--mdp", "examples/stopping.json", "--objective", "all"), "leave out --objective"),
        (("solve", "--mdp", "examples/stopping.json", "--random", "3"), "leave out --random"),
        (("solve", "--target", "1", "--draft", "1", "--length", "1", "--seed", "1"), "--seed belongs to --random"),
        (("audit", "block", "--device", "cpu"), "--device belongs to a sampled audit; give --resolution"),
        (("audit", "block", "--false-alarm", "0.1"), "--false-alarm belongs to a sampled audit"),
        (
            ("decode", "--verifier", "table", "--prompt", "x"),
            "--verifier is 'table', which needs the table of one tree",
        ),
        (("check", "--certificate", "x.json", "--only", "BV"), "leave out --only"),
        (("solve", "--random", "2", "--length", "1", "--tolerance", "0"), "--tolerance is 0.0"),
        (("solve", "--random", "2", "--length", "1", "--seed", "-3"), "-3 is not in the range"),
    ],
)
def test_options_that_would_be_ignored_or_make_no_sense_are_refused(run, arguments, message):
    code, _, err = run(*arguments)
    assert code == 2
    assert message in err


def test_the_emitted_verifier_is_executed_by_the_runtime_and_attains_the_optimum(run, tmp_path):
    from specbound.proofs_checks.laws.law import exact_law
    from specbound.runtime.verifiers.table import table_verifier

    file = tmp_path / "verifier.json"
    code, _, _ = run("solve", "--random", "2", "--length", "2", "--seed", "3", "--paths", "3", "--emit", str(file))
    assert code == 0
    tree = PrefixTree.random(2, 2, seed=3)
    law = exact_law(table_verifier(json.loads(file.read_text())).verify, tree, paths=3)
    assert law.total_variation(tree.target_law()) < 1e-12
    _, out, _ = run("solve", "--random", "2", "--length", "2", "--seed", "3", "--paths", "3", "--json")
    best = next(entry for entry in json.loads(out)["results"] if entry["name"] == "lossless-optimum")
    assert abs(law.acceptance_length - best["value"]) < 1e-6


def test_audit_samples_when_a_resolution_is_given(run):
    arguments = ("audit", "token", "--vocab", "2", "--length", "1", "--cases", "2", "--resolution", "0.1", "--json")
    code, out, _ = run(*arguments)
    report = json.loads(out)
    assert code == 0
    assert report["verdict"] == "not rejected"
    assert report["lossless"] is None


@pytest.mark.parametrize("harm", ["no config", "no tokenizer", "torn weights", "other sizes"])
def test_a_folder_that_is_no_whole_model_is_named_in_one_line(run, tmp_path, harm):
    folder = tmp_path / "model"
    shutil.copytree(shipped_pair.TARGET, folder)
    if harm == "no config":
        (folder / "config.json").unlink()
    elif harm == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif harm == "torn weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))
    code, out, err = run("decode", "--prompt", "x", "--target", str(folder), "--draft", str(folder))
    assert code == 2
    assert out == ""
    assert err.splitlines()[-1].startswith(f"specbound: --target {'is ' if harm == 'no config' else ''}{folder}")


def test_an_interrupted_decoding_prints_what_it_has_and_exits_with_130(run, monkeypatch):
    put, calls = MarkedStream.put, []

    def put_twice(self, value):
        put(self, value)
        calls.append(value)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(MarkedStream, "put", put_twice)
    code, out, _ = run("decode", "--prompt", "x", "--prompt", "y", "--max-new-tokens", "60", "--json")
    data = json.loads(out)
    assert code == 130
    assert data["total"]["interrupted"]
    assert len(data["outputs"]) == 1
    assert 0 < data["outputs"][0]["tokens"] < 60


@pytest.mark.slow
@pytest.mark.parametrize("command", [PUBLISHED, ("solve", "--mdp", "examples/stopping.json"), ("verifiers",)])
def test_a_narrow_terminal_cuts_no_cell_of_a_table(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "200")
    wide = re.findall(r"[\w./%:]+", run(*command)[1])
    monkeypatch.setenv("COLUMNS", "30")
    _, out, _ = run(*command)
    assert "\u2026" not in out
    assert sorted(re.findall(r"[\w./%:]+", out)) == sorted(wide)


def test_progress_leaves_no_trace_where_standard_error_is_a_file(run):
    _, _, err = run("verifiers", "--json")
    assert err == ""


@pytest.mark.slow
def test_output_that_the_encoding_lacks_is_escaped_and_input_it_lacks_is_refused():
    command = [sys.executable, "-c", "from specbound.cli import main; main()", "decode", "--max-new-tokens", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "--prompt", "\u65e5"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(r"\u65e5")
    done = subprocess.run(command, input=b"\xe6", capture_output=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith(b"specbound: standard input: not ascii text")


def test_a_full_device_is_named(run):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    code, _, err = run(*PUBLISHED, "--emit", "/dev/full")
    assert code == 2
    assert err == "specbound: /dev/full: No space left on device\n"


@pytest.mark.parametrize("before", [True, False])
def test_a_group_of_processes_that_the_command_entered_is_left_at_the_end(run, monkeypatch, tmp_path, before):
    def enter(only=()):
        store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        return []

    if before:
        enter()
    monkeypatch.setattr(ledger, "select", (lambda only: []) if before else enter)
    run("check")
    assert torch.distributed.is_initialized() == before
    if before:
        torch.distributed.destroy_process_group()


CONTRACT = ("solve", "--target", "9/10,1/20,1/20", "--draft", "1/3,1/3,1/3", "--length", "1")


@pytest.mark.parametrize(("spec", "optimum"), [("iid:2", "59/90"), ("without-replacement:2", "23/30")])
def test_solve_answers_for_other_drafts(run, tmp_path, spec, optimum):
    file, plot = tmp_path / "drafts.json", tmp_path / "drafts.svg"
    files = ("--certificate", str(file), "--plot", str(plot))
    code, out, _ = run(*CONTRACT, "--drafts", spec, "--objective", "lossless", *files, "--json")
    answer = json.loads(out)
    found = {result["name"]: result["exact"] for result in answer["results"]}
    assert code == 0
    assert found["lossless-optimum"] == optimum
    assert (answer["instance"]["drafts"], "paths" in answer["instance"]) == (spec, False)
    assert ("block" in found) == (spec == "iid:2")
    assert plot.stat().st_size > 10_000
    code, out, _ = run("check", "--certificate", str(file))
    assert code == 0
    assert f"optimum of drafts {spec} on 4 nodes" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--drafts", "beam:2"), "--drafts is 'beam:2'; want iid:K"),
        (("--drafts", "top:2,1"), "want 1 numbers, one per drafted token"),
        (("--drafts", "iid:2", "--paths", "2"), "--paths is about K independent paths; leave it out with --drafts"),
        (("--drafts", "iid:2", "--emit", "x.json"), "--emit is about K independent paths"),
    ],
)
def test_drafts_that_do_not_fit_are_refused(run, arguments, message):
    code, out, err = run(*CONTRACT, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_solve_counts_the_target_calls_of_many_calls(run):
    iid = ["solve", "--target", "1/3,2/3", "--draft", "2/3,1/3", "--length", "1", "--tokens"]
    data = json.loads(run(*iid, "6", "--json")[1])
    calls = {result["name"]: result for result in data["results"] if result["name"].startswith("calls-")}
    exact = {"block": "928/243", "pooled-fill": "296/81", "pooled-young": "296/81", "optimum": "296/81"}
    assert {name: entry["exact"] for name, entry in calls.items()} == {f"calls-{k}": v for k, v in exact.items()}
    assert calls["calls-optimum"]["gap"] == 0
    assert (data["instance"]["length"], data["instance"]["tokens"]) == (1, 6)
    assert "expected target calls for 6 tokens" in run(*iid, "6")[1]
    several = json.loads(run(*iid, "4", "--paths", "2", "--json")[1])["results"]
    found = {result["name"]: result["value"] for result in several if result["name"].startswith("calls-")}
    assert found == pytest.approx({"calls-stateless-optimum": 1612 / 729, "calls-optimum": 176 / 81}, abs=1e-6)


def test_solve_refuses_more_tokens_than_the_instance_is_deep(run):
    code, _, err = run("solve", "--random", "2", "--length", "2", "--tokens", "4")
    assert code == 2
    assert "--tokens is 4, but the instance is 2 tokens deep" in err
    assert run("solve", "--random", "2", "--length", "2", "--tokens", "3", "--json")[0] == 0


def test_experiments_are_listed_and_write_what_they_found(run, tmp_path):
    listed = json.loads(run("experiment", "--json")[1])["experiments"]
    assert "block-verification" in {entry["name"] for entry in listed}
    assert "2403.10444" in run("experiment")[1]
    small = ("--quick", "--prompts", "1", "--new-tokens", "4", "--lengths", "2", "--out", str(tmp_path))
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "def main():"}\n')
    code, out, err = run("experiment", "block-verification", "--tasks", str(tasks), *small, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["settings"]["prompts"] == {"tasks": 1}
    assert {"block-verification.json", "block-verification.csv", "block-verification.png"} <= {
        file.name for file in tmp_path.iterdir()
    }
    code, _, err = run("experiment", "block-verification", *small, "--temperature", "1", "--draft-temperature", "1")
    assert code == 2
    assert "--temperature is that of both models" in err


def test_three_routes_agree_on_the_optima(run, monkeypatch):
    from specbound.theory import block_transport

    arguments = (*PUBLISHED, "--paths", "2", "--solver", "all")
    code, out, _ = run(*arguments, "--json")
    report = json.loads(out)
    found = {entry["name"]: entry["value"] for entry in report["results"]}
    assert code == 0
    for objective, solvers, value in (
        ("lossless", ("highs", "cvxpy"), 131 / 81),
        ("block-transport", ("pot",), 134 / 81),
    ):
        for solver in solvers:
            assert found[f"{objective}-optimum ({solver})"] == pytest.approx(value, abs=1e-7)
    assert "lossless-optimum (pot)" not in found
    assert [entry["routes"] for entry in report["routes"].values()] == [3, 4]
    pot = block_transport.pot_optimum
    monkeypatch.setattr(block_transport, "pot_optimum", lambda tree, paths: pot(tree, paths - 1))
    code, out, _ = run(*arguments, "--objective", "block-transport")
    assert code == 1
    assert "4 routes DO NOT AGREE" in out
    assert "is no transport problem" in run(*PUBLISHED, "--objective", "lossless", "--solver", "pot")[2]


def test_a_head_is_trained_for_a_pair_and_decodes(run, tmp_path):
    file, data = tmp_path / "head.safetensors", tmp_path / "text.py"
    data.write_text("def main(x):\n    return x + 1\n\n" * 20)
    small = ("--windows", "16", "--prompt-tokens", "8", "--new-tokens", "16", "--epochs", "2")
    code, out, err = run("train-head", "--data", str(data), "--out", str(file), *small, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["training_examples"] > 5
    assert 0 < report["held_out"]["mean_predicted"] < 1
    code, _, err = run(
        "decode", "--prompt", "x", "--adaptive", "head", "--head", str(file), "--max-new-tokens", "5", "--json"
    )
    assert code == 0, err
    assert "trained on" in run("train-head", "--data", str(data), "--out", str(file), *small, "--from-data")[1]
    assert (
        "no file has 999 tokens"
        in run("train-head", "--data", str(data), "--out", str(file), "--prompt-tokens", "999")[2]
    )
    assert "--data is missing" in run("train-head", "--out", str(file))[2]


def test_two_models_pose_a_draft_length_problem_that_solve_solves(run, tmp_path):
    file = str(tmp_path / "problem.json")
    times = ("--target-time", "5", "--draft-time", "1")
    code, out, err = run("mdp", "--prompt", "def main(", "--depth", "2", "--max-length", "2", "--out", file, *times)
    assert code == 0, err
    assert "a target pass takes 5, a drafted token 1" in out
    solved = json.loads(run("solve", "--mdp", file, "--json")[1])
    assert solved["instance"]["contexts"] > 1
    assert all(entry["eta"]["share"] <= 1 + 1e-12 for entry in solved["constant_lengths"])
    assert run("mdp", "--prompt", "def main(", "--depth", "1", "--out", file)[0] == 0
    assert "give both or neither" in run("mdp", "--prompt", "x", "--out", file, "--draft-time", "1")[2]
