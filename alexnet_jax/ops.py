"""The operations of Section 3, each with a gradient of its own where the stock one is slow: see the notes in each.

All arrays are NHWC. Every function returns the dtype that it is given: bfloat16, float32 or float64.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, UInt8

from alexnet_jax.layers import MaxPool, ResponseNorm, sliding_windows

Padding = tuple[tuple[int, int], tuple[int, int]]

NO_TAP = 255  # of a max-pooling window
PART, MAX_PARTS = 8, 32  # images in a part of a weight gradient's batch on the CPU, and how many parts at most


def convolution(
    x: Float[Array, "batch height width cin"], kernel: Float[Array, "kh kw cin cout"], stride: int, padding: Padding
) -> Float[Array, "batch oh ow cout"]:
    """Dense cross-correlation of one tower. No group counts: two dense ones are faster (gradients up to 17x).

    On the CPU the weight gradient is summed over small parts of the batch, and that of a convolution with a stride, such as
    conv1, is taken from the equal convolution of blocks: 1.2 to 2 times as fast, conv1's 5 times.
    """
    return _convolution(x, kernel, stride, padding)


def local_convolution(
    x: Float[Array, "batch height width cin"],
    kernel: Float[Array, "oh ow taps cout"],
    size: int,
    stride: int,
    padding: Padding,
) -> Float[Array, "batch oh ow cout"]:
    """Cross-correlation with a kernel of its own at each position; `taps` are cin x size x size, maps outermost."""
    return lax.conv_general_dilated_local(
        x, kernel, (stride, stride), padding, (size, size), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _correlate(x, kernel, stride: int, padding: Padding):
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(x, kernel, stride: int, padding: Padding):
    return _correlate(x, kernel, stride, padding)


def _convolution_forward(x, kernel, stride: int, padding: Padding):
    return _correlate(x, kernel, stride, padding), (x, kernel)


def _convolution_backward(stride: int, padding: Padding, residual, g):
    x, kernel = residual
    # Both are linear, so nothing is computed forward again; conv1's input gradient is never asked for, and not computed.
    (dx,) = jax.vjp(lambda x: _correlate(x, kernel, stride, padding), x)[1](g)

    def whole(x, g):
        return _weight_gradient(x, g, kernel.shape, stride, padding)

    def in_parts(x, g):
        if stride == 1:
            return _weight_gradient_in_parts(x, g, kernel.shape, padding)
        return _weight_gradient_of_blocks(x, g, kernel.shape, stride, padding)

    return dx, lax.platform_dependent(x, g, cpu=in_parts, default=whole)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _weight_gradient(x, g, shape: tuple[int, ...], stride: int, padding: Padding):
    return jax.vjp(lambda kernel: _correlate(x, kernel, stride, padding), jnp.zeros(shape, x.dtype))[1](g)[0]


def _weight_gradient_in_parts(x, g, shape: tuple[int, ...], padding: Padding):
    """For stride 1. A part's operands stay in the processor's caches; on a whole batch XLA's form is up to half as fast."""
    step = max(PART, len(x) // MAX_PARTS)
    parts = [_weight_gradient(x[i : i + step], g[i : i + step], shape, 1, padding) for i in range(0, len(x), step)]
    return sum(map(_at_least_float32, parts)).astype(x.dtype)  # pyright: ignore[reportAttributeAccessIssue]


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
    """One matrix product for each tower held, all of them in one batched product.

    The stacked kernels are never cut apart, which would copy them. The input gradient is computed transposed, so that both
    operands are read as they lie: twice as fast on the CPU at batch 64, and a matter of layout on a GPU.
    """
    return jnp.einsum("tbk,tkn->tbn", x, kernel)


def _dense_forward(x, kernel):
    return dense(x, kernel), (x, kernel)


def _dense_backward(residual, g):
    x, kernel = residual
    return jnp.einsum("tkn,tbn->tkb", kernel, g).swapaxes(1, 2), jnp.einsum("tbk,tbn->tkn", x, g)


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0), Section 3.1. The gradient masks on the output, so the pre-activation is not kept; it is 0 at 0."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, g):
    return (jnp.where(y > 0, g, 0),)


relu.defvjp(_relu_forward, _relu_backward)


def _window_sum(x: Float[Array, "... maps"], size: int) -> Float[Array, "... maps"]:
    """Sum over `size` adjacent maps, `size // 2` of them below: the paper's max(0, i - n/2) to min(N - 1, i + n/2)."""
    below = size // 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(below, size - 1 - below)])
    return sum(lax.slice_in_dim(padded, i, i + x.shape[-1], axis=-1) for i in range(size))  # pyright: ignore


def _at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _powers(d: Float[Array, "..."], beta: float) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """d ** -beta and d ** -(beta + 1); for the paper's 0.75 by square roots, several times faster."""
    if beta != 0.75:
        return d**-beta, d ** -(beta + 1)
    power = lax.rsqrt(d * jnp.sqrt(d))
    return power, power / d


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _map_norm(x, norm: ResponseNorm):
    wide = _at_least_float32(x)
    scale, _ = _powers(norm.k + norm.alpha * _window_sum(wide * wide, norm.size), norm.beta)
    return (wide * scale).astype(x.dtype)


