"""The order of images, a pure function of (seed, epoch, position), and the batches that follow it."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Queue
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from alexnet_jax.data.store import Split


class Batch(NamedTuple):
    """Host arrays of one global batch."""

    images: UInt8[np.ndarray, "batch size size 3"]
    labels: Int32[np.ndarray, "batch"]


def epoch_order(seed: int, epoch: int, examples: int) -> Int64[np.ndarray, "examples"]:
    """A permutation of the examples. Sorts raw Philox words, whose stream NumPy guarantees from version to version."""
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(examples)
    return np.argsort(words, kind="stable")


@dataclass
class Order:
    """Which examples each training step sees. Epochs follow each other without a gap: a batch may span two."""

    seed: int
    examples: int
    batch_size: int

    def __post_init__(self) -> None:
        self._cached: dict[int, np.ndarray] = {}

    def step(self, step: int) -> Int64[np.ndarray, "batch"]:
        """Numbers of the examples in the batch of `step`, counted from 0."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.examples)
        return np.concatenate([self._epoch(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()])

    def _epoch(self, epoch: int) -> Int64[np.ndarray, "examples"]:
        if epoch not in self._cached:
            self._cached = {old: order for old, order in self._cached.items() if old == epoch - 1}
            self._cached[epoch] = epoch_order(self.seed, epoch, self.examples)
        return self._cached[epoch]


@dataclass(frozen=True)
class Subset:
    """Examples of one or more stored splits. Nothing is copied out of their memory maps until `read`."""

    parts: tuple[Split, ...]
    rows: Int64[np.ndarray, "examples"]  # into the parts laid end to end

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Int32[np.ndarray, "examples"]:
        """All labels, in order."""
        return np.concatenate([part.labels for part in self.parts])[self.rows]

    def read(self, examples: Int64[np.ndarray, "batch"]) -> Batch:
        """These examples, in the given order; read in ascending order, as a disk likes it."""
        wanted = self.rows[examples]
        images = np.empty((len(wanted), *self.parts[0].images.shape[1:]), np.uint8)
        labels = np.empty(len(wanted), np.int32)
        start = 0
        for part in self.parts:
            places = np.flatnonzero((wanted >= start) & (wanted < start + len(part)))
            places = places[np.argsort(wanted[places], kind="stable")]
            images[places] = part.images[wanted[places] - start]
            labels[places] = part.labels[wanted[places] - start]
            start += len(part)
        return Batch(images, labels)


def whole(*parts: Split) -> Subset:
    """Every example of the parts, in order."""
    return Subset(parts, np.arange(sum(map(len, parts))))


def training_batches(split: Subset, order: Order, first_step: int, last_step: int, ahead: int = 2) -> Iterator[Batch]:
    """Batches of the steps from `first_step` up to `last_step`, exclusive, `ahead` of them read in a thread of their own.

    An error of the thread is raised here.
    """
    batches: Queue[Batch | Exception] = Queue(maxsize=ahead)
    stopped = threading.Event()

    def read() -> None:
        try:
            for step in range(first_step, last_step):
                batches.put(split.read(order.step(step)))
                if stopped.is_set():
                    return
        except Exception as error:
            batches.put(error)

    thread = threading.Thread(target=read, daemon=True, name="loader")
    thread.start()
    try:
        for _ in range(first_step, last_step):
            batch = batches.get()
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        stopped.set()
        while thread.is_alive():
            while not batches.empty():
                batches.get()
            thread.join(timeout=0.05)


def evaluation_batches(split: Subset, batch_size: int) -> Iterator[tuple[Batch, int]]:
    """Every example once, in order: full batches, the last one filled up with its own first example, and how many of
    each are real."""
    for start in range(0, len(split), batch_size):
        real = min(batch_size, len(split) - start)
        numbers = np.full(batch_size, start)
        numbers[:real] = np.arange(start, start + real)
        yield split.read(numbers), real


def fold_split(pooled: Subset, index: int, count: int) -> tuple[Subset, Subset]:
    """(train, validation): fold `index` of `count` held out. The folds are the same whatever the seed of the run."""
    folds = epoch_order(0, 0, len(pooled)) % count
    return (
        Subset(pooled.parts, pooled.rows[folds != index]),
        Subset(pooled.parts, pooled.rows[folds == index]),
    )
