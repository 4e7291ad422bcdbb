"""A process in which nothing ends any more is ended, with its stacks; one that is slow for a reason is left alone."""

import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from networks import ROOT, run, tiny_flags

import alexnet_jax.training
from alexnet_jax.data.splits import Subset
from alexnet_jax.evaluation import Evaluator
from alexnet_jax.system import watchdog as module
from alexnet_jax.system.signals import RESUME_STATUS
from alexnet_jax.system.watchdog import Watchdog, Work

TIMEOUT = 0.05
EVER, LONG = 10.0, 0.12  # seconds


def ended(do: Callable[[Watchdog], object], seconds: float, **arguments) -> list[int]:
    """The status that a watchdog ends with, at most so long after something is done; [] if it does not."""
    statuses: list[int] = []
    with Watchdog(TIMEOUT, exit=statuses.append, **arguments) as watchdog:
        do(watchdog)
        deadline = time.monotonic() + seconds
        while not statuses and time.monotonic() < deadline:
            time.sleep(0.005)
    return statuses


def begin(*work: Work) -> Callable[[Watchdog], None]:
    """What a run does: so many steps' work."""

    def do(watchdog: Watchdog) -> None:
        for step, one in enumerate(work, 1):
            watchdog.watch(one, step)

    return do


def test_a_step_that_does_not_end_is_named_with_every_stack(capfd):
    assert ended(begin("step", "step", "step"), EVER) == [RESUME_STATUS] == [75]
    *stacks, line = capfd.readouterr().err.splitlines()
    assert line == (
        "error: this process is stuck at step 3: step takes over 0.05 s (--step_timeout). Its stacks are above; rerun the "
        "same command to resume (exit status 75)"
    )
    assert any("in ended" in frame for frame in stacks)  # of the main thread, beside the watchdog's own
    assert any("in _end" in frame for frame in stacks)


def test_work_that_ends_in_time_is_left_alone(capfd):
    def read(watchdog):
        for step in range(1, 20):
            watchdog.watch("reading", step)
            time.sleep(0.01)

    assert ended(read, 0) == []  # longer than the timeout in all
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("work", ["start", "step", "validation", "statistics", "checkpoint"])
def test_what_compiles_restores_or_saves_takes_its_time_but_not_for_ever(monkeypatch, capfd, work):
    assert ended(begin(work), LONG) == []
    assert ended(begin(work, work), LONG) == []
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.06)
    assert ended(begin(work), EVER) == [75]
    assert f"is stuck at step 1: {work} takes" in capfd.readouterr().err


def test_the_first_batch_is_not_waited_for_as_long_as_a_compilation(capfd):
    assert ended(begin("reading"), EVER) == [75]
    assert "stuck at step 1: reading takes" in capfd.readouterr().err


def test_what_usually_takes_long_may_take_longer(monkeypatch):
    def read(watchdog):
        watchdog.watch("reading", 1)
        time.sleep(0.02)
        watchdog.watch("reading", 2)

    assert ended(read, LONG) == []
    monkeypatch.setattr(module, "TYPICAL", 1)
    assert ended(read, EVER) == [75]


def test_the_one_that_reads_ends_before_those_that_wait_for_it(monkeypatch, capfd):
    monkeypatch.setattr(module, "WAITING_SECONDS", 0.2)
    monkeypatch.setitem(module.SLOW_TIMES, "step", 0)
    processes = {"process": 1, "processes": 2}
    assert ended(begin("reading"), EVER, **processes) == [75]
    said = capfd.readouterr().err
    assert "error: process 1 of 2 is stuck at step 1: reading takes" in said
    assert "another process" not in said
    assert ended(begin("step"), LONG, **processes) == []
    assert ended(begin("step"), EVER, **processes) == [75]
    assert "step takes over 0.25 s; perhaps another process is the one at fault" in capfd.readouterr().err


def test_without_a_timeout_nothing_is_watched():
    before = threading.active_count()
    with Watchdog(0.0) as watchdog:
        watchdog.watch("reading", 1)
        assert threading.active_count() == before


def test_afterwards_there_is_neither_thread_nor_timer():
    before = threading.active_count()
    with Watchdog(TIMEOUT) as watchdog:
        watchdog.watch("reading", 1)
        time.sleep(0.05)
        assert threading.active_count() == before + 1
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert threading.active_count() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def watched(body: str, timeout: float) -> subprocess.Popen[str]:
    """A process under a watchdog that reads, and says so first."""
    script = f"""
import ctypes, time
from alexnet_jax.system.watchdog import Watchdog
with Watchdog({timeout}) as watchdog:
    watchdog.watch("reading", 3)
    print("reading", flush=True)
    {body}
"""
    command = [sys.executable, "-W", "error", "-c", script]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    return process


def test_a_process_that_is_stuck_ends_with_the_status_that_means_resume_me():
    process = watched("time.sleep(60)", TIMEOUT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "error: this process is stuck at step 3" in said.splitlines()[-1]


def test_native_code_that_holds_pythons_lock_is_ended_by_the_kernel():
    process = watched("ctypes.PyDLL(None).sleep(60)", TIMEOUT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGALRM
    assert "most recent call first" in said


@pytest.mark.slow
def test_the_time_in_which_a_process_was_stopped_does_not_count():
    process = watched("time.sleep(0.5)", 0.8)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(process.pid, signal.SIGCONT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


@pytest.mark.slow
def test_a_process_that_ctrl_z_stopped_for_longer_than_the_kernels_timer_goes_on():
    process = watched(
        """
    from alexnet_jax.system.signals import Interruption
    with Interruption(stop=watchdog.stop_process):
        print("ready", flush=True)
        for step in range(50):
            watchdog.watch("reading", step)
            time.sleep(0.02)
""",
        0.3,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGTSTP)
    time.sleep(4)
    assert Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T"
    os.kill(process.pid, signal.SIGCONT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


PLACES = {
    # what is called, with how many examples in the split, which of these calls never ends, and what is said
    "reading 1": (Subset, "read_into", 50, 1, r"step 1: reading"),
    "reading 5": (Subset, "read_into", 50, 17, r"step [45]: reading"),  # a batch is read in four parts
    "reading in validation": (Subset, "read_into", 21, 1, r"step 6: reading"),
    "validation": (Evaluator, "judge_batch", 0, 3, r"step 6: validation"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_training_that_is_stuck_ends_deaf_to_a_signal_and_the_same_command_resumes(
    data_dir, tmp_path, monkeypatch, capfd, place
):
    """The call that is stuck goes on when the process would have ended: here the process is that of the tests."""
    owner, name, size, which, said = PLACES[place]
    original, calls, over = getattr(owner, name), iter(range(1, 10**6)), threading.Event()
    statuses: list[int] = []

    def stuck(*arguments):
        if (not size or len(arguments[0]) == size) and next(calls) == which:
            if name == "judge_batch":
                os.kill(os.getpid(), signal.SIGTERM)
            over.wait(60)
        return original(*arguments)

    def end(status: int) -> None:
        statuses.append(status)
        over.set()

    flags = tiny_flags(data_dir, tmp_path / "run", steps=9, eval_every=6, mesh="1x1", step_timeout=1)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stuck)
        patch.setattr(alexnet_jax.training, "Watchdog", functools.partial(Watchdog, exit=end))
        done = run("train", *flags)
    assert statuses == [75], done.stderr
    assert re.search(f"error: this process is stuck at {said} takes over 1 s", capfd.readouterr().err)
    assert run("train", *flags).returncode == 0
