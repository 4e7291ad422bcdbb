"""What a person sees of a run that trains: two live lines on a terminal, and plain lines in a log."""

import logging
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from alexnet_jax.run.clock import Clock
from alexnet_jax.run.intervals import Intervals
from alexnet_jax.run.metrics import Row
from alexnet_jax.values import number_text, three_digits

SMOOTHED = 50  # steps whose mean loss and error are shown
BAR = (8, 40)  # columns: with fewer there is no bar


class _Step(NamedTuple):
    """A finished step, and the seconds that had gone into training then."""

    seconds: float
    loss: float
    top1_error: float  # as a fraction


def run_console(*, silent: bool) -> Console:
    """Writes to stderr. `silent`: shows nothing, for all processes but the first."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty(), quiet=silent)


def duration(seconds: float) -> str:
    """'1:02:03', and '2 d 1:02:03' from a day on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days} d ' if days else ''}{hour}:{minute:02}:{second:02}"


class Display:
    """Shows a run. Use it as a context manager; the live lines are there inside, and are gone afterwards."""

    def __init__(self, clock: Clock, intervals: Intervals, console: Console):
        """`console`: of `run_console`. On one that is no terminal there are no live lines."""
        self._clock, self._intervals, self._console = clock, intervals, console
        self._on_terminal = console.is_terminal and not console.is_dumb_terminal
        self._live = Live(self, console=console, transient=True) if self._on_terminal and not console.quiet else None
        self._step = 0
        self._recent: deque[_Step] = deque(maxlen=SMOOTHED)
        self._rate: float | None = None
        self._first: tuple[int, float] | None = None  # step of this start, and the seconds of work until then
        self._left: float | None = None
        self._judged = 0.0  # share of the validation under way

    def __enter__(self) -> "Display":
        if self._live is not None:
            self._live.start(refresh=True)
            _warn_on_stderr()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            _warn_on_stderr()

    def resume(self, step: int) -> None:
        """The run goes on after `step`."""
        self._step = step

    def step(self, step: int, loss: float, top1_error: float, rate: float) -> None:
        """A step has finished. `top1_error` as a fraction; `rate`: the learning rate of the step."""
        work = self._clock.spent("training", "validating", "saving")
        self._step, self._rate = step, rate
        self._recent.append(_Step(self._clock.spent("training"), loss, top1_error))
        if self._first is None:
            self._first = step, work
        elif (done := step - self._first[0]) > 0:
            self._left = (work - self._first[1]) / done * (self._intervals.total_steps - step)

    def validating(self, share: float) -> None:
        """How much of the validation has been judged, from 0 to 1."""
        self._judged = share

    def row(self, row: Row) -> None:
        """A line for a row of the record. Those of training are for a log; a terminal has them live."""
        if row.split != "train":
            self._say_fitting(_validation_texts(row, row.split))
            if row.ema:
                self._say_fitting(_validation_texts(replace(row, **row.ema), f"{'ema':<{len(row.split)}}"))
        elif not self._on_terminal:
            self.say(
                f"epoch {row.epoch:7.2f}  step {row.step}  train loss {row.loss:.4f}  top-1 error {row.top1_error:.2f} %  "
                f"top-5 {row.top5_error:.2f} %  learning rate {row.learning_rate:.3g}  "
                f"{three_digits(row.images_per_second)} images/s  {'  '.join(self._times())}"
            )

    def say(self, message: str) -> None:
        """One line, above the live ones."""
        self._console.print(message, markup=False)

    def summary(self, lines: list[tuple[str, str]]) -> None:
        """Lines of (label, text). A long one is left to the terminal to wrap, so that it can be copied."""
        for label, text in lines:
            self._console.print(Text.assemble((f"{label:<12}", "bold"), text), soft_wrap=True)

    def _say_fitting(self, forms: list[str]) -> None:
        """Prints the first of the forms that fits, or the last one."""
        width = self._console.width if self._on_terminal else sys.maxsize
        self.say(_fitting(forms, width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        """The live lines."""
        yield self._way(options.max_width)
        yield Text(_fitting(self._numbers(), options.max_width), no_wrap=True, overflow="ellipsis")

    def _way(self, width: int) -> Table | Text:
        """How far the run is: phase, epoch, a bar where there is room, and times."""
        intervals, times = self._intervals, "  ".join(self._times())
        phase = self._clock.phase + (f" {100 * self._judged:3.0f} %" if self._clock.phase == "validating" else "")
        epochs = f"  epoch {intervals.epoch(self._step):.2f} of {number_text(round(intervals.total_epochs, 2))}"
        begin = Text.assemble((f"{phase:<16}", "bold"), epochs, no_wrap=True, overflow="ellipsis")
        room = width - len(begin) - len(times) - 4
        if room < BAR[0]:
            return begin.append(f"  {times}")
        bar = ProgressBar(
            intervals.total_steps, self._step, width=min(room, BAR[1]), complete_style="cyan", finished_style="cyan"
        )
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(begin, bar, Text(times))
        return line

    def _times(self) -> tuple[str, str]:
        left = "-:--:--" if self._left is None else duration(self._left)
        return f"elapsed {duration(self._clock.wall)}", f"left {left}"

    def _numbers(self) -> list[str]:
        """The second live line in full, and shortened for 80 columns."""
        step, total, recent = self._step, self._intervals.total_steps, self._recent
        if not recent or self._rate is None:
            return [f"step {step:,} of {total:,}"]
        count = len(recent)
        loss, error = sum(one.loss for one in recent) / count, 100 * sum(one.top1_error for one in recent) / count
        seconds, speed = recent[-1].seconds - recent[0].seconds, ""
        if seconds > 0:
            speed = f"  {three_digits((count - 1) * self._intervals.config.batch_size / seconds)} images/s"
        long = f"step {step:,} of {total:,}  mean of last {count} steps: loss {loss:.3f}, top-1 error {error:.1f} %"
        short = f"step {step:,}  last {count}: loss {loss:.3f}, error {error:.1f} %"
        return [f"{long}  learning rate {self._rate:.3g}{speed}", f"{short}  rate {self._rate:.3g}{speed}"]


def _fitting(forms: list[str], width: int) -> str:
    """The first of the forms that fits, or the last one."""
    return next((form for form in forms if len(form) <= width), forms[-1])


def _warn_on_stderr() -> None:
    """Has warnings go to what stderr is now: with live lines, to a stream that writes above them."""
    for handler in logging.getLogger("alexnet_jax").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def _validation_texts(row: Row, what: str) -> list[str]:
    """In full, and shortened for 80 columns."""
    where = f"step {row.step}  {what} loss"
    return [
        f"epoch {row.epoch:7.2f}  {where} {row.loss:.4f}  top-1 error {row.top1_error:.2f} %  top-5 {row.top5_error:.2f} %",
        f"epoch {row.epoch:.2f}  {where} {row.loss:.3f}  error {row.top1_error:.1f} %  top-5 {row.top5_error:.1f} %",
    ]
