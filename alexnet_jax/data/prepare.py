"""Prepares a data set once for all runs: opens the source, writes the store, and says on stderr what it did."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from alexnet_jax.data.remote import local_store, send
from alexnet_jax.data.sources import is_on_disk, open_source
from alexnet_jax.data.store import Store, open_store
from alexnet_jax.data.writer import write_store
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.files import exclusively
from alexnet_jax.system.stores import is_remote
from alexnet_jax.values import ON_ERROR, RESIZES

LARGEST = 4096  # pixels a side: a single image then takes 50 MB


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Waits, and says so, while another process prepares the same store."""
    lock = path.with_name(f".{path.name}.lock")
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(exclusively(lock, wait=False)):
            print(f"waiting for the process that prepares {path}", file=sys.stderr)
            stack.enter_context(exclusively(lock, wait=True))
        yield


def prepare(
    dataset: str,
    data_dir: str | Path,
    *,
    tfds_dir: str | None = None,
    image_size: int = 256,
    resize: str = "centre",
    on_error: str = "fail",
    split_seed: int = 0,
) -> Path:
    """Prepares a set under `data_dir` unless it is there already, and returns its folder on this machine.

    Args:
        dataset: 'groceries', 'folder:PATH', 'parquet:GLOB', 'tar:GLOB', or a TFDS name.
        tfds_dir: folder of the TFDS sets; None: TFDS's own.
        image_size: side of the prepared images in pixels, up to LARGEST.
        resize: 'centre' or 'warp', see `alexnet_jax.data.decode`.
        on_error: at an image that cannot be decoded: 'fail', or 'skip' it and list it in meta.json.
        split_seed: of the random split of files without splits.

    Raises:
        UserError: an argument is out of range; the source cannot be opened or decoded; or the store cannot be written, is
            damaged, or holds another set.
    """
    if not 1 <= image_size <= LARGEST:
        raise UserError(f"--image_size={image_size} must be at least 1 and at most {LARGEST}")
    if not 0 <= split_seed < 2**64:
        raise UserError(f"--split_seed={split_seed} must be at least 0 and less than 2**64")
    for flag, value in (("dataset", dataset), ("data_dir", data_dir), ("tfds_dir", tfds_dir)):
        if value == "":
            raise UserError(f"--{flag}= is empty: name one")
    for flag, value, choices in (("on_error", on_error, ON_ERROR), ("resize", resize, RESIZES)):
        if value not in choices:
            raise UserError(f"--{flag}={value} must be one of {', '.join(choices)}")
    data_dir = os.fspath(data_dir)
    try:
        path = local_store(data_dir, dataset, image_size, resize)
        if path.exists():
            _check_same(path, store := open_store(path), dataset, tfds_dir, split_seed)
            return _report(path, "already prepared", store, data_dir)
        source = open_source(dataset, tfds_dir, split_seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path):
            if path.exists():
                return _report(path, "prepared by another process", open_store(path), data_dir)
            store = write_store(source, path, image_size, resize=resize, on_error=on_error)
            return _report(path, "prepared", store, data_dir)
    except OSError as error:
        raise UserError(f"--data_dir={data_dir} cannot be used: {error}") from error


def _check_same(path: Path, store: Store, dataset: str, tfds_dir: str | None, split_seed: int) -> None:
    """Raises UserError if the store holds another set, or if its files or the seed have changed since."""
    if store.name != dataset:
        raise UserError(f"--dataset={dataset}: {path} holds {store.name}: name another --data_dir")
    if not is_on_disk(dataset):
        return
    source = open_source(dataset, tfds_dir, split_seed)
    if source.description != store.source:
        raise UserError(
            f"--dataset={dataset}: {path} was prepared from {store.source}, but the source is now {source.description}: "
            "delete it to prepare it again, or name another --data_dir"
        )


def _report(path: Path, what: str, store: Store, data_dir: str) -> Path:
    """Says what there is. A set that belongs into an object store is sent there, unless that has it."""
    if is_remote(data_dir):
        send(data_dir, path)
    counts = ", ".join(f"{len(split):,} {name}" for name, split in store.splits.items())
    print(f"{path}: {what}: {counts}, {store.image_size} px, {len(store.classes):,} classes", file=sys.stderr)
    present = len(np.unique(store.splits["train"].labels))
    if present < len(store.classes):
        print(f"note: {len(store.classes) - present:,} of the classes have no training image", file=sys.stderr)
    if missing := [name for name in ("validation", "test") if not len(store.splits.get(name, ()))]:
        ways = dict.fromkeys(("parquet", "tar"), "files") | {"folder": "a folder"}
        way = ways.get(store.name.partition(":")[0])
        get = f"add images, or {way} of this name" if way else "prepare another set"
        fold = ", or train with --fold=0/5, which holds out a fifth for validation" if "validation" in missing else ""
        print(f"note: there is no {' and no '.join(missing)} split: {get}{fold}", file=sys.stderr)
    return path
