"""Averages of weights: over steps while training (`--ema`), and over checkpoints (`evaluate --average`)."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import run, small_setup, tiny_flags

from alexnet_jax.inference.predictor import load_trained
from alexnet_jax.optimizer import average_weights
from alexnet_jax.run.metrics import read_rows, reproducible_rows
from alexnet_jax.run.open import open_run
from alexnet_jax.values import MeshShape

AVERAGING = {"ema": 0.5, "learning_rate": 0.05, "checkpoint_every": 1, "eval_every": 2, "keep": 4, "mesh": "1x1"}


def assert_close(found, expected, **tolerance) -> None:
    """Holds trees of arrays against each other."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


def weighted(kept: list, decay: float):
    """The average of parameters after steps 1, 2, and so on: each counts `decay` times as much as the next."""
    shares = decay ** np.arange(len(kept))[::-1]
    return jax.tree.map(lambda *parts: sum(map(np.multiply, shares / shares.sum(), parts)), *kept)


@pytest.mark.parametrize("decay", [0.7, 0.9999, 0.999999])
def test_the_average_is_the_weighted_mean_of_the_weights_after_each_step(decay):
    """With a decay near 1 it is almost the plain mean of the steps so far, in float32 too."""
    rng = np.random.default_rng(0)
    optimizer = optax.chain(optax.sgd(0.3), average_weights(decay))
    params = {"conv1": {"kernel": rng.normal(size=(2, 3, 4)).astype(np.float32), "bias": np.ones(4, np.float32)}}
    state, kept = optimizer.init(params), []
    for _ in range(6):
        gradients = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), params)
        updates, state = optimizer.update(gradients, state, params)
        assert_close(updates, jax.tree.map(lambda g: np.float32(-0.3) * g, gradients), rtol=1e-6)
        params = optax.apply_updates(params, updates)
        kept.append(jax.device_get(params))
        assert_close(optax.tree.get(state, "ema"), weighted(kept, decay), rtol=2e-5, atol=1e-6)


def test_without_it_the_state_has_the_velocity_alone():
    plain, averaged = (small_setup(ema=decay).state_specs.optimizer for decay in (0.0, 0.9))
    count = len(jax.tree.leaves(small_setup().shapes))
    assert [len(jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, jax.P))) for specs in (plain, averaged)] == [
        count, 2 * count + 1,
    ]  # fmt: skip
    assert optax.tree.get(averaged, "ema") == small_setup().specs


@pytest.fixture(scope="module")
def averaging(data_dir, tmp_path_factory) -> Path:
    """Four steps with checkpoints of each, and validations after the second and the fourth."""
    workdir = tmp_path_factory.mktemp("averages") / "run"
    result = run("train", *tiny_flags(data_dir, workdir, **AVERAGING))
    assert result.returncode == 0, result.stderr
    return workdir


def parameters(workdir: Path, step: int, mesh: MeshShape = MeshShape(1, 1), **how):
    return jax.device_get(open_run(str(workdir), mesh=mesh, spmd="shard_map").restore(str(step), **how).params)


def evaluated(workdir: Path, *words: str) -> dict:
    """The last line of `evaluate`."""
    result = run("evaluate", "--mesh=1x1", f"--workdir={workdir}", "--split=validation", *words)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_keeps_and_judges_both_weights(averaging):
    kept = [parameters(averaging, step) for step in (1, 2, 3, 4)]
    for step in (2, 4):
        found = parameters(averaging, step, weights="ema")
        assert_close(found, weighted(kept[:step], 0.5), rtol=1e-6, atol=1e-8)
        assert not np.allclose(found["fc8"]["kernel"], kept[step - 1]["fc8"]["kernel"], rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, parameters(averaging, 4, MeshShape(2, 2), weights="ema"), found)
    rows = [row for row in read_rows(averaging) if row["split"] == "validation"]
    for row in rows:
        for words, numbers in (((), row), (("--weights=ema",), row["ema"])):
            score = evaluated(averaging, f"--step={row['step']}", *words)
            assert {name: score[name] for name in row["ema"]} == pytest.approx({name: numbers[name] for name in row["ema"]})
            assert score.get("weights") == ("ema" if words else None)
        assert abs(row["ema"]["loss"] - row["loss"]) > 1e-4
    assert load_trained(averaging, weights="ema").title.endswith("step 4, ema")


@pytest.mark.slow
@pytest.mark.parametrize(("spmd", "mesh"), [("shard_map", "1x1"), ("pmap", "2x2")])
def test_a_run_that_is_stopped_goes_on_with_the_same_average(data_dir, tmp_path, averaging, spmd, mesh):
    """On the same mesh bit for bit. Two steps come from the whole run's own second checkpoint."""
    shutil.copytree(averaging, tmp_path / "run")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    flags = tiny_flags(data_dir, tmp_path / "run", **AVERAGING | {"spmd": spmd, "mesh": mesh})
    assert run("train", *flags).returncode == 0
    found, expected = (parameters(workdir, 4, weights="ema") for workdir in (tmp_path / "run", averaging))
    if mesh == "1x1":
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert reproducible_rows(tmp_path / "run") == reproducible_rows(averaging)
    else:
        assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_weights_of_the_last_checkpoints_are_averaged(averaging):
    """The last two, or those of steps 2 and 3; or the averages of three."""
    for words, steps in (({"step": "4"}, (3, 4)), ({"step": "3"}, (2, 3)), ({"step": "4", "weights": "ema"}, (2, 3, 4))):
        how = {name: value for name, value in words.items() if name != "step"}
        parts = [parameters(averaging, step, **how) for step in steps]
        expected = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *parts)
        found = parameters(averaging, int(words["step"]), average=len(steps), **how)
        assert_close(found, expected, rtol=1e-6, atol=1e-9)
        assert not np.allclose(found["fc8"]["kernel"], parts[-1]["fc8"]["kernel"], rtol=1e-4)
    assert evaluated(averaging, "--average=3", "--weights=ema")["averaged"] == [2, 3, 4]
    refused = run("evaluate", "--mesh=1x1", f"--workdir={averaging}", "--average=5")
    assert refused.stderr.startswith(f"error: --average=5: {averaging} has 4 up to step 4: average fewer")
