"""Batches on the devices: the order that was asked for, from the host and from the devices, over meshes and processes."""

import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import LAYOUTS, make_mesh

from alexnet_jax.data import feed
from alexnet_jax.data.feed import Feed
from alexnet_jax.data.loader import Order, Subset, fold_split, whole
from alexnet_jax.data.parallel import ordered_map, run_ahead
from alexnet_jax.data.store import Split
from alexnet_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def numbered(count):
    """Images that tell their own number."""
    images = np.zeros((count, 2, 2, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    return whole(Split(images, np.arange(count, dtype=np.int32)))


def numbers(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]


@pytest.mark.parametrize("on_device", ["yes", "no"])
@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_batches_follow_the_order_from_any_step_on_every_mesh(spmd, mesh, on_device):
    topology, split = make_mesh(mesh, 2, 32, spmd), numbered(300)
    order, fed = Order(seed=1, examples=300, batch_size=32), Feed(topology, split, on_device)
    assert fed.on_device == (on_device == "yes")
    for step, batch in enumerate(fed.batches(map(order.step, range(7, 12))), start=7):
        images, labels = topology.fetch(batch, P("data"))
        np.testing.assert_array_equal(labels, order.step(step))
        np.testing.assert_array_equal(numbers(images), order.step(step))
        if spmd == "shard_map":
            assert batch.images.sharding.is_equivalent_to(topology.sharding(P("data")), 4)
    assert step == 11


@pytest.mark.parametrize("on_device", ["yes", "no"])
def test_a_fold_of_two_parts_is_fed_like_any_other_split(on_device):
    split = numbered(103).parts[0]
    pooled = whole(Split(split.images[:70], split.labels[:70]), Split(split.images[70:], split.labels[70:]))
    train, _ = fold_split(pooled, 1, 5)
    topology, wanted = make_mesh("2x1", 2, 8), np.array([0, 80, 3, 3, 41, 79, 60, 1])
    (batch,) = Feed(topology, train, on_device).batches([wanted])
    np.testing.assert_array_equal(np.asarray(batch.labels), train.labels[wanted])
    np.testing.assert_array_equal(numbers(np.asarray(batch.images)), train.labels[wanted])


def test_a_resident_set_is_transferred_once():
    """Afterwards only the numbers of the examples cross: 32 x 4 bytes, where the images have 32 x 12."""
    topology, order = make_mesh("1x1", 1, 32), Order(seed=1, examples=300, batch_size=32)
    fed = Feed(topology, numbered(300), "yes")
    put, sizes = topology._place, []

    def counted(self, x, *arguments):
        sizes.append(x.nbytes)
        return put(x, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(topology), "_place", counted)
        list(fed.batches(map(order.step, range(5))))
    assert sizes == [32 * 4] * 5


def test_memory_is_used_again_but_not_while_a_batch_lives(monkeypatch):
    """Rows of a multiple of 64 bytes, which the CPU device does not copy."""
    made = []

    class Noted(feed._Buffers):
        def __init__(self):
            super().__init__()
            made.append(self)

    monkeypatch.setattr(feed, "_Buffers", Noted)
    images = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    split, topology = whole(Split(images, np.arange(300, dtype=np.int32))), make_mesh("1x1", 2, 32)
    order, held = Order(seed=1, examples=300, batch_size=32), {}
    for step, batch in enumerate(Feed(topology, split).batches(map(order.step, range(60)))):
        if step in (0, 1, 7, 30):
            held[step] = batch
    (buffers,) = made
    assert len(held) < len(buffers._buffers) <= 4 + len(held) + 2  # of 60 batches
    for step, batch in held.items():
        np.testing.assert_array_equal(np.asarray(batch.images), images[order.step(step)])


def test_auto_leaves_images_in_host_memory_where_the_device_is_the_host():
    topology = make_mesh("1x1", 1, 32)
    assert jax.devices()[0].platform == "cpu"
    assert not Feed(topology, numbered(10), "auto").on_device


@pytest.mark.parametrize(("limit", "fits"), [(300 * 12 * 3, True), (300 * 12 * 2 - 1, False)])
def test_auto_keeps_what_takes_up_to_half_of_the_free_device_memory(monkeypatch, limit, fits):
    stats = {"bytes_limit": limit + 1000, "bytes_in_use": 1000}
    monkeypatch.setattr(type(jax.devices()[0]), "memory_stats", lambda self: stats)
    topology = make_mesh("1x1", 1, 32)
    assert Feed(topology, numbered(300), "auto").on_device == fits
    stats["bytes_limit"] = 1000
    with pytest.raises(UserError, match="--data_on_device=yes"):
        Feed(topology, numbered(300), "yes")


def test_what_runs_ahead_stops_its_thread_and_passes_its_error_on():
    topology, split, order = make_mesh("1x1", 1, 32), numbered(300), Order(seed=1, examples=300, batch_size=32)
    batches = Feed(topology, split).batches(map(order.step, range(1000)))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("run_ahead", "reader"))]
    broken = Subset(split.parts, split.rows[:10])
    with pytest.raises(IndexError):
        list(Feed(topology, broken).batches(map(order.step, range(3))))


