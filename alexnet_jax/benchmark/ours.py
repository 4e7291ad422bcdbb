"""This package's network in its four uses, on one batch of noise that stays on the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from alexnet_jax.augment import COLOUR_NOISE
from alexnet_jax.config import Config
from alexnet_jax.data.splits import Batch
from alexnet_jax.evaluate import Evaluator, make_viewer
from alexnet_jax.layers import Architecture, trace
from alexnet_jax.mesh import make_mesh
from alexnet_jax.network import merge
from alexnet_jax.step import Knobs, Model, Pixels, make_model, make_train_step
from alexnet_jax.system import runtime

Mode = Literal["train", "forward", "evaluate", "ten views"]
MODES: tuple[Mode, ...] = ("train", "forward", "evaluate", "ten views")
CLASSES = 1000


def noise_model(config: Config) -> Model:
    """The network for `noise_batch`. Raises UserError if the mesh does not fit."""
    return make_model(config, CLASSES, make_mesh(config.mesh, config.table().towers, config.batch_size, config.spmd))


def noise_batch(config: Config) -> Batch:
    """Random uint8 images of the prepared size with random labels."""
    rng = np.random.default_rng(config.seed)
    shape = (config.batch_size, config.image_size, config.image_size, 3)
    return Batch(rng.integers(0, 256, shape, np.uint8), rng.integers(0, CLASSES, config.batch_size).astype(np.int32))


@dataclass(frozen=True)
class Ours:
    """One use of this package's network.

    `train` is the whole training step from uint8 images: crops, mirror images, mean, colour noise, forward, backward and
    update. `forward` is the network alone on finished crops. `evaluate` and `ten views` do what evaluation does.
    """

    config: Config
    mode: Mode

    @property
    def name(self) -> str:
        """For tables."""
        return f"alexnet_jax {self.config.architecture}: {self.mode}"

    @property
    def examples(self) -> int:
        """Images per call."""
        return self.config.batch_size

    def start(self) -> Callable[[], Any]:
        """See `Workload`."""
        runtime.start(self.config.host_devices)
        model = noise_model(self.config)
        return _training(model) if self.mode == "train" else _prediction(model, self.mode)

    def device_memory(self) -> int | None:
        """See `Workload`."""
        statistics = jax.local_devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] if statistics else None


def put_constants(model: Model, rate: float, mean: np.ndarray, colours: np.ndarray) -> tuple[Any, Any]:
    """A training step's knobs, with one learning rate for all parameters, and its pixels, on the devices."""
    rates = {layer: {"kernel": np.float32(rate), "bias": np.float32(rate)} for layer in model.shapes}
    knobs: Any = Knobs(rates, np.float32(COLOUR_NOISE))  # pyright: ignore[reportArgumentType]
    return model.mesh.put((knobs, Pixels(mean, colours)), P())  # pyright: ignore[reportArgumentType]


def _mean(config: Config) -> np.ndarray:
    return np.full((config.image_size, config.image_size, 3), 127, np.float32)


def _training(model: Model) -> Callable[[], Any]:
    step, state = make_train_step(model), model.initial_state()
    knobs, pixels = put_constants(model, 1e-4, _mean(model.config), np.eye(3, dtype=np.float32))
    batch = model.mesh.put(noise_batch(model.config), P("data"))

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch, knobs, pixels)
        jax.block_until_ready(metrics)

    return run


def _prediction(model: Model, mode: Mode) -> Callable[[], Any]:
    config, mesh = model.config, model.mesh
    params = model.initial_state().params
    batch = mesh.put(noise_batch(config), P("data"))
    if mode == "forward":
        crops = np.random.default_rng(0).normal(0, 60, (config.batch_size, config.crop, config.crop, 3))
        inputs = mesh.put(crops.astype(np.float32), P("data"))
        network = mesh.compile(
            lambda params, x: merge(model.graph, params)(x, tower=mesh.tower), (model.specs, P("data")), P("data")
        )
        return lambda: jax.block_until_ready(network(params, inputs))
    viewer = make_viewer(model, _mean(config))
    evaluator = Evaluator(mesh, config.batch_size)
    views = 10 if mode == "ten views" else 1
    return lambda: evaluator.judge_batch([(viewer, params)], batch, views)


def training_flops(table: Architecture, crop: int, classes: int) -> int:
    """Floating point operations per image of a training step: two per multiplication. conv1 needs no input gradient."""
    first, *others = (layer.multiply_adds for layer in trace(table, crop, classes))
    return 2 * (2 * first + 3 * sum(others))
