"""A labelled set in several files of examples. The names of the files say the split: `train-00000-of-00002.parquet`."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from alexnet_jax.data.classes import common_classes
from alexnet_jax.data.example import SPLIT_NAMES, Example, Examples, Source
from alexnet_jax.data.held_out import random_splits
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_input

MOST_CLASSES = 65_536  # without a list of names, so that a wild label does not make a billion classes


@runtime_checkable
class Shard(Protocol):
    """One file of examples. Every reading gives them in the same order."""

    @property
    def path(self) -> Path: ...

    @property
    def labels(self) -> Sequence[int | str]:
        """Numbers or names of classes, as the file has them. -1: it was never published."""
        ...

    def digest(self) -> str:
        """A hash of what opening it has read. Other images have another one, or another size of the file."""
        ...

    def name(self, row: int) -> str:
        """What an error calls an example."""
        ...

    def images(self, start: int) -> Iterator[bytes]:
        """The image files from row `start` on. Raises UserError if the file cannot be read."""
        ...


@dataclass(frozen=True)
class _Split:
    """The examples of one split, shard after shard."""

    shards: Sequence[Shard]
    labels: Int64[np.ndarray, "examples"]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, start: int) -> Iterator[Example]:
        """The examples from number `start` on. Raises UserError if a shard cannot be read."""
        first = 0  # of the shard
        for shard in self.shards:
            rows = range(max(start - first, 0), len(shard.labels))
            if rows:
                for row, image in zip(rows, shard.images(rows.start), strict=True):
                    yield Example(image, int(self.labels[first + row]), shard.name(row))
            first += len(shard.labels)


@dataclass(frozen=True)
class _Rows:
    """Some rows of a set, ascending. It reads the others too, since a shard is read from front to back."""

    examples: Examples
    rows: Int64[np.ndarray, "examples"]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, start: int) -> Iterator[Example]:
        """The examples from number `start` on."""
        rows = self.rows[start:].tolist()
        reading = enumerate(self.examples.read(rows[0]), rows[0]) if rows else iter(())
        for row in rows:
            yield next(example for number, example in reading if number == row)


def find_shards(dataset: str) -> list[Path]:
    """The files that 'parquet:GLOB' or 'tar:GLOB' names, sorted by name. `**` stands for any folders.

    Raises:
        UserError: there is none, or one is no regular file.
    """
    where, pattern = f"--dataset={dataset}", os.path.expanduser(dataset.partition(":")[2])
    found = [Path(pattern)] if os.path.isfile(pattern) else [Path(path) for path in glob.glob(pattern, recursive=True)]
    if not found:
        hint = ": braces are not expanded: write * in their place" if "{" in pattern else ""
        raise UserError(f"{where} matches no file{hint}")
    for path in found:
        if path.is_dir():
            raise UserError(f"{where} matches the folder {path}: name its files, as in {path}/*")
        check_input(f"{where}: {path}", path)
    return sorted(found)


def open_shards(dataset: str, shards: Sequence[Shard], names: tuple[str, ...] | None, split_seed: int) -> Source:
    """The set that these shards hold.

    The first of train, validation (or valid, val) and test in a file's name, or its folder of that name, is its split. Where
    no file names a split, the examples are split at random. A split whose labels are all -1 is left out.

    Args:
        dataset: 'KIND:GLOB'.
        shards: sorted by path; at least one.
        names: of the classes. None: the labels are names, or numbers that then are the names.
        split_seed: of the random split.

    Raises:
        UserError: only some files name a split, none is train, or a label is out of range or of no class.
    """
    where = f"--dataset={dataset}"
    published = {split: found for split, found in _by_split(shards, where).items() if not _is_unlabelled(found)}
    if "train" not in published:
        raise UserError(f"{where} has no labelled examples to train on: a file of them has `train` in its name")
    classes = names or _classes(published, where)
    read = {
        split: _Split(found, np.concatenate([_numbers(shard, classes, where) for shard in found]))
        for split, found in published.items()
    }
    what = _description(dataset, shards)
    if _split_of(shards[0].path, where):
        return Source(dataset, classes, f"{what}, their own splits", read)
    rows, how = random_splits(read["train"].labels, split_seed)
    splits = {split: _Rows(read["train"], of_split) for split, of_split in rows.items()}
    return Source(dataset, classes, f"{what}, {how}", splits)


def _split_of(path: Path, where: str) -> str | None:
    """The split that a file's name says, or that of its folder."""
    words = re.split("[^a-z]+", path.stem.lower())
    found = {SPLIT_NAMES[word]: word for word in words if word in SPLIT_NAMES}
    if len(found) > 1:
        raise UserError(f"{where}: {path} has both {' and '.join(found.values())} in its name: rename it")
    return next(iter(found), SPLIT_NAMES.get(path.parent.name.lower()))


