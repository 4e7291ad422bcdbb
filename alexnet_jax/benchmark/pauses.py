"""What a run stops for between two steps, and how fast images are prepared. All of it in this process."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import PartitionSpec as P

from alexnet_jax.benchmark.results import row
from alexnet_jax.config import Config
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.decode import quiet_pillow, square_rgb
from alexnet_jax.data.example import Example
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.sources import is_on_disk, open_source
from alexnet_jax.evaluation import Evaluator, make_eval_fn
from alexnet_jax.run.checkpoint import Checkpoints
from alexnet_jax.run.intervals import Progress
from alexnet_jax.run.reader import optimizer_shapes
from alexnet_jax.step import Setup, make_checksum, make_nonfinite_count

HELD, SUMMED, WRITTEN, VALIDATED = NAMES = (
    "a save, steps are held", "the checksums alone", "a save, until it is on the disk", "a validation"
)  # fmt: skip
Waited = Iterator[tuple[str, dict[str, float]]]
IMAGES = 256  # that are decoded again and again


def checkpoint_bytes(setup: Setup) -> int:
    """Of a checkpoint's arrays."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((setup.shapes, optimizer_shapes(setup))))


def saves(setup: Setup, rounds: int) -> Waited:
    """What the trainer does to save, with the save before it on the disk. Each is named and has the seconds of its parts.

    A first save, which compiles, is left out. Checksums are computed within a save; they are measured again by themselves.
    """
    fetch, state, names = setup.mesh.fetch, setup.initial_state(), ("params", "optimizer")
    count = make_nonfinite_count(setup)
    checksums = {name: make_checksum(setup.mesh, getattr(setup.state_specs, name)) for name in names}
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(Path(folder), keep=1, writable=True) as checkpoints,
    ):
        for step in range(rounds + 1):
            began = time.perf_counter()
            fetch(count(state.params), P())
            looked = time.perf_counter()
            checkpoints.save(setup, state, Progress(step).as_dict(), None)
            saved = time.perf_counter()
            checkpoints.wait()
            written = time.perf_counter()
            for name, checksum in checksums.items():
                fetch(checksum(getattr(state, name)), P())
            summed = time.perf_counter() - written
            if step:
                yield HELD, {"looking for NaN": looked - began, "checksums and copying": saved - looked}
                yield SUMMED, {"all": summed}
                yield WRITTEN, {"steps are held": saved - began, "beside the next steps": written - saved}


def validations(setup: Setup, dataset: Dataset, rounds: int) -> Waited:
    """One view of each validation image. A first validation, which compiles, is left out; nothing without such a split."""
    if "validation" not in dataset.splits:
        return
    config = setup.config
    evaluator = Evaluator(setup.mesh, config.batch_size)
    loader = Loader(setup.mesh, dataset.splits["validation"], config.data_on_device)
    members = [(make_eval_fn(setup, dataset.mean), setup.initial_state().params)]
    for number in range(rounds + 1):
        began = time.perf_counter()
        evaluator(members, loader)
        if number:
            yield VALIDATED, {"all": time.perf_counter() - began}


def preparing(config: Config, rounds: int, seconds: float) -> dict[str, float] | None:
    """Images per second that one core decodes and resizes, from the files in memory or in the page cache.

    None for a set that is not in files of its own: TFDS might have to build it first.
    """
    if config.dataset != "groceries" and not is_on_disk(config.dataset):
        return None
    examples = itertools.cycle(itertools.islice(open_source(config.dataset, None).splits["train"].read(0), IMAGES))
    with quiet_pillow():
        return row([_decoded(examples, config, seconds) for _ in range(rounds)])


def _decoded(examples: Iterator[Example], config: Config, seconds: float) -> float:
    """Images per second, of those that come next."""
    images, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        square_rgb(next(examples).image, config.image_size, config.resize)
        images += 1
    return images / (time.perf_counter() - began)
