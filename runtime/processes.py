"""Several processes that hold one model together: all of them run every pass, and process 0 decides.

A model cut over R processes (tensor parallelism) must be fed the same tokens in all of them. Every process therefore
runs the whole loop; but drafted tokens, draft lengths and verdicts are those of process 0. So the law of the output is
that of one process, also where rounding or the generators' states differ between processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from .models import is_cut

Agreed = Callable[[Tensor], Tensor]


def agreement(*models: PreTrainedModel) -> Agreed:
    """How the processes agree on a decision: they take that of process 0 if one of the models is cut over them.

    Raises:
        ValueError: a model is cut over some of the processes only.
    """
    cut = [model for model in models if is_cut(model)]
    for model in cut:
        if model.tp_size != dist.get_world_size():
            raise ValueError(
                f"a model is cut over {model.tp_size} of {dist.get_world_size()} processes; decoding wants it cut over "
                "all of them (start one torchrun per copy of the model)"
            )
    return of_process_0 if cut else own


def own(decision: Tensor) -> Tensor:
    """The decision of this process."""
    return decision


def of_process_0(decision: Tensor) -> Tensor:
    """The decision of process 0, a tensor of the same shape and dtype in all of them; the cost of one broadcast."""
    kind = torch.uint8 if decision.dtype == torch.bool else decision.dtype  # gloo sends no bool
    sent = decision.to(kind, copy=True, memory_format=torch.contiguous_format)
    dist.broadcast(sent, src=0)
    return sent.to(decision.dtype)


def check_same_request(request: str, device: torch.device) -> None:
    """Raise ValueError in every process unless all of them were given the same request, which would else hang."""
    own = torch.tensor([crc32(request.encode())], device=device)
    found = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(found, own)
    other = [process for process, value in enumerate(found) if int(value) != int(found[0])]
    if other:
        raise ValueError(
            f"processes {other} decode another request than process 0 (prompts, lengths, verifier or paths); a model "
            "cut over processes wants the same call in all of them"
        )


def process_count() -> int:
    """Processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process is process 0, the one that prints."""
    return int(os.environ.get("RANK", 0)) == 0
