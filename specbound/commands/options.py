"""Types of options that several commands share."""

from __future__ import annotations

from typing import Any

import click

SEED = click.IntRange(0, 2**32 - 1)


class Number(click.FloatRange):
    """A number in a range; nan is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if number != number:
            self.fail("nan is not a number", param, ctx)
        return number


def check_dotted(option: str, name: str) -> None:
    """Raise ValueError if a function is named by its file, or without its module."""
    if "/" in name or name.partition(":")[0].endswith(".py"):
        raise ValueError(
            f"{option} is {name!r}, a file; write package.module:function, as it is imported from this folder"
        )
    if "." in name and ":" not in name:
        raise ValueError(f"{option} is {name!r}; write a function as package.module:function")
