"""The paper's momentum against a NumPy loop, the schedules against the numbers they are named for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.config import from_dict
from alexnet_jax.optimizer import Plateau, Schedule, momentum_2012

LAYERS = ("conv1", "fc8")
DECAYS = {"conv1": 0.0005, "fc8": 0.02}


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
                decay = DECAYS[layer] if name == "kernel" or bias_decay else 0
                v[layer][name] = 0.9 * v[layer][name] - decay * eps * w[layer][name] - eps * gradients[k][layer][name]
                w[layer][name] = w[layer][name] + v[layer][name]

    with jax.enable_x64(True):
        state = momentum_2012({}, momentum=0.9, decays=DECAYS, bias_decay=bias_decay).init(params)

        @jax.jit
        def step(params, state, gradients, rates):
            optimizer = momentum_2012(rates, momentum=0.9, decays=DECAYS, bias_decay=bias_decay)
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
    options = {"momentum": 0.9, "decays": {"l": 0.0}, "bias_decay": False, "rate_in_velocity": inside}
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


@pytest.mark.parametrize("inside", [True, False])
def test_a_lasting_rate_is_the_common_sgd_with_weight_decay(inside):
    """Decay is added to the gradient before anything else, so that both forms are one as long as the rate lasts."""
    options = {"momentum": 0.9, "decays": {"l": 0.5}, "bias_decay": True, "rate_in_velocity": inside}
    ours = momentum_2012({"l": {"kernel": 0.25, "bias": 0.25}}, **options)
    theirs = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.25, 0.9))
    ends = []
    for optimizer in (ours, theirs):
        weights = {"l": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.ones(1)}}
        state = optimizer.init(weights)
        for number in range(3):
            updates, state = optimizer.update(optax.tree.full_like(weights, number - 0.5), state, weights)
            weights = optax.apply_updates(weights, updates)
        ends.append(weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *ends)


def test_steps_schedule_drops_at_its_epochs():
    steps = schedule(schedule="steps", drop_epochs=["2", "5.5"])  # 10 steps an epoch
    rates = [steps.rate(k, Plateau()) for k in (0, 19, 20, 54, 55, 900)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4])


def test_staged_schedule_of_the_lab_notes():
    """Four equal stages, 250 times in all; the rate of biases drops ten times, once, at half. The steps on either side."""
    staged, third = schedule(schedule="staged"), 250 ** (1 / 3)
    steps = (0, 249, 250, 499, 500, 749, 750, 999, 1000)
    weights = [staged.rates(k, Plateau())["conv1"]["kernel"] for k in steps]
    expected = [0.01 / third**stage for stage in (0, 0, 1, 1, 2, 2, 3, 3, 3)]
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert [staged.rate(k, Plateau()) for k in steps] == weights
    biases = [staged.rates(k, Plateau())["conv1"]["bias"] for k in steps]
    np.testing.assert_allclose(biases, [0.02] * 4 + [0.002] * 5, rtol=1e-12)


def test_plateau_schedule_divides_three_times():
    errors = [90, 80, 80, 81, 79, 79, 79, 79, 79, 79, 79, 79, 78, 79, 79]
    plateau, drops = Plateau(), []
    for error in errors:
        plateau = plateau.after(error, patience=2, max_drops=3)
        drops.append(plateau.drops)
    assert drops == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3]
    assert plateau.best_error == 78
    assert schedule(schedule="plateau").rate(0, plateau) == pytest.approx(1e-5)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_a_plateau_is_as_many_validations_as_patience_says(patience):
    """An equal error is no new best. A new best begins the count anew, and so does a drop, if one is left."""
    now = Plateau().after(50.0, patience=patience, max_drops=2)
    assert now == Plateau(50.0, 0, 0)
    for since in range(1, patience):
        now = now.after(50.0, patience=patience, max_drops=2)
        assert now == Plateau(50.0, since, 0)
    assert now.after(49.9, patience=patience, max_drops=2) == Plateau(49.9, 0, 0)
    assert now.after(50.0, patience=patience, max_drops=2) == Plateau(50.0, 0, 1)
    assert now.after(50.0, patience=patience, max_drops=0) == Plateau(50.0, patience, 0)


def test_layer_rates_and_freezing():
    rates = schedule(schedule="constant", layer_rates=["conv1:0.1@3", "conv1:0@7"], freeze=["fc8"])
    assert [rates.rates(k, Plateau())["conv1"]["kernel"] for k in (29, 30, 69, 70)] == pytest.approx([0.01, 0.001, 0.001, 0])
    assert rates.rates(0, Plateau())["fc8"] == {"kernel": 0, "bias": 0}


@pytest.mark.parametrize(("inside", "most"), [(True, 6.0), (False, 1.1)])
def test_the_loss_leaps_just_after_a_drop_where_the_rate_is_inside_the_velocity(inside, most):
    """2,000 weights in the bowl w^2 / 2 with noisy gradients. The rate falls from 0.3 to 0.03 after 100 of 200 steps."""

    def optimizer(rate):
        options = {"momentum": 0.9, "decays": {"fc8": 0.0}, "bias_decay": False, "rate_in_velocity": inside}
        return momentum_2012({"fc8": {"kernel": rate}}, **options)

    def step(carry, inputs):
        (params, state), (rate, key) = carry, inputs
        gradients = jax.tree.map(lambda w: w + jax.random.normal(key, w.shape), params)
        updates, state = optimizer(rate).update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params["fc8"]["kernel"] ** 2).mean() / 2

    params = {"fc8": {"kernel": jnp.zeros(2000)}}
    rates = jnp.where(jnp.arange(200) < 100, 0.3, 0.03)
    start = params, optimizer(0.0).init(params)
    _, losses = jax.lax.scan(step, start, (rates, jax.random.split(jax.random.key(0), 200)))
    before, after = losses[60:100].mean(), losses[100:]
    assert after[-40:].mean() < 0.2 * before
    assert after[22:].max() < before  # a tenth of the old velocity is left then
    assert 0.7 * most < after.max() / before < most
