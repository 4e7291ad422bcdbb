"""The mesh: placement, collectives, and that the towers talk where the paper says and nowhere else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import CLASSES, CROP, LAYOUTS, make_mesh, small_model

from alexnet_jax.architectures import ARCHITECTURES
from alexnet_jax.errors import UserError
from alexnet_jax.network import initial_params, merge, split


@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_arrays_go_onto_the_devices_and_come_back(spmd, mesh):
    topology = make_mesh(mesh, 2, 8, spmd)
    tree = {
        "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "batch": np.arange(40, dtype=np.uint8).reshape(8, 5),
        "step": np.int32(7),
    }
    specs = {"kernel": P("tower"), "batch": P("data"), "step": P()}
    placed = topology.put(tree, specs)
    jax.tree.map(np.testing.assert_array_equal, topology.fetch(placed, specs), tree)
    whole = topology.from_compiled(placed, specs)
    assert whole["kernel"].sharding.spec == P("tower")
    assert {shard.data.shape for shard in whole["kernel"].addressable_shards} == {(2 // topology.tower_size, 3, 4)}
    again = topology.to_compiled(whole, specs)
    jax.tree.map(np.testing.assert_array_equal, topology.fetch(again, specs), tree)


@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_collectives_stay_in_their_row_or_column(spmd, mesh):
    topology = make_mesh(mesh, 2, 8, spmd)
    rows, columns = topology.data_size, topology.tower_size
    data, tower = topology.data, topology.tower

    def program(x):  # x: (1, 1), the device's number
        place = jnp.array([data.index(), tower.index()])
        return place[None, None], tower.gather(x), tower.sum(x), data.sum(x), data.mean(x)

    numbers = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    spec = P("data", "tower")
    results = topology.compile(program, spec, spec)(topology.put(numbers, spec))
    place, gathered, row_sum, column_sum, column_mean = (topology.fetch(result, spec) for result in results)
    np.testing.assert_array_equal(place.reshape(-1, 2), np.argwhere(np.ones_like(numbers)))
    np.testing.assert_array_equal(gathered.reshape(rows, columns, columns), np.repeat(numbers[:, None], columns, 1))
    np.testing.assert_array_equal(row_sum, np.repeat(numbers.sum(1, keepdims=True), columns, 1))
    np.testing.assert_array_equal(column_sum, np.repeat(numbers.sum(0, keepdims=True), rows, 0))
    np.testing.assert_array_equal(column_mean, np.repeat(numbers.mean(0, keepdims=True), rows, 0))


def compiled_forward(architecture: str) -> str:
    """The forward pass on two devices, one tower each, as XLA compiled it."""
    model = small_model(mesh="1x2", architecture=architecture)
    tower = model.mesh.tower

    def forward(params, pixels):
        return merge(model.graph, params)(pixels, tower=tower)

    compiled = model.mesh.compile(forward, (model.specs, P("data")), P("data"))
    shapes = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=model.mesh.sharding(spec)),
        model.shapes,
        model.specs,
    )
    pixels = jax.ShapeDtypeStruct((8, CROP, CROP, 3), jnp.float32, sharding=model.mesh.sharding(P("data")))
    return compiled.lower(shapes, pixels).compile().as_text()


@pytest.mark.parametrize(("architecture", "gathers"), [("paper_eighth", 3), ("paper", 3), ("no_crosstalk", 0)])
def test_cross_talk_is_the_only_communication(architecture, gathers):
    text = compiled_forward(architecture)
    found = re.findall(r"= \S+ (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text)
    assert sorted(found) == ["all-gather"] * gathers + ["all-reduce"]


def test_towers_do_not_meet_before_conv3():
    """The gradient of tower 1's maps with respect to tower 0's conv1 and conv2 is zero; after conv3 it is not."""
    table = ARCHITECTURES["paper_eighth"]
    graph, _ = split(table, classes=CLASSES, crop_size=CROP, dtype=jnp.dtype(jnp.float32))
    params = jax.jit(lambda key: initial_params(table, classes=CLASSES, crop_size=CROP, key=key))(jax.random.key(0))
    pixels = jax.random.normal(jax.random.key(1), (2, CROP, CROP, 3)) * 50

    def tower1(params, layer):
        return jnp.abs(merge(graph, params).activations(pixels, layer)[1]).sum()

    before, after = (jax.jit(jax.grad(tower1), static_argnums=1)(params, layer) for layer in ("conv2", "conv3"))
    for layer in ("conv1", "conv2"):
        for part in ("kernel", "bias"):
            assert not np.any(before[layer][part][0])
            assert np.any(before[layer][part][1])
            assert np.any(after[layer][part][0])


def test_auto_gives_each_tower_its_own_device():
    shape = lambda towers: dict(make_mesh("auto", towers, 8).grid.shape)  # noqa: E731
    assert shape(2) == {"data": 4, "tower": 2}
    assert shape(1) == {"data": 8, "tower": 1}


@pytest.mark.parametrize(
    ("mesh", "towers", "batch", "message"),
    [
        ("8x2", 2, 16, "--mesh=8x2 needs 16 devices and 8 are present"),
        ("1x2", 1, 8, "--mesh=1x2 has 2 columns; an architecture of 1 tower takes 1"),
        ("1x4", 2, 8, "takes 1 or 2"),
        ("4x2", 2, 6, "--batch_size=6 cannot be shared evenly by the 4 rows"),
        ("2*2", 2, 8, "--mesh=2\\*2 is not of the form DATAxTOWER"),
        ("0x2", 2, 8, "--mesh=0x2 is not of the form"),
    ],
)
def test_impossible_meshes_are_named(mesh, towers, batch, message):
    with pytest.raises(UserError, match=message):
        make_mesh(mesh, towers, batch)


def test_a_mesh_may_leave_devices_over_and_auto_takes_all(monkeypatch):
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda: devices[:3])
    assert dict(make_mesh("auto", 2, 6).grid.shape) == {"data": 3, "tower": 1}
    assert list(make_mesh("1x2", 2, 6).grid.devices.flat) == devices[:2]


@pytest.mark.parametrize(("spmd", "mesh"), [("shard_map", "2x2"), ("pmap", "2x2"), ("shard_map", "4x2")])
def test_rows_of_a_batch_go_to_their_row_of_the_mesh(spmd, mesh):
    """This process holds all rows; every device of a row of the mesh holds the same share."""
    topology = make_mesh(mesh, 2, 8, spmd)
    assert topology.rows_here(8) == (0, 8)
    rows = np.arange(24).reshape(8, 3)
    placed = topology.put_rows({"x": rows}, 0, 8)["x"]
    np.testing.assert_array_equal(topology.fetch(placed, P("data")), rows)
    shares = {shard.device.id: np.asarray(shard.data).reshape(-1, 3) for shard in placed.addressable_shards}
    for row, line in enumerate(topology.grid.devices):
        for device in line:
            np.testing.assert_array_equal(shares[device.id], np.split(rows, len(topology.grid.devices))[row])


def test_a_vote_counts_devices():
    ask = make_mesh("2x2", 2, 8).vote()
    assert int(ask(False)) == 0
    assert int(ask(True)) == 4
