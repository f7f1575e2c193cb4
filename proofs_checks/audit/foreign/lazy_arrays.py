"""Arrays of `Lazy` random numbers, as numpy code expects them, and operations entry by entry.

`LazyArray` is a numpy array of `Lazy` objects. Indexing and reshaping are NumPy's own; arithmetic and comparisons are
done on the `Lazy` objects, and other functions by what they ask of these objects. Whatever else raises `NotExact`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .coins import ConcreteQuestions
from .lazy import Lazy, NotExact, Questions, race

RUNNING: list[Questions] = []


def _divide(a: Any, b: Any) -> Any:
    if not isinstance(b, Lazy) and b == 0:
        positive = a > 0
        return math.nan if not isinstance(a, Lazy) and a == 0 else math.inf if positive else -math.inf
    return a / b


def _log(a: Any) -> Any:
    return a.log() if isinstance(a, Lazy) else (-math.inf if a == 0 else math.nan if a < 0 else math.log(a))


def _exp(a: Any) -> Any:
    return a.exp() if isinstance(a, Lazy) else math.exp(a)


def _smaller(a: Any, b: Any) -> Any:
    return a if a < b else b


def _larger(a: Any, b: Any) -> Any:
    return b if a < b else a


def _swapped(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(b, a)


COMPARISONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("lt", "less"), operator.lt),
    **dict.fromkeys(("le", "less_equal"), operator.le),
    **dict.fromkeys(("gt", "greater"), operator.gt),
    **dict.fromkeys(("ge", "greater_equal"), operator.ge),
    **dict.fromkeys(("eq", "equal"), operator.eq),
    **dict.fromkeys(("ne", "not_equal"), operator.ne),
    "isnan": lambda a: not isinstance(a, Lazy) and math.isnan(a),
    "isinf": lambda a: not isinstance(a, Lazy) and math.isinf(a),
    "isfinite": lambda a: isinstance(a, Lazy) or math.isfinite(a),
}
ARITHMETIC: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("add", "radd", "iadd"), operator.add),
    **dict.fromkeys(("sub", "subtract", "isub"), operator.sub),
    "rsub": _swapped(operator.sub),
    **dict.fromkeys(("mul", "multiply", "rmul", "imul"), operator.mul),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv", "itruediv"), _divide),
    **dict.fromkeys(("rdiv", "rtruediv"), _swapped(_divide)),
    **dict.fromkeys(("neg", "negative"), operator.neg),
    "reciprocal": lambda a: _divide(1.0, a),
    "log": _log,
    "exp": _exp,
    "minimum": _smaller,
    "maximum": _larger,
    **dict.fromkeys(("clamp_min", "clip_min"), _larger),
    **dict.fromkeys(("clamp_max", "clip_max"), _smaller),
    "clip": lambda a, low, high: _smaller(_larger(a, low), high),
}


def elementwise(name: str, values: Sequence[Any]) -> Any:
    """The named operation on (arrays of) numbers and `Lazy` objects; comparisons come back as bool."""
    comparison = name in COMPARISONS
    function = COMPARISONS[name] if comparison else ARITHMETIC[name]
    result = np.frompyfunc(function, len(values), 1)(*values)
    return np.asarray(result, dtype=bool) if comparison else result


def refuse(reason: str) -> NotExact:
    """The exception to raise, for the present run."""
    return RUNNING[0].refuse(reason)


class LazyArray(np.ndarray):
    """A numpy array of `Lazy` objects (and plain numbers, where a random one was multiplied by 0)."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        values = [np.asarray(value).view(np.ndarray) for value in inputs]
        name = ufunc.__name__
        if method != "__call__" or name not in COMPARISONS | ARITHMETIC or set(options) - {"out"}:
            raise refuse(f"numpy's {name} of random numbers was taken")
        result = elementwise(name, values)
        if "out" in options:
            out = options["out"][0]
            if out.dtype != object and name not in COMPARISONS:
                raise refuse("random numbers were written into an array of floats")
            out[...] = result
            return out
        if name in COMPARISONS:
            return result if result.ndim else bool(result)
        return result.view(LazyArray) if isinstance(result, np.ndarray) else result

    def astype(self, dtype: Any, *_: Any, **__: Any) -> Any:
        """To integers by asking into which cell each number falls; float32 and float64 leave it as it is."""
        kind = np.dtype(dtype)
        if kind in (np.dtype(np.float32), np.dtype(np.float64), np.dtype(object)):
            return self.copy()
        if not np.issubdtype(kind, np.integer):
            raise refuse(f"random numbers were converted to {kind}")
        return np.array([int(cell) for cell in self.ravel().tolist()], dtype=kind).reshape(self.shape)

    def tobytes(self, *_: Any, **__: Any) -> Any:
        """Refused: the values are never drawn."""
        raise refuse("the bytes of random numbers were read")

    def argmax(self, axis: Any = None, *_: Any, **__: Any) -> Any:
        """The winner of a race of exponentials (see `lazy.race`)."""
        return winners(self, axis, largest=True)

    def argmin(self, axis: Any = None, *_: Any, **__: Any) -> Any:
        """The winner of a race of exponentials (see `lazy.race`)."""
        return winners(self, axis, largest=False)


def numbers(questions: Questions, basis: str, shape: Any, steps: int | None = None) -> Any:
    """Fresh uniforms (basis "u") or standard exponentials ("e") of a shape; a single one for shape None."""
    if shape is not None:
        shape = (int(shape),) if np.ndim(shape) == 0 else tuple(int(n) for n in shape)
    if isinstance(questions, ConcreteQuestions):
        drawn = questions.numbers(basis, shape or (), steps)
        return float(drawn) if shape is None else drawn
    make = questions.exponential if basis == "e" else lambda: questions.uniform(steps)
    if shape is None:
        return make()
    array = np.empty(shape, dtype=object)
    for place in np.ndindex(array.shape):
        array[place] = make()
    return array.view(LazyArray)


def winners(array: np.ndarray, axis: Any, largest: bool) -> Any:
    cells = array.view(np.ndarray)
    if axis is None:
        return race(cells.ravel().tolist(), largest)
    rows = np.moveaxis(cells, axis, -1)
    won = np.empty(rows.shape[:-1], dtype=np.int64)
    for place in np.ndindex(won.shape):
        won[place] = race(rows[place].tolist(), largest)
    return won if won.ndim else int(won)
