"""The records of a labelled set before it is prepared: one image, a split, the whole set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

EncodedImage = bytes | Path | np.ndarray

# What files and folders call the splits: what this project calls them.
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


class Example(NamedTuple):
    """One labelled image, not decoded: the bytes of its file, the path of its file, or pixels.

    image: pixels are uint8 of shape (height, width, 1, 3 or 4): grey, RGB or RGBA. `square_rgb` checks it.

    name: what the source calls the image; '' if it has no names.
    """

    image: EncodedImage
    label: int
    name: str = ""


@runtime_checkable
class Examples(Protocol):
    """The examples of a split. Every reading gives them in the same order."""

    def __len__(self) -> int: ...

    def read(self, start: int) -> Iterator[Example]:
        """The examples from number `start` on."""
        ...


@dataclass(frozen=True)
class Listed:
    """Examples held in a list."""

    items: Sequence[Example]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, start: int) -> Iterator[Example]:
        """The examples from number `start` on."""
        return iter(self.items[start:])


@dataclass(frozen=True)
class Source:
    """A labelled set as it is published.

    classes: their names; a label is an index into them.
    description: where the images are from, with a version or a hash. Other content has another description.
    splits: those of 'train', 'validation' and 'test' that exist and are labelled.
    """

    name: str
    classes: tuple[str, ...]
    description: str
    splits: Mapping[str, Examples]
