"""`--dataset=folder:PATH`: a folder of image files for each class, with or without a folder for each split above."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from alexnet_jax.data.example import Example, Examples, Listed, Source
from alexnet_jax.system.errors import UserError

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
# A random split takes one tenth for test, and one tenth for validation.
_HELD_OUT = 10

_Files = Mapping[str, list[Path]]  # class: its files


def open_folder(dataset: str, split_seed: int) -> Source:
    """Opens PATH/split/class/file, with splits called train, validation (or valid, val) and test, or PATH/class/file.

    Upper case does as well for the splits. Without splits every class is split at random: a tenth for test, a tenth for
    validation, the rest for training; where no class has ten images, a tenth of all of them. The split depends on the files
    and the seed alone, not on the machine or its locale. Hidden files are left out. Every other file must be an image.
    Links are followed.

    Args:
        dataset: 'folder:PATH'.
        split_seed: seed of the random split.

    Raises:
        UserError: there is no such folder, no train split, an empty class, a file or folder out of place, a file that is
            no regular one, a class name that is not UTF-8, or two that differ only in case or encoding.
    """
    where = f"--dataset={dataset}"
    try:
        root = Path(dataset.removeprefix("folder:")).expanduser()
        if dataset == "folder:" or not root.is_dir():
            raise UserError(f"{where}: there is no such folder")
        top = _entries(root, where, folders=True)
        if any(_is_split(folder) for folder in top):
            published = _published_splits(top, where)
            classes, splits = _common_classes(published, where), published
            how = "its own splits"
        else:
            files = _classes(root, where)
            classes, splits = tuple(files), _random_splits(files, split_seed)
            share = "of all images" if "test" in splits and _only_small_classes(files) else "of every class"
            how = f"split at random, seed {split_seed}, a tenth each {share} for test and validation"
        paths = [path for files in splits.values() for found in files.values() for path in found]
        listing = [[_text(path.relative_to(root)), path.stat().st_size] for path in paths]
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


def _entries(folder: Path, where: str, *, folders: bool) -> list[Path]:
    """The folders, or the files, in a folder, sorted by name. Raises UserError for an entry of another kind."""
    with os.scandir(folder) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: _text(entry.name))
    for entry in entries:
        if entry.is_dir() != folders:
            wanted = "a folder for each class" if folders else "only the images of a class"
            raise UserError(f"{where}: {entry.path} is out of place: expected {wanted}")
        if not folders and not entry.is_file():
            raise UserError(f"{where}: {entry.path} is no regular file, nor a link to one: remove it")
    return [Path(entry.path) for entry in entries]


def _is_split(folder: Path) -> bool:
    """Whether a folder has the name of a split. In upper case it may be a class too: then it holds images, not folders."""
    if folder.name in _SPLITS:
        return True
    return folder.name.lower() in _SPLITS and any(entry.is_dir() for entry in folder.iterdir())


def _classes(folder: Path, where: str) -> dict[str, list[Path]]:
    """The files of each class, both sorted by name."""
    files = {_text(path.name): _entries(path, where, folders=False) for path in _entries(folder, where, folders=True)}
    if not files:
        raise UserError(f"{where}: {folder} is empty: it should have a folder for each class")
    for name, found in files.items():
        if not found:
            raise UserError(f"{where}: class {folder / name} is empty: add images to it or remove it")
    _check_names(list(files), where)
    return files


def _check_names(names: list[str], where: str) -> None:
    folded: dict[str, str] = {}
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"{where}: the name of class {name!r} is not in UTF-8: rename it")
        other = folded.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            raise UserError(f"{where}: classes {other!r} and {name!r} differ only in case or encoding: rename or merge them")


def _published_splits(top: Sequence[Path], where: str) -> dict[str, _Files]:
    splits: dict[str, _Files] = {}
    for folder in top:
        if not _is_split(folder):
            raise UserError(f"{where}: {folder} is out of place beside the splits: a split is called {', '.join(_SPLITS)}")
        if (split := _SPLITS[folder.name.lower()]) in splits:
            raise UserError(f"{where}: {folder} is a second {split} split: keep one of them")
        splits[split] = _classes(folder, where)
    if "train" not in splits:
        raise UserError(f"{where} has no folder `train` beside {', '.join(folder.name for folder in top)}")
    return splits


def _common_classes(splits: Mapping[str, _Files], where: str) -> tuple[str, ...]:
    """The classes of the train split. Raises UserError if another split has more."""
    classes = tuple(splits["train"])
    for split, files in splits.items():
        _check_names([*classes, *files], where)
        if unknown := [name for name in files if name not in classes]:
            raise UserError(f"{where}: class {unknown[0]!r} of split {split} has no training images")
    return classes


def _only_small_classes(files: _Files) -> bool:
    return all(len(paths) < _HELD_OUT for paths in files.values())


def _held_out(files: _Files, seed: int) -> list[list[int]]:
    """How many images each class gives to test, and to validation: a tenth, rounded down.

    Where no class has ten images, a tenth of all of them is held out: one from a class, from the largest classes first, and
    from none its last image.
    """
    sizes = np.array([len(paths) for paths in files.values()])
    if not _only_small_classes(files):
        return [(sizes // _HELD_OUT).tolist()] * 2
    lots = np.random.Philox(key=np.array([seed, len(sizes)], np.uint64)).random_raw(len(sizes))
    given = np.zeros((2, len(sizes)), int)
    for split in given:
        left = sizes - given.sum(axis=0)
        largest = np.lexsort((lots, -left))[: sizes.sum() // _HELD_OUT]
        split[largest] = left[largest] > 1
    return given.tolist()


def _random_splits(files: _Files, seed: int) -> dict[str, _Files]:
    """Of each class as many images as `_held_out` says for test and for validation, and the rest for train."""
    splits: dict[str, dict[str, list[Path]]] = {"train": {}, "validation": {}, "test": {}}
    tests, validations = _held_out(files, seed)
    for label, (name, paths) in enumerate(files.items()):
        # Raw Philox words: NumPy guarantees their stream from version to version.
        words = np.random.Philox(key=np.array([seed, label], np.uint64)).random_raw(len(paths))
        parts = np.split(np.argsort(words, kind="stable"), np.cumsum([tests[label], validations[label]]))
        for split, places in zip(("test", "validation", "train"), parts, strict=True):
            splits[split][name] = [paths[place] for place in sorted(places.tolist())]
    return {split: of_classes for split, of_classes in splits.items() if any(of_classes.values())}
