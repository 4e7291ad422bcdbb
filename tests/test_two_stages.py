"""A run that goes on where another one ended, on other images: its parameters and its velocity."""

from pathlib import Path

import jax
import numpy as np
import pytest
from networks import run, small_setup, tiny_flags

from alexnet_jax.config import as_dict, from_words
from alexnet_jax.run.checkpoint import Checkpoints

FIRST = {"steps": 2, "fold": "0/5", "mesh": "1x1", "checkpoint_every": 1}


def stage(data_dir: Path, workdir: Path, **fields) -> str:
    """Trains one, and gives what it said."""
    result = run("train", *tiny_flags(data_dir, workdir, **{"mesh": "1x1"} | fields))
    assert result.returncode == 0, result.stderr
    return result.stderr


def restored(workdir: Path, step: int, what: str = "params") -> list[np.ndarray]:
    """The parameters or the velocity of a checkpoint."""
    with Checkpoints(workdir, keep=1, writable=False) as checkpoints:
        restore = checkpoints.restore_params if what == "params" else checkpoints.restore_velocity
        return [np.asarray(x) for x in jax.tree.leaves(restore(small_setup(), step))]


@pytest.fixture(scope="module")
def first(data_dir, tmp_path_factory) -> Path:
    """The first stage: two steps on four fifths."""
    workdir = tmp_path_factory.mktemp("stages") / "first"
    stage(data_dir, workdir, **FIRST)
    return workdir


@pytest.mark.parametrize("mesh", ["1x1", pytest.param("2x2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("spmd", ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_the_next_step_moves_by_what_is_left_of_the_velocity(data_dir, tmp_path, first, spmd, mesh):
    """At a rate of 0 a step is w := w + 0.9 v, and w := w without the velocity."""
    still = {"steps": 1, "learning_rate": 0, "init": first, "spmd": spmd, "mesh": mesh}
    said = stage(data_dir, tmp_path / "on", init_velocity=True, **still)
    assert f"from {first} with its velocity: conv1, conv2" in " ".join(said.split())
    stage(data_dir, tmp_path / "anew", **still)
    after = zip(*(restored(tmp_path / name, 1) for name in ("on", "anew")), strict=True)
    before = zip(restored(first, 2), restored(first, 2, "velocity"), strict=True)
    for (moved, kept), (w, v) in zip(after, before, strict=True):
        assert np.abs(v).max() > 0
        np.testing.assert_allclose(moved, w + np.float32(0.9) * v, rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(kept, w)


@pytest.mark.slow
def test_a_second_stage_that_is_stopped_goes_on_bit_for_bit(data_dir, tmp_path, first):
    for name, ends in (("whole", (4,)), ("stopped", (1, 4))):
        for steps in ends:
            stage(data_dir, tmp_path / name, init=first, init_velocity=True, steps=steps)
    for what in ("params", "velocity"):
        for a, b in zip(restored(tmp_path / "whole", 4, what), restored(tmp_path / "stopped", 4, what), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("name", "epochs", "drops"), [("13pct", (100, 60), (40, 50)), ("11pct", (350, 170), (150, 160))])
def test_the_recipes_for_cifar10_differ_in_what_the_second_stage_is_about(name, epochs, drops):
    """cuda-convnet's methodology: four fifths, then all images at the same rate, then ten epochs at two lower ones each."""
    first = from_words([f"--flagfile=experiments/cifar10/{name}.cfg"])
    second = from_words([f"--flagfile=experiments/cifar10/{name}_all.cfg", "--init=runs/first"])
    changed = {field: value for field, value in as_dict(second).items() if value != as_dict(first)[field]}
    assert changed == {
        "init": "runs/first", "init_velocity": True, "mean": "own", "fold": "", "schedule": "steps",
        "drop_epochs": [str(epoch) for epoch in drops], "epochs": epochs[1],
    }  # fmt: skip
    assert (first.epochs, str(first.fold), first.schedule, first.learning_rate) == (epochs[0], "0/5", "constant", 0.001)
    assert drops[1] + 10 == second.epochs


def test_a_velocity_of_another_kind_is_refused(data_dir, tmp_path, first):
    flags = tiny_flags(data_dir, tmp_path / "run", init=first, init_velocity=True, mesh="1x1", rate_in_velocity=False)
    result = run("train", *flags)
    assert result.returncode == 1
    assert f"--init_velocity: --init={first} was trained with --rate_in_velocity: choose it too" in result.stderr
    assert not (tmp_path / "run").exists()
