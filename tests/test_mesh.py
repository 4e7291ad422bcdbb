"""The mesh: placement, collectives, and that the towers talk where the paper says and nowhere else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import PartitionSpec as P
from networks import CLASSES, CROP, LAYOUTS, make_mesh, small_setup

from alexnet_jax import network, ops
from alexnet_jax.architectures import ARCHITECTURES
from alexnet_jax.layers import MaxPool, Relu, ResponseNorm
from alexnet_jax.network import Params, initial_params, merge, param_specs, split
from alexnet_jax.system.errors import UserError


@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_arrays_go_onto_the_devices_and_come_back(spmd, mesh):
    tower_mesh = make_mesh(mesh, 2, 8, spmd)
    tree = {
        "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "batch": np.arange(40, dtype=np.uint8).reshape(8, 5),
        "maps": np.arange(96, dtype=np.float32).reshape(8, 3, 4),
        "step": np.int32(7),
    }
    specs = {"kernel": P("tower"), "batch": P("data"), "maps": P("data", None, "tower"), "step": P()}
    placed = tower_mesh.put(tree, specs)
    jax.tree.map(np.testing.assert_array_equal, tower_mesh.fetch(placed, specs), tree)
    whole = tower_mesh.from_compiled(placed, specs)
    assert whole["kernel"].sharding.spec == P("tower")
    assert {shard.data.shape for shard in whole["kernel"].addressable_shards} == {(2 // tower_mesh.tower_size, 3, 4)}
    again = tower_mesh.to_compiled(whole, specs)
    jax.tree.map(np.testing.assert_array_equal, tower_mesh.fetch(again, specs), tree)


@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS)
def test_collectives_stay_in_their_row_or_column(spmd, mesh):
    tower_mesh = make_mesh(mesh, 2, 8, spmd)
    rows, columns = tower_mesh.data_size, tower_mesh.tower_size
    data, tower = tower_mesh.data, tower_mesh.tower

    def program(x):  # x: (1, 1), the device's number
        place = jnp.array([data.index(), tower.index()])
        slope = jax.grad(lambda x: (3 * tower.sum_of_partials(x)).sum())(x)
        return place[None, None], tower.gather(x), tower.sum(x), data.sum(x), data.mean(x), tower.sum_of_partials(x), slope

    numbers = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    spec = P("data", "tower")
    results = tower_mesh.compile(program, spec, spec)(tower_mesh.put(numbers, spec))
    place, gathered, row_sum, column_sum, column_mean, total, slope = tower_mesh.fetch(results, spec)
    np.testing.assert_array_equal(place.reshape(-1, 2), np.argwhere(np.ones_like(numbers)))
    np.testing.assert_array_equal(gathered.reshape(rows, columns, columns), np.repeat(numbers[:, None], columns, 1))
    np.testing.assert_array_equal(row_sum, np.repeat(numbers.sum(1, keepdims=True), columns, 1))
    np.testing.assert_array_equal(column_sum, np.repeat(numbers.sum(0, keepdims=True), rows, 0))
    np.testing.assert_array_equal(column_mean, np.repeat(numbers.mean(0, keepdims=True), rows, 0))
    np.testing.assert_array_equal(total, row_sum)
    np.testing.assert_array_equal(slope, np.full_like(numbers, 3))  # and not 3 times the number of towers


def compiled_forward(architecture: str) -> str:
    """The forward pass on two devices, one tower each, as XLA compiled it."""
    setup = small_setup(mesh="1x2", architecture=architecture)
    tower = setup.mesh.tower

    def forward(params, pixels):
        return merge(setup.graph, params)(pixels, tower=tower)

    compiled = setup.mesh.compile(forward, (setup.specs, P("data")), P("data"))
    shapes = jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=setup.mesh.sharding(spec)),
        setup.shapes,
        setup.specs,
    )
    pixels = jax.ShapeDtypeStruct((8, CROP, CROP, 3), jnp.float32, sharding=setup.mesh.sharding(P("data")))
    return compiled.lower(shapes, pixels).compile().as_text()


@pytest.mark.parametrize(("architecture", "gathers"), [("paper_eighth", 3), ("paper", 3), ("no_crosstalk", 0)])
def test_cross_talk_is_the_only_communication(architecture, gathers):
    text = compiled_forward(architecture)
    found = re.findall(r"= \S+ (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(", text)
    assert sorted(found) == ["all-gather"] * gathers + ["all-reduce"]


def exchanged(text: str) -> list[str]:
    """What a StableHLO program sends between towers for their cross-talk, in order."""
    found = re.findall(r'"stablehlo\.(all_gather|reduce_scatter)".*?: \(tensor<(?:\d+x)*(\w+)>\)', text, re.DOTALL)
    return [f"{operation} of {kind}" for operation, kind in found]


@pytest.mark.parametrize(("spmd", "mesh"), [*LAYOUTS[:3], ("pmap", "1x2"), ("shard_map", "2x2")])
def test_cross_talk_in_bfloat16_rounds_what_is_sent_and_its_gradient_alike_on_every_mesh(spmd, mesh):
    """To the bit, and nothing else: what tower t reads is weighted by t + 1 and by a number of its own for each map."""
    tower_mesh, rng = make_mesh(mesh, 2, 4, spmd), np.random.default_rng(0)
    tower, low = tower_mesh.tower, jnp.dtype(jnp.bfloat16)
    x = rng.normal(size=(2, 4, 3)).astype(np.float32)  # towers, batch, maps
    slopes = rng.normal(size=(2, 4, 6)).astype(np.float32)

    def program(x, slopes):
        def read(x):
            return jnp.stack(network._crosstalk(tuple(x), tower, low))

        seen, gradient = jax.vjp(read, x)
        return seen, gradient(slopes)[0]

    spec = P("tower", "data")
    compiled, placed = tower_mesh.compile(program, (spec, spec), spec), tower_mesh.put((x, slopes), (spec, spec))
    seen, gradient = tower_mesh.fetch(compiled(*placed), spec)
    sent = exchanged(compiled.lower(*placed).as_text())
    assert sent == (["all_gather of bf16", "reduce_scatter of bf16"] if tower.size == 2 else [])

    def rounded(x):
        return x.astype(low).astype(np.float32)

    joined = np.concatenate(rounded(x), axis=-1)
    np.testing.assert_array_equal(seen, [joined, joined])
    total = rounded(rounded(slopes[0]) + rounded(slopes[1]))
    np.testing.assert_array_equal(gradient, np.split(total, 2, axis=-1))
    assert not np.array_equal(total, slopes.sum(0))


@pytest.mark.slow  # the quick one is Figure 2 written out
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


@pytest.mark.parametrize(
    ("devices", "towers", "shape"),
    [(8, 2, (4, 2)), (8, 1, (8, 1)), (6, 2, (3, 2)), (5, 2, (5, 1)), (3, 2, (3, 1)), (2, 2, (1, 2)), (1, 2, (1, 1))],
)
def test_auto_takes_every_device_and_gives_each_tower_its_own_where_they_are_even(devices, towers, shape, monkeypatch):
    present = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda: present)
    grid = make_mesh("auto", towers, 120).grid
    assert (grid.shape["data"], grid.shape["tower"]) == shape
    assert list(grid.devices.flat) == present


def test_several_processes_train_on_all_of_their_devices_under_shard_map(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for mesh, spmd in (("2x2", "shard_map"), ("8x1", "pmap"), ("4x2", "pmap")):
        with pytest.raises(UserError, match=f"--mesh={mesh} --spmd={spmd}: several processes work on all of their 8 dev"):
            make_mesh(mesh, 2, 8, spmd)
    assert make_mesh("8x1", 2, 8).data_size == 8
    assert make_mesh("auto", 2, 8).tower_size == 2


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


def test_a_mesh_may_leave_devices_over():
    assert list(make_mesh("1x2", 2, 6).grid.devices.flat) == jax.devices()[:2]


@pytest.mark.parametrize(("spmd", "mesh"), [("shard_map", "2x2"), ("pmap", "2x2"), ("shard_map", "4x2")])
def test_rows_of_a_batch_go_to_their_row_of_the_mesh(spmd, mesh):
    """This process holds all rows; every device of a row of the mesh holds the same share."""
    tower_mesh = make_mesh(mesh, 2, 8, spmd)
    assert tower_mesh.rows_here(8) == (0, 8)
    rows = np.arange(24).reshape(8, 3)
    spread = tower_mesh.put_rows(rows.reshape(8, 1, 3), 0, 8)
    np.testing.assert_array_equal(tower_mesh.fetch(spread, P("data")), rows[:, None])
    placed = tower_mesh.put_rows({"x": rows}, 0, 8)["x"]
    np.testing.assert_array_equal(tower_mesh.fetch(placed, P("data")), rows)
    shares = {shard.device.id: np.asarray(shard.data).reshape(-1, 3) for shard in placed.addressable_shards}
    for row, line in enumerate(tower_mesh.grid.devices):
        for device in line:
            np.testing.assert_array_equal(shares[device.id], np.split(rows, len(tower_mesh.grid.devices))[row])


def test_a_vote_counts_devices():
    ask = make_mesh("2x2", 2, 8).vote()
    assert int(ask(False)) == 0
    assert int(ask(True)) == 4


@pytest.mark.parametrize("spmd", ["shard_map", "pmap"])
def test_a_process_gives_only_the_rows_that_it_has(spmd, monkeypatch):
    """As the process sees it that has the last row of the mesh, and is asked for nothing else."""
    tower_mesh, rows = make_mesh("2x2", 2, 8, spmd), np.arange(48).reshape(8, 2, 3)
    mine, asked = set(tower_mesh.grid.devices[-1]), []

    def callback(shape, sharding, share):
        asked.extend(share(index) for device, index in sharding.devices_indices_map(shape).items() if device in mine)
        return jnp.zeros(())

    monkeypatch.setattr(jax, "make_array_from_callback", callback)
    tower_mesh.put_rows(rows[4:], 4, 8)
    assert len(asked) == 2
    for share in asked:
        np.testing.assert_array_equal(share.reshape(4, 2, 3), rows[4:])


def test_results_of_several_processes_are_gathered_unless_every_one_has_them(monkeypatch):
    tower_mesh = make_mesh("2x2", 2, 8)
    tree, specs = {"batch": np.arange(8, dtype=np.float32), "loss": np.float32(3)}, {"batch": P("data"), "loss": P()}
    placed, gathered = tower_mesh.put(tree, specs), []

    def gather(x, tiled):
        gathered.append((x.shape, tiled))
        return np.asarray(x)

    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    for processes, expected in ((1, []), (2, [((8,), True)])):
        monkeypatch.setattr(jax, "process_count", lambda processes=processes: processes)
        jax.tree.map(np.testing.assert_array_equal, tower_mesh.fetch(placed, specs), tree)
        assert gathered == expected


def figure_2(params: Params, images: jax.Array, norm: ResponseNorm) -> jax.Array:
    """The paper's network at the smallest crop, written out by the plain equations, tower by tower."""

    def convolution(layer, x, stride=1, padding=0):
        sides, weights = ((padding, padding),) * 2, params[layer]
        return [ops.relu(ops.convolution(x[t], weights["kernel"][t], stride, sides) + weights["bias"][t]) for t in (0, 1)]

    def normed_and_pooled(x):
        if norm.across == "all_maps":
            x = jnp.split(ops.response_norm(jnp.concatenate(x, -1), norm), 2, axis=-1)
        else:
            x = [ops.response_norm(one, norm) for one in x]
        return [ops.max_pool(one, MaxPool()) for one in x]

    def dense(layer, x):
        weights = params[layer]
        return [ops.relu(jnp.concatenate(x, -1) @ weights["kernel"][t] + weights["bias"][t]) for t in (0, 1)]

    x = normed_and_pooled(convolution("conv1", [images, images], stride=4))
    x = normed_and_pooled(convolution("conv2", x, padding=2))
    x = convolution("conv3", [jnp.concatenate(x, -1)] * 2, padding=1)
    x = convolution("conv5", convolution("conv4", x, padding=1), padding=1)
    x = dense("fc7", dense("fc6", [ops.max_pool(one, MaxPool()).reshape(len(one), -1) for one in x]))
    return x[0] @ params["fc8"]["kernel"][0] + x[1] @ params["fc8"]["kernel"][1] + params["fc8"]["bias"]