def _by_split(shards: Sequence[Shard], where: str) -> dict[str, list[Shard]]:
    """The shards of each split; all are train if none names a split."""
    named: dict[str | None, list[Shard]] = {}
    for shard in shards:
        named.setdefault(_split_of(shard.path, where), []).append(shard)
    nameless = named.pop(None, [])
    if nameless and named:
        other = next(iter(named.values()))[0].path
        advice = "write train, validation or test into its name, or leave it out"
        raise UserError(f"{where}: {nameless[0].path} names no split, and {other} does: {advice}")
    return {split: found for split, found in named.items() if split} or {"train": nameless}


def _is_unlabelled(shards: Sequence[Shard]) -> bool:
    return all(label == -1 for shard in shards for label in shard.labels)


def _classes(splits: Mapping[str, Sequence[Shard]], where: str) -> tuple[str, ...]:
    """The classes that the labels themselves name, sorted; or the numbers from 0 to the largest label."""
    found = {split: {label for shard in shards for label in shard.labels} for split, shards in splits.items()}
    everything = set[int | str]().union(*found.values())
    names = [label for label in everything if isinstance(label, str)]
    numbers = [label for label in everything if isinstance(label, int)]
    if names and numbers:
        both = f"{min(names)!r} and {min(numbers)}"
        raise UserError(f"{where} has labels that are names and labels that are numbers, such as {both}")
    if names:
        return common_classes({split: sorted(map(str, labels)) for split, labels in found.items()}, where)
    largest = max(numbers)
    if largest >= MOST_CLASSES:
        raise UserError(f"{where} has label {largest}: without class names the largest may be {MOST_CLASSES - 1}")
    return tuple(str(number) for number in range(largest + 1))


def _numbers(shard: Shard, classes: tuple[str, ...], where: str) -> Int64[np.ndarray, "rows"]:
    """The labels as numbers of classes."""
    known = {name: number for number, name in enumerate(classes)}
    numbers = [known.get(label, -1) if isinstance(label, str) else label for label in shard.labels]
    for row, number in enumerate(numbers):
        if not 0 <= number < len(classes):
            there = f"there are {len(classes):,} classes, from 0 to {len(classes) - 1}"
            label = shard.labels[row]
            what = "there is no class of this name" if isinstance(label, str) else there
            raise UserError(f"{where}: {shard.name(row)} has label {label!r}: {what}")
    return np.array(numbers, np.int64)


def _description(dataset: str, shards: Sequence[Shard]) -> str:
    folder = Path(os.path.commonpath([shard.path.parent for shard in shards]))
    listing = [[shard.path.relative_to(folder).as_posix(), shard.path.stat().st_size, shard.digest()] for shard in shards]
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    examples = sum(len(shard.labels) for shard in shards)
    kind = dataset.partition(":")[0]
    what = f"{examples} examples in {len(shards)} {kind} files of folder {folder.resolve().name}"
    return f"{what} (sha256 {digest} of their names, sizes and labels)"
