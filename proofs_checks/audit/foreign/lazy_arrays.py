"""Arrays and tensors of `Lazy` random numbers, as numpy and torch code expects them.

`LazyArray` is a numpy array of `Lazy` objects. `LazyTensor` is a torch tensor whose entries are the numbers of
cells in a table of `Lazy` objects: indexing, reshaping and copying move the cell numbers with torch's own code,
while arithmetic and comparisons are done on the `Lazy` objects themselves. Whatever is neither raises `NotExact`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .lazy import Lazy, NotExact, Questions, race

NO_NUMBER = "an operation on random numbers that is not a comparison"


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
}


def _elementwise(name: str, values: Sequence[Any]) -> Any:
    """The named operation on (arrays of) numbers and `Lazy` objects; comparisons come back as bool."""
    comparison = name in COMPARISONS
    function = COMPARISONS[name] if comparison else ARITHMETIC[name]
    result = np.frompyfunc(function, len(values), 1)(*values)
    return np.asarray(result, dtype=bool) if comparison else result


class LazyArray(np.ndarray):
    """A numpy array of `Lazy` objects (and plain numbers, where a random one was multiplied by 0)."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        values = [np.asarray(value).view(np.ndarray) for value in inputs]
        name = ufunc.__name__
        if method != "__call__" or name not in COMPARISONS | ARITHMETIC or set(options) - {"out"}:
            raise _refuse(f"numpy's {name} of random numbers was taken")
        result = _elementwise(name, values)
        if "out" in options:
            out = options["out"][0]
            if out.dtype != object and name not in COMPARISONS:
                raise _refuse("random numbers were written into an array of floats")
            out[...] = result
            return out
        if name in COMPARISONS:
            return result if result.ndim else bool(result)
        return result.view(LazyArray) if isinstance(result, np.ndarray) else result

    def argmax(self, axis: Any = None, *_: Any, **__: Any) -> Any:
        """The winner of a race of exponentials (see `lazy.race`)."""
        return _winners(self, axis, largest=True)

    def argmin(self, axis: Any = None, *_: Any, **__: Any) -> Any:
        """The winner of a race of exponentials (see `lazy.race`)."""
        return _winners(self, axis, largest=False)


def lazy_array(make: Callable[[], Lazy], shape: Any) -> Any:
    """An array of fresh random numbers; a single one for shape None."""
    if shape is None:
        return make()
    array = np.empty(shape, dtype=object)
    for place in np.ndindex(array.shape):
        array[place] = make()
    return array.view(LazyArray)


def _winners(array: np.ndarray, axis: Any, largest: bool) -> Any:
    cells = array.view(np.ndarray)
    if axis is None:
        return race(cells.ravel().tolist(), largest)
    rows = np.moveaxis(cells, axis, -1)
    won = np.empty(rows.shape[:-1], dtype=np.int64)
    for place in np.ndindex(won.shape):
        won[place] = race(rows[place].tolist(), largest)
    return won if won.ndim else int(won)


# ---------------------------------------------------------------------- torch

RUNNING: list[Questions] = []
CELLS: list[Any] = []
MOVES = frozenset(
    [
        "getitem",
        "view",
        "reshape",
        "squeeze",
        "unsqueeze",
        "flatten",
        "expand",
        "expand_as",
        "repeat",
        "permute",
        "transpose",
        "swapaxes",
        "movedim",
        "t",
        "contiguous",
        "clone",
        "detach",
        "to",
        "cpu",
        "cuda",
        "float",
        "double",
        "half",
        "bfloat16",
        "type",
        "type_as",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "hstack",
        "vstack",
        "unbind",
        "split",
        "chunk",
        "gather",
        "index_select",
        "take_along_dim",
        "narrow",
        "select",
        "view_as",
        "reshape_as",
        "flip",
        "roll",
    ]
)
FACTS = frozenset(
    [
        "__get__",
        "size",
        "dim",
        "numel",
        "nelement",
        "__len__",
        "is_floating_point",
        "element_size",
        "ndimension",
        "stride",
        "is_contiguous",
        "requires_grad_",
        "get_device",
        "is_complex",
        "_is_view",
        "data_ptr",
    ]
)


def start_run(questions: Questions) -> None:
    """Let the tensors made from now on belong to this run."""
    RUNNING[:] = [questions]
    CELLS.clear()


def _refuse(reason: str) -> NotExact:
    return RUNNING[0].refuse(reason)


class LazyTensor(torch.Tensor):
    """A tensor whose entries are cell numbers; see the module's opening."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        raw = getattr(func, "__name__", str(func))
        if raw in FACTS:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        in_place = (raw.endswith("_") and not raw.endswith("__")) or raw.startswith("__i")
        name = raw.strip("_")
        if raw == "__float__":
            return float(_single(args[0]))
        if name in MOVES and not in_place:
            return _moved(super().__torch_function__, func, types, args, kwargs)
        if name in COMPARISONS | ARITHMETIC:
            result = _tensor_elementwise(name, [*args, *kwargs.values()])
            return _overwrite(args[0], result) if in_place else result
        if name in SPECIAL:
            return SPECIAL[name](*args, **kwargs)
        raise _refuse(f"torch's {name} of random numbers was taken")


def lazy_tensor(make: Callable[[], Any], like: torch.Tensor) -> torch.Tensor:
    """A tensor of fresh random numbers with the shape and device of `like`."""
    return _from_cells(lazy_array(make, tuple(like.shape)).view(np.ndarray), like)


def fill_in_place(tensor: torch.Tensor, make: Callable[[], Any]) -> torch.Tensor:
    """Turn a plain tensor into one of random numbers, as `tensor.uniform_()` does."""
    return _overwrite(tensor, lazy_tensor(make, tensor))


def tensor_of(make: Any, values: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`torch.tensor(values)` and its like, where some of the values may be random numbers."""
    if isinstance(values, torch.Tensor) or not _holds_lazy(values):
        return make(values, *args, **kwargs)
    cells = np.empty(np.shape(np.array(values, dtype=object)), dtype=object)
    cells[...] = np.array(values, dtype=object)
    return _from_cells(cells, torch.empty(0, device=kwargs.get("device")))


