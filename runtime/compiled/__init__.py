"""Loops over the numbers of rows and knots for the CPU, compiled by numba where it is installed (the extra `fast`).

The tensor versions call them in the middle of a verdict: they take numbers and return numbers, and draw nothing. What
they replace stays where it is, as the reference and for machines without numba. Each is compiled when it is first
called, some ten seconds in all, and kept on disk (in `__pycache__`, or where NUMBA_CACHE_DIR says); where nothing can
be written, every process compiles for itself.

SPECBOUND_COMPILED=0 in the environment turns them off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module

import torch

VARIABLE = "SPECBOUND_COMPILED"
WORTH_A_THREAD = 2**19  # numbers to go over, about a millisecond's work


@cache
def usable(device: str = "cpu") -> bool:
    """Whether compiled loops are to be used for numbers on that kind of device."""
    if device != "cpu" or os.environ.get(VARIABLE) == "0":
        return False
    try:
        import_module("numba")
    except ImportError:  # missing, or made for another numpy
        return False
    return True


def spread(work: Callable[[slice], None], count: int, numbers: int) -> None:
    """Do `work` on the slices of range(count), in as many threads as torch would use and `numbers` are worth."""
    threads = min(torch.get_num_threads(), count, numbers // WORTH_A_THREAD)
    if threads < 2:
        work(slice(0, count))
        return
    ends = [place * count // threads for place in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, map(slice, ends, ends[1:])))
