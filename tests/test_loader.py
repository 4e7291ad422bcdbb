"""Batches on the devices come in the order asked for: from the host or the devices, on every mesh."""

import threading

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import LAYOUTS, make_mesh
from test_splits import numbered

from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Order, Subset, fold_split, whole
from alexnet_jax.data.store import Split
from alexnet_jax.system.errors import UserError


def numbers(images):
    images = np.asarray(images)
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]


@pytest.mark.parametrize("on_device", ["yes", "no"])
@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_batches_follow_the_order_from_any_step_on_every_mesh(spmd, mesh, on_device):
    tower_mesh, split = make_mesh(mesh, 2, 32, spmd), numbered(300)
    order, fed = Order(seed=1, examples=300, batch_size=32), Loader(tower_mesh, split, on_device)
    assert fed.on_device == (on_device == "yes")
    for step, batch in enumerate(fed.batches(map(order.step, range(7, 12))), start=7):
        images, labels = tower_mesh.fetch(batch, P("data"))
        np.testing.assert_array_equal(labels, order.step(step))
        np.testing.assert_array_equal(numbers(images), order.step(step))
        if spmd == "shard_map":
            assert batch.images.sharding.is_equivalent_to(tower_mesh.sharding(P("data")), 4)
    assert step == 11


@pytest.mark.parametrize("on_device", ["yes", "no"])
@pytest.mark.parametrize("cuts", [(), (70,), (83,), (1, 50)])
def test_a_fold_is_fed_like_any_other_split(cuts, on_device):
    """Out of one, two and three parts. In one case the first part has as many images as the fold."""
    train, _ = fold_split(numbered(103, *cuts), 4, 5)
    assert len(train) == 83
    tower_mesh, wanted = make_mesh("2x1", 2, 8), np.array([0, 80, 3, 3, 41, 79, 60, 1])
    (batch,) = Loader(tower_mesh, train, on_device).batches([wanted])
    np.testing.assert_array_equal(np.asarray(batch.labels), train.labels[wanted])
    np.testing.assert_array_equal(numbers(batch.images), train.labels[wanted])


def test_a_resident_set_is_transferred_once():
    """Afterwards only the numbers of the examples cross: 32 x 4 bytes, where the images have 32 x 12."""
    tower_mesh, order = make_mesh("1x1", 1, 32), Order(seed=1, examples=300, batch_size=32)
    fed = Loader(tower_mesh, numbered(300), "yes")
    put, sizes = tower_mesh._place, []

    def counted(self, x, *arguments):
        sizes.append(x.nbytes)
        return put(x, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tower_mesh), "_place", counted)
        list(fed.batches(map(order.step, range(5))))
    assert sizes == [32 * 4] * 5


@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_a_batch_that_is_kept_does_not_change_when_later_ones_are_read(spmd, mesh):
    """A CPU device uses memory that begins at a multiple of 64 bytes without a copy."""
    tower_mesh, order = make_mesh(mesh, 2, 32, spmd), Order(seed=1, examples=300, batch_size=32)
    kept = list(Loader(tower_mesh, numbered(300)).batches(map(order.step, range(30))))
    for step, batch in enumerate(kept):
        images, labels = tower_mesh.fetch(batch, P("data"))
        np.testing.assert_array_equal(labels, order.step(step))
        np.testing.assert_array_equal(numbers(images), order.step(step))


@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_the_memory_of_a_batch_is_read_into_once(monkeypatch, spmd, mesh):
    """Not even after the batch is gone: nobody but JAX knows when it has read the memory for the last time."""
    handed, tower_mesh = [], make_mesh(mesh, 2, 8, spmd)
    put = type(tower_mesh).put_rows

    def kept(self, batch, *place):
        handed.append(batch)  # so that its memory cannot become that of another batch by chance
        return put(self, batch, *place)

    monkeypatch.setattr(type(tower_mesh), "put_rows", kept)
    order = Order(seed=1, examples=60, batch_size=8)
    for _ in Loader(tower_mesh, numbered(60)).batches(map(order.step, range(12))):
        pass
    assert len(handed) == 12
    for part in ("images", "labels"):
        assert len({getattr(batch, part).ctypes.data for batch in handed}) == 12
    for step, batch in enumerate(handed):
        np.testing.assert_array_equal(numbers(batch.images), order.step(step))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 41])
def test_batches_of_any_size_are_read(size):
    """By four threads, or by fewer if there are fewer images."""
    order = [np.arange(size) * 4 + step for step in range(40)]
    for wanted, batch in zip(order, Loader(make_mesh("1x1", 1, 1), numbered(300)).batches(order), strict=True):
        np.testing.assert_array_equal(numbers(batch.images), wanted)
        np.testing.assert_array_equal(np.asarray(batch.labels), wanted)


