"""Prompts by task, from the JSONL layouts people have.

    Spec-Bench, MT-Bench   {"question_id": ..., "category": TASK, "turns": [PROMPT, ...]}     the first turn
    HumanEval              {"task_id": "HumanEval/0", "prompt": PROMPT, ...}
    GSM8K                  {"question": PROMPT, "answer": ...}
    plain                  {"prompt": PROMPT} or {"text": PROMPT}, with "task" if there are several

Where a line names no task, all of the file is one, named after the file or the layout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbound.files import read_text


@dataclass(frozen=True)
class Prompt:
    """One prompt of a task; `number` counts within the task."""

    task: str
    number: int
    text: str


def read_tasks(file: str | Path, what: str = "--tasks", most: int | None = None) -> list[Prompt]:
    """The prompts of a JSONL file, at most `most` of each task, in the order of the file.

    Raises:
        ValueError: naming the line, if it is no JSON object or has no prompt in a known layout.
        OSError: the file cannot be read.
    """
    found: list[Prompt] = []
    counts: dict[str, int] = {}
    for number, line in enumerate(read_text(what, file).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{what} {file}, line {number}: not JSON ({error})") from None
        task, text = _read(entry, Path(file).stem, f"{what} {file}, line {number}")
        counts[task] = counts.get(task, 0) + 1
        if most is None or counts[task] <= most:
            found.append(Prompt(task, counts[task] - 1, text))
    if not found:
        raise ValueError(f"{what} {file}: holds no prompts; want one JSON object a line")
    return found


def _read(entry: Any, file: str, where: str) -> tuple[str, str]:
    """(task, prompt) of one line."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: {entry!r} is no JSON object")
    turns = entry.get("turns")
    candidates = (
        (entry.get("category", file), turns[0] if isinstance(turns, list) and turns else None),
        (str(entry.get("task_id", "")).partition("/")[0] or entry.get("task", file), entry.get("prompt")),
        (entry.get("task", file), entry.get("text")),
        (entry.get("task", file), entry.get("question")),
    )
    for task, text in candidates:
        if isinstance(text, str) and text:
            return str(task), text
    raise ValueError(f'{where}: no prompt; want "turns", "prompt", "text" or "question" with a text')
