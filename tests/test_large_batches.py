"""What large batches need: rates scaled and warmed up against their formulas, LARS against a NumPy loop and Optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from networks import ROOT, make_mesh, small_config

from alexnet_jax.config import from_words
from alexnet_jax.optimizer import Plateau, Schedule, momentum_2012, norm_ratio
from alexnet_jax.run.changes import changed_flags

DECAYS = {"conv1": 0.0005, "fc8": 0.02}


def rates(steps, total_steps=1000, **fields) -> list[float]:
    """Rates of the weights. An epoch has 1,000 examples, so 10 steps of 100."""
    fields = {"batch_size": 100, "mesh": "1x1", "learning_rate": 0.01, "schedule": "constant"} | fields
    schedule = Schedule(small_config(**fields), tuple(DECAYS), 1000, total_steps)
    return [schedule.rate(step, Plateau()) for step in steps]


def two_layers(rng: np.random.Generator) -> dict:
    """Kernels of two towers, one of them all zeros, and biases."""
    kernels = {"conv1": rng.normal(size=(2, 3, 2, 4)), "fc8": rng.normal(size=(2, 5, 4))}
    kernels["fc8"][1] = 0
    return {layer: {"kernel": kernel, "bias": rng.normal(size=4)} for layer, kernel in kernels.items()}


@pytest.mark.parametrize("bias_decay", [False, True])
@pytest.mark.parametrize("inside", [True, False])
def test_lars_is_a_numpy_loop_across_a_rate_drop(bias_decay, inside):
    """v := m v - eps lambda (g + beta w); lambda = eta ||w|| / (||g|| + beta ||w||) of a tower's kernel, eta of a bias."""
    rng = np.random.default_rng(0)
    params = two_layers(rng)
    gradients = [jax.tree.map(lambda w: rng.normal(size=w.shape), params) for _ in range(6)]
    due = [{layer: {"kernel": eps, "bias": 2 * eps} for layer in params} for eps in [8.0] * 3 + [0.8] * 3]

    w = jax.tree.map(np.copy, params)
    v = jax.tree.map(np.zeros_like, w)
    for g, eps in zip(gradients, due, strict=True):
        for layer, beta in DECAYS.items():
            for name in ("kernel", "bias"):
                for tower in range(2) if name == "kernel" else [...]:
                    own, slope = w[layer][name][tower], g[layer][name][tower]
                    decay = beta if name == "kernel" or bias_decay else 0
                    size, steepness = np.sqrt((own**2).sum()), np.sqrt((slope**2).sum())
                    ratio = size / (steepness + decay * size) if name == "kernel" and size else 1
                    step = 0.003 * ratio * (slope + decay * own)
                    before, after = (eps[layer][name], 1) if inside else (1, eps[layer][name])
                    v[layer][name][tower] = 0.9 * v[layer][name][tower] - before * step
                    w[layer][name][tower] = own + after * v[layer][name][tower]

    options = {"momentum": 0.9, "decays": DECAYS, "bias_decay": bias_decay, "rate_in_velocity": inside, "lars": 0.003}
    with jax.enable_x64(True):
        ours = jax.tree.map(jnp.asarray, params)
        state = momentum_2012({}, **options).init(ours)
        for g, eps in zip(gradients, due, strict=True):
            updates, state = momentum_2012(eps, **options).update(jax.tree.map(jnp.asarray, g), state, ours)
            ours = optax.apply_updates(ours, updates)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, w)


def test_without_decay_a_single_tower_has_the_lars_of_optax():
    rng = np.random.default_rng(0)
    gradients = [jnp.asarray(rng.normal(size=(1, 30, 20)), jnp.float32) for _ in range(3)]
    start = jnp.asarray(rng.normal(size=(1, 30, 20)), jnp.float32)
    ours = momentum_2012({"l": {"kernel": 5.0}}, momentum=0.9, decays={"l": 0.0}, bias_decay=False, lars=0.002)
    theirs, their_weights = optax.lars(5.0, trust_coefficient=0.002), start
    weights = {"l": {"kernel": start}}
    state, their_state = ours.init(weights), theirs.init(start)
    for gradient in gradients:
        updates, state = ours.update({"l": {"kernel": gradient}}, state, weights)
        weights = optax.apply_updates(weights, updates)
        update, their_state = theirs.update(gradient, their_state, their_weights)
        their_weights = optax.apply_updates(their_weights, update)
    np.testing.assert_allclose(weights["l"]["kernel"], their_weights, rtol=1e-5)
    assert not np.allclose(their_weights, start, rtol=1e-2)


