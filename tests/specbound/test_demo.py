"""The demo's quick variant on the shipped pair: its report, its agreement with theory, and what would break it."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from specbound import cli
from specbound.commands import demo
from specbound.proofs_checks.laws import judge
from specbound.theory import optima

pytestmark = pytest.mark.slow


@pytest.fixture
def run(capsys):
    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["demo", "--quick", "--new-tokens", "24", *arguments])
        return stopped.value.code, capsys.readouterr().out

    return call


def test_the_quick_demo_agrees_with_theory(run):
    code, out = run("--length", "2", "--top-k", "3", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["settings"]["prompts"], report["settings"]["new_tokens"]) == (demo.QUICK["prompts"], 24)
    names = ["plain", "token", "block", "score-race K=2", "score-race K=4"]
    assert [entry["method"] for entry in report["decoding"]] == names
    for check, entry in zip(report["checks"], report["decoding"][1:], strict=True):
        assert check["agrees"]
        assert check["lossless"]
        assert check["calls"] == entry["calls"]
        assert check["measured"] == pytest.approx(entry["block_efficiency"])
        assert check["interval"] < check["half_width"]
        assert check["replayed"] == demo.QUICK["contexts"]
        assert check["difference"] < 1e-9
        assert 0.8 < check["share_of_optimum"] <= 1 + 1e-9
        token, block = check["one_path"]["token"], check["one_path"]["block"]
        assert token <= block + 1e-12
        assert check["paths"] == 1 or block <= check["predicted"] + 1e-9


def test_the_demo_fails_where_the_calls_keep_another_number_than_predicted(run, monkeypatch):
    """Broken twin: the predictions of block verification are too small."""
    closed = demo._closed_form
    monkeypatch.setattr(
        demo, "_closed_form", lambda run, trees: [phi * (1 - 0.7 * (run.name == "block")) for phi in closed(run, trees)]
    )
    code, out = run("--length", "1", "--top-k", "2", "--prompts", "1", "--json")
    assert code == 1
    assert [check["verifier"] for check in json.loads(out)["checks"] if not check["agrees"]] == ["block"]


def test_the_demo_fails_when_a_verifier_is_not_lossless_and_says_so_in_its_table(run, monkeypatch):
    monkeypatch.setattr(judge.Evidence, "total_variation", 1e-3)
    code, out = run("--length", "1", "--top-k", "2", "--prompts", "1")
    assert code == 1
    assert "what theory says of these very calls" in out
    assert "NOT LOSSLESS" in " ".join(out.split())


def test_where_nothing_can_be_kept_the_demo_shows_no_share_of_the_optimum(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(optima, "certified_optimum", lambda tree, paths: SimpleNamespace(value=0.0))
    code, out = run("--length", "1", "--top-k", "2", "--prompts", "1", "--contexts", "1")
    assert code == 0
    assert re.search(r"of the optimum +(│ +- ){4}│", out)


def test_more_prompts_than_shipped_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--prompts", "10000"])
    assert stopped.value.code == 2
    assert "--prompts is 10000; the pair ships" in capsys.readouterr().err
