"""Winograd's convolution at stride 1 for the CPU, after Lavin and Gray, arXiv 1509.09308.

A tile of 4x4 outputs reads 8x8 inputs if the kernel is 5x5, 6x6 if it is 3x3. Inputs and weights are seen as polynomials.
Their product is known by its values at 8 or 6 points along each side: 64 multiplications in place of 400, 36 in place of
144. A value at a point is a sum of few inputs. So most of the work is one matrix product over the maps for each point.

The result is not that of `ops.convolution` to the last bit. In float32 it is off by 3e-6 of its size (root mean square), a
direct convolution by 4e-7.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from alexnet_jax import ops
from alexnet_jax.ops import Padding

TILE = 4  # outputs along one side
POINTS = {  # besides infinity, for each side of a kernel
    3: (0.0, 1.0, -1.0, 2.0, -2.0),
    5: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5),
}
MIN_MAPS = 32  # with fewer the sums cost more than the products save
PART = 8  # images at a time: their tiles stay in the processor's caches

Rows = Sequence[Sequence[float]]
Tiles = tuple[int, int]  # down and across


class Transforms(NamedTuple):
    """What leads from a side of a tile to the points and back."""

    inputs: Rows  # points x inputs that a tile reads
    weights: Rows  # points x kernel
    outputs: Rows  # tile x points


@functools.cache
def transforms(kernel: int) -> Transforms:
    """By Toom and Cook, for a kernel of 3 or 5. Sums and products of such points are exact in floating point."""
    points = POINTS[kernel]
    inputs, weights = [], []
    for here in points:
        others = [point for point in points if point != here]
        inputs.append([*np.poly(others)[::-1].tolist(), 0.0])
        weights.append([here**i / math.prod(here - other for other in others) for i in range(kernel)])
    inputs.append(np.poly(points)[::-1].tolist())
    weights.append([float(i == kernel - 1) for i in range(kernel)])
    outputs = [[*(point**i for point in points), float(i == TILE - 1)] for i in range(TILE)]
    return Transforms(inputs, weights, outputs)


def fits(batch: Any, kernel: tuple[int, ...], stride: int, padding: Padding) -> bool:
    """Whether a convolution with a kernel of this shape (rows, columns, inputs, outputs) is one for this page.

    In a program that is exported for every `batch`, that is a symbol and no number.
    """
    rows, columns, *maps = kernel
    narrow = all(0 <= side < rows for sides in padding for side in sides)
    square = rows == columns and rows in POINTS and stride == 1
    return square and narrow and min(maps) >= MIN_MAPS and isinstance(batch, int)


def convolution(
    x: Float[Array, "batch height width cin"], kernel: Float[Array, "k k cin cout"], padding: Padding
) -> Float[Array, "batch oh ow cout"]:
    """`ops.convolution` at stride 1. bfloat16 is computed in float32."""
    side, tiles = len(kernel), _tiles(x.shape[1:3], len(kernel), padding)
    weights = _square("pi,qj,ijco->qpco", side, kernel).reshape(-1, *kernel.shape[2:])

    def part(x: Array) -> Array:
        return _outputs(jnp.matmul(_inputs(x, side, padding, tiles), weights, precision=ops.EXACT), side, tiles)

    y = lax.map(part, _parts(x)).reshape(-1, TILE * tiles[0], TILE * tiles[1], kernel.shape[3])
    oh, ow = _sides(x.shape[1:3], side, padding)
    return y[: len(x), :oh, :ow].astype(x.dtype)


def input_gradient(
    g: Float[Array, "batch oh ow cout"], kernel: Float[Array, "k k cin cout"], padding: Padding
) -> Float[Array, "batch height width cin"]:
    """Of `convolution`: the convolution of `g` with the kernel turned round."""
    far = len(kernel) - 1
    (top, bottom), (left, right) = padding
    return convolution(g, kernel[::-1, ::-1].swapaxes(2, 3), ((far - top, far - bottom), (far - left, far - right)))


def weight_gradient(
    x: Float[Array, "batch height width cin"], g: Float[Array, "batch oh ow cout"], kernel: int, padding: Padding
) -> Float[Array, "k k cin cout"]:
    """Of `convolution`: each point has one product of inputs and gradients, summed over all tiles of the batch."""
    tiles = _tiles(x.shape[1:3], kernel, padding)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        x, g = part
        inputs, gradients = _inputs(x, kernel, padding, tiles), _gradients(g, kernel, tiles)
        return total + jnp.matmul(inputs.swapaxes(1, 2), gradients, precision=ops.EXACT), None

    parts, points = (_parts(x), _parts(g)), TILE + kernel - 1
    total, _ = lax.scan(add, jnp.zeros((points**2, x.shape[3], g.shape[3]), parts[0].dtype), parts)
    return _square("pi,qj,qpco->ijco", kernel, total.reshape(points, points, *total.shape[1:])).astype(x.dtype)


def _sides(sides: tuple[int, ...], kernel: int, padding: Padding) -> tuple[int, int]:
    """Outputs down and across."""
    height, width = (side + sum(edges) - kernel + 1 for side, edges in zip(sides, padding, strict=True))
    return height, width


def _tiles(sides: tuple[int, ...], kernel: int, padding: Padding) -> Tiles:
    height, width = _sides(sides, kernel, padding)
    return -(-height // TILE), -(-width // TILE)


def _square(equation: str, kernel: int, array: Array) -> Array:
    """The transform of weights along rows and columns."""
    array = ops.at_least_float32(array)
    matrix = jnp.asarray(transforms(kernel).weights, array.dtype)
    return jnp.einsum(equation, matrix, matrix, array, precision=ops.EXACT)


def _parts(x: Float[Array, "batch ..."]) -> Float[Array, "parts part ..."]:
    """Equal parts of a batch. Images of zeros fill up the last one."""
    size = min(PART, len(x))
    x = jnp.pad(x, [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1))
    return ops.at_least_float32(x).reshape(-1, size, *x.shape[1:])


def _combined(rows: Rows, take: Callable[[int], Array]) -> Array:
    """Sums of arrays, one for each row, stacked: a row has a factor for each. They are written out, for many are 0 or 1."""
    sums = []
    for row in rows:
        terms = [take(i) if factor == 1 else factor * take(i) for i, factor in enumerate(row) if factor]
        sums.append(sum(terms[1:], terms[0]))
    return jnp.stack(sums)


def _inputs(x: Float[Array, "batch height width maps"], kernel: int, padding: Padding, tiles: Tiles) -> Array:
    """Each tile's inputs at the points: (points, tiles x batch, maps)."""
    wanted, rows = [TILE * count + kernel - 1 for count in tiles], transforms(kernel).inputs
    edges = [(before, size - side - before) for size, side, (before, _) in zip(wanted, x.shape[1:3], padding, strict=True)]
    x = jnp.pad(x, ((0, 0), *edges, (0, 0))).transpose(1, 2, 0, 3)
    down, across = (TILE * (count - 1) + 1 for count in tiles)
    half = _combined(rows, lambda i: x[i : i + down : TILE])
    points = _combined(rows, lambda j: half[:, :, j : j + across : TILE])
    return points.reshape(len(rows) ** 2, -1, x.shape[-1])


