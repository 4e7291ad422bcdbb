"""Ends a process in which nothing ends any more: a stuck read, device or disk would hang the job for ever."""

import faulthandler
import math
import os
import signal
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable
from typing import Literal, NamedTuple, TypeVar

from alexnet_jax.system.signals import RESUME_STATUS

Batch = TypeVar("Batch")
Work = Literal["start", "reading", "step", "validation", "statistics", "checkpoint"]
SLOW_SECONDS = 1800.0  # for work that may compile, restore or save
# How often each kind of work may be slow. The first compiles; the second waits for other processes, which compile too.
SLOW_TIMES: dict[Work, float] = {
    "start": math.inf, "reading": 0, "step": 2, "validation": 2, "statistics": 2, "checkpoint": math.inf
}  # fmt: skip
TYPICAL = 20  # any work may take so many times its own median
# A process that waits for the others gets longer than one that reads: the one at fault ends first, and is named.
WAITING_SECONDS = 10.0
ALARM = 10  # the kernel ends a process whose watchdog has not run for so many timeouts


class _Watched(NamedTuple):
    work: Work
    step: int
    begun: float
    limit: float


class Watchdog:
    """Watches over the work of a run. Use it as a context manager; inside, some work is always watched.

    A thread counts how long the work takes. If that is too long it writes the stack of every thread and one line to stderr,
    and ends the process. It counts by its own turns, so the time in which the process was stopped is left out. Native code
    that holds Python's lock stops the thread too; then a timer of the kernel ends the process, with SIGALRM. That timer runs
    on while the process is stopped, but for `stop_process`.
    """

    def __init__(self, timeout: float, *, process: int = 0, processes: int = 1, exit: Callable[[int], object] = os._exit):
        """Nothing is watched yet.

        Args:
            timeout: seconds that a step, the reading of its batch, or a batch of a validation may take; 0: for ever.
                Work that may compile, restore or save gets at least `SLOW_SECONDS`, all work `TYPICAL` times its median.
            process: the number of this process.
            processes: how many train together.
            exit: is given `RESUME_STATUS` to end the process with.
        """
        self._timeout, self._processes, self._exit = timeout, processes, exit
        self._name = f"process {process} of {processes}" if processes > 1 else "this process"
        self._taken: dict[Work, deque[float]] = defaultdict(lambda: deque(maxlen=99))  # seconds, of the latest
        self._watched = self._begin("start", 0)
        self._closed, self._setting = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._count, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._timeout:
            faulthandler.register(signal.SIGALRM, file=2, all_threads=True, chain=True)
            self._set_alarm()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timeout:
            self._closed.set()
            self._thread.join()
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.unregister(signal.SIGALRM)

    def stop_process(self) -> None:
        """Stops this process until SIGCONT, however long that takes. Call it in another thread than the main one."""
        with self._setting:  # so that the watchdog does not set the timer again before the process has stopped
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), signal.SIGSTOP)

    def watch(self, work: Work, step: int) -> None:
        """What was watched has ended, and this begins. `step`: that it belongs to, counted from 1."""
        self._taken[self._watched.work].append(time.monotonic() - self._watched.begun)
        self._watched = self._begin(work, step)

    def steps(self, batches: Iterable[Batch], first: int) -> Generator[Batch]:
        """The batches of the steps from `first` on; the reading of each is watched, and then its step."""
        self.watch("reading", first)
        for step, batch in enumerate(batches, first):
            self.watch("step", step)
            yield batch
            self.watch("reading", step + 1)

    def _begin(self, work: Work, step: int) -> _Watched:
        taken = self._taken[work]
        slow = SLOW_SECONDS if len(taken) < SLOW_TIMES[work] else 0.0
        limit = max(self._timeout, slow, TYPICAL * statistics.median(taken or [0.0]))
        return _Watched(work, step, time.monotonic(), limit + WAITING_SECONDS * self._waits(work))

    def _waits(self, work: Work) -> bool:
        """Whether the work goes on only with the other processes."""
        return self._processes > 1 and work != "reading"

    def _count(self) -> None:
        tick, seen, counted = min(1.0, self._timeout / 10), self._watched, 0.0
        while not self._closed.wait(tick):
            self._set_alarm()
            seen, counted = self._watched, counted + tick if self._watched is seen else 0.0
            if counted > seen.limit:
                self._end(seen)
                return

    def _set_alarm(self) -> None:
        with self._setting:
            signal.setitimer(signal.ITIMER_REAL, min(ALARM * self._timeout, 1e6))

    def _end(self, stuck: _Watched) -> None:
        faulthandler.dump_traceback(file=2, all_threads=True)
        blame = "; perhaps another process is the one at fault" if self._waits(stuck.work) else ""
        line = (
            f"error: {self._name} is stuck at step {stuck.step}: {stuck.work} takes over {round(stuck.limit, 2):g} s{blame} "
            f"(--step_timeout). Its stacks are above; rerun the same command to resume (exit status {RESUME_STATUS})\n"
        )
        os.write(2, line.encode())
        self._exit(RESUME_STATUS)
