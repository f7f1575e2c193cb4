"""The options that name a pair of models, shared by the commands that decode."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from specbound.runtime.models import Pair

ROLES = ("target", "draft")
CHOSEN_BY_ACCELERATE = ("auto", "balanced", "balanced_low_0", "sequential", "disk")


class NameOrObject(click.ParamType):
    """A name such as auto, or a JSON object."""

    name = "NAME_OR_JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value.lstrip().startswith("{"):
            return value
        try:
            return json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            self.fail(f"{value!r} is not JSON: {error}", param, ctx)


def pair_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --target, --draft and where and how they run; the command gets the arguments of `read_pair` as `models`."""
    options = [
        click.option("--target", metavar="NAME_OR_PATH", help="Target model; the shipped one if not given."),
        click.option("--draft", metavar="NAME_OR_PATH", help="Draft model; the shipped one if not given."),
        click.option("--device", help="cpu, cuda, cuda:1, ...; CUDA if there is one."),
        *(
            click.option(
                f"--{role}-device-map",
                type=NameOrObject(),
                help=f"Spread the {role} over this process's devices: auto, a device, or JSON (accelerate).",
            )
            for role in ROLES
        ),
        *(
            click.option(
                f"--{role}-tp-plan",
                type=NameOrObject(),
                help=f"Cut the {role} over all processes of a torchrun: auto, or JSON (transformers).",
            )
            for role in ROLES
        ),
        click.option(
            "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]), help="Of both models."
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="CPU threads; 1 for the shipped pair if not given, else torch's.",
        ),
        click.option(
            "--allow-pickle", is_flag=True, help="Also read checkpoints that are no safetensors (their tensors only)."
        ),
    ]

    @functools.wraps(command)
    def with_models(**given: Any) -> Any:
        models = {name: given.pop(name) for name in list(given) if name in inspect.signature(read_pair).parameters}
        return command(models=models, **given)

    wrapped: Callable[..., Any] = with_models
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def read_pair(
    target: str | None = None,
    draft: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    target_device_map: str | dict[str, int | str] | None = None,
    draft_device_map: str | dict[str, int | str] | None = None,
    target_tp_plan: str | dict[str, str] | None = None,
    draft_tp_plan: str | dict[str, str] | None = None,
    allow_pickle: bool = False,
) -> Pair:
    """Load the models that the options name, without the library's own progress bars.

    The shipped pair is so small that a second thread costs more than it brings. Code that a model brings along never
    runs; of a pickled checkpoint, if it is read at all, only the tensors are.

    Raises:
        ValueError: only one of the two models is given, a folder does not exist or holds no model that can be read, a
            device cannot be used, or a checkpoint is pickled and `allow_pickle` is False, or holds more than tensors.
    """
    if (target is None) != (draft is None):
        raise ValueError(f"{'--target' if target is None else '--draft'} is missing; give both models or neither")
    import torch
    from safetensors import SafetensorError
    from transformers.utils import logging

    from specbound import shipped_pair
    from specbound.runtime.device import check_device
    from specbound.runtime.models import check_name, load_pair

    if target is not None and draft is not None:
        check_name("--target", target)
        check_name("--draft", draft)
    if device is not None:
        check_device("--device", device)
    for role, device_map in zip(ROLES, (target_device_map, draft_device_map), strict=True):
        for place in device_map.values() if isinstance(device_map, dict) else [device_map]:
            if isinstance(place, str | int) and place not in CHOSEN_BY_ACCELERATE:
                check_device(f"--{role}-device-map", place)
    logging.disable_progress_bar()
    if threads is not None or target is None:
        torch.set_num_threads(threads or 1)
    try:
        return load_pair(
            target or shipped_pair.TARGET,
            draft or shipped_pair.DRAFT,
            dtype=None if dtype is None else getattr(torch, dtype),
            device=device,
            safetensors_only=not allow_pickle,
            target_device_map=target_device_map,
            draft_device_map=draft_device_map,
            target_tp_plan=target_tp_plan,
            draft_tp_plan=draft_tp_plan,
        )
    except UnpicklingError as error:
        raise ValueError(f"a pickled checkpoint holds more than tensors: {_reason(error)}") from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if target is None:
            raise
        pickled = isinstance(error, OSError) and not allow_pickle and "safetensors" in str(error)
        hint = " If you trust a pickled checkpoint, give --allow-pickle" if pickled else ""
        raise ValueError(f"--target {target}, --draft {draft}: {error}{hint}") from None


def _reason(error: UnpicklingError) -> str:
    """The line of torch's long message that says what was refused."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "GLOBAL" in line), lines[0])
