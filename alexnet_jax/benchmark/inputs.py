"""How fast images come in: plain copies, the store with its loader, and the training step on both.

All streams stay open and are measured in turn, round after round. A ratio is taken within a round.
"""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.progress import track

from alexnet_jax.benchmark.ours import put_constants
from alexnet_jax.benchmark.results import Throughputs, add_ratios, new_table, publish, ratio, row
from alexnet_jax.config import Config
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.splits import Order, Subset
from alexnet_jax.mesh import make_mesh
from alexnet_jax.run.open import check_memory, open_data
from alexnet_jax.run.workdir import provenance
from alexnet_jax.step import Setup, make_setup, make_train_step

LOADER, RESIDENT = "store and loader, data_on_device=no", "store and loader, data_on_device=yes"
FED, REPEATED = "training step, images from the store", "training step, the same batch again"
# Batches or steps that may be ready before the clock starts.
_WARM_BATCHES, _WARM_STEPS = 6, 2
_OUT_OF_CACHE = 256 << 20  # bytes

Batches = Generator[int, None, None]  # yields the number of images of each batch that is ready


class Ratio(NamedTuple):
    """A ratio to report: the rate of the stream called `above` over the rate of the stream that has this ratio."""

    name: str
    above: str
    per_core: bool = False


@dataclass(frozen=True)
class InputStream:
    """Batches from one source, to be timed."""

    name: str
    batches: Batches
    cores: int = 1  # that it keeps busy
    by_steps: bool = False  # timed over a number of batches instead of seconds
    ratio: Ratio | None = None


def open_input(config: Config) -> tuple[Setup, Dataset]:
    """The run's network and data set. Raises UserError if the set is not prepared, or the mesh or a batch does not fit."""
    dataset = open_data(config)
    setup = make_setup(config, len(dataset.classes), make_mesh(config.mesh, config.table().towers, config.batch_size))
    check_memory(setup)
    return setup, dataset


def copies(split: Subset, batch_size: int) -> Iterator[InputStream]:
    """Copies from memory, and from the memory map in order: upper bounds for a loader."""
    images = split.parts[0].images
    rows = min(batch_size, len(images))
    shape = (rows, *images.shape[1:])
    count = 1 + _OUT_OF_CACHE // int(np.prod(shape))  # more than the caches hold, so every batch is cold
    targets = itertools.cycle([np.zeros(shape, np.uint8) for _ in range(count)])
    in_memory = itertools.cycle([np.ones(shape, np.uint8) for _ in range(count)])
    mapped = (images[first : first + rows] for first in itertools.cycle(range(0, len(images) - rows + 1, rows)))

    def copied(sources: Iterator[np.ndarray]) -> Batches:
        for target, source in zip(targets, sources, strict=False):
            np.copyto(target, source)
            yield rows

    yield InputStream("memory copy", copied(in_memory))
    yield InputStream("memory-map copy, in order", copied(mapped), ratio=Ratio("loader to memory-map copy", LOADER))


def loading(setup: Setup, split: Subset) -> Iterator[InputStream]:
    """Store and loader in the order of training, from the host and from the devices."""
    order = Order(setup.config.seed, len(split), setup.config.batch_size)

    def batches(loader: Loader) -> Batches:
        for batch in loader.batches(map(order.step, itertools.count())):
            jax.block_until_ready(batch)
            yield setup.config.batch_size

    for name, data_on_device in ((LOADER, "no"), (RESIDENT, "yes")):
        yield InputStream(name, batches(Loader(setup.mesh, split, data_on_device)), os.cpu_count() or 1)


def training(setup: Setup, dataset: Dataset) -> Iterator[InputStream]:
    """The training step on the loader's batches, and on one batch that stays on the device."""
    split, config = dataset.splits["train"], setup.config
    order, loader = Order(config.seed, len(split), config.batch_size), Loader(setup.mesh, split, config.data_on_device)
    step = make_train_step(setup)
    hparams, stats = put_constants(setup, config.learning_rate, dataset.mean, dataset.colours)

    def steps(batches: Iterator[Any]) -> Batches:
        state = setup.initial_state()
        for batch in batches:
            state, metrics = step(state, batch, hparams, stats)
            jax.block_until_ready(metrics)
            yield config.batch_size

    fed = steps(loader.batches(map(order.step, itertools.count())))
    repeated = steps(itertools.repeat(setup.mesh.put(split.read(order.step(0)), P("data"))))
    cores, compared = os.cpu_count() or 1, Ratio("training from the store to the same batch again", FED)
    yield InputStream(FED, fed, cores, by_steps=True)
    yield InputStream(REPEATED, repeated, cores, by_steps=True, ratio=compared)


