"""Build wheel and sdist, and use them as a stranger would: installed, outside the repository.

    python scripts/package.py                              what CI runs
    python scripts/package.py --installs                   pip-installs into empty environments, with each extra
    python scripts/package.py --theory python3.13          other Pythons, where there may be no torch
    python scripts/package.py --runtime python3.12         the GPU machines' stack, on CPU: see RUNTIME_STACK

The checks: what is installed is what constraints.txt names; the sdist builds the wheel that the tree builds; every
file of the packages is in it; the installed command works, and imports torch only when it needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = ROOT / "constraints.txt"
NOT_LOCKED = {"pip", "specbound"}
NOT_FOR_THEORY = {"accelerate", "ray", "safetensors", "tokenizers", "torch", "transformers"}
EXTRA_IMPORTS = {"gpu": "triton", "cluster": "ray", "multi-device": "accelerate", "docs": "mkdocs, mkdocstrings"}
RUNTIME_STACK = ["torch==2.11.*", "transformers==5.17.*", "safetensors", "tokenizers", "click", "rich", "numpy"]
TEST_TOOLS = ["pytest", "pytest-xdist", "hypothesis"]
THEORY_TESTS = (
    "antichain automaton block_transport certificates joint_decoding modeling multi_path prefix_tree single_path "
    "single_step solution stopping token_level verifier_table"
)
RUNTIME_TESTS = (
    "acceptance_head cache carry decode greedy_block kernels lengths mjsd models sampling "
    "single_path_verifiers stream_law tree_attention tuning"
)
HELP = """
import sys, time
start = time.perf_counter()
from specbound import cli
try:
    cli.main(["--help"])
except SystemExit as stopped:
    assert not stopped.code
heavy = {"torch", "transformers", "cvxpy", "matplotlib", "scipy"} & sys.modules.keys()
assert not heavy, f"specbound --help imports {heavy}"
print(time.perf_counter() - start, file=sys.stderr)
"""
SOLVE = """
import sys
from specbound import cli
sys.modules["torch"] = None
cli.main("solve --target 1/3,2/3 --draft 2/3,1/3 --length 2 --json".split())
"""
PUBLISHED = {"token": "10/9", "block": "11/9", "lossless-optimum": "11/9", "block-transport-optimum": "4/3"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--installs", action="store_true")
    options.add_argument("--theory", nargs="+", default=[], metavar="PYTHON")
    options.add_argument("--runtime", metavar="PYTHON")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        if not (chosen.installs or chosen.theory or chosen.runtime):
            check_lock()
            with environment(Path(folder), borrowing=True) as python:
                pip(python, "--no-deps", wheel)
                use(python, Path(folder), wheel)
        if chosen.installs:
            for extra in ("", *EXTRA_IMPORTS):
                check_install(Path(folder), wheel, extra)
        for interpreter in chosen.theory:
            check_theory(Path(folder), wheel, interpreter)
        if chosen.runtime:
            check_runtime(Path(folder), wheel, chosen.runtime)


def check_lock() -> None:
    """The running environment holds exactly what constraints.txt names, in the same versions."""
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if line and not line.startswith("#")]
    locked = {canonical(name): version for name, version in (line.split("==") for line in lines)}
    found = {canonical(dist.name): dist.version for dist in distributions()}
    found = {name: version for name, version in found.items() if name not in NOT_LOCKED}
    wrong = [
        f"{name}: locked {locked.get(name, 'nowhere')}, installed {found.get(name, 'not')}"
        for name in sorted(locked.keys() | found.keys())
        if locked.get(name) != found.get(name)
    ]
    require(not wrong, "constraints.txt is not what is installed:\n  " + "\n  ".join(wrong))
    say(f"constraints.txt names the {len(locked)} installed packages")


def build(folder: Path) -> Path:
    """The wheel that the sdist builds, after comparing it with the tree and with the tree's own wheel."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist"))
    for name, arguments in (("dist", []), ("direct", ["--wheel"])):
        run([sys.executable, "-m", "build", "--outdir", folder / name, *arguments, tree])
        shutil.rmtree(tree / "build", ignore_errors=True)
    (wheel,), (direct,) = ((folder / name).glob("*.whl") for name in ("dist", "direct"))
    through_sdist, from_tree = contents(wheel), contents(direct)
    require(through_sdist == from_tree, f"the sdist builds another wheel: {through_sdist.items() ^ from_tree.items()}")
    missing = [name for name in package_files() if name not in through_sdist]
    require(not missing, f"not in the wheel: {missing} (see [tool.setuptools] in pyproject.toml)")
    say(f"{wheel.name}: {len(from_tree)} files, {wheel.stat().st_size / 1e6:.1f} MB, the same from the sdist")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    """The wheel's files; its RECORD, a list of the others, left out."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def package_files() -> Iterator[str]:
    """Names in the wheel of all files in the packages' folders, whether or not pyproject.toml lists their folder."""
    places: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]
    for package, place in places.items():
        if any(place.startswith(other + "/") for other in places.values()):
            continue
        for file in (ROOT / place).rglob("*"):
            if file.is_file() and file.parent.name != "__pycache__":
                yield f"{package.replace('.', '/')}/{file.relative_to(ROOT / place).as_posix()}"


