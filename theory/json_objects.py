"""Reading the JSON files of theory: whatever is wrong with one is a ValueError that names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


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


def read_float(name: str, value: Any) -> float:
    """A finite number. Raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}; want a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; want a finite number")
    return number


def read_floats(name: str, values: Any) -> NDArray[np.float64]:
    """[m] float64 from a JSON list of finite numbers. Raises ValueError for anything else."""
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list of numbers")
    return np.array([read_float(f"{name}[{place}]", value) for place, value in enumerate(values)], dtype=float)
