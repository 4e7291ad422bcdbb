"""Sends the folder of a run to its object store while a trainer works on the copy."""

import contextlib
import json
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from alexnet_jax.run.mirror import CHECKPOINTS, INDEX, RunCopy, file_facts, files_below, read_index
from alexnet_jax.system.errors import InUse, UserError
from alexnet_jax.system.lease import Lease

LOOK_SECONDS = 5.0  # how often a trainer looks for a new checkpoint to send


@contextlib.contextmanager
def mirrored(workdir: str) -> Iterator[None]:
    """Within it this process alone writes to the run in a store; its copy is whole at the start, and sent at the end.

    Raises:
        InUse: another process has it, or has taken it over.
        UserError: the store refuses, or holds something else than a run.
    """
    copy = RunCopy(workdir)
    copy.check_is_run()
    with Lease(copy.remote, copy.name(), _stop_training) as lease:
        copy.refresh(arrays=True, writing=True)
        with _Sender(copy, lease):
            yield


def _stop_training(why: str) -> None:
    """As a signal would: the state is saved in the copy at the next step."""
    print(f"error: {why}: this process stops", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)


class _Sender:
    """Sends the copy to the store, in a thread of its own. Use it as a context manager."""

    def __init__(self, copy: RunCopy, lease: Lease):
        self._copy, self._lease = copy, lease
        self._remote, self._folder = copy.remote, copy.folder
        self._known = copy.known
        self._sent = dict[int, tuple[int, int]]()  # checkpoints that the store has, by `_identity`
        self._closed, self._told = threading.Event(), False
        self._thread = threading.Thread(target=self._watch, name="sender", daemon=True)

    def __enter__(self) -> "_Sender":
        whole = not self._copy.unsent.exists()
        self._copy.unsent.write_text(str(self._lease.number))
        if whole:  # what was just fetched
            self._sent = {step: _identity(path) for step, path in self._local_steps().items()}
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Sends what is left. Raises UserError if that fails and nothing else did; the copy keeps what is not sent."""
        self._closed.set()
        self._thread.join()
        with contextlib.nullcontext() if kind is None else self._forgiving():
            self._finish()

    def _finish(self) -> None:
        try:
            self._send()
        except InUse as error:
            raise InUse(f"{error}; what this process did is in {self._folder}") from error
        except UserError as error:
            raise UserError(
                f"{error}; what is not there yet is in {self._folder}: rerun the same command on this machine"
            ) from error
        self._copy.unsent.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            steps = {step: _identity(path) for step, path in self._local_steps().items()}
            if steps != self._sent or "config.json" not in self._known:
                with self._forgiving():
                    self._send()

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        """What a store refuses is told once, and tried again later."""
        try:
            yield
            self._told = False
        except UserError as error:
            if not self._told:
                print(f"warning: {error}; the copy in {self._folder} has everything", file=sys.stderr)
            self._told = True

    def _local_steps(self) -> dict[int, Path]:
        """Complete checkpoints: Orbax renames them into place."""
        found = (self._folder / CHECKPOINTS).glob("[0-9]*")
        return {int(path.name): path for path in found if path.name.isdecimal()}

    def _send(self) -> None:
        """Files, then checkpoints, then what the run has deleted. Raises InUse and UserError."""
        self._lease.check()
        names = files_below(self._folder)
        for name in sorted(names, key=lambda name: name == "config.json"):  # without it there is no run yet
            with contextlib.suppress(FileNotFoundError):
                if (facts := file_facts(self._folder / name)) != self._known.get(name):
                    self._remote.upload(self._folder / name, name)
                    self._known[name] = facts
        for step, path in sorted(self._local_steps().items()):
            with contextlib.suppress(FileNotFoundError):  # Orbax deletes an old one
                if (identity := _identity(path)) != self._sent.get(step):
                    self._send_checkpoint(step, path)
                    self._sent[step] = identity
        self._delete(names)

    def _send_checkpoint(self, step: int, path: Path) -> None:
        """Raises FileNotFoundError if it is being deleted."""
        sizes, place, stored = _sizes(path), self._remote.below(CHECKPOINTS), read_index(self._remote, step)
        if stored is not None and stored.files == sizes:  # the names of arrays are drawn anew for each save
            return
        folder = f"{step}-{secrets.token_hex(4)}" if place.below(str(step)).list() else str(step)
        for name in sizes:
            place.upload(path / name, f"{folder}/{name}")
        if _sizes(path) != sizes:
            raise FileNotFoundError(path)
        self._lease.check()
        place.write(f"{step}.json", json.dumps({"folder": folder, "files": sizes}, indent=2).encode() + b"\n")

    def _delete(self, names: set[str]) -> None:
        gone = [name for name in self._known if name not in names]
        self._remote.delete(gone)
        for name in gone:
            del self._known[name]
        # A checkpoint that makes way for itself is in replaced/ until it is saved again.
        kept = {str(step) for step in self._local_steps()} | {path.name for path in (self._folder / "replaced").glob("*")}
        place = self._remote.below(CHECKPOINTS)
        found = place.list()
        steps = {name.removesuffix(".json") for name in found if INDEX.fullmatch(f"{CHECKPOINTS}/{name}")}
        place.delete([f"{step}.json" for step in steps - kept])
        self._sent = {step: identity for step, identity in self._sent.items() if str(step) in kept}
        indices = [read_index(self._remote, int(step)) for step in steps & kept]
        folders = {index.folder for index in indices if index is not None}
        place.delete([name for name in found if "/" in name and name.split("/")[0] not in folders])


def _sizes(folder: Path) -> dict[str, int]:
    """The files below a folder by name."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _identity(path: Path) -> tuple[int, int]:
    """Tells a checkpoint from another one under the same name."""
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns
