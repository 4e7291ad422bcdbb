"""Writes down what a run does: the records, TensorBoard's events, Weights & Biases if wanted, and what a person sees."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from alexnet_jax.config import Config
from alexnet_jax.run.display import Display
from alexnet_jax.run.intervals import Progress
from alexnet_jax.run.metrics import EXAMPLES, METRICS, Row, reopened
from alexnet_jax.run.starts import StartLog
from alexnet_jax.run.tensorboard import Events
from alexnet_jax.run.wandb_run import WandbRun


class Recorder:
    """The records of one start of a run. Use it as a context manager."""

    def __init__(self, config: Config, display: Display, starts: StartLog, progress: Progress, *, silent: bool = False):
        """Drops the rows after `progress.step`, which are about to be written again, and its validation if that is due.

        Args:
            config: of the run.
            display: shows what is recorded.
            starts: gets a row for this start.
            progress: that the start resumes from.
            silent: write nothing, for all processes but the first.
        """
        workdir, resume_step = Path(config.workdir), progress.step
        self.silent, self._display, self._starts = silent, display, starts
        due = progress.validation_due
        self._file = reopened(workdir, METRICS, resume_step, silent=silent, validation_due=due)
        self._examples = reopened(workdir, EXAMPLES, resume_step, silent=silent) if config.log_examples else None
        starts.begin(resume_step)
        self._events = Events(workdir, resume_step, silent=silent)
        self._events.config(config, resume_step)
        self._wandb = WandbRun(config, self.say) if config.wandb and not silent else None
        display.resume(resume_step)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if self._examples is not None:
            self._examples.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.close(failed=kind is not None)

    def write(self, row: Row) -> None:
        """Appends a row to the record and to TensorBoard, and shows it."""
        self._file.write(json.dumps(row.as_dict()) + "\n")
        self._file.flush()
        self._starts.note(row.step)
        self._events.row(row)
        if self._wandb is not None:
            self._wandb.row(row)
        self._display.row(row)

    def examples(self, step: int, numbers: Int64[np.ndarray, "batch"]) -> None:
        """Notes which training examples a finished step has seen, if examples.jsonl is kept."""
        if self._examples is not None:
            self._examples.write(json.dumps({"step": step, "examples": numbers.tolist()}) + "\n")
            self._examples.flush()

    def saved(self, step: int) -> None:
        """A checkpoint is under way: a start that is killed now has come to this step."""
        self._starts.note(step)

    def picture(self, name: str, pixels: UInt8[np.ndarray, "height width 3"], step: int) -> None:
        """An image for TensorBoard."""
        self._events.picture(name, pixels, step)

    def progress(self, step: int, loss: float, top1_error: float, rate: float) -> None:
        """Shows a finished step. `top1_error` as a fraction."""
        self._display.step(step, loss, top1_error, rate)

    def validating(self, share: float) -> None:
        """Shows how much of a validation is done, from 0 to 1."""
        self._display.validating(share)

    def say(self, message: str) -> None:
        """One line for the person."""
        self._display.say(message)
