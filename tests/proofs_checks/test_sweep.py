"""Sweeps: the same rows from any number of workers, from Ray and after any kill, and rows that theory confirms."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from specbound import __version__, cli
from specbound.proofs_checks.laws.model_trees import from_models
from specbound.proofs_checks.sweep.case import TooLarge, check_methods, default_methods, measure, serve, tempered
from specbound.proofs_checks.sweep.design import Between, Design, cases
from specbound.proofs_checks.sweep.results import (
    COLUMNS,
    Row,
    by_method,
    complete,
    instance_of,
    method_cells,
    row_of,
    statuses,
    with_fractions,
)
from specbound.proofs_checks.sweep.store import SCHEMA, Store, read
from specbound.proofs_checks.sweep.workers import Limits, Worker, on_ray, on_this_machine
from specbound.report import page, sweep_sections
from specbound.runtime.models import load_pair
from specbound.shipped_pair import DRAFT, TARGET, prompts
from specbound.theory import block_transport, single_path
from specbound.theory.known_values import known_values
from specbound.theory.multi_path import antichain
from specbound.theory.prefix_tree import PrefixTree

pytestmark = pytest.mark.slow

VERIFIERS = """
import os, pathlib, signal, time
from specbound.runtime import registry

token = registry.get("token").verify

def naps(batch, draws):
    time.sleep(0.1)
    return token(batch, draws)

def dies(batch, draws):
    with open("deaths", "a") as log:
        log.write("x")
    os._exit(3)

def dies_once(batch, draws):
    mark = pathlib.Path("died")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return token(batch, draws)

def kills_its_parent(batch, draws):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)

def hangs(batch, draws):
    time.sleep(1000)

def raises(batch, draws):
    return 1 / 0

def eats(batch, draws):
    return bytearray(10**11)

def nonsense(batch, draws):
    verdict = token(batch, draws)
    verdict.accepted[:] = 99
    return verdict
"""
DESIGN = Design(
    version=__version__,
    methods=("lossless-optimum", "block-transport-optimum", "closed:gbv", "gbv", "block", "naive", "swept:naps"),
    vocab=(2,),
    paths=(1, 2),
    temperature=(1.0, 0.5),
    replicates=1,
)
SMALL = Design(
    version=__version__, methods=("block", "lossless-optimum"), vocab=(2,), length=(1,), paths=(1,), replicates=1
)


@pytest.fixture(scope="module", autouse=True)
def verifiers_of_a_user(tmp_path_factory):
    """A module of the working folder, which is how a user brings a verifier."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "swept.py").write_text(VERIFIERS)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def expected() -> list[Row]:
    """The rows of DESIGN from one worker."""
    return settled(on_this_machine(cases(DESIGN), DESIGN, Limits(), jobs=1))


def settled(rows) -> list[Row]:
    """Rows in the order of the cases, without the one column that may differ."""
    return sorted(({**row, "seconds": None} for row in rows), key=lambda row: row["number"])


