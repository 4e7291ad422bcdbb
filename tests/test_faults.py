"""What signals, a second trainer, a full disk and a disk that forgets do to a run: real processes, real signals."""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from networks import ROOT, run, small_model, tiny_config, tiny_flags
from test_checkpoint import collected, save, whole_state  # noqa: F401
from test_train import leaves_of, rows_of

from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.errors import UserError
from alexnet_jax.evaluate import Evaluator
from alexnet_jax.interrupt import RESUME_STATUS, Interrupted, Interruption
from alexnet_jax.metrics import read_rows
from alexnet_jax.step import make_checksum
from alexnet_jax.train import train

OPTIONS = {"steps": 12, "log_every": 3, "eval_every": 4, "checkpoint_every": 6, "schedule": "plateau", "patience": 1}
orbax_leftovers = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def start(data_dir: Path, workdir: Path, **fields) -> subprocess.Popen[str]:
    """A trainer, once it has said where it starts from."""
    command = [sys.executable, "-m", "alexnet_jax.train", *tiny_flags(data_dir, workdir, **fields)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "step 0 of" in process.stderr.readline()
    return process


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> Path:
    """The run that nobody interrupts."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(tiny_config(data_dir, workdir, **OPTIONS))
    return workdir


def assert_same(workdir: Path, whole: Path) -> None:
    assert rows_of(workdir) == rows_of(whole)
    for ours, theirs in zip(leaves_of(workdir, 12), leaves_of(whole, 12), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_compilation_saves_at_the_first_step_and_the_same_command_goes_on(data_dir, tmp_path, whole, number):
    process = start(data_dir, tmp_path / "run", **OPTIONS)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == RESUME_STATUS == 75, said
    assert f"{number.name}: stopped after step" in said.splitlines()[-1]
    assert "Traceback" not in said
    train(tiny_config(data_dir, tmp_path / "run", **OPTIONS))
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_a_second_signal_ends_a_compilation_at_once(data_dir, tmp_path):
    process = start(data_dir, tmp_path / "run", **OPTIONS)
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
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return judge(*arguments)

    monkeypatch.setattr(Evaluator, "judge_batch", judge_and_signal)
    with pytest.raises(Interrupted, match="SIGTERM: stopped after step 4, which is saved"):
        train(tiny_config(data_dir, tmp_path / "run", **OPTIONS))
    monkeypatch.undo()
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [3]
    # A run that was killed between the validation and the next save has left its row behind.
    with (tmp_path / "run" / "metrics.jsonl").open("a") as record:
        record.writelines(json.dumps(row) + "\n" for row in read_rows(whole) if row["step"] == 4)
    train(tiny_config(data_dir, tmp_path / "run", **OPTIONS))
    assert_same(tmp_path / "run", whole)


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
    process = start(data_dir, tmp_path / "run", steps=100000)
    refused = run("train", *tiny_flags(data_dir, tmp_path / "run"))
    assert refused.returncode == 1
    assert f"is in use by process {process.pid} on " in refused.stderr
    process.kill()
    process.communicate()
    assert run("train", *tiny_flags(data_dir, tmp_path / "run")).returncode == 0


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_run_with_one_line_and_what_was_saved(data_dir, tmp_path):
    """No file may grow over 8 MB, which a checkpoint does."""
    command = shlex.join([sys.executable, "-m", "alexnet_jax.train", *tiny_flags(data_dir, tmp_path / "run")])
    limited = ["bash", "-c", f"ulimit -f 8192; exec {command}"]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))  # Orbax's threads have more
    assert "/checkpoints cannot be written: " in line
    assert line.endswith("there is no checkpoint yet")
    assert run("train", *tiny_flags(data_dir, tmp_path / "run")).returncode == 0


@pytest.mark.slow
@orbax_leftovers
@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_a_value_that_changed_on_the_disk_is_not_trained_on(tmp_path, caplog, item):
    """The newest checkpoint is written again by Orbax itself with one bit of one value turned: it parses."""
    model = small_model()
    save(tmp_path, model, [3, 7])
    folder = tmp_path / "checkpoints" / "7" / item
    with ocp.StandardCheckpointer() as checkpointer:
        tree = jax.tree.map(np.array, checkpointer.restore(folder))
        leaf = jax.tree.leaves(tree)[5]
        leaf.reshape(-1).view(np.uint32)[-3] ^= 1
        checkpointer.save(folder, tree, force=True)
        checkpointer.wait_until_finished()
    with Checkpoints(tmp_path, keep=2, writable=False) as checkpoints:
        if item == "params":
            with pytest.raises(UserError, match=r"checkpoint .*/7 cannot be read: params has the checksum"):
                checkpoints.restore_params(model, 7)
        checkpoints.restore_params(model, 3)
    with Checkpoints(tmp_path, keep=2, writable=True) as checkpoints:
        assert checkpoints.restore_latest(model)[1] == {"step": 3}
    assert f"checkpoint 7 cannot be read: {item} has the checksum" in caplog.text


@pytest.mark.parametrize(("spmd", "mesh"), [("shard_map", "1x1"), ("shard_map", "4x2"), ("pmap", "2x2")])
def test_the_checksum_is_that_of_the_whole_arrays_on_every_mesh(spmd, mesh):
    model = small_model(spmd, mesh)
    params = model.initial_state().params
    found = model.mesh.fetch(make_checksum(model.mesh, model.specs)(params), jax.sharding.PartitionSpec())
    total = 0
    for leaf in jax.tree.leaves(model.mesh.fetch(params, model.specs)):
        bits = leaf.reshape(-1).view(np.uint32).astype(np.uint64)
        weighted = bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1) % 2**32
        total = (total * 16777619 + int(weighted.sum())) % 2**32
    assert int(found) == total


def can_unshare() -> bool:
    """Whether a process here may have mounts of its own."""
    return subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


def run_mounted(mount: str, flags: list[str]) -> subprocess.CompletedProcess[str]:
    """A trainer that alone sees what `mount`, a shell command, has mounted."""
    trainer = shlex.join([sys.executable, "-m", "alexnet_jax.train", *flags])
    command = ["unshare", "-Urm", "bash", "-euc", f"{mount}; {trainer}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare(), reason="unshare -Urm is not permitted, so that nothing can be mounted")
def test_a_workdir_that_cannot_be_written_is_said_before_anything_is_compiled(data_dir, tmp_path):
    flags, where = tiny_flags(data_dir, tmp_path / "run"), shlex.quote(str(tmp_path))
    read_only = f"mount --bind {where} {where}; mount -o remount,ro,bind {where}"
    done = run_mounted(read_only, flags)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: --workdir={tmp_path}/run cannot be written: Read-only file system"]


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare(), reason="unshare -Urm is not permitted, so that nothing can be mounted")
@pytest.mark.parametrize("left", [0, 4096, 65536])
def test_a_disk_without_room_ends_with_one_line(data_dir, tmp_path, left):
    """A disk of 32 MB, filled up to a few bytes: for the lock, for config.json, or for the first checkpoint."""
    (tmp_path / "disk").mkdir()
    where = shlex.quote(str(tmp_path / "disk"))
    full = f"mount -t tmpfs -o size=32m none {where}; head -c {32 * 2**20 - left} /dev/zero > {where}/zeros || true"
    done = run_mounted(f"{full}; mkdir {where}/run || true", tiny_flags(data_dir, tmp_path / "disk" / "run"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match("error: .* cannot be written: .*(No space left|and .* written|left; there is no checkpoint yet)", line)


@pytest.mark.slow
@pytest.mark.skipif(not can_unshare(), reason="unshare -Urm is not permitted, so that nothing can be mounted")
def test_a_disk_with_room_for_one_checkpoint_keeps_it(data_dir, tmp_path):
    (tmp_path / "disk").mkdir()
    where = shlex.quote(str(tmp_path / "disk"))
    flags = tiny_flags(data_dir, tmp_path / "disk" / "run", checkpoint_every=2)
    done = run_mounted(f"mount -t tmpfs -o size=180m none {where}; mkdir {where}/run", flags)
    assert done.returncode == 1
    assert re.search("^error: .* cannot be written: .* MB left; checkpoint 2 is kept$", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@orbax_leftovers
@pytest.mark.parametrize("hours", [3, -3])
def test_a_clock_that_jumps_in_the_middle_of_a_save_changes_no_number(data_dir, tmp_path, whole, monkeypatch, hours):
    """Orbax may take a jump forward for a save that hangs; then the run ends with one line and is resumed."""
    clock, jumps = time.time, []
    monkeypatch.setattr(time, "time", lambda: clock() + 3600 * sum(jumps))
    save_whole = Checkpoints.save

    def save_and_jump(*arguments):
        save_whole(*arguments)
        if not jumps:  # while the save goes on in the background
            jumps.append(hours)

    monkeypatch.setattr(Checkpoints, "save", save_and_jump)
    with contextlib.suppress(UserError):
        train(tiny_config(data_dir, tmp_path / "run", **OPTIONS))
    train(tiny_config(data_dir, tmp_path / "run", **OPTIONS))
    assert jumps == [hours]
    assert_same(tmp_path / "run", whole)
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


@pytest.mark.slow
def test_every_example_is_seen_once_per_epoch_through_a_kill(data_dir, tmp_path):
    """50 images in batches of 8: 25 steps are four epochs, and examples.jsonl tells who was in which batch."""
    options = {"steps": 25, "checkpoint_every": 3, "eval_every": 100, "log_examples": True}
    process = start(data_dir, tmp_path / "run", **options)
    record = tmp_path / "run" / "examples.jsonl"
    while not (record.exists() and record.read_text().count("\n") >= 8):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    begun = record.read_text().splitlines()[:3]
    assert run("train", *tiny_flags(data_dir, tmp_path / "run", **options)).returncode == 0
    assert record.read_text().splitlines()[:3] == begun
    rows = read_rows(tmp_path / "run", name="examples.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 26))
    seen = np.concatenate([row["examples"] for row in rows]).reshape(4, 50)
    np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(50), (4, 1)))
    assert not np.array_equal(seen[0], seen[1])
