"""The record of a run: metrics.jsonl, examples.jsonl, TensorBoard events beside it, and a live line on a terminal."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from jaxtyping import Int64
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_input, replacing

METRICS, EXAMPLES = "metrics.jsonl", "examples.jsonl"
SPLITS = ("train", "validation", "test")
# Numbers that every row of metrics.jsonl has, and those of each layer in `magnitudes`.
NUMBERS = ("epoch", "loss", "top1_error", "top5_error", "learning_rate", "images_per_second")
MAGNITUDES = ("kernel", "bias", "kernel_update", "bias_update")


@dataclass(frozen=True)
class Row:
    """One record of metrics.jsonl. Errors in percent, means over `examples`. Validations have magnitudes."""

    step: int
    epoch: float
    split: Literal["train", "validation", "test"]
    loss: float
    top1_error: float
    top5_error: float
    learning_rate: float
    images_per_second: float
    examples: int
    magnitudes: Mapping[str, Mapping[str, float]] | None = None  # as of `param_stats.ParamStatsMeter`

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without what is not there."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class MetricSums:
    """Sums over the training steps since the last row; kept in the checkpoint so that a resumed run writes the same row."""

    steps: int = 0
    loss: float = 0.0
    top1_error: float = 0.0
    top5_error: float = 0.0

    def plus(self, loss: float, top1_error: float, top5_error: float) -> "MetricSums":
        """With one more step's means; errors as fractions."""
        return MetricSums(self.steps + 1, self.loss + loss, self.top1_error + top1_error, self.top5_error + top5_error)

    def means(self) -> tuple[float, float, float]:
        """Loss, and top-1 and top-5 error in percent."""
        return self.loss / self.steps, 100 * self.top1_error / self.steps, 100 * self.top5_error / self.steps

    def as_dict(self) -> dict[str, float]:
        """For a checkpoint's JSON, whose names are older."""
        return {"steps": self.steps, "loss": self.loss, "top1": self.top1_error, "top5": self.top5_error}

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> "MetricSums":
        """The reverse of `as_dict`."""
        return MetricSums(content["steps"], content["loss"], content["top1"], content["top5"])


