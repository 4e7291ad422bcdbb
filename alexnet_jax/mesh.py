"""Where everything lives: the (data, tower) mesh, the sharding of every array, and the collectives between devices.

The per-device step is written once against two `Axis` objects and runs unchanged under `jax.shard_map` and `jax.pmap`. The
device in row d and column t of the mesh holds the d-th share of every batch and the t-th share of the towers. Parameters
lead with a tower axis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from alexnet_jax import placement, pmap
from alexnet_jax.system.errors import UserError
from alexnet_jax.values import MeshShape, Spmd

PyTree = Any


@dataclass(frozen=True)
class Axis:
    """One direction of the mesh, as the per-device program sees it. The default is a direction of one device.

    Under shard_map `name` is the mesh axis; under pmap it is the only axis, and `groups` are the rows or columns in it.
    """

    size: int = 1
    name: str = ""
    groups: tuple[tuple[int, ...], ...] | None = None

    def index(self) -> int | Int[Array, ""]:
        """Position of this device along the axis."""
        if self.size == 1:
            return 0
        position = lax.axis_index(self.name)
        if self.groups is None:
            return position
        place = np.argsort(np.concatenate(self.groups)) % self.size
        return jnp.asarray(place)[position]

    def gather(self, x: Float[Array, "*leading maps"]) -> Float[Array, "*leading all_maps"]:
        """Every device's last axis, joined in order: the cross-talk before conv3, fc6 and fc7."""
        if self.size == 1:
            return x
        groups = None if self.groups is None else [list(group) for group in self.groups]
        return lax.all_gather(x, self.name, axis=x.ndim - 1, tiled=True, axis_index_groups=groups)

    def sum(self, tree: PyTree) -> PyTree:
        """The sum over the axis, not to be differentiated."""
        if self.size == 1:
            return tree
        groups = None if self.groups is None else [list(group) for group in self.groups]
        return lax.psum(tree, self.name, axis_index_groups=groups)

    def mean(self, tree: PyTree) -> PyTree:
        """The mean over the axis, not to be differentiated."""
        return jax.tree.map(lambda total: total / self.size, self.sum(tree))

    def sum_of_partials(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The sum over the axis of partial results, after which every device computes the same loss: fc8's logits.

        Every device already holds the whole gradient of the sum. The transpose of a plain psum would add these equal
        gradients once more and scale all that lies below by the number of towers.
        """

        @jax.custom_vjp
        def total(x):
            return self.sum(x)

        total.defvjp(lambda x: (self.sum(x), None), lambda _, g: (g,))
        return total(x)


@dataclass(frozen=True)
class TowerMesh:
    """The mesh with the way to run on it. Make one with `make_mesh`."""

    grid: Mesh  # axes 'data' and 'tower'
    spmd: Spmd

    @property
    def data_size(self) -> int:
        """Number of shares that a batch is cut into."""
        return self.grid.shape["data"]

    @property
    def tower_size(self) -> int:
        """Number of shares that the towers are cut into: 1, or one tower per device."""
        return self.grid.shape["tower"]

    @property
    def data(self) -> Axis:
        """The direction over which gradients are averaged."""
        return self._axis("data")

    @property
    def tower(self) -> Axis:
        """The direction of the cross-talk."""
        return self._axis("tower")

    def _axis(self, name: str) -> Axis:
        size = self.grid.shape[name]
        return Axis(size, name) if self.spmd == "shard_map" else Axis(size, pmap.AXIS, pmap.groups(self.grid, name))

    def sharding(self, spec: P) -> NamedSharding:
        """The sharding of a whole array."""
        return NamedSharding(self.grid, spec)

    def compile(
        self, function: Callable[..., PyTree], in_specs: PyTree, out_specs: PyTree, donate: tuple[int, ...] = ()
    ) -> Callable[..., PyTree]:
        """Runs the per-device `function` on every device at once. Arguments come from `put` or `to_compiled`.

        Replication types are off (`check_vma`): the function averages gradients over 'data' itself, which is what pmap
        needs too, and `Axis.sum_of_partials` has the right transpose for both. The tests on meshes guard the results.
        """
        if self.spmd == "pmap":
            return pmap.compile(self.grid, function, donate)
        mapped = jax.shard_map(function, mesh=self.grid, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        # Named outright: left to itself XLA may describe a result otherwise than the argument it becomes, and compile again.
        results = jax.tree.map(self.sharding, out_specs, is_leaf=lambda node: isinstance(node, P))
        return jax.jit(mapped, out_shardings=results, donate_argnums=donate)

    def put(self, tree: PyTree, specs: PyTree) -> PyTree:
        """Host arrays onto the devices, each device getting only its own share."""
        return _map_with_specs(lambda x, spec: self._place(np.asarray(x), spec, np.shape(x), 0), tree, specs)

    def put_rows(self, tree: PyTree, first: int, rows: int) -> PyTree:
        """Like `put` with P('data'), for arrays of `rows` rows of which this process has some: those from `first` on."""
        return jax.tree.map(lambda x: self._place(x, P("data"), (rows, *x.shape[1:]), first), tree)

    def rows_here(self, rows: int) -> tuple[int, int]:
        """The first and the end of those rows of a P('data') array that devices of this process hold."""
        shares = self.sharding(P("data")).addressable_devices_indices_map((rows,)).values()
        bounds = [share[0].indices(rows) for share in shares if share is not None]
        return min(first for first, _, _ in bounds), max(end for _, end, _ in bounds)

    def _place(self, x: np.ndarray, spec: P, shape: tuple[int, ...], first: int) -> jax.Array:
        """A whole array of `shape`; `x` has its rows from `first` on, all that this process needs."""
        sharding = self.sharding(spec)

        def rows(index: Any) -> Any:
            if not first:
                return x[index]
            start, end, _ = index[0].indices(shape[0])
            return x[(slice(start - first, end - first), *index[1:])]

        with jax.transfer_guard_host_to_device("allow"):  # this is the one door, so it is meant
            if self.spmd == "shard_map":
                return jax.make_array_from_callback(shape, sharding, rows)
            return pmap.place(self.grid, sharding, shape, rows)

    def to_compiled(self, tree: PyTree, specs: PyTree) -> PyTree:
        """Whole arrays, sharded by `specs`, into the form that a compiled function takes; buffers stay where they are."""
        if self.spmd == "shard_map":
            return tree
        return _map_with_specs(lambda x, _: pmap.to_pmap(self.grid, x), tree, specs)

    def from_compiled(self, tree: PyTree, specs: PyTree) -> PyTree:
        """The reverse of `to_compiled`: whole arrays, sharded by `specs`."""
        if self.spmd == "shard_map":
            return tree
        return _map_with_specs(lambda x, spec: pmap.from_pmap(self.grid, x, spec), tree, specs)

    def fetch(self, tree: PyTree, specs: PyTree) -> PyTree:
        """Results of a compiled function as NumPy arrays, waiting for them. All processes have to ask, and get all."""
        whole = self.from_compiled(tree, specs)
        return jax.tree.map(_gathered, whole) if jax.process_count() > 1 else jax.device_get(whole)

    def vote(self) -> Callable[[bool], jax.Array]:
        """A compiled ballot: each process gives its own answer, and all get the number of devices that said yes.

        Like a step it returns at once; all processes have to call it equally often.
        """
        spec = P(("data", "tower"))
        count = jax.shard_map(
            lambda yes: lax.psum(yes[0], ("data", "tower")), mesh=self.grid, in_specs=spec, out_specs=P(), check_vma=False
        )
        compiled, sharding = jax.jit(count), self.sharding(spec)

        def ask(yes: bool) -> jax.Array:
            with jax.transfer_guard_host_to_device("allow"):
                answer = np.array([yes], np.int32)
                return compiled(jax.make_array_from_callback((self.grid.size,), sharding, lambda _: answer))

        return ask


def _gathered(x: jax.Array) -> np.ndarray:
    if x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def _map_with_specs(function: Callable[[Any, P], Any], tree: PyTree, specs: PyTree) -> PyTree:
    """`function(leaf, spec)` over a tree, where one spec may stand for a whole subtree."""
    return jax.tree.map(
        lambda spec, subtree: jax.tree.map(lambda leaf: function(leaf, spec), subtree),
        specs,
        tree,
        is_leaf=lambda node: isinstance(node, P),
    )


def make_mesh(
    shape: MeshShape | None,
    towers: int,
    batch_size: int,
    spmd: Spmd = "shard_map",
    devices: Sequence[Any] | None = None,
) -> TowerMesh:
    """The mesh that `--mesh` asks for.

    Args:
        shape: of the mesh; None: every device, with each tower on its own where their number allows.
        towers: number of towers of the architecture.
        batch_size: examples per batch, all devices together.
        spmd: 'shard_map' or 'pmap'.
        devices: those to take from; None: all that JAX has.

    Raises:
        UserError: the mesh does not fit the devices, their places, the towers or the batch.
    """
    advice = "a larger slice" if devices else "force CPU devices with --host_devices"
    devices = devices or jax.devices()
    if shape is None:
        columns = towers if len(devices) % towers == 0 else 1
        shape = MeshShape(len(devices) // columns, columns)
    rows, columns = shape
    if rows * columns > len(devices):
        raise UserError(
            f"--mesh={shape} needs {rows * columns} devices and {len(devices)} are present; "
            f"choose a smaller mesh, or {advice}"
        )
    if jax.process_count() > 1 and (rows * columns != len(devices) or spmd == "pmap"):
        raise UserError(
            f"--mesh={shape} --spmd={spmd}: several processes work on all of their {len(devices)} devices, under shard_map"
        )
    if columns not in (1, towers):
        raise UserError(
            f"--mesh={shape} has {columns} columns; an architecture of {towers} tower{'s' * (towers > 1)} takes "
            + ("1" if towers == 1 else f"1 or {towers}")
        )
    if batch_size % rows:
        raise UserError(f"--batch_size={batch_size} cannot be shared evenly by the {rows} rows of --mesh={shape}")
    grid = placement.place(devices, shape)
    return TowerMesh(Mesh(grid, ("data", "tower"), axis_types=(AxisType.Auto,) * 2), spmd)
