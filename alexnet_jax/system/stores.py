"""Folders in an object store, at s3:// or gs://: their names, their objects, and their copies on this machine.

Nothing computes on a store. A folder there has a copy here, in `$XDG_CACHE_HOME/alexnet_jax/stores` (by default under
~/.cache), and files go to and fro whole. A memory map needs a file, and records are appended to.
"""

import contextlib
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from alexnet_jax.system.errors import UserError

# What to look at where a store refuses.
SETTINGS = {
    "s3": "check the keys, AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the address, AWS_ENDPOINT_URL",
    "gs": "check the keys, GOOGLE_APPLICATION_CREDENTIALS or gcloud auth application-default login",
}
# Without them botocore waits for minutes before it says that nobody answers.
OPTIONS = {"s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}}}, "gs": {}}
BLOCK = 1 << 24  # bytes that are read at once
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # of one letter are the drives of Windows


def is_remote(name: str | os.PathLike[str]) -> bool:
    """Whether a name has the form SCHEME:/..., also after `Path` has made one slash of two."""
    return bool(_URL.match(os.fspath(name)))


def copy_folder(url: str, kind: str) -> Path:
    """Where the copy of a folder in a store lies on this machine. `kind`: what it is for: 'sets', 'runs' or 'read'.

    Raises:
        UserError: it is in a store of another kind, or its name is no folder's.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home.joinpath("alexnet_jax", "stores", kind, *_parts(url))


def _parts(url: str) -> list[str]:
    """Scheme, bucket, and the words of the path. Raises UserError as `copy_folder`."""
    scheme, _, path = url.partition("://")
    words = path.removesuffix("/").split("/")
    if scheme not in SETTINGS or not all(word.strip(".") for word in words):
        raise UserError(
            f"{url} is no folder that can be used: write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, or a local path"
        )
    return [scheme, *words]


def refuse_remote(flag: str, name: str | os.PathLike[str]) -> None:
    """Raises UserError, naming the flag as it was typed, if what has to be on this machine is in a store."""
    if is_remote(name):
        raise UserError(f"{flag} is in an object store, and this has to be on this machine: name a local path")


class Entry(NamedTuple):
    """An object in a listing."""

    size: int
    modified: datetime


@dataclass(frozen=True)
class RemoteFolder:
    """The objects of a folder in a store, by their names below it. Make it with `at`.

    Every method raises UserError if the store refuses or does not answer.
    """

    url: str
    root: str  # the same without the scheme
    files: Any  # fsspec's file system

    @staticmethod
    def at(url: str) -> "RemoteFolder":
        """The folder of a name. Raises UserError as `copy_folder`, and ImportError if s3fs or gcsfs is missing."""
        import fsspec  # here, because most runs need no store

        scheme, *words = _parts(url)
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it says in a hundred lines, we say in one
        files = fsspec.filesystem(scheme, use_listings_cache=False, **OPTIONS[scheme])
        return RemoteFolder(f"{scheme}://{'/'.join(words)}", "/".join(words), files)

    def below(self, name: str) -> "RemoteFolder":
        """A folder in it."""
        return RemoteFolder(f"{self.url}/{name}", self._path(name), self.files)

    def list(self) -> dict[str, Entry]:
        """All objects below it."""
        with self._asked():
            found = self.files.find(self.root, detail=True)
            names = {path.removeprefix(self.root).lstrip("/"): facts for path, facts in found.items()}
            return {name: Entry(facts["size"], _modified(facts)) for name, facts in names.items() if name}

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes | None:
        """An object, or its bytes from `start` to before `end`; None if it is not there."""
        with self._asked():
            try:
                return self.files.cat_file(self._path(name), start=start, end=end)
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Makes or replaces an object."""
        with self._asked():
            self.files.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Makes an object, and says whether it did. Of several that try, the store lets one."""
        with self._asked():
            try:
                self.files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            return True

    def upload(self, path: Path, name: str) -> None:
        """Makes or replaces an object with the content of a file. Raises FileNotFoundError if there is no file."""
        if path.stat().st_size <= BLOCK:
            self.write(name, path.read_bytes())
            return
        try:
            with self._asked():
                self.files.put_file(str(path), self._path(name))
        except UserError:
            path.stat()  # whether it has been deleted meanwhile
            raise

    def download(self, name: str, path: Path, size: int, told: Callable[[int], object], *, resume: bool = False) -> None:
        """Replaces a file with an object of `size` bytes. It is written as PATH.part first.

        Args:
            name: of the object.
            path: of the file; its folder is made.
            size: of the object, from a listing.
            told: is given the bytes of every block.
            resume: keep what an earlier download has left in PATH.part.

        Raises:
            UserError: the object has another size.
            OSError: the disk is full, or read-only.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        with part.open("ab" if resume else "wb") as file:
            if file.tell() > size:
                file.truncate(0)
            told(file.tell())
            while (place := file.tell()) < size:
                block = self.read(name, place, min(place + BLOCK, size))
                if not block:
                    raise UserError(f"{self.url}/{name} has changed while it was read: run it again")
                file.write(block)
                told(len(block))
        part.replace(path)

    def delete(self, names: Collection[str]) -> None:
        """Deletes objects; it does not matter whether they are there."""
        with self._asked():
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self.files.rm_file(self._path(name))

    def now(self) -> datetime:
        """The time on the store's clock: when an object that is made now was made."""
        name = f"clock-{secrets.token_hex(4)}"
        self.write(name, b"now")
        with self._asked():
            now = self.files.modified(self._path(name))
        self.delete([name])
        return now

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """Turns whatever the libraries of a store raise, which share no class, into one line."""
        try:
            yield
        except Exception as error:
            scheme, bucket, *_ = _parts(self.url)
            why = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
            missing = isinstance(error, FileNotFoundError)
            what = f"make the bucket {bucket} first" if missing else SETTINGS[scheme]
            raise UserError(f"{self.url} cannot be used: {why}: {what}") from error


def _modified(facts: dict[str, Any]) -> datetime:
    """When an object was last written, by what s3fs or gcsfs says of it."""
    found = facts.get("LastModified") or facts.get("mtime") or facts["updated"]
    return datetime.fromisoformat(found) if isinstance(found, str) else found


@contextlib.contextmanager
def transfer(what: str, size: int) -> Iterator[Callable[[int], object]]:
    """Shows how much of `size` bytes is done, on a terminal as a bar. Yields what has to be told of every block."""
    if not sys.stderr.isatty():
        print(f"{what}, {size / 1e6:,.1f} MB", file=sys.stderr)
        yield lambda _: None
        return
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=size)
        yield lambda count: bar.advance(task, count)
