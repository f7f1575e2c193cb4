"""Every kernel under Triton's interpreter as it is, and as `fast_interpreter` makes it: the same to the last bit.

`test_kernels.py` runs this file in a process of its own.
"""

import torch

from specbound.runtime.verifiers import entries
from tests.support.fast_interpreter import speed_up
from tests.support.interpreted_kernels import SINGLE, buffers, random_case, tensors_of


def everything_written(name: str, dtype: torch.dtype) -> dict[str, bytes]:
    """The bytes of every buffer after a call of two blocks per row."""
    paths = 1 if name in SINGLE else 2
    case = random_case(2, paths, 1, 30, dtype, seed=3)
    out = buffers(2, paths, 1, 30, dtype, block=16, span=1)
    case.kernel(name, out=out)
    return {part: tensor.numpy().tobytes() for part, tensor in tensors_of(out).items()}


def test_the_fast_interpreter_changes_no_bit() -> None:
    names = [entry.name for entry in entries() if entry.kernel]
    dtypes = [torch.bfloat16, torch.float64, torch.float32, torch.float16, torch.float32, torch.float32]
    plain = [everything_written(*each) for each in zip(names, dtypes, strict=True)]
    speed_up()
    assert [everything_written(*each) for each in zip(names, dtypes, strict=True)] == plain
    assert len(plain) == 6
