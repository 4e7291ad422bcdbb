"""Checkpoints: any mesh to any other, what is kept, what damage does, whose checkpoint it is."""

import gc
import shutil
import time

import jax
import numpy as np
import pytest
from networks import LAYOUTS, small_model

from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.errors import UserError
from alexnet_jax.step import TrainState

# Orbax leaves the other reads of a failed restore to an event loop that is closed when they end; see `collected` too.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(autouse=True)
def collected():
    """Lets such reads end and be reported here, and not in the middle of another module's test."""
    yield
    time.sleep(0.2)
    gc.collect()


def whole_state(model, state: TrainState) -> list[np.ndarray]:
    """Every array, whichever way it lies."""
    specs = model.state_specs
    return jax.tree.leaves(TrainState(*(model.mesh.fetch(part, spec) for part, spec in zip(state, specs, strict=True))))


def save(workdir, model, steps, errors=(), keep=2):
    """Checkpoints of the initial state, with a recognisable velocity, under several step numbers."""
    state = model.initial_state()
    state = state._replace(optimizer=jax.tree.map(lambda x: x + 0.5, state.optimizer))
    with Checkpoints(workdir, keep=keep, writable=True) as checkpoints:
        for step, error in zip(steps, errors or [None] * len(steps), strict=True):
            checkpoints.save(model, state, {"step": step}, error)
    return state


@pytest.fixture(scope="module", params=[("shard_map", "1x1"), ("pmap", "2x2")], ids=str)
def saved(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    model = small_model(*request.param)
    return workdir, whole_state(model, save(workdir, model, [5]))


@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_one_checkpoint_restores_on_every_mesh(saved, spmd, mesh):
    workdir, expected = saved
    model = small_model(spmd, mesh)
    with Checkpoints(workdir, keep=2, writable=False) as checkpoints:
        state, progress = checkpoints.restore_latest(model)
        params = checkpoints.restore_params(model, 5)
    assert progress == {"step": 5}
    ours = whole_state(model, state)
    assert ours[0] == 5
    for restored, original in zip(ours[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(restored, original)
    for restored, original in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        assert restored.sharding == original.sharding
        np.testing.assert_array_equal(restored, original)


def test_the_latest_and_the_best_are_kept(tmp_path):
    save(tmp_path, small_model(), [1, 2, 3, 4, 5, 6], [50.0, 30.0, 40.0, None, 35.0, 45.0], keep=2)
    with Checkpoints(tmp_path, keep=2, writable=False) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2


def test_what_an_interrupted_save_left_is_cleared_away_by_the_next_trainer_only(tmp_path):
    left_over = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp" / "params"
    left_over.mkdir(parents=True)
    (left_over / "half").write_bytes(b"0" * 100)
    for writable in (False, True):
        with Checkpoints(tmp_path, keep=2, writable=writable) as checkpoints:
            assert checkpoints.steps() == []
            assert left_over.exists() != writable
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_needs_its_parameters_and_as_much_velocity(tmp_path, monkeypatch):
    model = small_model()
    needed = 2 * sum(x.nbytes for x in jax.tree.leaves(model.initial_state().params))
    usage = shutil.disk_usage(tmp_path)
    with Checkpoints(tmp_path, keep=2, writable=True) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
        checkpoints.check_room(model)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
        with pytest.raises(UserError, match=r"checkpoints cannot be written: a checkpoint takes .*there is no checkpoint"):
            checkpoints.check_room(model)


def test_no_checkpoint_was_validated(tmp_path):
    save(tmp_path, small_model(), [1, 2])
    with Checkpoints(tmp_path, keep=2, writable=False) as checkpoints:
        assert checkpoints.best_step() is None


def largest_file(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "commit_success.txt")
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("item", ["params", "optimizer", "progress"])
@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, item, damage):
    model = small_model()
    expected = whole_state(model, save(tmp_path, model, [3, 7]))
    broken = largest_file(tmp_path / "checkpoints" / "7" / item)
    if damage == "truncate":
        with broken.open("r+b") as file:
            file.truncate(broken.stat().st_size // 2)
    else:
        broken.unlink()
    with Checkpoints(tmp_path, keep=2, writable=True) as checkpoints:
        state, progress = checkpoints.restore_latest(model)
        assert progress == {"step": 3}
        assert "checkpoint 7 cannot be read" in caplog.text
        assert checkpoints.steps() == [3]
        assert (tmp_path / "damaged" / "7").exists()  # nothing is lost
        checkpoints.save(model, state, {"step": 7}, None)  # and its place is free again
    np.testing.assert_array_equal(whole_state(model, state)[1], expected[1])
    with Checkpoints(tmp_path, keep=2, writable=False) as checkpoints:
        assert checkpoints.restore_latest(model)[1] == {"step": 7}


def test_no_readable_checkpoint_is_an_error_and_not_a_fresh_start(tmp_path):
    model = small_model()
    save(tmp_path, model, [3])
    largest_file(tmp_path / "checkpoints" / "3" / "params").unlink()
    with (
        Checkpoints(tmp_path, keep=2, writable=True) as checkpoints,
        pytest.raises(UserError, match=r"none of the checkpoints \[3\]"),
    ):
        checkpoints.restore_latest(model)


def test_a_checkpoint_of_another_network_is_named_and_left_alone(tmp_path):
    save(tmp_path, small_model(architecture="no_crosstalk"), [3])
    message = (
        r"checkpoint .*/3 holds another network: conv2.bias is \(2, 160\) there and \(2, 128\) for --architecture=paper"
    )
    with Checkpoints(tmp_path, keep=2, writable=True) as checkpoints:
        with pytest.raises(UserError, match=message):
            checkpoints.restore_latest(small_model())
        with pytest.raises(UserError, match=message):
            checkpoints.restore_params(small_model(), 3)
        assert checkpoints.steps() == [3]
