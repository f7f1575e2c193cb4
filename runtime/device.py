"""Where tensors can be put."""

from __future__ import annotations

import torch


def check_device(name: str, device: object) -> None:
    """Raise ValueError, naming the argument, unless torch can put numbers there."""
    try:
        place = torch.zeros(1, device=device).device  # type: ignore[call-overload]
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{name} is {device!r}, which this torch cannot use: {reason}") from None
    if place.type == "meta":
        raise ValueError(f"{name} is {device!r}, which holds no numbers; want e.g. cpu or cuda")
