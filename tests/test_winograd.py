"""Winograd's convolution against loops in NumPy and XLA's gradients, in float64, where only mistakes are left to see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from alexnet_jax import gradients, ops, winograd

SAME = {3: ((1, 1), (1, 1)), 5: ((2, 2), (2, 2))}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def convolution_loop(x, kernel, padding):
    """Each output by itself."""
    x, side = np.pad(x, ((0, 0), *padding, (0, 0))), len(kernel)
    y = np.zeros((len(x), x.shape[1] - side + 1, x.shape[2] - side + 1, kernel.shape[3]))
    for i, j in np.ndindex(*y.shape[1:3]):
        y[:, i, j] = np.einsum("bijc,ijco->bo", x[:, i : i + side, j : j + side], kernel)
    return y


@pytest.mark.parametrize(
    ("batch", "sides", "kernel", "padding"),
    [(9, (7, 10), 5, ((2, 1), (0, 4))), (3, (13, 6), 3, ((1, 1), (0, 2))),
     pytest.param(16, (12, 12), 5, SAME[5], marks=pytest.mark.slow),
     pytest.param(1, (3, 3), 3, SAME[3], marks=pytest.mark.slow),
     pytest.param(17, (5, 9), 5, ((0, 0), (0, 0)), marks=pytest.mark.slow)],
)  # fmt: skip
def test_values_and_gradients_where_tiles_and_parts_of_the_batch_are_not_filled(batch, sides, kernel, padding):
    x, weights = draw(batch, *sides, 3), draw(kernel, kernel, 3, 2, seed=1)
    expected = convolution_loop(x, weights, padding)
    g = draw(*expected.shape, seed=2)

    @jax.jit
    def by_points(x, weights, g):
        y = winograd.convolution(x, weights, padding)
        return y, winograd.input_gradient(g, weights, padding), winograd.weight_gradient(x, g, kernel, padding)

    with jax.enable_x64(True):
        y, dx, dweights = by_points(x, weights, g)
        pull = jax.vjp(lambda x, weights: ops.convolution(x, weights, 1, padding), jnp.asarray(x), jnp.asarray(weights))[1]
        for ours, reference in zip((y, dx, dweights), (expected, *pull(jnp.asarray(g))), strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, reference, atol=1e-12 * np.abs(reference).max())


def test_float32_is_off_by_a_few_millionths_and_bfloat16_is_computed_in_float32():
    x, kernel = draw(2, 12, 12, 32), draw(5, 5, 32, 32, seed=1)
    expected = convolution_loop(x, kernel, SAME[5])
    operands = (jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    error = np.asarray(winograd.convolution(*operands, SAME[5]), np.float64) - expected
    assert error.std() < 6e-6 * expected.std()
    halves = tuple(operand.astype(jnp.bfloat16) for operand in operands)
    found = winograd.convolution(*halves, SAME[5])
    exact = convolution_loop(*(np.asarray(half, np.float64) for half in halves), SAME[5])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "fits"),
    [((5, 5, 48, 128), 1, SAME[5], True), ((3, 3, 32, 32), 1, SAME[3], True), ((5, 5, 48, 128), 2, SAME[5], False),
     ((5, 5, 3, 64), 1, SAME[5], False), ((3, 3, 64, 31), 1, SAME[3], False), ((11, 11, 48, 48), 1, SAME[5], False),
     ((3, 5, 48, 48), 1, SAME[3], False), ((3, 3, 48, 48), 1, ((1, 1), (0, 3)), False)],
)  # fmt: skip
def test_which_convolutions_are_computed_so(kernel, stride, padding, fits):
    assert winograd.fits(8, kernel, stride, padding) == fits
    assert not winograd.fits(export.symbolic_shape("batch")[0], kernel, stride, padding)


@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_the_network_uses_it_on_the_cpu_alone(platform, monkeypatch):
    """By the shapes of the products: the points are there, or the convolutions are."""
    monkeypatch.setattr(lax, "platform_dependent", lambda *operands, **forms: forms[platform](*operands))
    shapes = jax.ShapeDtypeStruct((8, 12, 12, 32), jnp.float32), jax.ShapeDtypeStruct((5, 5, 32, 64), jnp.float32)

    def loss(x, kernel):
        return gradients.convolution(x, kernel, 1, SAME[5]).sum()

    traced = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*shapes))
    assert ("conv_general_dilated" in traced) == (platform == "default")
    assert ("f32[64,72,32]" in traced) == (platform == "cpu")
