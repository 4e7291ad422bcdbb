"""The folder of a run in an object store, and its copy on this machine, which all else works on.

The store has the files of the folder under their own names, but for checkpoints: `checkpoints/STEP.json` says in which
folder of `checkpoints/` its files are, and how large they are. It is written once they are all there, and they never change.
So a kill at any moment leaves every checkpoint whole. `lock/` is the lease of the one writer.

A trainer sends its folder at the start, after every checkpoint, and at the end. The copy keeps `.store/unsent` while it may
have more than the store. Then the next start on this machine sends that first, unless another machine has trained since.
"""

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import sys
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively
from alexnet_jax.system.lease import LOCK, newest
from alexnet_jax.system.stores import Entry, RemoteFolder, is_remote, local_folder, transfer

OURS = ".store"  # the copy's own notes, which are not sent
UNSENT = "unsent"
CHECKPOINTS = "checkpoints"
ARRAYS = ("params", "optimizer")  # the large items of a checkpoint
INDEX = re.compile(rf"{CHECKPOINTS}/(\d+)\.json")
_NOT_SENT = (OURS, LOCK, CHECKPOINTS, "replaced")


class StoredCheckpoint(NamedTuple):
    """A checkpoint in the store: the folder of its files, and their sizes by name."""

    folder: str
    files: dict[str, int]


def fetch_run(workdir: str) -> None:
    """Brings the copy of a run up to date for reading, but for the arrays of its checkpoints. A local run stays as it is.

    Raises:
        UserError: the store refuses.
    """
    if is_remote(workdir):
        RunCopy(workdir).refresh(arrays=False)


def fetch_checkpoint(workdir: str, step: int) -> None:
    """Brings the arrays of a checkpoint, after `fetch_run`. Raises UserError if the store refuses."""
    if is_remote(workdir):
        RunCopy(workdir).fetch(step)


