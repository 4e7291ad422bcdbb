"""The per-device programs: the same numbers on every mesh, however the batch is cut; ranks; precision."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import CLASSES, CROP, LAYOUTS, constant_rates, make_mesh, small_batch, small_mean, small_setup

from alexnet_jax.data.splits import Batch
from alexnet_jax.network import initial_params, merge
from alexnet_jax.step import (
    ImageStats,
    Setup,
    StepHparams,
    cross_entropy,
    example_keys,
    make_checksum,
    make_feature_step,
    make_nonfinite_count,
    make_train_step,
    make_view_step,
    rank,
)


@functools.cache
def trainer(**fields) -> tuple[Setup, Callable]:
    """A model and its compiled step, traced once."""
    setup = small_setup(**fields)
    return setup, make_train_step(setup)


def on_devices(setup: Setup, strength: float = 0.1) -> tuple[StepHparams, ImageStats]:
    """What the host gives every step."""
    knobs = StepHparams(constant_rates(setup), np.float32(strength))
    pixels = ImageStats(small_mean(), np.diag([30.0, 20.0, 10.0]).astype(np.float32))
    return setup.mesh.put((knobs, pixels), P())


def first_loss(setup: Setup, step: Callable, strength: float) -> float:
    """Of fresh parameters."""
    batch = setup.mesh.put(small_batch(), P("data"))
    return float(setup.mesh.fetch(step(setup.initial_state(), batch, *on_devices(setup, strength))[1].loss, P()))


def train(steps: int, **fields) -> list[float]:
    """Losses of a few steps from fresh parameters."""
    setup, step = trainer(**fields)
    put, fetch = setup.mesh.put, setup.mesh.fetch
    constants, state = on_devices(setup), setup.initial_state()
    fresh, losses = jax.tree.leaves(state), []
    with compilations() as compiled:
        for number in range(steps):
            state, metrics = step(state, put(small_batch(seed=number % 2), P("data")), *constants)
            losses.append(float(fetch(metrics, P()).loss))
            if not number:
                first = len(compiled)
    assert fetch(state.step, P()) == steps
    assert all(x.is_deleted() for x in fresh)  # donated: there is room for one state only
    assert first > 0
    assert len(compiled) == first  # fresh parameters and updated ones are one type: compiled once
    return losses


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The programs that XLA compiles, or loads from the cache, while the context lasts."""
    events = []

    def listen(event: str, _duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def velocity(steps: int, **fields) -> list[np.ndarray]:
    """Of the parameters after a few steps: what the gradients came to."""
    setup, step = trainer(**fields)
    state = setup.initial_state()
    for number in range(steps):
        state, _ = step(state, setup.mesh.put(small_batch(seed=number), P("data")), *on_devices(setup))
    return jax.tree.leaves(setup.mesh.fetch(state.optimizer, setup.state_specs.optimizer))


@functools.cache
def reference_losses() -> list[float]:
    return train(10)


@pytest.mark.slow
def test_it_learns():
    """So the gradients of the meshes below matter."""
    assert reference_losses()[-1] < reference_losses()[0] - 0.01


MARKS = {("shard_map", "2x2"): (), ("pmap", "2x1"): pytest.mark.nightly, ("pmap", "1x2"): pytest.mark.nightly}


@pytest.mark.parametrize(
    ("spmd", "mesh"), [pytest.param(*one, marks=MARKS.get(one, pytest.mark.slow)) for one in LAYOUTS[1:]]
)
def test_the_same_losses_on_every_mesh(spmd, mesh):
    np.testing.assert_allclose(train(4, spmd=spmd, mesh=mesh), reference_losses()[:4], rtol=1e-4)


@pytest.mark.slow
def test_cross_talk_in_bfloat16_is_the_same_run_on_every_mesh_and_another_one_than_in_float32():
    together, apart = (train(4, mesh=mesh, crosstalk_precision="bfloat16") for mesh in ("1x1", "2x2"))
    np.testing.assert_allclose(apart, together, rtol=1e-4)
    np.testing.assert_allclose(together, reference_losses()[:4], rtol=1e-2)
    assert together[0] != reference_losses()[0]


@pytest.mark.slow
def test_accumulated_micro_batches_are_the_whole_batch_one_after_the_other():
    """Crops, colour noise and dropout too: all but the order of sums is the same, so the velocity agrees to 1e-5."""
    np.testing.assert_allclose(train(2, mesh="2x1", accumulate=2), reference_losses()[:2], rtol=1e-5)
    setup, step = trainer(mesh="2x1", accumulate=2)
    for parts, whole in zip(velocity(2, mesh="2x1", accumulate=2), velocity(2), strict=True):
        assert np.abs(parts - whole).max() <= 1e-5 * np.abs(whole).max()
    arguments = setup.initial_state(), setup.mesh.put(small_batch(), P("data")), *on_devices(setup)
    (barrier,) = (line for line in step.lower(*arguments).as_text().splitlines() if "optimization_barrier" in line)
    # The second part waits for the whole sum of the first: its images, every gradient and the metrics.
    assert barrier.partition("=")[2].count("%") == 1 + len(jax.tree.leaves(setup.shapes)) + 3


def test_colour_noise_is_a_knob():
    """Off, it changes the loss of the first step and nothing else does: with it on the loss is the reference's."""
    setup, step = trainer()
    losses = [first_loss(setup, step, np.float32(strength)) for strength in (0.1, 0.0)]
    assert losses[0] == reference_losses()[0]
    assert losses[1] != pytest.approx(losses[0], rel=1e-6)


@pytest.mark.slow
def test_another_seed_gives_other_losses():
    assert not np.allclose(train(1, seed=1), reference_losses()[:1], rtol=1e-4)


def test_every_example_has_a_key_of_its_own_wherever_it_lies():
    """Those of a batch of eight, and of its halves on two devices."""
    whole = jax.random.key_data(example_keys(3, jnp.int32(5), 0, 8))
    halves = [jax.random.key_data(example_keys(3, jnp.int32(5), first, 4)) for first in (0, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert len(np.unique(whole, axis=0)) == 8
    for other in (example_keys(4, jnp.int32(5), 0, 8), example_keys(3, jnp.int32(6), 0, 8)):
        assert not np.array_equal(whole, jax.random.key_data(other))


def test_cross_entropy_is_numpys():
    logits = np.random.default_rng(0).normal(0, 3, (5, 7))
    labels = np.array([0, 6, 3, 3, 1])
    expected = -np.log((np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(5), labels])
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels)), expected, rtol=1e-5)


