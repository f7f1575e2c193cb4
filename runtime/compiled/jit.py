"""How functions are compiled: IEEE division, no hold on Python's lock, and what outside callers need kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

# What only other compiled functions call; its code is part of what is kept for those.
inner = njit(nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def outer(function: Callable[..., Any]) -> Any:
    """A function for callers from outside, kept on disk if there is a place that can be written."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba found no such place
        return njit(nogil=True, error_model="numpy")(function)