class RunCopy:
    """The copy of a run on this machine."""

    def __init__(self, workdir: str):
        self.remote, self.folder = RemoteFolder.at(workdir), local_folder(workdir)
        self._ours = self.folder / OURS
        self.unsent = self._ours / UNSENT
        self.known = dict[str, tuple[int, int]]()  # files that the store has, with their `file_facts`

    def name(self) -> str:
        """Tells this copy from those of other machines, and from an earlier one that was deleted."""
        path = self._ours / "name"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(secrets.token_hex(8))
        return f"{path.read_text()}@{socket.gethostname()}"

    def check_is_run(self) -> None:
        """Raises UserError if the store has something else there."""
        names = [name for name in self.remote.list() if not name.startswith(f"{LOCK}/")]
        if names and "config.json" not in names and not self.unsent.exists():
            raise UserError(
                f"--workdir={self.remote.url} holds something that is not a run, such as {names[0]}: choose a new folder"
            )

    def refresh(self, *, arrays: bool, writing: bool = False) -> None:
        """Makes the copy what the store has, unless it has more than that.

        Args:
            arrays: of the checkpoints, too.
            writing: the caller is the one that may write here and there.
        """
        found = self.remote.list()
        if not found and not self.folder.exists():
            return
        with exclusively(self._ours / "refreshing", wait=True), contextlib.ExitStack() as stack:
            if self._is_ahead():
                self.known = {name: (-1, -1) for name in _files_of_run(found)}
                return
            if self.unsent.exists():
                if not writing and stack.enter_context(exclusively(self.folder / "lock", wait=False)) is None:
                    return  # a trainer, which is about to notice that it has lost its lease
                self._set_aside()
            self._pull(found, arrays=arrays)

    def _is_ahead(self) -> bool:
        """Whether this copy may have more than the store, and no other one was written since."""
        if not self.unsent.exists():
            return False
        last, mine = newest(self.remote), self.unsent.read_text()
        return last is None or (last.copy == self.name() and mine.isdecimal() and int(mine) >= last.since)

    def _set_aside(self) -> None:
        """What was never sent, while another machine has trained."""
        places = (self.folder.with_name(f"{self.folder.name}.unsent-{number}") for number in itertools.count(1))
        place = next(path for path in places if not path.exists())
        place.mkdir()
        for path in self.folder.iterdir():
            if path.name not in (OURS, LOCK):
                path.rename(place / path.name)
        self.unsent.unlink()
        print(
            f"note: another machine has trained {self.remote.url}; what this one had not sent is in {place}", file=sys.stderr
        )

    def _pull(self, found: dict[str, Entry], *, arrays: bool) -> None:
        there = _files_of_run(found)
        for name in files_below(self.folder) - there.keys():
            if not name.startswith("figures/"):  # which `figures` has drawn here
                (self.folder / name).unlink()
        wanted = {name: entry for name, entry in there.items() if not self._has(name, entry)}
        for name, entry in wanted.items():
            path = self.folder / name
            self.remote.download(name, path, entry.size, lambda _: None)
            os.utime(path, (entry.modified.timestamp(), entry.modified.timestamp()))
        steps = [int(match[1]) for name in found if (match := INDEX.fullmatch(name))]
        for path in (self.folder / CHECKPOINTS).glob("[0-9]*"):
            if path.name not in map(str, steps):
                shutil.rmtree(path)
        for step in steps:
            self.fetch(step, arrays=arrays)
        (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
        self.known = {name: file_facts(self.folder / name) for name in there}

    def _has(self, name: str, entry: Entry) -> bool:
        path = self.folder / name
        if not path.exists():
            return False
        size, modified = file_facts(path)
        return size == entry.size and datetime.fromtimestamp(modified / 1e9, entry.modified.tzinfo) == entry.modified

    def fetch(self, step: int, *, arrays: bool = True) -> None:
        """Brings a checkpoint, and says so if it has arrays to bring. One that the store does not have stays as it is."""
        if self.unsent.exists() or (stored := read_index(self.remote, step)) is None:
            return
        folder, note = self.folder / CHECKPOINTS / str(step), self._ours / f"{step}.json"
        if not note.exists() or note.read_text() != json.dumps(stored):  # another one than the copy has under this name
            shutil.rmtree(folder, ignore_errors=True)
            note.write_text(json.dumps(stored))
        missing = {
            name: size
            for name, size in stored.files.items()
            if (arrays or name.split("/")[0] not in ARRAYS) and not (folder / name).exists()
        }
        there, bar = self.remote.below(f"{CHECKPOINTS}/{stored.folder}"), contextlib.nullcontext(lambda _: None)
        if arrays and missing:
            bar = transfer(f"fetching {self.remote.url}/{CHECKPOINTS}/{step}", sum(missing.values()))
        with bar as told:
            for name, size in missing.items():
                there.download(name, folder / name, size, told)


def read_index(remote: RemoteFolder, step: int) -> StoredCheckpoint | None:
    """What a store says of a checkpoint; None if it has none. Raises UserError if that is damaged."""
    name = f"{CHECKPOINTS}/{step}.json"
    content = remote.read(name)
    if content is None:
        return None
    try:
        found = json.loads(content)
        files = {str(file): int(size) for file, size in found["files"].items()}
        if not all(Path(file).parts and ".." not in Path(file).parts and file[0] != "/" for file in files):
            raise ValueError("a name that leads out of the folder")
        return StoredCheckpoint(str(found["folder"]), files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{remote.url}/{name} is no index of a checkpoint ({error}): delete it to use the one before"
        ) from error


def files_below(folder: Path) -> set[str]:
    """The names of the files of a run in its copy, but for checkpoints and what is being written."""
    paths = (path for path in folder.rglob("*") if path.suffix not in (".tmp", ".part"))
    names = {str(path.relative_to(folder)) for path in paths if path.is_file() and not path.is_symlink()}
    return {name for name in names if name.split("/")[0] not in _NOT_SENT}


def _files_of_run(found: dict[str, Entry]) -> dict[str, Entry]:
    """The objects of a listing that are files of the run: not its checkpoints, its lock, or a way out of the folder."""
    return {
        name: entry for name, entry in found.items() if name.split("/")[0] not in _NOT_SENT and ".." not in name.split("/")
    }


def file_facts(path: Path) -> tuple[int, int]:
    """Size, and nanoseconds of the last change: equal facts are equal content."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns
