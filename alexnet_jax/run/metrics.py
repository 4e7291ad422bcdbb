"""The records of a run, files with one JSON object a line: metrics.jsonl, examples.jsonl and starts.jsonl."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_input, replacing

METRICS, EXAMPLES, STARTS = RECORDS = "metrics.jsonl", "examples.jsonl", "starts.jsonl"
SPLITS = ("train", "validation", "test")
# Numbers that every row of metrics.jsonl has, those that rows of earlier versions lack, and those of parts of a row.
NUMBERS = ("epoch", "loss", "top1_error", "top5_error", "learning_rate", "images_per_second")
TIMES = ("time", "seconds")
OF_EMA = ("loss", "top1_error", "top5_error")  # numbers of the averaged weights in the row of a validation
MAGNITUDES = ("kernel", "bias", "kernel_update", "bias_update")
OF_A_START = ("last_step", "time", "wall_seconds", "seconds")  # numbers that every row of starts.jsonl has


@dataclass(frozen=True)
class Row:
    """One record of metrics.jsonl. Errors in percent, means over `examples`. Validations have magnitudes, and with --ema
    those of the averaged weights in `ema`.

    time: of the clock on the wall, in seconds since 1970, UTC.
    seconds: spent in training steps since step 0, over all starts (`clock.Clock.training`).
    """

    step: int
    epoch: float
    split: Literal["train", "validation", "test"]
    loss: float
    top1_error: float
    top5_error: float
    learning_rate: float
    images_per_second: float
    examples: int
    time: float
    seconds: float
    magnitudes: Mapping[str, Mapping[str, float]] | None = None  # as of `param_stats.ParamStatsMeter`
    ema: Mapping[str, float] | None = None  # OF_EMA

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


def read_rows(workdir: Path, name: str = METRICS) -> list[dict[str, Any]]:
    """The rows of a record; a last line that a crash has cut off is left out.

    Raises:
        UserError: another line is no row, or the file cannot be read.
    """
    return [row for _, row in _lines(workdir / name)]


def reproducible_rows(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without times and speeds, which no two runs share. Raises as `read_rows`."""
    changing = {*TIMES, "images_per_second"}
    return [{name: value for name, value in row.items() if name not in changing} for row in read_rows(workdir)]


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
    if name == STARTS:
        return _has_numbers(row, OF_A_START)
    layers = row.get("magnitudes", {})
    if not isinstance(layers, dict) or not all(_has_numbers(layer, MAGNITUDES) for layer in layers.values()):
        return False
    if "ema" in row and not _has_numbers(row["ema"], OF_EMA):
        return False
    times = tuple(name for name in TIMES if name in row)
    return row.get("split") in SPLITS and _has_numbers(row, NUMBERS + times)


def _has_numbers(content: Any, names: tuple[str, ...]) -> bool:
    return isinstance(content, dict) and all(isinstance(content.get(name), int | float) for name in names)


def check_records(workdir: Path) -> None:
    """Raises UserError if a record of the run cannot be continued. Nothing is changed."""
    for name in RECORDS:
        _lines(workdir / name)


def reopened(
    workdir: Path, name: str, resume_step: int | None = None, *, silent: bool = False, validation_due: bool = False
) -> TextIO:
    """A record to append to, without the rows that will be written again. The others stay as they are, byte for byte.

    Args:
        workdir: folder of the run.
        name: of the record.
        resume_step: rows of later steps are dropped; None keeps all.
        silent: write nothing.
        validation_due: drop the validation of `resume_step` too.
    """
    if silent:
        return open(os.devnull, "a", encoding="utf-8")
    path = workdir / name
    due = (resume_step, "validation") if validation_due else None
    last = math.inf if resume_step is None else resume_step
    kept = [line for line, row in _lines(path) if row["step"] <= last and (row["step"], row.get("split")) != due]
    with replacing(path, "wb") as file:
        file.writelines(kept)
    return path.open("a", encoding="utf-8")
