"""Several processes that train together: launch/local on this machine, JAX's own runtime between them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from networks import DEVICES, ROOT, start, tiny_config, tiny_flags
from test_train import assert_same, saved_in, steps_of

from alexnet_jax.run.metrics import reproducible_rows
from alexnet_jax.training import train

pytestmark = pytest.mark.slow
OPTIONS = {"log_every": 2, "eval_every": 5, "mesh": "2x2"}
ENDLESS = 10**6  # steps


def launch(*flags: str, devices: int, log: Path, **environment: str) -> subprocess.Popen[str]:
    """launch/local in this environment, with two processes.

    Each has as many threads as there are here, for how XLA rounds a sum depends on them.
    """
    threads = max(DEVICES, len(os.sched_getaffinity(0)))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "VENV": sys.prefix, "NPROC": str(threads)} | environment
    command = [f"{ROOT}/launch/local", "--processes=2", f"--devices={devices}", "--", *flags]
    with log.open("w") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file, text=True, start_new_session=True)


def trainers(workdir: Path) -> list[int]:
    """Process numbers of the trainers of a run, by rank."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text().split("\0")
            environment = (folder / "environ").read_text().split("\0")
        except OSError:
            continue
        rank = [value for value in environment if value.startswith("JAX_PROCESS_ID=")]
        if f"--workdir={workdir}" in command and "--distributed" in command and rank:
            found.append((rank, int(folder.name)))
    return [pid for _, pid in sorted(found)]


