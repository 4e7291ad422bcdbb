"""The loop end to end: events where the flags say, exact resume, refusals, divergence."""

import io
import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import DEVICES, run, small_setup, start, tiny_config, tiny_flags
from PIL import Image
from test_tensorboard import events_in, values

from alexnet_jax.augment import COLOUR_NOISE
from alexnet_jax.config import Config
from alexnet_jax.inference.pictures import kernel_sheet
from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.display import duration
from alexnet_jax.run.intervals import Intervals
from alexnet_jax.run.metrics import read_rows, reproducible_rows
from alexnet_jax.run.recorder import Recorder
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.signals import DIVERGED_STATUS, RESUME_STATUS
from alexnet_jax.trainer import Trainer
from alexnet_jax.training import train


def leaves_of(workdir: Path, step: int) -> list[np.ndarray]:
    """Every array of a checkpoint's state."""
    setup = small_setup()
    with Checkpoints(workdir, keep=1, writable=False) as checkpoints:
        restored = checkpoints.restore_latest(setup)
    assert restored is not None
    assert restored[1]["step"] == step
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored[0])]


def steps_of(workdir: Path, split: str) -> list[int]:
    return [row["step"] for row in read_rows(workdir) if row["split"] == split]


def saved_in(workdir: Path) -> list[int]:
    """The steps whose checkpoints are finished."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def assert_same(workdir: Path, other: Path, step: int) -> None:
    """Holds two runs that ended at a step against each other, bit for bit."""
    assert reproducible_rows(workdir) == reproducible_rows(other)
    for ours, theirs in zip(leaves_of(workdir, step), leaves_of(other, step), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_intervals_of_a_run_with_partial_batches():
    """50 examples in batches of 8: epochs end within steps 7, 13, 19 and 25; three epochs are 18.75 steps."""
    intervals = Intervals(Config(batch_size=8, epochs=3.0, log_every=5), 50, True)
    steps = range(1, intervals.total_steps + 1)
    assert intervals.total_steps == 19
    assert [step for step in steps if intervals.validates_after(step)] == [7, 13, 19]
    assert [step for step in steps if intervals.saves_after(step)] == [7, 13, 19]
    assert [step for step in steps if intervals.logs(step)] == [5, 10, 15, 19]


def test_intervals_of_an_exact_epoch_and_given_intervals():
    exact = Intervals(Config(batch_size=10, epochs=2.0), 50, True)
    assert [step for step in range(1, 11) if exact.validates_after(step)] == [5, 10]
    given = Intervals(Config(batch_size=10, steps=10, eval_every=4, checkpoint_every=3), 50, True)
    assert [step for step in range(1, 11) if given.validates_after(step)] == [4, 8, 10]
    assert [step for step in range(1, 11) if given.saves_after(step)] == [3, 6, 9, 10]
    assert not any(Intervals(Config(batch_size=10, steps=5), 50, False).validates_after(step) for step in range(1, 6))


def wait_for_checkpoint(process: subprocess.Popen[str], workdir: Path, step: int) -> None:
    while not (workdir / "checkpoints" / str(step)).exists():
        assert process.poll() is None
        time.sleep(0.005)


@pytest.mark.slow
def test_kill_and_resume_is_the_uninterrupted_run_bit_for_bit(data_dir, tmp_path):
    """The killed run has no end, so the kill cannot come too late; both then end ten steps after what it had saved.

    It has as many devices as there are here, for how a sum over a device's threads is rounded depends on it.

    50 images in batches of 8: 25 steps are four epochs, and examples.jsonl tells who was in which batch.
    """
    options = {"log_every": 3, "eval_every": 4, "checkpoint_every": 5, "schedule": "plateau", "patience": 1}
    options |= {"log_examples": True, "mesh": "1x1"}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = start(
        "train", *tiny_flags(data_dir, cut, steps=10**6, host_devices=DEVICES, **options), stderr=subprocess.PIPE
    )
    wait_for_checkpoint(process, cut, 20)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert process.stderr is not None
    process.stderr.close()
    last = saved_in(cut)[-1]
    begun = (cut / "examples.jsonl").read_text().splitlines()[:last]
    end = last + 10
    resumed = run("train", *tiny_flags(data_dir, cut, steps=end, **options))
    assert resumed.returncode == 0, resumed.stderr
    assert f"step {last} of {end}" in resumed.stderr

    train(tiny_config(data_dir, whole, steps=end, **options))
    assert_same(cut, whole, end)
    assert steps_of(cut, "train") == sorted({*range(3, end, 3), end})
    assert steps_of(cut, "validation") == sorted({*range(4, end, 4), end})
    assert len({row["learning_rate"] for row in reproducible_rows(cut)}) > 1  # the plateau's drops were resumed too

    rows = read_rows(cut, name="examples.jsonl")
    assert (cut / "examples.jsonl").read_text().splitlines()[:last] == begun
    assert rows == read_rows(whole, name="examples.jsonl")
    assert [row["step"] for row in rows] == list(range(1, end + 1))
    seen = np.concatenate([row["examples"] for row in rows])
    epochs = seen[: len(seen) // 50 * 50].reshape(-1, 50)
    assert len(epochs) >= 4
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(50), (len(epochs), 1)))
    assert not np.array_equal(epochs[0], epochs[1])


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> tuple[Path, str]:
    """A run of nine steps, and what it said. The epoch ends within step 7."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = run("train", *tiny_flags(data_dir, workdir, **WHOLE))
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