def _outputs(points: Float[Array, "points tiles_batch maps"], kernel: int, tiles: Tiles) -> Array:
    """Back from the points: (batch, rows, columns, maps) of all tiles."""
    rows, (down, across), maps = transforms(kernel).outputs, tiles, points.shape[-1]
    points = points.reshape(len(rows[0]), len(rows[0]), down, across, -1, maps)
    half = _combined(rows, lambda q: points[q])
    y = _combined(rows, lambda p: half[:, p])
    return y.transpose(4, 2, 0, 3, 1, 5).reshape(-1, TILE * down, TILE * across, maps)


def _gradients(g: Float[Array, "batch oh ow maps"], kernel: int, tiles: Tiles) -> Array:
    """The transpose of `_outputs`: each tile's gradients at the points, (points, tiles x batch, maps)."""
    edges = [(0, TILE * count - side) for count, side in zip(tiles, g.shape[1:3], strict=True)]
    g = jnp.pad(g, ((0, 0), *edges, (0, 0))).transpose(1, 2, 0, 3)
    back = list(zip(*transforms(kernel).outputs, strict=True))
    half = _combined(back, lambda i: g[i::TILE])
    points = _combined(back, lambda j: half[:, :, j::TILE])
    return points.reshape(len(back) ** 2, -1, g.shape[-1])