def command(*arguments: str) -> subprocess.Popen[str]:
    interruptible = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also behind a nohup
    code = f"{interruptible}; import sys; from specbound.cli import main; main(sys.argv[1:])"
    line = [sys.executable, "-c", code, "sweep", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    shown = capsys.readouterr()
    return stopped.value.code, shown.out, shown.err


def tree_of(row: Row) -> PrefixTree:
    """The instance of a random row, from what the row says."""
    tree = PrefixTree.random(row["vocab"], row["length"], row["instance_seed"], row["concentration"])
    return tempered(tree, row["temperature"], row["draft_temperature"])


# ---------------------------------------------------------------------- the same rows, however they are computed


def test_two_workers_give_the_rows_of_one(expected):
    assert settled(on_this_machine(cases(DESIGN), DESIGN, Limits(), jobs=2)) == expected
    assert [row["status"] for row in expected] == ["done"] * len(cases(DESIGN))


def test_a_local_ray_cluster_gives_the_same_rows_and_survives_a_worker_that_dies(expected):
    pytest.importorskip("ray", reason="ray is not installed (extra `cluster`)")
    methods = ("swept:dies", "swept:kills_its_parent", "block")
    dying = replace(DESIGN, methods=methods, temperature=(1.0,), length=(1,), paths=(1,))
    everything = cases(DESIGN)
    extra = [replace(case, number=case.number + len(everything)) for case in cases(dying)]
    rows = settled(on_ray([*everything, *extra], DESIGN, Limits(tries=2), "local", jobs=2))
    assert rows[: len(everything)] == expected
    found = [(row["status"], row["error"]) for row in rows[len(everything) :]]
    assert found[0] == ("died", "the process ended with code 3 (2 tries)")
    assert found[1][0] == "died"
    assert re.match(r"WorkerCrashedError: .* \(2 tries\)$", found[1][1])
    assert found[2] == ("done", None)


def test_the_comparison_of_rows_rejects_another_seed(expected):
    case = next(case for case in cases(replace(DESIGN, seed=1)) if case.method == "block")
    answer = serve(json.dumps({"design": DESIGN.to_dict(), "nodes": 1000}))
    other = settled([row_of(case, **answer(asdict(case)))])[0]
    assert other["id"] == expected[case.number]["id"]
    assert other != expected[case.number]


def test_interrupted_then_killed_then_torn_a_sweep_goes_on_and_nothing_is_lost_or_twice(tmp_path, expected, capsys):
    out = tmp_path / "sweep"
    Store(out, DESIGN).__exit__()
    journal = out / "rows.jsonl"

    def started(rows: int) -> subprocess.Popen[str]:
        process = command("--out", str(out), "--jobs", "1")
        deadline = time.monotonic() + 300
        while journal.read_bytes().count(b"\n") < rows:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return process

    process = started(5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    kept = journal.read_bytes()
    assert process.returncode == 130
    assert f"specbound sweep --out {out} goes on from there" in said
    assert 5 <= len(list(csv.DictReader((out / "rows.csv").open()))) == kept.count(b"\n") < len(expected)

    process = started(kept.count(b"\n") + 5)
    process.kill()
    process.communicate()
    killed = journal.read_bytes()
    assert killed.startswith(kept)
    assert killed.count(b"\n") < len(expected)
    journal.write_bytes(killed + b'{"number": 30, "id": "V2-L')

    code, shown, _ = run(capsys, "sweep", "--out", str(out), "--jobs", "2", "--json")
    facts = json.loads(shown)
    assert code == 0
    assert (facts["cases"], facts["resumed"]) == (len(expected), killed.count(b"\n"))
    lines = journal.read_bytes().splitlines()
    assert len(lines) == len(expected) == len({json.loads(line)["id"] for line in lines})
    design, rows = read(out)
    assert design == DESIGN
    assert [row["number"] for row in rows] == list(range(len(expected)))
    assert settled(rows) == settled(with_fractions(expected))


@pytest.mark.parametrize("cut", [0, 1, 40, "all but one"])
def test_wherever_a_write_is_torn_the_whole_rows_before_it_stay(tmp_path, cut):
    first, second = (row_of(case, value=0.5, status="done") for case in cases(SMALL))
    with Store(tmp_path, SMALL) as store:
        store.append(first)
        store.append(second)
    journal = tmp_path / "rows.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1][: -1 if cut == "all but one" else cut])
    with Store(tmp_path, SMALL) as store:
        assert store.rows == {first["id"]: first}
        assert journal.read_bytes() == lines[0]
        store.append(second)
    assert journal.read_bytes() == lines[0] + lines[1]


def test_the_tables_hold_the_rows_in_order_with_a_text_for_every_column(tmp_path, expected):
    with Store(tmp_path, DESIGN) as store:
        for row in reversed(expected):
            store.append(row)
        store.write_tables(cases(DESIGN))
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    assert table.to_pylist() == with_fractions(expected) == read(tmp_path)[1]
    assert table.schema.names == [column.name for column in COLUMNS] == list(expected[0])
    assert [field.metadata[b"text"].decode() for field in SCHEMA] == [column.text for column in COLUMNS]
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [float(row["value"]) for row in rows] == [row["value"] for row in expected]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "design.json", "rows.csv", "rows.jsonl", "rows.parquet",
    ]  # fmt: skip


# ---------------------------------------------------------------------- cases that go wrong


def test_a_case_that_takes_its_process_along_costs_itself_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("swept.py").write_text(VERIFIERS)
    names = ["dies", "dies_once", "hangs", "raises", "eats", "nonsense"]
    methods = ",".join(["block", *(f"swept:{name}" for name in names), "token"])
    design = ["--vocab", "2", "--length", "1", "--paths", "1", "--replicates", "1", "--methods", methods]
    limits = ["--jobs", "1", "--tries", "2", "--seconds", "5", "--memory", "1024"]
    code, shown, _ = run(capsys, "sweep", "--out", "out", *design, *limits, "--json")
    _, rows = read("out")
    found = {row["method"]: (row["status"], row["error"]) for row in rows}
    assert code == 1
    assert found["block"] == found["token"] == found["swept:dies_once"] == ("done", None)
    assert found["swept:dies"] == ("died", "the process ended with code 3 (2 tries)")
    assert Path("deaths").read_text() == "xx"
    assert found["swept:hangs"] == ("time limit", "no answer within 5 seconds")
    assert found["swept:eats"][0] == "memory limit"
    assert found["swept:eats"][1].startswith("it needs more than 1024 MiB")
    assert found["swept:raises"][0] == "failed"
    assert found["swept:raises"][1].startswith("ZeroDivisionError: division by zero (swept.py, line ")
    assert "the verdict's accepted is [99 99]" in found["swept:nonsense"][1]
    assert json.loads(shown)["statuses"] == statuses(rows)


def test_a_case_over_the_size_limit_is_a_row_that_can_be_tried_again(tmp_path, capsys):
    out = ["sweep", "--out", str(tmp_path), "--jobs", "1"]
    design = ["--vocab", "2,5", "--length", "1", "--paths", "1", "--replicates", "1", "--methods", "block"]
    assert run(capsys, *out, *design, "--max-nodes", "3")[0] == 1
    small, large = read(tmp_path)[1]
    assert (large["status"], large["error"]) == ("too large", "the tree has 6 nodes, the limit is 3")
    assert (small["status"], small["nodes"]) == ("done", 3)
    assert run(capsys, *out)[0] == 1
    code, shown, _ = run(capsys, *out, "--retry-failed")
    assert (code, shown.splitlines()[-2]) == (0, "2 of 2 cases, 1 from before: 2 done")
    again = read(tmp_path)[1]
    assert again[0] == small
    assert (again[1]["status"], again[1]["nodes"]) == ("done", 6)
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 3


def test_too_many_sets_of_drafts_are_too_large():
    with pytest.raises(TooLarge, match="100000000 sets of 8 drafts, more than 2000000 to enumerate"):
        measure(PrefixTree.random(10, 1, seed=0), 8, "gbv", 1e-6)


def test_a_worker_that_cannot_load_the_models_ends_the_sweep_with_one_line(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    pair = ["--target", str(tmp_path / "model"), "--draft", str(tmp_path / "model")]
    code, _, errors = run(capsys, "sweep", "--out", str(tmp_path / "out"), "--contexts", "1", "--jobs", "1", *pair)
    assert code == 1
    assert "specbound: a worker cannot start: " in errors.splitlines()[-1]


def test_a_stopped_worker_starts_no_case():
    worker = Worker(SMALL, Limits())
    worker.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        worker.row(cases(SMALL)[0])


# ---------------------------------------------------------------------- values, by a second route


def test_every_value_is_confirmed_on_the_tree_that_the_row_describes(expected):
    for row in expected:
        tree, paths = tree_of(row), row["paths"]
        known = {value.name: value.value for value in known_values(tree, paths)}
        best = antichain.optimum(tree, paths).value
        transport = antichain.optimum(tree, paths, "block-transport").value
        wanted = {"lossless-optimum": best, "block-transport-optimum": transport, "swept:naps": known["token"]}
        name = row["method"].removeprefix("closed:")
        tolerance = 1e-6 if name in ("lossless-optimum", "block-transport-optimum") else 1e-12
        assert abs(row["value"] - wanted.get(name, known.get(name, 0.0))) < tolerance
        assert row["nodes"] == tree.size
        if name.endswith("optimum"):
            assert row["gap"] == max(0.0, row["bound"] - row["value"])
            assert -1e-12 < row["bound"] - row["value"] < 1e-6
        assert row["lossless"] == (name != "block-transport-optimum")


def test_the_fraction_is_that_of_the_optimum_of_the_same_instance_and_paths(expected):
    rows = with_fractions(expected)
    for row in rows:
        best = single_path.optimum(tree_of(row)).value if row["paths"] == 1 else None
        if best is not None:
            assert abs(row["fraction"] - row["value"] / best) < 1e-6
    assert {row["fraction"] for row in rows if row["method"] == "lossless-optimum"} == {1.0}
    assert all(row["fraction"] is None for row in with_fractions([rows[3]]))


def test_instances_without_a_common_token_have_fraction_one():
    rows = [row_of(case, value=0.0, status="done") for case in cases(SMALL)]
    assert [row["fraction"] for row in with_fractions(rows)] == [1.0, 1.0]


def test_a_lossy_verifier_and_a_stateful_one_are_told_apart():
    tree = PrefixTree.random(3, 2, seed=5)
    lossy = measure(tree, 2, "spectr-gbv-published", 1e-6)
    assert lossy["total_variation"] > 1e-3
    assert not lossy["lossless"]
    greedy = measure(tree, 2, "greedy-block", 1e-6)
    assert greedy["lossless"]
    assert abs(greedy["value"] - block_transport.optimum(tree).value) < 1e-12


def test_foreign_code_is_swept_through_interception(tmp_path, monkeypatch):
    code = "import random\ndef verify(tokens, draft_probs, target_probs):\n    return [int(random.random() > 2)]\n"
    (tmp_path / "foreign_code.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found = measure(PrefixTree.iid([0.5, 0.5], [0.25, 0.75], 1), 1, "foreign_code:verify", 1e-6)
    measured = {"value": 0.0, "total_variation": 0.5, "lossless": False}
    assert found == measured | {"verdict": "not lossless", "stateful": False}


def test_temperature_is_a_power_of_the_rows():
    tree = PrefixTree.iid([0.8, 0.2, 0.0], [0.5, 0.25, 0.25], 1)
    cooled = tempered(tree, 0.5, 2.0)
    root = np.sqrt([2.0, 1.0, 1.0])
    assert np.allclose(cooled.target[1:], [16 / 17, 1 / 17, 0], rtol=0, atol=1e-15)
    assert np.allclose(cooled.draft[1:], root / root.sum(), rtol=0, atol=1e-15)
    assert np.allclose(cooled.bonus, [[16 / 17, 1 / 17, 0]] * 3, rtol=0, atol=1e-15)
    frozen = tempered(tree, 1e-4, 1.0)
    assert frozen.target[1:].tolist() == [1.0, 0.0, 0.0]
    same = tempered(tree, 1.0, 1.0)
    assert (same.target == tree.target).all()
    assert (same.draft == tree.draft).all()


def test_trees_of_models_are_those_of_from_models_at_that_temperature():
    text = prompts()[1]["text"]
    design = Design(
        version="test", methods=("block",), length=(2,), paths=(1,), replicates=0, contexts=("x = ", text),
        temperature=(0.7,), top_k=(2,),
    )  # fmt: skip
    answer = serve(json.dumps({"design": design.to_dict(), "nodes": 1000}))
    case = cases(design)[1]
    pair = load_pair(TARGET, DRAFT)
    context = pair.tokenizer(text, return_tensors="pt")["input_ids"][0]
    tree = from_models(pair.target, pair.draft, context, length=2, top_k=2, temperature=0.7)
    found = answer(asdict(case))
    assert (case.context, case.instance, found["nodes"]) == (1, "context", tree.size)
    assert abs(found["value"] - single_path.optimum(tree).value) < 1e-9
    other = answer(asdict(replace(case, temperature=1.0, draft_temperature=1.0)))
    assert abs(found["value"] - other["value"]) > 1e-3
    plain = from_models(pair.target, pair.draft, context, length=2, top_k=2)
    apart = answer(asdict(replace(case, draft_temperature=1.0)))
    assert abs(apart["value"] - single_path.optimum(replace(tree, draft=plain.draft)).value) < 1e-9
    assert abs(apart["value"] - found["value"]) > 1e-3
    assert answer(None) is None


# ---------------------------------------------------------------------- designs


def test_a_seed_is_that_of_the_documented_formula():
    import hashlib

    case = next(case for case in cases(replace(DESIGN, seed=7)) if case.length == 2)
    word = int.from_bytes(hashlib.sha256(b"2 2 0.5 0").digest(), "big")
    assert case.instance_seed == int(np.random.SeedSequence([7, word]).generate_state(1, np.uint64)[0]) >> 11


def test_cases_that_share_an_instance_share_its_seed_and_no_others_do():
    design = replace(DESIGN, vocab=(2, 3), concentration=(0.5, 1.0), replicates=2)
    seeds = {}
    for case in cases(design):
        seeds.setdefault((case.vocab, case.length, case.concentration, case.replicate), set()).add(case.instance_seed)
    assert {len(found) for found in seeds.values()} == {1}
    assert len(set.union(*seeds.values())) == len(seeds) == 16
    wider = {case.id: case.instance_seed for case in cases(replace(design, vocab=(2, 3, 4), paths=(1, 2, 5)))}
    assert all(wider[case.id] == case.instance_seed for case in cases(design))


DESIGNS = [
    DESIGN,
    SMALL,
    replace(DESIGN, contexts=("a", "b"), top_k=(2, 3), draft_temperature=(1.0, 2.0)),
    replace(DESIGN, replicates=0, contexts=("a",)),
    replace(DESIGN, sample=9, concentration=Between(0.1, 3.0), draft_temperature=Between(0.5, 2.0), vocab=(2, 3, 4)),
    replace(DESIGN, sample=5, contexts=("a", "b"), top_k=(2, 3)),
]


@pytest.mark.parametrize("design", DESIGNS)
def test_a_design_has_as_many_cases_as_it_says_each_with_its_own_name(design):
    everything = cases(design)
    assert len(everything) == design.size == len({case.id for case in everything})
    assert [case.number for case in everything] == list(range(design.size))
    assert everything == cases(design)
    assert Design.from_dict(json.loads(json.dumps(design.to_dict()))) == design


def test_a_sample_draws_from_the_ranges_and_the_lists():
    design = replace(
        SMALL, sample=200, vocab=(2, 5), paths=(1, 3), concentration=Between(0.1, 10.0), methods=("block",)
    )
    drawn = cases(design)
    concentrations = np.array([case.concentration for case in drawn])
    assert ((concentrations >= 0.1) & (concentrations <= 10)).all()
    assert len(set(concentrations)) > 190
    assert 60 < (concentrations < 1).sum() < 140  # log-uniform: half of them; outside with probability < 1e-7
    assert {case.vocab for case in drawn} == {2, 5}
    assert {case.paths for case in drawn} == {1, 3}
    assert {case.temperature for case in drawn} == {case.draft_temperature for case in drawn} == {1.0}
    assert cases(replace(design, sample=3)) == drawn[:3]
    assert cases(replace(design, seed=1)) != drawn


@pytest.mark.parametrize(
    "change, message",
    [
        ({"vocab": ()}, "vocab is empty"),
        ({"paths": (1, 0)}, "paths is 0; want a positive number"),
        ({"length": (2, 2)}, "length lists 2 twice"),
        ({"methods": ("block", "block")}, "methods lists block twice"),
        ({"temperature": (float("nan"),)}, "temperature is nan"),
        ({"concentration": (float("inf"),)}, "concentration is inf"),
        ({"concentration": Between(0.1, 1.0)}, "concentration is a range, 0.1..1"),
        ({"sample": 2, "temperature": Between(1.0, 0.1)}, "temperature is 1..0.1; want 0 < from < to"),
        ({"replicates": 0}, "no instances"),
        ({"replicates": -1}, "replicates is -1"),
        ({"sample": 0}, "sample 0"),
        ({"seed": -1}, "seed -1"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"replicates": 10**6}, "more than 1000000"),
    ],
)
def test_a_design_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(DESIGN, **change)


@pytest.mark.parametrize("name", ["blok", "closed:many-level", "table", "nowhere:verify", "closed:no:thing"])
def test_methods_that_do_not_exist_are_refused_by_name(name):
    check_methods((*default_methods(), "closed:gbv", "swept:naps"))
    with pytest.raises(ValueError, match=f"method '{name}'"):
        check_methods(("block", name))


# ---------------------------------------------------------------------- the folder


def test_another_design_in_the_same_folder_is_refused(tmp_path, capsys):
    folder = str(tmp_path)
    Store(folder, SMALL).__exit__()
    Store(folder, SMALL).__exit__()
    with pytest.raises(ValueError, match=re.escape("holds a sweep with vocab [2], not [3]; choose another folder")):
        Store(folder, replace(SMALL, vocab=(3,)))
    code, _, errors = run(capsys, "sweep", "--out", folder, "--vocab", "2")
    assert code == 2
    assert "choose another folder, or give --out alone to continue it" in errors


def test_a_sweep_of_another_version_is_not_continued(tmp_path, capsys):
    Store(tmp_path, replace(SMALL, version="0.0.1")).__exit__()
    code, _, errors = run(capsys, "sweep", "--out", str(tmp_path))
    assert code == 2
    assert f"was computed by specbound 0.0.1, this is {__version__}; go on with that version" in errors


def test_two_sweeps_cannot_write_to_one_folder(tmp_path):
    with Store(tmp_path, SMALL), pytest.raises(ValueError, match="another sweep is writing to"):
        Store(tmp_path, SMALL)
    Store(tmp_path, SMALL).__exit__()


def test_damaged_folders_are_refused_and_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=re.escape("holds no sweep (no design.json)")):
        read(tmp_path)
    Store(tmp_path, SMALL).__exit__()
    text = (tmp_path / "design.json").read_text()
    for damaged, message in (
        (text.replace('"seed": 0', '"seed": 1'), "it was edited"),
        (text.replace('"specbound.sweep"', '"other"'), "format 'other'"),
        ("{", "is not the design of a sweep"),
        ("[]", "is not the design of a sweep"),
    ):
        (tmp_path / "design.json").write_text(damaged)
        with pytest.raises(ValueError, match=message):
            read(tmp_path)
    (tmp_path / "design.json").write_text(text)
    for line in ("{}", "[]", "\x00\x00", '{"id": 1}'):
        (tmp_path / "rows.jsonl").write_text(line + "\n")
        with pytest.raises(ValueError, match=r"rows\.jsonl, line 1 is no row"):
            Store(tmp_path, SMALL)
    (tmp_path / "design.json").unlink()
    with pytest.raises(ValueError, match=re.escape("holds rows.jsonl but no design.json")):
        Store(tmp_path, SMALL)


# ---------------------------------------------------------------------- the command


def test_a_dry_run_lists_the_cases_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    design = ["--vocab", "2..3", "--length", "1", "--paths", "1,3", "--replicates", "1", "--methods", "block, token"]
    code, shown, _ = run(capsys, "sweep", "--out", str(out), *design, "--dry-run")
    *ids, count = shown.splitlines()
    assert code == 0
    assert count == "8 cases"
    assert ids[:3] == [f"V2-L1-c0.5-r0-T1.0:1.0-K{k}-{name}" for k, name in ((1, "block"), (1, "token"), (3, "block"))]
    assert not out.exists()
    _, shown, _ = run(capsys, "sweep", "--out", str(out), *design, "--dry-run", "--json")
    assert json.loads(shown) == {"cases": 8, "ids": ids}
    sample = ["--sample", "3", "--temperature", "0.5..2", "--contexts", "2", "--top-k", "4", "--methods", "block"]
    _, shown, _ = run(capsys, "sweep", "--out", str(out), *sample, "--dry-run")
    assert len(re.findall(r"^V\d-L\d-c0.5-r\d-T[\d.]+:[\d.]+-K\d-block$", shown, re.M)) == 3
    assert len(re.findall(r"^context\d-top4-L\d-r\d-T[\d.]+:[\d.]+-K\d-block$", shown, re.M)) == 3


def test_the_defaults_are_those_that_help_states(capsys):
    _, shown, _ = run(capsys, "sweep", "--help")
    stated = dict(re.findall(r"--([a-z-]+) (?:(?!--)[^\[])*\[default: ([\d.]+)\]", " ".join(shown.split())))
    design = Design(version="test", methods=("block",))
    for name in ("vocab", "length", "paths", "top_k", "concentration", "temperature"):
        first, _, last = stated[name.replace("_", "-")].partition("..")
        values = getattr(design, name)
        assert (float(first), float(last or first)) == (values[0], values[-1])
    assert (design.replicates, design.seed) == (int(stated["replicates"]), int(stated["seed"]))


def test_the_summary_names_every_method_and_says_what_was_written(tmp_path, expected, capsys):
    with Store(tmp_path, DESIGN) as store:
        for row in expected:
            store.append(row)
    code, shown, _ = run(capsys, "sweep", "--out", str(tmp_path))
    assert code == 0
    assert all(re.search(rf"^{method} +8/8 ", shown, re.M) for method in DESIGN.methods)
    assert f"{len(expected)} of {len(expected)} cases, {len(expected)} from before: {len(expected)} done" in shown
    assert "rows.parquet" in shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--vocab", "2..x"], "is not a list of integers"),
        (["--vocab", "0"], "is empty or not positive"),
        (["--paths", "3..2"], "is empty or not positive"),
        (["--temperature", "hot"], "is not a list of numbers"),
        (["--temperature", "0.5..1..2"], "is not a list of numbers"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--methods", "blok"], "method 'blok' is unknown"),
        (["--top-k", "2"], "--top-k is for trees of models; give --contexts too"),
        (["--contexts", "1", "--target", "x"], "--draft is missing"),
        (["--contexts", "1", "--target", "./no", "--draft", "./no"], "is ./no; there is no such folder"),
        (["--contexts", "1", "--device", "abacus"], "--device is 'abacus'"),
        (["--contexts", "99"], "--contexts is 99; there are 24 prompts"),
        (["--prompts", "x.txt"], "--prompts is a source of --contexts"),
        (["--ray", "127.0.0.1:1", "--jobs", "2"], "--jobs is for this machine"),
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--ray", "ray://nowhere"], "no Ray cluster answers at ray://nowhere"),
        (["--tries", "0"], "--tries"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    code, _, errors = run(capsys, "sweep", "--out", str(tmp_path / "out"), *arguments)
    assert code == 2
    assert message in errors.splitlines()[-1]


def test_without_ray_the_option_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, errors = run(capsys, "sweep", "--out", str(tmp_path), "--ray", "local")
    assert code == 2
    assert errors.splitlines()[-1] == "specbound: --ray needs the package ray: pip install 'specbound[cluster]'"


# ---------------------------------------------------------------------- the report


def test_the_report_draws_the_sweep_on_the_instances_that_every_method_has(tmp_path, expected, capsys):
    rows = [dict(row) for row in expected]
    rows[3] |= {"status": "died", "error": "killed <hard>", "value": None, "total_variation": None, "lossless": None}
    with Store(tmp_path / "sweep", DESIGN) as store:
        for row in rows:
            store.append(row)
    code, _, _ = run(capsys, "report", str(tmp_path / "out.html"), "--sweep", str(tmp_path / "sweep"))
    text = (tmp_path / "out.html").read_text()
    assert code == 0
    axes = ("paths K", "length L", "temperature T of target and draft")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert all(any(axis in caption for caption in captions) for axis in axes)
    assert text.count("<svg") == len(captions) == len(axes) + 1
    assert "56 cases: 55 done, 1 died. Figures: the 7 instances on which" in text
    assert "killed &lt;hard&gt;" in text
    assert "Claims, paper by paper" not in text
    assert re.search(r"<td>gbv</td><td>7/8</td>", text)


def test_means_are_taken_on_the_same_instances_for_every_method(expected):
    rows = with_fractions(expected)
    rows[0] |= {"status": "failed", "value": None}
    kept = complete(rows)
    assert instance_of(rows[0]) not in {instance_of(row) for row in kept}
    assert len(kept) == len(rows) - len(DESIGN.methods)
    summary = {entry["method"]: entry for entry in by_method(rows)}
    values = [row["value"] for row in rows if row["method"] == "gbv"]
    assert summary["gbv"]["value"] == pytest.approx(np.mean(values), abs=1e-12)
    assert (summary["lossless-optimum"]["cases"], summary["lossless-optimum"]["done"]) == (8, 7)
    assert {len(cells) for cells in method_cells(by_method(rows))} == {7}


def test_many_values_of_a_parameter_are_drawn_as_six_ranges():
    design = replace(SMALL, sample=20, concentration=Between(0.1, 3.0), methods=("block",))
    rows = [row_of(case, value=1.0, status="done") for case in cases(design)]
    sections = sweep_sections(with_fractions(rows), len(rows))
    text = page([], sections)
    assert [picture.caption for picture in sections[0].pictures] == ["Mean over the instances, against concentration."]
    warmer = [row | {"draft_temperature": 1.0 + row["number"] % 2} for row in rows]
    captions = [picture.caption for section in sweep_sections(warmer, len(warmer)) for picture in section.pictures]
    assert captions[1:] == ["Mean over the instances, against temperature S of the draft."]
    assert len(set(re.findall(r"<!-- (\d\.?\d*) -->", text)) & {f"{x:.3g}" for x in np.arange(0, 3, 0.001)}) >= 5


def test_a_report_says_that_a_sweep_is_not_finished(expected):
    rows = with_fractions(expected)
    unfinished = sweep_sections(rows[:-2], len(rows))
    assert unfinished[0].text == f"{len(rows) - 2} of {len(rows)} cases have been computed so far."
    assert "unfinished" not in page([], sweep_sections(rows, len(rows)))


@pytest.mark.parametrize(
    "arguments, message", [([], "holds no sweep"), (["--random", "3"], "--random belongs to a report")]
)
def test_a_report_of_no_sweep_is_refused(tmp_path, capsys, arguments, message):
    code, _, errors = run(capsys, "report", str(tmp_path / "out.html"), "--sweep", str(tmp_path), *arguments)
    assert code == 2
    assert message in errors


def test_a_report_of_a_sweep_without_rows_is_refused(tmp_path, capsys):
    Store(tmp_path / "sweep", SMALL).__exit__()
    code, _, errors = run(capsys, "report", str(tmp_path / "out.html"), "--sweep", str(tmp_path / "sweep"))
    assert code == 2
    assert "no case is finished yet" in errors
