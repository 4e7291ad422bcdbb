"""Several processes that work together: which of them speaks and writes, and what all of them have to agree on.

All processes have to call each function here, in the same order. A process that is alone waits for nobody.
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax.system.errors import FailedElsewhere, UserError

Made = TypeVar("Made")


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """All processes get through the block, or none. Inside it they may wait for each other only where none has failed yet.

    Raises:
        UserError: that of the block. If it fails in several processes, only the first of them raises its own.
        FailedElsewhere: the block fails in another process, which says why.
    """
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    statuses = _of_all(error.status if error else 0)
    failed = np.flatnonzero(statuses)
    if error and failed[0] == jax.process_index():
        raise error
    if len(failed):
        raise FailedElsewhere(int(statuses[failed[0]]))


def first_alone(make: Callable[[], Made]) -> Made:
    """What `make` gives, in the first process before the others: it may have to write what they read.

    Raises as `together`.
    """
    made = None
    for first in (True, False):
        with together():
            if is_first() == first:
                made = make()
    return made  # pyright: ignore[reportReturnType] made in one of the two rounds


def of_first(number: int) -> int:
    """The number that the first process gives: from 0 to 2**31 - 1."""
    return int(_of_all(number)[0])


def check_alike(content: bytes, what: str) -> None:
    """Raises UserError if the processes have different contents. `what`: such as 'the images'."""
    with together():
        sums = _of_all(zlib.crc32(content) >> 1)
        if (sums != sums[0]).any():
            raise UserError(f"{what} are not the same in all processes: give each of them the same flags and the same files")


def _of_all(number: int) -> np.ndarray:
    """The numbers that the processes give, in their order: from 0 to 2**31 - 1."""
    given = np.array(number, np.int32)
    return multihost_utils.process_allgather(given) if jax.process_count() > 1 else given[None]
