"""The shipped pair: a target and a draft language model of Python source that share one tokenizer.

Both folders load with `transformers.AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`. The pair was
trained by examples/train_pair.py on the source of Python's standard library; `manifest()` says on which files,
how, and what the two models reach. This package reads files only: it imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["DRAFT", "HEAD", "TARGET", "TASKS", "manifest", "prompts"]

_FOLDER = Path(__file__).parent
TARGET: Path = _FOLDER / "target"
"""Folder of the target model and its tokenizer."""
DRAFT: Path = _FOLDER / "draft"
"""Folder of the draft model and the same tokenizer."""
HEAD: Path = _FOLDER / "head" / "head.safetensors"
"""The draft's acceptance head (SpecDec++), trained by examples/train_acceptance_head.py."""
TASKS: Path = _FOLDER / "tasks.jsonl"
"""Held-out prompts of four kinds, made by examples/make_tasks.py; the manifest's "tasks" names their origin."""


def prompts() -> list[dict[str, str]]:
    """The held-out prompts, 32 to 96 tokens each: dicts with "id", "file" (in the standard library) and "text"."""
    return json.loads((_FOLDER / "prompts.json").read_text(encoding="utf-8"))


def manifest() -> dict[str, Any]:
    """How the pair was made and what it reaches.

    "results" holds perplexity, bits per byte and acceptance: "acceptance" is the mean of
    sum_x min(target(x), draft(x)) at temperature 1, the probability that token verification keeps one drafted
    token, over held-out files ("held_out"), over the prompts ("prompts") and along texts that the target
    continues from the prompts ("generated"). "forward_ms" is the shortest time of one cached
    one-token forward, on a machine whose run queue was as long as "load_average" says.
    "training_files" and "held_out_files" map each file of the standard library to its SHA-256.
    """
    return json.loads((_FOLDER / "manifest.json").read_text(encoding="utf-8"))