def test_the_norms_of_a_layer_are_the_same_with_a_tower_on_each_device():
    """A million weights and small gradients in each tower."""
    rng = np.random.default_rng(0)
    kernel, gradient = (rng.normal(0, size, (2, 1000, 1000)).astype(np.float32) for size in (0.05, 1e-5))
    norms = [np.sqrt((x.astype(np.float64) ** 2).sum((1, 2), keepdims=True)) for x in (kernel, gradient)]
    for shape in ("1x1", "1x2"):
        mesh = make_mesh(shape, 2, 8)
        ratio = mesh.compile(lambda w, g: norm_ratio(w, g, 0.0005), (P("tower"), P("tower")), P("tower"))
        found = mesh.fetch(ratio(*mesh.put((kernel, gradient), P("tower"))), P("tower"))
        np.testing.assert_allclose(found, norms[0] / (norms[1] + 0.0005 * norms[0]), rtol=1e-5)


def test_the_rate_is_scaled_with_the_batch():
    """Without --base_batch_size it is what the flag says, to the last bit."""
    assert rates([0, 500]) == [0.01, 0.01]
    assert rates([0, 500], base_batch_size=25) == [0.04, 0.04]
    assert rates([0], base_batch_size=400) == [0.0025]
    drops = rates([29, 30], base_batch_size=25, schedule="steps", drop_epochs=["3"])
    np.testing.assert_allclose(drops, [0.04, 0.004], rtol=1e-12)


def test_in_warm_up_the_rate_rises_in_equal_steps_from_that_of_the_base_batch():
    """Two epochs are 20 steps: the last of them has the full rate. With nothing to scale up it rises from zero."""
    steps = [0, 9, 18, 19, 20, 500]
    shares = np.array([0.05, 0.5, 0.95, 1, 1, 1])
    np.testing.assert_allclose(rates(steps, warmup_epochs=2.0, base_batch_size=25), 0.01 + 0.03 * shares, rtol=1e-12)
    np.testing.assert_allclose(rates(steps, warmup_epochs=2.0), 0.01 * shares, rtol=1e-12)
    np.testing.assert_allclose(rates(steps, warmup_epochs=2.0, base_batch_size=400), 0.0025 * shares, rtol=1e-12)


def test_the_polynomial_schedule_is_a_square_that_ends_just_above_zero():
    found = rates([0, 250, 500, 999], schedule="polynomial")
    np.testing.assert_allclose(found, 0.01 * np.array([1, 0.75, 0.5, 0.001]) ** 2, rtol=1e-9)
    warm = rates([0, 9, 10], schedule="polynomial", warmup_epochs=1.0)
    np.testing.assert_allclose(warm, 0.01 * np.array([0.1, 1, 1]) * np.array([1, 0.991, 0.99]) ** 2, rtol=1e-12)


def test_a_run_with_the_polynomial_schedule_keeps_its_length():
    old = small_config(schedule="polynomial", epochs=3.0)
    new = small_config(schedule="polynomial", epochs=4.0, lars=0.001)
    assert changed_flags(old, new) == ["--epochs was 3.0 and is now 4.0", "--lars was 0.0 and is now 0.001"]


@pytest.mark.parametrize(
    ("size", "epochs", "rate", "end"), [(4096, 5, 0.32, 0.00032), (32768, 10, 32 * 0.9**2, 32 / 3910**2)]
)
def test_the_recipes_for_imagenet_warm_up_to_their_rates(size, epochs, rate, end):
    """1,281,167 images: 313 steps an epoch, and 39. Warm-up takes a tenth of the second recipe."""
    config = from_words([f"--flagfile={ROOT}/experiments/imagenet2012_batch{size}.cfg"])
    total = -int(-config.epochs * 1_281_167 // size)
    schedule = Schedule(config, ("conv1",), 1_281_167, total)
    found = [schedule.rate(step, Plateau()) for step in range(total)]
    warm = round(epochs * 1_281_167 / size)
    assert (config.dataset, config.batch_size, bool(config.lars)) == ("imagenet2012", size, size == 32768)
    assert found[0] < rate / 5
    assert max(found) == pytest.approx(rate, rel=0.01)
    assert abs(np.argmax(found) - warm) <= 1
    assert found[-1] == pytest.approx(end, rel=0.01)
