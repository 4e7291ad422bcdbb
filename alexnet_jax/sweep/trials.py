"""One trial of a sweep: a trainer in its own process, watched through its metrics.jsonl."""

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.trial import TrialState

from alexnet_jax.run.metrics import read_rows
from alexnet_jax.sweep.space import as_flags
from alexnet_jax.system.files import exclusively
from alexnet_jax.system.signals import IN_USE_STATUS, RESUME_STATUS, Interruption

POLL_SECONDS = 0.5
GRACE_SECONDS = 120  # a trainer that compiles stops only afterwards
# On Linux a trainer gets SIGTERM when its sweep dies. Then it saves and stops.
START = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
os.execv(sys.executable, [sys.executable, "-m", "alexnet_jax.train", *sys.argv[1:]])
"""


@dataclass(frozen=True)
class TrialFolder:
    """The workdir of a trial. Its log and its lock are beside it."""

    path: Path

    @staticmethod
    def of(sweep: Path, number: int) -> "TrialFolder":
        """The folder of a trial in the folder of its sweep."""
        return TrialFolder(sweep / "trials" / f"{number:04d}")

    @property
    def log(self) -> Path:
        """The output of the trainer, over all its starts."""
        return self.path.with_suffix(".log")

    def claimed(self) -> AbstractContextManager[IO[str] | None]:
        """Locks the trial; yields None if another job has it."""
        return exclusively(self.path.with_suffix(".lock"), wait=False)


def validations(workdir: Path) -> list[float]:
    """Top-1 validation errors of a run so far, in percent."""
    return [row["top1_error"] for row in read_rows(workdir) if row["split"] == "validation"]


def run_trial(
    trial: optuna.Trial, folder: TrialFolder, values: dict[str, Any], interruption: Interruption, environment: dict[str, str]
) -> TrialState:
    """Trains to the end, or until the study prunes the trial or the sweep is interrupted. Resumes the run if there is one.

    Args:
        trial: gets each validation error, in percent, as a report: the n-th validation is step n.
        folder: of the trial, claimed.
        values: fields of the trial's Config, workdir included.
        interruption: of the sweep.
        environment: variables to add to the trainer's environment.

    Returns:
        COMPLETE, PRUNED, FAIL, or RUNNING if the sweep was interrupted.
    """
    reported = len(trial.study.trials[trial.number].intermediate_values)
    # The trainer of a killed sweep may still be saving in this folder.
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        with folder.log.open("a") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-c", START, *as_flags(values)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | environment,
            )  # fmt: skip
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            reported, prune = _report(trial, folder.path, reported)
            if prune or interruption.requested:
                process.terminate()
                process.wait()
                return TrialState.PRUNED if prune else TrialState.RUNNING
        _report(trial, folder.path, reported)
        if process.returncode == 0:
            return TrialState.COMPLETE
        if interruption.requested:
            return TrialState.RUNNING
        in_use = process.returncode == IN_USE_STATUS and time.monotonic() < deadline
        if process.returncode != RESUME_STATUS and not in_use:
            output = folder.log.read_text(errors="replace")[log_start:]
            last = (output.strip().splitlines() or ["no output"])[-1]
            trial.set_user_attr("error", f"status {process.returncode}: {last[:300]}")
            return TrialState.FAIL
        time.sleep(POLL_SECONDS)


def _report(trial: optuna.Trial, workdir: Path, reported: int) -> tuple[int, bool]:
    """Reports new validations to the study. Returns how many it now has, and whether it prunes the trial."""
    errors = validations(workdir)
    for step, error in enumerate(errors[reported:], reported + 1):
        trial.report(error, step)
        if trial.should_prune():
            return step, True
    return max(reported, len(errors)), False