class Stopwatch:
    """Seconds spent training, without validations and checkpoints."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap, pauses left out."""
        now = time.monotonic()
        elapsed, self._started = now - self._started, now
        return elapsed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside."""
        begin = time.monotonic()
        yield
        self._started += time.monotonic() - begin


class SpeedMeter:
    """Images per second of the steps since the last row; a resumed row may have begun before."""

    def __init__(self, batch_size: int):
        self._batch_size, self._steps, self._watch = batch_size, 0, Stopwatch()
        self.last = 0.0  # of the last row; 0 before the first
        self.paused = self._watch.paused

    def count(self) -> None:
        """One more step."""
        self._steps += 1

    def lap(self) -> float:
        """The speed since the last call."""
        self.last, self._steps = self._steps * self._batch_size / self._watch.lap(), 0
        return self.last


def read_rows(workdir: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The rows of a record; a last line that a crash has cut off is left out.

    Raises:
        UserError: another line is no row, or the file cannot be read.
    """
    return [row for _, row in _lines(workdir / name)]


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of a record as they stand, each with its row."""
    if not path.exists():
        return []
    check_input(str(path), path)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:  # no JSON, or no UTF-8
            row = None
        if _is_row(row, path.name):
            found.append((line.rstrip(b"\n") + b"\n", row))
        elif number < len(lines) or line.endswith(b"\n"):
            raise UserError(f"{path}: line {number} is no row of a record: mend or delete it, or move the file away")
    return found


def _is_row(row: Any, name: str) -> bool:
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return False
    if name == EXAMPLES:
        return isinstance(row.get("examples"), list)
    layers = row.get("magnitudes", {})
    if not isinstance(layers, dict) or not all(_has_numbers(layer, MAGNITUDES) for layer in layers.values()):
        return False
    return row.get("split") in SPLITS and _has_numbers(row, NUMBERS)


def _has_numbers(content: Any, names: tuple[str, ...]) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(name), int | float) for name in names)


def check_records(workdir: Path) -> None:
    """Raises UserError if a record of the run cannot be continued. Nothing is changed."""
    for name in (METRICS, EXAMPLES):
        _lines(workdir / name)


def _reopened(workdir: Path, name: str, resume_step: int, silent: bool, validation_due: bool = False) -> TextIO:
    """A record to append to, without the rows that will be written again. The others stay as they are, byte for byte."""
    if silent:
        return open(os.devnull, "a", encoding="utf-8")
    path = workdir / name
    due = (resume_step, "validation") if validation_due else None
    kept = [line for line, row in _lines(path) if row["step"] <= resume_step and (row["step"], row.get("split")) != due]
    with replacing(path, "wb") as file:
        file.writelines(kept)
    return path.open("a", encoding="utf-8")


@contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports PyTorch where it is installed, for two seconds, and needs it for nothing that is used here."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]  # as if it were not installed
    try:
        yield
    finally:
        del sys.modules["torch"]


class Recorder:
    """Writes the record of a run. Use it as a context manager."""

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int,
        total_steps: int,
        validation_due: bool = False,
        silent: bool = False,
        log_examples: bool = False,
    ):
        """Drops the rows after `resume_step`, which are about to be written again, and its validation if that is due.

        `silent`: write and show nothing, for all processes but the first. `log_examples`: keep examples.jsonl too.
        """
        self._file = _reopened(workdir, METRICS, resume_step, silent, validation_due)
        self._examples = _reopened(workdir, EXAMPLES, resume_step, silent) if log_examples else None
        with _without_torch():
            from tensorboardX import SummaryWriter
        events = str(workdir / "tensorboard")
        start = f".{time.time_ns()}"  # two starts within a second would write one file
        self._events = SummaryWriter(events, purge_step=resume_step + 1, write_to_disk=not silent, filename_suffix=start)
        self.console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty(), quiet=silent)
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("train", total=total_steps, completed=resume_step, status="compiling")

    def __enter__(self) -> "Recorder":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._file.close()
        if self._examples is not None:
            self._examples.close()
        self._events.close()

    def write(self, row: Row) -> None:
        """Appends a row to the record and to TensorBoard; a validation is also printed."""
        self._file.write(json.dumps(row.as_dict()) + "\n")
        self._file.flush()
        for name in ("loss", "top1_error", "top5_error", "images_per_second"):
            self._events.add_scalar(f"{row.split}/{name}", getattr(row, name), row.step)
        for layer, values in (row.magnitudes or {}).items():
            for name, value in values.items():
                self._events.add_scalar(f"magnitudes/{layer}/{name}", value, row.step)
        if row.split == "train":
            self._events.add_scalar("learning_rate", row.learning_rate, row.step)
        else:
            self.say(
                f"epoch {row.epoch:7.2f}  step {row.step}  {row.split} loss {row.loss:.4f}  "
                f"top-1 error {row.top1_error:.2f} %  top-5 {row.top5_error:.2f} %"
            )

    def examples(self, step: int, numbers: Int64[np.ndarray, "batch"]) -> None:
        """Notes which training examples a finished step has seen, if examples.jsonl is kept."""
        if self._examples is not None:
            self._examples.write(json.dumps({"step": step, "examples": numbers.tolist()}) + "\n")
            self._examples.flush()

    def progress(self, step: int, loss: float, top1: float, images_per_second: float) -> None:
        """Moves the live line on a terminal."""
        speed = f"  {images_per_second:,.0f} images/s" if images_per_second else ""
        status = f"loss {loss:.3f}  error {100 * top1:.1f} %{speed}"
        self._progress.update(self._task, completed=step, status=status)

    def say(self, message: str) -> None:
        """One line above the live one."""
        self.console.print(message, markup=False)
