"""Kills a run again and again, and compares its result with an uninterrupted run.

    python -m experiments.soak --out=soak --kills=50

Each run is started and killed by SIGKILL or SIGTERM at a random moment, sometimes during a save, until it is complete. Even
runs stay on one mesh: parameters and metrics.jsonl without times must be the same, bit for bit. Odd runs change the mesh at
every start: every parameter and (relative) every loss must agree within 1e-5. In all runs examples.jsonl must show that no
example was lost or seen twice. Prints one JSON object; progress goes to stderr.
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
from alexnet_jax.run.metrics import read_rows, reproducible_rows
from alexnet_jax.run.workdir import provenance, read_config
from alexnet_jax.step import TrainState, make_setup
from alexnet_jax.system import cli, runtime
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.signals import RESUME_STATUS
from alexnet_jax.values import MeshShape

STEPS, EXAMPLES = 30, 675
# A small rate keeps the rounding differences between meshes small. At 0.001 the losses of uninterrupted runs on two meshes
# differ by 7e-5 (relative) after 30 steps.
SETTINGS = {
    "dataset": "groceries", "image_size": 112, "crop_size": 63, "batch_size": 32, "bias_init": 0.1, "learning_rate": 0.0001,
    "schedule": "constant", "steps": STEPS, "log_every": 1, "checkpoint_every": 2, "eval_every": 7, "log_examples": True,
}  # fmt: skip
MESHES = {"1x1": 1, "1x2": 2, "2x1": 2, "2x2": 4}
TOLERANCE = 1e-5
STARTUP_SECONDS = 120


def start(workdir: Path, data_dir: str, mesh: str) -> subprocess.Popen[str]:
    """Starts the trainer. Its output goes to the log beside the workdir."""
    settings = SETTINGS | {"data_dir": data_dir, "workdir": workdir, "mesh": mesh, "host_devices": MESHES[mesh]}
    command = [sys.executable, "-m", "alexnet_jax.train", *(f"--{name}={value}" for name, value in settings.items())]
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, text=True)


def last_step(workdir: Path) -> int:
    """The last step in metrics.jsonl so far."""
    return max((row["step"] for row in read_rows(workdir)), default=0)


def wait_for_moment(process: subprocess.Popen[str], workdir: Path, in_save: bool, rng: random.Random) -> bool:
    """Waits for the start of a save, or for a random time after a new row. False if the run ends before."""
    first, deadline = last_step(workdir), time.monotonic() + STARTUP_SECONDS
    pause = rng.uniform(0, 1.5)
    while process.poll() is None and time.monotonic() < deadline:
        if in_save and any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")):
            return True
        if not in_save and last_step(workdir) > first:
            time.sleep(pause)
            return process.poll() is None
        time.sleep(0.002)
    return False


def kill_until_done(workdir: Path, data_dir: str, moving: bool, rng: random.Random, kills: list[dict[str, Any]]) -> int:
    """Starts and kills one run until it is complete. Returns the number of starts. Raises UserError if it fails."""
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
        if status not in (RESUME_STATUS, -signal.SIGKILL, -signal.SIGTERM):  # SIGTERM itself: before or after training
            raise UserError(f"{workdir}: the trainer ended with status {status}: {workdir.with_suffix('.log')}")


def state_of(workdir: Path) -> TrainState:
    """The state in the last checkpoint."""
    config = replace(read_config(str(workdir)), mesh=MeshShape(1, 1))
    setup = make_setup(config, 14, make_mesh(MeshShape(1, 1), 2, config.batch_size))
    with Checkpoints(workdir, keep=1, writable=False) as checkpoints:
        restored = checkpoints.restore_latest(setup)
    if restored is None or restored[1]["step"] != STEPS:
        raise UserError(f"{workdir} has no checkpoint of step {STEPS}")
    return restored[0]


def examples_of(workdir: Path) -> list[dict[str, Any]]:
    """The examples of each step. Raises UserError if a step is missing or an epoch has an example twice."""
    rows = read_rows(workdir, name="examples.jsonl")
    seen = np.concatenate([row["examples"] for row in rows])
    epochs = [seen[start : start + EXAMPLES] for start in range(0, len(seen), EXAMPLES)]
    once = all(len(np.unique(epoch)) == len(epoch) for epoch in epochs)
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)) or not once:
        raise UserError(f"{workdir}: examples were lost or repeated: examples.jsonl")
    return rows


def difference(workdir: Path, whole: Path) -> dict[str, Any]:
    """Compares a run with the uninterrupted one."""
    mine, other = state_of(workdir), state_of(whole)
    rows, expected = reproducible_rows(workdir), reproducible_rows(whole)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), mine, other)
    apart = jax.tree.map(lambda a, b: float(abs(a - b).max()), mine.params, other.params)
    losses = [abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(rows, expected, strict=True)]
    return {
        "same_bits": all(jax.tree.leaves(same)), "same_rows": rows == expected,
        "largest_difference_of_a_parameter": max(jax.tree.leaves(apart)),
        "largest_relative_difference_of_a_loss": max(losses),
        "rows": len(rows), "same_examples": examples_of(workdir) == examples_of(whole),
    }  # fmt: skip


def equal(run: dict[str, Any]) -> bool:
    """Whether a run is the uninterrupted one, bit for bit."""
    return run["same_bits"] and run["same_rows"]


def near(run: dict[str, Any]) -> bool:
    """Whether a run is the uninterrupted one within TOLERANCE."""
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
        starts = kill_until_done(workdir, options.data_dir, len(runs) % 2 == 1, rng, kills)
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
    flags.DEFINE_integer("kills", 50, "stop after the run that reaches so many kills", lower_bound=1, flag_values=options)
    flags.DEFINE_integer("seed", 0, "of the moments, signals and meshes", flag_values=options)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
