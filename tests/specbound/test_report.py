"""The report: one page, self-contained, with every part; opened in a real browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from specbound import cli
from specbound.commands.report import DECODING_FIELDS, _read_json
from specbound.plots import draw_tree, figure
from specbound.report import Section, curves_section, decoding_section, gaps_section, page, tree_section
from specbound.theory import single_path
from specbound.theory.prefix_tree import PrefixTree

FINDING = {
    "id": "BV-x",
    "source": "a paper",
    "claim": "a claim with <angle> brackets",
    "tested": "an object",
    "verdict": "refuted",
    "evidence": "the evidence",
    "counterexample": "V=2, L=1",
    "seconds": 0.1,
    "recorded": False,
}
DECODING = {
    "settings": {"length": 4, "top_k": 4},
    "decoding": [
        {"method": "plain", "tokens_per_second": 100.0, "speedup": 1.0},
        {"method": "block", "tokens_per_second": 150.0, "speedup": 1.5, "block_efficiency": 2.75},
    ],
}


def every_section() -> list[Section]:
    tree = PrefixTree.random(2, 2, seed=1)
    values = {1: {"block": 1.0, "lossless optimum": 1.0}, 2: {"block": 1.0, "lossless optimum": 1.5}}
    return [
        curves_section("an instance", values, values, length=3, paths=2),
        gaps_section("Gaps", "gaps", "A sentence.", {"block": [0.5, 0.75], "two-level": [0.9, 1.0]}),
        tree_section("A tree", tree, single_path.optimum(tree).phi),
        decoding_section(DECODING),
    ]


class Elements(HTMLParser):
    """Collects the elements, and complains about those left open."""

    VOID = ("meta", "path", "use", "image", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        assert self.open.pop() == tag


def test_the_page_holds_every_part_and_is_well_formed():
    text = page([FINDING], every_section())
    elements = Elements()
    elements.feed(text)
    assert elements.open == []
    assert elements.seen.count("svg") == 4
    assert elements.seen.count("details") == 1
    assert "a claim with &lt;angle&gt; brackets" in text
    assert "differs from the record" in text
    assert "2.750" in text


def test_the_page_says_at_which_size_a_curve_was_computed():
    text = page([], every_section())
    assert "against drafted paths K: an instance, L = 3." in text
    assert "against draft length L: an instance, K = 2." in text


def test_only_a_page_with_claims_announces_them():
    assert "ledger of claims, paper by paper" in page([FINDING], [])
    assert "ledger" not in page([], [])


def test_tokens_are_short_and_their_spaces_can_be_seen_in_a_drawn_tree():
    tree = replace(PrefixTree.random(2, 1, seed=1), symbols=("\n     ", "property"))
    _, axes = figure()
    draw_tree(axes, tree, single_path.optimum(tree).phi)
    assert [text.get_text().splitlines()[0] for text in axes.texts] == ["\\n\u2423\u2423\u2423\u2026", "prope\u2026"]


def test_the_check_for_well_formed_pages_rejects_an_unclosed_element():
    elements = Elements()
    elements.feed(page([FINDING], []) + "<div>")
    assert elements.open == ["div"]


def test_the_page_loads_nothing_from_elsewhere():
    text = page([FINDING], every_section())
    namespaces = re.sub(r'(xmlns(:\w+)?|rdf:\w+)="[^"]*"', "", text)
    assert not re.search(r'(src|href)="(?!#)', namespaces)
    assert "@import" not in text
    assert "<script" not in text


@pytest.mark.slow
def test_the_command_writes_the_page(tmp_path, capsys):
    findings, out = tmp_path / "check.json", tmp_path / "out.html"
    findings.write_text(json.dumps({"findings": [FINDING]}))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(out), "--findings", str(findings), "--random", "6", "--contexts", "1"])
    assert stopped.value.code == 0
    text = out.read_text()
    assert text.count("<figure>") == 5
    assert "two-level" in text


@pytest.mark.parametrize("text", ["{", "[]", '{"other": 1}'])
def test_a_file_that_is_no_findings_is_refused(tmp_path, capsys, text):
    file = tmp_path / "check.json"
    file.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(tmp_path / "out.html"), "--findings", str(file)])
    assert stopped.value.code == 2
    assert "--findings" in capsys.readouterr().err


def test_a_real_browser_shows_the_page_at_phone_width_without_overflow(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine; install one to check the page in a browser")
    out = tmp_path / "out.html"
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + window.innerWidth</script>"
    out.write_text(page([FINDING], every_section()).replace("</body>", probe + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--window-size=500,900", "--dump-dom", out.as_uri()], capture_output=True, text=True, timeout=120
    )
    shown, width = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups()
    assert int(shown) <= int(width)


@pytest.mark.parametrize("option, field", [("--findings", "findings"), ("--decoding", "decoding")])
def test_entries_without_their_fields_are_refused(tmp_path, capsys, option, field):
    file = tmp_path / "data.json"
    file.write_text(json.dumps({field: [{"id": "x"}]}))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report", str(tmp_path / "out.html"), option, str(file)])
    assert stopped.value.code == 2
    assert "wants the fields" in capsys.readouterr().err


@pytest.mark.parametrize("speed", ["1e300", "9" * 400, "NaN", '"fast"'])
def test_speeds_that_cannot_be_shown_are_refused(tmp_path, speed):
    (tmp_path / "bench.json").write_text(
        '{"decoding": [{"method": "token", "speedup": 1, "tokens_per_second": ' + speed + "}]}", encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"want a number below|NaN"):
        _read_json("--decoding", str(tmp_path / "bench.json"), "decoding", DECODING_FIELDS)


def experiment_file(folder, **changes):
    record = {"kind": "decoded", "turn": "t", "temperature": "1", "tokens": 4, "seconds": 1.0, "perplexity": 3.5}
    records = [record | {"method": name, "calls": 2, "block_efficiency": 2.0} for name in ("plain", "kseq K=3 L=8")]
    table = {"title": "A table", "note": "a note", "columns": ["method", "value"], "rows": [["plain", 1.23456]]}
    about = {"experiment": {"name": "spectr-gbv"}, "tables": [table], "records": records}
    file = folder / "experiment.json"
    file.write_text(json.dumps(about | changes))
    return str(file)


def test_an_experiment_stands_in_the_report_with_its_picture_and_tables(tmp_path):
    from specbound.commands.report import _experiment

    text = page([], _experiment(experiment_file(tmp_path)))
    assert "Experiment spectr-gbv (arXiv:2604.25925): A table" in text
    assert "1.235" in text
    assert "<svg" in text
    assert "tokens per target call" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment": {"name": "no"}}, "experiment is 'no'; known are"),
        ({"records": [{}]}, "not what it writes"),
        ({"tables": [{}]}, "not what it writes"),
        ({"tables": None}, "want the file that `experiment NAME` writes"),
    ],
)
def test_what_is_no_experiment_is_refused(tmp_path, changes, message):
    from specbound.commands.report import _experiment

    with pytest.raises(ValueError, match=message):
        _experiment(experiment_file(tmp_path, **changes))
