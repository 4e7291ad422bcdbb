"""ReLU, response normalisation and max-pooling as one Pallas kernel forward and one backward, for TPUs.

XLA goes over the maps of conv1 and conv2, the largest of the network, once for each operation, and several times for their
gradients. Here every row of pixels is read once in each direction. The kernels compile for TPUs, and run on the CPU in
Pallas' interpret mode; they have not run on a TPU.

Inside, arrays are (height, width, maps, batch). XLA lays activations of 128 images out so on a TPU, and the transposition
moves nothing. Maps lie along the sublanes, and images along the 128 lanes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int, Int8

from alexnet_jax import gradients
from alexnet_jax.layers import MaxPool, ResponseNorm

LANES = 128  # images in a block
EDGE = 8  # rows of zeros around the maps in scratch memory: whole tiles of float32
TILE = 16  # maps: the sublanes of a tile of bfloat16
MEMORY = 14 * 2**20  # bytes of blocks and scratch; a kernel gets 16 MiB unless it asks for more
NO_TAP = 100  # of no window's nine
Maps = Float[Array, "maps 128"]
Won = tuple[Maps, Int[Array, "maps 128"]]  # values, and the taps of the window that they come from

_IN_TURN = pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"))  # rows follow each other, blocks need not


def relu_norm_pool(
    x: Float[Array, "batch height width maps"], bias: Float[Array, "*position maps"], norm: ResponseNorm, pool: MaxPool
) -> Float[Array, "batch oh ow maps"]:
    """Bias, ReLU (Section 3.1), response norm (3.3) and max-pooling (3.4): on a TPU one kernel where it `fits`.

    Elsewhere it is the four, each in its form of `alexnet_jax.gradients`.
    """

    def apart(x, bias):
        return gradients.max_pool(gradients.response_norm(gradients.relu(x + bias), norm), pool)

    if bias.ndim > 1 or not fits(x.shape, x.dtype, norm, pool):
        return apart(x, bias)
    return lax.platform_dependent(x, bias, tpu=partial(_fused, norm=norm), default=apart)


def fits(shape: tuple[int, ...], dtype: Any, norm: ResponseNorm, pool: MaxPool) -> bool:
    """Whether the kernels can do it: 3x3 windows at stride 2 that fill the maps, the paper's power, and whole tiles.

    Args:
        shape: batch, height, width and maps.
        dtype: of the maps: float32 or bfloat16.
        norm: over adjacent maps.
        pool: with or without `ceil_mode`, as no window reaches over an edge.
    """
    batch, height, width, maps = shape
    windows = (pool.size, pool.stride) == (3, 2) and min(height, width) >= 3 and height % 2 == width % 2 == 1
    sums = norm.across == "maps" and norm.beta == 0.75 and norm.size % 2 == 1 and norm.size // 2 <= EDGE
    tiles = batch % LANES == 0 and maps % TILE == 0 and dtype in (jnp.bfloat16, jnp.float32)
    pixel = maps * LANES * jnp.dtype(dtype).itemsize
    return windows and sums and tiles and 10 * width * pixel <= MEMORY  # two rows in and out, each twice, and the windows'


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fused(x, bias, norm: ResponseNorm):
    return _fused_forward(x, bias, norm)[0]


def _fused_forward(x, bias, norm: ResponseNorm):
    x = x + bias  # XLA does it where the convolution ends
    pooled, tap = forward(x.transpose(1, 2, 3, 0), norm)
    return pooled.transpose(3, 0, 1, 2), (x, tap)


def _fused_backward(norm: ResponseNorm, residual, g):
    x, tap = residual
    dx, dbias = backward(x.transpose(1, 2, 3, 0), tap, g.transpose(1, 2, 3, 0), norm)
    return dx.transpose(3, 0, 1, 2), dbias.astype(x.dtype)


_fused.defvjp(_fused_forward, _fused_backward)


def forward(
    x: Float[Array, "height width maps batch"], norm: ResponseNorm
) -> tuple[Float[Array, "oh ow maps batch"], Int8[Array, "oh ow maps batch"]]:
    """The maximum of every window after ReLU and response norm, and the first of its nine taps that has it, by rows."""
    height, width, maps, batch = x.shape
    rows, columns = height // 2, width // 2
    above = _windows(columns, maps, lambda i: jnp.maximum(i - 1, 0))
    shape = (rows, columns, maps, batch)
    kept = (columns, maps, LANES)
    return pl.pallas_call(
        partial(_forward_kernel, norm=norm),
        grid=(batch // LANES, rows + 1),
        in_specs=[_two_rows(width, maps)],
        out_specs=[above, above],
        out_shape=[jax.ShapeDtypeStruct(shape, x.dtype), jax.ShapeDtypeStruct(shape, jnp.int8)],
        scratch_shapes=[pltpu.VMEM(kept, jnp.float32), pltpu.VMEM(kept, jnp.int32), _sum_scratch(4, maps)],
        compiler_params=_IN_TURN,
        cost_estimate=_cost(x, 1),
        name="norm_pool",
    )(x)


def backward(
    x: Float[Array, "height width maps batch"],
    tap: Int8[Array, "oh ow maps batch"],
    g: Float[Array, "oh ow maps batch"],
    norm: ResponseNorm,
) -> tuple[Float[Array, "height width maps batch"], Float[Array, "maps"]]:
    """The gradient of `x` from that of the maxima, and its sum over all pixels of all images: a bias's gradient."""
    height, width, maps, batch = x.shape
    rows, columns = height // 2, width // 2
    above = _windows(columns, maps, lambda i: jnp.maximum(i - 1, 0))
    below = _windows(columns, maps, lambda i: jnp.minimum(i, rows - 1))
    dx, total = pl.pallas_call(
        partial(_backward_kernel, norm=norm, rows=rows),
        grid=(batch // LANES, rows + 1),
        in_specs=[_two_rows(width, maps), above, above, below, below],
        out_specs=[_two_rows(width, maps), pl.BlockSpec((1, maps, LANES), lambda block, i: (block, 0, 0))],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((batch // LANES, maps, LANES), jnp.float32)],
        scratch_shapes=[_sum_scratch(8, maps)],
        compiler_params=_IN_TURN,
        cost_estimate=_cost(x, 2),
        name="norm_pool_gradient",
    )(x, g, tap, g, tap)
    return dx, total.sum((0, 2))


def _two_rows(width: int, maps: int) -> pl.BlockSpec:
    return pl.BlockSpec((2, width, maps, LANES), lambda block, i: (i, 0, 0, block))


def _windows(columns: int, maps: int, row: Callable[[Any], Any]) -> pl.BlockSpec:
    """A row of windows. `row`: its number at step i."""
    return pl.BlockSpec((1, columns, maps, LANES), lambda block, i: (row(i), 0, 0, block))


def _sum_scratch(pixels: int, maps: int) -> Any:
    """Where some pixels' maps lie between zeros while the sums of their windows are read."""
    return pltpu.VMEM((pixels, maps + 2 * EDGE, LANES), jnp.float32)


def _cost(x: Array, arrays: int) -> pl.CostEstimate:
    """What the scheduler around a kernel should expect. It moves so many arrays of the size of `x`, and the windows'."""
    moved = int(x.size * x.dtype.itemsize * (arrays + 0.25 * 1.5))  # a quarter as many windows, with a byte for the tap
    return pl.CostEstimate(flops=40 * x.size, bytes_accessed=moved, transcendentals=2 * x.size)


def _forward_kernel(x, pooled, tap, best, best_tap, sums, *, norm: ResponseNorm):
    """Rows 2i and 2i + 1 of pixels: row 2i ends the windows of row i - 1, and both begin those of row i."""
    _clear(sums)

    def normed(row: int, column: Any, place: int) -> Maps:
        wide = jnp.maximum(x[row, column].astype(jnp.float32), 0)
        scale, _ = _powers(norm.k + norm.alpha * _window_sum(wide * wide, norm.size, sums, place))
        return (wide * scale).astype(x.dtype).astype(jnp.float32)

    def windows(column: Any, left: tuple[Maps, Maps]) -> tuple[Maps, Maps]:
        even, odd = (
            (left[row], normed(row, 2 * column + 1, 2 * row), normed(row, 2 * column + 2, 2 * row + 1)) for row in (0, 1)
        )
        value, winner = _higher((best[column], best_tap[column]), _highest(even, 6))
        pooled[0, column], tap[0, column] = value.astype(pooled.dtype), winner.astype(jnp.int8)
        best[column], best_tap[column] = _higher(_highest(even, 0), _highest(odd, 3))
        return even[2], odd[2]

    lax.fori_loop(0, best.shape[0], windows, (normed(0, 0, 0), normed(1, 0, 2)))


def _backward_kernel(x, g_above, tap_above, g_below, tap_below, dx, total, sums, *, norm: ResponseNorm, rows: int):
    """Rows 2i and 2i + 1 of pixels. Windows of row i - 1 reach the first of them, and those of row i reach both."""
    _clear(sums)
    i, columns = pl.program_id(1), g_above.shape[1]

    @pl.when(i == 0)
    def _():
        total[...] = jnp.zeros(total.shape, total.dtype)

    above, below = jnp.where(i > 0, 6, NO_TAP), jnp.where(i < rows, 0, NO_TAP)  # the tap at a window's left

    def pull(row: int, column: Any, place: int, windows: Sequence[tuple[Won, Any]]) -> Maps:
        won = sum(jnp.where(taps == tap, g, 0.0) for (g, taps), tap in windows)
        wide = jnp.maximum(x[row, column].astype(jnp.float32), 0)
        scale, steeper = _powers(norm.k + norm.alpha * _window_sum(wide * wide, norm.size, sums, place))
        spread = _window_sum(won * wide * steeper, norm.size, sums, place + 4)
        pulled = jnp.where(wide > 0, won * scale - (2 * norm.alpha * norm.beta) * wide * spread, 0.0)
        dx[row, column] = pulled.astype(dx.dtype)
        return pulled

    def pixels(column: Any, left: tuple[Won, Won]) -> tuple[Won, Won]:
        up, down = (
            (g[0, column].astype(jnp.float32), tap[0, column].astype(jnp.int32))
            for g, tap in ((g_above, tap_above), (g_below, tap_below))
        )
        even = pull(0, 2 * column, 0, [(up, above), (down, below), (left[0], above + 2), (left[1], below + 2)])
        odd = pull(1, 2 * column, 1, [(down, below + 3), (left[1], below + 5)])
        even += pull(0, 2 * column + 1, 2, [(up, above + 1), (down, below + 1)])
        odd += pull(1, 2 * column + 1, 3, [(down, below + 4)])
        add(even, odd)
        return up, down

    def add(even: Maps, odd: Maps) -> None:
        total[0] += even + jnp.where(i < rows, odd, 0.0)  # beyond the last row x is anything

    outside = jnp.zeros(x.shape[2:], jnp.float32), jnp.full(x.shape[2:], NO_TAP - 10, jnp.int32)
    up, down = lax.fori_loop(0, columns, pixels, (outside, outside))
    add(pull(0, 2 * columns, 0, [(up, above + 2), (down, below + 2)]), pull(1, 2 * columns, 1, [(down, below + 5)]))


def _clear(sums: Any) -> None:
    sums[...] = jnp.zeros(sums.shape, sums.dtype)


def _window_sum(wide: Maps, size: int, sums: Any, place: int) -> Maps:
    """`ops.window_sum` over the maps. They are stored, then read at shifted addresses: cheaper than shifts in registers."""
    maps = wide.shape[0]
    sums[place, EDGE : EDGE + maps] = wide
    shifts = [shift for shift in range(-(size // 2), size // 2 + 1) if shift]
    return sum((sums[place, EDGE + shift : EDGE + shift + maps] for shift in shifts), wide)


def _powers(d: Maps) -> tuple[Maps, Maps]:
    """d ** -0.75 and d ** -1.75, without a division or a logarithm."""
    root = lax.rsqrt(d)
    power = root * root * lax.rsqrt(root)
    return power, power * root * root


def _higher(first: Won, second: Won) -> Won:
    """The higher value, the first one of two equal ones. A NaN is higher than any number."""
    takes = (second[0] > first[0]) | jnp.isnan(second[0])
    return jnp.where(takes, second[0], first[0]), jnp.where(takes, second[1], first[1])


def _highest(values: Sequence[Maps], tap: int) -> Won:
    """Of three pixels of a row, whose taps begin with `tap`."""
    won = values[0], jnp.full(values[0].shape, tap, jnp.int32)
    for number, value in enumerate(values[1:], tap + 1):
        won = _higher(won, (value, jnp.full(value.shape, number, jnp.int32)))
    return won
