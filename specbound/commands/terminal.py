"""What the commands print on a terminal: tables that are never cut, progress that a file does not get."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNLIMITED = 10_000


def print_table(table: Table) -> None:
    """Print a table; on a terminal too narrow for its longest words and numbers it is wider than the terminal."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    wide = Console(width=UNLIMITED)
    for column in table.columns:
        sizes = [Measurement.get(wide, wide.options, cell) for cell in (column.header, *column.cells)]
        column.min_width = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
    console.width = max(console.width, Measurement.get(wide, wide.options, table).minimum)
    console.print(table, crop=False)


def progress_console(quiet: bool = False) -> Console:
    """For progress on standard error; it shows nothing where that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    console.quiet = quiet or not console.is_terminal
    return console
