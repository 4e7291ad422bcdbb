"""The starts of a run: starts.jsonl has a row for each, and their sum says which share of the time went into steps."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from alexnet_jax.run.clock import PHASES, Clock
from alexnet_jax.run.metrics import STARTS, reopened
from alexnet_jax.system.signals import Interrupted


@dataclass(frozen=True)
class TimeSpent:
    """Seconds of a run over all starts that are known: on the wall, and in training steps that were not lost again."""

    starts: int
    wall: float
    training: float

    @property
    def goodput(self) -> float:
        """The share of the time on the wall that was spent in steps; the pauses between two starts do not count."""
        return self.training / self.wall if self.wall else 0.0


def time_spent(starts: Sequence[dict[str, Any]]) -> TimeSpent | None:
    """The sum of the rows of starts.jsonl; None without rows."""
    if not starts:
        return None
    return TimeSpent(len(starts), sum(row["wall_seconds"] for row in starts), starts[-1]["seconds"])


class StartLog:
    """Keeps the row of this start up to date, so that a kill loses only what came after the last `note`.

    Use it as a context manager; leaving it notes how the start ended. The row has:

    step, last_step: where the start began, and how far it is.
    time: when it began, in seconds since 1970, UTC.
    wall_seconds: since then.
    seconds: in training steps since step 0, over all starts.
    phases: seconds of this start in each `clock.Phase`.
    end: 'finished', 'interrupted' or 'failed'; missing while it runs, and after a kill.
    """

    def __init__(self, workdir: Path, clock: Clock, *, silent: bool = False):
        """Nothing is written before `begin`, and with `silent` nothing at all."""
        self._workdir, self._clock, self._silent = workdir, clock, silent
        self._file: BinaryIO | None = None
        self._place = self._length = self._first = self._last = 0

    def __enter__(self) -> "StartLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._file is None:
            return
        end = "finished" if kind is None else "interrupted" if issubclass(kind, Interrupted) else "failed"
        with contextlib.suppress(OSError), self._file:  # a full disk, which ends the run, is told elsewhere
            self._write({"end": end})

    def begin(self, step: int) -> None:
        """Adds the row of this start, which resumes at `step`."""
        if self._silent:
            return
        reopened(self._workdir, STARTS).close()  # without a line that was cut off
        self._file = (self._workdir / STARTS).open("r+b")
        self._place, self._first = self._file.seek(0, 2), step
        self.note(step)

    def note(self, step: int) -> None:
        """The start has come to this step."""
        self._last = step
        if self._file is not None:
            self._write({})

    def _write(self, more: dict[str, str]) -> None:
        """Writes over the row. It never gets shorter, so that at no moment there is anything behind it."""
        assert self._file is not None
        clock = self._clock
        row = {
            "step": self._first,
            "last_step": self._last,
            "time": round(clock.begun, 3),
            "wall_seconds": round(clock.wall, 3),
            "seconds": round(clock.training, 3),
            "phases": {phase: round(clock.spent(phase), 3) for phase in PHASES},
        }
        line = json.dumps(row | more).ljust(self._length)
        self._length = len(line)
        self._file.seek(self._place)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