WHOLE = {"steps": 9, "log_every": 2, "eval_every": 3, "checkpoint_every": 4, "keep": 1, "log_examples": True, "mesh": "1x1",
         "schedule": "plateau", "patience": 1, "max_drops": 1}  # fmt: skip


def test_a_run_writes_what_its_flags_say(whole):
    workdir, said = whole
    assert steps_of(workdir, "train") == [2, 4, 6, 8, 9]
    assert steps_of(workdir, "validation") == [3, 6, 9]
    rows = read_rows(workdir)
    assert [(row["epoch"], row["examples"]) for row in rows if row["split"] == "train"] == [
        (0.32, 16), (0.64, 16), (0.96, 16), (1.28, 16), (1.44, 8),
    ]  # fmt: skip
    assert {row["examples"] for row in rows if row["split"] == "validation"} == {21}
    assert all(0 < row["loss"] < 4 and 0 <= row["top5_error"] <= row["top1_error"] <= 100 for row in rows)
    assert all(row["images_per_second"] > 0 for row in rows)
    seen = [row["examples"] for row in read_rows(workdir, name="examples.jsonl")]
    assert [len(batch) for batch in seen] == [8] * 9
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)[:50]), np.arange(50))
    errors = {row["step"]: row["top1_error"] for row in rows if row["split"] == "validation"}
    assert saved_in(workdir) == [9]  # of 4, 8 and 9 the latest, which is the only one with a validation
    with Checkpoints(workdir, keep=1, writable=False) as checkpoints:
        assert checkpoints.best_step() == 9
    lines = said.splitlines()
    assert lines[0] == "paper_eighth on tiny: step 0 of 9, mesh 1x1 (data x tower), shard_map, float32"
    assert [line.split("validation")[0].split() for line in lines if "validation loss" in line] == [
        ["epoch", "0.48", "step", "3"], ["epoch", "0.96", "step", "6"], ["epoch", "1.44", "step", "9"],
    ]  # fmt: skip
    # The rate falls by drop_factor after the first validation that is no better, and not again.
    first = next(step for step in (6, 9) if errors[step] >= min(error for at, error in errors.items() if at < step))
    assert f"no better in 1 validations: learning rate 0.0001 from step {first + 1}" in lines
    assert said.count("no better") == 1
    rates = {row["step"]: row["learning_rate"] for row in rows if row["split"] == "train"}
    assert all(rate == pytest.approx(1e-3 if step <= first else 1e-4) for step, rate in rates.items())


