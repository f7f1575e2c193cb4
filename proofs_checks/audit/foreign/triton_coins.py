"""Random numbers of Triton kernels under Triton's interpreter: `tl.rand(seed, offset)` answered with concrete coins.

A coin belongs to its (seed, offset): where a kernel asks for the same one twice it gets the same number, as on a GPU,
so that streams that overlap are found. Kernels make seeds of further streams with `tl.randint`: it gives the same
integer for the same (seed, offset), and a run that makes something else of it than a seed is refused, as the other
samplers are. A block of numbers is a row (see `coins`).
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .generators import Replace
from .lazy import Questions

NUMBERS = {"fp32": np.float32, "int32": np.int32}
OTHERS = ("rand4x", "randint4x", "randn", "randn4x", "philox")


def interpreted() -> Any:
    """The module `triton.language` if it is loaded and its kernels are interpreted, else None."""
    language = sys.modules.get("triton.language")
    return language if language and type(language.rand).__name__ == "InterpretedFunction" else None


def repair_interpreter() -> None:
    """Let Triton's interpreter take scalars as loop bounds, and prepare its language once instead of at every call.

    From NumPy 2.4 on an array of one entry is no integer.
    """
    if interpreted() is None:
        return
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor
    if getattr(patch, "repaired", False):
        return

    def repaired(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    repaired.repaired = True  # type: ignore[attr-defined]
    interpreter._patch_lang_tensor = repaired
    interpreter._patch_lang(interpreted().max.fn)
    interpreter.InterpretedFunction.__call__ = lambda function, *args, **named: function.rewrite()(*args, **named)


def intercept_triton(questions: Callable[[], Questions], replace: Replace) -> None:
    """Replace the samplers of `triton.language`, if it is loaded and its kernels are interpreted."""
    language = interpreted()
    if language is None:
        return

    def answered(seed: Any, offset: Any, answers: Callable[[list[tuple[int, int]]], Any], kind: Any) -> Any:
        seeds, offsets = np.broadcast_arrays(_numbers(seed), _numbers(offset))
        values = answers([(int(s), int(o)) for s, o in zip(seeds.ravel(), offsets.ravel(), strict=True)])
        shape = next((list(part.shape) for part in (offset, seed) if getattr(part, "shape", ())), [])
        return _tensor(language, np.asarray(values, NUMBERS[kind.name]).reshape(offsets.shape), kind, shape)

    def rand(seed: Any, offset: Any, *_: Any, **__: Any) -> Any:
        questions().derived -= {int(value) for value in _numbers(seed).ravel()}
        return answered(seed, offset, questions().counter_based, language.float32)

    def randint(seed: Any, offset: Any, *_: Any, **__: Any) -> Any:
        def mixed(keys: list[tuple[int, int]]) -> list[int]:
            values = [zlib.crc32(repr(key).encode()) % 2**31 for key in keys]
            questions().derived |= set(values)
            return values

        return answered(seed, offset, mixed, language.int32)

    replace(language, "rand", rand)
    replace(language, "randint", randint)
    for name in OTHERS:
        replace(language, name, _refused(questions, name))


def _refused(questions: Callable[[], Questions], name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise questions().refuse(f"Triton's {name} was drawn")

    return refuse


def _numbers(value: Any) -> np.ndarray:
    """The numbers of a Triton tensor, a constant or a Python number."""
    value = getattr(value, "value", value)
    return np.asarray(value.handle.data if hasattr(value, "handle") else value)


def _tensor(language: Any, values: np.ndarray, kind: Any, shape: list[Any]) -> Any:
    from triton.runtime.interpreter import TensorHandle

    return language.tensor(
        TensorHandle(np.atleast_1d(values), kind), language.block_type(kind, shape) if shape else kind
    )
