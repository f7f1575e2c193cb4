"""Reading numbers, in one place: exact where they are given exactly, and a ValueError that names the field otherwise.

Integers, fractions and strings ("1/3", "0.25") are `fractions.Fraction`; numbers with a decimal point are floats. One
float among the numbers of an instance makes all of it float64.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from numbers import Integral, Rational, Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Number: TypeAlias = Fraction | float
Row: TypeAlias = Sequence[Any] | Array
Table: TypeAlias = tuple[tuple[Number, ...], ...]

ROW_TOLERANCE = 1e-9
MAX_EXPONENT = 9999


def parse_number(value: object) -> Number:
    """A number as a person writes it: "1/3", "0.25" or an integer gives a Fraction, 0.25 a float.

    Raises:
        ValueError: if it is not a number. NaN and infinity are, as floats; see `read_number`.
    """
    if isinstance(value, Rational) and not isinstance(value, bool):
        return Fraction(int(value.numerator), int(value.denominator))
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        exponent = re.search(r"e[+-]?(\d+)", value.lower())
        if exponent is None or int(exponent[1]) <= MAX_EXPONENT:
            try:
                return Fraction(value)
            except (ValueError, ZeroDivisionError):
                pass
    raise ValueError(f"{value!r} is not a number; write a decimal such as 0.25 or a fraction such as 1/4")


def read_number(value: object, field: str) -> Number:
    """`value` as a Fraction or a finite float64; ValueError naming `field` for anything else."""
    try:
        number = parse_number(value)
    except ValueError:
        raise ValueError(f"{field} is {value!r}; want a number: a decimal such as 0.25 or a fraction 1/4") from None
    if not isinstance(number, Fraction) and not math.isfinite(number):
        raise ValueError(f"{field} is {number}; want a finite number")
    return number


def read_count(value: object, field: str, highest: int | None = None) -> int:
    """`value` as an integer in 0..highest; ValueError naming `field` otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        raise ValueError(f"{field} is {value!r}; want an integer, at least 0")
    if highest is not None and int(value) > highest:
        raise ValueError(f"{field} is {value}; want at most {highest}")
    return int(value)


def read_list(values: object, field: str) -> list[Any]:
    """A list, a tuple or an array as a list; ValueError naming `field` for anything else."""
    if isinstance(values, np.ndarray) or hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise ValueError(f"{field} is {values!r}; want a list")
    return list(values)


def read_numbers(values: object, field: str) -> Array:
    """[m] Fractions if all are exact, else float64, from a list of finite numbers."""
    return to_array([read_number(value, f"{field}[{place}]") for place, value in enumerate(read_list(values, field))])


def read_rows(rows: object, field: str, width: int | None = None) -> Array:
    """[C, V] rows of probabilities, each non-negative with sum 1 (exactly, or to 1e-9 in floats).

    Nothing is rescaled. Raises ValueError naming the field, the entry and what was wanted.
    """
    ready = isinstance(rows, np.ndarray) and rows.dtype == np.float64 and rows.ndim == 2 and rows.size
    table = np.asarray(rows) if ready else to_array(_parsed_rows(rows, field, width))
    check_rows(table, field)
    return table


def _parsed_rows(rows: object, field: str, width: int | None) -> list[list[Number]]:
    listed = read_list(rows, field)
    if not listed:
        raise ValueError(f"{field} is empty; want at least one row of probabilities")
    parsed = []
    for c, row in enumerate(listed):
        entries = read_list(row, f"{field}[{c}]")
        width = len(entries) if width is None else width
        if len(entries) != width or not entries:
            raise ValueError(f"{field}[{c}] has {len(entries)} entries; want {width}, one per token")
        parsed.append([read_number(value, f"{field}[{c}][{z}]") for z, value in enumerate(entries)])
    return parsed


def check_rows(rows: Array, field: str, gaps: bool = False) -> None:
    """Raises ValueError unless rows [C, V] are laws; `gaps` allows rows of zeros, where a law is not known."""
    if not is_exact(rows) and not np.isfinite(rows).all():
        c, z = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(f"{field}[{c}][{z}] is {rows[c, z]}; want a finite number")
    if len(bad := np.argwhere(rows < 0)):
        c, z = bad[0]
        raise ValueError(f"{field}[{c}][{z}] is {rows[c, z]}; want a probability, at least 0")
    sums = rows.sum(axis=1)
    wrong = abs(sums - 1) > (0 if is_exact(rows) else ROW_TOLERANCE)
    if gaps:
        wrong &= sums != 0
    if len(where := np.flatnonzero(wrong)):
        raise ValueError(f"{field}[{where[0]}] sums to {sums[where[0]]}; want 1 (divide the row by its sum)")


def is_exact(values: Array) -> bool:
    """True for an array of Fractions."""
    return values.dtype == object


def to_array(*values: Any) -> Any:
    """An array of Fractions if every number is an integer or a Fraction, else of float64; several: all of one kind."""
    arrays = [np.array(value, dtype=object) for value in values]
    if all(isinstance(entry, int | Fraction) for array in arrays for entry in array.ravel()):
        arrays = [np.frompyfunc(Fraction, 1, 1)(array) if array.size else array for array in arrays]
    else:
        arrays = [as_floats(array) for array in arrays]
    return arrays[0] if len(values) == 1 else arrays


def as_floats(values: Any) -> Array:
    """float64 array of numbers. Raises ValueError for what is none, or out of range."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values.astype(float, copy=False)
    try:
        return np.asarray(values, dtype=object).astype(float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a row has an entry that is not a number in range: {error}") from None


def read_float(name: str, value: Any) -> float:
    """A finite JSON number. Raises ValueError for anything else."""
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


def python_rows(rows: Array) -> Table:
    """The rows as Python numbers, which loops in exact arithmetic want."""
    return tuple(map(tuple, rows.tolist()))


def magnitude(value: Number) -> Number:
    """|value|."""
    return value if value >= 0 else -value
