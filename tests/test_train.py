"""The loop end to end on real processes: events where the flags say, exact resume, refusals, divergence."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import ROOT, run, small_model, tiny_config, tiny_flags

from alexnet_jax.calendar import Calendar
from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.config import Config
from alexnet_jax.errors import UserError
from alexnet_jax.metrics import read_rows
from alexnet_jax.train import train


def rows_of(workdir: Path) -> list[dict]:
    """metrics.jsonl without the speed, which no two runs share."""
    rows = read_rows(workdir)
    for row in rows:
        del row["images_per_second"]
    return rows


def leaves_of(workdir: Path, step: int) -> list[np.ndarray]:
    """Every array of a checkpoint's state."""
    model = small_model()
    with Checkpoints(workdir, keep=1, writable=False) as checkpoints:
        restored = checkpoints.restore_latest(model)
    assert restored is not None
    assert restored[1]["step"] == step
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored[0])]


def test_calendar_of_a_run_with_partial_batches():
    """50 examples in batches of 8: epochs end within steps 7, 13, 19 and 25; three epochs are 18.75 steps."""
    calendar = Calendar(Config(batch_size=8, epochs=3.0, log_every=5), 50, True)
    steps = range(1, calendar.total_steps + 1)
    assert calendar.total_steps == 19
    assert [step for step in steps if calendar.validates_after(step)] == [7, 13, 19]
    assert [step for step in steps if calendar.saves_after(step)] == [7, 13, 19]
    assert [step for step in steps if calendar.logs(step)] == [5, 10, 15, 19]


def test_calendar_of_an_exact_epoch_and_given_intervals():
    exact = Calendar(Config(batch_size=10, epochs=2.0), 50, True)
    assert [step for step in range(1, 11) if exact.validates_after(step)] == [5, 10]
    given = Calendar(Config(batch_size=10, steps=10, eval_every=4, checkpoint_every=3), 50, True)
    assert [step for step in range(1, 11) if given.validates_after(step)] == [4, 8, 10]
    assert [step for step in range(1, 11) if given.saves_after(step)] == [3, 6, 9, 10]
    assert not any(Calendar(Config(batch_size=10, steps=5), 50, False).validates_after(step) for step in range(1, 6))


