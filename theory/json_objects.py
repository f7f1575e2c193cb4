"""The JSON files of theory, read and written: whatever is wrong with one is a ValueError that names the field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np


def parse_json(what: str, text: str) -> Any:
    """The value of a JSON text; `what` names it in errors ("the instance").

    Raises:
        ValueError: not JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from None


def read_object(
    what: str,
    source: str | Mapping[str, Any],
    form: str | None,
    version: int,
    required: Sequence[str],
    optional: Sequence[str] = (),
) -> Mapping[str, Any]:
    """A JSON object with `version`, `format` (unless `form` is None) and exactly these other fields.

    Raises:
        ValueError: not a JSON object, another format or version, an unknown or a missing field.
    """
    data = parse_json(what, source) if isinstance(source, str) else source
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} is a JSON {type(data).__name__}; want an object")
    head = ("version",) if form is None else ("format", "version")
    if missing := [name for name in head if name not in data]:
        raise ValueError(f"field {missing[0]!r} is missing; want {', '.join((*head, *required))}")
    if form is not None and data["format"] != form:
        raise ValueError(f"format is {data['format']!r}; want {form!r}")
    if isinstance(data["version"], bool) or data["version"] != version:
        raise ValueError(f"version is {data['version']!r}; this release reads version {version}")
    known = (*head, *required, *optional)
    if unknown := sorted(set(data) - set(known), key=str):
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(known)}")
    if missing := [name for name in required if name not in data]:
        raise ValueError(f"field {missing[0]!r} is missing; want {', '.join((*head, *required))}")
    return data


def write_object(form: str | None, version: int, fields: Mapping[str, Any]) -> str:
    """One JSON object with `format` (unless None) and `version` first; see `plain` for the values."""
    head = {"version": version} if form is None else {"format": form, "version": version}
    return json.dumps(head | {name: plain(value) for name, value in fields.items()})


def plain(value: Any) -> Any:
    """What JSON can hold: fractions as strings ("1/3"), arrays and tuples as lists, floats with every digit."""
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    return value