@pytest.mark.slow
def test_a_run_that_goes_on_is_the_whole_run_bit_for_bit(data_dir, tmp_path, whole, monkeypatch):
    """It ends before its third save, which no checkpoint knows of; a row's window and the plateau began before that."""
    save, cut = Checkpoints.save, tmp_path / "run"

    def save_or_end(checkpoints, setup, state, progress, error):
        if progress["step"] == 8:
            raise ZeroDivisionError
        save(checkpoints, setup, state, progress, error)

    monkeypatch.setattr(Checkpoints, "save", save_or_end)
    with pytest.raises(ZeroDivisionError):
        train(tiny_config(data_dir, cut, **WHOLE | {"log_every": 3}))
    monkeypatch.undo()
    assert (saved_in(cut), steps_of(cut, "train")) == ([3, 4], [3, 6])  # 3 had the best validation
    assert len(read_rows(cut, name="examples.jsonl")) == 8
    rows_before = (cut / "metrics.jsonl").read_text().splitlines()
    resumed = run("train", *tiny_flags(data_dir, cut, **WHOLE | {"log_every": 3}))
    assert (resumed.returncode, "step 4 of 9" in resumed.stderr) == (0, True)
    first, second = read_rows(cut, name="starts.jsonl")
    assert [(row["step"], row["last_step"], row["end"]) for row in (first, second)] == [(0, 6, "failed"), (4, 9, "finished")]
    seconds = {row["step"]: row["seconds"] for row in read_rows(cut)}
    kept = second["seconds"] - second["phases"]["training"]  # by the checkpoint of step 4; two more steps were lost
    assert seconds[3] <= kept < first["seconds"]
    assert seconds[9] == pytest.approx(second["seconds"], abs=0.02)
    assert f"{duration(first['wall_seconds'] + second['wall_seconds'])} in 2 starts" in resumed.stderr
    assert steps_of(cut, "train") == [3, 6, 9]
    assert [json.loads(line)["loss"] for line in rows_before] == [row["loss"] for row in read_rows(cut)][: len(rows_before)]
    assert read_rows(cut, name="examples.jsonl") == read_rows(whole[0], name="examples.jsonl")
    validations = ([row for row in reproducible_rows(place) if row["split"] == "validation"] for place in (cut, whole[0]))
    assert next(validations) == next(validations)
    for ours, theirs in zip(leaves_of(cut, 9), leaves_of(whole[0], 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_finished_run_is_said_to_be_so_and_is_left_as_it_is(data_dir, whole):
    """The summary is that of its end, word for word."""
    workdir, said = whole
    before = {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "starts.jsonl")}
    events = sorted((workdir / "tensorboard").iterdir())
    done = run("train", *tiny_flags(data_dir, workdir, **WHOLE))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.splitlines() == [
        "already finished: a larger --steps or --epochs trains longer", *said.splitlines()[-6:],
    ]  # fmt: skip
    assert {name: (workdir / name).read_bytes() for name in before} == before
    assert sorted((workdir / "tensorboard").iterdir()) == events


def test_a_run_ends_with_its_summary(whole):
    """The numbers are those of its records."""
    workdir, said = whole
    (start,) = read_rows(workdir, name="starts.jsonl")
    rows = read_rows(workdir)
    validations = [row for row in rows if row["split"] == "validation"]
    best = min(validations, key=lambda row: row["top1_error"])
    lines = said.splitlines()[-6:]
    assert [line[:10].rstrip() for line in lines] == ["finished", "best error", "last error", "time", "folder", "next"]
    assert lines[1].startswith(f"best error  {best['top1_error']:.2f} % top-1, ")
    assert lines[2].endswith("on validation, checkpoint 9")
    assert f"in 1 start, {duration(start['seconds'])} of it in training steps" in lines[3]
    assert (start["step"], start["last_step"], start["end"]) == (0, 9, "finished")


def test_an_interrupted_start_notes_the_step_that_it_has_saved(data_dir, tmp_path, monkeypatch):
    """No row of metrics was written before."""
    progress = Recorder.progress

    def progress_and_signal(recorder, *arguments):
        progress(recorder, *arguments)
        if arguments[0] == 1:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.2)  # until the thread for signals has read it

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "progress", progress_and_signal)
        done = run("train", *tiny_flags(data_dir, tmp_path / "run", mesh="1x1", steps=9, log_every=9))
    assert done.returncode == RESUME_STATUS
    assert "goodput" not in done.stderr
    (start,) = read_rows(tmp_path / "run", name="starts.jsonl")
    assert (start["last_step"], start["end"]) == (saved_in(tmp_path / "run")[-1], "interrupted")