@pytest.mark.slow
def test_metrics_are_means_over_the_batch_and_errors_count_ranks():
    """With every rate at zero the step says of the batch what the network says: mean loss, top-1 and top-5 errors."""
    setup = small_setup(flip=False, dropout=0.0, colour_noise="none", image_size=CROP)
    put, state, batch = setup.mesh.put, setup.initial_state(), small_batch(16)
    batch = Batch(np.ascontiguousarray(batch.images[:, :CROP, :CROP]), batch.labels)
    params = jax.tree.map(np.array, state.params)
    params["fc8"]["kernel"] *= 300
    pixels = jnp.asarray(batch.images, jnp.float32) - 100
    logits = np.asarray(jax.jit(lambda params, x: merge(setup.graph, params)(x))(params, pixels), np.float64)
    params["fc8"]["bias"] = np.float32(-logits.mean(0))  # centred, or all examples would be of one class
    logits += params["fc8"]["bias"]
    hparams = put(StepHparams(constant_rates(setup, 0.0), np.float32(0.1)), P())
    stats = put(ImageStats(np.full((CROP, CROP, 3), 100, np.float32), np.eye(3, dtype=np.float32)), P())
    state = state._replace(params=put(params, setup.specs))
    after, metrics = make_train_step(setup)(state, put(batch, P("data")), hparams, stats)
    losses = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(16), batch.labels]
    ranks = (logits > logits[np.arange(16), batch.labels][:, None]).sum(1)
    loss, top1, top5 = (float(value) for value in metrics)
    assert loss == pytest.approx(losses.mean(), rel=1e-3)
    assert (top1, top5) == (pytest.approx((ranks >= 1).mean()), pytest.approx((ranks >= 5).mean()))
    assert 0 < top5 < top1
    for ours, old in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, old)


