"""Batches on the devices: read and transferred ahead of the step, or gathered from a set kept on the devices."""

import itertools
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Int64

from alexnet_jax.data.parallel import run_ahead
from alexnet_jax.data.splits import Batch, Subset
from alexnet_jax.mesh import TowerMesh
from alexnet_jax.system.errors import UserError

_AHEAD = 2
_READERS = 4  # two are enough for a copy from memory; a disk is faster with more requests at a time
_SHARE_OF_MEMORY = 0.5  # of a device's free memory; the network needs the rest


class Loader:
    """Gives the examples of a split as batches, sharded P('data') on the mesh. `on_device`: whether they are kept there."""

    def __init__(self, mesh: TowerMesh, split: Subset, data_on_device: str = "no"):
        """Copies the split to every device for 'yes', not for 'no', and for 'auto' if it fits in half the free memory.

        A CPU device reports no memory of its own, so 'auto' leaves the images on the host.

        Raises UserError for 'yes' if the images do not fit.
        """
        self.split, self._mesh = split, mesh
        self.on_device = _stays(mesh, split, data_on_device)
        if self.on_device:
            # A whole split is taken as its memory map, without a copy on the host. A fold is read.
            plain = len(split.parts) == 1 and len(split) == len(split.parts[0])
            whole = Batch(split.parts[0].images, split.parts[0].labels) if plain else split.read(np.arange(len(split)))
            self._resident = mesh.put(whole, P())

            def gather(resident: Batch, numbers: jax.Array) -> Batch:
                return jax.tree.map(lambda x: jnp.take(x, numbers, axis=0, mode="clip"), resident)

            self._gather = mesh.compile(gather, (P(), P("data")), P("data"))

    def batches(self, order: Iterable[Int64[np.ndarray, "batch"]]) -> Generator[Batch, None, None]:
        """The batches with these examples, in this order. Each process reads the rows of its own devices only.

        Close the generator to stop the thread that reads ahead.
        """
        if self.on_device:
            for numbers in order:
                yield self._gather(self._resident, self._mesh.put(numbers.astype(np.int32), P("data")))
            return
        with ThreadPoolExecutor(_READERS, thread_name_prefix="reader") as pool:
            yield from run_ahead((self._load(numbers, pool) for numbers in order), _AHEAD)

    def _load(self, numbers: Int64[np.ndarray, "batch"], pool: ThreadPoolExecutor) -> Batch:
        first, end = self._mesh.rows_here(len(numbers))
        mine = numbers[first:end]
        # Fresh memory for every batch. JAX owns it from `put_rows` on: it may read it later, or use it without a copy.
        batch = Batch(np.empty((len(mine), *self.split.parts[0].images.shape[1:]), np.uint8), np.empty(len(mine), np.int32))
        cuts = np.linspace(0, len(mine), min(_READERS, len(mine)) + 1).astype(int).tolist()
        pieces = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
        list(pool.map(lambda p: self.split.read_into(mine[p], Batch(batch.images[p], batch.labels[p])), pieces))
        return self._mesh.put_rows(batch, first, len(numbers))


def _stays(mesh: TowerMesh, split: Subset, data_on_device: str) -> bool:
    if data_on_device == "no":
        return False
    needed = len(split) * int(np.prod(split.parts[0].images.shape[1:]))
    memories = [device.memory_stats() for device in mesh.grid.devices.flat if device.process_index == jax.process_index()]
    known = [stats for stats in memories if stats and "bytes_limit" in stats]
    free = min((stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in known), default=None)
    if data_on_device == "auto":
        return free is not None and needed <= _SHARE_OF_MEMORY * free
    if free is not None and needed > free:
        raise UserError(
            f"--data_on_device=yes: the images take {needed / 1e9:.1f} GB and a device has {free / 1e9:.1f} GB free"
        )
    return True
