"""Triton's interpreter at two to three times its speed, and with a check of integer overflow, for the kernels' tests.

The interpreter spends its time on types, not on numbers: it makes a tensor's type, shape and numpy dtype anew for every
operation, replaces the language's functions at every launch and every call of a device function, and computes every
integer operation again in 64 bits for a check that it then leaves out. `speed_up` keeps types, replaces the language's
functions once, and makes that check: an integer below 64 bits that wraps is an error. Numbers come from the same numpy
operations as before.
"""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

EXACT = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def speed_up() -> None:
    """Once per process, before the first launch; the language then stays the interpreter's."""
    _keep_types()
    _skip_equal_types()
    _replace_language_once()
    TritonSemantic.binary_op_sanitize_overflow_impl = _no_integer_wraps


def _keep_types() -> None:
    """One object per type, with what a tensor of that type wants of it."""
    made: dict[Any, Any] = {}
    initialise, numpy_dtype = tl.block_type.__init__, interpreter._get_np_dtype

    def new_block_type(cls: type, element: Any, shape: Any) -> Any:
        key = (id(element), *[getattr(size, "value", size) for size in shape])
        if key not in made:
            made[key] = block = object.__new__(cls)
            initialise(block, element, shape)  # keeps `element`, so that nothing else gets its id
            block.outline = tl.tuple([tl.constexpr(size) for size in block.shape]), tl.constexpr(block.numel)
        return made[key]

    scalar = tl.tuple([]), tl.constexpr(1)

    def initialise_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = type.outline if type.is_block() else scalar

    dtypes: dict[str, np.dtype] = {}

    def dtype_of(type: Any) -> np.dtype:
        name = type.scalar.name
        if name not in dtypes:
            dtypes[name] = numpy_dtype(type)
        return dtypes[name]

    tl.block_type.__new__, tl.block_type.__init__ = new_block_type, lambda self, element, shape: None
    tl.tensor.__init__ = initialise_tensor
    interpreter._get_np_dtype = dtype_of


def _skip_equal_types() -> None:
    """No search for a common type or shape of tensors that have the same."""
    checked, broadcast = TritonSemantic.binary_op_type_checking_impl, TritonSemantic.broadcast_impl_value
    equal = tl.dtype.__eq__

    def check(self: Any, lhs: Any, rhs: Any, *rules: bool, **named: bool) -> Any:
        if len(rules) == 4 or named or type(lhs) is not tl.tensor or lhs.dtype.is_ptr():
            return checked(self, lhs, rhs, *rules, **named)
        if type(rhs) is tl.tensor and lhs.type is rhs.type:
            return lhs, rhs
        if type(rhs) is float and lhs.dtype.is_floating():
            return alike(self, lhs, self.scalar_constant(rhs, lhs.dtype))
        return checked(self, lhs, rhs, *rules)

    def alike(self: Any, lhs: Any, rhs: Any) -> Any:
        one, other = lhs.type, rhs.type
        if one is other or (one.is_block() and other.is_block() and one.shape.values == other.shape.values):
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    TritonSemantic.binary_op_type_checking_impl, TritonSemantic.broadcast_impl_value = check, alike
    tl.dtype.__eq__ = lambda self, other: self is other or equal(self, other)


def _replace_language_once() -> None:
    semantic = interpreter.interpreter_semantic

    def replace(place: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        def function(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return member(*args, **kwargs)

        scope.set_attr(place, name, function)

    interpreter._patch_attr = replace
    interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()
    interpreter.InterpretedFunction.__call__ = lambda function, *args, **kwargs: function.rewrite()(*args, **kwargs)


def _no_integer_wraps(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
    kind = lhs.dtype
    if kind.int_bitwidth < 64:
        exact = EXACT[operation.__name__](*(each.handle.data.astype(np.int64) for each in (lhs, rhs)))
        if (exact > kind.get_int_max_value()).any() or (exact < kind.get_int_min_value()).any():
            raise OverflowError(f"{operation.__name__} overflows {kind}")
