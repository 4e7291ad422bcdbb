"""The operations against NumPy loops, their gradients against JAX's own of the plain forms, on ties, zeros and odd sizes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from networks import as_on

from alexnet_jax import gradients, ops
from alexnet_jax.layers import AveragePool, MaxPool, ResponseNorm


def draw(*shape, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, shape) if ties else rng.standard_normal(shape)
    return values.astype(np.float32)


def assert_gradients(ours, plain, *operands, rtol=1e-5):
    """A hand-written form has the values of the plain one, and its gradients with respect to every operand."""

    @partial(jax.jit, static_argnums=0)
    def value_and_pull(function, g, *operands):
        y, pull = jax.vjp(function, *operands)
        return y, pull(g)

    shape = jax.eval_shape(plain, *operands)
    g = jnp.asarray(draw(*shape.shape, seed=7), shape.dtype)
    mine, reference = (value_and_pull(function, g, *operands) for function in (ours, plain))
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(reference), strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def response_norm_loop(x, norm):
    """Section 3.3, written out."""
    y = np.zeros_like(x)
    maps = x.shape[-1]
    for i in range(maps):
        low, high = max(0, i - norm.size // 2), min(maps - 1, i + norm.size // 2)
        total = (x[..., low : high + 1].astype(np.float64) ** 2).sum(-1)
        y[..., i] = x[..., i] / (norm.k + norm.alpha * total) ** norm.beta
    return y


def same_map_norm_loop(x, norm):
    y = np.zeros_like(x)
    height, width = x.shape[1:3]
    reach = norm.size // 2
    for i in range(height):
        for j in range(width):
            patch = x[:, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            total = (patch.astype(np.float64) ** 2).sum((1, 2))
            y[:, i, j] = x[:, i, j] / (norm.k + norm.alpha * total) ** norm.beta
    return y


def max_pool_loop(x, pool):
    """Values, and the gradient of sum(values * weights) that goes to the first maximum of each window."""
    height, width = x.shape[1:3]

    def count(size):
        return 1 + (-(-(size - pool.size) // pool.stride) if pool.ceil_mode else (size - pool.size) // pool.stride)

    y = np.zeros((x.shape[0], count(height), count(width), x.shape[3]), x.dtype)
    weights = draw(*y.shape, seed=9)
    gradient = np.zeros_like(x)
    for b, i, j, c in np.ndindex(*y.shape):
        patch = x[b, i * pool.stride : i * pool.stride + pool.size, j * pool.stride : j * pool.stride + pool.size, c]
        y[b, i, j, c] = patch.max()
        row, column = np.unravel_index(patch.argmax(), patch.shape)
        gradient[b, i * pool.stride + row, j * pool.stride + column, c] += weights[b, i, j, c]
    return y, weights, gradient


@pytest.mark.parametrize(
    "norm", [ResponseNorm(), ResponseNorm(k=1.0, alpha=0.5), ResponseNorm(size=3, beta=0.5, alpha=2.0)], ids=str
)
def test_response_norm_values_and_gradient(norm):
    x, g = 10 * draw(2, 3, 4, 7), draw(2, 3, 4, 7, seed=1)
    x[0, 0] = 0
    x, g = jnp.asarray(x), jnp.asarray(g)
    np.testing.assert_allclose(gradients.response_norm(x, norm), response_norm_loop(np.asarray(x), norm), rtol=1e-5)

    def plain(x):  # an independent route: autodiff of reduce_window
        total = lax.reduce_window(x * x, 0.0, lax.add, (1, 1, 1, norm.size), (1, 1, 1, 1), "SAME")
        return x / (norm.k + norm.alpha * total) ** norm.beta

    ours = jax.vjp(lambda x: gradients.response_norm(x, norm), x)[1](g)[0]
    np.testing.assert_allclose(ours, jax.vjp(plain, x)[1](g)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("maps", [1, 2, 5])
def test_response_norm_of_fewer_maps_than_its_window(maps):
    """The paper's max(0, i - n/2) and min(N - 1, i + n/2) meet."""
    x, norm = draw(1, 2, 2, maps), ResponseNorm(alpha=0.5)
    np.testing.assert_allclose(gradients.response_norm(jnp.asarray(x), norm), response_norm_loop(x, norm), rtol=1e-5)


