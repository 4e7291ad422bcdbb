"""Prepares a data set once for all runs: images decoded, cut to squares of one size, and measured.

    python -m alexnet_jax.prepare --dataset=D --data_dir=DIR [--tfds_dir=T] [--image_size=256] [--resize=centre|warp]
                                  [--on_error=fail|skip] [--split_seed=0] [--verify]

As in Section 2 of the paper: the short side is brought to the size S and the centre S x S is kept, uint8 RGB. Run again
after an interruption, it goes on where it was.
"""

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from alexnet_jax.data.decode import RESIZES
from alexnet_jax.data.example import Source
from alexnet_jax.data.sources import open_source
from alexnet_jax.data.store import Store, open_store, store_path, verify
from alexnet_jax.data.writer import Advance, write_store
from alexnet_jax.system import cli
from alexnet_jax.system.errors import UserError

ON_ERROR = ("fail", "skip")


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


@contextlib.contextmanager
def _bar(description: str, total: int, completed: int) -> Iterator[Advance]:
    """A bar with rate and time left where stderr is a terminal, and nothing in a log."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=completed)
        yield lambda examples: bar.advance(task, examples)


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Holds off other processes that prepare the same store; the system lets go when this one ends, however it ends."""
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that prepares {path}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems have no locks; they must do without.
            pass
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
    """Prepares a set under `data_dir` unless that is done already, says so on stderr, and returns the store's folder.

    Args:
        dataset: 'groceries', 'folder:PATH', or a TFDS name, which is read from `tfds_dir` (None: TFDS's own folder).
        data_dir: folder of the prepared sets.
        tfds_dir: folder of the TFDS sets.
        image_size: side of the prepared images in pixels.
        resize: 'centre' or 'warp', see `alexnet_jax.data.decode`.
        on_error: 'fail' at an image that cannot be decoded, or 'skip' it and list it in meta.json.
        split_seed: of the random split of a folder that has none.

    Raises:
        UserError: the source cannot be opened or decoded, or the store cannot be written; or it exists and is damaged, or
            holds something else.
    """
    if image_size < 1:
        raise UserError(f"--image_size={image_size} must be at least 1")
    for flag, value, choices in (("on_error", on_error, ON_ERROR), ("resize", resize, tuple(RESIZES))):
        if value not in choices:
            raise UserError(f"--{flag}={value} must be one of {', '.join(choices)}")
    path = store_path(Path(data_dir), dataset, image_size, resize)
    try:
        if path.exists():
            _check_same(path, store := open_store(path), dataset, tfds_dir, split_seed)
            return _report(path, "was prepared before and stays as it is", store)
        source = open_source(dataset, tfds_dir, split_seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path):
            if path.exists():
                return _report(path, "has just been prepared by another process", open_store(path))
            store = write_store(source, path, image_size, resize=resize, on_error=on_error, progress=_bar)
            return _report(path, "prepared", store)
    except OSError as error:
        raise UserError(f"--data_dir={data_dir} cannot be used: {error}") from error


def _check_same(path: Path, store: Store, dataset: str, tfds_dir: str | None, split_seed: int) -> None:
    """A folder may have changed since, or another seed be asked for; what was prepared is then not what is wanted."""
    if store.name != dataset:
        raise UserError(f"--dataset={dataset}: {path} holds {store.name}: name another --data_dir")
    if not dataset.startswith("folder:") or not Path(dataset.removeprefix("folder:")).is_dir():
        return
    source: Source = open_source(dataset, tfds_dir, split_seed)
    if source.description != store.source:
        raise UserError(
            f"--dataset={dataset}: {path} was prepared from {store.source}, and now there are {source.description}: delete "
            "it to prepare it anew, or name another --data_dir"
        )


def _report(path: Path, what: str, store: Store) -> Path:
    counts = ", ".join(f"{len(split):,} {name}" for name, split in store.splits.items())
    print(f"{path}: {what}: {counts}, {store.image_size} px, {len(store.classes):,} classes", file=sys.stderr)
    present = len(np.unique(store.splits["train"].labels))
    if present < len(store.classes):
        print(f"note: {len(store.classes) - present:,} of the classes have no training image", file=sys.stderr)
    return path


def define_flags(options: flags.FlagValues) -> None:
    """The flags of this command; other entry points that import `prepare` have their own."""
    flags.DEFINE_string(
        "dataset", "groceries", "'groceries' (embedded photographs), 'folder:PATH' (split/class/file or class/file), or the "
        "name of a TFDS set", flag_values=options)  # fmt: skip
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets", flag_values=options)
    flags.DEFINE_string("tfds_dir", None, "folder of the TFDS sets; default: TFDS's own", flag_values=options)
    flags.DEFINE_integer("image_size", 256, "side in pixels of the prepared images (Section 2: 256)", flag_values=options)
    flags.DEFINE_enum(
        "resize",
        "centre",
        tuple(RESIZES),
        "keep the centre square (Section 2), or warp all of it (Caffe)",
        flag_values=options,
    )
    flags.DEFINE_enum(
        "on_error", "fail", ON_ERROR, "at an undecodable image: stop, or leave it out and list it", flag_values=options
    )
    flags.DEFINE_integer(
        "split_seed", 0, "of the random split of a folder without splits", lower_bound=0, flag_values=options
    )
    flags.DEFINE_boolean("verify", False, "read all of the prepared set and hold it against its hash", flag_values=options)


def main(options: flags.FlagValues) -> None:
    """Reads the flags and prepares."""
    values = options
    path = prepare(
        values.dataset,
        values.data_dir,
        tfds_dir=values.tfds_dir,
        image_size=values.image_size,
        resize=values.resize,
        on_error=values.on_error,
        split_seed=values.split_seed,
    )
    if values.verify:
        verify(path, open_store(path))
        print(f"{path}: every image and label is as it was prepared", file=sys.stderr)


COMMAND = cli.Command(__doc__, define_flags, main)

if __name__ == "__main__":
    COMMAND.run()
