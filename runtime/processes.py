"""Several processes that hold one model together: all of them run every pass, and process 0 decides.

A model cut over R processes (tensor parallelism) must be fed the same tokens in all of them. Every process therefore
runs the whole loop; but what is drawn, and what is decided by comparing laws, is taken from process 0. The law of the
output is then that of one process, also where rounding or the generators' states differ between processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from specbound.runtime.draws import Draws
from specbound.runtime.models import is_cut


class SharedDraws(Draws):
    """The answers of process 0, in every process.

    Every process must ask the same questions about tensors of the same shapes. Answers are small (an integer or a coin
    per row), so each costs the latency of one broadcast.

    Args:
        draws: answers here; its answers count in process 0 only.
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__(draws.generator)
        self.draws = draws

    def agreed(self, decision: Tensor) -> Tensor:
        """The tensor as process 0 has it."""
        kind = torch.uint8 if decision.dtype == torch.bool else decision.dtype  # gloo sends no bool
        sent = decision.to(kind, copy=True, memory_format=torch.contiguous_format)
        dist.broadcast(sent, src=0)
        return sent.to(decision.dtype)

    def accept(self, probability: Tensor) -> Tensor:
        return self.agreed(self.draws.accept(probability))

    def accept_while(self, probability: Tensor) -> Tensor:
        return self.agreed(self.draws.accept_while(probability))

    def accept_last(self, probability: Tensor) -> Tensor:
        return self.agreed(self.draws.accept_last(probability))

    def choose(self, weights: Tensor) -> Tensor:
        return self.agreed(self.draws.choose(weights))

    def smallest_key(self, low: Tensor, high: Tensor) -> Tensor:
        return self.agreed(self.draws.smallest_key(low, high))

    def smallest_image(self, like: Tensor, key: Callable[[Tensor], Tensor], knots: Callable[[], Tensor]) -> Tensor:
        return self.agreed(self.draws.smallest_image(like, key, knots))


def shared(draws: Draws, *models: PreTrainedModel) -> Draws:
    """`draws`, or process 0's if one of the models is cut over the processes.

    Raises:
        ValueError: a model is cut over some of the processes only.
    """
    cut = [model for model in models if is_cut(model)]
    if not cut:
        return draws
    for model in cut:
        if model.tp_size != dist.get_world_size():
            raise ValueError(
                f"a model is cut over {model.tp_size} of {dist.get_world_size()} processes; decoding wants it cut over "
                "all of them (start one torchrun per copy of the model)"
            )
    return SharedDraws(draws)


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
