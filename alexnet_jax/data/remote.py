"""Prepared sets in an object store: a copy on this machine is what training maps into memory."""

import contextlib
import shutil
from pathlib import Path

from alexnet_jax.data.store import VERIFIED_BYTES, open_store, store_path, verify
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively
from alexnet_jax.system.stores import Entry, RemoteFolder, copy_folder, is_remote, transfer

META = "meta.json"  # sent last, so a set that has it is complete


def local_store(data_dir: str, dataset: str, image_size: int, resize: str = "centre") -> Path:
    """The folder of a prepared set on this machine, where it need not be there. One in an object store is fetched first.

    A copy is used as long as the store has the same meta.json. It is checked against the fingerprint in that, whole, before
    it is renamed into place. A fetch that was interrupted goes on where it was.

    Raises:
        UserError: the store refuses, what it has is no prepared set, or this disk is full.
    """
    folder = copy_folder(data_dir, "sets") if is_remote(data_dir) else Path(data_dir)
    path = store_path(folder, dataset, image_size, resize)
    if is_remote(data_dir):
        try:
            _fetch(_there(data_dir, path), path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}; XDG_CACHE_HOME moves it") from error
    return path


def send(data_dir: str, path: Path) -> None:
    """Sends a set that was prepared in its local place. Raises UserError if the store refuses; the local one stays."""
    remote = _there(data_dir, path)
    if META in remote.list():
        return
    files = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    with transfer(f"sending {remote.url}", sum(files.values())) as told:
        for name in sorted(files, key=lambda name: name == META):
            remote.upload(path / name, name)
            told(files[name])


def _there(data_dir: str, path: Path) -> RemoteFolder:
    return RemoteFolder.at(data_dir).below(path.name)


def _fetch(remote: RemoteFolder, path: Path) -> None:
    found = remote.list()
    meta = remote.read(META) if META in found else None
    if meta is None:
        return
    with exclusively(path.with_name(f".{path.name}.fetch"), wait=True):
        if _has(path, meta):
            return
        part = path.with_name(f".{path.name}.part")
        if not _has(part, meta):  # what is there belongs to another version of the set
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            (part / META).write_bytes(meta)
        _download(remote, part, found)
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        part.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def _has(path: Path, meta: bytes) -> bool:
    with contextlib.suppress(OSError):
        return (path / META).read_bytes() == meta
    return False


def _download(remote: RemoteFolder, part: Path, found: dict[str, Entry]) -> None:
    """Raises UserError if what has come is not what was prepared; then it is deleted."""
    wanted = {name: entry.size for name, entry in found.items() if "/" not in name and name != META}
    with transfer(f"fetching {remote.url}", sum(wanted.values())) as told:
        for name, size in wanted.items():
            if (part / name).exists():
                told(size)
            else:
                remote.download(name, part / name, size, told, resume=True)
    try:
        store = open_store(part)
        if sum(split.images.nbytes for split in store.splits.values()) > VERIFIED_BYTES:
            verify(part, store)
    except UserError as error:
        shutil.rmtree(part)
        why = str(error).removeprefix(f"{part} ").partition(": delete it and run")[0]
        raise UserError(
            f"{remote.url} {why}: fetch it again, or delete it there and run python -m alexnet_jax.prepare"
        ) from error
