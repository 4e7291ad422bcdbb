"""Kills a run again and again, and compares what is left with the run that nobody killed.

    python -m experiments.soak --out=soak --kills=50

Every run is started, and killed at a random moment by SIGKILL or SIGTERM, some of them while a checkpoint is being written,
until it has come to its end. Even runs stay on one mesh, and must end with the same bits, every row of metrics.jsonl
included. Odd runs change the mesh at every start, and must end within 1e-5 of every parameter and (relative) every loss.
In all of them examples.jsonl must tell that no example was lost or seen twice. Prints one JSON object; progress on stderr.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from alexnet_jax.mesh import make_mesh
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.workdir import provenance, read_config
from alexnet_jax.step import TrainState, make_model
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.signals import RESUME_STATUS
from alexnet_jax.values import MeshShape

STEPS, EXAMPLES = 30, 675
# The rate is so small that rounding, which differs between meshes, does not grow: at 0.001 uninterrupted runs on two meshes
# are 7e-5 of a loss apart after 30 steps.
SETTINGS = {
    "dataset": "groceries", "image_size": 112, "crop_size": 63, "batch_size": 32, "bias_init": 0.1, "learning_rate": 0.0001,
    "schedule": "constant", "steps": STEPS, "log_every": 1, "checkpoint_every": 2, "eval_every": 7, "log_examples": True,
}  # fmt: skip
MESHES = {"1x1": 1, "1x2": 2, "2x1": 2, "2x2": 4}
TOLERANCE = 1e-5
STARTUP_SECONDS = 120


def start(workdir: Path, data_dir: str, mesh: str) -> subprocess.Popen[str]:
    """The trainer, its output in workdir's log."""
    settings = SETTINGS | {"data_dir": data_dir, "workdir": workdir, "mesh": mesh, "host_devices": MESHES[mesh]}
    command = [sys.executable, "-m", "alexnet_jax.train", *(f"--{name}={value}" for name, value in settings.items())]
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True)


def last_step(workdir: Path) -> int:
    """Of the rows written so far."""
    return max((row["step"] for row in read_rows(workdir)), default=0)


def wait_for_moment(process: subprocess.Popen[str], workdir: Path, in_save: bool, rng: random.Random) -> bool:
    """Until a save has begun, or for a random while after a new row; False if the run ends before."""
    begun, deadline = last_step(workdir), time.monotonic() + STARTUP_SECONDS
    pause = rng.uniform(0, 1.5)
    while process.poll() is None and time.monotonic() < deadline:
        if in_save and any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
            return True
        if not in_save and last_step(workdir) > begun:
            time.sleep(pause)
            return process.poll() is None
        time.sleep(0.002)
    return False


def torment(workdir: Path, data_dir: str, moving: bool, rng: random.Random, kills: list[dict[str, Any]]) -> int:
    """Starts and kills one run up to its end; returns the number of starts. Raises UserError if it ends otherwise."""
    starts = 0
    while True:
        mesh = rng.choice(list(MESHES)) if moving else "1x2"
        process, starts = start(workdir, data_dir, mesh), starts + 1
        in_save, number = rng.random() < 0.4, rng.choice([signal.SIGKILL, signal.SIGTERM])
        if in_save:
            number = signal.SIGKILL
        if wait_for_moment(process, workdir, in_save, rng):
            process.send_signal(number)
            process.wait()
            kills.append({"run": workdir.name, "signal": number.name, "in_save": in_save, "step": last_step(workdir)})
            print(f"{len(kills)} kills: {kills[-1]}", file=sys.stderr, flush=True)
        status = process.wait()
        if status == 0:
            return starts
        if status not in (RESUME_STATUS, -signal.SIGKILL, -signal.SIGTERM):  # the last: before or after training
            raise UserError(f"{workdir}: the trainer ended with status {status}: {workdir.with_suffix('.log')}")