@pytest.mark.parametrize("mesh", ["1x1", "1x2"])
def test_a_view_gives_log_probabilities_plus_the_logarithm_of_its_weight(mesh):
    setup, batch = small_setup(mesh=mesh), small_batch()
    params = jax.device_get(small_setup().initial_state().params)
    put, fetch = setup.mesh.put, setup.mesh.fetch
    place = put((small_mean(), np.int32(1), np.int32(3), np.bool(True), np.float32(-2.5)), P())
    found = fetch(make_view_step(setup)(put(params, setup.specs), put(batch.images, P("data")), *place), P("data"))
    pixels = jnp.asarray(batch.images[:, 1 : 1 + CROP, 3 : 3 + CROP][:, :, ::-1], jnp.float32) - 127
    logits = jax.jit(lambda params, x: merge(small_setup().graph, params)(x))(params, pixels)
    np.testing.assert_allclose(found, jax.nn.log_softmax(logits) - 2.5, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_features_of_a_layer_are_the_networks_activations():
    setup = small_setup(mesh="1x2")
    params, batch = small_setup().initial_state().params, small_batch()
    features = make_feature_step(setup, "conv3")
    place = setup.mesh.put((small_mean(), np.int32(1), np.int32(2)), P())
    put = setup.mesh.put(jax.device_get(params), setup.specs)
    found = setup.mesh.fetch(features(put, setup.mesh.put(batch.images, P("data")), *place), P("data"))
    pixels = jnp.asarray(batch.images[:, 1 : 1 + CROP, 2 : 2 + CROP], jnp.float32) - 127
    towers = merge(small_setup().graph, params).activations(pixels, "conv3")
    np.testing.assert_allclose(found, np.concatenate(towers, axis=-1), rtol=1e-4, atol=1e-5)


def test_parameters_are_born_sharded():
    setup = small_setup(mesh="4x2")
    state = setup.initial_state()
    kernel = state.params["fc6"]["kernel"]
    assert kernel.sharding.spec == P("tower")
    assert {shard.data.shape[0] for shard in kernel.addressable_shards} == {1}
    assert state.params["conv1"]["bias"].sharding.spec == P("tower")
    assert state.params["fc8"]["bias"].sharding.spec == P()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((state.step, state.optimizer)))
    assert state.optimizer[-1].trace["fc6"]["kernel"].sharding.spec == P("tower")


@pytest.fixture
def fully_optimised() -> Iterator[None]:
    """Compiled as users compile. A program that an earlier test has compiled for the same seed is not compiled again."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def test_initial_parameters_are_the_tables_and_drawn_apart_from_the_steps(fully_optimised):
    """From the last number that a step can have. An eighth as wide, all deviations but conv1's are the root of 8 larger."""
    table = small_setup(bias_init=None).config.table()
    draw = jax.jit(lambda key: initial_params(table, classes=CLASSES, crop_size=CROP, key=key))
    params, other = (small_setup(bias_init=None, seed=seed).initial_state().params for seed in (20, 21))
    for seed, drawn in ((20, params), (21, other)):
        expected = draw(jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1)))
        jax.tree.map(np.testing.assert_array_equal, drawn, expected)
    wider = 8**0.5
    for layer, std, bias in [
        ("conv1", 0.01, 0),
        ("conv3", 0.03 * wider, 0),
        ("conv4", 0.03 * wider, 1),
        ("fc7", 0.01 * wider, 1),
    ]:
        kernel = np.asarray(params[layer]["kernel"])
        assert abs(kernel.mean()) < 5 * std / np.sqrt(kernel.size)
        assert kernel.std() == pytest.approx(std, rel=0.05)
        np.testing.assert_array_equal(params[layer]["bias"], np.full_like(params[layer]["bias"], bias))
    assert not np.array_equal(params["conv2"]["kernel"][0], params["conv2"]["kernel"][1])
    assert not np.array_equal(params["conv1"]["kernel"], other["conv1"]["kernel"])


@pytest.mark.slow
def test_bfloat16_computes_low_and_keeps_float32_masters():
    logits = {}
    for precision in ("float32", "bfloat16"):
        setup = small_setup(precision=precision)
        state = setup.initial_state()
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
        pixels = jnp.asarray(small_batch().images[:, :CROP, :CROP], jnp.float32) - 127

        def both(params, pixels, graph=setup.graph):
            network = merge(graph, params)
            return network.activations(pixels, "fc7")[0], network(pixels)

        features, logits[precision] = jax.jit(both)(state.params, pixels)
        assert features.dtype == jnp.dtype(precision)
    assert logits["bfloat16"].dtype == jnp.float32
    np.testing.assert_allclose(logits["bfloat16"], logits["float32"], rtol=5e-2, atol=5e-2)
    assert not np.array_equal(logits["bfloat16"], logits["float32"])


def test_rank_is_the_place_in_a_stable_sort():
    scores = np.random.default_rng(0).integers(0, 4, (200, 9)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 9, 200)
    order = np.argsort(-scores, axis=1, kind="stable")
    expected = np.argmax(order == labels[:, None], axis=1)
    np.testing.assert_array_equal(rank(jnp.asarray(scores), jnp.asarray(labels)), expected)
    np.testing.assert_array_equal(rank(jnp.full((2, 9), jnp.nan), jnp.array([0, 3])), [9, 9])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1x1", "1x2"])
def test_a_parameter_that_is_not_finite_is_counted_wherever_it_lies(mesh):
    setup = small_setup(mesh=mesh)
    params = setup.initial_state().params
    count = make_nonfinite_count(setup)
    assert count(params) == 0
    params["conv4"]["kernel"] = params["conv4"]["kernel"].at[1, 0, 0, 0, 0].set(jnp.inf)
    assert count(params) == 1


@pytest.mark.parametrize(("spmd", "mesh"), [("shard_map", "1x1"), ("shard_map", "2x2"), ("pmap", "1x2")])
def test_a_checksum_is_of_every_bit_in_its_place(spmd, mesh):
    """Written out in whole numbers: each pattern times an odd number that tells its place, the leaves chained."""
    layout = make_mesh(mesh, 2, 8, spmd)
    rng = np.random.default_rng(0)
    tree = {"a": rng.normal(size=(2, 3, 4)).astype(np.float32), "b": rng.normal(size=5).astype(np.float32)}
    specs = {"a": P("tower"), "b": P()}
    expected = 0
    for name in ("a", "b"):
        bits = [int(value) for value in tree[name].view(np.uint32).ravel()]
        expected = expected * 16777619 + sum(value * (2 * place + 1) for place, value in enumerate(bits))
    checksum = make_checksum(layout, specs)
    assert layout.fetch(checksum(layout.put(tree, specs)), P()) == expected % 2**32


@pytest.mark.slow
def test_initial_parameters_that_are_compiled_quickly_have_the_same_bits(fully_optimised):
    """Against the compiler's full optimisation."""
    setup = small_setup(seed=20)
    table, key = setup.config.table(), jax.random.fold_in(jax.random.key(setup.config.seed), jnp.uint32(2**32 - 1))
    fully = jax.jit(lambda key: initial_params(table, classes=setup.classes, crop_size=CROP, key=key))(key)
    jax.tree.map(np.testing.assert_array_equal, setup.initial_state().params, fully)
