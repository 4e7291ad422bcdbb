"""Several processes that train together: launch/local on this machine, JAX's own runtime between them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from networks import ROOT, run, tiny_config, tiny_flags
from test_train import leaves_of, rows_of

from alexnet_jax.train import train

pytestmark = pytest.mark.slow
OPTIONS = {"steps": 10, "log_every": 2, "eval_every": 5, "mesh": "2x2"}


def launch(*flags: str, processes: int = 2, devices: int = 2, log: Path) -> subprocess.Popen[str]:
    """launch/local in this environment."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "VENV": sys.prefix}
    command = [f"{ROOT}/launch/local", f"--processes={processes}", f"--devices={devices}", "--", *flags]
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


def wait_for_steps(process: subprocess.Popen[str], workdir: Path, log: Path) -> None:
    """Until the first row is there."""
    deadline = time.monotonic() + 180
    while not (workdir / "metrics.jsonl").exists() or not (workdir / "metrics.jsonl").read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory) -> Path:
    """One process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    train(tiny_config(data_dir, workdir, **OPTIONS))
    return workdir


def assert_same(workdir: Path, alone: Path) -> None:
    assert rows_of(workdir) == rows_of(alone)
    for ours, theirs in zip(leaves_of(workdir, 10), leaves_of(alone, 10), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_two_processes_train_bit_for_bit_what_one_with_as_many_devices_trains(data_dir, tmp_path, alone):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = launch(*tiny_flags(data_dir, workdir, **OPTIONS), log=log)
    assert process.wait(timeout=300) == 0, log.read_text()
    assert_same(workdir, alone)
    assert log.read_text().count("epoch ") == 2  # the first process alone reports: two validations


def test_a_signal_to_one_stops_all_at_one_step_and_one_process_goes_on(data_dir, tmp_path, alone):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = launch(*tiny_flags(data_dir, workdir, **OPTIONS | {"steps": 100000, "eval_every": 100000}), log=log)
    wait_for_steps(process, workdir, log)
    os.kill(trainers(workdir)[1], signal.SIGTERM)
    assert process.wait(timeout=120) == 75, log.read_text()
    said = [line for line in log.read_text().splitlines() if ": stopped after step" in line]
    assert len({line.split("step ")[1] for line in said}) == 1
    assert sorted(line.split(":")[0] for line in said) == ["SIGTERM", "a signal to another process"]
    step = int(said[0].split("step ")[1].split(",")[0])
    resumed = run("train", *tiny_flags(data_dir, workdir, **OPTIONS | {"steps": step + 2, "eval_every": 100000}),
                  "--host_devices=4")  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    assert f"step {step} of {step + 2}" in resumed.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_one_ends_the_other_within_a_minute(data_dir, tmp_path, rank):
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = launch(*tiny_flags(data_dir, workdir, **OPTIONS | {"steps": 100000, "eval_every": 100000}), log=log)
    wait_for_steps(process, workdir, log)
    os.kill(trainers(workdir)[rank], signal.SIGKILL)
    killed = time.monotonic()
    assert process.wait(timeout=120) != 0
    seconds = time.monotonic() - killed
    assert seconds < 60
    print(f"the other process ended after {seconds:.0f} s")
    assert f"launch/local: process {rank} ended with status 137" in log.read_text()


def test_a_share_that_one_process_cannot_read_is_given_up_by_all(data_dir, tmp_path, alone):
    """Saved by two processes and cut where only the second one reads: both go on from the checkpoint before."""
    workdir, log = tmp_path / "run", tmp_path / "log"
    options = OPTIONS | {"mesh": "1x2", "checkpoint_every": 5}
    assert launch(*tiny_flags(data_dir, workdir, **options), devices=1, log=log).wait(timeout=300) == 0, log.read_text()
    newest = workdir / "checkpoints" / "10"
    second = [path for path in newest.glob("params/ocdbt.process_1/**/*") if path.is_file()]
    largest = max(second, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    options["steps"] = 12
    assert launch(*tiny_flags(data_dir, workdir, **options), devices=1, log=log).wait(timeout=300) == 0, log.read_text()
    said = log.read_text()
    assert said.count("checkpoint 10 cannot be read") == 2
    assert "step 5 of 12" in said
    assert (workdir / "damaged" / "10").exists()
    ours = [row for row in rows_of(workdir) if row["step"] <= 10]
    assert [row["step"] for row in ours] == [row["step"] for row in rows_of(alone)]
    np.testing.assert_allclose([row["loss"] for row in ours], [row["loss"] for row in rows_of(alone)], rtol=1e-5)


def test_what_cannot_be_started_is_said(data_dir, tmp_path):
    alone = run("train", "--distributed", *tiny_flags(data_dir, tmp_path / "run"))
    assert alone.returncode == 1
    assert "error: --distributed: coordinator_address should be defined." in alone.stderr
    done = subprocess.run([f"{ROOT}/launch/local", "--tasks=2"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("usage: ./launch/local")) == (2, 1)