def _holds_lazy(values: Any) -> bool:
    if isinstance(values, list | tuple):
        return any(_holds_lazy(value) for value in values)
    return isinstance(values, Lazy | LazyArray)


def _from_cells(cells: Any, like: torch.Tensor) -> torch.Tensor:
    array = np.asarray(cells, dtype=object)
    first = len(CELLS)
    CELLS.extend(array.ravel().tolist())
    numbers = torch.arange(first, len(CELLS), dtype=torch.float64, device=like.device)
    return numbers.reshape(array.shape).as_subclass(LazyTensor)


def _cells(value: Any) -> Any:
    """Numbers, tensors and lazy tensors as (arrays of) numbers and `Lazy` objects."""
    if isinstance(value, LazyTensor):
        with torch._C.DisableTorchFunctionSubclass():
            numbers = np.asarray(value.detach().cpu().double().tolist(), dtype=np.int64)
        cells = np.empty(numbers.shape, dtype=object)
        for place in np.ndindex(numbers.shape):
            cells[place] = CELLS[numbers[place]]
        return cells
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().double().numpy()
    return value


def _tensor_elementwise(name: str, values: Sequence[Any]) -> torch.Tensor:
    like = next(value for value in values if isinstance(value, LazyTensor))
    result = _elementwise(name, [_cells(value) for value in values])
    with torch._C.DisableTorchFunctionSubclass():
        if name in COMPARISONS:
            return torch.as_tensor(np.asarray(result), device=like.device)
        return _from_cells(result, like)


def _overwrite(tensor: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        if not isinstance(tensor, LazyTensor) and (tensor._is_view() or not whole):
            raise _refuse("random numbers were written into a part of a tensor in place")
        tensor.copy_(result)
        if not torch.equal(tensor.double(), torch.Tensor.double(result)):
            raise _refuse(f"too many random numbers were written into a tensor of {tensor.dtype}")
    tensor.__class__ = LazyTensor
    return tensor


def _moved(torch_function: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    joined = args[0] if args and isinstance(args[0], list | tuple) else args[:1]
    if not all(isinstance(part, LazyTensor) for part in joined):
        raise _refuse("random numbers were mixed with others in one tensor, or used as an index")
    result = torch_function(func, types, args, kwargs)
    if isinstance(result, LazyTensor):
        with torch._C.DisableTorchFunctionSubclass():
            if result.numel() and float(result.max()) >= len(CELLS):
                raise _refuse(f"too many random numbers for a tensor of {result.dtype}")
    return result


def _tensor_winners(tensor: Any, dim: Any = None, keepdim: bool = False, largest: bool = True) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        device = tensor.device
        won = torch.as_tensor(_winners(_cells(tensor), dim, largest), device=device)
        return won.unsqueeze(dim) if keepdim and dim is not None else won


def _clamp(tensor: Any, min: Any = None, max: Any = None) -> Any:
    raised = tensor if min is None else torch.maximum(tensor, torch.as_tensor(min))
    return raised if max is None else torch.minimum(raised, torch.as_tensor(max))


def _search_sorted(edges: Any, values: Any, **_: Any) -> torch.Tensor:
    """The number of edges below each random value; ties have probability 0."""
    if isinstance(edges, LazyTensor) or not isinstance(values, LazyTensor):
        raise _refuse("searchsorted among random numbers")
    cells, bounds = _cells(values), np.asarray(_cells(edges))
    places = np.empty(cells.shape, dtype=np.int64)
    for place in np.ndindex(cells.shape):
        row = bounds if bounds.ndim == 1 else bounds[place[:-1]]
        places[place] = next((i for i, bound in enumerate(row) if cells[place] < bound), len(row))
    return torch.as_tensor(places)


def _single(tensor: Any) -> Any:
    cells = _cells(tensor)
    if cells.size != 1:
        raise RuntimeError(f"a Tensor with {cells.size} elements cannot be converted to Scalar")
    return cells.ravel()[0]


SPECIAL: dict[str, Callable[..., Any]] = {
    "argmax": lambda tensor, dim=None, keepdim=False: _tensor_winners(tensor, dim, keepdim, largest=True),
    "argmin": lambda tensor, dim=None, keepdim=False: _tensor_winners(tensor, dim, keepdim, largest=False),
    "tolist": lambda tensor: _cells(tensor).tolist(),
    "item": _single,
    "numpy": lambda tensor, **_: _cells(tensor).view(LazyArray),
    "iter": lambda tensor: iter([tensor[i] for i in range(len(tensor))]),
    "repr": lambda tensor, **_: "<random numbers>",
    "clamp": _clamp,
    "searchsorted": _search_sorted,
    "bucketize": lambda values, edges, **_: _search_sorted(edges, values),
}
