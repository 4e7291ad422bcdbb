"""The paper's momentum against a NumPy loop, the schedules against the numbers they are named for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.config import from_dict
from alexnet_jax.optimizer import Plateau, Schedule, momentum_2012

LAYERS = ("conv1", "fc8")


def schedule(examples=1000, total_steps=1000, **fields) -> Schedule:
    return Schedule(from_dict({"batch_size": 100, **fields}), LAYERS, examples, total_steps)


@pytest.mark.parametrize("bias_decay", [False, True])
def test_ten_steps_across_a_rate_drop(bias_decay):
    rng = np.random.default_rng(0)
    params = {layer: {"kernel": rng.normal(size=(3, 2)), "bias": rng.normal(size=2)} for layer in LAYERS}
    gradients = [jax.tree.map(lambda w: rng.normal(size=w.shape), params) for _ in range(10)]
    due = [schedule(schedule="steps", drop_epochs=["0.4"], layer_rates=["fc8:0.5"]).rates(k, Plateau()) for k in range(10)]

    w = {layer: {name: value.copy() for name, value in parts.items()} for layer, parts in params.items()}
    v = jax.tree.map(np.zeros_like, w)
    for k in range(10):
        for layer in LAYERS:
            for name in ("kernel", "bias"):
                eps = (0.01 if k < 4 else 0.001) * (0.5 if layer == "fc8" else 1) * (2 if name == "bias" else 1)
                decay = 0.0005 if name == "kernel" or bias_decay else 0
                v[layer][name] = 0.9 * v[layer][name] - decay * eps * w[layer][name] - eps * gradients[k][layer][name]
                w[layer][name] = w[layer][name] + v[layer][name]

    with jax.enable_x64(True):
        state = momentum_2012({}, momentum=0.9, weight_decay=5e-4, bias_decay=bias_decay).init(params)

        @jax.jit
        def step(params, state, gradients, rates):
            optimizer = momentum_2012(rates, momentum=0.9, weight_decay=5e-4, bias_decay=bias_decay)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        ours = params
        for k in range(10):
            ours, state = step(ours, state, gradients[k], due[k])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, w)


@pytest.mark.parametrize("inside", [True, False])
def test_the_rate_inside_and_outside_the_velocity(inside):
    """The reason for our own: after a drop optax.sgd carries the old rate's velocity on at the new rate."""
    ours, theirs = {"l": {"kernel": jnp.zeros(1)}}, jnp.zeros(1)
    options = {"momentum": 0.9, "weight_decay": 0, "bias_decay": False, "rate_in_velocity": inside}
    state, their_state = momentum_2012({}, **options).init(ours), optax.sgd(1.0, 0.9).init(theirs)
    for rate in (1.0, 0.1):
        updates, state = momentum_2012({"l": {"kernel": rate}}, **options).update(
            jax.tree.map(jnp.ones_like, ours), state, ours
        )
        ours = optax.apply_updates(ours, updates)
        update, their_state = optax.sgd(rate, 0.9).update(jnp.ones(1), their_state)
        theirs += update
    np.testing.assert_allclose(theirs, -(1 + 0.1 * 1.9), rtol=1e-6)
    np.testing.assert_allclose(ours["l"]["kernel"], -(1 + 0.9 + 0.1) if inside else theirs, rtol=1e-6)


def test_steps_schedule_drops_at_its_epochs():
    steps = schedule(schedule="steps", drop_epochs=["2", "5.5"])  # 10 steps an epoch
    rates = [steps.rate(k, Plateau()) for k in (0, 19, 20, 54, 55, 900)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


def test_staged_schedule_of_the_lab_notes():
    staged = schedule(schedule="staged")
    weights = [staged.rates(k, Plateau())["conv1"]["kernel"] for k in (0, 249, 250, 500, 750, 999)]
    np.testing.assert_allclose(weights, [0.01, 0.01, 0.01 / 6.3, 0.01 / 6.3**2, 0.01 / 250, 0.01 / 250], rtol=1e-2)
    biases = [staged.rates(k, Plateau())["conv1"]["bias"] for k in (0, 250, 499, 500, 999)]
    np.testing.assert_allclose(biases, [0.02, 0.02, 0.02, 0.002, 0.002])


def test_plateau_schedule_divides_three_times():
    errors = [90, 80, 80, 81, 79, 79, 79, 79, 79, 79, 79, 79, 78, 79, 79]
    plateau, drops = Plateau(), []
    for error in errors:
        plateau = plateau.after(error, patience=2, max_drops=3)
        drops.append(plateau.drops)
    assert drops == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    assert plateau.best_error == 78
    assert schedule(schedule="plateau").rate(0, plateau) == pytest.approx(1e-5)


def test_layer_rates_and_freezing():
    rates = schedule(schedule="constant", layer_rates=["conv1:0.1@3", "conv1:0@7"], freeze=["fc8"])
    assert [rates.rates(k, Plateau())["conv1"]["kernel"] for k in (29, 30, 69, 70)] == pytest.approx([0.01, 0.001, 0.001, 0])
    assert rates.rates(0, Plateau())["fc8"] == {"kernel": 0, "bias": 0}
