"""Atomic writes, JSON files, and locks between processes."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from alexnet_jax.system.errors import UserError

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


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

    With `wait` the block starts when the lock is free. The kernel frees the lock of a dead process. A file system without
    locks, such as some network ones, does without; a line on stderr says so. The package `filelock` would be no shorter.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            _say_without_locks(path.parent, os.strerror(error.errno))
        yield file


@functools.cache  # once for each folder
def _say_without_locks(folder: Path, why: str) -> None:
    print(f"note: {folder} is on a file system without locks ({why}): let no second process write there", file=sys.stderr)


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