def wait_for(process: subprocess.Popen[str], path: Path, log: Path) -> None:
    """Until a file of a run is there and not empty, or a folder is there."""
    deadline = time.monotonic() + 180
    while not path.exists() or not path.stat().st_size:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def kill(process: subprocess.Popen[str], workdir: Path, log: Path, rank: int) -> None:
    """Kills one of the processes, which has to end the other within a minute."""
    os.kill(trainers(workdir)[rank], signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(timeout=120) != 0
    seconds = time.monotonic() - killed
    assert seconds < 60
    print(f"the other process ended after {seconds:.0f} s")
    assert f"launch/local: process {rank} ended with status 137" in log.read_text()


def test_two_processes_train_what_one_trains_and_a_signal_to_one_stops_both_at_one_step(data_dir, tmp_path):
    """After the signal one process with as many devices goes on; the whole is bit for bit the run of one process."""
    workdir, alone, log = tmp_path / "run", tmp_path / "alone", tmp_path / "log"
    process = launch(*tiny_flags(data_dir, workdir, steps=ENDLESS, checkpoint_every=5, **OPTIONS), devices=2, log=log)
    wait_for(process, workdir / "checkpoints" / "5", log)
    os.kill(trainers(workdir)[1], signal.SIGTERM)
    assert process.wait(timeout=120) == 75, log.read_text()
    said = re.findall(r"^(.*): stopped after step (\d+), which is saved", log.read_text(), re.MULTILINE)
    assert sorted(why for why, _ in said) == ["SIGTERM", "a signal to another process"], log.read_text()
    (step,) = {int(step) for _, step in said}
    assert step >= 5
    assert saved_in(workdir)[-1] == step
    # The first process alone reports.
    assert log.read_text().count("validation loss") == len(steps_of(workdir, "validation")) == step // 5
    shutil.copytree(workdir, tmp_path / "stopped")

    options = OPTIONS | {"steps": step + 2, "checkpoint_every": 5}
    train(tiny_config(data_dir, alone, **options))
    train(tiny_config(data_dir, workdir, **options))
    assert_same(workdir, alone, step + 2)
    both = [row for row in reproducible_rows(alone) if row["step"] <= step]
    assert reproducible_rows(tmp_path / "stopped") == both


def test_the_death_of_one_ends_the_other_and_a_share_that_one_cannot_read_is_given_up_by_all(data_dir, tmp_path):
    """Saved by two processes and cut where only the second one reads: both go on from the checkpoint before."""
    workdir, alone, log = tmp_path / "run", tmp_path / "alone", tmp_path / "log"
    options = OPTIONS | {"mesh": "1x2", "checkpoint_every": 5}
    process = launch(*tiny_flags(data_dir, workdir, steps=ENDLESS, **options), devices=1, log=log)
    wait_for(process, workdir / "checkpoints" / "10", log)
    kill(process, workdir, log, 1)
    *_, before, newest = saved_in(workdir)
    second = (workdir / "checkpoints" / str(newest)).glob("params/ocdbt.process_1/**/*")
    largest = max((path for path in second if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    resumed = launch(*tiny_flags(data_dir, workdir, steps=ENDLESS, **options), devices=1, log=log)
    wait_for(resumed, workdir / "checkpoints" / str(newest + 5), log)
    kill(resumed, workdir, log, 0)
    said = log.read_text()
    assert said.count(f"checkpoint {newest} is damaged") == 2
    assert f"step {before} of {ENDLESS}" in said
    assert (workdir / "damaged" / str(newest)).exists()
    train(tiny_config(data_dir, alone, steps=newest + 5, **OPTIONS))
    ours, theirs = ([row for row in reproducible_rows(folder) if row["step"] < newest + 5] for folder in (workdir, alone))
    assert [(row["step"], row["split"]) for row in ours] == [(row["step"], row["split"]) for row in theirs]
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in theirs], rtol=1e-5)


# Read by Python itself when a process starts: the second one stops reading while there is a file $STUCK.
STUCK = """
import os, time
if os.environ.get("JAX_PROCESS_ID") == "1":
    from alexnet_jax.data.splits import Subset
    read = Subset.read_into
    def read_into(split, *arguments):
        while len(split) == 50 and os.path.exists(os.environ["STUCK"]):
            time.sleep(0.1)
        read(split, *arguments)
    Subset.read_into = read_into
"""


def test_a_process_that_is_stuck_or_stopped_ends_both_is_named_and_the_same_command_resumes(data_dir, tmp_path):
    """One that no longer reads the training images; then one that gets SIGSTOP."""
    workdir, log, stuck = tmp_path / "run", tmp_path / "log", tmp_path / "stuck"
    (tmp_path / "sitecustomize.py").write_text(STUCK)
    environment = {"STUCK": str(stuck), "PYTHONPATH": f"{tmp_path}:{ROOT}", "GRACE": "2"}
    options = OPTIONS | {"mesh": "1x2", "checkpoint_every": 5, "step_timeout": 3}
    flags = tiny_flags(data_dir, workdir, steps=ENDLESS, **options)
    process = launch(*flags, devices=1, log=log, **environment)
    wait_for(process, workdir / "checkpoints" / "5", log)
    began = time.monotonic()
    stuck.touch()
    assert process.wait(timeout=120) == 75, log.read_text()
    assert time.monotonic() - began < 60
    said = log.read_text()
    (step,) = re.findall(r"^error: process 1 of 2 is stuck at step (\d+): reading takes over \S+ s", said, re.MULTILINE)
    assert f'File "{tmp_path}/sitecustomize.py", line 8 in read_into' in said
    assert said.endswith("launch/local: process 1 was the first to fail\n")

    stuck.unlink()
    saved = saved_in(workdir)[-1]
    assert saved <= int(step)
    process = launch(*flags, devices=1, log=log, **environment)
    wait_for(process, workdir / "checkpoints" / str(saved + 5), log)
    assert f"step {saved} of {ENDLESS}" in log.read_text()
    began = time.monotonic()
    os.kill(trainers(workdir)[1], signal.SIGSTOP)
    assert process.wait(timeout=120) == 75, log.read_text()
    assert time.monotonic() - began < 60
    assert "launch/local: process 1 is stopped: killed\n" in log.read_text()
    assert log.read_text().endswith("launch/local: process 1 was stopped\n")

    last = saved_in(workdir)[-1] + 1
    train(tiny_config(data_dir, workdir, **options | {"steps": last}))
    assert steps_of(workdir, "validation") == [*range(5, last, 5), last]


def test_what_cannot_be_started_is_said(data_dir, tmp_path):
    alone = start("train", "--distributed", *tiny_flags(data_dir, tmp_path / "run"), stderr=subprocess.PIPE)
    _, said = alone.communicate(timeout=120)
    assert alone.returncode == 1
    assert "error: --distributed: coordinator_address should be defined." in said
