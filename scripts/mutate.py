"""Mutation testing of theory, verifiers, exact laws and claims: which small changes does the suite not notice?

    python scripts/mutate.py                         a sample of every file, result in benchmarks/results/mutation.json
    python scripts/mutate.py runtime/draws.py --sample 0 --show      every mutant of one file

A mutant changes one place: a comparison, an operator, a number, a truth value, a `not` or a minus sign, one call for
its counterpart (amax for amin), it drops a clamp, or a condition is never met (a check that is switched off). What only
names things or explains them is left alone (messages, docstrings, annotations, decorators, dim= and dtype=).

First the tests of a file's suite (SUITES) run once on the unchanged code; that says how much CPU time each takes and
which lines it reaches. Then, per mutant, the tests that reach its line run in a process of their own, the fastest
first, as far as --seconds goes; the mutant is killed when one fails, or when they take ten times their time.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "mutation.json"
SUITES = (  # files, and the tests that answer for them: tests/FOLDER/test_NAME.py
    ("theory/**/*.py", "theory/*"),
    (
        "runtime/draws.py runtime/carry.py runtime/parts/*.py runtime/verifiers/*.py",
        "proofs_checks/law runtime/carry runtime/couplings runtime/draws runtime/greedy_block runtime/lifted "
        "runtime/lossy runtime/mjsd runtime/single_path_verifiers runtime/spectr_gbv runtime/table runtime/two_level "
        "runtime/verdict runtime/verifier_pieces runtime/verifiers",
    ),
    (
        "proofs_checks/laws/*.py",
        "proofs_checks/drafted_trees proofs_checks/drafting proofs_checks/hidden_state proofs_checks/instances "
        "proofs_checks/judge proofs_checks/law proofs_checks/measured proofs_checks/model_trees "
        "proofs_checks/prediction proofs_checks/stream_law",
    ),
    ("proofs_checks/claims/*.py", "proofs_checks/claims proofs_checks/ledger proofs_checks/symbolic"),
)
PRELOADED = ("cvxpy", "hypothesis", "ot", "pytest", "scipy.optimize", "sympy", "torch", "transformers")
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
PAIRS = "amax amin|argmax argmin|maximum minimum|cumsum cumprod|zeros_like ones_like|new_zeros new_ones|min max|all any"
COUNTERPART = {a: b for pair in PAIRS.split("|") for a, b in (pair.split(), pair.split()[::-1])}
CLAMPS = ("clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_")
RESHAPING = ("squeeze", "unsqueeze", "view", "expand", "flatten", "unflatten")
NAMES_ONLY = ("dim", "dtype", "axis", "device")


@dataclass(frozen=True)
class Mutant:
    """One change of one file: `apply` makes it in the syntax tree that it was found in."""

    line: int
    last_line: int
    before: str
    after: str
    apply: Callable[[], None]


def mutants(tree: ast.AST) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    return [
        Mutant(node.lineno, node.end_lineno or node.lineno, short(node), short(new), apply)
        for node, holder, key in places(tree)
        for new, apply in changes(node, holder, key)
    ]


def places(node: ast.AST) -> Iterator[tuple[Any, Any, Any]]:
    """The expressions below a node, and where each is held: in a list at an index, or in a node's field."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        if isinstance(node, ast.keyword) and node.arg in NAMES_ONLY:
            continue
        if isinstance(node, ast.Call) and field == "args" and getattr(node.func, "attr", "") in RESHAPING:
            continue
        holder: Any = value if isinstance(value, list) else vars(node)
        for key, child in list(enumerate(value) if isinstance(value, list) else [(field, value)]):
            if isinstance(child, ast.AST):
                if isinstance(child, ast.expr | ast.AugAssign):
                    yield child, holder, key
                yield from places(child)


