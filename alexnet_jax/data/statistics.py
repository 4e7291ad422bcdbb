"""Statistics of a prepared set's pixels, and the hash of its content, in one pass over the finished arrays.

Several threads read the arrays in chunks of a fixed number of images. So memory does not depend on the size of the set, and
the result does not depend on how the set was written.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8

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


class Fingerprint:
    """The hash over the hashes of the chunks, added split by split."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add_images(self, digest: bytes) -> None:
        """Adds the hash of the next chunk."""
        self._digest.update(digest)

    def add_labels(self, labels: Int32[np.ndarray, "examples"]) -> None:
        """Adds the labels of a split, after its images."""
        self._digest.update(hashlib.sha256(np.ascontiguousarray(labels, "<i4").data).digest())

    def hexdigest(self) -> str:
        """The hash of all that was added so far."""
        return self._digest.hexdigest()


class Chunk(NamedTuple):
    """What one pass learns from consecutive images."""

    images: int
    digest: bytes
    moments: Moments | None


def measure(path: Path, image_size: int, *, moments: bool) -> Iterator[Chunk]:
    """The chunks of an .npy file of uint8 images, in order.

    Args:
        path: the file, of shape (examples, size, size, 3).
        image_size: `size`, in pixels.
        moments: whether to compute the sums of the pixels beside the hash.

    Raises:
        OSError, ValueError, EOFError: the file cannot be read, or ends early.
    """
    mapped = np.load(path, mmap_mode="r")
    examples, offset, row = len(mapped), mapped.offset, image_size * image_size * 3
    del mapped
    length = max(1, CHUNK_BYTES // row)

    def of(first: int) -> Chunk:
        count = min(length, examples - first)
        # Read, not mapped: mapped pages count as this process's memory.
        pixels = np.fromfile(path, np.uint8, count * row, offset=offset + first * row)
        images = pixels.reshape(count, image_size, image_size, 3)
        return Chunk(count, hashlib.sha256(images.data).digest(), Moments.of(images) if moments else None)

    return ordered_map(of, range(0, examples, length))
