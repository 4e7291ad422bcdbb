"""Each layer alone, forward and both gradients, against this machine's own matrix product."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alexnet_jax import ops
from alexnet_jax.layers import Architecture, Convolution, Layer, MaxPool, convolution_padding, sliding_windows
from alexnet_jax.network import convolve
from alexnet_jax.step import Model


class Place(NamedTuple):
    """A layer and the sides in pixels of what it reads and of what its products make; 1 for a dense one."""

    layer: Layer
    input_side: int
    output_side: int


class LayerRate(NamedTuple):
    """One direction of one layer, all towers together."""

    layer: str
    direction: str  # forward, weight gradient, input gradient
    seconds: float
    flops_per_second: float


def places(architecture: Architecture, crop_size: int) -> Iterator[Place]:
    """The layers in order."""
    side = crop_size
    for layer in architecture.layers:
        if not isinstance(layer, Convolution):
            yield Place(layer, side, 1)
            side = 1
            continue
        padding = sum(convolution_padding(layer, side))
        out = (side + padding - layer.kernel) // layer.stride + 1
        yield Place(layer, side, out)
        side = out
        for pool in layer.after:
            if isinstance(pool, MaxPool):
                side, _ = sliding_windows(side, pool.size, pool.stride, pool.overhang)


def forward_macs(model: Model) -> dict[str, int]:
    """Multiplications per image of each layer, all towers together."""
    kernels = {name: math.prod(weights["kernel"].shape) for name, weights in model.shapes.items()}
    table = model.config.table()
    positions = {  # a locally connected kernel has those itself
        layer.name: 1 if isinstance(layer, Convolution) and not layer.shared else side**2
        for layer, _, side in places(table, model.config.crop)
    }
    return {name: positions[name] * kernels[name] for name in positions}


def measure_layers(model: Model, repeats: int) -> Iterator[LayerRate]:
    """Every layer and direction in turn, the median of `repeats` calls, on the first device."""
    batch, dtype = model.config.batch_size, jnp.dtype(model.config.precision)
    macs = forward_macs(model)
    for number, (layer, side, _) in enumerate(places(model.config.table(), model.config.crop)):
        shape = model.shapes[layer.name]["kernel"].shape
        kernel = _noise(0, shape, dtype)
        if isinstance(layer, Convolution):
            maps = shape[-2] if layer.shared else shape[-2] // layer.kernel**2
            x: Any = tuple(_noise(1 + t, (batch, side, side, maps), dtype) for t in range(shape[0]))

            def apply(x, kernel, layer=layer):
                return tuple(convolve(layer, x_t, kernel[t]) for t, x_t in enumerate(x))
        else:
            x, apply = _noise(1, (shape[0], batch, shape[1]), dtype), ops.dense
        for direction, function, arguments in _directions(apply, x, kernel):
            if direction == "input gradient" and number == 0:  # images have none
                continue
            seconds = _seconds(function, arguments, repeats)
            yield LayerRate(layer.name, direction, seconds, 2 * batch * macs[layer.name] / seconds)


def _directions(apply: Callable[..., Any], x: Any, kernel: Any) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    forward = jax.jit(apply)
    yield "forward", forward, (x, kernel)
    g = forward(x, kernel)
    yield "weight gradient", jax.jit(lambda x, k, g: jax.vjp(lambda k: apply(x, k), k)[1](g)), (x, kernel, g)
    yield "input gradient", jax.jit(lambda x, k, g: jax.vjp(lambda x: apply(x, k), x)[1](g)), (x, kernel, g)


def matrix_product(precision: str, size: int, repeats: int) -> float:
    """FLOP/s of a square matrix product of that side on the first device: the best of `repeats`."""
    a, b = (_noise(seed, (size, size), jnp.dtype(precision)) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    return 2 * size**3 / min(_once(product, (a, b)) for _ in range(repeats))


def _noise(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def _seconds(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> float:
    jax.block_until_ready(function(*arguments))
    return statistics.median(_once(function, arguments) for _ in range(repeats))


def _once(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started
