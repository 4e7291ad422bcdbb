"""Training into an object store: a run is written on this machine, and its files are sent while it trains.

A thread sends what has changed, whole files only. A kill costs the steps since the last checkpoint that was sent, or
nothing on the same machine: its copy is marked `unsent` until the store has all of it.
"""

import contextlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax

from alexnet_jax.run.mirror import (
    CHECKPOINTS,
    MARKER,
    REPLACED,
    beside,
    fetch_run,
    files_below,
    local_checkpoints,
    on_disk,
    read_marker,
    records_of,
)
from alexnet_jax.run.workdir import UNSAVED
from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.files import exclusively
from alexnet_jax.system.lease import LOCK, Lease
from alexnet_jax.system.stores import RemoteFolder, copy_folder, is_remote

LOOK_SECONDS = 30.0  # how often a trainer sends what has changed


@contextlib.contextmanager
def training_copy(workdir: str) -> Iterator[str]:
    """The folder to train in: `workdir` itself, or the copy of one in a store, which is sent until the block ends.

    Within the block this process alone writes to the run.

    Raises:
        InUse: another process has it, or has taken it over.
        UserError: the store refuses, or holds something else than a run; or this is one of several processes.
    """
    if not is_remote(workdir):
        yield workdir
        return
    if jax.process_count() > 1:
        raise UserError(
            f"--workdir={workdir} is in an object store, where only a single process can train: name a folder that all "
            "processes see"
        )
    folder = copy_folder(workdir, "runs")
    remote, unsent = RemoteFolder.at(workdir), beside(folder, "unsent")
    _check_is_run(remote)
    with contextlib.ExitStack() as stack:
        with on_disk(folder):
            if stack.enter_context(exclusively(beside(folder, "lock"), wait=False)) is None:
                raise InUse(f"--workdir={workdir} is in use by another process on this machine")
            mine = unsent.read_text() if unsent.exists() else ""
        lease = stack.enter_context(Lease(remote, mine, _stop_training))
        with on_disk(folder):
            has_run = (folder / "config.json").exists()
            if not (lease.continued and has_run):
                if mine and has_run:
                    _set_aside(folder, workdir)
                unsent.unlink(missing_ok=True)
                fetch_run(remote, folder, whole=True)
            unsent.write_text(lease.token)
        with _Sender(remote, folder, lease):
            yield str(folder)


def _check_is_run(remote: RemoteFolder) -> None:
    names = remote.list()
    if names and "config.json" not in names and not any(name.startswith(f"{LOCK}/") for name in names):
        raise UserError(
            f"--workdir={remote.url} holds something that is not a run, such as {min(names)}: choose a new folder"
        )


def _set_aside(folder: Path, workdir: str) -> None:
    """Keeps what this machine has not sent, where another one has written since."""
    places = (folder.with_name(f"{folder.name}.unsent-{number}") for number in itertools.count(1))
    place = folder.rename(next(path for path in places if not path.exists()))
    print(f"note: another process has trained {workdir}; what this machine had not sent is in {place}", file=sys.stderr)


def _stop_training(why: str) -> None:
    """As a signal would: the state is saved in the copy at the next step."""
    print(f"error: {why}: this process stops", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)


class _Sender:
    """Sends a copy to its store, in a thread of its own. Use it as a context manager: leaving sends the rest."""

    def __init__(self, remote: RemoteFolder, folder: Path, lease: Lease):
        self._remote, self._folder, self._lease = remote, folder, lease
        found = remote.list()
        # The files that the store has, each with its `_facts` if they are known.
        self._known: dict[str, tuple[int, int] | None] = dict.fromkeys(records_of(found))
        steps = {name.split("/")[1] for name in found if name.startswith(f"{CHECKPOINTS}/")}
        self._sent = {int(step): b"" for step in steps if step.isdecimal()}  # steps, each with its marker if it is known
        self._closed, self._told = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="sender", daemon=True)

    def __enter__(self) -> "_Sender":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raises UserError if the rest cannot be sent, and nothing else was wrong. The copy has everything."""
        self._closed.set()
        self._thread.join()
        with contextlib.nullcontext() if kind is None else self._forgiving():
            self._finish()

    def _finish(self) -> None:
        try:
            self._send()
            self._lease.release()
        except InUse as error:
            raise InUse(f"{error}; what this process did is in {self._folder}") from error
        except UserError as error:
            raise UserError(f"{error}; all of the run is in {self._folder}, and the same command sends it") from error
        beside(self._folder, "unsent").unlink()
        if self._sent:
            print(f"{self._remote.url} has all of the run", file=sys.stderr)

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            with self._forgiving():
                self._send()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """What a store refuses is told once, and tried again later."""
        try:
            yield
            self._told = False
        except (UserError, OSError) as error:
            if not self._told:
                print(f"warning: {error}; the copy in {self._folder} has everything", file=sys.stderr)
            self._told = True

    def _send(self) -> None:
        """Files, then checkpoints, then what the run has deleted. Raises InUse and UserError."""
        self._lease.check()
        names, checkpoints = files_below(self._folder), local_checkpoints(self._folder)  # before any content, so that
        for name in sorted(names, key=lambda name: (name != UNSAVED, name)):  # no record is behind a checkpoint
            with contextlib.suppress(FileNotFoundError):
                if (facts := _facts(self._folder / name)) != self._known.get(name):
                    self._remote.upload(self._folder / name, name)
                    self._known[name] = facts
        for step, marker in checkpoints.items():
            if self._sent.get(step) != marker:
                with contextlib.suppress(FileNotFoundError):  # Orbax deletes an old one
                    self._send_checkpoint(step, marker)
        self._delete(names, checkpoints.keys() | {int(path.name) for path in (self._folder / REPLACED).glob("[0-9]*")})

    def _send_checkpoint(self, step: int, marker: bytes) -> None:
        """Raises FileNotFoundError if it is being deleted."""
        path, there = self._folder / CHECKPOINTS / str(step), self._remote.below(f"{CHECKPOINTS}/{step}")
        self._sent[step] = b""
        if there.read(MARKER) != marker:
            there.delete([MARKER])
            there.delete(there.list())
            names = files_below(path)
            for name in names - {MARKER}:
                there.upload(path / name, name)
            if read_marker(path) != marker or files_below(path) != names:
                raise FileNotFoundError(path)
            self._lease.check()
            there.write(MARKER, marker)
        self._sent[step] = marker

    def _delete(self, names: set[str], steps: set[int]) -> None:
        """What the run has deleted, but not what somebody has: a run keeps its config and a checkpoint."""
        if "config.json" not in names or not steps:
            return
        gone = self._known.keys() - names
        self._remote.delete(gone)
        for name in gone:
            del self._known[name]
        for step in self._sent.keys() - steps:
            there = self._remote.below(f"{CHECKPOINTS}/{step}")
            there.delete(sorted(there.list(), key=lambda name: name != MARKER))
            del self._sent[step]


def _facts(path: Path) -> tuple[int, int]:
    """Size, and nanoseconds of the last change: equal facts are equal content."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
