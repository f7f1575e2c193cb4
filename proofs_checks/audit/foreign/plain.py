"""Answers of a sandbox as text: numbers, strings, lists, tuples, dictionaries and named records, nothing that runs.

JSON with marks for what JSON lacks: {"tuple": [...]}, {"dict": [[key, value], ...]}, {"record": [name, {...}]}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def encoded(value: Any) -> bytes:
    """The value as text.

    Raises:
        TypeError: for a value of another kind.
    """
    return json.dumps(_marked(value)).encode()


def decoded(data: bytes, records: Mapping[str, type] | None = None) -> Any:
    """The value back.

    Args:
        records: dataclasses that may be made, by name.

    Raises:
        ValueError: if the text is not one that `encoded` gives, or names another record.
    """
    try:
        return _unmarked(json.loads(data), records or {})
    except (KeyError, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"an answer that cannot be read: {type(error).__name__}") from None


def _marked(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [_marked(part) for part in value]
    if isinstance(value, tuple):
        return {"tuple": [_marked(part) for part in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_marked(key), _marked(part)] for key, part in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _marked(getattr(value, field.name)) for field in fields(value)}
        return {"record": [type(value).__name__, parts]}
    raise TypeError(f"an answer holds {type(value).__name__}; want numbers, strings, lists, tuples or dictionaries")


def _unmarked(value: Any, records: Mapping[str, type]) -> Any:
    if isinstance(value, list):
        return [_unmarked(part, records) for part in value]
    if not isinstance(value, dict):
        return value
    mark, content = next(iter(value.items())) if len(value) == 1 else ("", [])
    if mark == "tuple":
        return tuple(_unmarked(part, records) for part in content)
    if mark == "dict":
        return {_unmarked(key, records): _unmarked(part, records) for key, part in content}
    if mark == "record" and content[0] in records:
        return records[content[0]](**{name: _unmarked(part, records) for name, part in content[1].items()})
    raise ValueError("an answer that cannot be read")