@pytest.mark.parametrize(
    "norm", [ResponseNorm(alpha=0.1), ResponseNorm(across="all_maps", alpha=0.1)], ids=lambda n: n.across
)
def test_the_towers_are_figure_2_together_and_apart(norm):
    table, after = ARCHITECTURES["paper_eighth"], (Relu(), norm, MaxPool())
    table = table.changed("conv1", after=after).changed("conv2", after=after)
    graph, shapes = split(table, classes=CLASSES, crop_size=CROP, dtype=jnp.dtype(jnp.float32))
    rng, specs = np.random.default_rng(0), param_specs(shapes)

    def draw(x):  # biases of the size of what they are added to
        fan_in = np.prod(x.shape[1:-1]) if x.ndim > 2 else 1
        return rng.normal(0, fan_in**-0.5, x.shape).astype(np.float32)

    params = jax.tree.map(draw, shapes)
    images = rng.normal(size=(8, CROP, CROP, 3)).astype(np.float32)
    expected = jax.jit(figure_2, static_argnums=2)(params, images, norm)
    assert jnp.abs(expected).max() > 0.1
    for mesh in ("1x1", "1x2"):
        tower_mesh = make_mesh(mesh, 2, 8)
        program = lambda params, images, tower=tower_mesh.tower: merge(graph, params)(images, tower=tower)  # noqa: E731
        compiled = tower_mesh.compile(program, (specs, P("data")), P("data"))
        logits = compiled(tower_mesh.put(params, specs), tower_mesh.put(images, P("data")))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
