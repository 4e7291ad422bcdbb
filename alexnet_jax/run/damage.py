"""Why a checkpoint cannot be read or written: damage that is proven, a disk that fails for now, or a mistake of ours."""

import errno
import re
from collections.abc import Iterator
from pathlib import Path

_OF_TENSORSTORE = re.compile(r"os_error_code='(\d+)'")
_CONTENT = (ValueError, KeyError, EOFError, OSError)  # what Orbax and TensorStore raise on content that is wrong or missing
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_BLOCK = 1 << 24


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, down to the first."""
    while error is not None:
        yield error
        error = error.__cause__


def reason(error: BaseException) -> str:
    """One line: the first cause, which says more than what Orbax makes of it."""
    *_, first = causes(error)
    lines = str(first).strip().splitlines()
    return lines[0][:300] if lines else type(first).__name__


def error_number(error: BaseException) -> int | None:
    """The errno of the operating system behind an error; None if it is not about the disk."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.errno:
            return cause.errno
        if told := _OF_TENSORSTORE.search(str(cause)):
            return int(told[1])
    return None


def blames_content(error: BaseException) -> bool:
    """Whether an error may be due to content that is wrong or missing, not to the disk, the memory or a mistake of ours."""
    found = error_number(error)
    return any(isinstance(cause, _CONTENT) for cause in causes(error)) and (found is None or found in _MISSING)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or a device has no memory left."""
    return any(isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause) for cause in causes(error))


def read_all(folder: Path) -> None:
    """Reads every file below a folder to its end. Raises OSError where the disk fails."""
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            with path.open("rb", buffering=0) as file:
                while file.read(_BLOCK):
                    pass
