"""The options that name a pair of models, shared by the commands that decode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from specbound.runtime.models import Pair


def pair_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --target, --draft, --device, --dtype and --threads."""
    options = [
        click.option("--target", metavar="NAME_OR_PATH", help="Target model; the shipped one if not given."),
        click.option("--draft", metavar="NAME_OR_PATH", help="Draft model; the shipped one if not given."),
        click.option("--device", help="cpu, cuda, cuda:1, ...; CUDA if there is one."),
        click.option(
            "--dtype", type=click.Choice(["float32", "bfloat16", "float16", "float64"]), help="Of both models."
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="CPU threads; 1 for the shipped pair if not given, else torch's.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_pair(
    target: str | None = None,
    draft: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> Pair:
    """Load the models that the options name, without the library's own progress bars.

    The shipped pair is so small that a second thread costs more than it brings.

    Raises:
        ValueError: only one of the two models is given, or a folder does not exist.
    """
    if (target is None) != (draft is None):
        raise ValueError(f"{'--target' if target is None else '--draft'} is missing; give both models or neither")
    for option, name in (("--target", target), ("--draft", draft)):
        if name is not None and name.startswith(("/", ".", "~")) and not Path(name).is_dir():
            raise ValueError(f"{option} is {name}; there is no such folder")

    import torch
    from transformers.utils import logging

    from specbound import shipped_pair
    from specbound.runtime.models import load_pair

    if device is not None:
        check_device(device)
    logging.disable_progress_bar()
    if threads is not None or target is None:
        torch.set_num_threads(threads or 1)
    wanted = None if dtype is None else getattr(torch, dtype)
    return load_pair(target or shipped_pair.TARGET, draft or shipped_pair.DRAFT, dtype=wanted, device=device)


def check_device(device: str) -> None:
    """Raise ValueError unless torch can put a tensor there."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device is {device!r}, which this torch cannot use: {reason}") from None
