"""The speed of each layer alone, in its forward pass and both gradients, and of a plain matrix product."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alexnet_jax import gradients
from alexnet_jax.layers import Convolution, trace
from alexnet_jax.network import convolve
from alexnet_jax.step import Setup


class LayerRate(NamedTuple):
    """The speed of one direction of one layer, all towers together."""

    layer: str
    direction: str  # forward, weight gradient, input gradient
    seconds: float
    flops_per_second: float


def measure_layers(setup: Setup, repeats: int) -> Iterator[LayerRate]:
    """Times every layer and direction on the first device: the median of `repeats` calls."""
    batch, dtype = setup.config.batch_size, jnp.dtype(setup.config.precision)
    for number, shapes in enumerate(trace(setup.config.table(), setup.config.crop, setup.classes)):
        layer, towers, side = shapes.layer, shapes.towers, shapes.in_side
        kernel = _noise(0, (towers, *shapes.kernel), dtype)
        if isinstance(layer, Convolution):
            x: Any = tuple(_noise(1 + t, (batch, side, side, shapes.in_maps), dtype) for t in range(towers))

            def apply(x, kernel, layer=layer):
                return tuple(convolve(layer, x_t, kernel[t]) for t, x_t in enumerate(x))
        else:
            x, apply = _noise(1, (towers, batch, shapes.kernel[0]), dtype), gradients.dense
        for direction, function, arguments in _directions(apply, x, kernel):
            if direction == "input gradient" and number == 0:  # images need no gradient
                continue
            seconds = statistics.median(_seconds(function, arguments, repeats))
            yield LayerRate(layer.name, direction, seconds, 2 * batch * shapes.multiply_adds / seconds)


def _directions(apply: Callable[..., Any], x: Any, kernel: Any) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    forward = jax.jit(apply)
    yield "forward", forward, (x, kernel)
    g = forward(x, kernel)
    yield "weight gradient", jax.jit(lambda x, k, g: jax.vjp(lambda k: apply(x, k), k)[1](g)), (x, kernel, g)
    yield "input gradient", jax.jit(lambda x, k, g: jax.vjp(lambda x: apply(x, k), x)[1](g)), (x, kernel, g)


def matrix_product(precision: str, size: int, repeats: int) -> float:
    """FLOP/s of a product of two `size` x `size` matrices on the first device: the best of `repeats`."""
    a, b = (_noise(seed, (size, size), jnp.dtype(precision)) for seed in (0, 1))
    return 2 * size**3 / min(_seconds(jax.jit(jnp.matmul), (a, b), repeats))


def _noise(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def _seconds(function: Callable[..., Any], arguments: tuple[Any, ...], repeats: int) -> list[float]:
    """Of each call but a first one, which compiles."""
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - started)
    return seconds[1:]
