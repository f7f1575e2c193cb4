"""The output in the documentation is real: this script runs what the pages show and writes what came out.

    python docs/tools/outputs.py            run everything and rewrite the pages (minutes)
    python docs/tools/outputs.py PAGE ...   only these pages, e.g. docs/guide/solve.md

What runs: every `console` block with a comment `<!-- run -->` on the line before it, and every `pycon` block. Pages
run from top to bottom in one empty folder, Python blocks of a page share their variables. Options in the comment:

    slow     not repeated by the tests (they only check that the command line still parses)
    timed    numbers and the breaking of lines may change from run to run; the tests compare the words
    exit=N   the exit code that is expected, 0 if not given; what goes to stderr is shown if it is not 0

Seconds and rounding errors (2e-16) may differ everywhere. Three more comments:

    <!-- table: NAME -->         what follows, up to <!-- end -->, comes from the function NAME of `tables.py`
    <!-- source: FILE NAME -->   the Python block that follows shows the function or class NAME of FILE
    <!-- file: NAME -->          the Python block that follows is written to the file NAME before the page runs
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = "92"
BLOCK = re.compile(
    r"(?:^<!-- run(?P<options>[^\n]*) -->\n)?^```(?P<kind>console|pycon)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
SOURCE = re.compile(
    r"(?<=^<!-- source: )(?P<file>\S+) (?P<name>\w+)( -->\n```python\n)(?P<body>.*?)(?=^```$)", re.M | re.S
)
FILE = re.compile(r"^<!-- file: (?P<name>\S+) -->\n```python\n(?P<body>.*?)^```$", re.M | re.S)
TABLE = re.compile(r"(?<=^<!-- table: )(?P<name>\w+)(?P<open> -->\n)(?P<body>.*?)(?=^<!-- end -->$)", re.M | re.S)
CHANGING = (
    (re.compile(r"\b\d+(\.\d+)? s\b"), "# s"),
    (re.compile(r"\b\d(\.\d+)?e-1[4-9]\b"), "#e-16"),
)


@dataclass(frozen=True)
class Block:
    """A block that runs.

    Attributes:
        page: the file it stands in; start, stop: where its body is in the text.
        kind: "console" or "pycon"; body: commands or statements with their output.
        slow, timed, exit: the options of its comment.
    """

    page: Path
    start: int
    stop: int
    kind: str
    body: str
    slow: bool
    timed: bool
    exit: int


def pages() -> list[Path]:
    """README.md and every page of the site that is written in Markdown."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that run, in order.

    Raises:
        ValueError: for an option that is none.
    """
    found = []
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        options = match["options"]
        if match["kind"] == "console" and options is None:
            continue
        words = (options or "").split()
        code = next((word.removeprefix("exit=") for word in words if word.startswith("exit=")), "0")
        if unknown := set(words) - {"slow", "timed", f"exit={code}"}:
            raise ValueError(f"{page.name}: unknown option {sorted(unknown)[0]!r}; known are slow, timed and exit=N")
        span = match.span("body")
        found.append(Block(page, *span, match["kind"], match["body"], "slow" in words, "timed" in words, int(code)))
    return found


@contextlib.contextmanager
def folder_of(page: Path) -> Iterator[None]:
    """A temporary current folder with `examples` and the files that the page defines; a terminal of fixed width."""
    before, environment = os.getcwd(), dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
        for match in FILE.finditer(page.read_text(encoding="utf-8")):
            (Path(folder) / match["name"]).write_text(match["body"], encoding="utf-8")
        os.chdir(folder)
        os.environ |= {"COLUMNS": COLUMNS, "OMP_NUM_THREADS": "1"}
        os.environ.pop("FORCE_COLOR", None)
        sys.path.insert(0, folder)
        try:
            yield
        finally:
            sys.path.remove(folder)
            os.chdir(before)
            os.environ.clear()
            os.environ.update(environment)


def run(block: Block, variables: dict[str, Any]) -> str:
    """The body of the block with the output it has now."""
    return run_console(block) if block.kind == "console" else run_python(block, variables)


def commands(body: str) -> list[tuple[str, list[str]]]:
    """The commands of a console block: the lines as they stand, and the words after the `$`."""
    found: list[str] = []
    continued = False
    for line in body.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append(line)
        elif continued:
            found[-1] += line
        continued = line.rstrip("\n").endswith("\\") and (continued or line.startswith("$ "))
    return [(text, shlex.split(text[2:].replace("\\\n", " "), comments=True)) for text in found]


def run_console(block: Block) -> str:
    """Run the commands `specbound ...` and `cat FILE` of a block.

    Raises:
        ValueError: for another command.
        RuntimeError: the exit code is not the expected one.
    """
    body = ""
    for text, words in commands(block.body):
        body += text
        if words[0] == "cat":
            body += Path(words[1]).read_text(encoding="utf-8")
            continue
        if words[0] != "specbound":
            raise ValueError(f"{block.page.name}: cannot run {words[0]!r}; only specbound and cat")
        out, err, code = call(words[1:])
        if code != block.exit:
            raise RuntimeError(f"{block.page.name}: {text.strip()} exits with {code}, not {block.exit}: {err}")
        body += "".join(line.rstrip() + "\n" for line in (out + (err if code else "")).splitlines())
    return body


def call(arguments: list[str]) -> tuple[str, str, int]:
    """stdout, stderr and exit code of the command line, in this process."""
    from specbound.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as stop:
            return out.getvalue(), err.getvalue(), int(stop.code or 0)
    raise RuntimeError("the command line did not exit")


def run_python(block: Block, variables: dict[str, Any]) -> str:
    """Run `>>>` statements one after another; output as the interpreter would show it."""
    body = ""
    for example in doctest.DocTestParser().get_examples(block.body):
        lines = example.source.splitlines()
        body += "".join(f"{'...' if place else '>>>'} {line}".rstrip() + "\n" for place, line in enumerate(lines))
        out = io.StringIO()
        code = compile(example.source, block.page.name, "single")
        with contextlib.redirect_stdout(out):
            exec(code, variables)
        body += out.getvalue()
    return body


def comparable(body: str, timed: bool) -> str:
    """The text without what may change from run to run; of a timed block its words, wherever lines are broken."""
    for pattern, instead in CHANGING:
        body = pattern.sub(instead, body)
    return re.sub(r"[-+]?\d[\d.,e]*|[\s#┏┓┗┛┡┩┳┻╇└┘├┤┴┼━─│┃]", "", body) if timed else body


def table(name: str) -> str:
    """The Markdown table of that name, from `tables.py` beside this file."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import tables
    finally:
        sys.path.pop(0)
    return str(getattr(tables, name)())


