"""Reading and writing files: errors name the file the user named, and a file is written whole or not at all.

Imports nothing of ours, so that every layer may use it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(file: str | os.PathLike[str]) -> Iterator[Path]:
    """A new file beside `file`, to be filled; it takes the place of `file` at the end, or is removed after an error.

    A link keeps pointing to the file that it names; a device or a pipe is written to directly.

    Raises:
        OSError: naming `file`.
    """
    path = Path(os.path.realpath(file))
    direct = path.exists() and not path.is_file()
    partial = path if direct else path.with_name(f".{path.name[:100]}.{os.getpid()}.partial")
    try:
        yield partial
        if not direct:
            partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(file)) from None
    finally:
        if not direct:
            with contextlib.suppress(OSError):
                partial.unlink()


def write_text(file: str | os.PathLike[str], text: str) -> None:
    """Write a file in UTF-8, whole or not at all. Raises OSError."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def read_text(what: str, file: str | os.PathLike[str]) -> str:
    """The text of a file.

    Raises:
        ValueError: it is not UTF-8; the message starts with `what` (the option that names the file).
        OSError: it cannot be read; names `what` too.
    """
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), f"{what} {file}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} {file}: not UTF-8 text ({error.reason} at byte {error.start})") from None
