"""The map over threads and the iterator that runs ahead: their order, how far ahead they run, and how they end."""

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from alexnet_jax.data import parallel
from alexnet_jax.data.parallel import ordered_map, run_ahead


def noting(items, taken):
    """The items. Each one is noted in `taken` when it is asked for."""
    for item in items:
        taken.append(item)
        yield item


@pytest.fixture
def futures(monkeypatch):
    """What is submitted to all pools made from now on."""
    submitted = []

    class Watched(ThreadPoolExecutor):
        def submit(self, *arguments):
            submitted.append(super().submit(*arguments))
            return submitted[-1]

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Watched)
    return submitted


@pytest.mark.parametrize(("arguments", "ahead"), [((), 2), ((1,), 1), ((3,), 3)])
def test_running_ahead_takes_as_many_items_as_may_wait_and_one_in_hand(futures, arguments, ahead):
    """The test waits for the thread to do all it was given, so nothing depends on its speed."""
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
    assert futures[-1].result(timeout=10) == ahead + 1
    assert taken == list(range(ahead + 2))  # one given out, `ahead` waiting, one in hand
    assert next(results) == 1
    assert futures[-1].result(timeout=10) == ahead + 2
    assert taken == list(range(ahead + 3))
    assert list(results) == list(range(2, 20))


def test_closing_the_iterator_that_runs_ahead_ends_its_thread_after_the_item_in_hand():
    before, taken = set(threading.enumerate()), []
    results = run_ahead(noting(range(100_000), taken), 2)
    assert next(results) == 0
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["run_ahead_0"]
    results.close()
    assert not set(threading.enumerate()) - before
    assert taken == list(range(len(taken)))
    assert len(taken) <= 1 + 2 + 2  # one more if the thread has just checked whether to stop


def test_an_error_while_running_ahead_comes_after_the_items_before_it():
    results = run_ahead(10 // item for item in (5, 2, 0, 1))
    assert next(results) == 2
    assert next(results) == 5
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize(("cores", "threads"), [(3, 3), (1, 1), (None, 1)])
def test_a_map_over_threads_keeps_the_order_and_takes_only_a_few_items(monkeypatch, cores, threads):
    """Two for each thread, and one more."""
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
        together.wait(timeout=30)  # until this many threads are here
        return item, threading.current_thread().name

    met = list(ordered_map(meet, range(4 * threads)))
    assert [item for item, _ in met] == list(range(4 * threads))
    assert len({name for _, name in met}) == threads


def test_an_error_of_a_map_is_raised_in_place_of_its_result():
    results = ordered_map(lambda item: 10 // item, [5, 2, 0, 1])
    assert next(results) == 2
    assert next(results) == 5
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_a_map_drops_items_that_were_not_begun_and_ends_its_threads(monkeypatch, futures):
    """The one thread waits in item 1 until item 2 is dropped."""
    taken, done = [], []
    begun, release = threading.Event(), threading.Event()

    def hold(item):
        if item:
            begun.set()
            assert release.wait(30)
        done.append(item)
        return item

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
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
