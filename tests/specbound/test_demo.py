"""The demo's quick variant on the shipped pair: its report, its agreement with theory, and what would break it."""

from __future__ import annotations

import json

import pytest

from specbound import cli
from specbound.commands import demo
from specbound.proofs_checks.laws import judge

pytestmark = pytest.mark.slow


@pytest.fixture
def run(capsys):
    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["demo", "--quick", "--new-tokens", "24", *arguments])
        return stopped.value.code, capsys.readouterr().out

    return call


def test_the_quick_demo_agrees_with_theory(run):
    code, out = run("--length", "3", "--top-k", "3", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["settings"]["prompts"], report["settings"]["new_tokens"]) == (demo.QUICK["prompts"], 24)
    assert [entry["method"] for entry in report["decoding"]] == ["plain", *demo.VERIFIERS]
    for check in report["checks"]:
        assert check["agrees"]
        assert check["lossless"]
        assert check["contexts"] == demo.QUICK["contexts"]
        theory = check["theory"]
        assert theory["token"] <= theory["block"] + 1e-12
        assert abs(theory["block"] - theory["lossless-optimum"]) < 1e-9
        assert theory["block"] <= theory["block-transport-optimum"] + 1e-12


def test_the_demo_prints_its_tables(run):
    code, out = run("--length", "2", "--top-k", "2")
    assert code == 0
    assert "what theory says of these very calls" in out
    assert "block-transport optimum" in out


def test_the_demo_fails_when_a_verifier_is_not_lossless(run, monkeypatch):
    monkeypatch.setattr(judge.Evidence, "total_variation", 1e-3)
    code, _ = run("--length", "2", "--top-k", "2")
    assert code == 1


def test_more_prompts_than_shipped_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--prompts", "10000"])
    assert stopped.value.code == 2
    assert "--prompts is 10000; the pair ships" in capsys.readouterr().err