@pytest.mark.parametrize("ahead", [1, 3])
def test_what_runs_ahead_is_just_so_far_ahead(ahead):
    """One given out, `ahead` waiting, one in hand: so many are taken, and no more until the next is given out."""
    taken, changed = [], threading.Condition()

    def items():
        for item in range(20):
            with changed:
                taken.append(item)
                changed.notify()
            yield item

    def wait_for(count: int) -> None:
        with changed:
            assert changed.wait_for(lambda: len(taken) >= count, timeout=30)
            assert not changed.wait_for(lambda: len(taken) > count, timeout=0.2)

    items_ahead = run_ahead(items(), ahead)
    for given in range(3):
        assert next(items_ahead) == given
        wait_for(given + 1 + ahead + 1)
    assert list(items_ahead) == list(range(3, 20))


def test_a_map_over_threads_keeps_the_order_and_its_memory():
    taken = []

    def items():
        for item in range(500):
            taken.append(item)
            yield item

    squares = ordered_map(lambda item: item**2, items())
    assert next(squares) == 0
    assert len(taken) < 100
    assert list(squares) == [item**2 for item in range(1, 500)]
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda item: 1 / item, [1, 0]))


_HOST = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", {devices})
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id={process})
import numpy as np
from test_feed import numbered
from alexnet_jax.data.feed import Feed
from alexnet_jax.data.loader import Order
from networks import make_mesh

split, read, found = numbered(64), [], {{}}
plain = type(split).read_into
def noting(self, examples, batch):
    read.extend(examples.tolist())
    plain(self, examples, batch)
type(split).read_into = noting
order = Order(seed=1, examples=64, batch_size=16)
for mesh in {meshes}:
    held = []
    for batch in Feed(make_mesh(mesh, 2, 16), split).batches(map(order.step, range(4))):
        held.append([shard.data.tolist() for shard in batch.labels.addressable_shards])
    found[mesh] = {{"read": read[:], "held": held}}
    read.clear()
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("meshes", "devices"), [(("4x1", "2x2"), 2), (("1x2",), 1)])
def test_two_processes_read_disjoint_halves_that_are_the_epoch(meshes, devices):
    """Two real processes of JAX's runtime; a row of the mesh whose towers lie in both is read by both."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _HOST.format(port=port, process=process, meshes=meshes, devices=devices)],
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{ROOT}/tests", "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    for mesh in meshes:
        check_shares(mesh, [each[mesh] for each in found])


def check_shares(mesh: str, hosts: list[dict]) -> None:
    """Both processes have read their halves of four batches; on 1x2 both have read all."""
    order = Order(seed=1, examples=64, batch_size=16)
    if mesh == "1x2":
        assert [sorted(host["read"]) for host in hosts] == [list(range(64))] * 2
        return
    first, second = (sorted(host["read"]) for host in hosts)
    assert len(first) == len(second) == 32
    assert sorted(first + second) == list(range(64))
    for host, half in zip(hosts, (slice(0, 8), slice(8, 16)), strict=True):
        for step, shards in enumerate(host["held"]):
            rows = {tuple(shard) for shard in shards}
            wanted = order.step(step)[half].tolist()
            assert rows == ({tuple(wanted[:4]), tuple(wanted[4:])} if mesh == "4x1" else {tuple(wanted)})


_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from alexnet_jax.data.feed import Feed
from alexnet_jax.data.loader import Order, whole
from alexnet_jax.data.store import Split
from alexnet_jax.mesh import make_mesh
from alexnet_jax.values import MeshShape

path, count = Path(sys.argv[1]), int(sys.argv[2])
images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 64, 64, 3))
images[:] = 1
images.flush()
del images
split = whole(Split(np.load(path, mmap_mode="r"), np.zeros(count, np.int32)))
order = Order(0, count, 64)
for batch in Feed(make_mesh(MeshShape(1, 1), 2, 64), split).batches(map(order.step, range(count // 64))):
    assert batch.images.shape == (64, 64, 64, 3)
(line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
print(int(line.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_of_the_feed_does_not_depend_on_the_number_of_images(tmp_path):
    """In MiB after one epoch of 25 MB and of 250 MB; pages of the map are the file's and not counted."""
    used = []
    for count in (2048, 20_480):
        command = [sys.executable, "-c", _MEMORY, str(tmp_path / f"{count}.npy"), str(count)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        used.append(int(done.stdout))
    print("MiB:", used)
    assert used[1] < used[0] + 20
