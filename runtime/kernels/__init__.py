"""Fused verification in Triton: from logits, temperatures and uniforms to a verdict, without probabilities.

`verify` takes the place of a registered verifier's `verify(batch, draws)` and uses a kernel where there is one; the
tensor version is the reference, and the fallback. The functions `verify_*_logits` start from logits instead, do not
wait for the device, and allocate nothing when given buffers (`workspace`).

State: block and token in four launches, two-level and gbv-bucketed in five, score-race and key-race in six, however
long the drafts; compared with the tensor versions under Triton's interpreter, and compiled for compute capability 9.0.
Not yet run or timed on a GPU (`benchmarks/kernels.py` does that). Score-race, two-level and gbv-bucketed select on
`histograms`.

Wants the optional package triton, and on a GPU what that wants to build its launcher: a C compiler and Python's
headers; without them the tensor version answers. SPECBOUND_KERNELS in the environment: 0 turns the kernels off, 1 (or
nothing) uses them on CUDA devices, and interpret uses them on every device by Triton's interpreter, which is slow, is
for tests, and wants TRITON_INTERPRET=1 too.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from .. import registry
from ..draws import Draws
from ..registry import Verifier
from ..verdict import Batch, Verdict

if TYPE_CHECKING:
    from .buffers import Workspace, workspace
    from .gbv_bucketed import verify_gbv_bucketed_logits
    from .key_race import verify_key_race_logits
    from .score_race import verify_score_race_logits
    from .single_path import verify_block_logits, verify_token_logits
    from .two_level import verify_two_level_logits

__all__ = [
    "Workspace",
    "decide",
    "implementation",
    "verify",
    "verify_block_logits",
    "verify_gbv_bucketed_logits",
    "verify_key_race_logits",
    "verify_laws",
    "verify_score_race_logits",
    "verify_token_logits",
    "verify_two_level_logits",
    "workspace",
]
HOMES = {
    "Workspace": "buffers",
    "verify_block_logits": "single_path",
    "verify_gbv_bucketed_logits": "gbv_bucketed",
    "verify_key_race_logits": "key_race",
    "verify_score_race_logits": "score_race",
    "verify_token_logits": "single_path",
    "verify_two_level_logits": "two_level",
    "workspace": "buffers",
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
VARIABLE = "SPECBOUND_KERNELS"

Implementation = Literal["kernels", "tensor"]


def __getattr__(name: str) -> Any:
    """What needs triton is imported when it is first asked for."""
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def decide(
    verifier: Verifier, device: str, dtypes: Iterable[torch.dtype], environment: Mapping[str, str], triton: bool
) -> Implementation:
    """Which implementation answers: the kernels if everything speaks for them, else the tensor version.

    Args:
        verifier: has a kernel if it declares one and its algorithm is the registered one of that name.
        device: its type, such as "cuda"; dtypes: of the probabilities; triton: whether it can launch.

    Raises:
        ValueError: SPECBOUND_KERNELS is none of 0, 1, interpret; or interpret without TRITON_INTERPRET=1.
    """
    wish = environment.get(VARIABLE, "1")
    if wish not in ("0", "1", "interpret"):
        raise ValueError(f"{VARIABLE} is {wish!r}; want 0 (off), 1 (on CUDA devices) or interpret")
    if wish == "interpret" and environment.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"{VARIABLE} is 'interpret' without TRITON_INTERPRET=1; set both before Python starts")
    wanted = wish == "interpret" or (wish == "1" and device == "cuda")
    own = verifier.kernel is not None and verifier.verify is registry.get(verifier.name).verify
    return "kernels" if wanted and own and triton and all(dtype in DTYPES for dtype in dtypes) else "tensor"


@cache
def can_launch() -> bool:
    """Whether triton is there, and what it builds its launcher with: a C compiler and Python's headers."""
    if find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1":
        return find_spec("triton") is not None
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


def implementation(verifier: Verifier, batch: Batch, draws: Draws) -> Implementation:
    """What `verify` uses for this batch.

    Only a plain `Draws` is answered by kernels: they take uniforms of its generator, and what a subclass counts or
    replays needs the questions of the tensor version.
    """
    dtypes = (batch.draft_probs.dtype, batch.target_probs.dtype)
    decided = decide(verifier, batch.draft_probs.device.type, dtypes, os.environ, can_launch())
    return decided if type(draws) is Draws else "tensor"


def verify(verifier: Verifier, batch: Batch, draws: Draws, decided: Implementation | None = None) -> Verdict:
    """What `verifier.verify(batch, draws)` does, by a kernel where there is one for it and for the batch's device.

    Args:
        decided: what `implementation` says, if it was asked.
    """
    if (decided or implementation(verifier, batch, draws)) == "kernels":
        return verify_laws(verifier.name, batch, draws.generator)
    return verifier.verify(batch, draws)


def verify_laws(name: str, batch: Batch, generator: torch.Generator | None) -> Verdict:
    """Verify a batch of probabilities with the kernel of the verifier `name`.

    The float64 uniforms are drawn from `generator` in the order in which the tensor version asks for them: with equal
    generators both decide alike, except where a uniform lies within rounding of a threshold, and where two-level
    sees at most 256 tokens, which its tensor version sees one by one.

    Raises:
        ValueError: that verifier has no kernel.
    """
    if (kernel := registry.get(name).kernel) is None:
        raise ValueError(f"verifier {name!r} has no kernel; use its tensor version, `verify`")
    module, _, function = kernel.partition(":")
    verdict: Verdict = getattr(import_module(f"{__name__}.{module}"), function)(batch, generator)
    return verdict
