"""The operations of `alexnet_jax.ops` with hand-written gradients, each beside the measurement that earns its place.

Values and gradients are those of `ops` under autodiff, which the tests hold them against. Ratios without a place are of two
cores of a CPU with AVX-512.
"""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped, UInt8

from alexnet_jax import ops, winograd
from alexnet_jax.layers import MaxPool, ResponseNorm, sliding_windows
from alexnet_jax.ops import Padding

NO_TAP = 255  # of a max-pooling window
_SQUARES = lax.Precision.HIGH  # 16 bits, which the square of a bfloat16 number has: half the passes of `ops.EXACT` on a TPU
PART, MAX_PARTS = 8, 32  # images in a part of a weight gradient's batch on the CPU, and how many parts at most


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    x: Float[Array, "batch height width cin"], kernel: Float[Array, "kh kw cin cout"], stride: int, padding: Padding
) -> Float[Array, "batch oh ow cout"]:
    """`ops.convolution`. On the CPU the weight gradient is summed over small parts of the batch: 1.2 to 2 times as fast.

    That of a convolution with a stride, such as conv1, is taken from the equal convolution of blocks: 5 times as fast.
    Kernels of 5x5 and 3x3 are computed by `winograd` there: 2.6 and 1.6 times as fast. There are no group counts: two dense
    convolutions are faster (gradients up to 17x).
    """
    return _convolution_forward(x, kernel, stride, padding)[0]


def _convolution_forward(x, kernel, stride: int, padding: Padding):
    def plain(x, kernel):
        return ops.convolution(x, kernel, stride, padding)

    def by_points(x, kernel):
        return winograd.convolution(x, kernel, padding)

    if not winograd.fits(x.shape[0], kernel.shape, stride, padding):
        return plain(x, kernel), (x, kernel)
    return lax.platform_dependent(x, kernel, cpu=by_points, default=plain), (x, kernel)


def _convolution_backward(stride: int, padding: Padding, residual, g):
    x, kernel = residual

    def plain(x, kernel, g):
        # Both are linear, so nothing is computed forward again; conv1's input gradient is never asked for, and not computed.
        return jax.vjp(lambda x: ops.convolution(x, kernel, stride, padding), x)[1](g)[0]

    def whole(x, g):
        return _weight_gradient(x, g, kernel.shape, stride, padding)

    def in_parts(x, g):
        if stride == 1:
            return _weight_gradient_in_parts(x, g, kernel.shape, padding)
        return _weight_gradient_of_blocks(x, g, kernel.shape, stride, padding)

    if not winograd.fits(x.shape[0], kernel.shape, stride, padding):
        return plain(x, kernel, g), lax.platform_dependent(x, g, cpu=in_parts, default=whole)
    dx = lax.platform_dependent(x, kernel, g, cpu=lambda _, k, g: winograd.input_gradient(g, k, padding), default=plain)
    return dx, lax.platform_dependent(
        x, g, cpu=lambda x, g: winograd.weight_gradient(x, g, len(kernel), padding), default=whole
    )


convolution.defvjp(_convolution_forward, _convolution_backward)


def _weight_gradient(x, g, shape: tuple[int, ...], stride: int, padding: Padding):
    return jax.vjp(lambda kernel: ops.convolution(x, kernel, stride, padding), jnp.zeros(shape, x.dtype))[1](g)[0]


def _weight_gradient_in_parts(x, g, shape: tuple[int, ...], padding: Padding):
    """For stride 1. A part's operands stay in the processor's caches; on a whole batch XLA's form is up to half as fast."""
    step = max(PART, len(x) // MAX_PARTS)
    parts = [_weight_gradient(x[i : i + step], g[i : i + step], shape, 1, padding) for i in range(0, len(x), step)]
    return sum(map(ops.at_least_float32, parts)).astype(x.dtype)  # pyright: ignore[reportAttributeAccessIssue]


def _weight_gradient_of_blocks(
    x: Float[Array, "batch height width cin"],
    g: Float[Array, "batch oh ow cout"],
    shape: tuple[int, ...],
    stride: int,
    padding: Padding,
) -> Float[Array, "kh kw cin cout"]:
    """Blocks of stride x stride pixels become channels: the stride becomes 1 and the kernel ceil(k / stride) taps wide."""
    (kh, kw, cin, cout), (oh, ow) = shape, g.shape[1:3]
    taps_h, taps_w = -(-kh // stride), -(-kw // stride)
    rows, columns = oh - 1 + taps_h, ow - 1 + taps_w
    sides = zip((rows, columns), x.shape[1:3], padding, strict=True)
    edges = [(before, blocks * stride - side - before) for blocks, side, (before, _) in sides]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((before, after, 0) for before, after in edges), (0, 0, 0)])
    blocks = x.reshape(-1, rows, stride, columns, stride, cin).swapaxes(2, 3).reshape(-1, rows, columns, stride**2 * cin)
    kernel = _weight_gradient_in_parts(blocks, g, (taps_h, taps_w, stride**2 * cin, cout), ((0, 0), (0, 0)))
    kernel = kernel.reshape(taps_h, taps_w, stride, stride, cin, cout).swapaxes(1, 2)
    return kernel.reshape(taps_h * stride, taps_w * stride, cin, cout)[:kh, :kw]