def state_of(workdir: Path) -> TrainState:
    """What the last checkpoint holds."""
    config = replace(read_config(str(workdir)), mesh=MeshShape(1, 1))
    model = make_model(config, 14, make_mesh(MeshShape(1, 1), 2, config.batch_size))
    with Checkpoints(workdir, keep=1, writable=False) as checkpoints:
        restored = checkpoints.restore_latest(model)
    if restored is None or restored[1]["step"] != STEPS:
        raise UserError(f"{workdir} has no checkpoint of step {STEPS}")
    return restored[0]


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its speeds."""
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in read_rows(workdir)]


def examples_of(workdir: Path) -> list[dict[str, Any]]:
    """Which examples each step has seen. Raises UserError if a step is missing, or an example came twice in an epoch."""
    rows = read_rows(workdir, name="examples.jsonl")
    seen = np.concatenate([row["examples"] for row in rows])
    epochs = [seen[start : start + EXAMPLES] for start in range(0, len(seen), EXAMPLES)]
    once = all(len(np.unique(epoch)) == len(epoch) for epoch in epochs)
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)) or not once:
        raise UserError(f"{workdir}: examples were lost or repeated: examples.jsonl")
    return rows


def difference(workdir: Path, whole: Path) -> dict[str, Any]:
    """How far a run is from the one that nobody killed."""
    mine, other = state_of(workdir), state_of(whole)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), mine, other)
    apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), mine.params, other.params)
    losses = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(rows_of(workdir), rows_of(whole), strict=True)]
    return {
        "same_bits": all(jax.tree.leaves(same)), "same_rows": rows_of(workdir) == rows_of(whole),
        "largest_difference_of_a_parameter": max(jax.tree.leaves(apart)),
        "largest_relative_difference_of_a_loss": max(losses),
        "rows": len(rows_of(workdir)), "same_examples": examples_of(workdir) == examples_of(whole),
    }  # fmt: skip


def equal(run: dict[str, Any]) -> bool:
    """Whether a run has the uninterrupted one's bits."""
    return run["same_bits"] and run["same_rows"]


def near(run: dict[str, Any]) -> bool:
    """Whether it has its numbers but for rounding."""
    apart = (run["largest_difference_of_a_parameter"], run["largest_relative_difference_of_a_loss"])
    return max(apart) < TOLERANCE


def main(options: flags.FlagValues) -> None:
    """The command line."""
    runtime.start()
    out, rng, kills, runs = Path(options.out), random.Random(options.seed), [], []
    out.mkdir(parents=True, exist_ok=True)
    whole = out / "whole"
    if start(whole, options.data_dir, "1x2").wait():
        raise UserError(f"the uninterrupted run failed: {whole.with_suffix('.log')}")
    while len(kills) < options.kills:
        workdir = out / f"run{len(runs)}"
        starts = torment(workdir, options.data_dir, len(runs) % 2 == 1, rng, kills)
        runs.append({"meshes": "changing" if len(runs) % 2 else "1x2", "starts": starts, **difference(workdir, whole)})
        print(f"{workdir.name}: {runs[-1]}", file=sys.stderr, flush=True)
        shutil.rmtree(workdir)
    same = [run["same_examples"] and (equal(run) if run["meshes"] == "1x2" else near(run)) for run in runs]
    counts = {
        "kills": len(kills), "sigkill": sum(kill["signal"] == "SIGKILL" for kill in kills),
        "in_a_save": sum(kill["in_save"] for kill in kills), "runs": len(runs), "runs_that_differ": same.count(False),
    }  # fmt: skip
    print(json.dumps({**counts, "each_run": runs, "each_kill": kills, "seed": options.seed, **provenance()}))


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command."""
    flags.DEFINE_string("out", "soak", "folder of the runs; must be new", flag_values=options)
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)
    flags.DEFINE_integer("kills", 50, "stop after the run in which so many were reached", lower_bound=1, flag_values=options)
    flags.DEFINE_integer("seed", 0, "of the moments, signals and meshes", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
