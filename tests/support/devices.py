"""Devices that exist in name only: tensors that say they are on cpu:1 or cpu:2, and refuse to meet each other.

Every computation is done on the CPU, so values are real; but an operation whose tensors are on different devices
raises, as it would between two GPUs. Allowed, as there: copying, and indexing with a tensor of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

COPIES = ("_to_copy", "copy_", "to.")
INDEXING = ("index.", "index_put")


class Placed(Tensor):
    """A CPU tensor that is said to be elsewhere."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor, device: torch.device) -> Placed:
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, device=device, **layout)

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.values = values

    def tolist(self) -> Any:
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(operation, args, kwargs or {})


def computed(operation: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the values; its result is where its tensors are, or where it was told to put it."""
    leaves = tree_leaves((args, kwargs))
    placed = [leaf for leaf in leaves if isinstance(leaf, Placed)]
    plain = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Placed) and leaf.ndim]
    places, name = {leaf.device for leaf in placed}, operation.__name__
    if not name.startswith(COPIES) and (len(places) > 1 or (places and plain and not name.startswith(INDEXING))):
        raise RuntimeError(f"{name}: tensors on {sorted(map(str, places))}{' and the CPU' if plain else ''}")
    named = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    place = named[0] if named else args[0].device if name.startswith("copy_") else next(iter(places), None)
    args, kwargs = tree_map(on_the_cpu, (args, kwargs))
    found = operation(*args, **kwargs)
    if place is None or place.index is None:
        return found
    for leaf in placed:
        if found is leaf.values and leaf.device == place:
            return leaf
    return tree_map(lambda leaf: Placed(leaf, place) if isinstance(leaf, Tensor) else leaf, found)


def on_the_cpu(leaf: Any) -> Any:
    return torch.device("cpu") if isinstance(leaf, torch.device) else leaf.values if isinstance(leaf, Placed) else leaf


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(operation, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """`torch.tensor` makes its tensor before it looks at the device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return torch.tensor(*args, **kwargs).to(device)
        return function(*args, **kwargs)


@contextmanager
def devices() -> Iterator[None]:
    """Inside, cpu:0, cpu:1, ... are devices of their own."""
    with _Literals(), _Operations():
        yield


def put(model: nn.Module, device: str) -> nn.Module:
    """The model with all its weights and buffers on the device."""
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[name] = nn.Parameter(Placed(weight.data, torch.device(device)), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Placed(buffer, torch.device(device))
    return model
