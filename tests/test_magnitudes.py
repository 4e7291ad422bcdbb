"""Magnitudes of weights and updates: those of NumPy on two checkpoints, on every mesh, in the record and in TensorBoard."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import constant_rates, small_batch, small_mean, small_setup, tiny_config

from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.metrics import read_rows
from alexnet_jax.run.param_stats import ParamStatsMeter
from alexnet_jax.step import ImageStats, StepHparams, make_train_step
from alexnet_jax.training import train


def mean_magnitude(x) -> float:
    """NumPy's, summed in float64."""
    return float(np.abs(x).mean(dtype=np.float64))


def check(values, name, before, after) -> None:
    """Holds the magnitudes of one parameter against its values before and after the step."""
    assert values[name] == pytest.approx(mean_magnitude(after), rel=1e-5)
    moved = np.asarray(after) - np.asarray(before)
    # A parameter is off by up to 2**-24 of it in float32, which is seen in the difference and not in the update itself.
    assert values[f"{name}_update"] == pytest.approx(mean_magnitude(moved), rel=1e-3, abs=2**-24 * values[name])


@pytest.mark.slow
def test_a_validation_records_what_the_checkpoints_hold(data_dir, tmp_path):
    """The update is the difference of the parameters before and after the step, also with the rate outside of the velocity.

    50 images in batches of 8: the rate falls after the third step, whose own rate it was not.
    """
    fields = {"steps": 3, "checkpoint_every": 1, "keep": 9, "weight_decay": 0.01, "learning_rate": 0.01}
    train(tiny_config(data_dir, tmp_path / "run", rate_in_velocity=False, schedule="steps", drop_epochs=["0.4"], **fields))
    rows = read_rows(tmp_path / "run")
    (row,) = (row for row in rows if row["split"] == "validation")
    assert not any("magnitudes" in row for row in rows if row["split"] == "train")
    setup = small_setup()
    with Checkpoints(tmp_path / "run", keep=9, writable=False) as checkpoints:
        before, after = (checkpoints.restore_params(setup, step) for step in (2, 3))
    assert list(row["magnitudes"]) == list(after)
    for layer, values in row["magnitudes"].items():
        assert list(values) == ["kernel", "kernel_update", "bias", "bias_update"]
        for name in ("kernel", "bias"):
            check(values, name, before[layer][name], after[layer][name])
    (events,) = (tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*")
    assert b"weights/conv1/kernel_update" in events.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("spmd", "mesh"), [("shard_map", "2x2"), ("pmap", "1x2")])
def test_they_are_global_wherever_the_towers_lie_and_leave_the_state_alone(spmd, mesh):
    setup = small_setup(spmd, mesh)
    put, fetch = setup.mesh.put, setup.mesh.fetch
    state = setup.initial_state()
    initial = fetch(state, setup.state_specs).params
    knobs = put(StepHparams(constant_rates(setup), np.float32(0.1)), P())
    pixels = put(ImageStats(small_mean(), np.eye(3, dtype=np.float32)), P())
    state, _ = make_train_step(setup)(state, put(small_batch(), P("data")), knobs, pixels)
    before = fetch(state, setup.state_specs)
    with jax.transfer_guard("disallow"):
        found = ParamStatsMeter(setup)(state, constant_rates(setup))
    for ours, theirs in zip(jax.tree.leaves(fetch(state, setup.state_specs)), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for layer, values in found.items():
        for name in ("kernel", "bias"):
            check(values, name, initial[layer][name], before.params[layer][name])
    first, second = (mean_magnitude(before.params["conv1"]["kernel"][tower]) for tower in (0, 1))
    assert abs(first / second - 1) > 1e-3  # so that one tower's mean would not pass for that of both