@pytest.mark.parametrize(("first", "end"), [(0, 16), (0, 8), (8, 16), (4, 5)])
def test_a_process_reads_and_hands_over_only_its_own_rows(monkeypatch, first, end):
    """As if it were one of several processes; test_loader_processes.py starts two."""
    read, handed, plain, tower_mesh = [], [], Subset.read_into, make_mesh("1x1", 1, 16)

    def reading(self, examples, batch):
        read.extend(examples.tolist())
        plain(self, examples, batch)

    def handing(self, batch, *place):
        handed.append((numbers(batch.images).tolist(), batch.labels.tolist(), *place))
        return batch

    monkeypatch.setattr(Subset, "read_into", reading)
    monkeypatch.setattr(type(tower_mesh), "rows_here", lambda self, rows: (first, end))
    monkeypatch.setattr(type(tower_mesh), "put_rows", handing)
    wanted = np.arange(64).reshape(4, 16)[:, ::-1]
    assert len(list(Loader(tower_mesh, numbered(64)).batches(wanted))) == 4
    assert handed == [(row[first:end].tolist(), row[first:end].tolist(), first, 16) for row in wanted]
    assert sorted(read) == sorted(wanted[:, first:end].ravel().tolist())


def test_auto_leaves_images_in_host_memory_where_the_device_is_the_host():
    tower_mesh = make_mesh("1x1", 1, 32)
    assert jax.devices()[0].platform == "cpu"
    assert not Loader(tower_mesh, numbered(10), "auto").on_device


def devices_with(monkeypatch, *stats):
    """A mesh of devices that report these memory stats."""
    by_number = dict(enumerate(stats))
    monkeypatch.setattr(type(jax.devices()[0]), "memory_stats", lambda self: by_number[self.id])
    return make_mesh(f"{len(stats)}x1", 1, 32)


NEEDED = 300 * 12
OTHER = {"bytes_limit": 10**9, "bytes_in_use": 0}


@pytest.mark.parametrize(
    ("stats", "auto", "yes"),
    [
        ([{"bytes_limit": 3 * NEEDED + 1000, "bytes_in_use": 1000}], True, True),
        ([{"bytes_limit": 2 * NEEDED + 1000, "bytes_in_use": 1000}], True, True),
        ([{"bytes_limit": 2 * NEEDED + 999, "bytes_in_use": 1000}], False, True),
        ([{"bytes_limit": 2 * NEEDED}], True, True),
        ([{"bytes_limit": 2 * NEEDED - 1}], False, True),
        ([{"bytes_limit": NEEDED}], False, True),
        ([{"bytes_limit": NEEDED - 1}], False, False),
        ([{"bytes_limit": 1000, "bytes_in_use": 1000}], False, False),
        ([OTHER, {"bytes_limit": 2 * NEEDED - 1}], False, True),
        ([OTHER, {"bytes_limit": NEEDED - 1}], False, False),
        ([OTHER, {"bytes_in_use": 1}], True, True),
        ([OTHER, None], True, True),
        ([{"bytes_in_use": 1}], False, True),
    ],
)
def test_auto_keeps_what_takes_up_to_half_of_the_free_device_memory_and_yes_what_fits(monkeypatch, stats, auto, yes):
    """The fullest device decides. A device that reports nothing is left out."""
    tower_mesh, split = devices_with(monkeypatch, *stats), numbered(300)
    assert Loader(tower_mesh, split, "auto").on_device == auto
    assert not Loader(tower_mesh, split, "no").on_device
    if yes:
        assert Loader(tower_mesh, split, "yes").on_device
        return
    with pytest.raises(UserError, match="--data_on_device=yes"):
        Loader(tower_mesh, split, "yes")


def test_the_error_about_images_that_do_not_fit_counts_gigabytes(monkeypatch):
    tower_mesh = devices_with(monkeypatch, {"bytes_limit": 3 * 10**9, "bytes_in_use": 10**9})
    images = np.broadcast_to(np.uint8(0), (10**6, 64, 64, 3))
    said = r"^--data_on_device=yes: the images take 12\.3 GB and a device has 2\.0 GB free$"
    with pytest.raises(UserError, match=said):
        Loader(tower_mesh, whole(Split(images, np.zeros(10**6, np.int32))), "yes")


def test_a_feed_stops_its_threads_and_passes_their_error_on():
    before = set(threading.enumerate())
    tower_mesh, split, order = make_mesh("1x1", 1, 32), numbered(300), Order(seed=1, examples=300, batch_size=32)
    batches = Loader(tower_mesh, split).batches(map(order.step, range(1000)))
    next(batches)
    assert {thread.name.partition("_")[0] for thread in set(threading.enumerate()) - before} == {"run", "reader"}
    batches.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("run_ahead", "reader"))]
    broken = Subset(split.parts, split.rows[:10])
    with pytest.raises(IndexError):
        list(Loader(tower_mesh, broken).batches(map(order.step, range(3))))
