"""The example scripts run, and print what their papers and the theory say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "solve_toy.py": ["optimum", "total variation to the target"],
    "validate_verifier.py": ["two-level: lossless on 8 random trees", "% of the optimum"],
    "decode_your_pair.py": ["--- score-race, 4 path(s)"],
    "papers/block_verification.py": ["10/9", "11/9", "4/3", "L = 4: token"],
    "papers/greedy_multi_path.py": ["optimum 131/81", "gbv 131/81", "K = 2: gbv 19/25", "K = 3: gbv 127/200"],
    "papers/spectr_gbv.py": [
        "K = 2: derived acceptance 5/6, best coupling of K drafts 8/9",
        "spectr-gbv-published: keeps",
        "not lossless",
        "spectr-gbv: keeps 0.833333, lossless",
    ],
    "papers/mjsd.py": [
        "k = 1: (2, 0, 2, 0, 2, 0), perplexity 1.8257",
        "k = 3: (1, 1, 1, 1, 1, 1), perplexity 1.5682",
        "tau = 1/2: ",
        "shipped pair, greedy, tau = 1: 48 tokens in 48 calls",
    ],
    "papers/specdec_plus_plus.py": ["830483/3567008", "head, R > 0.7: "],
}


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_and_says_what_it_should(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    for words in SAYS[name]:
        assert words in out


def test_there_is_a_script_of_one_screen_for_every_paper():
    scripts = list((EXAMPLES / "papers").glob("*.py"))
    assert len(scripts) == 5
    for number in ("2403.10444", "2602.16961", "2604.25925", "2407.09722", "2405.19715"):
        assert sum(number in script.read_text(encoding="utf-8") for script in scripts) == 1
    assert all(len(script.read_text(encoding="utf-8").splitlines()) <= 45 for script in scripts)


def test_the_validation_stops_at_a_verifier_that_is_not_lossless(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["validate_verifier.py", "spectr-gbv-published"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(EXAMPLES / "validate_verifier.py"), run_name="__main__")
    assert "spectr-gbv-published: not lossless" in capsys.readouterr().out
