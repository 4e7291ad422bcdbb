"""The prepared set on disk: memory-mapped uint8 arrays, and a `meta.json` that describes them.

A store is a folder `<data_dir>/<dataset>-<image size>`, or `<dataset>-<image size>-warp`, with
    meta.json           format_version, name, image_size, resize, classes, source, counts, channel_mean, channel_std,
                        mean_image (file name), colour_std, colour_vectors, computed, resampling, skipped, fingerprint
    <split>_images.npy  uint8 (examples, size, size, 3), RGB
    <split>_labels.npy  int32 (examples,)
    mean_image.npy      float32 (size, size, 3), over the training images
Preparing renames a complete store into place, so a store under its name is complete.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from alexnet_jax.data.statistics import measure
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.memory import physical_memory

FORMAT_VERSION = 2
SPLITS = ("train", "validation", "test")
VERIFIED_BYTES = 1 << 30  # read and hashed in about half a second
_LARGEST = 1e6  # no statistic of pixels comes near it

Value = TypeVar("Value")


@dataclass(frozen=True)
class Split:
    """Images and labels of one split. The images of an opened store are a read-only memory map."""

    images: UInt8[np.ndarray, "examples size size 3"]
    labels: Int32[np.ndarray, "examples"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Store:
    """A prepared set. The statistics are those of the training pixels, RGB from 0 to 255.

    colour_std: square roots of the eigenvalues of the pixels' covariance, ascending.
    colour_vectors: the unit eigenvectors as columns, in the same order.
    fingerprint: a hash of the content. Two stores with the same fingerprint hold the same arrays.
    """

    name: str
    image_size: int
    classes: tuple[str, ...]
    splits: Mapping[str, Split]
    channel_mean: Float32[np.ndarray, "3"]
    mean_image: Float32[np.ndarray, "size size 3"]
    colour_std: Float32[np.ndarray, "3"]
    colour_vectors: Float32[np.ndarray, "3 3"]
    source: str
    fingerprint: str


def store_path(data_dir: Path, dataset: str, image_size: int, resize: str = "centre") -> Path:
    """The set's folder in `data_dir`, named after it. Characters outside A-Z a-z 0-9 _ . + - become '_'."""
    suffix = "" if resize == "centre" else f"-{resize}"
    return data_dir / f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', dataset)}-{image_size}{suffix}"


def open_store(path: Path) -> Store:
    """Opens a prepared set. Checks every array against meta.json, and up to VERIFIED_BYTES of pixels with `verify`.

    Raises UserError if there is no store, it has another format version, or its files do not agree.
    """
    meta = _read_meta(path)
    try:
        size, classes, published = _get(meta, "image_size", int), tuple(_get(meta, "classes", list)), meta["counts"]
        if not all(type(name) is str for name in classes):
            raise TypeError("a class is no str")
        counts = {split: _get(published, split, int) for split in SPLITS if split in published}
        splits = {split: _open_split(path, split, count, size, len(classes)) for split, count in counts.items()}
        store = Store(
            name=_get(meta, "name", str),
            image_size=size,
            classes=classes,
            splits=splits,
            channel_mean=_vector(meta["channel_mean"], (3,)),
            mean_image=_open_mean(path, _get(meta, "mean_image", str), size),
            colour_std=_vector(meta["colour_std"], (3,)),
            colour_vectors=_vector(meta["colour_vectors"], (3, 3)),
            source=_get(meta, "source", str),
            fingerprint=_get(meta, "fingerprint", str),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"meta.json does not have what it should ({error!r})") from error
    if "train" not in store.splits:
        raise _damaged(path, "meta.json counts no train split")
    if sum(split.images.nbytes for split in splits.values()) <= VERIFIED_BYTES:
        verify(path, store)
    return store


