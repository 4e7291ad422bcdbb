"""The prepared set on disk: uint8 arrays that are memory-mapped, and `meta.json`, which says what is in them.

A store is a folder `<data_dir>/<dataset>-<image size>` with
    meta.json           format_version, name, image_size, classes, source, counts, channel_mean, mean_image (file name),
                        colour_std, colour_vectors, computed, resize, skipped, fingerprint
    <split>_images.npy  uint8 (examples, size, size, 3), RGB
    <split>_labels.npy  int32 (examples,)
    mean_image.npy      float32 (size, size, 3), over the training images
It appears under its name only when it is complete: `alexnet_jax.prepare` renames it into place.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64, UInt8

from alexnet_jax.errors import UserError

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
COMPUTED = (
    "over all pixels of the train split, RGB on 0 to 255: channel_mean and mean_image are averages; colour_std are the "
    "square roots of the eigenvalues of the 3 x 3 covariance, ascending; colour_vectors are its unit eigenvectors, one "
    "in each column, in the same order; fingerprint is the sha256 of the pixels and int32 labels of train, validation "
    "and test in this order, each split's pixels before its labels"
)


@dataclass(frozen=True)
class Split:
    """Images and labels of one split; the images of an opened store are a read-only memory map."""

    images: UInt8[np.ndarray, "examples size size 3"]
    labels: Int32[np.ndarray, "examples"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Store:
    """A prepared set. Statistics are those of the training pixels, RGB on the scale 0 to 255.

    colour_std: square roots of the eigenvalues of the pixels' covariance, ascending.
    colour_vectors: its unit eigenvectors, the columns, in the same order.
    fingerprint: names the content; two stores with the same one hold the same arrays.
    """

    name: str
    image_size: int
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    channel_mean: Float32[np.ndarray, "3"]
    mean_image: Float32[np.ndarray, "size size 3"]
    colour_std: Float32[np.ndarray, "3"]
    colour_vectors: Float32[np.ndarray, "3 3"]
    fingerprint: str


def store_path(data_dir: Path, dataset: str, image_size: int) -> Path:
    """Where the set is prepared: a folder of `data_dir` named after it, other characters than word ones made '_'."""
    return data_dir / f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', dataset)}-{image_size}"


def open_store(path: Path) -> Store:
    """Opens a prepared set and checks all that is cheap to check: every array against meta.json, but not every pixel.

    Raises:
        UserError: there is no store, it is of another format version, or its files do not agree.
    """
    meta = _read_meta(path)
    try:
        size, classes = int(meta["image_size"]), tuple(str(name) for name in meta["classes"])
        counts = {split: int(meta["counts"][split]) for split in SPLITS if split in meta["counts"]}
        splits = {split: _open_split(path, split, count, size, len(classes)) for split, count in counts.items()}
        store = Store(
            name=str(meta["name"]),
            image_size=size,
            classes=classes,
            splits=MappingProxyType(splits),
            channel_mean=_vector(meta["channel_mean"], (3,)),
            mean_image=_open_array(path / str(meta["mean_image"]), np.float32, (size, size, 3)),
            colour_std=_vector(meta["colour_std"], (3,)),
            colour_vectors=_vector(meta["colour_vectors"], (3, 3)),
            fingerprint=str(meta["fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"meta.json does not have what it should ({error!r})") from error
    if "train" not in store.splits:
        raise _damaged(path, "meta.json counts no train split")
    return store


def _read_meta(path: Path) -> dict[str, Any]:
    """meta.json as a dict of this format version."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder: prepare the set with python -m alexnet_jax.prepare") from error
        raise _damaged(path, "it has no meta.json") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, f"meta.json cannot be read ({error})") from error
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if version != FORMAT_VERSION:
        raise _damaged(path, f"its format version is {version}, and this program reads {FORMAT_VERSION}")
    return meta


def _open_split(path: Path, split: str, examples: int, size: int, classes: int) -> Split:
    images = _open_array(path / f"{split}_images.npy", np.uint8, (examples, size, size, 3), mmap_mode="r")
    labels = _open_array(path / f"{split}_labels.npy", np.int32, (examples,))
    if examples and not 0 <= labels.min() <= labels.max() < classes:
        found = f"labels from {labels.min()} to {labels.max()}"
        raise _damaged(path, f"{split}_labels.npy has {found} where meta.json has {classes} classes")
    return Split(images, labels)


def _open_array(path: Path, dtype: type, shape: tuple[int, ...], mmap_mode: Any = None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path.parent, f"{path.name} is missing, truncated or no array ({error})") from error
    if array.shape != shape or array.dtype != dtype:
        found, promised = f"{array.dtype} {array.shape}", f"{np.dtype(dtype)} {shape}"
        raise _damaged(path.parent, f"{path.name} is {found} where meta.json promises {promised}")
    return array


