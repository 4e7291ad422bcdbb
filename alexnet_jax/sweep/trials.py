"""One trial of a sweep: a trainer in a process of its own, watched through its metrics.jsonl."""

import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna

from alexnet_jax.run.metrics import read_rows
from alexnet_jax.sweep.space import as_flags
from alexnet_jax.system.files import exclusively
from alexnet_jax.system.signals import RESUME_STATUS, Interruption

POLL_SECONDS = 0.5
GRACE_SECONDS = 120  # a trainer that is compiling sees a signal only afterwards
# On Linux a trainer gets SIGTERM when its sweep is gone, however that died, so that it saves and stops.
START = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
os.execv(sys.executable, [sys.executable, "-m", "alexnet_jax.train", *sys.argv[1:]])
"""
Outcome = Literal["complete", "pruned", "failed", "interrupted"]


@dataclass(frozen=True)
class Place:
    """Where a trial lives: workdir, with its log and its lock beside it."""

    folder: Path

    @staticmethod
    def of(sweep: Path, number: int) -> "Place":
        """Of the trial with this number."""
        return Place(sweep / "trials" / f"{number:04d}")

    @property
    def log(self) -> Path:
        """What the trainer says, over all its starts."""
        return self.folder.with_suffix(".log")

    def claimed(self) -> AbstractContextManager[bool]:
        """Gives whether this sweep has the trial to itself."""
        return exclusively(self.folder.with_suffix(".lock"), wait=False)


def validations(folder: Path) -> list[float]:
    """Top-1 validation errors of a run so far, in percent."""
    return [row["top1_error"] for row in read_rows(folder) if row["split"] == "validation"]


def run_trial(
    trial: optuna.Trial, place: Place, values: dict[str, Any], interruption: Interruption, environment: dict[str, str]
) -> Outcome:
    """Trains until the end, until the study prunes it, or until the sweep is interrupted; a run that is there is resumed.

    Args:
        trial: gets each validation error, in percent, as a report: the n-th validation is step n.
        place: of the trial, claimed.
        values: fields of the trial's Config, workdir included.
        interruption: of the sweep.
        environment: variables of the trainer's own.
    """
    reported = len(trial.study.trials[trial.number].intermediate_values)
    # A trainer that has outlived its sweep may be saving still.
    deadline = time.monotonic() + GRACE_SECONDS
    while True:
        with place.log.open("a") as log:
            begun = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-c", START, *as_flags(values)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | environment,
            )  # fmt: skip
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            reported, prune = _report(trial, place.folder, reported)
            if prune or interruption.requested:
                process.terminate()
                process.wait()
                return "pruned" if prune else "interrupted"
        _report(trial, place.folder, reported)
        if process.returncode == 0:
            return "complete"
        if interruption.requested:
            return "interrupted"
        said = place.log.read_text(errors="replace")[begun:]
        in_use = "is in use by process" in said and time.monotonic() < deadline
        if process.returncode != RESUME_STATUS and not in_use:
            last = (said.strip().splitlines() or ["nothing said"])[-1]
            trial.set_user_attr("error", f"status {process.returncode}: {last[:300]}")
            return "failed"
        time.sleep(POLL_SECONDS)


def _report(trial: optuna.Trial, folder: Path, reported: int) -> tuple[int, bool]:
    """Tells the study what is new; how many validations it knows, and whether it wants the trial to end."""
    errors = validations(folder)
    for step, error in enumerate(errors[reported:], reported + 1):
        trial.report(error, step)
        if trial.should_prune():
            return step, True
    return max(reported, len(errors)), False
