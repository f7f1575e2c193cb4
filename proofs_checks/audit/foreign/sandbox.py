"""Running untrusted code in a process of its own, so that a hang, a crash or an exit becomes a finding.

The process answers requests one by one, under limits on time per request, memory and open files. It is started
again after it died. Its answers are text (see `plain`), which nothing is run from.

It guards against accidents, not against attacks: the code runs with the user's rights, sees the user's files and the
network, and could answer in its own favour. Run code that you do not trust in a container or a virtual machine.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plain import decoded, encoded

MEBIBYTE = 1 << 20
START_SECONDS = 120.0
LOG_TAIL = 1 << 16
MAX_ANSWER = 1 << 30
HERE = Path(__file__).resolve().parents[2]
NOT_THE_USERS = (str(HERE), *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}, "<")


class Died(Exception):
    """The code did not answer.

    Attributes:
        kind: "hang", "crash" (killed by a signal), "exit" (it ended the process), "memory" or "open files".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Raised(Exception):
    """The code raised an exception.

    Attributes:
        name: class of the exception; line: the place it was raised at.
    """

    def __init__(self, name: str, message: str, line: str) -> None:
        super().__init__(message)
        self.name, self.line = name, line


def message_of(error: BaseException) -> str:
    """The words of an exception and its notes, also of one that cannot be shown."""
    try:
        said = str(error)
    except Exception:
        said = "<its message cannot be shown>"
    return ", ".join([said, *getattr(error, "__notes__", ())])


def place_of(error: BaseException) -> str:
    """The last line of the user's own code on the way to an exception; of any code, if there is none."""
    frames = [*traceback.extract_tb(error.__traceback__)]
    if error.__cause__ is not None:
        frames += traceback.extract_tb(error.__cause__.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_USERS)]
    where = (own or frames)[-1]
    return f"{os.path.basename(where.filename)}, line {where.lineno}: {where.line}"


