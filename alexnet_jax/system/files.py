"""Files that are there whole or not at all: written beside their target, brought to the disk, and renamed."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from alexnet_jax.system.errors import UserError


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write, 'w' or 'wb', that takes the place of `path` when the block ends without an error."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open(mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


@contextlib.contextmanager
def exclusively(path: Path, *, wait: bool) -> Iterator[bool]:
    """Yields whether this is the only block in any process that has `path`, a file made for that. The lock is the system's,
    so that of a killed process is gone with it. With `wait` it is always had in the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Replaces a JSON file."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError naming it if it is not readable or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
