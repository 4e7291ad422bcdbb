"""The map over threads and the iterator that runs ahead: their order, how far ahead they are, and how they end."""

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest

from alexnet_jax.data import parallel
from alexnet_jax.data.parallel import ordered_map, run_ahead


def noting(items, taken):
    """The items; which were asked for is noted."""
    for item in items:
        taken.append(item)
        yield item


@pytest.fixture
def full(monkeypatch):
    """Of the queues made from now on: the items that found one full."""
    waiting: Queue[object] = Queue()

    class Watched(Queue):
        def put(self, item):
            if self.full():
                waiting.put(item)
            super().put(item)

    monkeypatch.setattr(parallel, "Queue", Watched)
    return waiting


@pytest.mark.parametrize(("arguments", "ahead"), [((), 2), ((1,), 1), ((3,), 3)])
def test_what_runs_ahead_takes_as_many_items_as_may_wait_and_one_in_hand(full, arguments, ahead):
    """The thread is seen where it waits, so nothing depends on how fast it is."""
    taken, begin = [], threading.Event()

    def items():
        for item in range(20):
            taken.append(item)
            yield item
            assert begin.wait(30)

    results = run_ahead(items(), *arguments)
    assert next(results) == 0
    assert taken == [0]
    begin.set()
    assert full.get(timeout=10) == ahead + 1
    assert taken == list(range(ahead + 2))  # one given out, `ahead` waiting, one in hand
    assert next(results) == 1
    assert full.get(timeout=10) == ahead + 2
    assert taken == list(range(ahead + 3))
    assert list(results) == list(range(2, 20))


def test_closing_what_runs_ahead_ends_its_thread_after_the_item_in_hand():
    before, taken = set(threading.enumerate()), []
    results = run_ahead(noting(range(100_000), taken), 2)
    assert next(results) == 0
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["run_ahead"]
    results.close()
    assert not set(threading.enumerate()) - before
    assert taken == list(range(len(taken)))
    assert len(taken) <= 1 + 2 + 2  # the last one where the thread had just looked whether to stop


def test_an_error_of_what_runs_ahead_comes_after_the_items_before_it():
    results = run_ahead(10 // item for item in (5, 2, 0, 1))
    assert next(results) == 2
    assert next(results) == 5
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize(("cores", "threads"), [(3, 3), (1, 1), (None, 1)])
def test_a_map_over_threads_keeps_the_order_and_takes_only_a_few_items(monkeypatch, cores, threads):
    """Two for each thread wait, and one is in hand."""
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    taken = []
    squares = ordered_map(lambda item: item**2, noting(range(500), taken))
    assert taken == []
    for item in range(20):
        assert next(squares) == item**2
        assert len(taken) == item + 2 * threads + 1
    assert list(squares) == [item**2 for item in range(20, 500)]


@pytest.mark.parametrize(("cores", "threads"), [(3, 3), (1, 1), (None, 1)])
def test_a_map_has_a_thread_for_every_core(monkeypatch, cores, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    together = threading.Barrier(threads)

    def meet(item):
        together.wait(timeout=30)  # until as many are in this function
        return item, threading.current_thread().name

    met = list(ordered_map(meet, range(4 * threads)))
    assert [item for item, _ in met] == list(range(4 * threads))
    assert len({name for _, name in met}) == threads


def test_an_error_of_a_map_is_raised_where_its_result_is_due():
    results = ordered_map(lambda item: 10 // item, [5, 2, 0, 1])
    assert next(results) == 2
    assert next(results) == 5
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_a_map_drops_what_was_not_begun_and_ends_its_threads(monkeypatch):
    """One thread, which is held in item 1 until item 2 is seen to be dropped."""
    taken, done, futures = [], [], []
    begun, release = threading.Event(), threading.Event()

    class Watched(ThreadPoolExecutor):
        def submit(self, *arguments):
            futures.append(super().submit(*arguments))
            return futures[-1]

    def hold(item):
        if item:
            begun.set()
            assert release.wait(30)
        done.append(item)
        return item

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Watched)
    before = set(threading.enumerate())
    results = ordered_map(hold, noting(itertools.count(), taken))
    assert next(results) == 0
    assert begun.wait(10)
    closing = threading.Thread(target=results.close)
    closing.start()
    deadline = time.monotonic() + 10
    while not futures[2].cancelled() and time.monotonic() < deadline:
        time.sleep(0.001)
    dropped = futures[2].cancelled()
    release.set()
    closing.join(timeout=30)
    assert dropped
    assert not set(threading.enumerate()) - before
    assert (taken, done) == ([0, 1, 2], [0, 1])
