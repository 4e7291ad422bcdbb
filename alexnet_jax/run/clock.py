"""Where the time of a run goes: what one start of it is doing, and how long it has done what."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Phase = Literal["starting", "restoring", "compiling", "training", "validating", "saving"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Clock:
    """One start of a run. It is in one phase at a time, first in 'starting'; the others follow with `enter`.

    The first step of a start counts as compiling, and is no time of training.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time):
        """`monotonic` counts seconds; `now` is the clock on the wall, in seconds since 1970, UTC."""
        self._monotonic, self.now = monotonic, now
        self.begun = now()
        self.phase: Phase = "starting"
        self._since = monotonic()
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._earlier = 0.0

    def resume(self, seconds: float) -> None:
        """Counts training on from that of earlier starts."""
        self._earlier = seconds

    def enter(self, phase: Phase) -> None:
        """Ends the phase before."""
        now = self._monotonic()
        self._spent[self.phase] += now - self._since
        self._since, self.phase = now, phase

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """The block is in a phase; the one before goes on after it."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def spent(self, *phases: Phase) -> float:
        """Seconds of this start in these phases so far."""
        running = self._monotonic() - self._since if self.phase in phases else 0.0
        return running + sum(self._spent[phase] for phase in phases)

    @property
    def wall(self) -> float:
        """Seconds of this start so far."""
        return self.spent(*PHASES)

    @property
    def training(self) -> float:
        """Seconds in training steps since step 0, over all starts. What a start has lost and made again counts once."""
        return self._earlier + self.spent("training")


class SpeedMeter:
    """Images per second of training, row by row: without compiling, validations and checkpoints."""

    def __init__(self, clock: Clock, batch_size: int):
        self._clock, self._batch_size = clock, batch_size
        self._steps, self._since = 0, clock.spent("training")

    def count(self) -> None:
        """One more step, not the first of this start."""
        self._steps += 1

    def lap(self) -> float:
        """The speed since the last call. A row that has the first step of a start alone gets that one's, with compiling."""
        steps, since = self._steps, self._since
        self._steps, self._since = 0, self._clock.spent("training")
        seconds = self._since - since if steps else self._clock.spent("compiling")
        return (steps or 1) * self._batch_size / seconds