def measure(stream: InputStream, seconds: float, steps: int) -> float:
    """Images per second over `seconds` or `steps`, without the batches that were ready before."""
    for _ in range(_WARM_STEPS if stream.by_steps else _WARM_BATCHES):
        next(stream.batches)
    images, done, started = 0, 0, time.perf_counter()
    while done < steps if stream.by_steps else time.perf_counter() - started < seconds:
        images += next(stream.batches)
        done += 1
    return images / (time.perf_counter() - started)


def measure_input(config: Config, rounds: int, seconds: float, steps: int) -> dict[str, Any]:
    """The package's own streams, as the JSON object to print. Raises UserError as `open_input`."""
    setup, dataset = open_input(config)
    split = dataset.splits["train"]
    streams = [*copies(split, config.batch_size), *loading(setup, split), *training(setup, dataset)]
    return measure_streams(config, streams, rounds, seconds, steps)


def measure_streams(
    config: Config, streams: Sequence[InputStream], rounds: int, seconds: float, steps: int
) -> dict[str, Any]:
    """Every stream in turn, `rounds` times, then closed; as the JSON object to print. One stream is `LOADER`."""
    throughputs: Throughputs = {stream.name: [] for stream in streams}
    with contextlib.ExitStack() as running:
        for stream in streams:
            running.enter_context(contextlib.closing(stream.batches))
        turns, quiet = list(streams) * rounds, not sys.stderr.isatty()
        for stream in track(turns, "measuring", console=Console(stderr=True), disable=quiet):
            throughputs[stream.name].append(measure(stream, seconds, steps))
    rows = {stream.name: _row(stream, throughputs[stream.name], config.image_size**2 * 3) for stream in streams}
    cores = {stream.name: stream.cores for stream in streams}
    ratios = {}
    for stream in streams:
        if stream.ratio:
            name, above, per_core = stream.ratio
            times = stream.cores / cores[above] if per_core else 1.0
            ratios[name] = ratio(throughputs, above, stream.name, times)
    return {
        "images_per_second": rows[LOADER]["images_per_second"],
        "rows": rows,
        "ratios": ratios,
        "settings": {
            "dataset": config.dataset, "image_size": config.image_size, "crop_size": config.crop,
            "architecture": config.architecture, "batch_size": config.batch_size, "rounds": rounds, "seconds": seconds,
        },
        "cores": os.cpu_count(),
        **provenance(),
    }  # fmt: skip


def _row(stream: InputStream, rates: list[float], image_bytes: int) -> dict[str, float]:
    shown = row(rates)
    return shown | {
        "gigabytes_per_second": shown["images_per_second"] * image_bytes / 1e9,
        "images_per_second_and_core": shown["images_per_second"] / stream.cores,
    }


def publish_input(result: dict[str, Any], figure: Path | None) -> None:
    """Prints the table and the JSON object of `measure_streams`, and draws its rates."""
    size, batch_size = result["settings"]["image_size"], result["settings"]["batch_size"]
    title = f"input, {size} px, batches of {batch_size}"
    shown = new_table(title, "images/s", "range", "GB/s", "images/s and core")
    for name, each in result["rows"].items():
        span = f"{each['low']:,.0f} to {each['high']:,.0f}"
        per_core = f"{each['images_per_second_and_core']:,.0f}"
        shown.add_row(name, f"{each['images_per_second']:,.0f}", span, f"{each['gigabytes_per_second']:.2f}", per_core)
    add_ratios(shown, result["ratios"], "ratio: ")
    publish(result, [shown], {LOADER, RESIDENT}, f"images per second, {size} x {size} px", figure)
