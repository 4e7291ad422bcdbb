"""The four ways in which the network is run, on one batch of noise that stays on the device."""

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


def noise_batch(config: Config) -> Batch:
    """uint8 images of the prepared size, and labels."""
    rng = np.random.default_rng(config.seed)
    shape = (config.batch_size, config.image_size, config.image_size, 3)
    return Batch(rng.integers(0, 256, shape, np.uint8), rng.integers(0, CLASSES, config.batch_size).astype(np.int32))


@dataclass(frozen=True)
class Ours:
    """This package.

    `train` is the whole training step from uint8 images: crops, mirror images, mean, colour noise, forward, backward and
    update. `forward` is the network alone on crops that are ready. `evaluate` and `ten views` are what the evaluation does.
    """

    config: Config
    mode: Mode

    @property
    def name(self) -> str:
        """For tables."""
        return f"alexnet_jax {self.config.architecture}: {self.mode}"

    @property
    def examples(self) -> int:
        """Images that one call takes."""
        return self.config.batch_size

    def start(self) -> Callable[[], Any]:
        """See `Contender`."""
        runtime.start(self.config.host_devices)
        config = self.config
        mesh = make_mesh(config.mesh, config.table().towers, config.batch_size, config.spmd)
        model = make_model(config, CLASSES, mesh)
        return _training(model) if self.mode == "train" else _prediction(model, self.mode)

    def device_memory(self) -> int | None:
        """See `Contender`."""
        statistics = jax.local_devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] if statistics else None


def _training(model: Model) -> Callable[[], Any]:
    config, put = model.config, model.mesh.put
    step, state = make_train_step(model), model.initial_state()
    rate = np.float32(1e-4)
    rates = {layer: {"kernel": rate, "bias": rate} for layer in model.shapes}
    knobs = put(Knobs(rates, np.float32(COLOUR_NOISE)), P())  # pyright: ignore[reportArgumentType]
    size = (config.image_size, config.image_size, 3)
    pixels: Any = put(Pixels(np.full(size, 127, np.float32), np.eye(3, dtype=np.float32)), P())  # pyright: ignore
    batch = put(noise_batch(config), P("data"))

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
    viewer = make_viewer(model, np.full((config.image_size, config.image_size, 3), 127, np.float32))
    evaluator = Evaluator(mesh, config.batch_size)
    views = 10 if mode == "ten views" else 1
    return lambda: evaluator.judge_batch([(viewer, params)], batch, views)


def training_flops(table: Architecture, crop: int, classes: int) -> int:
    """Floating point operations per image of a training step: two per multiplication. conv1 needs no input gradient."""
    first, *others = (layer.multiply_adds for layer in trace(table, crop, classes))
    return 2 * (2 * first + 3 * sum(others))