@dataclass
class Sandbox:
    """A process that holds `loader(argument)`, a function, and applies it to requests.

    Args:
        loader: "package.module:function", found as from the current directory; called in the process with `argument`,
            it returns the function.
        argument: passed to the loader; picklable.
        seconds: time allowed per request, or between two signs of progress (`alive`).
        memory: MiB that the process may allocate beyond what it has when it starts loading; None sets no limit
            (CUDA reserves far more addresses than it uses).
        files: open files allowed.
        records: dataclasses that answers may hold.
        environment: variables of its environment, where the present one has none of the name.

    Use as a context manager. Needs a POSIX system for the limits on memory and files.
    """

    loader: str
    argument: Any
    seconds: float = 60.0
    memory: int | None = 4096
    files: int = 1024
    records: tuple[type, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def call(self, *request: Any) -> Any:
        """The function's answer to a request.

        Raises:
            Died: if there is none. Raised: if loader or function raised an exception.
        """
        if self.process is None:
            self._start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            _write(self.process.stdin.fileno(), pickle.dumps(request))
        except BrokenPipeError:
            self._died()
        return self._answer(self.seconds)

    def stop(self) -> None:
        """End the process."""
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        self.log.close()

    def _start(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `stop`
        environment = {**self.environment, **os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import _serve; _serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        settings = ([os.getcwd(), *sys.path], self.loader, self.argument, self.memory, self.files)
        _write(self.process.stdin.fileno(), pickle.dumps(settings))
        try:
            self._answer(START_SECONDS)
            self._answer(self.seconds)
        except Raised:
            self.stop()
            raise

    def _answer(self, seconds: float) -> Any:
        assert self.process is not None
        assert self.process.stdout is not None
        try:
            kind = "alive"
            while kind == "alive":
                data = _read(self.process.stdout.fileno(), time.monotonic() + seconds)
                kind, value = read_answer(data, {record.__name__: record for record in self.records})
        except TimeoutError:
            self.stop()
            raise Died("hang", f"no answer within {seconds:g} seconds") from None
        except EOFError:
            self._died()
        except ValueError as error:
            self.stop()
            raise Died("crash", f"the process wrote something else than an answer: {error}") from None
        if kind == "raised":
            name, message, line = value
            if name == "MemoryError" or "can't allocate memory" in message:
                raise Died("memory", f"it needs more than {self.memory} MiB: {message or name}")
            if name == "OSError" and message.startswith(f"[Errno {errno.EMFILE}]"):
                self.stop()
                raise Died("open files", f"it holds more than {self.files} files open: {message}")
            raise Raised(name, message, line)
        if kind == "exit":
            self.stop()
            raise Died("exit", f"it called exit({value})")
        return value

    def _died(self) -> None:
        assert self.process is not None
        code = self.process.wait()
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - LOG_TAIL))
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        said = f"; it wrote: {lines[-1][:200]}" if lines else ""
        self.stop()
        if code < 0:
            raise Died("crash", f"the process was killed by {signal.Signals(-code).name}{said}")
        raise Died("exit", f"the process ended with code {code}{said}")


def read_answer(data: bytes, records: dict[str, type]) -> tuple[str, Any]:
    """(kind, value) of what the process wrote.

    Raises:
        ValueError: if it is no answer.
    """
    answer = decoded(data, records)
    if not (isinstance(answer, tuple) and len(answer) == 2 and answer[0] in ("alive", "done", "exit", "raised")):
        raise ValueError("no pair of a known kind and a value")
    if answer[0] == "raised" and not (isinstance(answer[1], tuple) and [type(part) for part in answer[1]] == [str] * 3):
        raise ValueError("no exception")
    return answer


def _write(descriptor: int, data: bytes) -> None:
    message = struct.pack("<Q", len(data)) + data
    while message:
        message = message[os.write(descriptor, message) :]


def _read(descriptor: int, deadline: float) -> bytes:
    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], min(left, 1e6))[0]:
                raise TimeoutError
            if not (piece := os.read(descriptor, min(count - len(data), 1 << 16))):
                raise EOFError
            data += piece
        return data

    size = struct.unpack("<Q", exactly(8))[0]
    if size > MAX_ANSWER:
        raise ValueError(f"{size} bytes")
    return exactly(size)


# ---------------------------------------------------------------------- in the process

_ANSWERS: list[int] = []
_LAST = [0.0]


def alive() -> None:
    """Tell the parent process, if there is one, that a long request makes progress: its time starts again."""
    if _ANSWERS and time.monotonic() - _LAST[0] > 0.5:
        _LAST[0] = time.monotonic()
        _write(_ANSWERS[0], encoded(("alive", None)))


def _serve() -> None:
    """Read settings and requests from standard input, answer on standard output; the code gets neither."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    paths, loader, argument, memory, files = pickle.loads(_read(requests, float("inf")))
    sys.path[:] = paths
    module, _, name = loader.partition(":")
    load = getattr(importlib.import_module(module), name)
    _limit(memory, files)
    importlib.import_module("specbound.proofs_checks.audit.foreign.sandbox")._ANSWERS.append(answers)
    _write(answers, encoded(("done", None)))
    handler: Callable[..., Any] | None = None

    def loaded(*_: Any) -> None:
        nonlocal handler
        handler = load(argument)

    if not _try(answers, loaded, ()):
        return
    while True:
        try:
            request = pickle.loads(_read(requests, float("inf")))
        except EOFError:
            return
        _try(answers, handler or loaded, request)


def _try(answers: int, handler: Callable[..., Any], request: tuple[Any, ...]) -> bool:
    """Answer with the handler's result or with what it raised; False if it raised."""
    try:
        _write(answers, encoded(("done", handler(*request))))
    except SystemExit as error:
        _write(answers, encoded(("exit", str(error.code))))
    except BaseException as error:
        _write(answers, encoded(("raised", (type(error).__name__, message_of(error), place_of(error)))))
    else:
        return True
    return False


def _limit(memory: int | None, files: int) -> None:
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if memory is None:
        return
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
        limit = used + memory * MEBIBYTE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
