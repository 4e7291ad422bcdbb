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
from alexnet_jax.evaluation import Evaluator, make_eval_fn
from alexnet_jax.layers import Architecture, trace
from alexnet_jax.mesh import make_mesh
from alexnet_jax.network import merge
from alexnet_jax.run.open import check_memory
from alexnet_jax.step import ImageStats, Setup, StepHparams, make_setup, make_train_step
from alexnet_jax.system import runtime

Mode = Literal["train", "forward", "evaluate", "ten views"]
MODES: tuple[Mode, ...] = ("train", "forward", "evaluate", "ten views")
CLASSES = 1000


def noise_model(config: Config, classes: int = CLASSES) -> Setup:
    """The network for `noise_batch`. Raises UserError if the mesh does not fit, or a batch does not fit into memory."""
    setup = make_setup(config, classes, make_mesh(config.mesh, config.table().towers, config.batch_size, config.spmd))
    check_memory(setup)
    return setup


def noise_batch(config: Config, classes: int = CLASSES) -> Batch:
    """Random uint8 images of the prepared size with random labels."""
    rng = np.random.default_rng(config.seed)
    shape = (config.batch_size, config.image_size, config.image_size, 3)
    return Batch(rng.integers(0, 256, shape, np.uint8), rng.integers(0, classes, config.batch_size).astype(np.int32))


@dataclass(frozen=True)
class Ours:
    """One use of this package's network.

    `train` is the whole training step from uint8 images: crops, mirror images, mean, colour noise, forward, backward and
    update. `forward` is the network alone on finished crops. `evaluate` and `ten views` do what evaluation does.
    """

    config: Config
    mode: Mode
    classes: int = CLASSES

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
        setup = noise_model(self.config, self.classes)
        return _training(setup) if self.mode == "train" else _prediction(setup, self.mode)

    def device_memory(self) -> int | None:
        """See `Workload`."""
        statistics = jax.local_devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] if statistics else None


def put_constants(setup: Setup, rate: float, mean: np.ndarray, colours: np.ndarray) -> tuple[Any, Any]:
    """A training step's hyper-parameters, one learning rate for all layers, and its image statistics, on the devices."""
    rates = {layer: {"kernel": np.float32(rate), "bias": np.float32(rate)} for layer in setup.shapes}
    hparams: Any = StepHparams(rates, np.float32(COLOUR_NOISE))  # pyright: ignore[reportArgumentType]
    return setup.mesh.put((hparams, ImageStats(mean, colours)), P())  # pyright: ignore[reportArgumentType]


def _mean(config: Config) -> np.ndarray:
    return np.full((config.image_size, config.image_size, 3), 127, np.float32)


def _training(setup: Setup) -> Callable[[], Any]:
    step, state = make_train_step(setup), setup.initial_state()
    hparams, stats = put_constants(setup, 1e-4, _mean(setup.config), np.eye(3, dtype=np.float32))
    batch = setup.mesh.put(noise_batch(setup.config, setup.classes), P("data"))

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch, hparams, stats)
        jax.block_until_ready(metrics)

    return run


def _prediction(setup: Setup, mode: Mode) -> Callable[[], Any]:
    config, mesh = setup.config, setup.mesh
    params = setup.initial_state().params
    batch = mesh.put(noise_batch(config, setup.classes), P("data"))
    if mode == "forward":
        crops = np.random.default_rng(0).normal(0, 60, (config.batch_size, config.crop, config.crop, 3))
        inputs = mesh.put(crops.astype(np.float32), P("data"))
        network = mesh.compile(
            lambda params, x: merge(setup.graph, params)(x, tower=mesh.tower), (setup.specs, P("data")), P("data")
        )
        return lambda: jax.block_until_ready(network(params, inputs))
    eval_fn = make_eval_fn(setup, _mean(config))
    evaluator = Evaluator(mesh, config.batch_size)
    views = 10 if mode == "ten views" else 1
    return lambda: evaluator.judge_batch([(eval_fn, params)], batch, views)


def training_flops(table: Architecture, crop: int, classes: int) -> int:
    """Floating point operations per image of a training step: two per multiplication. conv1 needs no input gradient."""
    first, *others = (layer.multiply_adds for layer in trace(table, crop, classes))
    return 2 * (2 * first + 3 * sum(others))
