"""The order of the images, a pure function of (seed, epoch, position), and reading them from the memory maps."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from alexnet_jax.data.store import Split
from alexnet_jax.system.errors import UserError


class Batch(NamedTuple):
    """Images and labels of one batch: on the host, or on the devices."""

    images: UInt8[np.ndarray, "batch size size 3"]
    labels: Int32[np.ndarray, "batch"]


def epoch_order(seed: int, epoch: int, examples: int) -> Int64[np.ndarray, "examples"]:
    """A permutation of the examples. Sorts raw Philox words: NumPy guarantees their stream from version to version."""
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(examples)
    return np.argsort(words, kind="stable")


@dataclass
class Order:
    """Which examples each training step sees. A batch may span two epochs: the next one follows without a gap."""

    seed: int
    examples: int
    batch_size: int

    def __post_init__(self) -> None:
        self._epoch = functools.lru_cache(maxsize=2)(lambda epoch: epoch_order(self.seed, epoch, self.examples))

    def step(self, step: int) -> Int64[np.ndarray, "batch"]:
        """The numbers of the examples in the batch of `step`. Steps count from 0."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.examples)
        return np.concatenate([self._epoch(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()])


@dataclass(frozen=True)
class Subset:
    """Examples of one or more stored splits. Only `read` copies them out of the memory maps."""

    parts: tuple[Split, ...]
    rows: Int64[np.ndarray, "examples"]  # indices into the parts, laid end to end

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Int32[np.ndarray, "examples"]:
        """All labels, in order."""
        return np.concatenate([part.labels for part in self.parts])[self.rows]

    def read(self, examples: Int64[np.ndarray, "batch"]) -> Batch:
        """These examples, in the given order."""
        images = np.empty((len(examples), *self.parts[0].images.shape[1:]), np.uint8)
        batch = Batch(images, np.empty(len(examples), np.int32))
        self.read_into(examples, batch)
        return batch

    def read_into(self, examples: Int64[np.ndarray, "batch"], batch: Batch) -> None:
        """Copies these examples, in the given order, into arrays that exist already: one copy, without a Python loop."""
        wanted = self.rows[examples]
        if len(self.parts) == 1:
            # Without `clip` NumPy copies into a buffer first. Nothing is clipped: `rows` are in range.
            np.take(self.parts[0].images, wanted, axis=0, out=batch.images, mode="clip")
            np.take(self.parts[0].labels, wanted, axis=0, out=batch.labels, mode="clip")
            return
        start = 0
        for part in self.parts:
            places = np.flatnonzero((wanted >= start) & (wanted < start + len(part)))
            batch.images[places] = part.images[wanted[places] - start]
            batch.labels[places] = part.labels[wanted[places] - start]
            start += len(part)


def whole(*parts: Split) -> Subset:
    """Every example of the parts, in order."""
    return Subset(parts, np.arange(sum(map(len, parts))))


def evaluation_order(examples: int, batch_size: int) -> Iterator[tuple[Int64[np.ndarray, "batch"], int]]:
    """Every example once, in order: each batch's numbers, and how many are real. Its first example pads the last batch."""
    for start in range(0, examples, batch_size):
        real = min(batch_size, examples - start)
        numbers = np.arange(start, start + batch_size)
        numbers[real:] = start
        yield numbers, real


def fold_split(pooled: Subset, index: int, count: int) -> tuple[Subset, Subset]:
    """(train, validation): fold `index` of `count` is held out. The folds do not depend on the run's seed.

    Raises UserError naming --fold if one of the two would be empty.
    """
    if not index < len(pooled) or len(pooled) < 2:
        empty = "train" if len(pooled) == 1 and not index else "validation"
        raise UserError(
            f"--fold={index}/{count} leaves the {empty} split empty: train and validation have {len(pooled):,} images in all"
        )
    held_out = epoch_order(0, 0, len(pooled)) % min(count, len(pooled)) == index
    return Subset(pooled.parts, pooled.rows[~held_out]), Subset(pooled.parts, pooled.rows[held_out])
