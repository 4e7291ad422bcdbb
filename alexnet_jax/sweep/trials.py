"""One trial of a sweep: a trainer in its own process, watched through its metrics.jsonl."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax.run.metrics import read_rows
from alexnet_jax.sweep.space import as_flags
from alexnet_jax.system.cli import EXTRA
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.signals import DIVERGED_STATUS, IN_USE_STATUS, RESUME_STATUS

POLL_SECONDS = 0.5
GRACE_SECONDS = 120  # a trainer that compiles stops only afterwards
WORST = 100.0  # percent: a sampler must hear of a diverged trial, and nothing is worse
# On Linux a trainer gets SIGTERM when its sweep dies. Then it saves and stops.
START = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
os.execv(sys.executable, [sys.executable, "-m", "alexnet_jax.train", *sys.argv[1:]])
"""


def trial_folder(sweep: Path, number: int) -> Path:
    """The workdir of a trial. Beside it are its .log, the output of all its starts, and its .lock."""
    return sweep / "trials" / f"{number:04d}"


def ranked(trials: Iterable[FrozenTrial], confirmed: Mapping[int, Sequence[float]] | None = None) -> list[FrozenTrial]:
    """The complete trials that have not diverged, best first; of equal ones the first.

    `confirmed`: errors with fresh seeds by number of the trial. Trials that have some come first, by their mean.
    """

    def key(trial: FrozenTrial) -> tuple[bool, float | None, int]:
        errors = (confirmed or {}).get(trial.number)
        return errors is None, fmean(errors) if errors else trial.value, trial.number

    return sorted((trial for trial in trials if state_name(trial) == "complete"), key=key)


def state_name(trial: FrozenTrial) -> str:
    """A trial's state for a reader. Optuna has no state for a diverged one: it is complete and has the worst value."""
    return "diverged" if "diverged" in trial.user_attrs else trial.state.name.lower()


class Validation(NamedTuple):
    """Top-1 error in percent on the validation split, and the step after which it was measured."""

    error: float
    step: int


def validations(workdir: Path) -> list[Validation]:
    """Those of a run so far."""
    return [Validation(row["top1_error"], row["step"]) for row in read_rows(workdir) if row["split"] == "validation"]


def final_value(trial: optuna.Trial, folder: Path) -> float:
    """What the study is told of a complete trial: its lowest validation error, whose step becomes the attribute `best_step`.

    The training has kept the checkpoint of that step. Raises UserError if there was no validation.
    """
    if "diverged" in trial.user_attrs:
        return WORST
    found = validations(folder)
    if not found:
        raise UserError("no validation in metrics.jsonl")
    best = min(found)
    trial.set_user_attr("best_step", best.step)
    return best.error


class _Watch:
    """Reports validations to the study of a trial. A call tells whether its trainer should stop."""

    def __init__(self, trial: optuna.Trial, folder: Path, stopping: Callable[[], bool]):
        self._trial, self._folder, self._stopping = trial, folder, stopping
        self.reported = len(trial.study.trials[trial.number].intermediate_values)
        self.pruned = False

    def __call__(self) -> bool:
        found = validations(self._folder)[self.reported :]
        for step, validation in enumerate(found, self.reported + 1):
            self._trial.report(validation.error, step)
            self.reported = step
            if self._trial.should_prune():
                self.pruned = True
                break
        return self.pruned or self._stopping()


def run_trial(
    trial: optuna.Trial,
    folder: Path,
    values: dict[str, Any],
    stopping: Callable[[], bool],
    environment: dict[str, str],
    retries: int,
) -> TrialState:
    """Trains to the end, or until the study prunes the trial or the sweep stops. Resumes the run if there is one.

    Args:
        trial: gets each validation error, in percent, as a report: the n-th validation is step n. Its attributes get
            `error`, why it failed, or `diverged`, the trainer's message.
        folder: of the trial, locked.
        values: flags of the trainer, workdir included.
        stopping: whether the sweep stops.
        environment: added to the trainer's.
        retries: new starts, without a new validation between them, of a trainer that was killed from outside.

    Returns:
        COMPLETE, which includes diverged, PRUNED, FAIL, or RUNNING if the sweep stops.
    """
    watch = _Watch(trial, folder, stopping)
    # The trainer of a killed sweep may still be saving in this folder.
    deadline = time.monotonic() + GRACE_SECONDS
    left = retries
    while True:
        before = watch.reported
        status, said = _train(folder, values, environment, watch)
        if status == 0:
            return TrialState.COMPLETE
        if status == DIVERGED_STATUS:
            trial.set_user_attr("diverged", said.removeprefix("error: "))
            return TrialState.COMPLETE
        if watch.pruned:
            return TrialState.PRUNED
        if stopping():
            return TrialState.RUNNING
        if watch.reported > before:
            left = retries
        if status != IN_USE_STATUS or time.monotonic() >= deadline:
            if not _was_killed(status) or not left:
                trial.set_user_attr("error", f"{_cause(status)}: {said[:300]}")
                return TrialState.FAIL
            left -= 1
        time.sleep(POLL_SECONDS)


def _train(folder: Path, values: dict[str, Any], environment: dict[str, str], watch: _Watch) -> tuple[int, str]:
    """One start of the trainer. Returns its exit status and what it said last, an error line if there is one."""
    path = folder.with_suffix(".log")
    # The values have the flags of EXTRA already. Added again they would replace those that the trial is to try.
    inherited = {name: value for name, value in os.environ.items() if name != EXTRA}
    with path.open("a") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-c", START, *as_flags(values)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=inherited | environment,
            process_group=0,  # Ctrl-C reaches the sweep alone: a second signal would end the trainer before it has saved
        )  # fmt: skip
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if watch():
                break
    finally:
        process.terminate()  # nothing, if it has ended
        status = process.wait()
    watch()
    lines = path.read_bytes()[log_start:].decode(errors="replace").strip().splitlines() or ["no output"]
    return status, next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])


def _was_killed(status: int) -> bool:
    """Whether something else ended the trainer: a signal, also one that a shell or a container reports."""
    return status < 0 or status > 128 or status == RESUME_STATUS


def _cause(status: int) -> str:
    return f"killed by signal {-status} ({signal.strsignal(-status)})" if status < 0 else f"status {status}"
