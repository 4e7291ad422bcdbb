"""Exit statuses, and signals that ask a run to stop at its next step."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

RESUME_STATUS = 75  # EX_TEMPFAIL of sysexits.h: the run is saved, the same command resumes it
DIVERGED_STATUS = 65  # EX_DATAERR: the loss or a parameter is not finite, the last checkpoint is kept
IN_USE_STATUS = 69  # EX_UNAVAILABLE: another process works in the folder of the run, nothing was done
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The run was asked to stop and has saved its state. The message says so."""


def end(signal_number: int, frame: FrameType | None) -> None:
    """A handler of Ctrl-C that ends the process with one line, whatever runs."""
    os.write(2, b"stopped by Ctrl-C\n")
    os._exit(128 + signal_number)


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Within it `end` handles Ctrl-C, where it would have raised KeyboardInterrupt."""
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not raises or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Interruption:
    """Notes the first SIGTERM or SIGINT in `requested`. The second ends the process at once, with status 128 + its number.

    Python runs its handlers only between bytecodes, and a compilation delays them for minutes. So a thread reads the signal
    numbers from the pipe that Python's C handler writes. Use it as a context manager, in the main thread.

    Args:
        stop: stops this process where SIGTSTP, such as Ctrl-Z and Slurm's suspension, would have.
    """

    def __init__(self, stop: Callable[[], None] | None = None) -> None:
        self.requested: str | None = None
        self._stop = stop

    def __enter__(self) -> "Interruption":
        self._pipe, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer, self._wakeup_before = writer, signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        stops = self._stop is not None and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL
        numbers = (*SIGNALS, signal.SIGTSTP) if stops else SIGNALS
        self._handlers_before = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writer)  # ends the thread
        self._thread.join()
        os.close(self._pipe)

    def _watch(self) -> None:
        while received := os.read(self._pipe, 1):
            number = received[0]
            if number == signal.SIGTSTP and self._stop:
                self._stop()
            if number not in SIGNALS:
                continue
            name = signal.Signals(number).name
            if self.requested:
                os.write(2, f"\n{name} again: ended at once\n".encode())
                os._exit(128 + number)
            self.requested = name
            print(f"\n{name}: saving at the next step, then stopping; once more stops at once", file=sys.stderr, flush=True)
