"""What operations on tensors read, counted: numbers per operation, and the largest tensor in double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PICKING = ("index_select", "index", "gather")  # read as much as they return, and their indices


class Reads(TorchDispatchMode):
    """While it is on, counts what operations read.

    Attributes:
        numbers: entries of tensors with at least `least` entries that operations read; views read nothing.
        doubles: entries of the largest float64 tensor that an operation returned.
    """

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.numbers, self.doubles = least, 0, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = operation(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        if operation.is_view or operation._schema.name == "aten::detach":
            return found
        read = args, {name: value for name, value in kwargs.items() if name != "out"}
        given = [leaf for leaf in tree_leaves(read) if isinstance(leaf, Tensor)]
        if operation.__name__.split(".")[0] in PICKING:
            given = [*results, *given[1:]]
        self.numbers += sum(tensor.numel() for tensor in given if tensor.numel() >= self.least)
        self.doubles = max([self.doubles, *(each.numel() for each in results if each.dtype == torch.float64)])
        return found