def verify(path: Path, store: Store) -> None:
    """Reads the whole store and checks it against its fingerprint. ImageNet takes minutes.

    Raises UserError if the content is not what was prepared, or cannot be read.
    """
    try:
        fingerprint, _ = measure(path, store.splits, store.image_size)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if fingerprint != store.fingerprint:
        raise _damaged(path, "its pixels or labels have changed since: they do not match the fingerprint in meta.json")


def _read_meta(path: Path) -> dict[str, Any]:
    """meta.json as a dict of this format version."""
    try:
        meta = json.loads(_regular(path / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder: prepare the set with python -m alexnet_jax.prepare") from error
        raise _damaged(path, "it has no meta.json") from error
    except (OSError, ValueError, RecursionError) as error:
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
        array = np.load(_regular(path), mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path.parent, f"{path.name} is missing, truncated or no array ({error})") from error
    if array.shape != shape or array.dtype != dtype:
        found, promised = f"{array.dtype} {array.shape}", f"{np.dtype(dtype)} {shape}"
        raise _damaged(path.parent, f"{path.name} is {found} where meta.json promises {promised}")
    return array


def _regular(path: Path) -> Path:
    """The path. Raises ValueError if what is there is no regular file: to open a FIFO may take for ever."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    return path


def _open_mean(path: Path, name: str, size: int) -> np.ndarray:
    mean = _open_array(path / Path(name).name, np.float32, (size, size, 3))
    if not ((mean >= 0) & (mean <= 255)).all():
        raise _damaged(path, f"{name} is no mean of pixels from 0 to 255")
    return mean


def _get(meta: Any, field: str, kind: type[Value]) -> Value:
    """A field of exactly this type. Raises TypeError if it has another, and KeyError if it is missing."""
    if type(value := meta[field]) is not kind:
        raise TypeError(f"{field} is no {kind.__name__}")
    return value


def _vector(numbers: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(numbers)
    if array.shape != shape or array.dtype.kind not in "if" or not (np.abs(array) < _LARGEST).all():
        raise ValueError(f"statistics of shape {array.shape} where {shape} is expected, or not finite")
    return array.astype(np.float32)


def _damaged(path: Path, what: str) -> UserError:
    line = " ".join(what.split())
    return UserError(f"{path} is no usable prepared set: {line}: delete it and run python -m alexnet_jax.prepare again")


def synthetic_store(image_size: int, classes: int = 1000, examples: int = 1024) -> Store:
    """Uniform uint8 noise in memory, the same on every machine: `examples` for training, a quarter as many in other splits.

    The statistics are those of the distribution, not of the sample. At 256 px the default takes 300 MB.

    Raises UserError if the machine has not so much memory.
    """
    counts = {"train": examples, "validation": examples // 4, "test": examples // 4}
    needed, memory = 3 * image_size**2 * sum(counts.values()), physical_memory()
    if needed > memory:
        raise UserError(
            f"--image_size={image_size}: synthetic images of it take {needed / 1e9:,.1f} GB, and this machine has "
            f"{memory / 1e9:,.1f} GB of memory"
        )
    splits = {}
    for key, (split, count) in enumerate(counts.items()):
        # Raw Philox words: NumPy guarantees their stream from version to version.
        words = np.random.Philox(key=key).random_raw(-(-count * image_size * image_size * 3 // 8))
        pixels = words.astype("<u8", copy=False).view(np.uint8)[: count * image_size * image_size * 3]
        images = pixels.reshape(count, image_size, image_size, 3)
        images.flags.writeable = False
        splits[split] = Split(images, (np.arange(count) % classes).astype(np.int32))
    content = f"synthetic {image_size} {classes} {examples}"
    return Store(
        name="synthetic",
        image_size=image_size,
        classes=tuple(f"class {label}" for label in range(classes)),
        splits=splits,
        channel_mean=np.full(3, 127.5, np.float32),
        mean_image=np.full((image_size, image_size, 3), 127.5, np.float32),
        colour_std=np.full(3, np.sqrt((256**2 - 1) / 12), np.float32),
        colour_vectors=np.eye(3, dtype=np.float32),
        source="uniform noise",
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )
