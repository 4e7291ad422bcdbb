"""The per-device programs: the same numbers on every mesh, however the batch is cut; ranks; precision."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import CROP, LAYOUTS, constant_rates, small_batch, small_mean, small_model

from alexnet_jax.data.loader import Batch
from alexnet_jax.network import merge
from alexnet_jax.step import (
    Knobs,
    Model,
    Pixels,
    cross_entropy,
    example_keys,
    make_feature_step,
    make_nonfinite_count,
    make_train_step,
    rank,
)


def train(model: Model, steps: int) -> list[float]:
    """Losses of a few steps from fresh parameters."""
    put, fetch = model.mesh.put, model.mesh.fetch
    step, state = make_train_step(model), model.initial_state()
    knobs = put(Knobs(constant_rates(model), np.float32(0.1)), P())
    pixels = put(Pixels(small_mean(), np.diag([30.0, 20.0, 10.0]).astype(np.float32)), P())
    losses = []
    with compilations() as compiled:
        for number in range(steps):
            state, metrics = step(state, put(small_batch(seed=number % 2), P("data")), knobs, pixels)
            losses.append(float(fetch(metrics, P()).loss))
            if not number:
                first = len(compiled)
    assert fetch(state.step, P()) == steps
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


@functools.cache
def reference_losses() -> list[float]:
    return train(small_model(), 10)


def test_it_learns():
    """So the gradients of the meshes below matter."""
    assert reference_losses()[-1] < reference_losses()[0] - 0.01


QUICK = (("shard_map", "1x2"), ("shard_map", "2x2"), ("pmap", "2x2"))


@pytest.mark.parametrize(
    ("spmd", "mesh"), [pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow) for one in LAYOUTS[1:]]
)
def test_the_same_losses_on_every_mesh(spmd, mesh):
    np.testing.assert_allclose(train(small_model(spmd, mesh), 4), reference_losses()[:4], rtol=1e-4)


def test_accumulated_micro_batches_are_the_whole_batch():
    np.testing.assert_allclose(train(small_model(mesh="2x1", accumulate=2), 2), reference_losses()[:2], rtol=1e-4)


def test_another_seed_gives_other_losses():
    assert not np.allclose(train(small_model(seed=1), 1), reference_losses()[:1], rtol=1e-4)


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


def test_metrics_are_means_over_the_batch_and_errors_count_ranks():
    """With every rate at zero the step says of the batch what the network says: mean loss, top-1 and top-5 errors."""
    model = small_model(mirror=False, dropout=0.0, colour_noise="none", image_size=CROP)
    put, state, batch = model.mesh.put, model.initial_state(), small_batch(16)
    batch = Batch(np.ascontiguousarray(batch.images[:, :CROP, :CROP]), batch.labels)
    params = jax.tree.map(np.array, state.params)
    params["fc8"]["kernel"] *= 300
    pixels = jnp.asarray(batch.images, jnp.float32) - 100
    logits = np.asarray(jax.jit(lambda params, x: merge(model.graph, params)(x))(params, pixels), np.float64)
    params["fc8"]["bias"] = np.float32(-logits.mean(0))  # centred, or all examples would be of one class
    logits += params["fc8"]["bias"]
    hparams = put(Knobs(constant_rates(model, 0.0), np.float32(0)), P())
    stats = put(Pixels(np.full((CROP, CROP, 3), 100, np.float32), np.eye(3, dtype=np.float32)), P())
    state = state._replace(params=put(params, model.specs))
    after, metrics = make_train_step(model)(state, put(batch, P("data")), hparams, stats)
    losses = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(16), batch.labels]
    ranks = (logits > logits[np.arange(16), batch.labels][:, None]).sum(1)
    loss, top1, top5 = (float(value) for value in metrics)
    assert loss == pytest.approx(losses.mean(), rel=1e-3)
    assert (top1, top5) == (pytest.approx((ranks >= 1).mean()), pytest.approx((ranks >= 5).mean()))
    assert 0 < top5 < top1
    for ours, old in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, old)


def test_features_of_a_layer_are_the_networks_activations():
    model = small_model(mesh="1x2")
    params, batch = small_model().initial_state().params, small_batch()
    features = make_feature_step(model, "conv3")
    place = model.mesh.put((small_mean(), np.int32(1), np.int32(2)), P())
    put = model.mesh.put(jax.device_get(params), model.specs)
    found = model.mesh.fetch(features(put, model.mesh.put(batch.images, P("data")), *place), P("data"))
    pixels = jnp.asarray(batch.images[:, 1 : 1 + CROP, 2 : 2 + CROP], jnp.float32) - 127
    towers = merge(small_model().graph, params).activations(pixels, "conv3")
    np.testing.assert_allclose(found, np.concatenate(towers, axis=-1), rtol=1e-4, atol=1e-5)


def test_parameters_are_born_sharded():
    model = small_model(mesh="4x2")
    state = model.initial_state()
    kernel = state.params["fc6"]["kernel"]
    assert kernel.sharding.spec == P("tower")
    assert {shard.data.shape[0] for shard in kernel.addressable_shards} == {1}
    assert state.params["fc8"]["bias"].sharding.spec == P()
    assert state.optimizer[-1].trace["fc6"]["kernel"].sharding.spec == P("tower")


def test_initial_parameters_are_the_tables():
    model = small_model(architecture="paper", bias_init=None)
    params = model.initial_state().params
    for layer, std, bias in [("conv1", 0.01, 0), ("conv3", 0.03, 0), ("conv4", 0.03, 1), ("fc7", 0.01, 1)]:
        kernel = np.asarray(params[layer]["kernel"])
        assert abs(kernel.mean()) < 5 * std / np.sqrt(kernel.size)
        assert kernel.std() == pytest.approx(std, rel=0.05)
        np.testing.assert_array_equal(params[layer]["bias"], np.full_like(params[layer]["bias"], bias))
    assert not np.array_equal(params["conv2"]["kernel"][0], params["conv2"]["kernel"][1])
    other = small_model(architecture="paper", bias_init=None, seed=1).initial_state().params
    assert not np.array_equal(params["conv1"]["kernel"], other["conv1"]["kernel"])


def test_bfloat16_computes_low_and_keeps_float32_masters():
    logits = {}
    for precision in ("float32", "bfloat16"):
        model = small_model(precision=precision)
        state = model.initial_state()
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
        pixels = jnp.asarray(small_batch().images[:, :CROP, :CROP], jnp.float32) - 127

        def both(params, pixels, graph=model.graph):
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


@pytest.mark.parametrize("mesh", ["1x1", "1x2"])
def test_a_parameter_that_is_not_finite_is_counted_wherever_it_lies(mesh):
    model = small_model(mesh=mesh)
    params = model.initial_state().params
    count = make_nonfinite_count(model)
    assert count(params) == 0
    params["conv4"]["kernel"] = params["conv4"]["kernel"].at[1, 0, 0, 0, 0].set(jnp.inf)
    assert count(params) == 1