def _vector(numbers: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(numbers, np.float32)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"statistics of shape {array.shape} where {shape} is due, or not finite")
    return array


def _damaged(path: Path, what: str) -> UserError:
    line = " ".join(what.split())
    return UserError(f"{path} is no usable prepared set: {line}: delete it and run python -m alexnet_jax.prepare again")


class Moments(NamedTuple):
    """Exact sums over images, from which all statistics follow."""

    images: int
    pixel_sum: Int64[np.ndarray, "size size 3"]
    gram: Int64[np.ndarray, "3 3"]

    @classmethod
    def of(cls, images: UInt8[np.ndarray, "block size size 3"]) -> "Moments":
        """Sums of the pixels at each place, and of the products of their channels over all places."""
        channels = images.reshape(-1, 3).astype(np.float64)
        # Whole numbers below 2**53 for any block under 130 GB: the float64 product is exact.
        gram = (channels.T @ channels).astype(np.int64)
        return cls(len(images), images.sum(axis=0, dtype=np.int64), gram)

    def plus(self, other: "Moments") -> "Moments":
        return type(self)(self.images + other.images, self.pixel_sum + other.pixel_sum, self.gram + other.gram)

    def statistics(self) -> "Statistics":
        """Raises ZeroDivisionError without images."""
        mean_image = self.pixel_sum / self.images
        mean = mean_image.mean(axis=(0, 1))
        pixels = self.images * self.pixel_sum.shape[0] * self.pixel_sum.shape[1]
        variances, vectors = np.linalg.eigh(self.gram / pixels - np.outer(mean, mean))
        return Statistics(mean, mean_image, np.sqrt(variances.clip(min=0)), vectors)


class Statistics(NamedTuple):
    """See COMPUTED."""

    channel_mean: Float64[np.ndarray, "3"]
    mean_image: Float64[np.ndarray, "size size 3"]
    colour_std: Float64[np.ndarray, "3"]
    colour_vectors: Float64[np.ndarray, "3 3"]


class NpyWriter:
    """Appends rows to an .npy file and writes their final number into its header on leaving the `with` block.

    Plain writes, not a writable memory map: a full disk is then an OSError and not a SIGBUS.
    """

    def __init__(self, path: Path, dtype: type, row_shape: tuple[int, ...], expected_rows: int) -> None:
        self.rows = 0
        self._dtype, self._row_shape = np.dtype(dtype), row_shape
        self._file = path.open("wb")
        self._header_bytes = self._write_header(expected_rows)

    def append(self, rows: np.ndarray) -> None:
        """Raises ValueError if the rows are not of the shape and dtype given at the start."""
        if rows.dtype != self._dtype or rows.shape[1:] != self._row_shape:
            raise ValueError(f"{rows.dtype} {rows.shape[1:]} rows for a file of {self._dtype} {self._row_shape}")
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def _write_header(self, rows: int) -> int:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (rows, *self._row_shape)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def __enter__(self) -> "NpyWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._file:
            # NumPy leaves room in the header for the first dimension to change.
            if kind is None and self._write_header(self.rows) != self._header_bytes:
                raise ValueError(f"the header of {self._file.name} has outgrown its place")
            self._file.flush()
            os.fsync(self._file.fileno())


def synthetic_store(image_size: int, classes: int = 1000, examples: int = 1024) -> Store:
    """Uniform uint8 noise in memory, the same on every machine: `examples` to train on, a quarter of it in the others.

    Statistics are those of the distribution, not of the sample. At 256 px the default takes 300 MB.
    """
    counts = {"train": examples, "validation": examples // 4, "test": examples // 4}
    splits = {}
    for key, (split, count) in enumerate(counts.items()):
        # Raw Philox words: NumPy guarantees this stream from version to version.
        words = np.random.Philox(key=key).random_raw(-(-count * image_size * image_size * 3 // 8))
        pixels = words.astype("<u8", copy=False).view(np.uint8)[: count * image_size * image_size * 3]
        images = pixels.reshape(count, image_size, image_size, 3)
        images.flags.writeable = False
        splits[split] = Split(images, (np.arange(count) % classes).astype(np.int32))
    content = f"synthetic {FORMAT_VERSION} {image_size} {classes} {examples}"
    return Store(
        name="synthetic",
        image_size=image_size,
        classes=tuple(f"class {label}" for label in range(classes)),
        splits=MappingProxyType(splits),
        channel_mean=np.full(3, 127.5, np.float32),
        mean_image=np.full((image_size, image_size, 3), 127.5, np.float32),
        colour_std=np.full(3, np.sqrt((256**2 - 1) / 12), np.float32),
        colour_vectors=np.eye(3, dtype=np.float32),
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )
