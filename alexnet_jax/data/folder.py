"""`--dataset=folder:PATH`: a folder of image files for each class, with or without a folder for each split above."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.data.classes import common_classes
from alexnet_jax.data.example import SPLIT_NAMES, Example, Examples, Listed, Source
from alexnet_jax.data.flat_folder import by_class, label_file
from alexnet_jax.data.held_out import random_splits
from alexnet_jax.system.errors import UserError

_ByClass = Mapping[str, list[Path]]  # class: its files


def open_folder(dataset: str, split_seed: int) -> Source:
    """Opens PATH/split/class/file, with splits called train, validation (or valid, val) and test, or PATH/class/file.

    Upper case does as well for the splits. Validation and test may be flat, with a label file beside them (`flat_folder`).
    Without splits every class is split at random (`held_out`). The split depends on the files and the seed alone, not on the
    machine or its locale. Hidden files are left out. Every other file must be an image. Links are followed.

    Args:
        dataset: 'folder:PATH'.
        split_seed: seed of the random split.

    Raises:
        UserError: there is no such folder, no train split, an empty class, a file or folder out of place, a file that is
            no regular one, a class name that is not UTF-8, two that differ only in case or encoding, or a label file that
            does not fit.
    """
    where = f"--dataset={dataset}"
    try:
        root = Path(dataset.removeprefix("folder:")).expanduser()
        if dataset == "folder:" or not root.is_dir():
            raise UserError(f"{where}: there is no such folder")
        lists = [path for path in root.iterdir() if _is_label_file(path)]
        top = _entries(root, where, folders=True, beside=lists)
        if any(_is_split(folder) for folder in top):
            classes, splits = _published_splits(top, where)
            how = "its own splits"
        else:
            files = _classes(root, where)
            classes, (splits, how) = tuple(files), _random_splits(files, split_seed)
        paths = [path for files in splits.values() for found in files.values() for path in found]
        listing = [[_text(path.relative_to(root)), path.stat().st_size] for path in paths]
        listing += [[_text(path.name), hashlib.sha256(path.read_bytes()).hexdigest()] for path in lists]
    except (OSError, RuntimeError) as error:  # the latter for a home folder that is unknown
        raise UserError(f"{where} cannot be read: {error}") from error
    listing.sort(key=lambda entry: entry[0].split("/"))
    digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
    labels = {name: label for label, name in enumerate(classes)}
    examples: dict[str, Examples] = {
        split: Listed([Example(path, labels[name], str(path)) for name in files for path in files[name]])
        for split, files in splits.items()
    }
    description = f"{len(listing)} files of folder {_text(root.name)} (sha256 {digest} of their names and sizes), {how}"
    return Source(dataset, classes, description, examples)


def _text(path: str | Path) -> str:
    """A path as UTF-8, whatever the locale. Bytes that are not UTF-8 become lone surrogates."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def _entries(
    folder: Path, where: str, *, folders: bool, expected: str = "a folder for each class", beside: Sequence[Path] = ()
) -> list[Path]:
    """The folders, or the files, in a folder, sorted by name, less `beside`. Raises UserError for one of another kind."""
    with os.scandir(folder) as found:
        shown = (entry for entry in found if not entry.name.startswith(".") and Path(entry.path) not in beside)
        entries = sorted(shown, key=lambda entry: _text(entry.name))
    for entry in entries:
        if entry.is_dir() != folders:
            raise UserError(f"{where}: {entry.path} is out of place: expected {expected}")
        if not folders and not entry.is_file():
            raise UserError(f"{where}: {entry.path} is no regular file, nor a link to one: remove it")
    return [Path(entry.path) for entry in entries]


def _files(folder: Path, where: str) -> list[Path]:
    return _entries(folder, where, folders=False, expected="only the images of a class")


def _is_label_file(path: Path) -> bool:
    """Whether it has the classes of a flat folder beside it. The train split has a folder for each class."""
    split = path.name.removesuffix("_labels.txt")
    flat = SPLIT_NAMES.get(split.lower(), "train") != "train" and path.with_name(split).is_dir()
    return flat and path == label_file(path.with_name(split))


def _is_split(folder: Path) -> bool:
    """Whether a folder has the name of a split. In upper case it may be a class too: then it holds images, not folders."""
    if folder.name in SPLIT_NAMES:
        return True
    return folder.name.lower() in SPLIT_NAMES and (
        label_file(folder).exists() or any(entry.is_dir() for entry in folder.iterdir())
    )


def _classes(folder: Path, where: str, expected: str = "a folder for each class") -> dict[str, list[Path]]:
    """The files of each class, both sorted by name."""
    files = {_text(path.name): _files(path, where) for path in _entries(folder, where, folders=True, expected=expected)}
    if not files:
        raise UserError(f"{where}: {folder} is empty: it should have a folder for each class")
    for name, found in files.items():
        if not found:
            raise UserError(f"{where}: class {folder / name} is empty: add images to it or remove it")
    common_classes({"train": files}, where)  # checks their names
    return files


def _published_splits(top: Sequence[Path], where: str) -> tuple[tuple[str, ...], Mapping[str, _ByClass]]:
    """The classes, which are those of the train split, and the files of each split."""
    folders: dict[str, Path] = {}
    for folder in top:
        if not _is_split(folder):
            names = ", ".join(SPLIT_NAMES)
            raise UserError(f"{where}: {folder} is out of place beside the splits: a split is called {names}")
        if folders.setdefault(split := SPLIT_NAMES[folder.name.lower()], folder) != folder:
            raise UserError(f"{where}: {folder} is a second {split} split: keep one of them")
    if "train" not in folders:
        raise UserError(f"{where} has no folder `train` beside {', '.join(folder.name for folder in top)}")
    train = _classes(folders["train"], where)
    splits = {
        split: train if split == "train" else _held_out_classes(folder, tuple(train), where)
        for split, folder in folders.items()
    }
    return common_classes(splits, where), splits


def _held_out_classes(folder: Path, classes: Sequence[str], where: str) -> _ByClass:
    """The files of validation or test by class, from class folders or by a label file."""
    labels = label_file(folder)
    if not labels.exists():
        return _classes(folder, where, f"a folder for each class, or {labels.name} beside {folder.name}")
    images = _entries(folder, where, folders=False, expected=f"only the images that {labels.name} lists")
    return by_class(folder, {_text(path.name): path for path in images}, classes, where)


def _random_splits(files: _ByClass, seed: int) -> tuple[Mapping[str, _ByClass], str]:
    """The splits with their files, and the split in words."""
    everything = [(name, path) for name, paths in files.items() for path in paths]
    labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files.values()])
    rows, how = random_splits(labels, seed)
    splits: dict[str, dict[str, list[Path]]] = {split: {} for split in rows}
    for split, numbers in rows.items():
        for name, path in (everything[number] for number in numbers.tolist()):
            splits[split].setdefault(name, []).append(path)
    return splits, how
