"""What only `--spmd=pmap` needs: the same per-device step under `jax.pmap`.

pmap has one device axis, and its arrays lead with an axis of one entry per device. Rows and columns of the mesh are groups
in that axis. pmap is in maintenance, and is itself built on shard_map since JAX 0.10.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "device"
Groups = tuple[tuple[int, ...], ...]


def groups(mesh: Mesh, axis: str) -> Groups:
    """The devices that lie along one axis of the mesh, 'data' or 'tower', by their numbers in the device axis."""
    numbers = np.arange(mesh.size).reshape(mesh.devices.shape)
    return tuple(tuple(line.tolist()) for line in (numbers.T if axis == "data" else numbers))


def flat_sharding(mesh: Mesh) -> NamedSharding:
    """pmap's own: a leading axis with one entry per device."""
    return NamedSharding(Mesh(mesh.devices.reshape(-1), (AXIS,), axis_types=(AxisType.Auto,)), P(AXIS))


def compile(mesh: Mesh, function: Callable[..., Any], donate: tuple[int, ...]) -> Callable[..., Any]:
    """`function` on every device of the mesh at once; its arguments and results are in pmap's form."""
    return jax.pmap(function, axis_name=AXIS, devices=list(mesh.devices.flat), donate_argnums=donate)


def place(mesh: Mesh, sharding: NamedSharding, shape: tuple[int, ...], rows: Callable[[Any], np.ndarray]) -> jax.Array:
    """A whole array of `shape` in pmap's form; `rows` gives the part of it at an index."""
    shares = sharding.devices_indices_map(shape)
    ordered = [shares[device] for device in mesh.devices.flat]
    stacked = (mesh.size, *sharding.shard_shape(shape))

    def share(index: Any) -> np.ndarray:
        return rows(ordered[index[0].start or 0])[None]

    return jax.make_array_from_callback(stacked, flat_sharding(mesh), share)


def to_pmap(mesh: Mesh, x: jax.Array) -> jax.Array:
    """A whole array on the mesh, in pmap's form. Buffers stay where they are."""
    shares = {shard.device: shard.data[None] for shard in x.addressable_shards}
    shape = (mesh.size, *x.sharding.shard_shape(x.shape))
    mine = [shares[device] for device in mesh.devices.flat if device in shares]
    return jax.make_array_from_single_device_arrays(shape, flat_sharding(mesh), mine)


def from_pmap(mesh: Mesh, x: jax.Array, spec: P) -> jax.Array:
    """The reverse of `to_pmap`: a whole array, sharded by `spec`."""
    shape = list(x.shape[1:])
    for axis, name in enumerate(spec):
        shape[axis] *= mesh.shape[name] if name else 1
    shares = [shard.data.reshape(x.shape[1:]) for shard in x.addressable_shards]
    return jax.make_array_from_single_device_arrays(tuple(shape), NamedSharding(mesh, spec), shares)
