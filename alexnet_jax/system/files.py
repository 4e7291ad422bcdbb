"""Atomic writes, JSON files, and locks between processes."""

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
    """A file to write, 'w' or 'wb'. It replaces `path` if the block ends without an error."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open(mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


@contextlib.contextmanager
def exclusively(path: Path, *, wait: bool) -> Iterator[IO[str] | None]:
    """Locks a file, which is made if missing. Yields it open, or None if another block in any process has the lock.

    With `wait` the block starts when the lock is free. The kernel frees the lock of a dead process. The package `filelock`
    would be no shorter, and one more dependency.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        yield file


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Replaces a JSON file."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError with its name if it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
