"""`--dataset=tar:GLOB`: tar files in the layout of WebDataset, in which `key.jpg` and `key.cls` are one example."""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from alexnet_jax.data.example import SPLIT_NAMES, Source
from alexnet_jax.data.shards import find_shards, open_shards
from alexnet_jax.system.errors import UserError

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
_LABELS = ("cls", "json")  # of a member that has both, the first one counts
_LISTS = ("classes.txt", "classnames.txt")
_END = bytes(2 * tarfile.BLOCKSIZE)  # closes every tar file
# WebDataset's own rule: the key ends at the first dot of the file's name. Hidden files have none.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)


class _Member(NamedTuple):
    """A file within the tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class _Tar:
    """One tar file. Its index holds the place of every image, so that reading can begin anywhere."""

    path: Path
    where: str
    members: Sequence[_Member]  # the images
    labels: Sequence[int | str]

    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.members, self.labels]).encode()).hexdigest()

    def name(self, row: int) -> str:
        return f"{self.members[row].name} of {self.path}"

    def images(self, start: int) -> Iterator[bytes]:
        """The image files from row `start` on, front to back. Raises UserError if the tar cannot be read."""
        try:
            with self.path.open("rb") as file:
                for member in self.members[start:]:
                    yield _content(file, member)
        except OSError as error:
            raise UserError(f"{self.where}: {self.path} cannot be read: {error}") from error


def open_tar(dataset: str, split_seed: int) -> Source:
    """Opens tar files whose members `key.jpg` (or jpeg, png, ...) have a `key.cls` or a `key.json` with `label` beside them.

    A label is a number, or the name of a class. Names of classes are the lines of a `classes.txt` or `classnames.txt` beside
    the tars, or beside their folder if it is called after a split. Other members are left out. See `shards` for splits.

    Args:
        dataset: 'tar:GLOB'.
        split_seed: of the random split where no file names a split.

    Raises:
        UserError: no file matches; one is no tar, ends early, has a member twice, an image without label or the reverse;
            there are two lists of classes; or what `open_shards` raises.
    """
    where = f"--dataset={dataset}"
    paths = find_shards(dataset)
    names = _class_names(paths, where)
    return open_shards(dataset, [_index(path, where) for path in paths], names, split_seed)


def _index(path: Path, where: str) -> _Tar:
    """Reads the headers of a tar and its labels."""
    try:
        with path.open("rb") as file:
            images: list[_Member] = []
            labels: list[int | str] = []
            for key, fields in _examples(file, path, where).items():
                image = _image(key, fields, path, where)
                images.append(image)
                labels.append(_label(file, image, fields, path, where))
    except (tarfile.TarError, OSError, ValueError) as error:
        what = "is no tar file, or a compressed or damaged one, or was cut short"
        raise UserError(f"{where}: {path} {what}: {' '.join(str(error).split())}") from error
    return _Tar(path, where, images, labels)


def _examples(file: BinaryIO, path: Path, where: str) -> dict[str, dict[str, _Member]]:
    """The members of each key by their ending, in the order of the tar."""
    found: dict[str, dict[str, _Member]] = {}
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # it would keep every header
            match = _MEMBER.fullmatch(info.name)
            if info.isdir() or not match:
                continue
            key, ending = match[1], match[2].lower()
            if ending not in (*_IMAGES, *_LABELS):
                continue
            if not info.isreg() or info.issparse():
                raise UserError(f"{where}: {info.name} of {path} is no regular file: pack its content")
            if ending in found.setdefault(key, {}):
                raise UserError(f"{where}: {path} has {info.name} twice: keep one of them")
            found[key][ending] = _Member(info.name, info.offset_data, info.size)
        # A damaged header ends the loop as the end does.
        file.seek(tar.offset)
        if file.read(len(_END)) != _END:
            raise tarfile.ReadError(f"no end of the archive at byte {tar.offset:,}")
    return found


def _image(key: str, fields: Mapping[str, _Member], path: Path, where: str) -> _Member:
    images = [fields[ending] for ending in fields if ending in _IMAGES]
    labels = [fields[ending] for ending in _LABELS if ending in fields]
    if not images:
        raise UserError(f"{where}: {labels[0].name} of {path} has no image {key}.jpg: add it, or remove the label")
    if len(images) > 1:
        raise UserError(f"{where}: {path} has two images of one key, {images[0].name} and {images[1].name}: keep one")
    if not labels:
        raise UserError(
            f"{where}: {images[0].name} of {path} has no label {key}.cls or {key}.json: add it, or remove the image"
        )
    return images[0]


def _label(file: BinaryIO, image: _Member, fields: Mapping[str, _Member], path: Path, where: str) -> int | str:
    """What the member's .cls says, or the `label` in its .json."""
    member = next(fields[ending] for ending in _LABELS if ending in fields)
    try:
        text = _content(file, member).decode("utf-8")
        if member is fields.get("cls"):
            label = text.strip()
            label = int(label) if re.fullmatch("-?[0-9]+", label) else label
        else:
            label = json.loads(text)["label"]
        if type(label) not in (int, str) or label == "":
            raise TypeError(f"{label!r} is no number or name")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"has no label for {image.name}" if isinstance(error, KeyError) else f"holds no label ({error})"
        raise UserError(f"{where}: {member.name} of {path} {what}: it must be a number or the name of a class") from error
    return label


def _content(file: BinaryIO, member: _Member) -> bytes:
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise OSError(f"{member.name} ends early")
    return content


def _class_names(paths: Sequence[Path], where: str) -> tuple[str, ...] | None:
    """The lines of the list of classes beside the tars. Raises UserError if there are two lists that differ."""
    folders = {path.parent for path in paths}
    folders |= {folder.parent for folder in folders if folder.name.lower() in SPLIT_NAMES}
    found: dict[tuple[str, ...], Path] = {}
    for path in sorted(folder / name for folder in folders for name in _LISTS):
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{where}: {path} cannot be read: {error}") from error
            found.setdefault(tuple(line.strip() for line in lines if line.strip()), path)
    if len(found) > 1:
        one, other = list(found.values())[:2]
        raise UserError(f"{where}: {one} and {other} list other classes: keep one of them")
    return next(iter(found), None) or None