def changes(node: Any, holder: Any, key: Any) -> Iterator[tuple[ast.AST, Callable[[], None]]]:
    """What may stand in the place of a node."""

    def put(new: ast.AST) -> tuple[ast.AST, Callable[[], None]]:
        return new, lambda: holder.__setitem__(key, new)

    def with_(**fields: Any) -> tuple[ast.AST, Callable[[], None]]:
        return put(type(node)(**{**dict(ast.iter_fields(node)), **fields}))

    if key == "test":
        yield put(ast.Constant(False))
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPPED:
        yield with_(ops=[SWAPPED[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPPED:
        yield with_(op=SWAPPED[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield put(node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield put(ast.Constant(not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield put(ast.Constant(node.value + 1))
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in COUNTERPART:
            yield with_(func=ast.Attribute(node.func.value, COUNTERPART[name], ast.Load()))
        if name in CLAMPS:
            yield put(node.func.value)


def short(node: ast.AST) -> str:
    text = ast.unparse(ast.fix_missing_locations(node))
    return text if len(text) <= 100 else text[:97] + "..."


def mutated(source: str, number: int) -> str:
    tree = ast.parse(source)
    mutants(tree)[number].apply()
    return ast.unparse(ast.fix_missing_locations(tree))


class Selection:
    """Pytest plugin: only the given tests, in the given order."""

    def __init__(self, names: list[str]) -> None:
        self.order = {name: place for place, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])


class Baseline:
    """Pytest plugin: how long each test takes, and which lines of the files it reaches."""

    def __init__(self, files: list[str]) -> None:
        import coverage

        self.coverage = coverage.Coverage(data_file=None, include=files, config_file=False)
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)
        self.seconds[nodeid] = -time.process_time()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.seconds[nodeid] += time.process_time()

    def reached(self, file: str) -> dict[int, list[str]]:
        return self.coverage.get_data().contexts_by_lineno(str(Path(file).resolve()))


def copy_of_the_tree(folder: Path) -> Path:
    """A copy that imports as specbound with `folder` on the path; returns its root."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "site"))
    package = folder / "specbound"
    package.mkdir()
    for part in (
        "theory",
        "runtime",
        "proofs_checks",
        *(f"specbound/{f.name}" for f in (tree / "specbound").iterdir()),
    ):
        (package / Path(part).name).symlink_to(tree / part)
    (package / "shipped_pair").symlink_to(tree / "examples" / "pair")
    return tree


def forked(tree: Path, job: Callable[[], int], limit: float) -> int:
    """Start `job` in a forked process that imports from `tree` and may use `limit` CPU seconds; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit)))
        os.chdir(tree)
        sys.path[:0] = [str(tree.parent), str(tree)]
        sys.dont_write_bytecode = True
        import_module("specbound")  # before pytest puts the tree's root first, where only half of the package is
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os._exit(job())
    finally:
        os._exit(99)


def run_tests(plugin: Any, files: list[str]) -> int:
    import pytest

    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files], plugins=[plugin]))


def matching(patterns: str) -> list[str]:
    """The Python files of some patterns with blanks between, without `__init__.py`, each once."""
    found = [str(file.relative_to(ROOT)) for pattern in patterns.split() for file in sorted(ROOT.glob(pattern))]
    return list(dict.fromkeys(file for file in found if not file.endswith("__init__.py")))


def tests_of(names: str) -> list[str]:
    """The test files of FOLDER/NAME with blanks between; fuzzing takes too long for this."""
    patterns = ["tests/{}/test_{}.py".format(*name.split("/")) for name in names.split()]
    return [file for file in matching(" ".join(patterns)) if "test_fuzz_" not in file]


