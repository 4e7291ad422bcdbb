"""One contender in a process of its own: its threads, its allocator and its memory are not the others'.

A worker that is not asked for anything waits without using a core, so that several can be measured in turn.
"""

import contextlib
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Contender(Protocol):
    """Something to measure; it travels to its process by pickle."""

    @property
    def name(self) -> str:
        """For tables."""
        ...

    @property
    def examples(self) -> int:
        """Images that one call takes."""
        ...

    def start(self) -> Callable[[], Any]:
        """In the worker: makes everything, and returns one step, which waits for its result."""
        ...

    def device_memory(self) -> int | None:
        """In the worker: peak bytes in use on the accelerator, None on a CPU."""
        ...


class Failed(Exception):
    """The contender could not be started or run; the text is its own error."""


class Worker:
    """The process of a contender. Use it in a `with` statement; it has run one step when it is there."""

    def __init__(self, contender: Contender) -> None:
        """Raises Failed."""
        self.contender = contender
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self.first_step_seconds: float = self._answer()
        except Failed:
            self._process.join()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(None)
        self._process.join()

    def measure(self, steps: int) -> float:
        """Images per second over so many steps, after one that is not counted. Raises Failed."""
        self._connection.send(steps)
        return self.contender.examples * steps / self._answer()

    def peak_memory(self) -> int:
        """Bytes: of the accelerator where there is one, otherwise of the process. Raises Failed."""
        self._connection.send("memory")
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            raise Failed(f"its process ended with status {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise Failed(f"{type(answer).__name__}: {str(answer).strip().splitlines()[0][:200] if str(answer) else ''}")
        return answer


def _serve(connection: Connection, contender: Contender) -> None:
    """Runs in the worker: a number is a number of steps to time, None is the end."""
    os.dup2(2, 1)  # what libraries print is not the result
    try:
        started = time.perf_counter()
        step = contender.start()
        step()
        connection.send(time.perf_counter() - started)
        while (request := connection.recv()) is not None:
            if request == "memory":
                connection.send(contender.device_memory() or _resident_peak())
                continue
            step()
            started = time.perf_counter()
            for _ in range(request):
                step()
            connection.send(time.perf_counter() - started)
    except EOFError:  # the parent is gone
        return
    except Exception as error:
        connection.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _resident_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
