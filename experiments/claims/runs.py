"""The runs of an experiment: trained, scored and kept."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alexnet_jax.config import changed_flags, from_words
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import read_json, write_json
from alexnet_jax.system.signals import RESUME_STATUS, Interrupted

ROOT = Path(__file__).parents[2]
PROVENANCE = ("versions", "python", "commit", "devices")


def call(module: str, *words: str) -> str:
    """Runs an entry point and returns its standard output; its progress goes to this terminal.

    Raises:
        Interrupted: it was stopped and can be resumed.
        UserError: it failed.
    """
    command = [sys.executable, "-m", f"alexnet_jax.{module}", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == RESUME_STATUS:
        raise Interrupted(f"{module} was stopped: rerun the same command to resume (exit status {RESUME_STATUS})")
    if done.returncode:
        raise UserError(f"'{' '.join(command[1:])}' ended with status {done.returncode}, see above")
    return done.stdout


def train_and_score(flagfile: Path, workdir: Path, flags_of_run: Sequence[str], views: int) -> dict[str, Any]:
    """The score of a run on test. Trains and evaluates only what is missing.

    Raises:
        UserError: the folder holds a run of other flags, or a command fails.
    """
    words = [f"--flagfile={flagfile}", f"--workdir={workdir}", *flags_of_run]
    score = workdir / f"test_{views}_views.json"
    if not score.exists():
        print(f"{flagfile.stem}, {workdir.name}, {views} views", file=sys.stderr, flush=True)
        call("train", *words)
        output = call("evaluate", f"--workdir={workdir}", f"--views={views}", "--split=test")
        write_json(score, json.loads(output.splitlines()[-1]))
    changes = changed_flags(read_config(str(workdir)), from_words(words))
    if changes:
        raise UserError(f"{workdir} is a run of other flags than {flagfile}: {'; '.join(changes)}. Use a new --out")
    return read_json(score)
