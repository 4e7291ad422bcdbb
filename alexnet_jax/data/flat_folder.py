"""A split whose images lie in one folder, with their classes in a text file: ImageNet's validation images as published."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import check_input


def label_file(folder: Path) -> Path:
    """Where the classes of a flat folder are: `val_labels.txt` beside `val`."""
    return folder.with_name(f"{folder.name}_labels.txt")


def by_class(folder: Path, files: Mapping[str, Path], classes: Sequence[str], where: str) -> dict[str, list[Path]]:
    """The files of a flat folder by class, in the order of the classes and, within a class, of the files.

    Each line of the label file is `FILE CLASS`, or each is a CLASS, for the files sorted by name. Beside a file's name the
    class may be its number: 0 is the first class by name.

    Args:
        files: the images of the folder by name, sorted.
        classes: those of the train split, sorted.
        where: what names the set, as it was typed.

    Raises:
        UserError: the label file cannot be read, or does not give each image one of the classes.
    """
    path = label_file(folder)
    lines = _lines(path, where)
    words = [line.partition(" ") for line in lines]
    if lines and words[0][0] in files:
        numbers = {str(number): name for number, name in enumerate(classes)}
        given = _by_name(path, files, [(name, label.strip()) for name, _, label in words], where)
    else:
        numbers = {}
        if len(lines) != len(files):
            needed = f"a line for each of the {len(files):,} images of {folder}"
            raise UserError(f"{where}: {path} must have {needed}, and has {len(lines):,}")
        given = dict(zip(files, lines, strict=True))
    known = set(classes)
    found: dict[str, list[Path]] = {name: [] for name in classes}
    for file_name, file in files.items():
        label = given[file_name]
        name = label if label in known else numbers.get(label)
        if name is None:
            raise UserError(f"{where}: {path} gives {file_name} the class {label!r}: {_wanted(label)}")
        found[name].append(file)
    return {name: of_class for name, of_class in found.items() if of_class}


def _lines(path: Path, where: str) -> list[str]:
    """The lines that are not blank, with single spaces and none at the ends."""
    check_input(f"{where}: {path}", path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: {path} cannot be read: {error}") from error
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def _by_name(path: Path, files: Mapping[str, Path], entries: Sequence[tuple[str, str]], where: str) -> dict[str, str]:
    """The label of each file. Raises UserError for a file that is missing, or in two lines or none."""
    given: dict[str, str] = {}
    for name, label in entries:
        if name not in files:
            raise UserError(f"{where}: {path} names {name!r}, which is not in the folder: remove the line, or add the image")
        if name in given:
            raise UserError(f"{where}: {path} names {name!r} twice: keep one line")
        given[name] = label
    if missing := [name for name in files if name not in given]:
        raise UserError(f"{where}: {path} has no line for {missing[0]!r}: add one, or remove the image")
    return given


def _wanted(label: str) -> str:
    if label.isdecimal():
        return "beside a file's name it may be the number of a class folder of `train`, from 0; alone it has to be the name"
    return "there is no such class folder in `train`"
