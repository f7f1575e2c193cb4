"""Write examples/pair/tasks.jsonl: four kinds of prompts that the shipped pair was not trained on.

    python examples/make_tasks.py                  # from this Python's standard library
    python examples/make_tasks.py --check          # do the files still give the prompts that are shipped?

    code        the first half of a function          files held out from training (the manifest names them)
    docstrings  a function up to the middle of its docstring                               likewise
    tests       the first half of a test method       the library's own tests, which training skipped
    tables      the first lines of a table of data    held-out files, and tables that training skipped

All text is from the Python standard library, Python Software Foundation License. The manifest gets an entry "tasks"
with the files and their SHA-256.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import click
from tokenizers import Tokenizer

PAIR = Path(__file__).parent / "pair"
PROMPTS = 8
LEAST, MOST = 24, 96
TESTS = ("test_bisect", "test_calendar", "test_deque", "test_fractions", "test_heapq", "test_shlex", "test_textwrap")
TABLES = ("_compat_pickle.py", "encodings/cp1250.py", "encodings/koi8_r.py", "html/entities.py", "pickletools.py")


def functions(source: str) -> Iterator[tuple[list[str], ast.FunctionDef]]:
    """Every function of some length: its lines, and its syntax tree."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and node.end_lineno - node.lineno >= 5:
            yield lines[node.lineno - 1 : node.end_lineno], node


def code(source: str) -> Iterator[str]:
    """The first half of each function."""
    for lines, _ in functions(source):
        yield "\n".join(lines[: len(lines) // 2])


def docstrings(source: str) -> Iterator[str]:
    """Each function up to the middle of its docstring of at least four lines."""
    for lines, node in functions(source):
        first = node.body[0]
        if ast.get_docstring(node) and first.end_lineno is not None and first.end_lineno - first.lineno >= 3:
            middle = (first.lineno + first.end_lineno) // 2 - node.lineno + 1
            yield "\n".join(lines[:middle])


def tests(source: str) -> Iterator[str]:
    """The first half of each test method."""
    for lines, node in functions(source):
        if node.name.startswith("test"):
            yield "\n".join(lines[: len(lines) // 2])


def tables(source: str) -> Iterator[str]:
    """Runs of eight lines that all end in a comma or hold a key and a value."""
    lines = source.splitlines()
    for start in range(0, len(lines) - 8, 40):
        block = lines[start : start + 6]
        if all(":" in line or line.rstrip().endswith(",") or " # " in line for line in block):
            yield "\n".join(block)


def kinds() -> dict[str, tuple[object, list[str]]]:
    """For each kind how prompts are cut, and the files they come from."""
    held_out = sorted(json.loads((PAIR / "manifest.json").read_text(encoding="utf-8"))["held_out_files"])
    own = [f"test/{name}.py" for name in TESTS]
    return {
        "code": (code, held_out),
        "docstrings": (docstrings, held_out),
        "tests": (tests, own),
        "tables": (tables, list(TABLES)),
    }


def make() -> tuple[list[dict[str, str]], dict[str, str]]:
    """The prompts, spread over the files of their kind, and the SHA-256 of the files that were used."""
    root, tokenizer = Path(sysconfig.get_path("stdlib")), Tokenizer.from_file(str(PAIR / "target" / "tokenizer.json"))
    prompts, used = [], {}
    for kind, (cut, files) in kinds().items():
        found = {}
        for file in files:
            text = (root / file).read_text(encoding="utf-8")
            fitting = [prompt for prompt in cut(text) if LEAST <= len(tokenizer.encode(prompt).ids) <= MOST]
            fitting.sort(key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
            if fitting:
                found[file] = fitting
        rounds = [(file, found[file][turn]) for turn in range(PROMPTS) for file in found if turn < len(found[file])]
        for number, (file, prompt) in enumerate(rounds[:PROMPTS]):
            prompts.append({"id": f"{kind}-{number}", "task": kind, "file": file, "prompt": prompt})
            used[file] = hashlib.sha256((root / file).read_bytes()).hexdigest()
    return prompts, used


@click.command()
@click.option("--check", is_flag=True, help="Compare with the shipped file instead of writing it.")
def main(check: bool) -> None:
    """Write the prompts and their origin."""
    prompts, used = make()
    text = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    if check:
        same = (PAIR / "tasks.jsonl").read_text(encoding="utf-8") == text
        click.echo("as shipped" if same else "other prompts than those shipped")
        raise SystemExit(0 if same else 1)
    (PAIR / "tasks.jsonl").write_text(text, encoding="utf-8")
    manifest = json.loads((PAIR / "manifest.json").read_text(encoding="utf-8"))
    licence = "Python standard library, Python Software Foundation License"
    manifest["tasks"] = {"text": licence, "made_by": "examples/make_tasks.py", "files": used}
    (PAIR / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
