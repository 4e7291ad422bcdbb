"""An ordered map over all cores, and an iterator that runs ahead in a thread. Both hold few items at a time."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
    """`function` of every item, in order, computed by one thread per core.

    The caller's thread takes the items. It holds at most two per thread and one more, so memory does not grow with their
    number. An error is raised in place of its result. Close the generator to stop early.
    """
    threads = os.cpu_count() or 1
    pool, pending = ThreadPoolExecutor(threads, thread_name_prefix="ordered_map"), deque[Future[Result]]()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def run_ahead(items: Iterator[Item], ahead: int = 2) -> Generator[Item, None, None]:
    """The items of an iterator, computed by a thread. Up to `ahead` of them wait while it computes another.

    An error in the thread is raised here, after the items before it. Close the generator to stop the thread.
    """
    pool, end = ThreadPoolExecutor(1, thread_name_prefix="run_ahead"), object()
    try:
        pending = deque[Future[Any]](pool.submit(next, items, end) for _ in range(ahead + 1))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, items, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
