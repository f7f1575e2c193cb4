"""The `specbound` command: exit code 0 if all is well, 1 if a check fails, 2 for bad input, 3 if undecided."""

from __future__ import annotations

import gc
import io
import sys
from collections.abc import Sequence

import click

import specbound
from specbound.commands.audit import audit
from specbound.commands.bench import bench
from specbound.commands.check import check
from specbound.commands.decode import decode
from specbound.commands.demo import demo
from specbound.commands.experiment import experiment
from specbound.commands.mdp import mdp
from specbound.commands.report import report
from specbound.commands.solve import solve
from specbound.commands.sweep import sweep
from specbound.commands.train_head import train_head
from specbound.commands.verifiers import verifiers

LONGEST_LINE = 1000


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(specbound.__version__, prog_name="specbound")
def cli() -> None:
    """Ground truth for speculative-decoding verification, and a fast runtime beside it."""


for command in (solve, check, audit, verifiers, decode, bench, sweep, experiment, demo, report, train_head, mdp):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; bad input becomes one line on stderr and exit code 2, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    in_group = _in_group()
    try:
        code = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        if not in_group:
            _leave_group()
    except click.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _fail(
            f"{error.format_message()} ({context.command_path} --help shows the options)" if context else str(error), 2
        )
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error), 2)
    except MemoryError as error:
        _fail(f"out of memory{f': {error}' if str(error) else ''}; use a smaller instance or shorter drafts", 2)
    except ValueError as error:
        _fail(str(error), 2)
    except RecursionError as error:
        _fail(f"nested too deeply: {error}", 2)
    except RuntimeError as error:
        _fail(str(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _in_group() -> bool:
    """Whether this process belongs to a group of torchrun's."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _leave_group() -> None:
    """Leave the group that the command has entered; models that still hold it can abort the interpreter at its end."""
    if _in_group():
        gc.collect()
        sys.modules["torch.distributed"].destroy_process_group()


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    click.echo(f"specbound: {line}", err=True)
    sys.exit(code)
