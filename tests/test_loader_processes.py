"""Batches in several processes: each reads its own rows; and in a process by itself: the memory that a loader takes."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.data.splits import Order

ROOT = Path(__file__).parents[1]

_HOST = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", {devices})
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id={process})
import numpy as np
from test_splits import numbered
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Order
from networks import make_mesh

split, read, found = numbered(64), [], {{}}
plain = type(split).read_into
def noting(self, examples, batch):
    read.extend(examples.tolist())
    plain(self, examples, batch)
type(split).read_into = noting
order = Order(seed=1, examples=64, batch_size=16)
for mesh in {meshes}:
    kept, held = list(Loader(make_mesh(mesh, 2, 16), split).batches(map(order.step, range(4)))), []
    for batch in kept:  # after all have been read
        held.append([shard.data.tolist() for shard in batch.labels.addressable_shards])
        assert [shard.data[:, 0, 0, 1].tolist() for shard in batch.images.addressable_shards] == held[-1]
    found[mesh] = {{"read": read[:], "held": held}}
    read.clear()
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("meshes", "devices"), [(("4x1", "2x2"), 2), (("1x2",), 1)])
def test_two_processes_read_disjoint_halves_that_are_the_epoch(meshes, devices):
    """Two real processes of JAX's runtime. Both read a row of the mesh if its towers lie in both."""
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
    """Each process has read its half of four batches; on 1x2 both have read all."""
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
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Order, whole
from alexnet_jax.data.store import Split
from alexnet_jax.mesh import make_mesh
from alexnet_jax.values import MeshShape

for count in (1024, 8192):
    path = Path(sys.argv[1]) / f"{count}.npy"
    images = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 64, 64, 3))
    images[:] = 1
    images.flush()
    del images
    split = whole(Split(np.load(path, mmap_mode="r"), np.zeros(count, np.int32)))
    order, seen = Order(0, count, 64), 0
    for batch in Loader(make_mesh(MeshShape(1, 1), 2, 64), split).batches(map(order.step, range(count // 64))):
        seen += len(batch.images)
    assert seen == count
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    print(int(line.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_of_the_loader_does_not_depend_on_the_number_of_images(tmp_path):
    """In MiB after an epoch of 13 MB, and after one of 100 MB. Pages of the memory map are not counted."""
    command = [sys.executable, "-c", _MEMORY, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    print("MiB:", small, large)
    assert large < small + 20
