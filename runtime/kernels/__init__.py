"""Fused verification in Triton: from logits, temperatures and uniforms to a verdict, without probabilities.

`verify` takes the place of a registered verifier's `verify(batch, draws)` and uses a kernel where there is one; the
tensor version is the reference, and the fallback. The functions `verify_*_logits` start from logits instead, do not
wait for the device, and allocate nothing when given buffers (`workspace`).

State: block, token and two-level; compared with the tensor versions under Triton's interpreter, and compiled for
compute capability 9.0. Not yet run or timed on a GPU (`benchmarks/kernels.py` does that).

Wants the optional package triton. SPECBOUND_KERNELS=0 in the environment turns the kernels off.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from specbound.runtime.draws import Draws
from specbound.runtime.verdict import Batch, Verdict
from specbound.runtime.verifiers.registry import Verifier

if find_spec("triton") is not None:
    from specbound.runtime.kernels.single_path import verify_block_logits, verify_token_logits
    from specbound.runtime.kernels.two_level import verify_two_level_logits
    from specbound.runtime.kernels.workspace import Workspace, workspace

    __all__ = [
        "Workspace",
        "available",
        "verify",
        "verify_block_logits",
        "verify_token_logits",
        "verify_two_level_logits",
        "workspace",
    ]

NAMES = ("block", "token", "two-level")


def available(device: torch.device | str) -> bool:
    """Whether kernels can be used on this device: CUDA, with triton installed and SPECBOUND_KERNELS not 0."""
    return (
        torch.device(device).type == "cuda"
        and find_spec("triton") is not None
        and os.environ.get("SPECBOUND_KERNELS", "1") != "0"
    )


def verify(verifier: Verifier, batch: Batch, draws: Draws) -> Verdict:
    """What `verifier.verify(batch, draws)` does, by a kernel where there is one for it and for the batch's device.

    Only a plain `Draws` is answered by kernels: they take uniforms of its generator, and what else a subclass counts
    or replays needs the questions of the tensor version.
    """
    if verifier.name in NAMES and type(draws) is Draws and available(batch.draft_probs.device):
        return verify_laws(verifier.name, batch, draws.generator)
    return verifier.verify(batch, draws)


def verify_laws(name: str, batch: Batch, generator: torch.Generator | None) -> Verdict:
    """Verify a batch of probabilities with the kernel `name`, with float64 uniforms from `generator`."""
    requests, _, length, _ = batch.shape
    device = batch.draft_probs.device

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)

    ones = torch.ones(requests, device=device)
    target, draft, tokens = (rows.contiguous() for rows in (batch.target_probs, batch.draft_probs, batch.tokens))
    coins, choice = uniform(requests, length), uniform(requests)
    if name == "two-level":
        return verify_two_level_logits(
            target, draft, ones, tokens, None, uniform(requests, length), coins, choice, laws=True
        )
    function = {"block": verify_block_logits, "token": verify_token_logits}[name]
    return function(target[:, 0], draft[:, 0], ones, tokens[:, 0], None, coins, choice, laws=True)