def measure(tree: Path, files: list[str], tests: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of every test, and file -> line -> tests that reach it ("" where importing does)."""
    found = tree.parent / "baseline.json"

    def job() -> int:
        plugin = Baseline([str((tree / file).resolve()) for file in files])
        plugin.coverage.start()
        code = run_tests(plugin, tests)
        plugin.coverage.stop()
        found.write_text(json.dumps([plugin.seconds, {file: plugin.reached(file) for file in files}]))
        return code

    _, status = os.waitpid(forked(tree, job, 3600), 0)
    if status:
        sys.exit(f"mutate: the tests fail on the unchanged code (status {status})")
    seconds, reached = json.loads(found.read_text())
    if not all(any(reached[file].values()) for file in files):
        sys.exit("mutate: the tests reach none of a file's lines; is another specbound imported?")
    return seconds, reached


def tests_for(
    mutant: Mutant, reached: dict[str, list[str]], seconds: dict[str, float], most: float
) -> tuple[list[str], float]:
    """The tests that reach a mutant, fastest first, and the seconds they take, at most `most`."""
    on_line = {test for line in range(mutant.line, mutant.last_line + 1) for test in reached.get(str(line), [])}
    if on_line <= {""}:
        on_line = {test for tests in reached.values() for test in tests}
    chosen, total = [], 0.0
    for test in sorted(on_line & seconds.keys(), key=seconds.__getitem__):
        total += seconds[test]
        if total > most:
            break
        chosen.append(test)
    return chosen, min(total, most)


def survives(tree: Path, file: str, number: int, tests: list[str], seconds: float) -> int:
    """Start the tests of one mutant in the copy `tree`; the process ends with code 0 if all pass."""
    source = (ROOT / file).read_text()

    def job() -> int:
        (tree / file).write_text(mutated(source, number))
        return run_tests(Selection(tests), sorted({test.split("::")[0] for test in tests}))

    return forked(tree, job, 30 + 10 * seconds)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="*", default=[file for files, _ in SUITES for file in matching(files)])
    options.add_argument("--sample", type=int, default=8, help="mutants per file; 0 is all of them")
    options.add_argument("--seed", type=int, default=0, help="names the sample")
    options.add_argument(
        "--seconds", type=float, default=15.0, help="CPU seconds of tests per mutant, as timed without mutants"
    )
    options.add_argument("--tests", help="FOLDER/NAME of test files, blanks between, instead of the suites'")
    options.add_argument("--jobs", type=int, default=os.cpu_count())
    options.add_argument("--show", action="store_true", help="print the result only, do not write it")
    chosen = options.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    for name in PRELOADED:
        import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        trees = []
        for job in range(chosen.jobs):
            (Path(folder) / str(job)).mkdir()
            trees.append(copy_of_the_tree(Path(folder) / str(job)))
        seconds: dict[str, float] = {}
        reached: dict[str, Any] = {}
        for files, tests in [(" ".join(chosen.files), chosen.tests)] if chosen.tests else SUITES:
            answered = [file for file in matching(files) if file in chosen.files]
            if answered:
                suite_seconds, suite_reached = measure(trees[0], answered, tests_of(tests))
                seconds, reached = seconds | suite_seconds, reached | suite_reached
        if missing := set(chosen.files) - reached.keys():
            sys.exit(f"mutate: no suite answers for {', '.join(sorted(missing))}; see SUITES")
        work = [(file, number) for file in chosen.files for number in sampled(file, chosen.sample, chosen.seed)]
        survivors = hunt(work, trees, seconds, reached, chosen.seconds)
    result = summary(work, survivors) | {
        "sample_per_file": chosen.sample or "all",
        "seed": chosen.seed,
        "seconds_of_tests_per_mutant": chosen.seconds,
    }
    text = json.dumps(result, indent=1) + "\n"
    if chosen.show:
        print(text)
    else:
        RESULT.write_text(text)
        print(f"{result['killed']} of {result['mutants']} mutants killed; {RESULT.relative_to(ROOT)} names the others")


def sampled(file: str, size: int, seed: int) -> list[int]:
    numbers = range(len(mutants(ast.parse((ROOT / file).read_text()))))
    if not size or size >= len(numbers):
        return list(numbers)
    return sorted(random.Random(f"{seed} {file}").sample(numbers, size))


def hunt(
    work: list[tuple[str, int]], trees: list[Path], seconds: dict[str, float], reached: dict[str, Any], most: float
) -> set[tuple[str, int]]:
    """Those mutants that no test kills; one at a time in each copy of the tree."""
    free, running, survivors = list(trees), {}, set()
    waiting = list(work)
    while waiting or running:
        if waiting and free:
            file, number = waiting.pop(0)
            mutant = mutants(ast.parse((ROOT / file).read_text()))[number]
            tests, limit = tests_for(mutant, reached[file], seconds, most)
            if not tests:
                survivors.add((file, number))
                continue
            tree = free.pop()
            running[survives(tree, file, number, tests, limit)] = (tree, file, number)
            continue
        child, status = os.wait()
        tree, file, number = running.pop(child)
        shutil.copy(ROOT / file, tree / file)
        free.append(tree)
        if status == 0:
            survivors.add((file, number))
        done = len(work) - len(waiting) - len(running)
        fate = "survived" if status == 0 else "killed"
        print(f"{done} of {len(work)}: {file}, mutant {number} {fate}", file=sys.stderr, flush=True)
    return survivors


def summary(work: list[tuple[str, int]], survivors: set[tuple[str, int]]) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for file in dict.fromkeys(file for file, _ in work):
        found = mutants(ast.parse((ROOT / file).read_text()))
        tried = [number for name, number in work if name == file]
        alive = [found[number] for number in tried if (file, number) in survivors]
        files[file] = {
            "mutants": len(found),
            "tried": len(tried),
            "killed": len(tried) - len(alive),
            "survivors": [{"line": m.line, "before": m.before, "after": m.after} for m in alive],
        }
    return {"mutants": len(work), "killed": len(work) - len(survivors), "files": files}


if __name__ == "__main__":
    main()
