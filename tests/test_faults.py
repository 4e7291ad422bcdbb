"""What signals, a second trainer, a full disk and a disk that forgets do to a run.

A process is started where it is to be killed, or has to have mounts of its own.
"""

import dataclasses
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint._src.futures.future as orbax_future
import pytest
from networks import DEVICES, ROOT, run, start, tiny_config, tiny_flags
from test_train import assert_same, leaves_of, saved_in

from alexnet_jax.evaluation import Evaluator
from alexnet_jax.run.metrics import read_rows, reproducible_rows
from alexnet_jax.run.recorder import Recorder
from alexnet_jax.system.signals import IN_USE_STATUS, RESUME_STATUS, Interrupted, Interruption
from alexnet_jax.training import train

OPTIONS = {"steps": 12, "log_every": 3, "eval_every": 4, "checkpoint_every": 6, "schedule": "plateau", "patience": 1,
           "mesh": "1x1"}  # fmt: skip


def started(data_dir: Path, workdir: Path, **fields) -> subprocess.Popen[str]:
    """A trainer, once it has said where it starts from."""
    flags = tiny_flags(data_dir, workdir, mesh="1x1", **fields)
    process = start("train", f"--host_devices={DEVICES}", *flags, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert "step 0 of" in process.stderr.readline()
    return process


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> Path:
    """The run that nobody interrupts."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_config(data_dir, workdir, **OPTIONS))
    return workdir


def send(number: int) -> None:
    """A real signal to this process, whose thread for them has read it afterwards."""
    os.kill(os.getpid(), number)
    time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_saves_it_and_the_same_command_goes_on(
    data_dir, tmp_path, whole, monkeypatch, number
):
    """The signal comes when the run has said where it starts from, and before anything is compiled."""
    say = Recorder.say

    def say_and_signal(recorder, message):
        say(recorder, message)
        send(number)

    flags = tiny_flags(data_dir, tmp_path / "run", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "say", say_and_signal)
        done = run("train", *flags)
    assert done.returncode == RESUME_STATUS == 75
    assert done.stderr.splitlines()[-1] == (
        f"{number.name}: stopped after step 1, which is saved; rerun the same command to resume (exit status 75)"
    )
    assert "Traceback" not in done.stderr
    assert saved_in(tmp_path / "run") == [1]
    if number == signal.SIGTERM:
        assert run("train", *flags).returncode == 0
        assert_same(tmp_path / "run", whole, 12)


@pytest.mark.slow
def test_a_signal_to_a_process_in_compilation_is_answered_at_its_first_step(data_dir, tmp_path):
    process = started(data_dir, tmp_path / "run", steps=100000)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == RESUME_STATUS, said
    assert "SIGTERM: stopped after step" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_second_signal_ends_a_compilation_at_once(data_dir, tmp_path):
    process = started(data_dir, tmp_path / "run", steps=100000)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    while "SIGTERM: saving at the next step" not in process.stderr.readline():
        pass
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - sent < 2
    assert "SIGTERM again: ended at once" in said


@pytest.mark.slow
@pytest.mark.parametrize("batch", [0, 1])
def test_a_signal_in_a_validation_puts_it_off_and_changes_nothing(data_dir, tmp_path, whole, monkeypatch, batch):
    """Step 4 is validated and not saved, 12 both. The signal is real; it comes while a batch is judged."""
    judge, calls = Evaluator.judge_batch, iter(range(100))

    def judge_and_signal(*arguments):
        if next(calls) == batch:
            send(signal.SIGTERM)
        return judge(*arguments)

    monkeypatch.setattr(Evaluator, "judge_batch", judge_and_signal)
    with pytest.raises(Interrupted, match="SIGTERM: stopped after step 4, which is saved"):
        train(tiny_config(data_dir, tmp_path / "run", **OPTIONS))
    monkeypatch.undo()
    assert [row["step"] for row in reproducible_rows(tmp_path / "run")] == [3]
    # A run that was killed between the validation and the next save has left its row behind.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as record:
        record.writelines(json.dumps(row) + "\n" for row in read_rows(whole) if row["step"] == 4)
    train(tiny_config(data_dir, tmp_path / "run", **OPTIONS))
    assert_same(tmp_path / "run", whole, 12)


def test_signals_are_theirs_again_afterwards():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)  # pytest would stop here
        deadline = time.monotonic() + 10
        while not interruption.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        assert interruption.requested == "SIGINT"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.slow
def test_a_second_trainer_is_refused_and_a_killed_one_leaves_no_lock(data_dir, tmp_path):
    process = started(data_dir, tmp_path / "run", steps=100000)
    refused = run("train", *tiny_flags(data_dir, tmp_path / "run", mesh="1x1"))
    assert refused.returncode == IN_USE_STATUS == 69
    assert f"is in use by process {process.pid} on " in refused.stderr
    process.kill()
    process.communicate()
    assert run("train", *tiny_flags(data_dir, tmp_path / "run", mesh="1x1")).returncode == 0


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_run_with_one_line_and_what_was_saved(data_dir, tmp_path, whole):
    """No file may grow over 64 KB, which a checkpoint does. What is compiled is in the cache since `whole`."""
    flags = tiny_flags(data_dir, tmp_path / "run", **OPTIONS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        done = run("train", *flags)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))  # Orbax's threads have more
    assert "/checkpoints cannot be written: " in line
    assert line.endswith("there is no checkpoint yet")
    assert run("train", *flags).returncode == 0
    assert_same(tmp_path / "run", whole, 12)


def can_unshare() -> bool:
    """Whether a process here may have mounts of its own."""
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


RUN_ALL = """
import json, sys
sys.path.insert(0, "tests")
from networks import run
print(json.dumps([run("train", *flags) for flags in json.load(sys.stdin)]))
"""
DISKS = {"full": 0, "one page": 4096, "some pages": 65536}  # bytes left on a disk of 32 MB


@pytest.fixture(scope="module")
def mounted(data_dir, tmp_path_factory) -> dict[str, tuple[int, list[str]]]:
    """Exit status and lines on stderr of runs on disks that only one process sees, which makes them all.

    `read-only`; one for each of DISKS, filled up but for some bytes; and `one`, with room for one checkpoint.
    """
    folder = tmp_path_factory.mktemp("mounted")
    mounts, flags = [], {}
    for name in ("read-only", *DISKS, "one"):
        (folder / name).mkdir()
        place = shlex.quote(str(folder / name))
        if name == "read-only":
            mounts += [f"mount --bind {place} {place}", f"mount -o remount,ro,bind {place}"]
        elif name == "one":
            mounts += [f"mount -t tmpfs -o size=3m none {place}", f"mkdir {place}/run"]
        else:
            mounts += [f"mount -t tmpfs -o size=32m none {place}"]
            mounts += [f"head -c {32 * 2**20 - DISKS[name]} /dev/zero > {place}/zeros || true", f"mkdir {place}/run || true"]
        flags[name] = tiny_flags(data_dir, folder / name / "run", mesh="1x1", checkpoint_every=2)
    command = "; ".join([*mounts, shlex.join([sys.executable, "-c", RUN_ALL])])
    done = subprocess.run(["unshare", "-Urm", "bash", "-euc", command], input=json.dumps(list(flags.values())), cwd=ROOT,
                          capture_output=True, text=True, check=False, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {name: (status, said.splitlines()) for name, (status, _, said) in zip(flags, found, strict=True)}


needs_mounts = pytest.mark.skipif(not can_unshare(), reason="unshare -Urm is not permitted, so that nothing can be mounted")


@pytest.mark.slow
@needs_mounts
def test_a_workdir_that_cannot_be_written_is_said_before_anything_is_compiled(mounted):
    status, (line,) = mounted["read-only"]
    assert status == 1
    assert re.fullmatch("error: --workdir=.*/read-only/run cannot be written: Read-only file system", line)


@pytest.mark.slow
@needs_mounts
@pytest.mark.parametrize("disk", DISKS)
def test_a_disk_without_room_ends_with_one_line(mounted, disk):
    """For the lock, for config.json, or for the first checkpoint."""
    status, (line,) = mounted[disk]
    assert status == 1
    assert re.match("error: .* cannot be written: .*(No space left|and .* written|left; there is no checkpoint yet)", line)


@pytest.mark.slow
@needs_mounts
def test_a_disk_with_room_for_one_checkpoint_keeps_it(mounted):
    status, lines = mounted["one"]
    assert status == 1
    assert re.search("^error: .* cannot be written: .* MB left; checkpoint 2 is kept$", lines[-1])
    assert not any("Traceback" in line for line in lines)


def jumping(monkeypatch, hours: float) -> list[float]:
    """Has the clock jump once while a save is waited for. Returns what it jumped by, a list that is filled then."""
    clock, remaining, jumps = time.time, orbax_future.get_remaining_time, []

    def remaining_after_jump(*arguments):
        if not jumps:
            jumps.append(3600 * hours)
        return remaining(*arguments)

    monkeypatch.setattr(orbax_future, "get_remaining_time", remaining_after_jump)
    monkeypatch.setattr(time, "time", lambda: clock() + sum(jumps))
    return jumps


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-3, 3])
def test_a_clock_that_jumps_in_the_middle_of_a_save_changes_nothing(data_dir, tmp_path, whole, monkeypatch, hours):
    """Orbax would take a save for one that hangs if the clock is put forward by more than its time limit."""
    jumps = jumping(monkeypatch, hours)
    train(tiny_config(data_dir, tmp_path / "run", **OPTIONS))
    assert jumps == [hours * 3600]
    assert_same(tmp_path / "run", whole, 12)
    assert all(row["images_per_second"] > 0 for row in read_rows(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_in_float32_goes_on_in_bfloat16_from_the_same_parameters(data_dir, tmp_path):
    config = tiny_config(data_dir, tmp_path / "run", steps=2)
    train(config)
    before = leaves_of(tmp_path / "run", 2)
    train(dataclasses.replace(config, precision="bfloat16", steps=3))
    after = leaves_of(tmp_path / "run", 3)
    assert all(leaf.dtype == np.float32 for leaf in after if leaf.ndim)
    # One step from them: an update of float32 products, but for bfloat16's 8 bits.
    train(dataclasses.replace(config, workdir=str(tmp_path / "other"), steps=3))
    for old, low, full in zip(before, after, leaves_of(tmp_path / "other", 3), strict=True):
        assert np.linalg.norm(low - full) <= 0.2 * np.linalg.norm(full - old)
