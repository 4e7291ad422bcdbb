"""The kernels of ReLU, response norm and max-pooling in Pallas' interpret mode, against the plain operations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pltpu
from networks import CLASSES, CROP, as_on

from alexnet_jax import ops
from alexnet_jax.architectures import ARCHITECTURES
from alexnet_jax.layers import MaxPool, ResponseNorm
from alexnet_jax.network import initial_params, merge, split
from alexnet_jax.norm_pool import LANES, fits, relu_norm_pool

NORM = ResponseNorm(alpha=0.3)  # strong, so that the sums over maps count
IMAGES = 2 * LANES


@pytest.fixture
def interpreted(monkeypatch):
    """The form of a TPU is traced here, and its kernels run. What a kernel has not written is NaN."""
    as_on("tpu", monkeypatch)
    with pltpu.force_tpu_interpret_mode():
        yield


def draw(*shape, seed=0, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def plain(x, bias, norm=NORM, pool=MaxPool()):
    return ops.max_pool(ops.response_norm(jax.nn.relu(x + bias), norm), pool)


def value_and_gradients(function, norm, x, bias, g):
    y, pull = jax.vjp(lambda x, bias: function(x, bias, norm, MaxPool()), x, bias)
    return y, *pull(g)


def differ(ours, reference, rtol):
    """The share of values that are not close."""
    ours, reference = (np.asarray(each, np.float64) for each in (ours, reference))
    return 1 - np.isclose(ours, reference, rtol=rtol, atol=rtol * np.abs(reference).max()).mean()


def test_values_and_gradients_are_those_of_the_operations(interpreted):
    """The first block of images has no two equal values. In the second, windows have several maxima, or only zeros."""
    norm = ResponseNorm(alpha=0.3, size=3)
    bias, g = draw(16, seed=1), draw(IMAGES, 3, 4, 16, seed=2)
    ties = np.random.default_rng(3).integers(-1, 3, (LANES, 7, 9, 1)) - np.asarray(bias)
    operands = jnp.concatenate([draw(LANES, 7, 9, 16), ties]), bias, g
    ours = jax.jit(partial(value_and_gradients, relu_norm_pool, norm))(*operands)
    for mine, other in zip(ours, value_and_gradients(plain, norm, *operands), strict=True):
        assert differ(mine, other, rtol=2e-6) == 0


def test_bfloat16_is_computed_in_float32(interpreted):
    """Maxima are those of rounded values, as in the plain form: among unrounded ones 0.0015 of the gradients differ."""
    x, bias, g = (draw(*shape, dtype="bfloat16") for shape in ((LANES, 7, 9, 16), (16,), (LANES, 3, 4, 16)))
    ours = jax.jit(partial(value_and_gradients, relu_norm_pool, NORM))(x, bias, g)
    assert [each.dtype for each in ours] == [jnp.bfloat16] * 3
    reference = value_and_gradients(plain, NORM, x, bias, g)
    shares = [differ(*pair, rtol=1e-2) for pair in zip(ours, reference, strict=True)]
    assert shares[0] == 0
    assert shares[1] < 0.0005
    assert differ(ours[2], reference[2], rtol=3e-2) == 0


def test_a_nan_is_the_maximum_of_its_windows(interpreted):
    """Also of those in which it is not the first pixel, and in the maps whose norm it is in."""
    x = np.ones((LANES, 5, 5, 16), np.float32)
    x[0, 2, 2, 8] = x[1, 4, 1, 0] = np.nan
    pooled = jax.jit(partial(relu_norm_pool, norm=NORM, pool=MaxPool()))(x, jnp.zeros(16))
    np.testing.assert_array_equal(np.isnan(pooled), np.isnan(plain(x, jnp.zeros(16))))
    assert np.isnan(pooled).sum() == 4 * 5 + 3


@pytest.mark.parametrize(
    ("shape", "norm", "pool", "there"),
    [((128, 55, 55, 48), ResponseNorm(), MaxPool(), True), ((1024, 27, 27, 128), ResponseNorm(), MaxPool(), True),
     ((127, 55, 55, 48), ResponseNorm(), MaxPool(), False), ((128, 56, 55, 48), ResponseNorm(), MaxPool(), False),
     ((128, 55, 55, 40), ResponseNorm(), MaxPool(), False), ((128, 1, 1, 48), ResponseNorm(), MaxPool(), False),
     ((128, 55, 55, 48), ResponseNorm(across="space"), MaxPool(), False),
     ((128, 55, 55, 48), ResponseNorm(beta=0.5), MaxPool(), False),
     ((128, 55, 55, 48), ResponseNorm(), MaxPool(size=2), False),
     ((128, 55, 55, 48), ResponseNorm(), MaxPool(stride=1), False),
     ((128, 999, 999, 48), ResponseNorm(), MaxPool(), False)], ids=str
)  # fmt: skip
def test_what_the_kernels_can_do(shape, norm, pool, there):
    assert fits(shape, jnp.bfloat16, norm, pool) == there
    assert not fits(shape, jnp.float64, norm, pool)


@pytest.mark.parametrize("bias", [(16,), (5, 5, 16)], ids=["shared", "local"])
def test_elsewhere_it_is_the_four_operations(bias):
    """On a CPU, and where each position has a bias of its own."""
    x, bias = draw(LANES, 5, 5, 16), draw(*bias, seed=1)
    np.testing.assert_allclose(relu_norm_pool(x, bias, NORM, MaxPool()), plain(x, bias), rtol=1e-6)


def kernels(batch, fuse):
    """How often the traced network of 67 px calls a kernel."""
    graph, params = split(ARCHITECTURES["paper"], classes=10, crop_size=67, dtype=jnp.dtype("bfloat16"), fuse=fuse)
    images = jax.ShapeDtypeStruct((batch, 67, 67, 3), jnp.float32)
    return str(jax.make_jaxpr(lambda params, images: merge(graph, params)(images))(params, images)).count("pallas_call[")


def test_a_network_has_a_kernel_for_each_tower_of_conv1_and_conv2():
    assert kernels(LANES, fuse=True) == 4
    assert kernels(LANES, fuse=False) == kernels(96, fuse=True) == 0


def test_a_fused_network_is_the_same_network():
    """With biases that are not 0. Eight images are no block, so the operations are apart."""
    table = ARCHITECTURES["paper_eighth"]
    key, images = jax.random.key(0), draw(8, CROP, CROP, 3)
    params = initial_params(table, classes=CLASSES, crop_size=CROP, key=key)
    for layer in params.values():
        layer["bias"] = jnp.linspace(-1, 1, layer["bias"].size).reshape(layer["bias"].shape)
    logits = []
    for fuse in (True, False):
        graph, _ = split(table, classes=CLASSES, crop_size=CROP, dtype=jnp.dtype("float32"), fuse=fuse)
        logits.append(jax.jit(lambda params, graph=graph: merge(graph, params)(images))(params))
    np.testing.assert_allclose(*logits, rtol=1e-6)


def test_the_kernels_are_lowered_for_tpus_alone():
    """Mosaic takes them; no compiler for TPUs is needed for that."""
    shapes = jax.ShapeDtypeStruct((128, 55, 55, 48), jnp.bfloat16), jax.ShapeDtypeStruct((48,), jnp.bfloat16)
    pull = jax.jit(
        jax.grad(lambda x, bias: relu_norm_pool(x, bias, NORM, MaxPool()).astype(jnp.float32).sum(), argnums=(0, 1))
    )
    found = {each: export.export(pull, platforms=[each])(*shapes).mlir_module() for each in ("tpu", "cpu", "cuda")}
    assert {each: text.count("@tpu_custom_call") for each, text in found.items()} == {"tpu": 2, "cpu": 0, "cuda": 0}
