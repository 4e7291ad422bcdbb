"""The operations of the paper's Section 3, written as its equations.

All arrays are NHWC. Every function returns the dtype that it is given: bfloat16, float32 or float64. The network runs the
forms in `alexnet_jax.gradients`, which have the same values and faster derivatives.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from alexnet_jax.layers import AveragePool, MaxPool, ResponseNorm, sliding_windows

Padding = tuple[tuple[int, int], tuple[int, int]]

# Of products: operands are multiplied as they are. By default a TPU rounds float32 to bfloat16, and a GPU to TF32.
EXACT = lax.Precision.HIGHEST


def convolution(
    x: Float[Array, "batch height width cin"], kernel: Float[Array, "kh kw cin cout"], stride: int, padding: Padding
) -> Float[Array, "batch oh ow cout"]:
    """Dense cross-correlation of one tower."""
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=names, precision=EXACT)


def local_convolution(
    x: Float[Array, "batch height width cin"],
    kernel: Float[Array, "oh ow taps cout"],
    size: int,
    stride: int,
    padding: Padding,
) -> Float[Array, "batch oh ow cout"]:
    """Cross-correlation with a kernel of its own at each position; `taps` are cin x size x size, maps outermost.

    Each position has one matrix product with the patches of all images, which are copied map by map. On the CPU it takes an
    eighth of the time of `lax.conv_general_dilated_local`, which convolves to cut the patches out.
    """
    (oh, ow, _, cout), cin = kernel.shape, x.shape[-1]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).transpose(1, 2, 0, 3)
    rows, columns = (oh - 1) * stride + 1, (ow - 1) * stride + 1
    taps = [padded[i : i + rows : stride, j : j + columns : stride] for i in range(size) for j in range(size)]
    by_tap = kernel.reshape(oh, ow, cin, size**2, cout).swapaxes(2, 3).reshape(kernel.shape)
    return jnp.einsum("hwbk,hwko->bhwo", jnp.concatenate(taps, axis=-1), by_tap, precision=EXACT)


def dense(
    x: Float[Array, "towers batch units"], kernel: Float[Array, "towers units outputs"]
) -> Float[Array, "towers batch outputs"]:
    """One matrix product for each tower held, all of them in one batched product: stacked kernels are never copied apart."""
    return jnp.einsum("tbk,tkn->tbn", x, kernel, precision=EXACT)


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0), Section 3.1."""
    return jnp.maximum(x, 0)


def window_sum(x: Float[Array, "... maps"], size: int) -> Float[Array, "... maps"]:
    """Sum over `size` adjacent maps, `size // 2` of them below: the paper's max(0, i - n/2) to min(N - 1, i + n/2)."""
    below = size // 2
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(below, size - 1 - below)])
    return sum(lax.slice_in_dim(padded, i, i + x.shape[-1], axis=-1) for i in range(size))  # pyright: ignore


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """bfloat16 as float32; wider types stay."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def norm_powers(d: Float[Array, "..."], beta: float) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """d ** -beta and d ** -(beta + 1); for the paper's 0.75 by square roots, several times faster."""
    if beta != 0.75:
        return d**-beta, d ** -(beta + 1)
    power = lax.rsqrt(d * jnp.sqrt(d))
    return power, power / d


def response_norm(
    x: Float[Array, "batch height width maps"], norm: ResponseNorm, map_sum: Callable[[Array, int], Array] = window_sum
) -> Float[Array, "batch height width maps"]:
    """Local response normalisation of the maps given, one tower's or all, Section 3.3: x / (k + alpha * sum x^2) ** beta.

    bfloat16 is computed in float32. `map_sum`: another form of `window_sum`.

    Raises:
        ValueError: an even window.
    """
    if norm.size % 2 == 0:
        raise ValueError(f"a response norm needs an odd window, got {norm.size}")
    wide = at_least_float32(x)
    if norm.across == "space":
        total = lax.reduce_window(wide * wide, 0.0, lax.add, (1, norm.size, norm.size, 1), (1, 1, 1, 1), "SAME")
    else:
        total = map_sum(wide * wide, norm.size)
    scale, _ = norm_powers(norm.k + norm.alpha * total, norm.beta)
    return (wide * scale).astype(x.dtype)


def max_pool(x: Float[Array, "batch height width maps"], pool: MaxPool) -> Float[Array, "batch oh ow maps"]:
    """Max-pooling, Section 3.4. A NaN in a window is its maximum."""
    padding = [(0, sliding_windows(side, pool.size, pool.stride, pool.ceil_mode)[1]) for side in x.shape[1:3]]
    window, strides = (1, pool.size, pool.size, 1), (1, pool.stride, pool.stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, ((0, 0), *padding, (0, 0)))


def average_pool(x: Float[Array, "batch height width maps"], pool: AveragePool) -> Float[Array, "batch oh ow maps"]:
    """The mean of each window. At the edge it counts the pixels that are there, as in cuda-convnet.

    bfloat16 is summed in float32.
    """
    windows = [sliding_windows(side, pool.size, pool.stride, pool.ceil_mode) for side in x.shape[1:3]]
    padding = ((0, 0), *((0, reach) for _, reach in windows), (0, 0))
    window, strides = (1, pool.size, pool.size, 1), (1, pool.stride, pool.stride, 1)
    total = lax.reduce_window(at_least_float32(x), 0.0, lax.add, window, strides, padding)
    rows, columns = (
        np.minimum(pool.size, side - pool.stride * np.arange(count))
        for side, (count, _) in zip(x.shape[1:3], windows, strict=True)
    )
    return (total / np.outer(rows, columns)[:, :, None].astype(total.dtype)).astype(x.dtype)


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