def source(file: str, name: str) -> str:
    """The source of a function or class of a file of the repository.

    Raises:
        ValueError: the file has none of that name.
    """
    text = (ROOT / file).read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return "\n".join(text.splitlines()[node.lineno - 1 : node.end_lineno]) + "\n"
    raise ValueError(f"{file} has no function or class {name!r} at its top level")


def generated(text: str) -> str:
    """The text of a page with its tables and sources made anew."""
    text = TABLE.sub(lambda match: match["name"] + match["open"] + table(match["name"]), text)
    return SOURCE.sub(
        lambda match: f"{match['file']} {match['name']}{match[3]}{source(match['file'], match['name'])}", text
    )


def rewrite(page: Path) -> bool:
    """Run a page and write it anew; True if it changed."""
    text = page.read_text(encoding="utf-8")
    pieces, place = [], 0
    variables: dict[str, Any] = {}
    with folder_of(page):
        for block in blocks(page):
            pieces += [text[place : block.start], run(block, variables)]
            place = block.stop
    written = generated("".join([*pieces, text[place:]]))
    page.write_text(written, encoding="utf-8")
    return written != text


if __name__ == "__main__":
    for chosen in [Path(name).resolve() for name in sys.argv[1:]] or pages():
        print(("rewritten  " if rewrite(chosen) else "as before  ") + str(chosen.relative_to(ROOT)), flush=True)