@jax.custom_vjp
def dense(
    x: Float[Array, "towers batch units"], kernel: Float[Array, "towers units outputs"]
) -> Float[Array, "towers batch outputs"]:
    """`ops.dense`. The input gradient is computed transposed, so both operands are read as they lie: 2x at batch 64."""
    return ops.dense(x, kernel)


def _dense_forward(x, kernel):
    return ops.dense(x, kernel), (x, kernel)


def _dense_backward(residual, g):
    x, kernel = residual
    dx = jnp.einsum("tkn,tbn->tkb", kernel, g, precision=ops.EXACT).swapaxes(1, 2)
    return dx, jnp.einsum("tbk,tbn->tkn", x, g, precision=ops.EXACT)


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`ops.relu`. The gradient masks on the output, so the pre-activation is not kept; it is 0 at 0."""
    return ops.relu(x)


def _relu_forward(x):
    y = ops.relu(x)
    return y, y


def _relu_backward(y, g):
    return (jnp.where(y > 0, g, 0),)


relu.defvjp(_relu_forward, _relu_backward)


def response_norm(x: Float[Array, "batch height width maps"], norm: ResponseNorm) -> Float[Array, "batch height width maps"]:
    """`ops.response_norm`. Across maps only `x` is kept: 4x faster than the gradient of a reduce_window.

    On a TPU the sum over a window is a product with a band of ones.

    Raises:
        ValueError: an even window.
    """
    return ops.response_norm(x, norm) if norm.across == "space" else _map_norm(x, norm)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _map_norm(x, norm: ResponseNorm):
    return ops.response_norm(x, norm, partial(_window_sum, x.dtype))


def _map_norm_forward(x, norm):
    return ops.response_norm(x, norm, partial(_window_sum, x.dtype)), x


def _map_norm_backward(norm, x, g):
    # dx = g d^-b - 2 a b x S(g x d^(-b-1)). S mirrored is S itself, for `ops.response_norm` admits only odd sizes.
    wide, g_wide = ops.at_least_float32(x), ops.at_least_float32(g)
    d = norm.k + norm.alpha * _window_sum(x.dtype, wide * wide, norm.size)
    scale, steeper = ops.norm_powers(d, norm.beta)
    spread = _window_sum(x.dtype, _stored(g_wide * wide * steeper, x.dtype), norm.size)
    return ((g_wide * scale - (2 * norm.alpha * norm.beta) * wide * spread).astype(x.dtype),)


_map_norm.defvjp(_map_norm_forward, _map_norm_backward)


def _stored(wide: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """Float32 that a GPU cannot keep between two passes is rounded to `dtype`, that of what it becomes: half the bytes."""

    def rounded(wide):
        return lax.optimization_barrier(wide.astype(dtype)).astype(wide.dtype)

    if wide.dtype == dtype:
        return wide
    return lax.platform_dependent(wide, cpu=lambda wide: wide, tpu=lambda wide: wide, default=rounded)


def _window_sum(dtype: Any, x: Float[Array, "... maps"], size: int) -> Float[Array, "... maps"]:
    """`ops.window_sum` of float32 that was computed from activations of `dtype`, in the form that the platform prefers."""
    product = partial(_band_product, size=size, precision=_SQUARES if dtype == jnp.bfloat16 else ops.EXACT)
    return lax.platform_dependent(x, tpu=product, default=partial(ops.window_sum, size=size))


def _band_product(x: Float[Array, "... maps"], size: int, precision: lax.Precision) -> Float[Array, "... maps"]:
    """`ops.window_sum` as a product with a band of ones. On a TPU maps lie along the lanes, and shifting them is dear."""
    inputs, outputs = np.indices((x.shape[-1], x.shape[-1]))
    above_start = inputs - (outputs - size // 2)
    band = (above_start >= 0) & (above_start < size)
    return jnp.einsum("...m,mn->...n", x, jnp.asarray(band, x.dtype), precision=precision)


def max_pool(x: Float[Array, "batch height width maps"], pool: MaxPool) -> Float[Array, "batch oh ow maps"]:
    """`ops.max_pool`. The gradient goes to the first maximum of a window in row order, as in XLA and Caffe.

    The winner is kept as one byte per output. On a CPU XLA's own gradient, with index tensors and a scatter, is 8x slower. A
    TPU has one instruction for it.
    """
    ours = partial(_max_pool, pool=pool, sides=x.shape[1:3])
    return lax.platform_dependent(x, tpu=partial(ops.max_pool, pool=pool), default=ours)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x, pool: MaxPool, sides: tuple[int, int]):
    return _pool_forward(x, pool, sides)[0]


def _max_pool_forward(x, pool: MaxPool, sides: tuple[int, int]):
    # On a GPU both come from one pass; without the barrier it begins the pass twice, once in what follows.
    pooled = _pool_forward(x, pool, sides)
    return lax.platform_dependent(*pooled, cpu=lambda *both: both, default=lambda *both: lax.optimization_barrier(both))


def _pool_forward(x, pool: MaxPool, sides: tuple[int, int]):
    (oh, pad_h), (ow, pad_w) = (sliding_windows(side, pool.size, pool.stride, pool.ceil_mode) for side in sides)
    padded = jnp.pad(x, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)), constant_values=-jnp.inf)
    best = winner = None
    for tap in range(pool.size**2):
        i, j = divmod(tap, pool.size)
        stop = (i + (oh - 1) * pool.stride + 1, j + (ow - 1) * pool.stride + 1)
        start, stride = (0, i, j, 0), (1, pool.stride, pool.stride, 1)
        value = lax.slice(padded, start, (x.shape[0], *stop, x.shape[3]), stride)
        if best is None or winner is None:
            best, winner = value, jnp.zeros(value.shape, jnp.uint8)
        else:
            higher = (value > best) | jnp.isnan(value)
            best, winner = jnp.where(higher, value, best), jnp.where(higher, jnp.uint8(tap), winner)
    return best, winner


def _max_pool_backward(pool: MaxPool, sides: tuple[int, int], winner: UInt8[Array, "batch oh ow maps"], g):
    blocks = tuple(-(-side // pool.stride) for side in sides)
    reach = _reach(pool)
    edges = [(0, 0), *((reach, max(0, count - n)) for count, n in zip(blocks, g.shape[1:3], strict=True)), (0, 0)]
    g, winner = jnp.pad(g, edges), jnp.pad(winner, edges, constant_values=NO_TAP)
    by_phases, by_pixels = (partial(form, pool=pool, blocks=blocks) for form in (_unpooled_by_phases, _unpooled_by_pixels))
    whole = lax.platform_dependent(g, winner, cpu=by_phases, default=by_pixels)
    return (whole.reshape(len(g), blocks[0] * pool.stride, blocks[1] * pool.stride, -1)[:, : sides[0], : sides[1]],)


def _reach(pool: MaxPool) -> int:
    """How many windows before a pixel's own block reach it. A block is the stride x stride pixels where a window begins."""
    return -(-pool.size // pool.stride) - 1


def _reaching(x: Shaped[Array, "batch rows columns maps"], up: int, left: int, pool: MaxPool, blocks: tuple[int, ...]):
    """What every block has from the window that begins so many blocks before it."""
    first = (0, _reach(pool) - up, _reach(pool) - left, 0)
    return lax.slice(x, first, (len(x), first[1] + blocks[0], first[2] + blocks[1], x.shape[3]))


def _unpooled_by_phases(g, winner, *, pool: MaxPool, blocks: tuple[int, ...]):
    """Gathers, for each phase (row, column modulo the stride) of the input, from the few windows that reach it.

    No scatter, and each phase is one fused pass: 3x faster on the CPU than adding up one padded array for each tap.
    """
    stride, reach = pool.stride, _reach(pool)

    def from_window(tap: int, up: int, left: int):
        return jnp.where(_reaching(winner, up, left, pool, blocks) == tap, _reaching(g, up, left, pool, blocks), 0)

    def phase(row: int, column: int):
        rows = [(up, row + stride * up) for up in range(reach + 1) if row + stride * up < pool.size]
        columns = [(left, column + stride * left) for left in range(reach + 1) if column + stride * left < pool.size]
        parts = [from_window(i * pool.size + j, up, left) for up, i in rows for left, j in columns]
        return sum(parts) if parts else jnp.zeros((len(g), *blocks, g.shape[3]), g.dtype)  # between windows

    phases = [jnp.stack([phase(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    return jnp.stack(phases, axis=2)


def _unpooled_by_pixels(g, winner, *, pool: MaxPool, blocks: tuple[int, ...]):
    """Every pixel asks each window that may reach it. No array lies between, so a GPU does it in the pass that follows."""
    whole = jnp.zeros((), g.dtype)
    for up, left in itertools.product(range(_reach(pool) + 1), repeat=2):
        rows, columns = (np.arange(pool.stride) + pool.stride * before for before in (up, left))
        within = (rows[:, None] < pool.size) & (columns < pool.size)
        taps = np.where(within, rows[:, None] * pool.size + columns, NO_TAP - 1).astype(np.uint8)  # NO_TAP is of the edges
        won, gradient = (_reaching(x, up, left, pool, blocks)[:, :, None, :, None] for x in (winner, g))
        whole += jnp.where(won == taps[:, None, :, None], gradient, 0)
    return whole


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
