"""Writes a source as a prepared set. The set appears complete or not at all, and an interrupted run resumes.

The arrays grow in `<store>.partial`. The journal, `<store>.partial.json`, says how much of them is safe on the disk. The
finished arrays are measured and described in meta.json; then the folder is renamed.
"""

import contextlib
import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import Int32, UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from alexnet_jax.data.decode import RESIZES, quiet_pillow, square_rgb
from alexnet_jax.data.example import Example, Examples, Source
from alexnet_jax.data.npy import NpyWriter
from alexnet_jax.data.parallel import ordered_map
from alexnet_jax.data.statistics import COMPUTED, measure
from alexnet_jax.data.store import FORMAT_VERSION, SPLITS, Store, open_store
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import write_json

# Bytes of pixels that one thread prepares at a time. Memory per core is a small multiple of it.
BLOCK_BYTES = 4 << 20
SECONDS_BETWEEN_JOURNALS = 5.0

Advance = Callable[[int], None]  # called with the number of examples done since the last call


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


@contextlib.contextmanager
def _bar(description: str, total: int, completed: int = 0) -> Iterator[Advance]:
    """A bar with the rate and the time left if stderr is a terminal; nothing in a log."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=completed)
        yield lambda examples: bar.advance(task, examples)


@dataclass(frozen=True)
class Recipe:
    """How a source becomes a store. A run resumes only what the same recipe began."""

    source: str
    classes: list[str]
    published: dict[str, int]  # examples of each split
    image_size: int
    resize: str
    format_version: int = FORMAT_VERSION
    pillow: str = PIL.__version__


@dataclass(frozen=True)
class Done:
    """Progress of a split: examples read from the source, rows written, and examples left out."""

    read: int = 0
    rows: int = 0
    skipped: tuple[dict[str, str | int], ...] = ()


@dataclass
class Journal:
    """The progress of every split."""

    recipe: Recipe
    done: dict[str, Done] = field(default_factory=dict)

    @property
    def read(self) -> int:
        """Examples read from the source, over all splits."""
        return sum(done.read for done in self.done.values())


def _read_journal(partial: Path, path: Path, recipe: Recipe, on_error: str) -> Journal:
    """The journal of the interrupted run to resume, or a new one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["recipe"] == asdict(recipe) and partial.is_dir():
            entries = content["done"].items()
            done = {split: Done(entry["read"], entry["rows"], tuple(entry["skipped"])) for split, entry in entries}
            possible = all(0 <= of.rows <= of.read <= recipe.published[split] for split, of in done.items())
            if possible and (on_error == "skip" or not any(split.skipped for split in done.values())):
                return Journal(recipe, done)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # no journal, or not a usable one
    return Journal(recipe)


def _begin(partial: Path, path: Path) -> None:
    """An empty folder in place of what another run has left."""
    path.unlink(missing_ok=True)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()


@dataclass(frozen=True)
class Block:
    """Consecutive prepared examples of a split."""

    images: UInt8[np.ndarray, "block size size 3"]
    labels: Int32[np.ndarray, "block"]
    skipped: list[dict[str, str | int]]


def _decode(recipe: Recipe, split: str, on_error: str, ended: threading.Event, numbered: tuple[int, list[Example]]) -> Block:
    """Prepares a block of a split. Raises UserError naming an image that cannot be decoded, unless it may be skipped.

    Once `ended` is set nobody takes the block, and it stops at the next image.
    """
    first, examples = numbered
    size = recipe.image_size
    images, labels, skipped = np.empty((len(examples), size, size, 3), np.uint8), [], []
    for index, example in enumerate(examples, start=first):
        if ended.is_set():
            break
        if not 0 <= example.label < len(recipe.classes):
            raise UserError(f"image {index} of split {split} has label {example.label}: there is no such class")
        try:
            images[len(labels)] = square_rgb(example.image, size, recipe.resize)
        except ValueError as error:
            if on_error == "fail":
                name = f", {example.name}," if example.name else ""
                raise UserError(
                    f"image {index} of split {split}{name} cannot be decoded ({error}): repair the source, or skip such "
                    "images with --on_error=skip; finished images are kept"
                ) from error
            skipped.append({"split": split, "index": index, "name": example.name, "reason": str(error)})
        else:
            labels.append(example.label)
    return Block(images[: len(labels)], np.array(labels, np.int32), skipped)


def write_store(source: Source, path: Path, image_size: int, *, resize: str = "centre", on_error: str = "fail") -> Store:
    """Prepares a source as the store `path` and opens it. Resumes an interrupted run with the same arguments.

    Args:
        path: the store's folder, which must not exist.
        image_size, resize, on_error: see `alexnet_jax.data.prepare`.

    Raises:
        UserError: an image cannot be decoded (on_error 'fail'), there is no train split, or nothing can be written.
    """
    if not len(source.splits.get("train", ())):
        raise UserError(f"--dataset={source.name} has no labelled train split, and the statistics need one")
    published = {split: len(source.splits[split]) for split in SPLITS if split in source.splits}
    recipe = Recipe(source.description, list(source.classes), published, image_size, resize)
    partial, journal_path = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        journal = _read_journal(partial, journal_path, recipe, on_error)
        _check_space(path, partial, journal)
        if not journal.done:
            _begin(partial, journal_path)
        with _bar(f"preparing {source.name}", sum(published.values()), journal.read) as advance:
            for split in published:
                _write_split(source.splits[split], split, partial, journal, journal_path, on_error, advance)
        _write_meta(source.name, partial, journal)
        os.replace(partial, path)
        journal_path.unlink(missing_ok=True)
    except OSError as error:
        kept = f"; finished images are kept in {partial.name}: rerun to resume" if partial.exists() else ""
        raise UserError(f"--data_dir={path.parent}: {path.name} cannot be written: {error}{kept}") from error
    except EOFError as error:
        raise UserError(f"--data_dir={path.parent}: {partial.name} is damaged ({error}): delete it and run again") from error
    return open_store(path)


def _check_space(path: Path, partial: Path, journal: Journal) -> None:
    recipe = journal.recipe
    left = sum(recipe.published.values()) - journal.read
    needed, free = left * recipe.image_size**2 * 3, shutil.disk_usage(path.parent).free
    if not journal.done:
        free += sum(file.stat().st_size for file in partial.rglob("*"))  # what `_begin` removes
    if needed > free:
        raise UserError(
            f"--data_dir={path.parent} has {free / 1e9:,.1f} GB free; {path.name} needs {needed / 1e9:,.1f} GB more"
        )


def _write_split(
    examples: Examples, split: str, folder: Path, journal: Journal, journal_path: Path, on_error: str, advance: Advance
) -> None:
    """Writes the arrays of one split, from where the journal says, and keeps the journal up to date."""
    recipe = journal.recipe
    size, total, done = recipe.image_size, recipe.published[split], journal.done.get(split, Done())
    decode = partial(_decode, recipe, split, on_error, ended := threading.Event())
    with (
        quiet_pillow(),
        NpyWriter(folder / f"{split}_images.npy", np.uint8, (size, size, 3), total, rows=done.rows) as images,
        NpyWriter(folder / f"{split}_labels.npy", np.int32, (), total, rows=done.rows) as labels,
        contextlib.closing(ordered_map(decode, _blocks(examples, done.read, size))) as blocks,
    ):

        def record() -> None:
            images.sync()
            labels.sync()
            journal.done[split] = done
            write_json(journal_path, asdict(journal), indent=None)

        written = time.monotonic()
        try:
            for block in blocks:
                images.append(block.images)
                labels.append(block.labels)
                taken = len(block.labels) + len(block.skipped)
                # One assignment, so that a signal cannot leave the numbers inconsistent.
                done = Done(done.read + taken, labels.rows, (*done.skipped, *block.skipped))
                advance(taken)
                if time.monotonic() - written > SECONDS_BETWEEN_JOURNALS:
                    record()
                    written = time.monotonic()
        finally:
            ended.set()
            record()
    if split == "train" and not done.rows:
        raise UserError("not one image of the train split can be decoded")


def _blocks(examples: Examples, start: int, image_size: int) -> Iterator[tuple[int, list[Example]]]:
    """The examples from number `start` on in blocks, each with the number of its first example."""
    length = max(1, min(256, BLOCK_BYTES // (image_size * image_size * 3)))
    unread = examples.read(start)
    while block := list(itertools.islice(unread, length)):
        yield start, block
        start += len(block)


def _write_meta(name: str, folder: Path, journal: Journal) -> None:
    """Measures the finished arrays, and writes the mean image and then meta.json."""
    recipe, done = journal.recipe, journal.done
    with _bar("measuring and hashing", sum(split.rows for split in done.values())) as advance:
        fingerprint, train = measure(folder, recipe.published, recipe.image_size, moments_of="train", advance=advance)
    statistics = train.statistics()
    np.save(folder / "mean_image.npy", statistics.mean_image.astype(np.float32))
    meta = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "image_size": recipe.image_size,
        "resize": recipe.resize,
        "classes": recipe.classes,
        "source": recipe.source,
        "channel_mean": statistics.channel_mean.tolist(),
        "channel_std": statistics.channel_std.tolist(),
        "mean_image": "mean_image.npy",
        "colour_std": statistics.colour_std.tolist(),
        "colour_vectors": statistics.colour_vectors.tolist(),
        "computed": COMPUTED,
        "resampling": f"{RESIZES[recipe.resize]} (Pillow {PIL.__version__})",
        "counts": {split: done[split].rows for split in recipe.published},
        "skipped": [example for split in recipe.published for example in done[split].skipped],
        "fingerprint": fingerprint,
    }
    write_json(folder / "meta.json", meta)