@pytest.mark.slow
def test_kill_and_resume_is_the_uninterrupted_run_bit_for_bit(data_dir, tmp_path):
    options = {"steps": 20, "log_every": 3, "eval_every": 4, "checkpoint_every": 5, "schedule": "plateau", "patience": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("train", *tiny_flags(data_dir, whole, **options)).returncode == 0

    command = [sys.executable, "-m", "alexnet_jax.train", *tiny_flags(data_dir, cut, **options)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (cut / "checkpoints" / "10").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()
    assert not (cut / "checkpoints" / "20").exists()
    resumed = run("train", *tiny_flags(data_dir, cut, **options))
    assert resumed.returncode == 0, resumed.stderr
    assert "step 1" in resumed.stderr  # from 10 or 15, not from 0

    rows = rows_of(whole)
    assert rows_of(cut) == rows
    steps = {split: [row["step"] for row in rows if row["split"] == split] for split in ("train", "validation")}
    assert steps == {"train": [3, 6, 9, 12, 15, 18, 20], "validation": [4, 8, 12, 16, 20]}
    assert len({row["learning_rate"] for row in rows}) > 1  # the plateau's drops were resumed too
    for ours, theirs in zip(leaves_of(cut, 20), leaves_of(whole, 20), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_pmap_trains_resumes_on_another_mesh_and_records_like_shard_map(data_dir, tmp_path):
    train(tiny_config(data_dir, tmp_path / "a", steps=6, checkpoint_every=3))
    train(tiny_config(data_dir, tmp_path / "b", steps=3, spmd="pmap", mesh="2x2"))
    train(tiny_config(data_dir, tmp_path / "b", steps=6, mesh="4x2"))
    ours, theirs = ({(row["step"], row["split"]): row["loss"] for row in read_rows(tmp_path / name)} for name in ("b", "a"))
    for step in ((2, "train"), (6, "train"), (6, "validation")):
        assert ours[step] == pytest.approx(theirs[step], rel=1e-4)


@pytest.mark.slow
def test_what_a_resumed_run_may_change(data_dir, tmp_path):
    workdir = tmp_path / "run"
    train(tiny_config(data_dir, workdir))
    before = (workdir / "config.json").read_bytes(), (workdir / "metrics.jsonl").read_bytes()
    for field, value, message in [
        ("batch_size", 4, "--batch_size was 8 and is now 4"),
        ("seed", 1, "--seed was 0 and is now 1"),
        ("architecture", "caffe", "--architecture was paper and is now caffe"),
        ("learning_rate", 0.5, "--learning_rate was 0.001 and is now 0.5"),
    ]:
        with pytest.raises(UserError, match=message):
            train(tiny_config(data_dir, workdir, **{field: value}))
    assert ((workdir / "config.json").read_bytes(), (workdir / "metrics.jsonl").read_bytes()) == before
    train(tiny_config(data_dir, workdir, steps=6, log_every=1, keep=1))
    assert [row["step"] for row in read_rows(workdir) if row["split"] == "train"] == [2, 4, 5, 6]
    assert json.loads((workdir / "config.json").read_text())["config"]["steps"] == 6


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(data_dir, tmp_path):
    result = run("train", *tiny_flags(data_dir, tmp_path / "bad", learning_rate=1e20, steps=8, checkpoint_every=1, keep=9))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: step ")
    assert "Traceback" not in result.stderr
    saved = sorted(int(step.name) for step in (tmp_path / "bad" / "checkpoints").glob("[0-9]*"))
    assert (f"checkpoint {saved[-1]} is kept" if saved else "no checkpoint yet") in result.stderr
    if saved:
        assert all(np.isfinite(leaf).all() for leaf in leaves_of(tmp_path / "bad", saved[-1]))


@pytest.mark.slow
def test_colour_noise_ends_after_its_epochs(data_dir, tmp_path):
    """50 images in batches of 8: step 7 is the last that begins within the first epoch."""
    losses = {}
    for name, fields in {"none": {"colour_noise": "none"}, "never": {"colour_noise_epochs": 0}, "some": {}}.items():
        defaults = {"colour_noise_epochs": 1.0, "steps": 9, "log_every": 1, "freeze": tuple(small_model().shapes)}
        train(tiny_config(data_dir, tmp_path / name, **defaults | fields))
        losses[name] = np.array([row["loss"] for row in read_rows(tmp_path / name) if row["split"] == "train"])
    np.testing.assert_allclose(losses["never"], losses["none"], rtol=1e-6)
    changed = ~np.isclose(losses["some"], losses["none"], rtol=1e-6)
    assert changed.tolist() == [True] * 7 + [False] * 2


@pytest.mark.slow
def test_a_dead_network_is_told(data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("alexnet_jax.diagnostics.DEAD_AFTER_STEPS", 4)
    train(tiny_config(data_dir, tmp_path / "dead", freeze=tuple(small_model().shapes)))
    assert "the network looks dead: after 4 steps" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_frozen_layers_keep_their_parameters_and_the_others_learn(data_dir, tmp_path):
    train(tiny_config(data_dir, tmp_path / "frozen", freeze=("conv1", "fc7")))
    fresh = small_model().initial_state().params
    with Checkpoints(tmp_path / "frozen", keep=1, writable=False) as checkpoints:
        trained = checkpoints.restore_params(small_model(), 4)
    for layer in fresh:
        same = np.array_equal(fresh[layer]["kernel"], trained[layer]["kernel"])
        assert same == (layer in ("conv1", "fc7"))
