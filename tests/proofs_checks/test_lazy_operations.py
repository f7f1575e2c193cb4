# ruff: noqa: NPY002 - numpy's old generator is part of what is intercepted
"""Random numbers that are never drawn against the libraries themselves, operation by operation, dtype by dtype.

An operation is applied to intercepted uniforms and its result compared with a threshold: the exact probability of the
comparison must be the share of a fine grid of concrete uniforms on which the library's own operation meets it. Where
an operation is not modelled it must be refused; a number that is neither refused nor right fails.
"""

import math
import operator
import random

import numpy as np
import pytest
import torch

from specbound.proofs_checks.audit.foreign.interception import Interception
from specbound.proofs_checks.audit.foreign.lazy import NotExact

GRID = 4096
MIDPOINTS = (np.arange(GRID) + 0.5) / GRID
CUTS = 8  # a comparison changes on the grid at most this often, each time by at most one of its points
CONSTANTS = (0.3, -0.7, 2)

UNARY = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs of u - .4": lambda u: abs(u - 0.4),
    "1 / u": lambda u: 1 / u,
    "u ** 2": lambda u: u**2,
    "u * u": lambda u: u * u,
    "2 ** u": lambda u: 2**u,
    "float": float,
    "int of 3u": lambda u: int(3 * u),
    "round": round,
    "round 1": lambda u: round(u, 1),
    "floor of 4u": lambda u: math.floor(4 * u),
    "ceil of 4u": lambda u: math.ceil(4 * u),
    "trunc of 4u": lambda u: math.trunc(4 * u),
    "4u // 1": lambda u: (4 * u) // 1,
    "u % .3": lambda u: u % 0.3,
    "divmod": lambda u: divmod(u, 0.3)[1],
    "max": lambda u: max(u, 0.4),
    "min": lambda u: min(u, 0.4),
}
SCALARS = {
    **UNARY,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "log1p": math.log1p,
    "exp": math.exp,
    "expm1": math.expm1,
    "sqrt": math.sqrt,
    "sin": math.sin,
    "tanh": math.tanh,
    "isnan": math.isnan,
}
BINARY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
NUMPY = {
    "log": np.log,
    "exp": np.exp,
    "sqrt": np.sqrt,
    "square": np.square,
    "floor": lambda u: np.floor(4 * u),
    "rint": lambda u: np.rint(4 * u),
    "clip": lambda u: np.clip(u, 0.2, 0.6),
    "maximum": lambda u: np.maximum(u, 0.4),
    "where": lambda u: np.where(u < 0.4, 1.0, u),
    "astype int": lambda u: (4 * u).astype(int),
    "astype float32": lambda u: u.astype(np.float32),
    "astype float16": lambda u: u.astype(np.float16),
    "astype bool": lambda u: (u - 0.4).astype(bool),
    "cumsum": np.cumsum,
    "sum": lambda u: np.array([u.sum()]),
    "max": lambda u: np.array([u.max()]),
    "reversed": lambda u: u[::-1],
    "reshape": lambda u: u.reshape(1, -1)[0],
    "searchsorted": lambda u: np.searchsorted([0.2, 0.5, 0.9], u),
    "digitize": lambda u: np.digitize(u, [0.2, 0.5, 0.9]),
    "negative log": lambda u: -np.log(1 - u),
}
TORCH = {
    "log": torch.log,
    "exp": torch.exp,
    "sqrt": torch.sqrt,
    "neg": torch.neg,
    "floor": lambda u: (4 * u).floor(),
    "round": lambda u: (4 * u).round(),
    "frac": lambda u: (4 * u).frac(),
    "long": lambda u: (4 * u).long(),
    "int": lambda u: (4 * u).int(),
    "to int64": lambda u: (4 * u).to(torch.int64),
    "half": lambda u: u.half(),
    "bfloat16": lambda u: u.bfloat16(),
    "float": lambda u: u.float(),
    "double": lambda u: u.double(),
    "bool": lambda u: (u - 0.4).bool(),
    "clamp": lambda u: u.clamp(0.2, 0.6),
    "clamp_min": lambda u: u.clamp_min(0.4),
    "where": lambda u: torch.where(u < 0.4, torch.ones_like(u), u),
    "maximum": lambda u: torch.maximum(u, torch.full_like(u, 0.4)),
    "cumsum": lambda u: u.cumsum(0),
    "cumprod": lambda u: u.cumprod(0),
    "sum": lambda u: u.sum()[None],
    "amax": lambda u: u.amax()[None],
    "flip": lambda u: u.flip(0),
    "item": lambda u: [u[0].item()],
    "tolist": lambda u: u.tolist(),
    "numpy": lambda u: u.numpy(),
    "clone": lambda u: u.clone(),
    "sub_": lambda u: u.sub_(0.3),
    "mul out": lambda u: torch.mul(u, 2, out=torch.empty_like(u)),
    "searchsorted": lambda u: torch.searchsorted(torch.tensor([0.2, 0.5, 0.9], dtype=u.dtype), u),
    "bucketize": lambda u: torch.bucketize(u, torch.tensor([0.2, 0.5, 0.9], dtype=u.dtype)),
    "negative log": lambda u: -torch.log(1 - u),
    "pow": lambda u: u.pow(2),
    "reciprocal": torch.reciprocal,
    "sigmoid": torch.sigmoid,
}
MODELLED = {
    "scalar": {"neg", "pos", "abs of u - .4", "1 / u", "int of 3u", "floor of 4u", "trunc of 4u", "max", "min"},
    "numpy": {"neg", "1 / u", "min", "log", "clip", "maximum", "where", "astype int", "astype float32", "reversed"}
    | {"reshape", "searchsorted", "digitize", "negative log"},
    "torch": {"log", "neg", "long", "int", "to int64", "float", "double", "bool", "clamp", "clamp_min", "where"}
    | {"maximum", "flip", "item", "tolist", "numpy", "clone", "sub_", "mul out", "searchsorted", "bucketize"}
    | {"negative log", "reciprocal"},
}
THRESHOLDS = (-1.0, -0.31, 0.0, 0.13, 0.45, 0.77, 1.0, 1.9, 2.6)


