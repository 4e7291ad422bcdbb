"""Atomic writes, the files that flags name, JSON files and arrays, and locks between processes."""

import contextlib
import errno
import fcntl
import functools
import json
import os
import secrets
import stat
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.stores import refuse_remote

# What NumPy raises on a broken .npy file; it evaluates the header.
NPY_ERRORS = (OSError, ValueError, EOFError, TypeError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError)
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write, 'w' or 'wb'. It replaces `path` if the block ends without an error, and is gone if not.

    A symbolic link stays, and its target is replaced; a file that is replaced hands its permissions on. A process that is
    killed leaves `<path>.<random>.tmp`, which no other writer uses. Raises OSError if `path` is no regular file.
    """
    target = _target(path)
    beside = target.with_name(f"{target.name[:50]}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open(mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
        os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _target(path: Path) -> Path:
    """What is replaced: the end of all symbolic links. Raises OSError if it is there and no regular file."""
    target = Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        what = "it is a folder" if target.is_dir() else "it is not a regular file"
        raise OSError(errno.EEXIST, what, str(path))
    return target


def check_output(flag: str, path: Path, suffixes: Sequence[str] = ()) -> Path:
    """Call it before the work that ends in `path`. Nothing is made or changed.

    Args:
        flag: what names the file, as it was typed.
        path: the file to write.
        suffixes: of which the file has to have one; any if there are none.

    Raises:
        UserError: the file cannot be made or replaced there, or ends otherwise.
    """
    refuse_remote(flag, path)
    if suffixes and path.suffix not in suffixes:
        raise UserError(f"{flag} does not end in {' or '.join(suffixes)}")
    try:
        target = _target(path)
        if not target.parent.is_dir():
            raise UserError(f"{flag}: there is no folder {path.parent}")
        # The new file is made beside the old one, which it replaces.
        if not all(os.access(place, os.W_OK) for place in (target.parent, target) if place.exists()):
            raise PermissionError(errno.EACCES, "it is write-protected")
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    return path


@contextlib.contextmanager
def output_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """`replacing` for what a command writes for a person. Raises UserError naming the file if it cannot be written."""
    try:
        with replacing(path, mode) as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


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


def check_input(flag: str, path: Path) -> None:
    """Call it before a file is opened: a pipe or a device may take for ever. `flag`: what names the file, as it was typed.

    Raises:
        UserError: it is not there, or no regular file.
    """
    refuse_remote(flag, path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{flag} cannot be read: it is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")


def read_array(path: Path) -> np.ndarray:
    """The array in a `.npy` file. Raises UserError with its name if it cannot be read or holds something else."""
    check_input(str(path), path)
    try:
        return np.load(path, allow_pickle=False)
    except NPY_ERRORS as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises UserError with its name if it cannot be read or is not JSON."""
    check_input(str(path), path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
