"""The documentation tells the truth: what its pages show is what comes out, and the reference is complete."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml

import specbound
from specbound.cli import cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "docs" / "tools"


def tool(name: str) -> ModuleType:
    """A script of docs/tools as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


outputs = tool("outputs")
PAGES = outputs.pages()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def differences(page: Path) -> list[str]:
    """The blocks of a page whose output is no longer what the page shows."""
    variables: dict[str, Any] = {}
    found = []
    loaded = set(sys.modules)
    with outputs.folder_of(page):
        for block in outputs.blocks(page):
            if block.slow:
                continue
            now = outputs.run(block, variables)
            if outputs.comparable(now, block.timed) != outputs.comparable(block.body, block.timed):
                found.append(f"shown:\n{block.body}\nnow:\n{now}")
    for name in set(sys.modules) - loaded:
        if name.partition(".")[0] in ("examples", "my_verifier"):
            del sys.modules[name]
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if outputs.blocks(page)], ids=lambda page: page.stem)
def test_every_output_on_a_page_is_what_comes_out_now(page):
    assert differences(page) == []


def test_a_page_with_a_wrong_number_is_caught(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```pycon\n>>> 1 + 1\n3\n```\n", encoding="utf-8")
    assert len(differences(page)) == 1
    page.write_text("```pycon\n>>> 1 + 1\n2\n```\n", encoding="utf-8")
    assert differences(page) == []


def test_only_seconds_and_rounding_may_change_in_an_exact_block():
    same = outputs.comparable("3 instances, 0.1 s, 2e-16", False)
    assert same == outputs.comparable("3 instances, 12.5 s, 4.4e-16", False)
    assert same != outputs.comparable("4 instances, 0.1 s, 2e-16", False)
    assert same != outputs.comparable("3 instances, 0.1 s, 2e-3", False)


def test_words_may_not_change_in_a_timed_block():
    shown = outputs.comparable("│ block │ 138.5 │", True)
    assert shown == outputs.comparable("│ block │   9.25 │", True)
    assert shown != outputs.comparable("│ token │ 138.5 │", True)


def test_an_unexpected_exit_code_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- run -->\n```console\n$ specbound solve --length 2\n```\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="exits with 2, not 0"):
        differences(page)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_shown_is_one_that_parses(page):
    for body in re.findall(r"^```console\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for _, words in outputs.commands(body):
            place = next((place for place, word in enumerate(words) if Path(word).name == "specbound"), None)
            if place is not None and words[place + 1] in cli.commands:
                cli.commands[words[place + 1]].make_context(words[place + 1], words[place + 2 :])
            else:
                assert words[0] in ("cat", "make", "git", "python3", "torchrun", ".venv/bin/pip", ".venv/bin/specbound")
                assert all((ROOT / word).exists() for word in words if word.startswith("examples/"))


def test_a_command_line_that_does_not_parse_is_caught(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```console\n$ specbound solve --lenght 2\n```\n", encoding="utf-8")
    with pytest.raises(click.NoSuchOption):
        test_every_command_shown_is_one_that_parses(page)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tables_and_shown_sources_are_those_of_today(page):
    text = page.read_text(encoding="utf-8")
    assert outputs.generated(text) == text


def test_every_module_is_in_the_reference():
    shown = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    modules = [
        "specbound." + ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for layer in ("theory", "runtime", "proofs_checks")
        for file in sorted((ROOT / layer).rglob("*.py"))
        if file.stem != "__init__"
    ]
    assert len(modules) > 80
    assert [name for name in modules if f"::: {name}\n" not in shown] == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    docs = ROOT / "docs"
    pages = [str(path.relative_to(docs)) for path in docs.rglob("*") if path.suffix in (".md", ".ipynb")]
    assert [page for page in pages if page not in navigation] == []


def test_every_command_has_a_page_that_shows_it():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in cli.commands if f"specbound {name}" not in text] == []


def fields(value: Any) -> set[str]:
    """The names in a JSON value, except for those of the options that it repeats."""
    if isinstance(value, list):
        return set().union(*map(fields, value))
    if not isinstance(value, dict):
        return set()
    named = {name: {} if name in ("settings", "instance", "statuses") else inside for name, inside in value.items()}
    return set(named).union(*map(fields, named.values()))


@pytest.mark.parametrize(
    "command",
    [
        "solve --target 1/3,2/3 --draft 2/3,1/3 --length 1",
        "check --only BV-example",
        "verifiers",
        "decode --prompt x --max-new-tokens 2",
        "sweep --out sweep --vocab 2 --length 1 --paths 1 --methods block --jobs 1",
        "demo --prompts 1 --new-tokens 8 --contexts 1",
    ],
)
def test_every_field_of_the_json_output_is_documented(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command.split()
    out, err, code = outputs.call([*words, "--json"])
    assert code == 0, err
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    section = next(part for part in text.split("\n## ") if f"`{words[0]}`" in part.partition("\n")[0])
    explained = {name for code in re.findall(r"`([^`]*)`", section) for name in re.split(r"[.\[\]]+", code)}
    if words[0] == "demo":
        explained |= {"token", "block", "lossless-optimum", "block-transport-optimum"}
    found = fields(json.loads(out))
    assert found - explained == set() != found


def test_the_pictures_are_those_of_today(tmp_path):
    figures = tool("figures")
    figures.write(tmp_path)
    texts = re.compile(r"<text[^>]*>([^<]*)</text>")
    for name in figures.FIGURES:
        now, shown = (
            (folder / f"{name}.svg").read_text(encoding="utf-8") for folder in (tmp_path, ROOT / "docs" / "assets")
        )
        assert texts.findall(now) == texts.findall(shown) != []
        assert len(re.findall("<path", now)) == len(re.findall("<path", shown))


def test_the_citation_file_names_the_version_and_every_paper_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)

    assert citation["version"] == specbound.__version__
    cited = {number for entry in citation["references"] for number in re.findall(r"\d{4}\.\d{5}", entry["url"])}
    assert cited == set(re.findall(r"\d{4}\.\d{5}", readme)) != set()
