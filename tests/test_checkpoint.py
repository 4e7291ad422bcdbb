"""Checkpoints: any mesh to any other, what is kept, what damage does, whose checkpoint it is."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils
from networks import LAYOUTS, small_setup

from alexnet_jax.run.checkpoint import DAMAGED, FAILED, Checkpoints
from alexnet_jax.run.chosen import chosen_step, chosen_steps
from alexnet_jax.run.reader import CheckpointReader
from alexnet_jax.step import Setup, TrainState, make_checksum
from alexnet_jax.system.errors import UserError


def whole_state(setup, state: TrainState) -> list[np.ndarray]:
    """Every array, whichever way it lies."""
    specs = setup.state_specs
    return jax.tree.leaves(TrainState(*(setup.mesh.fetch(part, spec) for part, spec in zip(state, specs, strict=True))))


@functools.cache
def begun(spmd: str = "shard_map", mesh: str = "1x1", **fields) -> tuple[Setup, TrainState]:
    """A model with its initial state and a recognisable velocity, which no test gives away to a step."""
    setup = small_setup(spmd, mesh, **fields)
    state = setup.initial_state()
    return setup, state._replace(optimizer=jax.tree.map(lambda x: x + 0.5, state.optimizer))


def save(workdir, setup, state, steps, errors=(), keep=2) -> None:
    """Checkpoints of one state under several step numbers."""
    with Checkpoints(workdir, keep=keep, writable=True) as checkpoints:
        for step, error in zip(steps, errors or [None] * len(steps), strict=True):
            checkpoints.save(setup, state, {"step": step}, error)


def reading(workdir) -> Checkpoints:
    return Checkpoints(workdir, keep=2, writable=False)


@pytest.fixture(scope="module", params=[("shard_map", "1x1"), ("pmap", "2x2")], ids=str)
def saved(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    setup, state = begun(*request.param)
    save(workdir, setup, state, [5])
    return workdir, whole_state(setup, state)


def check_restored(workdir: Path, expected: list[np.ndarray], setup: Setup) -> None:
    with reading(workdir) as checkpoints:
        state, progress = checkpoints.restore_latest(setup)
        params = checkpoints.restore_params(setup, 5)
    assert progress == {"step": 5}
    ours = whole_state(setup, state)
    assert ours[0] == 5
    for restored, original in zip(ours[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(restored, original)
    for restored, original in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        assert restored.sharding == original.sharding
        np.testing.assert_array_equal(restored, original)


@pytest.mark.slow
@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_one_checkpoint_restores_on_every_mesh(saved, spmd, mesh):
    check_restored(*saved, small_setup(spmd, mesh))


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Checkpoints of steps 3 and 7, for reading and for copies."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    save(workdir, *begun(), [3, 7])
    return workdir


@pytest.fixture
def copied(two, tmp_path) -> Path:
    """The same two, to be damaged."""
    shutil.copytree(two, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_checkpoint_restores_on_another_mesh(tmp_path):
    setup, state = begun()
    save(tmp_path, setup, state, [5])
    check_restored(tmp_path, whole_state(setup, state), small_setup(mesh="2x2"))


def test_the_latest_and_the_best_are_kept(tmp_path):
    save(tmp_path, *begun(), [1, 2, 3, 4, 5, 6], [50.0, 30.0, 40.0, None, 35.0, 45.0], keep=2)
    with reading(tmp_path) as checkpoints:
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2
        assert [chosen_step(checkpoints, "W", step) for step in ("best", "latest", "5")] == [2, 6, 5]
        assert [chosen_steps(checkpoints, "W", step, 2) for step in ("latest", "5")] == [[5, 6], [2, 5]]
        with pytest.raises(
            UserError, match="--average=3: W has 2 up to step 5: average fewer, or train with a larger --keep"
        ):
            chosen_steps(checkpoints, "W", "5", 3)
        for step in ("4", "-2", "newest", "2.0"):
            with pytest.raises(UserError, match=f"--step={step}: W has the checkpoints 2, 5, 6, 'latest' and 'best'"):
                chosen_step(checkpoints, "W", step)


def test_no_checkpoint_was_validated_or_there_is_none(two, tmp_path):
    with reading(two) as checkpoints:
        assert checkpoints.best_step() is None
        with pytest.raises(UserError, match="--step=best: no checkpoint in W was validated"):
            chosen_step(checkpoints, "W", "best")
    with Checkpoints(tmp_path, keep=2, writable=True) as checkpoints:
        assert checkpoints.best_step() is None
        assert checkpoints.restore_latest(small_setup()) is None
        with pytest.raises(UserError, match="the run in W has no finished checkpoint yet"):
            chosen_step(checkpoints, "W", "latest")


def test_a_step_is_saved_again_with_its_validation(copied):
    setup, state = begun()
    with Checkpoints(copied, keep=2, writable=True) as checkpoints:
        checkpoints.save(setup, state, {"step": 7, "again": True}, 12.5)
    with reading(copied) as checkpoints:
        assert (checkpoints.steps(), checkpoints.best_step()) == ([3, 7], 7)
        assert checkpoints.restore_latest(setup)[1] == {"step": 7, "again": True}


def test_a_run_that_only_reads_makes_no_folder(tmp_path):
    with reading(tmp_path) as checkpoints:
        assert checkpoints.steps() == []
    assert list(tmp_path.iterdir()) == []


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
    setup, state = begun()
    needed = 2 * sum(x.nbytes for x in jax.tree.leaves(state.params))
    usage = shutil.disk_usage(tmp_path)
    with Checkpoints(tmp_path, keep=2, writable=True) as checkpoints:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
        checkpoints.check_room(setup)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(total=0, free=0))  # it does not say
        checkpoints.check_room(setup)
        checkpoints.save(setup, state, {"step": 3}, None)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
        takes = rf"checkpoints cannot be written: a checkpoint takes {needed / 1e6:,.1f} MB and the disk has .* MB left"
        with pytest.raises(UserError, match=rf"{takes}; checkpoint 3 is kept"):
            checkpoints.save(setup, state, {"step": 4}, None)
        assert checkpoints.steps() == [3]
    with (
        Checkpoints(tmp_path / "other", keep=2, writable=True) as checkpoints,
        pytest.raises(UserError, match=rf"{takes}; there is no checkpoint yet"),
    ):
        checkpoints.check_room(setup)


def largest_file(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "commit_success.txt")
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("item", "damage"),
    [
        ("params", "truncate"),
        ("progress", "delete"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("params", "delete"), ("optimizer", "truncate"), ("optimizer", "delete"), ("progress", "truncate"))
        ),
    ],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(copied, caplog, item, damage):
    setup, saved_state = begun()
    broken = largest_file(copied / "checkpoints" / "7" / item)
    if damage == "truncate":
        with broken.open("r+b") as file:
            file.truncate(broken.stat().st_size // 2)
    else:
        broken.unlink()
    with Checkpoints(copied, keep=2, writable=True) as checkpoints:
        state, progress = checkpoints.restore_latest(setup)
        assert progress == {"step": 3}
        assert "checkpoint 7 is damaged" in caplog.text
        assert checkpoints.steps() == [3]
        assert (copied / "damaged" / "7").exists()  # nothing is lost
        checkpoints.save(setup, state, {"step": 7}, None)  # and its place is free again
    np.testing.assert_array_equal(whole_state(setup, state)[1], whole_state(setup, saved_state)[1])
    with reading(copied) as checkpoints:
        assert checkpoints.restore_latest(setup)[1] == {"step": 7}


@pytest.mark.slow
def test_no_readable_checkpoint_is_an_error_at_every_start_until_the_user_gives_them_up(copied):
    """What was set aside before stays; each has a place of its own."""
    for name in ("7", "7-2"):
        (copied / "damaged" / name).mkdir(parents=True)
    for step in ("3", "7"):
        largest_file(copied / "checkpoints" / step / "params").unlink()
    before = sorted(copied.rglob("*"))
    for _ in range(2):
        with (
            Checkpoints(copied, keep=2, writable=True) as checkpoints,
            pytest.raises(
                UserError, match=r"none of the checkpoints \[3, 7\] in .* can be read: .*begin .* with --start_over"
            ),
        ):
            checkpoints.restore_latest(small_setup())
        assert sorted(copied.rglob("*")) == before
    with Checkpoints(copied, keep=2, writable=True) as checkpoints:
        assert checkpoints.restore_latest(small_setup(), start_over=True) is None
        assert checkpoints.steps() == []
    assert sorted(path.name for path in (copied / "damaged").iterdir()) == ["3", "7", "7-2", "7-3"]


def put_in_place_of(file: Path, content: bytes) -> None:
    file.write_bytes(content)


# What makes a finished checkpoint damaged, beside what the tests above do.
DAMAGE = {
    "zeros": lambda folder: put_in_place_of(file := largest_file(folder / "params"), bytes(file.stat().st_size)),
    "an item is gone": lambda folder: shutil.rmtree(folder / "optimizer"),
    "it is empty": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    "no manifest": lambda folder: put_in_place_of(folder / "params" / "manifest.ocdbt", b"x"),
    "progress of another kind": lambda folder: put_in_place_of(folder / "progress" / "metadata", b"[1, 2]"),
    "progress of another step": lambda folder: put_in_place_of(folder / "progress" / "metadata", b'{"step": 5}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_whoever_only_reads_goes_by_damage_and_moves_nothing(copied, damage):
    DAMAGE[damage](copied / "checkpoints" / "7")
    before = sorted(copied.rglob("*"))
    with reading(copied) as checkpoints:
        assert checkpoints.restore_latest(small_setup())[1] == {"step": 3}
    assert sorted(copied.rglob("*")) == before


def io_error(folder: Path, monkeypatch) -> str:
    """A file whose reading fails with EIO: the memory of this process from address 0 on."""
    file = largest_file(folder / "params")
    file.unlink()
    file.symlink_to("/proc/self/mem")
    return "Input/output error"


def forbidden(folder: Path, monkeypatch) -> str:
    """Root may read everything, so this process is somebody else until the test ends."""
    largest_file(folder / "optimizer").chmod(0)
    for path in (folder, *folder.parents[:5], *folder.rglob("*")):
        if path.is_dir():
            path.chmod(path.stat().st_mode | 0o055)
    os.seteuid(65534)
    return "Permission denied"


def away(folder: Path, monkeypatch) -> str:
    """The storage is taken away in the middle of a read."""
    restore, where = ocp.StandardCheckpointHandler.restore, folder.parent

    def read_and_lose(handler, *arguments, **options):
        if where.exists():
            where.rename(where.with_name("elsewhere"))
        return restore(handler, *arguments, **options)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", read_and_lose)
    return "No such file or directory"


def exhausted(folder: Path, monkeypatch) -> str:
    """A device without memory, as JAX says it."""

    def restore(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", restore)
    return "does not fit into the memory"


@pytest.mark.parametrize("fault", [io_error, forbidden, away, exhausted])
def test_a_disk_or_a_memory_that_fails_is_not_taken_for_damage(copied, monkeypatch, fault):
    """Two starts in a row stop with one line, and the healthy checkpoints stay where they are."""
    before = sorted(path.name for path in copied.rglob("*"))
    with Checkpoints(copied, keep=2, writable=True) as checkpoints:
        try:
            said = fault(copied / "checkpoints" / "7", monkeypatch)
            for _ in range(2):
                with pytest.raises(UserError, match=rf"^checkpoint .*/7 .*{said}[^\n]*$"):
                    checkpoints.restore_latest(small_setup())
        finally:
            os.seteuid(0) if os.getuid() == 0 else None
            monkeypatch.undo()
        if (copied / "elsewhere").exists():
            (copied / "elsewhere").rename(copied / "checkpoints")
    assert sorted(path.name for path in copied.rglob("*")) == before


def test_a_mistake_of_ours_is_not_taken_for_damage(copied, monkeypatch):
    def restore(*_, **__):
        raise TypeError("restore() got an unexpected keyword argument")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", restore)
    with Checkpoints(copied, keep=2, writable=True) as checkpoints:
        with pytest.raises(TypeError, match="unexpected keyword"):
            checkpoints.restore_latest(small_setup())
        assert checkpoints.steps() == [3, 7]


def test_what_the_other_of_two_processes_cannot_read_is_given_up_here_too(copied, monkeypatch):
    read = CheckpointReader.state

    def state(reader, setup, step):
        restored = read(reader, setup, step)
        monkeypatch.setattr(jax, "process_count", lambda: 2)  # from here on, for Orbax reads alone
        return restored

    def gathered(mine):
        monkeypatch.setattr(jax, "process_count", lambda: 1)
        return np.stack([mine, outcomes.pop(0)])

    monkeypatch.setattr(CheckpointReader, "state", state)
    monkeypatch.setattr(multihost_utils, "process_allgather", gathered)
    with reading(copied) as checkpoints:
        outcomes = [DAMAGED, 0]
        assert checkpoints.restore_latest(small_setup())[1]["step"] == 3
        outcomes = [FAILED]
        with pytest.raises(UserError, match="/7 cannot be read by another process for now"):
            checkpoints.restore_latest(small_setup())


def test_a_folder_of_the_users_own_among_the_checkpoints_stays(copied):
    (copied / "checkpoints" / "kept by hand").mkdir()
    save(copied, *begun(), [9])
    assert (copied / "checkpoints" / "kept by hand").exists()
    with reading(copied) as checkpoints:
        assert checkpoints.steps() == [7, 9]


def test_a_checkpoint_that_was_about_to_be_saved_again_is_put_back(copied):
    """Killed after the old one was moved, and before the new one was finished."""
    (copied / "replaced").mkdir()
    (copied / "checkpoints" / "7").rename(copied / "replaced" / "7")
    with Checkpoints(copied, keep=2, writable=True) as checkpoints:
        assert checkpoints.restore_latest(small_setup())[1] == {"step": 7}
    assert not (copied / "replaced").exists()


def test_parameters_that_cannot_be_read_are_an_error(copied):
    largest_file(copied / "checkpoints" / "7" / "params").unlink()
    with reading(copied) as checkpoints:
        with pytest.raises(UserError, match=r"checkpoint .*/7 is damaged: \S"):
            checkpoints.restore_params(small_setup(), 7)
        assert checkpoints.steps() == [3, 7]  # a reader leaves it where it is


@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_a_value_that_changed_on_the_disk_is_not_trained_on(copied, caplog, item):
    """The newest checkpoint is written again by Orbax itself with one bit of one value turned: it parses."""
    setup = small_setup()
    folder = copied / "checkpoints" / "7" / item
    with ocp.StandardCheckpointer() as checkpointer:
        tree = jax.tree.map(np.array, checkpointer.restore(folder))
        leaf = jax.tree.leaves(tree)[5]
        leaf.reshape(-1).view(np.uint32)[-3] ^= 1
        checkpointer.save(folder, tree, force=True)
        checkpointer.wait_until_finished()
    with reading(copied) as checkpoints:
        if item == "params":
            with pytest.raises(UserError, match=r"checkpoint .*/7 is damaged: params has the checksum"):
                checkpoints.restore_params(setup, 7)
        checkpoints.restore_params(setup, 3)
    with Checkpoints(copied, keep=2, writable=True) as checkpoints:
        assert checkpoints.restore_latest(setup)[1] == {"step": 3}
    assert f"checkpoint 7 is damaged: {item} has the checksum" in caplog.text


@pytest.mark.parametrize(
    ("spmd", "mesh"),
    [
        ("shard_map", "1x1"),
        pytest.param("shard_map", "4x2", marks=pytest.mark.slow),
        pytest.param("pmap", "2x2", marks=pytest.mark.slow),
    ],
)
def test_the_checksum_is_that_of_the_whole_arrays_on_every_mesh(spmd, mesh):
    setup, state = begun(spmd, mesh)
    found = setup.mesh.fetch(make_checksum(setup.mesh, setup.specs)(state.params), jax.sharding.PartitionSpec())
    total = 0
    for leaf in jax.tree.leaves(setup.mesh.fetch(state.params, setup.specs)):
        bits = leaf.reshape(-1).view(np.uint32).astype(np.uint64)
        weighted = bits * (2 * np.arange(bits.size, dtype=np.uint64) + 1) % 2**32
        total = (total * 16777619 + int(weighted.sum())) % 2**32
    assert int(found) == total


def test_a_checkpoint_of_another_network_is_named_and_left_alone(two):
    setup = small_setup()
    fewer = dataclasses.replace(setup, shapes={name: leaf for name, leaf in setup.shapes.items() if name != "conv4"})
    more = dataclasses.replace(setup, shapes=dict(setup.shapes) | {"conv9": setup.shapes["conv4"]})
    for other, difference in (
        (
            small_setup(architecture="no_crosstalk"),
            r"conv1.bias is \(2, 6\) there and \(2, 48\) for --architecture=no_crosstalk",
        ),
        (fewer, r"conv4.bias is \(2, 24\) there and missing for --architecture=paper_eighth"),
        (more, r"conv9.bias is missing there and \(2, 24\) for --architecture=paper_eighth"),
    ):
        with reading(two) as checkpoints:
            with pytest.raises(UserError, match=rf"checkpoint .*/7 holds another network: {difference}"):
                checkpoints.restore_latest(other)
            with pytest.raises(UserError, match=rf"checkpoint .*/3 holds another network: {difference}"):
                checkpoints.restore_params(other, 3)
            assert checkpoints.steps() == [3, 7]