def test_response_norm_in_the_same_map():
    norm = ResponseNorm(across="space", alpha=0.1, k=1.0)
    x = draw(2, 6, 7, 3)
    np.testing.assert_allclose(gradients.response_norm(jnp.asarray(x), norm), same_map_norm_loop(x, norm), rtol=1e-5)


def test_response_norm_computes_in_float32_under_bfloat16():
    x = jnp.asarray(50 * draw(2, 3, 3, 9), jnp.bfloat16)
    ours = gradients.response_norm(x, ResponseNorm())
    assert ours.dtype == jnp.bfloat16
    exact = response_norm_loop(np.asarray(x, np.float32), ResponseNorm())
    np.testing.assert_array_equal(ours, jnp.asarray(exact).astype(jnp.bfloat16))


def test_response_norm_refuses_an_even_window():
    with pytest.raises(ValueError, match="odd window"):
        gradients.response_norm(jnp.ones((1, 1, 1, 4)), ResponseNorm(size=4))


@pytest.mark.parametrize("size", [1, 3, 5, 11])
def test_a_band_of_ones_sums_a_window(size):
    """Also where it is wider than all maps."""
    x = jnp.asarray(draw(2, 3, 7))
    expected = [x[..., max(0, i - size // 2) : i + size // 2 + 1].sum(-1) for i in range(7)]
    for form in (gradients._band_product(x, size, ops.EXACT), ops.window_sum(x, size)):
        np.testing.assert_allclose(form, np.stack(expected, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "platform"), [((7, 7), "cpu"), ((6, 9), "cpu"), ((3, 3), "cpu"), ((6, 9), "tpu"), ((6, 9), "gpu")]
)
@pytest.mark.parametrize(
    "pool", [MaxPool(), MaxPool(ceil_mode=False), MaxPool(size=2, ceil_mode=False), MaxPool(size=2), MaxPool(stride=1),
             MaxPool(size=2, stride=3, ceil_mode=False), MaxPool(size=3, stride=3)], ids=str
)  # fmt: skip
def test_max_pool_on_ties(size, pool, platform, monkeypatch):
    as_on(platform, monkeypatch)
    x = draw(2, *size, 5, ties=True)
    y, weights, gradient = max_pool_loop(x, pool)
    pooled = jax.jit(lambda x: gradients.max_pool(x, pool))
    np.testing.assert_array_equal(pooled(x), y)
    pulled = jax.jit(lambda x, g: jax.vjp(lambda x: gradients.max_pool(x, pool), x)[1](g)[0])
    np.testing.assert_allclose(pulled(x, weights), gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "gpu"])
def test_max_pool_passes_nan_on(platform, monkeypatch):
    as_on(platform, monkeypatch)
    x = draw(1, 5, 5, 1)
    x[0, 2, 2, 0] = np.nan
    assert np.isnan(gradients.max_pool(jnp.asarray(x), MaxPool())).all()


def test_relu_gradient_is_zero_at_zero():
    x = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(gradients.relu(x), [0, 0, 2])
    np.testing.assert_array_equal(jax.grad(lambda x: gradients.relu(x).sum())(x), [0, 0, 1])


def test_small_convolution():
    x, kernel = draw(2, 6, 5, 3), draw(3, 2, 3, 4, seed=1)
    padded = np.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)))
    expected = np.zeros((2, 3, 3, 4), np.float32)
    for i in range(3):
        for j in range(3):
            patch = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2]
            expected[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
    ours = gradients.convolution(jnp.asarray(x), jnp.asarray(kernel), 2, ((1, 0), (0, 2)))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("towers", [1, 2])
def test_dense_is_one_product_per_tower_with_its_gradients(towers):
    x, kernel, g = draw(towers, 5, 7), draw(towers, 7, 3, seed=1), draw(towers, 5, 3, seed=2)
    y, pull = jax.vjp(gradients.dense, jnp.asarray(x), jnp.asarray(kernel))
    dx, dkernel = pull(jnp.asarray(g))
    for t in range(towers):
        for ours, expected in ((y, x[t] @ kernel[t]), (dx, g[t] @ kernel[t].T), (dkernel, x[t].T @ g[t])):
            np.testing.assert_allclose(ours[t], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_dropout_rate_scale_and_streams(rate):
    keys = jax.random.split(jax.random.key(0), 64)
    x = jnp.ones((64, 1000))
    dropped = jax.jit(lambda stream: ops.dropout(x, keys, stream, rate))
    first, again, other = (np.asarray(dropped(stream)) for stream in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.unique(first), [0, 1 / (1 - rate)], rtol=1e-6)
    # 64,000 draws: 5 standard deviations of the mean.
    for mask in (first, other):
        assert abs((mask == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
    both = ((first == 0) & (other == 0)).mean()
    assert abs(both - rate**2) < 5 * np.sqrt(rate**2 / first.size)
    assert not (first[0] == first[1]).all()


def test_dropout_of_an_example_does_not_depend_on_its_neighbours():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 3, 3, 11))
    dropout = jax.jit(ops.dropout, static_argnums=(2, 3))
    np.testing.assert_array_equal(dropout(x, keys, 0, 0.5)[2:3], dropout(x[2:3], keys[2:3], 0, 0.5))


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [((23, 27), 11, 4, (0, 0)), ((24, 21), 11, 4, (0, 3)), ((9, 12), 3, 2, (1, 1)), ((10, 7), 2, 2, (0, 0)),
     ((13, 13), 5, 3, (2, 1)), ((12, 14), 2, 3, (0, 0)), ((9, 12), 3, 1, (1, 1)), ((7, 8), 5, 1, (2, 0))],
)  # fmt: skip
@pytest.mark.parametrize("batch", [3, 19])
def test_a_convolution_has_the_gradients_of_the_plain_one(side, kernel, stride, padding, batch):
    """On even and odd sides, where the last windows leave pixels over and where they hang over the padding; in batches
    of one part, and of several that do not come out even."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *side, 3)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(kernel, kernel, 3, 8)), jnp.float32)

    def plain(x, w):
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (stride, stride), (padding, padding), dimension_numbers=names)

    expected, pull = jax.vjp(plain, x, w)
    got, ours = jax.vjp(lambda x, w: gradients.convolution(x, w, stride, (padding, padding)), x, w)
    g = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
    np.testing.assert_array_equal(got, expected)
    for mine, reference in zip(jax.jit(ours)(g), pull(g), strict=True):
        np.testing.assert_allclose(mine, reference, rtol=1e-5, atol=1e-5 * float(jnp.abs(reference).max()))


def test_a_local_convolution_has_a_kernel_for_each_position():
    x, kernel = draw(2, 5, 6, 3), draw(3, 3, 3 * 3 * 3, 4, seed=1)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 0), (0, 0)))
    expected = np.zeros((2, 3, 3, 4), np.float32)
    for i, j in np.ndindex(3, 3):
        patch = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].transpose(0, 3, 1, 2).reshape(2, -1)  # maps outermost
        expected[:, i, j] = patch @ kernel[i, j]
    ours = ops.local_convolution(jnp.asarray(x), jnp.asarray(kernel), 3, 2, ((1, 1), (1, 0)))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def average_pool_loop(x, pool):
    """Values, and the gradient of sum(values * weights), which each window shares out among its real pixels."""
    count = [1 + int(np.ceil((side - pool.size) / pool.stride)) for side in x.shape[1:3]]
    y = np.zeros((x.shape[0], *count, x.shape[3]))
    weights, gradient = draw(*y.shape, seed=9), np.zeros(x.shape)
    for i, j in np.ndindex(*count):
        window = np.s_[:, i * pool.stride : i * pool.stride + pool.size, j * pool.stride : j * pool.stride + pool.size]
        real = x[window].shape[1] * x[window].shape[2]
        y[:, i, j] = x[window].sum((1, 2), dtype=np.float64) / real
        gradient[window] += weights[:, i : i + 1, j : j + 1] / real
    return y, weights, gradient


@pytest.mark.parametrize(("height", "width"), [(12, 7), (9, 4)])
@pytest.mark.parametrize("pool", [AveragePool(), AveragePool(size=2), AveragePool(size=4, stride=3)], ids=str)
def test_a_mean_at_the_edge_is_that_of_the_pixels_that_are_there(height, width, pool):
    x = draw(2, height, width, 3)
    y, weights, gradient = average_pool_loop(x, pool)
    ours, pull = jax.vjp(lambda x: ops.average_pool(x, pool), jnp.asarray(x))
    np.testing.assert_allclose(ours, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pull(jnp.asarray(weights))[0], gradient, rtol=1e-5, atol=1e-6)


def test_average_pooling_sums_bfloat16_in_float32():
    x = jnp.asarray(draw(1, 6, 6, 2), jnp.bfloat16)
    exact = average_pool_loop(np.asarray(x, np.float32), AveragePool())[0]
    pooled = ops.average_pool(x, AveragePool())
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled, jnp.asarray(exact, jnp.bfloat16))


PLAIN_FORMS = {
    "convolution": ("convolution", [(9, 6, 7, 3), (3, 3, 3, 4)], {"stride": 1, "padding": ((1, 1), (0, 2))}),
    "strided convolution": ("convolution", [(9, 8, 7, 3), (3, 2, 3, 4)], {"stride": 2, "padding": ((0, 1), (1, 0))}),
    "dense": ("dense", [(2, 5, 7), (2, 7, 3)], {}),
    "relu": ("relu", [(4, 9)], {}),
    "norm": ("response_norm", [(2, 3, 4, 7)], {"norm": ResponseNorm(alpha=0.5)}),
    "norm of another power": ("response_norm", [(2, 3, 4, 7)], {"norm": ResponseNorm(beta=0.5, alpha=2.0)}),
    "norm in the same map": ("response_norm", [(2, 3, 4, 7)], {"norm": ResponseNorm(across="space", alpha=0.5)}),
    "max pool": ("max_pool", [(2, 6, 9, 3)], {"pool": MaxPool()}),
}  # fmt: skip


def both_forms(name, dtype):
    """The hand-written form, the plain one, and operands."""
    function, shapes, options = PLAIN_FORMS[name]
    ours, plain = (partial(getattr(module, function), **options) for module in (gradients, ops))
    return ours, plain, *(jnp.asarray(draw(*shape, seed=number), dtype) for number, shape in enumerate(shapes))


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(
    ("name", "platform"),
    [
        *((name, "cpu") for name in PLAIN_FORMS),
        *((name, platform) for name in ("norm", "norm of another power", "max pool") for platform in ("tpu", "gpu")),
    ],
)
def test_hand_written_gradients_are_those_of_the_equations(name, platform, dtype, rtol, monkeypatch):
    """In float64 nothing is left to rounding."""
    as_on(platform, monkeypatch)
    with jax.enable_x64(dtype == "float64"):
        ours, plain, *operands = both_forms(name, dtype)
        assert jax.eval_shape(ours, *operands).dtype == dtype
        assert_gradients(ours, plain, *operands, rtol=rtol)


def test_a_weight_gradient_off_the_cpu_is_of_the_whole_batch(monkeypatch):
    as_on("gpu", monkeypatch)
    ours, plain, *operands = both_forms("strided convolution", "float32")
    assert_gradients(ours, plain, *operands)


@pytest.mark.parametrize(("batch", "parts"), [(7, 1), (8, 1), (9, 2), (64, 8), (256, 32), (1024, 32)])
def test_a_weight_gradient_is_summed_over_parts_of_eight_images_and_over_32_of_them_at_most(batch, parts):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, 5, 5, 2), (batch, 3, 3, 4))]
    traced = jax.make_jaxpr(lambda x, g: gradients._weight_gradient_in_parts(x, g, (3, 3, 2, 4), ((0, 0), (0, 0))))(*shapes)
    added = [equation for equation in traced.eqns if equation.primitive.name == "add"]
    assert len(added) == parts  # the first one to the 0 that a sum begins with


def test_a_mask_of_one_half_takes_one_random_bit_per_unit():
    keys, x = jax.random.split(jax.random.key(0), 3), draw(3, 5, 7)
    words = np.stack([jax.random.bits(jax.random.fold_in(key, 6), (2,)) for key in keys])  # 64 bits for 35 units
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little")[:, :35].reshape(x.shape)
    np.testing.assert_array_equal(ops.dropout(jnp.asarray(x), keys, 6, 0.5), np.where(bits, 2 * x, 0))


@pytest.mark.parametrize("pool", [MaxPool(), MaxPool(ceil_mode=False), MaxPool(size=2, stride=3)], ids=str)
def test_the_equation_of_max_pooling(pool):
    x = draw(2, 8, 7, 3)
    np.testing.assert_array_equal(ops.max_pool(jnp.asarray(x), pool), max_pool_loop(x, pool)[0])
