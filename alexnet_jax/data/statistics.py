"""Statistics of a prepared set's pixels, and the hash of its content, in one pass over the finished arrays.

Several threads read the arrays in chunks of a fixed number of images. So memory does not depend on the size of the set, and
the result does not depend on how the set was written.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from alexnet_jax.data.parallel import ordered_map

COMPUTED = (
    "over all pixels of the train split, RGB on 0 to 255: channel_mean, channel_std and mean_image are averages and "
    "standard deviations; colour_std are the square roots of the eigenvalues of the 3 x 3 covariance, ascending; "
    "colour_vectors are its unit eigenvectors, one in each column, in the same order; fingerprint is the sha256 of all "
    "sha256 of chunks: of train, validation and test in this order, the images as many at a time as fit into 4 MiB, at "
    "least one, then the labels"
)
CHUNK_BYTES = 4 << 20
_GRAM_PIXELS = 1 << 15  # as float64 they fit into a core's cache


class Moments(NamedTuple):
    """Exact sums over images. All statistics follow from them."""

    images: int
    pixel_sum: Int64[np.ndarray, "size size 3"]
    gram: Int64[np.ndarray, "3 3"]

    @classmethod
    def of(cls, images: UInt8[np.ndarray, "block size size 3"]) -> "Moments":
        """Sums the pixels at each place, and the products of their channels over all places."""
        pixels, gram = images.reshape(-1, 3), np.zeros((3, 3), np.int64)
        buffer = np.empty((min(_GRAM_PIXELS, len(pixels)), 3))
        for first in range(0, len(pixels), _GRAM_PIXELS):
            some = pixels[first : first + _GRAM_PIXELS]
            channels = buffer[: len(some)]
            np.copyto(channels, some)
            # Integers far below 2**53: the float64 product is exact.
            gram += (channels.T @ channels).astype(np.int64)
        return cls(len(images), images.sum(axis=0, dtype=np.int64), gram)

    def plus(self, other: "Moments") -> "Moments":
        """The sums over both sets of images."""
        return type(self)(self.images + other.images, self.pixel_sum + other.pixel_sum, self.gram + other.gram)

    def statistics(self) -> "Statistics":
        """The statistics that follow. Raises ZeroDivisionError without images."""
        mean_image = self.pixel_sum / self.images
        mean = mean_image.mean(axis=(0, 1))
        pixels = self.images * self.pixel_sum.shape[0] * self.pixel_sum.shape[1]
        covariance = self.gram / pixels - np.outer(mean, mean)
        variances, vectors = np.linalg.eigh(covariance)
        return Statistics(mean, np.sqrt(np.diag(covariance)), mean_image, np.sqrt(variances.clip(min=0)), vectors)


class Statistics(NamedTuple):
    """See COMPUTED."""

    channel_mean: Float64[np.ndarray, "3"]
    channel_std: Float64[np.ndarray, "3"]
    mean_image: Float64[np.ndarray, "size size 3"]
    colour_std: Float64[np.ndarray, "3"]
    colour_vectors: Float64[np.ndarray, "3 3"]


def measure(
    folder: Path,
    splits: Iterable[str],
    size: int,
    *,
    moments_of: str | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[str, Moments]:
    """The fingerprint of a store's arrays, and the sums over the pixels of the split `moments_of`.

    Args:
        folder: has <split>_images.npy, uint8 (examples, size, size, 3), and <split>_labels.npy, int32 (examples,).
        advance: called with the number of images read.

    Raises:
        OSError, ValueError, EOFError: a file cannot be read, or ends early.
    """
    fingerprint, sums = hashlib.sha256(), Moments.of(np.empty((0, size, size, 3), np.uint8))
    for split in splits:
        for images, digest, moments in _chunks(folder / f"{split}_images.npy", size, moments=split == moments_of):
            fingerprint.update(digest)
            sums = sums.plus(moments) if moments is not None else sums
            advance(images)
        labels = np.load(folder / f"{split}_labels.npy")
        fingerprint.update(hashlib.sha256(labels.astype("<i4").data).digest())
    return fingerprint.hexdigest(), sums


def _chunks(path: Path, size: int, *, moments: bool) -> Iterator[tuple[int, bytes, Moments | None]]:
    """Of each chunk, in order: the number of images, their hash, and the sums of their pixels if `moments`."""
    mapped = np.load(path, mmap_mode="r")
    examples, offset, row = len(mapped), mapped.offset, size * size * 3
    del mapped
    length = max(1, CHUNK_BYTES // row)

    def chunk(first: int) -> tuple[int, bytes, Moments | None]:
        count = min(length, examples - first)
        # Read, not mapped: mapped pages count as this process's memory.
        pixels = np.fromfile(path, np.uint8, count * row, offset=offset + first * row)
        images = pixels.reshape(count, size, size, 3)
        return count, hashlib.sha256(images.data).digest(), Moments.of(images) if moments else None

    return ordered_map(chunk, range(0, examples, length))
