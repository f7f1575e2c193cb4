"""The sandbox: a hang, a crash or an exit becomes a report, and the next request is answered."""

import ctypes
import math
import os
import pickle
import struct
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

from specbound.proofs_checks.audit.foreign.plain import decoded, encoded
from specbound.proofs_checks.audit.foreign.sandbox import Died, Raised, Sandbox, alive, read_answer


def behave(prefix):
    def answer(what, *arguments):
        if what == "echo":
            return (prefix, *arguments)
        if what == "print":
            print("x" * 100_000)
            return sys.stdin.read()
        if what == "hang":
            time.sleep(60)
        if what == "slow but alive":
            for _ in range(4):
                time.sleep(0.6)
                alive()
            return "done"
        if what == "segfault":
            ctypes.string_at(0)
        if what == "exit":
            sys.exit(3)
        if what == "die":
            os._exit(7)
        if what == "long last words":
            sys.stderr.write("x" * (1 << 20) + "\nlast words\n")
            sys.stderr.flush()
            os._exit(8)
        if what == "memory":
            return len(bytearray(3 << 30))
        if what == "files":
            return len([open(os.devnull) for _ in range(10_000)])
        raise KeyError(what)

    return answer


def refuse(argument):
    raise ValueError(f"cannot load {argument}")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(f"{__name__}:behave", "hello", seconds=1.5, memory=2048) as box:
        yield box


def test_it_answers_and_keeps_what_the_code_prints_out_of_the_way(sandbox):
    assert sandbox.call("echo", 1, [2]) == ("hello", 1, [2])
    assert sandbox.call("print") == ""


def test_an_exception_is_told_with_its_place_and_the_process_lives_on(sandbox):
    with pytest.raises(Raised, match="nonsense") as caught:
        sandbox.call("nonsense")
    assert caught.value.name == "KeyError"
    assert "test_sandbox.py" in caught.value.line
    assert sandbox.call("echo") == ("hello",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, kind, words",
    [
        ("hang", "hang", "1.5 seconds"),
        ("segfault", "crash", "SIGSEGV"),
        ("exit", "exit", r"exit\(3\)"),
        ("die", "exit", "code 7"),
        ("memory", "memory", "2048 MiB"),
        ("files", "open files", "1024 files open: .*Too many open files"),
        ("long last words", "exit", "code 8; it wrote: last words"),
    ],
)
def test_what_kills_the_process_is_named_and_the_next_request_is_answered(sandbox, what, kind, words):
    with pytest.raises(Died, match=words) as caught:
        sandbox.call(what)
    assert caught.value.kind == kind
    assert sandbox.call("echo", kind) == ("hello", kind)


def test_signs_of_progress_start_the_time_again(sandbox):
    assert sandbox.call("slow but alive") == "done"


def test_a_loader_that_fails_is_told():
    with Sandbox(f"{__name__}:refuse", "this") as box, pytest.raises(Raised, match="cannot load this"):
        box.call()


# ---------------------------------------------------------------------- answers


@dataclass(frozen=True)
class Record:
    law: dict
    count: int


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["SPECBOUND_TRAP"],)


def forge(_):
    """Writes an answer of its own before the real one, as code that looks for the pipe can."""

    def answer(data):
        import specbound.proofs_checks.audit.foreign.sandbox as own

        os.write(own._ANSWERS[0], struct.pack("<Q", len(data)) + data)
        return "done"

    return answer


def test_answers_come_back_as_they_were_given():
    value = Record({(0, 1): 0.25, (): math.inf}, np.int64(3))
    assert decoded(encoded(value), {"Record": Record}) == Record({(0, 1): 0.25, (): math.inf}, 3)
    assert decoded(encoded([None, True, "a", (1, [2.5])])) == [None, True, "a", (1, [2.5])]
    with pytest.raises(TypeError, match="holds Trap"):
        encoded(Trap())


def test_a_forged_pickle_is_not_run(tmp_path, monkeypatch):
    """The process used to be believed whatever it wrote: unpickling its answer ran what it liked."""
    trap = tmp_path / "sprung"
    monkeypatch.setenv("SPECBOUND_TRAP", str(trap))
    data = pickle.dumps(("done", Trap()))
    with Sandbox(f"{__name__}:forge", None, seconds=20) as box, pytest.raises(Died, match="something else"):
        box.call(data)
    assert not trap.exists()
    pickle.loads(data)
    assert trap.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no",
        b"[]",
        encoded(("done",)),
        encoded(("other", 1)),
        encoded(("raised", 1)),
        b'{"record": ["Trap", {}]}',
        b"\xff",
    ],
)
def test_what_is_no_answer_is_refused(data):
    with pytest.raises(ValueError):
        read_answer(data, {})
