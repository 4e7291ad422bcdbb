"""A process for each workload, so that none shares threads, allocator or memory with another.

An idle worker uses no core, so several can be measured in turn.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable

from alexnet_jax.system.errors import UserError


@runtime_checkable
class Workload(Protocol):
    """A step to time. It is pickled to its worker."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    @property
    def examples(self) -> int:
        """Images per call."""
        ...

    def start(self) -> Callable[[], Any]:
        """In the worker: prepares everything and returns one step. The step waits for its result."""
        ...

    def device_memory(self) -> int | None:
        """In the worker: peak bytes in use on the accelerator, or None on a CPU."""
        ...


class Failed(UserError):
    """The workload did not start or run. The text names it, and is its own error."""


class Worker:
    """The process of a workload, for a `with` statement. One step has run when the constructor returns."""

    def __init__(self, workload: Workload) -> None:
        """Raises Failed."""
        self.workload = workload
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, workload), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for this process alone
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        try:
            self.first_step_seconds: float = self._answer()
        except Failed:
            self._process.join()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:  # it may be in the middle of a long step
            self._process.terminate()
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(None)
        self._process.join()

    def measure(self, steps: int) -> float:
        """Images per second over `steps` steps, after one untimed step. Raises Failed."""
        return self.workload.examples * steps / self._ask(steps)

    def peak_memory(self) -> int:
        """Peak bytes of the accelerator, or of the process on a CPU. Raises Failed."""
        return self._ask("memory")

    def _ask(self, request: int | str) -> Any:
        with contextlib.suppress(BrokenPipeError):  # `_answer` says so
            self._connection.send(request)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise Failed(f"{self.workload.name}: its process ended with status {self._process.exitcode}") from None
        if isinstance(answer, Failed):
            raise Failed(f"{self.workload.name}: {answer}")
        return answer


def _serve(connection: Connection, workload: Workload) -> None:
    """Runs in the worker. A request is a number of steps to time, "memory", or None to end."""
    os.dup2(2, 1)  # stdout is for the result, not for what libraries print
    try:
        started = time.perf_counter()
        step = workload.start()
        step()
        connection.send(time.perf_counter() - started)
        while (request := connection.recv()) is not None:
            if request == "memory":
                connection.send(workload.device_memory() or _resident_peak())
                continue
            step()
            started = time.perf_counter()
            for _ in range(request):
                step()
            connection.send(time.perf_counter() - started)
    except EOFError:  # the parent is gone
        return
    except (UserError, RuntimeError, MemoryError, OSError, ImportError) as error:  # of JAX, PyTorch and the machine
        connection.send(Failed(f"{type(error).__name__}: {error}".splitlines()[0][:200]))


def _resident_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