def test_rows_say_when_they_were_written_and_how_long_was_trained(whole):
    workdir, _ = whole
    rows, (start,) = read_rows(workdir), read_rows(workdir, name="starts.jsonl")
    times, seconds = ([row[name] for row in rows] for name in ("time", "seconds"))
    assert times == sorted(times)
    assert start["time"] <= times[0] <= times[-1] <= start["time"] + start["wall_seconds"]
    assert time.time() - 3600 < times[0] < time.time()
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] == pytest.approx(start["seconds"], abs=0.5)  # a busy machine may pause it in between
    assert start["seconds"] == start["phases"]["training"]
    assert sum(start["phases"].values()) == pytest.approx(start["wall_seconds"], abs=0.01)
    assert min(start["phases"][phase] for phase in ("compiling", "validating", "saving")) > 0
    # The first row is of two steps, of which the first has compiled and does not count.
    assert rows[0]["images_per_second"] * rows[0]["seconds"] == pytest.approx(8, rel=0.3)


def test_tensorboard_gets_the_kernels_at_each_validation_and_the_confusions_at_the_end(whole):
    found = values(events_in(whole[0])[0])
    shown = {(tag, step): value.image for (tag, step), value in found.items() if value.HasField("image")}
    assert sorted(shown) == [*(("train/conv1_kernels", step) for step in (3, 6, 9)), ("validation/confusions", 9)]
    kernels = np.asarray(Image.open(io.BytesIO(shown["train/conv1_kernels", 9].encoded_image_string)))
    with Checkpoints(whole[0], keep=1, writable=False) as checkpoints:
        kernel = checkpoints.restore_params(small_setup(), 9)["conv1"]["kernel"]
    np.testing.assert_array_equal(kernels, kernel_sheet(np.asarray(kernel)))


@pytest.mark.slow
def test_pmap_trains_resumes_on_another_mesh_and_records_like_shard_map(data_dir, tmp_path):
    train(tiny_config(data_dir, tmp_path / "a", steps=6, checkpoint_every=3))
    train(tiny_config(data_dir, tmp_path / "b", steps=3, spmd="pmap", mesh="2x2"))
    assert load_trained(str(tmp_path / "b")).params["conv1"]["kernel"].shape == (2, 11, 11, 3, 6)  # whole, as from shard_map
    train(tiny_config(data_dir, tmp_path / "b", steps=6, mesh="4x2"))
    ours, theirs = ({(row["step"], row["split"]): row["loss"] for row in read_rows(tmp_path / name)} for name in ("b", "a"))
    for step in ((2, "train"), (6, "train"), (6, "validation")):
        assert ours[step] == pytest.approx(theirs[step], rel=1e-4)


def test_a_resumed_run_may_not_become_another(data_dir, tmp_path, whole):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    before = (workdir / "config.json").read_bytes(), (workdir / "metrics.jsonl").read_bytes()
    for field, value, message in [
        ("batch_size", 4, "--batch_size was 8 and is now 4"),
        ("seed", 1, "--seed was 0 and is now 1"),
        ("architecture", "caffe", "--architecture was paper_eighth and is now caffe"),
        ("learning_rate", 0.5, "--learning_rate was 0.001 and is now 0.5"),
    ]:
        with pytest.raises(UserError, match=message):
            train(tiny_config(data_dir, workdir, **WHOLE | {field: value}))
    assert ((workdir / "config.json").read_bytes(), (workdir / "metrics.jsonl").read_bytes()) == before


@pytest.mark.slow
def test_a_resumed_run_may_be_longer_and_tell_more(data_dir, tmp_path, whole):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    train(tiny_config(data_dir, workdir, **WHOLE | {"steps": 11, "log_every": 1}))
    assert steps_of(workdir, "train") == [2, 4, 6, 8, 9, 10, 11]
    assert json.loads((workdir / "config.json").read_text())["config"]["steps"] == 11


