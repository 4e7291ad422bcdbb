"""One trial of a sweep: a trainer in its own process, watched through its metrics.jsonl."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from alexnet_jax.run.metrics import read_rows
from alexnet_jax.sweep.space import as_flags
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


def trial_folder(sweep: Path, number: int) -> Path:
    """The workdir of a trial. Beside it are its .log, the output of all its starts, and its .lock."""
    return sweep / "trials" / f"{number:04d}"


def ranked(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials, best first; of equal ones the first."""
    complete = (trial for trial in trials if trial.state is TrialState.COMPLETE)
    return sorted(complete, key=lambda trial: (trial.value, trial.number))


def validations(workdir: Path) -> list[float]:
    """Top-1 validation errors of a run so far, in percent."""
    return [row["top1_error"] for row in read_rows(workdir) if row["split"] == "validation"]


def run_trial(
    trial: optuna.Trial, folder: Path, values: dict[str, Any], interruption: Interruption, environment: dict[str, str]
) -> TrialState:
    """Trains to the end, or until the study prunes the trial or the sweep is interrupted. Resumes the run if there is one.

    Args:
        trial: gets each validation error, in percent, as a report: the n-th validation is step n.
        folder: of the trial, locked.
        values: flags of the trainer, workdir included.
        interruption: of the sweep.
        environment: added to the trainer's.

    Returns:
        COMPLETE, PRUNED, FAIL, or RUNNING if the sweep was interrupted.
    """
    reported = len(trial.study.trials[trial.number].intermediate_values)
    # The trainer of a killed sweep may still be saving in this folder.
    deadline = time.monotonic() + GRACE_SECONDS
    path = folder.with_suffix(".log")
    while True:
        with path.open("a") as log:
            log_start = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-c", START, *as_flags(values)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | environment,
            )  # fmt: skip
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            reported, prune = _report(trial, folder, reported)
            if prune or interruption.requested:
                process.terminate()
                process.wait()
                return TrialState.PRUNED if prune else TrialState.RUNNING
        _report(trial, folder, reported)
        if process.returncode == 0:
            return TrialState.COMPLETE
        if interruption.requested:
            return TrialState.RUNNING
        in_use = process.returncode == IN_USE_STATUS and time.monotonic() < deadline
        if process.returncode != RESUME_STATUS and not in_use:
            output = path.read_text(errors="replace")[log_start:]
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
