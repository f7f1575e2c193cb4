"""Fuzzing of every command's arguments: exit code 0, 1, 2 or 3; bad input is one line on stderr, never a traceback.

The options are read off the commands themselves, so that a new one is fuzzed from its first day. The language models
are tiny random ones, files are right, almost right or missing, and what a command would compute is small.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specbound import cli, shipped_pair
from specbound.commands import report as report_command
from specbound.proofs_checks.claims import ledger
from specbound.proofs_checks.laws import measured
from specbound.runtime import models
from specbound.theory.prefix_tree import PrefixTree
from tests.support.fuzzing import case, fuzz
from tests.support.saved_files import CERTIFICATES, STOPPING, TABLES
from tests.support.tiny_models import tiny

pytestmark = pytest.mark.fuzz

ODD = ["", "0", "-1", "1", "2", "3", "nan", "inf", "1e-320", "1e309", "x", "²", "١", " 2 ", "2.5", "9" * 5000, "\udce9"]
ODD += [
    "1,2",
    "1..",
    "..2",
    "2..1",
    "1..2..3",
    "1..99999999999",
    "1/3,2/3",
    "1/0,1",
    "{",
    "[1]",
    "--json",
    "-h",
    "\x1b[0m",
]
ROWS = [
    "1/3,2/3",
    "2/3,1/3",
    "0.5,0.5",
    "1",
    "0,1",
    "1,0",
    "1e-300,1",
    "0.1,0.9",
    "1/3,1/3,1/3",
    "1e-9999999,1",
    "1/2,1/2,",
]
SPANS = ["1", "2", "2..2", "1..2", "1,2"]
NAMES = [
    "token",
    "block",
    "gbv",
    "two-level",
    "greedy-block",
    "spectr-gbv",
    "mjsd",
    "table",
    "tests.support.zoo:SECRET",
    "a:b",
]
NAMES += ["no.such:thing", "os:_exit", ":", "tests.support.zoo:token_out_of_range", "closed:block", "lossless-optimum"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of every kind that a command reads, and room for those that it writes."""
    place = tmp_path_factory.mktemp("fuzz")
    tree = PrefixTree.random(2, 2, 1).to_json()
    findings = {"findings": [dict.fromkeys(report_command.FINDING_FIELDS, "holds") | {"recorded": True}]}
    decoding = {"decoding": [{"method": "token", "tokens_per_second": 1.0, "speedup": 1.0}], "settings": {}}
    files = {"tree.json": tree, "certificate.json": json.dumps(CERTIFICATES[0]), "table.json": json.dumps(TABLES[0])}
    files |= {"mdp.json": json.dumps(STOPPING[1]), "prompts.txt": "one\ntwo\n", "empty.txt": "", "broken.json": "{"}
    files |= {"findings.json": json.dumps(findings), "decoding.json": json.dumps(decoding), "list.json": '["a", "b"]'}
    files |= {"odd.json": '{"findings": [{}], "decoding": 3}', "deep.json": "[" * 3000}
    for name, text in files.items():
        (place / name).write_text(text, encoding="utf-8")
    (place / "latin.txt").write_bytes(b"caf\xe9")
    (place / "head.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    (place / "folder").mkdir()
    (place / "head.bin").write_bytes(shipped_pair.HEAD.read_bytes()[:1000])
    with contextlib.chdir(place):
        yield place


@pytest.fixture(scope="module", autouse=True)
def small_world(module_patch):
    """Tiny models for the shipped ones, no record written, small curves."""
    vocab = len(models.AutoTokenizer.from_pretrained(shipped_pair.TARGET))
    tokenizer = models.AutoTokenizer.from_pretrained(shipped_pair.TARGET)
    pair = models.Pair(tiny("llama", 0, vocab=vocab), tiny("llama", 1, vocab=vocab), tokenizer)
    original = models.load_pair

    @functools.wraps(original)
    def load_pair(target: Any, draft: Any, **options: Any) -> models.Pair:
        if target == shipped_pair.TARGET and draft == shipped_pair.DRAFT:
            return pair
        return original(target, draft, **options)

    module_patch.setattr(models, "load_pair", load_pair)
    module_patch.setattr(measured, "measure", functools.cache(measured.measure))
    module_patch.setattr(ledger, "write_record", lambda findings: None)
    run_ledger, cheap = ledger.run, ledger.select(["BV-example"])
    module_patch.setattr(ledger, "run", lambda entries, deep=False: run_ledger(cheap, deep))
    module_patch.setattr(report_command, "CURVE_LENGTHS", range(1, 2))
    module_patch.setattr(report_command, "CURVE_PATHS", range(1, 3))
    module_patch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


FILES = [
    "tree.json",
    "certificate.json",
    "table.json",
    "mdp.json",
    "prompts.txt",
    "empty.txt",
    "broken.json",
    "list.json",
]
FILES += ["findings.json", "decoding.json", "odd.json", "deep.json", "latin.txt", "head.safetensors", "head.bin"]
OUTPUTS = [
    "out.json",
    "out.png",
    "out.svg",
    "out.xyz",
    "/dev/null",
    "folder",
    "missing/x.png",
    "tree.json/x.png",
    "x" * 300,
]
FILES += ["none", *OUTPUTS]
POOLS: dict[tuple[str, str], list[str]] = {
    ("solve", "--emit"): OUTPUTS,
    ("solve", "--certificate"): OUTPUTS,
    ("solve", "--plot"): OUTPUTS,
    ("solve", "--frontier"): OUTPUTS,
    ("solve", "--deviation"): ["0", "1/9", "0.02", "1", "2", "nan", "-1"],
    ("report", "out"): OUTPUTS,
    ("solve", "--target"): ROWS,
    ("solve", "--draft"): ROWS,
    ("solve", "--tolerance"): ["1e-6", "1e-3", "0.5", "1e-12", "1e-300"],
    ("solve", "--length"): ["1", "2", "3"],
    ("solve", "--random"): ["1", "2", "3", "99999"],
    ("solve", "--concentration"): ["0.5", "1e-3", "1e-308", "1e300"],
    ("check", "--only"): ["BV-example", "BV-exam", "zz"],
    ("audit", "target"): NAMES,
    ("audit", "--resolution"): ["0.5", "0.9", "1e-9"],
    ("audit", "--seconds"): ["5", "9"],
    ("audit", "--memory"): ["4096", "64"],
    ("decode", "--verifier"): NAMES,
    ("decode", "--prompt"): ["x", "def", "", "\n", "a\x00b"],
    ("decode", "--target"): ["folder", "./folder", "./none", "none/none"],
    ("decode", "--draft"): ["folder", "./folder", "./none", "none/none"],
    ("decode", "--temperature"): ["0", "1", "1e-300", "1e300", "0.5"],
    ("bench", "--adaptive"): ["entropy", "head"],
    ("bench", "--verifiers"): [*NAMES, "token,block", "token,"],
    ("bench", "--lengths"): SPANS,
    ("bench", "--paths"): SPANS,
    ("sweep", "--methods"): [*NAMES, "token,block", "token,"],
    ("sweep", "--out"): ["sweep", "folder", "tree.json", "sweep/x"],
    ("sweep", "--ray"): [""],
}
CHEAP: dict[str, list[list[str]]] = {
    "solve": [
        ["--target", "1/3,2/3", "--draft", "2/3,1/3", "--length", "1"],
        ["--random", "2", "--length", "2"],
        ["--instance", "tree.json"],
        ["--mdp", "mdp.json"],
        [],
    ],
    "audit": [["--cases", "1", "--vocab", "2", "--length", "1", "--paths", "1", "--seconds", "9"]],
    "decode": [["--max-new-tokens", "3", "--length", "2"]],
    "bench": [["--count", "2", "--lengths", "1", "--paths", "1", "--new-tokens", "8"]],
    "demo": [["--prompts", "1", "--new-tokens", "8", "--length", "1", "--top-k", "2", "--contexts", "1"]],
    "check": [["--only", "BV-example"]],
    "report": [["--findings", "findings.json", "--random", "1", "--contexts", "0"]],
    "sweep": [["--out", "sweep", "--methods", "token", "--replicates", "1", "--dry-run"]],
}
LARGE = {"--cases", "--new-tokens", "--max-new-tokens", "--contexts", "--count", "--prompts", "--beams", "--threads"}
LARGE |= {"--length", "--paths", "--random", "--vocab", "--lengths", "--replicates", "--sample", "--top-k", "--memory"}


def values_of(command: click.Command, parameter: click.Parameter) -> st.SearchStrategy[str]:
    """Values for an option: those that fit more often than odd ones; none that would make the work large."""
    name = parameter.opts[-1]
    kind = parameter.type
    if (command.name, name) in POOLS:
        fitting = POOLS[command.name, name]
    elif isinstance(kind, click.Choice):
        fitting = list(kind.choices)
    elif isinstance(kind, click.Path) or "file" in (parameter.name or ""):
        fitting = FILES
    elif name == "--device":
        fitting = ["cpu", "meta", "cuda", "cuda:7", "tpu"]
    elif name.endswith(("-map", "-plan")):
        fitting = ["auto", '{"": "cpu"}', '{"": 3}', "{", "cpu", "{}", '{"x": null}']
    elif isinstance(kind, click.types.FloatParamType):
        fitting = ["0", "0.5", "1", "2"]
    else:
        fitting = SPANS
    odd = [text for text in ODD if not (name in LARGE and text in ("9" * 5000, "1..99999999999"))]
    return st.sampled_from(fitting) | st.sampled_from(fitting) | st.sampled_from(odd)


@st.composite
def arguments(draw: st.DrawFn, command: click.Command) -> list[str]:
    found = [str(command.name), *draw(st.sampled_from(CHEAP.get(str(command.name), [[]])))]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            found += [draw(values_of(command, parameter))] * (draw(st.integers(0, 9)) > 0)
        elif draw(st.integers(0, 5)) == 0:
            found.append(parameter.opts[-1])
            if not getattr(parameter, "is_flag", False):
                found.append(draw(values_of(command, parameter)))
    return found


def run(given: list[str], text: str = "x") -> tuple[Any, str, str]:
    """Exit code, standard output and standard error, encoded as those of a process are."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    standard, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main(given)
    except SystemExit as stopped:
        code = stopped.code
    finally:
        sys.stdin = standard
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return code, *texts


def check(given: list[str], code: Any, out: str, err: str) -> None:
    """The contract of every command."""
    assert code in (0, 1, 2, 3), (code, err)
    if code == 2:
        assert out == "", err
        assert err.startswith("specbound: "), err
        assert err.count("\n") == 1, err
        assert len(err) < 2000, err
    elif "--json" in given and "-h" not in given and out:
        data = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} in the JSON output"))
        for result in data.get("results", []):
            assert -1e-9 <= result["value"] <= data["instance"]["length"] + 1e-9, result
            assert result["value"] <= result["bound"] + 1e-9, result
        if "results" in data:
            bests = {entry["name"]: entry["bound"] for entry in data["results"] if entry["name"].endswith("-optimum")}
            for result in data["results"]:
                best = bests.get("block-transport-optimum" if result["stateful"] else "lossless-optimum")
                assert best is None or not result["lossless"] or result["value"] <= best + 1e-6, result


@pytest.mark.parametrize("name", cli.cli.commands)
@fuzz(4)
@given(st.data())
def test_commands_work_or_refuse_in_one_line(name, folder, data):
    assert Path.cwd() == folder
    given_arguments = data.draw(arguments(cli.cli.commands[name]))
    with case(60.0):
        found = run(given_arguments)
    check(given_arguments, *found)
