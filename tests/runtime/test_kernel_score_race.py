"""The score race's kernel under Triton's interpreter, in a process of its own."""

from importlib.util import find_spec

import pytest

from tests.runtime.test_kernels import interpreted


@pytest.mark.kernels
@pytest.mark.skipif(find_spec("triton") is None, reason="the optional package triton is not installed")
def test_the_score_race_decides_as_its_tensor_version_does_under_the_interpreter() -> None:
    interpreted("interpreted_score_race.py")
