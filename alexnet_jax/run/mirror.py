"""A run in an object store, and copies of it on this machine, which everything else works on.

The store has the files of a run under their own names. A checkpoint there is whole once it has MARKER, which is sent last
and deleted first. The marker's content tells it from another checkpoint of the same step.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively, replacing
from alexnet_jax.system.lease import LOCK
from alexnet_jax.system.stores import Entry, RemoteFolder, copy_folder, is_remote, transfer

CHECKPOINTS = "checkpoints"
MARKER = "_CHECKPOINT_METADATA"  # Orbax notes the nanoseconds of each save there
REPLACED = "replaced"  # checkpoints that are about to be saved again
_WHOLE = re.compile(rf"{CHECKPOINTS}/(\d+)/{MARKER}")


def reading_copy(workdir: str) -> str:
    """The folder of a run, to read: itself, or a copy of one in a store, brought up to date.

    The copy has no TensorBoard events and no traces. What is no longer in the store is deleted.

    Raises:
        UserError: the store refuses, or this disk is full.
    """
    if not is_remote(workdir):
        return workdir
    folder = copy_folder(workdir, "read")
    remote = RemoteFolder.at(workdir)
    with on_disk(folder), exclusively(beside(folder, "lock"), wait=True):
        fetch_run(remote, folder, whole=False)
    return str(folder)


def fetch_run(remote: RemoteFolder, folder: Path, *, whole: bool) -> None:
    """Makes a folder equal to what the store has.

    Args:
        remote: the run in the store.
        folder: of the copy.
        whole: False leaves out folders but for checkpoints.

    Raises:
        UserError: the store refuses.
        OSError: the disk is full, or read-only.
    """
    found = remote.list()
    records = {name for name in records_of(found) if whole or "/" not in name}
    for name in files_below(folder) - records:
        if whole or "/" not in name:
            (folder / name).unlink()
    for name in records:
        if (content := remote.read(name)) is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name, "wb") as file:
                file.write(content)
    steps = {int(match[1]) for name in found if (match := _WHOLE.fullmatch(name))}
    for step in local_checkpoints(folder).keys() - steps:
        shutil.rmtree(folder / CHECKPOINTS / str(step))
    for step in sorted(steps):
        _fetch_checkpoint(remote, folder, f"{CHECKPOINTS}/{step}", found)


def _fetch_checkpoint(remote: RemoteFolder, folder: Path, name: str, found: dict[str, Entry]) -> None:
    marker, place, part = remote.read(f"{name}/{MARKER}"), folder / name, beside(folder, "part")
    if marker is None or marker == read_marker(place):
        return
    sizes = {file: entry.size for file, entry in found.items() if file.startswith(f"{name}/")}
    shutil.rmtree(part, ignore_errors=True)
    with transfer(f"fetching {remote.url}/{name}", sum(sizes.values())) as told:
        for file, size in sizes.items():
            remote.download(file, part / file, size, told)
    if remote.read(f"{name}/{MARKER}") != marker:
        raise UserError(f"{remote.url}/{name} has changed while it was read: run it again")
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    (part / name).rename(place)
    shutil.rmtree(part)


def records_of(found: dict[str, Entry]) -> set[str]:
    """The objects of a run that belong to no checkpoint."""
    return {name for name in found if name.split("/")[0] not in (LOCK, CHECKPOINTS) and ".." not in name.split("/")}


def files_below(folder: Path) -> set[str]:
    """The files of a run that belong to no checkpoint and are not being written."""
    paths = (path for path in folder.rglob("*") if path.suffix != ".tmp" and path.is_file() and not path.is_symlink())
    names = {str(path.relative_to(folder)) for path in paths}
    return {name for name in names if name.split("/")[0] not in (LOCK, CHECKPOINTS, REPLACED)}


def local_checkpoints(folder: Path) -> dict[int, bytes]:
    """The complete checkpoints of a folder, each with its marker. Orbax renames them into place."""
    paths = [path for path in (folder / CHECKPOINTS).glob("[0-9]*") if path.name.isdecimal()]
    markers = {int(path.name): read_marker(path) for path in paths}
    return {step: marker for step, marker in sorted(markers.items()) if marker is not None}


def read_marker(checkpoint: Path) -> bytes | None:
    """None if there is no such checkpoint."""
    with contextlib.suppress(FileNotFoundError):
        return (checkpoint / MARKER).read_bytes()
    return None


def beside(folder: Path, what: str) -> Path:
    """What is noted of a copy, outside it."""
    return folder.with_name(f".{folder.name}.{what}")


@contextlib.contextmanager
def on_disk(folder: Path) -> Iterator[None]:
    """Raises UserError in place of OSError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}, the copy of a run in a store, cannot be written: {error.strerror or error}; XDG_CACHE_HOME moves it"
        ) from error
