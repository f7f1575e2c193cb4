"""Who computes the cases: processes on this machine (joblib) or tasks on a cluster (Ray).

Both are functions from cases to an iterator of finished rows, in the order of finishing. Either way a case runs in a
`Sandbox`, a process of its own that may be killed: it is started again after it died, the case gets another try, and
after the last one, or over a limit, the case is a row with the reason. So a row depends on its case alone.

joblib's threads only wait, each for its own sandbox: a sandbox that dies takes one case with it and no pool.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import joblib

from ..audit.foreign.sandbox import Died, Raised, Sandbox
from .design import Case, Design
from .results import Row, row_of

STATUS = {"hang": "time limit", "memory": "memory limit", "open files": "died", "crash": "died", "exit": "died"}
STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Limits:
    """What a case may cost; no value depends on it.

    Attributes:
        seconds: wall-clock time, per case, and for loading the models.
        memory: MiB that a worker may allocate beyond what it starts with; None sets no limit.
        nodes: of its prefix tree.
        tries: how often a case is started whose process dies or runs out of memory.
    """

    seconds: float = 60.0
    memory: int | None = 4096
    nodes: int = 200_000
    tries: int = 3


class Worker:
    """A process that computes one case at a time, started again when it died."""

    def __init__(self, design: Design, limits: Limits) -> None:
        settings = json.dumps({"design": design.to_dict(), "nodes": limits.nodes})
        self.limits = limits
        self.stopped = False
        self.busy = threading.Lock()
        self.sandbox = Sandbox("specbound.proofs_checks.sweep.case:serve", settings, limits.seconds, limits.memory)

    def row(self, case: Case) -> Row:
        """The row of a case, whatever happens to it.

        Raises:
            RuntimeError: the worker cannot be set up (the models cannot be loaded), or was stopped.
        """
        with self.busy:
            for _ in range(self.limits.tries):
                if self.stopped:
                    raise RuntimeError("stopped")
                try:
                    self._set_up()
                    return row_of(case, **self.sandbox.call(asdict(case)))
                except Raised as error:
                    return row_of(case, status="failed", error=f"{error.name}: {error} ({error.line})")
                except Died as error:
                    self.sandbox.stop()
                    status, reason = STATUS[error.kind], str(error)
                    if status == "time limit":
                        return row_of(case, status=status, error=reason)
        return row_of(case, status=status, error=f"{reason} ({_times(self.limits.tries)})")

    def _set_up(self) -> None:
        """Start the process and load the models, unless it runs; a death that another try may mend raises Died."""
        if self.sandbox.process is not None:
            return
        try:
            self.sandbox.call(None)
        except Raised as error:
            raise RuntimeError(f"a worker cannot start: {error.name}: {error}") from None
        except Died as error:
            if error.kind != "hang":
                raise
            raise RuntimeError(f"a worker cannot start: {error}; allow more time per case") from None

    def stop(self) -> None:
        """End the process; a thread that waits for it in `row` raises RuntimeError."""
        self.stopped = True
        if (process := self.sandbox.process) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if self.busy.acquire(timeout=STOP_SECONDS):
            self.sandbox.stop()
            self.busy.release()


def on_this_machine(cases: Iterable[Case], design: Design, limits: Limits, jobs: int) -> Iterator[Row]:
    """Rows from `jobs` processes."""
    own = threading.local()
    workers: list[Worker] = []

    def row(case: Case) -> Row:
        if not hasattr(own, "worker"):
            own.worker = Worker(design, limits)
            workers.append(own.worker)
        return own.worker.row(case)

    parallel = joblib.Parallel(
        jobs, backend="threading", return_as="generator_unordered", batch_size=1, pre_dispatch="2*n_jobs"
    )
    try:
        yield from parallel(joblib.delayed(row)(case) for case in cases)
    finally:
        for worker in workers:
            worker.stop()


# ---------------------------------------------------------------------- Ray


def on_ray(cases: Iterable[Case], design: Design, limits: Limits, address: str, jobs: int) -> Iterator[Row]:
    """Rows from the tasks of a Ray cluster, one CPU each; `address` "local" starts a cluster of `jobs` CPUs here.

    specbound (this version) must be installed on every machine of the cluster. A task whose process or machine dies
    is submitted again like a case whose sandbox died.

    Raises:
        ValueError: ray is not installed. OSError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise ValueError("--ray needs the package ray: pip install 'specbound[cluster]'") from None
    place: dict[str, Any] = {"address": address}
    if address == "local":
        place |= {"num_cpus": jobs, "include_dashboard": False}
    elif ":" in address:
        _check_reachable(address)
    ray.init(**place, logging_level="ERROR", log_to_driver=False)
    try:
        settings = json.dumps(design.to_dict())
        task = ray.remote(num_cpus=1, max_retries=0)(_row_on_ray)
        waiting = iter(cases)
        running: dict[Any, tuple[Case, int]] = {}
        submit = partial(task.remote, settings=settings, limits=limits)
        while True:
            width = 2 * max(1, int(ray.cluster_resources().get("CPU", 0)))
            while len(running) < width and (case := next(waiting, None)):
                running[submit(case)] = case, 1
            if not running:
                return
            reference = ray.wait(list(running))[0][0]
            case, tries = running.pop(reference)
            try:
                row = ray.get(reference)
            except RayTaskError as error:
                raise RuntimeError(str(error.cause)) from None
            except RayError as error:
                if tries < limits.tries:
                    running[submit(case)] = case, tries + 1
                    continue
                reason = " ".join(str(error).split())[:300]
                row = row_of(case, status="died", error=f"{type(error).__name__}: {reason} ({_times(tries)})")
            yield row
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError unless something answers at [ray://]HOST:PORT; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from None


def _row_on_ray(case: Case, settings: str, limits: Limits) -> Row:
    return _worker_of_this_process(settings, limits).row(case)


@cache
def _worker_of_this_process(settings: str, limits: Limits) -> Worker:
    return Worker(Design.from_dict(json.loads(settings)), limits)


def _times(tries: int) -> str:
    return f"{tries} tries" if tries > 1 else "1 try"