def exact(event) -> float | None:
    """The probability of an event, None if it is refused."""
    with Interception(event) as interception:
        try:
            found = interception.outcomes(event)
        except NotExact:
            return None
    return sum(probability for result, probability in found if result)


def held_against(name, drawn, concrete) -> int:
    """Compare every threshold's exact probability with its share of the grid; how many were not refused."""
    decided = 0
    for threshold in THRESHOLDS:
        found = exact(lambda t=threshold: bool(drawn() < t))
        if found is not None:
            share = sum(bool(value < threshold) for value in concrete) / len(concrete)
            assert abs(found - share) <= CUTS / len(concrete), (name, threshold, found, share)
            decided += 1
    return decided


@pytest.mark.parametrize("name", SCALARS)
def test_functions_of_one_number(name):
    operation = SCALARS[name]
    decided = held_against(name, lambda: operation(random.random()), [operation(float(u)) for u in MIDPOINTS])
    assert decided == len(THRESHOLDS) * (name in MODELLED["scalar"])


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("constant", CONSTANTS)
def test_arithmetic_from_both_sides(name, constant):
    operation = BINARY[name]
    for turned in (lambda u: operation(u, constant), lambda u: operation(constant, u)):
        concrete = [turned(float(u)) for u in MIDPOINTS]
        assert held_against(name, lambda f=turned: f(random.random()), concrete) == len(THRESHOLDS)


@pytest.mark.parametrize("name", UNARY | NUMPY)
def test_arrays_of_numpy(name):
    operation = (UNARY | NUMPY)[name]
    concrete = []
    for u in MIDPOINTS:
        with np.errstate(all="ignore"):
            try:
                concrete.append(np.asarray(operation(np.array([u]))).ravel()[0])
            except TypeError:
                return
    decided = held_against(name, lambda: np.asarray(operation(np.random.random(1)), dtype=object).ravel()[0], concrete)
    assert decided == len(THRESHOLDS) * (name in MODELLED["numpy"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", TORCH)
def test_tensors_of_torch(name, dtype):
    operation = TORCH[name]
    concrete = [operation(torch.tensor([u], dtype=dtype))[0] for u in MIDPOINTS]
    decided = held_against(name, lambda: operation(torch.rand(1, dtype=dtype))[0], concrete)
    assert decided == len(THRESHOLDS) * (name in MODELLED["torch"])


@pytest.mark.parametrize("dtype, values", [(torch.bfloat16, 2**8), (torch.float16, 2**11)], ids=str)
@pytest.mark.parametrize("name", ["neg", "float", "double", "clone", "flip", "item", "tolist", "to int64"])
def test_half_precision_uniforms_take_their_own_values(name, dtype, values):
    operation = TORCH[name]
    concrete = [operation(torch.tensor([u / values], dtype=dtype))[0] for u in range(values)]
    for threshold in THRESHOLDS:
        found = exact(lambda t=threshold: bool(operation(torch.rand(1, dtype=dtype))[0] < t))
        if found is not None:
            share = sum(bool(value < threshold) for value in concrete) / values
            assert found == pytest.approx(share, abs=1e-12)


def test_the_comparison_sees_a_conversion_that_is_ignored():
    with pytest.raises(AssertionError):
        held_against("ignored", lambda: 1.0 * random.random(), [math.floor(4 * u) for u in MIDPOINTS])
