"""An ordered map over all cores, and an iterator that runs ahead in a thread. Both hold few items at a time."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from typing import TypeVar

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
    """The items of an iterator, computed by a thread. Up to `ahead` of them wait.

    An error in the thread is raised here, after the items before it. Close the generator to stop the thread.
    """
    done = object()
    queue: Queue[object] = Queue(maxsize=ahead)
    stopped = threading.Event()

    def work() -> None:
        try:
            for item in items:
                queue.put(item)
                if stopped.is_set():
                    return
            queue.put(done)
        except Exception as error:
            queue.put(_Raised(error))

    thread = threading.Thread(target=work, daemon=True, name="run_ahead")
    thread.start()
    try:
        while (item := queue.get()) is not done:
            if isinstance(item, _Raised):
                raise item.error
            yield item  # pyright: ignore[reportReturnType]
    finally:
        stopped.set()
        while thread.is_alive():
            while not queue.empty():
                queue.get()
            thread.join(timeout=0.05)


class _Raised:
    """Carries an error through the queue."""

    def __init__(self, error: Exception) -> None:
        self.error = error
