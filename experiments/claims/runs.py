"""The runs of an experiment: trained, scored and kept."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet_jax.config import from_words
from alexnet_jax.run.changes import changed_flags
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively, read_json, write_json
from alexnet_jax.system.gpus import share_of_gpus
from alexnet_jax.system.signals import RESUME_STATUS, Interrupted

ROOT = Path(__file__).parents[2]
PROVENANCE = ("versions", "python", "commit", "devices")


@dataclass(frozen=True)
class Run:
    """A run to train and to score."""

    flagfile: Path
    workdir: Path
    flags: tuple[str, ...]  # besides those of the file
    views: int = 1  # to score it with
    split: str = "test"  # to score it on
    first: "Run | None" = None  # trained before, not scored; this one goes on from it

    @property
    def words(self) -> list[str]:
        """The command line that trains it."""
        init = [f"--init={self.first.workdir}"] if self.first else []
        return [f"--flagfile={self.flagfile}", f"--workdir={self.workdir}", *self.flags, *init]


def provenance_of(workdirs: Iterable[Path]) -> dict[str, Any]:
    """Versions, commit and devices of the last run. `also`: those of earlier ones, where they are others."""
    found: list[dict[str, Any]] = []
    for workdir in workdirs:
        config = read_json(workdir / "config.json")
        about = {entry: config[entry] for entry in PROVENANCE}
        found = [*(other for other in found if other != about), about]
    *earlier, last = found
    return {**last, "also": earlier} if earlier else last


def scores(runs: Sequence[Run], jobs: int) -> Iterator[dict[str, Any]]:
    """The score of every run, in order. `jobs` of them are made at a time, each with its share of this machine's GPUs.

    Raises:
        Interrupted: one was stopped; those in progress are waited for, and no other begins.
        UserError: one failed; likewise.
    """
    if jobs == 1:
        yield from map(train_and_score, runs)
        return
    slots, stopping = queue.SimpleQueue[int](), threading.Event()
    for job in range(jobs):
        slots.put(job)

    def score(run: Run) -> dict[str, Any]:
        job = slots.get()
        try:
            if stopping.is_set():
                raise Interrupted("another run was stopped")
            return train_and_score(run, share_of_gpus(job, jobs))
        except BaseException:
            stopping.set()
            raise
        finally:
            slots.put(job)

    with ThreadPoolExecutor(jobs, thread_name_prefix="run") as pool:
        try:
            yield from pool.map(score, runs)
        finally:
            stopping.set()


def call(module: str, *words: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs an entry point and returns its standard output; its progress goes to this terminal.

    Args:
        module: of the package.
        words: its command line.
        environment: variables that it has besides those of this process.

    Raises:
        Interrupted: it was stopped and can be resumed.
        UserError: it failed.
    """
    command = [sys.executable, "-m", f"alexnet_jax.{module}", *words]
    variables = os.environ | dict(environment or {})
    done = subprocess.run(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == RESUME_STATUS:
        raise Interrupted(f"{module} was stopped: rerun the same command to resume (exit status {RESUME_STATUS})")
    if done.returncode:
        raise UserError(f"'{' '.join(command[1:])}' ended with status {done.returncode}, see above")
    return done.stdout


def train_and_score(run: Run, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The score of a run. Trains and evaluates only what is missing, in one process at a time for each folder.

    Raises:
        UserError: the folder holds a run of other flags, or a command fails.
    """
    score = run.workdir / f"{run.split}_{run.views}_views.json"
    with exclusively(run.workdir.parent / f"{run.workdir.name}.lock", wait=True):
        if not score.exists():
            print(f"{run.flagfile.stem}, {run.workdir.name}, {run.views} views", file=sys.stderr, flush=True)
            for part in (run.first, run):
                if part:
                    call("train", *part.words, environment=environment)
            about = (f"--workdir={run.workdir}", f"--views={run.views}", f"--split={run.split}")
            write_json(score, json.loads(call("evaluate", *about, environment=environment).splitlines()[-1]))
    changes = changed_flags(read_config(str(run.workdir)), from_words(run.words))
    if changes:
        raise UserError(f"{run.workdir} is a run of other flags than {run.flagfile}: {'; '.join(changes)}. Use a new --out")
    return read_json(score)
