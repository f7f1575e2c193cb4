"""The options that name an instance, shared by the commands that solve one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from specbound.files import read_text

if TYPE_CHECKING:
    from specbound.theory.prefix_tree import PrefixTree


LONGEST_NAME = 255


def given_options(context: click.Context) -> list[str]:
    """The options that stand on the command line, e.g. "--paths"."""
    default = click.core.ParameterSource.DEFAULT
    return [
        option.opts[0]
        for option in context.command.params
        if option.name is not None and context.get_parameter_source(option.name) not in (None, default)
    ]


class OutputFile(click.Path):
    """A file to be written: its folder exists, and its name ends in one of `suffixes` if there are any."""

    def __init__(self, suffixes: tuple[str, ...] = ()) -> None:
        super().__init__(dir_okay=False, writable=True)
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        file = str(super().convert(value, param, ctx))
        if not Path(file).name:
            self.fail(f"{file!r} is no name of a file", param, ctx)
        if self.suffixes and Path(file).suffix not in self.suffixes:
            self.fail(f"{file!r} wants one of the endings {', '.join(self.suffixes)}", param, ctx)
        if len(os.fsencode(Path(file).name)) > LONGEST_NAME:
            self.fail(f"{file!r} is too long for the name of a file", param, ctx)
        if not Path(file).resolve().parent.is_dir():
            self.fail(f"{file!r} is in a folder that does not exist", param, ctx)
        return file


def instance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --target, --draft, --length, --instance, --random, --seed and --concentration."""
    options = [
        click.option("--target", metavar="P1,P2,...", help="Target law of an iid instance; fractions or decimals."),
        click.option("--draft", metavar="Q1,Q2,...", help="Draft law of an iid instance."),
        click.option("--length", type=click.IntRange(min=1), help="Draft length L (iid and random instances)."),
        click.option("--instance", "instance_file", type=click.Path(dir_okay=False), help="Prefix tree as JSON."),
        click.option(
            "--random", "random_vocab", metavar="V", type=click.IntRange(min=1), help="Random instance with V tokens."
        ),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random instance."
        ),
        click.option(
            "--concentration", type=float, default=0.5, show_default=True, help="Dirichlet concentration of its rows."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def read_instance(
    target: str | None,
    draft: str | None,
    length: int | None,
    instance_file: str | None,
    random_vocab: int | None,
    seed: int,
    concentration: float,
) -> tuple[dict[str, Any], PrefixTree]:
    """The tree that the options describe, and the description that goes into the JSON output.

    Raises:
        ValueError: if not exactly one instance is described, or it is malformed.
    """
    from specbound.theory.prefix_tree import PrefixTree

    ways = {"--target/--draft": target or draft, "--instance": instance_file, "--random": random_vocab}
    given = [way for way, value in ways.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"give one instance: --target with --draft, or --instance FILE, or --random V (found {found})")
    if instance_file is not None:
        if length is not None:
            raise ValueError("--length belongs to --target/--draft and --random; the file states its own length")
        text = read_text("--instance", instance_file)
        try:
            tree = PrefixTree.from_json(text)
        except ValueError as error:
            raise ValueError(f"--instance {instance_file}: {error}") from None
        return _described(tree, kind="file", file=instance_file), tree
    if length is None:
        raise ValueError("--length is missing; give the draft length, e.g. --length 2")
    if random_vocab is not None:
        tree = PrefixTree.random(random_vocab, length, seed, concentration)
        return _described(tree, kind="random", seed=seed, concentration=concentration), tree
    if target is None or draft is None:
        raise ValueError(f"{'--target' if target is None else '--draft'} is missing; an iid instance needs both laws")
    rows = {"target": _row("--target", target), "draft": _row("--draft", draft)}
    tree = PrefixTree.iid(rows["target"], rows["draft"], length)
    laws = {name: [str(value) for value in row] for name, row in rows.items()}
    return _described(tree, kind="iid", **laws), tree


def _row(option: str, text: str) -> list[Any]:
    from specbound.theory.numbers import parse_number

    try:
        row = [parse_number(entry.strip()) for entry in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None
    if any(value < 0 for value in row):
        raise ValueError(f"{option} is {text}; probabilities are not negative")
    total = sum(row)
    if total == 1:
        return row
    if abs(float(total) - 1) > 1e-9:
        raise ValueError(
            f"{option} is {text}, which sums to {float(total):.10g}; want 1 (fractions such as 1/3 are exact)"
        )
    return [float(value) for value in row]


def _described(tree: PrefixTree, **description: Any) -> dict[str, Any]:
    return description | {"vocab": tree.vocab, "length": tree.length, "nodes": tree.size, "exact": tree.exact}


def print_json(data: Any) -> None:
    """One JSON object on stdout; NaN and infinity are not JSON and raise."""
    click.echo(json.dumps(data, indent=2, allow_nan=False))