@pytest.mark.parametrize(
    ("fields", "message", "saved"),
    [
        # The fourth update has the huge rate: the fifth loss is 1e27, and the update that follows is not finite.
        ({"layer_rates": "fc8:1e30@0.4", "checkpoint_every": 3}, "step 6: the loss is nan; checkpoint 3 is kept", [3]),
        pytest.param({"layer_rates": "fc8:1e30@0.4", "checkpoint_every": 1},
                     "step 5: a parameter is not finite; checkpoint 4 is kept", [1, 2, 3, 4], marks=pytest.mark.slow),
        ({"learning_rate": 1e20, "checkpoint_every": 6}, "step 2: the loss is nan; there is no checkpoint yet", []),
    ],
    ids=["loss", "parameter", "none yet"],
)  # fmt: skip
def test_a_run_that_is_no_longer_finite_stops_and_keeps_the_last_good_checkpoint(data_dir, tmp_path, fields, message, saved):
    result = run("train", *tiny_flags(data_dir, tmp_path / "bad", steps=8, keep=9, mesh="1x1", **fields))
    assert result.returncode == DIVERGED_STATUS == 65
    rate = f"{fields.get('learning_rate', 0.001):g}"
    assert result.stderr.splitlines()[-1] == f"error: {message}. Lower --learning_rate, which was {rate}"
    assert "Traceback" not in result.stderr
    assert saved_in(tmp_path / "bad") == saved
    assert max(steps_of(tmp_path / "bad", "train"), default=0) == (4 if saved else 0)
    if saved:
        assert all(np.isfinite(leaf).all() for leaf in leaves_of(tmp_path / "bad", saved[-1]))


@pytest.mark.slow
def test_colour_noise_ends_after_its_epochs(data_dir, tmp_path):
    """50 images in batches of 8: step 7 is the last that begins within the first epoch."""
    losses = {}
    for name, fields in {"none": {"colour_noise": "none"}, "never": {"colour_noise_epochs": 0}, "some": {}}.items():
        defaults = {"colour_noise_epochs": 1.0, "steps": 9, "log_every": 1, "freeze": tuple(small_setup().shapes)}
        train(tiny_config(data_dir, tmp_path / name, **defaults | fields))
        losses[name] = np.array([row["loss"] for row in read_rows(tmp_path / name) if row["split"] == "train"])
    np.testing.assert_allclose(losses["never"], losses["none"], rtol=1e-6)
    changed = ~np.isclose(losses["some"], losses["none"], rtol=1e-6)
    assert changed.tolist() == [True] * 7 + [False] * 2


def test_a_dead_network_is_told_once_and_noise_ends_after_its_epochs(data_dir, tmp_path, capsys, monkeypatch):
    """Nothing is learned. 50 images in batches of 8: step 7 is the last that begins within the first epoch."""
    monkeypatch.setattr("alexnet_jax.run.diagnostics.DEAD_AFTER_STEPS", 4)
    hparams_at, noises = Trainer.hparams_at, []

    def noted(trainer, progress):
        noises.append(hparams_at(trainer, progress).colour_noise)
        return hparams_at(trainer, progress)

    monkeypatch.setattr(Trainer, "hparams_at", noted)
    fields = {"colour_noise_epochs": 1.0, "steps": 9, "log_every": 1, "freeze": tuple(small_setup().shapes)}
    train(tiny_config(data_dir, tmp_path / "dead", **fields))
    assert noises == [COLOUR_NOISE] * 7 + [0.0] * 2
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: the network looks dead: after 4 steps the loss " in said
    entropy = float(said.split("class frequencies (")[1].split(",")[0])
    assert entropy < math.log(14) + 1e-3
    assert f"ln 14 = {math.log(14):.3f}" in said
    assert said.count("looks dead") == 1


@pytest.mark.slow
def test_frozen_layers_keep_their_parameters_and_the_others_learn(data_dir, tmp_path):
    train(tiny_config(data_dir, tmp_path / "frozen", freeze=("conv1", "fc7")))
    fresh = small_setup().initial_state().params
    with Checkpoints(tmp_path / "frozen", keep=1, writable=False) as checkpoints:
        trained = checkpoints.restore_params(small_setup(), 4)
    for layer in fresh:
        same = np.array_equal(fresh[layer]["kernel"], trained[layer]["kernel"])
        assert same == (layer in ("conv1", "fc7"))