@contextmanager
def environment(folder: Path, interpreter: str = sys.executable, borrowing: bool = False) -> Iterator[Path]:
    """The Python of a new environment: an empty one, or one that borrows the packages of the running one.

    The running one's editable specbound is not borrowed, because that is a line in a .pth file.
    """
    home = folder / "environment"
    run([interpreter, "-m", "venv", "--without-pip", home])
    if borrowing:
        (site_packages,) = home.glob("lib/python*/site-packages")
        (site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield home / "bin" / "python"
    shutil.rmtree(home)


def pip(python: Path, *arguments: str | Path) -> None:
    """Install into the environment of `python` with the pip of the running one."""
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *arguments])


def use(python: Path, folder: Path, wheel: Path, demo: bool = True) -> None:
    """Use the installed command as one who has never seen the repository."""
    where = run([python, "-c", "import specbound; print(specbound.__file__)"], folder).stdout.strip()
    require(Path(where).is_relative_to(python.parent.parent), f"specbound is imported from {where}")
    version = run([python.with_name("specbound"), "--version"], folder).stdout
    require(wheel.name.startswith(f"specbound-{version.split()[-1]}-"), f"--version says {version} of {wheel.name}")
    seconds = float(run([python, "-c", HELP], folder).stderr)
    answers = json.loads(run([python, "-c", SOLVE], folder).stdout)["results"]
    found = {answer["name"]: answer["exact"] for answer in answers}
    require(PUBLISHED.items() <= found.items(), f"specbound solve says {found}; want {PUBLISHED}")
    say(f"  installed: --help in {seconds:.2f} s; solve gives the published example's values, without torch")
    if demo:
        start = time.perf_counter()
        run([python.with_name("specbound"), "demo", "--quick"], folder)
        say(f"  installed: demo --quick agrees with theory, {time.perf_counter() - start:.0f} s")


def check_install(folder: Path, wheel: Path, extra: str) -> None:
    """pip-install into an empty environment, with one extra, in the versions of constraints.txt."""
    say(f"empty environment, {'extra ' + extra if extra else 'no extra'}:")
    with environment(folder) as python:
        pip(python, "--constraint", CONSTRAINTS, f"{wheel}[{extra}]" if extra else wheel)
        run([sys.executable, "-m", "pip", "--python", python, "check"])
        if extra:
            run([python, "-c", f"import {EXTRA_IMPORTS[extra]}"])
        use(python, folder, wheel, demo=not extra)


def check_theory(folder: Path, wheel: Path, interpreter: str) -> None:
    """Where there may be no torch, theory's tests pass and `specbound solve` works."""
    wanted = [
        line
        for line in PROJECT["project"]["dependencies"]
        if canonical(re.split("[<>=]", line)[0]) not in NOT_FOR_THEORY
    ]
    with environment(folder, interpreter) as python:
        say(f"{run([python, '--version']).stdout.strip()}, theory without torch:")
        pip(python, "--no-deps", wheel)
        pip(python, *wanted, *TEST_TOOLS)
        use(python, folder, wheel, demo=False)
        run_tests(python, folder, THEORY_TESTS)


def check_runtime(folder: Path, wheel: Path, interpreter: str) -> None:
    """Runtime and decode work in RUNTIME_STACK, with nothing that only theory needs."""
    with environment(folder, interpreter) as python:
        say(f"{run([python, '--version']).stdout.strip()}, {', '.join(RUNTIME_STACK)}:")
        pip(python, *RUNTIME_STACK, *TEST_TOOLS)
        pip(python, "--no-deps", wheel)
        decode = "decode --prompt 'def main(' --max-new-tokens 24 --json --seed 1"
        for verifier in ("--verifier token", "--verifier block", "--paths 2 --verifier two-level"):
            command = shlex.split(f"{decode} {verifier}")
            answer = json.loads(run([python.with_name("specbound"), *command], folder).stdout)
            (output,) = answer["outputs"]
            say(f"  decode {verifier}: {output['text']!r}")
        run_tests(python, folder, RUNTIME_TESTS)


def run_tests(python: Path, folder: Path, names: str) -> None:
    """Run test files against the installed package, from a folder with the tests and the files they read."""
    for part in ("tests", "benchmarks", "examples"):
        shutil.copytree(ROOT / part, folder / "use" / part, dirs_exist_ok=True)
    files = [next((ROOT / "tests").glob(f"*/test_{name}.py")).relative_to(ROOT) for name in names.split()]
    say("  " + run([python, "-m", "pytest", "-q", "-n", "2", *files], folder / "use").stdout.splitlines()[-1])


def run(command: Sequence[str | Path], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    variables.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    require(
        not done.returncode,
        f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}",
    )
    return done


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def require(met: bool, otherwise: str) -> None:
    if not met:
        sys.exit(f"package: {otherwise}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
