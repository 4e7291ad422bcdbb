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

from alexnet_jax.network import merge
from alexnet_jax.step import Knobs, Model, Pixels, make_nonfinite_count, make_train_step, rank


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


@pytest.mark.slow
@pytest.mark.parametrize(("spmd", "mesh"), LAYOUTS[1:])
def test_the_same_losses_on_every_mesh(spmd, mesh):
    losses = train(small_model(spmd, mesh), 10)
    assert losses[-1] < losses[0] - 0.01  # it learns, so the gradients matter
    np.testing.assert_allclose(losses, reference_losses(), rtol=1e-4)


@pytest.mark.slow
def test_accumulated_micro_batches_are_the_whole_batch():
    np.testing.assert_allclose(train(small_model(mesh="2x1", accumulate=4), 4), reference_losses()[:4], rtol=1e-4)


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


@pytest.mark.slow
def test_bfloat16_computes_low_and_keeps_float32_masters():
    logits = {}
    for precision in ("float32", "bfloat16"):
        model = small_model(precision=precision)
        state = model.initial_state()
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
        pixels = jnp.asarray(small_batch().images[:, :CROP, :CROP], jnp.float32) - 127
        network = merge(model.graph, state.params)
        (features, _) = network.activations(pixels, "fc7")
        assert features.dtype == jnp.dtype(precision)
        logits[precision] = network(pixels)
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
    model = small_model(mesh=mesh)
    params = model.initial_state().params
    count = make_nonfinite_count(model)
    assert count(params) == 0
    params["conv4"]["kernel"] = params["conv4"]["kernel"].at[1, 0, 0, 0, 0].set(jnp.inf)
    assert count(params) == 1
