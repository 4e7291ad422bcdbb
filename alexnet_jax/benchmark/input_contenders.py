"""How fast images come in: store and loader beside plain copies, JPEG pipelines and the step that they feed.

All contenders are alive at once and measured in turn, round after round, so that a ratio is of numbers taken side by side.
"""

import contextlib
import io
import itertools
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import PartitionSpec as P
from PIL import Image

from alexnet_jax.augment import COLOUR_NOISE
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.loader import Feed
from alexnet_jax.data.splits import Order, Subset
from alexnet_jax.step import Knobs, Model, Pixels, make_train_step

JPEG_QUALITY = 90
MAX_JPEGS = 2048
# What a contender may have ready from before: not counted.
_WARM_BATCHES = 6
_OUT_OF_CACHE = 256 << 20

Stream = Generator[int, None, None]  # the number of images of each batch, when it is there


@dataclass(frozen=True)
class Contender:
    """One way to get batches.

    cores: that it keeps busy, for images per second and core.
    by_steps: measured over a number of batches, not of seconds.
    """

    name: str
    stream: Stream
    cores: int
    by_steps: bool = False


def copies(split: Subset, batch_size: int) -> Iterator[Contender]:
    """A copy in memory, and one out of the memory map from front to back: what no loader can beat by much."""
    images = split.parts[0].images
    rows = min(batch_size, len(images))
    shape = (rows, *images.shape[1:])
    # As many targets as leave the processor's caches behind, as every new batch does.
    targets = itertools.cycle([np.zeros(shape, np.uint8) for _ in range(1 + _OUT_OF_CACHE // int(np.prod(shape)))])
    sources = [np.ones(shape, np.uint8) for _ in range(1 + _OUT_OF_CACHE // int(np.prod(shape)))]

    def in_memory() -> Stream:
        for target, source in zip(targets, itertools.cycle(sources), strict=False):
            np.copyto(target, source)
            yield rows

    def out_of_the_map() -> Stream:
        firsts = itertools.cycle(range(0, len(images) - rows + 1, rows))
        for target, first in zip(targets, firsts, strict=False):
            np.copyto(target, images[first : first + rows])
            yield rows

    yield Contender("memory copy", in_memory(), 1)
    yield Contender("memory-map copy, in order", out_of_the_map(), 1)


def loader(model: Model, split: Subset, data_on_device: str) -> Contender:
    """Store and loader in the order of training, onto the devices."""
    feed = Feed(model.mesh, split, data_on_device)
    order = Order(model.config.seed, len(split), model.config.batch_size)

    def batches() -> Stream:
        for batch in feed.batches(map(order.step, itertools.count())):
            jax.block_until_ready(batch)
            yield model.config.batch_size

    return Contender(f"store and loader, data_on_device={data_on_device}", batches(), os.cpu_count() or 1)


class Jpegs:
    """The images of a split as a TFDS set of JPEG files, for any loader that wants random access: (pixels, label)."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._records: Any = None

    def _open(self) -> Any:
        if self._records is None:  # in each process anew
            import tensorflow_datasets as tfds

            builder: Any = tfds.builder_from_directory(self._folder)
            self._records = builder.as_data_source("train")
        return self._records

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        record = self._open()[index]
        return record["image"], record["label"]

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_records": None}


def write_jpegs(split: Subset, classes: int, folder: str) -> Jpegs:
    """Up to MAX_JPEGS images of a split, written by TFDS as ArrayRecord under `folder`."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name, VERSION = "jpegs", tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=classes),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for number in range(min(MAX_JPEGS, len(split))):
                images, labels = split.read(np.array([number]))
                file = io.BytesIO()
                Image.fromarray(images[0]).save(file, "JPEG", quality=JPEG_QUALITY)
                file.seek(0)
                yield number, {"image": file, "label": int(labels[0])}

    tfds.disable_progress_bar()
    builder = Builder(data_dir=folder, file_format="array_record")
    with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare()
    return Jpegs(str(builder.data_dir))


def tfds_pipeline(jpegs: Jpegs, batch_size: int) -> Contender:
    """TFDS's own reading and decoding of JPEG, in a random order, stacked into batches, in one process."""

    def batches() -> Stream:
        rng = np.random.default_rng(0)
        while True:
            numbers = rng.integers(0, len(jpegs), batch_size).tolist()
            np.stack([jpegs[number][0] for number in numbers])
            yield batch_size

    return Contender("TFDS, JPEG, one process", batches(), 1)


def _quiet(worker: int) -> None:
    """A worker's libraries have much to say about arrays that nobody writes to, and about OpenCV."""
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    logging.set_verbosity(logging.ERROR)


def torch_pipeline(jpegs: Jpegs, batch_size: int) -> Contender | None:
    """A PyTorch DataLoader over the same files, one worker process per core; None where PyTorch is not installed."""
    try:
        from torch.utils.data import DataLoader, RandomSampler
    except ImportError:
        return None
    workers = os.cpu_count() or 1
    # With replacement, so that the stream does not end; processes are spawned, for JAX's threads do not survive a fork.
    sampler = RandomSampler(range(len(jpegs)), replacement=True, num_samples=1 << 40)
    batches: Any = DataLoader(
        jpegs,  # pyright: ignore[reportArgumentType]
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_quiet,
    )

    def stream() -> Stream:
        for _ in batches:
            yield batch_size

    return Contender(f"PyTorch DataLoader, JPEG, {workers} workers", stream(), workers)


def training(model: Model, dataset: Dataset) -> Iterator[Contender]:
    """The training step on the loader's batches, and the same step on one batch that stays on the device."""
    split, config = dataset.splits["train"], model.config
    order, feed = Order(config.seed, len(split), config.batch_size), Feed(model.mesh, split, config.data_on_device)
    step, put = make_train_step(model), model.mesh.put
    rate = np.float32(config.learning_rate)
    rates = {layer: {"kernel": rate, "bias": rate} for layer in model.shapes}
    knobs = put(Knobs(rates, np.float32(COLOUR_NOISE)), P())  # pyright: ignore[reportArgumentType]
    pixels = put(Pixels(dataset.mean, dataset.colours), P())  # pyright: ignore[reportArgumentType]

    def steps(batches: Iterator[Any]) -> Stream:
        state = model.initial_state()
        for batch in batches:
            state, metrics = step(state, batch, knobs, pixels)
            jax.block_until_ready(metrics)
            yield config.batch_size

    fixed = put(split.read(order.step(0)), P("data"))
    cores = os.cpu_count() or 1
    yield Contender(
        "training step, images from the store", steps(feed.batches(map(order.step, itertools.count()))), cores, True
    )
    yield Contender("training step, the same batch again", steps(itertools.repeat(fixed)), cores, True)


@contextlib.contextmanager
def contenders(model: Model, dataset: Dataset) -> Iterator[list[Contender]]:
    """All that this machine can run, started; they are stopped at the end."""
    config, split = model.config, dataset.splits["train"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        jpegs = write_jpegs(split, len(dataset.classes), folder)
        found = [*copies(split, config.batch_size), loader(model, split, "no"), loader(model, split, "yes")]
        found += [tfds_pipeline(jpegs, config.batch_size)]
        found += [one for one in [torch_pipeline(jpegs, config.batch_size)] if one]
        found += training(model, dataset)
        for one in found:
            running.enter_context(contextlib.closing(one.stream))
        yield found


def measure(contender: Contender, seconds: float, steps: int) -> float:
    """Images per second over about so many seconds, or so many steps; what was ready before is thrown away."""
    for _ in range(2 if contender.by_steps else _WARM_BATCHES):
        next(contender.stream)
    images, started = 0, time.perf_counter()
    for done in itertools.count():
        elapsed = time.perf_counter() - started
        if done >= steps if contender.by_steps else elapsed >= seconds:
            break
        images += next(contender.stream)
    return images / (time.perf_counter() - started)