def _map_norm_forward(x, norm):
    return _map_norm(x, norm), x


def _map_norm_backward(norm, x, g):
    # dx = g d^-b - 2 a b x S(g x d^(-b-1)). S mirrored is S itself for the odd sizes that `response_norm` admits.
    wide, g_wide = _at_least_float32(x), _at_least_float32(g)
    d = norm.k + norm.alpha * _window_sum(wide * wide, norm.size)
    scale, steeper = _powers(d, norm.beta)
    spread = _window_sum(g_wide * wide * steeper, norm.size)
    return ((g_wide * scale - (2 * norm.alpha * norm.beta) * wide * spread).astype(x.dtype),)


_map_norm.defvjp(_map_norm_forward, _map_norm_backward)


def response_norm(x: Float[Array, "batch height width maps"], norm: ResponseNorm) -> Float[Array, "batch height width maps"]:
    """Local response normalisation of the maps given, one tower's or all, Section 3.3; bfloat16 is computed in float32.

    Across maps only `x` is kept for the gradient, which is 4x faster than differentiating a reduce_window.

    Raises:
        ValueError: an even window.
    """
    if norm.size % 2 == 0:
        raise ValueError(f"a response norm needs an odd window, got {norm.size}")
    if norm.across != "space":
        return _map_norm(x, norm)
    wide = _at_least_float32(x)
    window = (1, norm.size, norm.size, 1)
    total = lax.reduce_window(wide * wide, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")
    return (wide * _powers(norm.k + norm.alpha * total, norm.beta)[0]).astype(x.dtype)


def max_pool(x: Float[Array, "batch height width maps"], pool: MaxPool) -> Float[Array, "batch oh ow maps"]:
    """Max-pooling, Section 3.4. The gradient goes to the first maximum of a window in row order, as in XLA and Caffe.

    The winner is kept as one byte per output; XLA's own gradient expands into index tensors and a scatter (8x slower).
    A NaN in a window is its maximum.
    """
    return _max_pool(x, pool, x.shape[1:3])


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x, pool: MaxPool, sides: tuple[int, int]):
    return _pool_forward(x, pool, sides)[0]


def _pool_forward(x, pool: MaxPool, sides: tuple[int, int]):
    (oh, pad_h), (ow, pad_w) = (sliding_windows(side, pool.size, pool.stride, pool.overhang) for side in sides)
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


def _pool_backward(pool: MaxPool, sides: tuple[int, int], winner: UInt8[Array, "batch oh ow maps"], g):
    """Gathers, for each phase (row, column modulo the stride) of the input, from the few windows that reach it.

    No scatter, and each phase is one fused pass: 3x faster on the CPU than adding up one padded array for each tap.
    """
    stride, reach = pool.stride, -(-pool.size // pool.stride) - 1  # windows before a pixel's own block that reach it
    blocks = [-(-side // stride) for side in sides]
    edges = [(0, 0), *((reach, max(0, count - n)) for count, n in zip(blocks, g.shape[1:3], strict=True)), (0, 0)]
    g, winner = jnp.pad(g, edges), jnp.pad(winner, edges, constant_values=NO_TAP)

    def from_window(tap: int, up: int, left: int):
        first = (0, reach - up, reach - left, 0)
        last = (len(g), first[1] + blocks[0], first[2] + blocks[1], g.shape[3])
        return jnp.where(lax.slice(winner, first, last) == tap, lax.slice(g, first, last), 0)

    def phase(row: int, column: int):
        rows = [(up, row + stride * up) for up in range(reach + 1) if row + stride * up < pool.size]
        columns = [(left, column + stride * left) for left in range(reach + 1) if column + stride * left < pool.size]
        parts = [from_window(i * pool.size + j, up, left) for up, i in rows for left, j in columns]
        return sum(parts) if parts else jnp.zeros((len(g), *blocks, g.shape[3]), g.dtype)  # between windows

    phases = [jnp.stack([phase(row, column) for column in range(stride)], axis=3) for row in range(stride)]
    whole = jnp.stack(phases, axis=2).reshape(len(g), blocks[0] * stride, blocks[1] * stride, -1)
    return (whole[:, : sides[0], : sides[1]],)


_max_pool.defvjp(_pool_forward, _pool_backward)


def dropout(
    x: Float[Array, "batch *unit"], keys: Key[Array, "batch"], stream: int | Int[Array, ""], rate: float
) -> Float[Array, "batch *unit"]:
    """Sets each unit to 0 with probability `rate` and divides the others by 1 - rate (Section 4.2).

    Args:
        x: one tower's units.
        keys: one key per example, so that a mask does not depend on how the batch is spread over devices.
        stream: tells apart the masks of one example; a different number for every layer and tower.
        rate: in [0, 1). At 0.5 a mask costs one random bit per unit.
    """
    units = x[0].size
    keys = jax.vmap(lambda key: jax.random.fold_in(key, stream))(keys)
    if rate == 0.5:
        words = jax.vmap(lambda key: jax.random.bits(key, (-(-units // 32),)))(keys)
        bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        keep = bits.reshape(len(x), -1)[:, :units].astype(bool)
    else:
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (units,)))(keys)
    return jnp.where(keep.reshape(x.shape), x * jnp.asarray(1 / (1 - rate), x.dtype), 0)
