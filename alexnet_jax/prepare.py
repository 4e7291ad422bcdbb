"""Images from a source to a prepared set: decoded, cut to squares of one size, and measured, once for all runs.

    python -m alexnet_jax.prepare --dataset=D --data_dir=DIR [--tfds_dir=T] [--image_size=256] [--on_error=fail|skip]

As in Section 2 of the paper: the short side is brought to the size S and the centre S x S is kept, uint8 RGB.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from absl import flags
from jaxtyping import Int32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from alexnet_jax import cli
from alexnet_jax.data.sources import EncodedImage, Examples, Source, open_source
from alexnet_jax.data.store import (
    COMPUTED,
    FORMAT_VERSION,
    SPLITS,
    Moments,
    NpyWriter,
    Statistics,
    Store,
    open_store,
    store_path,
)
from alexnet_jax.errors import UserError

ON_ERROR = ("fail", "skip")
# Prepared pixels that one thread works on at a time: memory is a small multiple of this for each core.
BLOCK_BYTES = 4 << 20
RESIZE = "orientation from EXIF, alpha over white, RGB; centre square to size x size with Pillow's antialiased bicubic"


def square_rgb(encoded: EncodedImage, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The centre square of an image at `size` pixels, from the bytes of a file or from pixels (grey, RGB or RGBA).

    The square as long as the short side is resampled in one step: the same as bringing the short side to `size` and
    cutting out the centre, without rounding the long side and without holding what is cut off.

    Raises:
        ValueError: no complete image can be decoded; the message is one line that says why.
    """
    try:
        image = _to_rgb(_decode(encoded))
        if not (short := min(image.size)):
            raise ValueError("it has no pixels")
        left, top = (image.width - short) / 2, (image.height - short) / 2
        box = (left, top, left + short, top + short)
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError("in no image format that Pillow knows") from error
    except Exception as error:
        # Pillow's decoders raise whatever a broken file leads them to: OSError, SyntaxError, struct.error and others.
        raise ValueError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _decode(encoded: EncodedImage) -> Image.Image:
    """All pixels of the first frame, upright. A file that ends early is an error, as Pillow has it by default."""
    if isinstance(encoded, bytes):
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return ImageOps.exif_transpose(image)
    return Image.fromarray(encoded[..., 0] if encoded.shape[-1] == 1 else encoded)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255.
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Block:
    """Consecutive examples of a split, prepared."""

    images: UInt8[np.ndarray, "block size size 3"]
    labels: Int32[np.ndarray, "block"]
    moments: Moments
    skipped: list[dict[str, str | int]]


def _prepare_block(examples: Examples, split: str, indices: range, size: int, on_error: str) -> Block:
    """Raises UserError naming the split and index of an image that cannot be decoded, unless it is to be skipped."""
    images, labels, skipped = np.empty((len(indices), size, size, 3), np.uint8), [], []
    for index in indices:
        encoded, label = examples[index]
        try:
            images[len(labels)] = square_rgb(encoded, size)
        except ValueError as error:
            if on_error == "fail":
                what = f"image {index} of split {split} cannot be decoded ({error})"
                raise UserError(f"{what}: mend the source, or leave such images out with --on_error=skip") from error
            skipped.append({"split": split, "index": index, "reason": str(error)})
        else:
            labels.append(label)
    kept = images[: len(labels)]
    return Block(kept, np.array(labels, np.int32), Moments.of(kept), skipped)


def _prepare_blocks(examples: Examples, split: str, size: int, on_error: str) -> Generator[Block, None, None]:
    """All blocks of a split in order, prepared by as many threads as there are cores, a few blocks ahead."""
    length = max(1, min(256, BLOCK_BYTES // (size * size * 3)))
    threads = os.cpu_count() or 1
    pool, pending = ThreadPoolExecutor(threads, thread_name_prefix="prepare"), deque[Future[Block]]()
    try:
        for start in range(0, len(examples), length):
            indices = range(start, min(start + length, len(examples)))
            pending.append(pool.submit(_prepare_block, examples, split, indices, size, on_error))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def write_store(source: Source, path: Path, image_size: int, on_error: str = "fail") -> Store:
    """Prepares a source as the store `path`, which appears complete or not at all, and opens it.

    Raises:
        UserError: an image cannot be decoded (on_error 'fail'), there is no train split, or nothing can be written.
    """
    if not len(source.splits.get("train", ())):
        raise UserError(f"--dataset={source.name} has no labelled train split, which the statistics are taken over")
    partial = path.with_name(f"{path.name}.partial")
    try:
        # What a killed run left.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_files(source, partial, image_size, on_error)
        partial.rename(path)
    except OSError as error:
        raise UserError(f"--data_dir={path.parent}: {path.name} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_store(path)


def _write_files(source: Source, folder: Path, size: int, on_error: str) -> None:
    """The arrays of all splits and, last, meta.json."""
    digest, counts, skipped = hashlib.sha256(), {}, []
    train = Moments.of(np.empty((0, size, size, 3), np.uint8))
    with _progress(source) as advance:
        for split in (split for split in SPLITS if split in source.splits):
            examples, labels = source.splits[split], [np.empty(0, np.int32)]
            with (
                NpyWriter(folder / f"{split}_images.npy", np.uint8, (size, size, 3), len(examples)) as images,
                contextlib.closing(_prepare_blocks(examples, split, size, on_error)) as blocks,
            ):
                for block in blocks:
                    images.append(block.images)
                    labels.append(block.labels)
                    digest.update(block.images.data)
                    skipped += block.skipped
                    if split == "train":
                        train = train.plus(block.moments)
                    advance(len(block.labels) + len(block.skipped))
            counts[split], split_labels = images.rows, np.concatenate(labels)
            if not np.isin(split_labels, np.arange(len(source.classes))).all():
                raise UserError(f"--dataset={source.name}: a label of split {split} is none of its classes")
            np.save(folder / f"{split}_labels.npy", split_labels)
            digest.update(split_labels.data)
    if not train.images:
        raise UserError(f"--dataset={source.name}: not one image of the train split can be decoded")
    statistics = train.statistics()
    np.save(folder / "mean_image.npy", statistics.mean_image.astype(np.float32))
    meta = _meta(source, size, statistics) | {"counts": counts, "skipped": skipped, "fingerprint": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _meta(source: Source, size: int, statistics: Statistics) -> dict[str, object]:
    return {
        "format_version": FORMAT_VERSION,
        "name": source.name,
        "image_size": size,
        "classes": source.classes,
        "source": source.description,
        "channel_mean": statistics.channel_mean.tolist(),
        "mean_image": "mean_image.npy",
        "colour_std": statistics.colour_std.tolist(),
        "colour_vectors": statistics.colour_vectors.tolist(),
        "computed": COMPUTED,
        "resize": f"{RESIZE} (Pillow {PIL.__version__})",
    }


class _Rate(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} images/s" if task.speed else "")


@contextlib.contextmanager
def _progress(source: Source) -> Iterator[Callable[[int], None]]:
    """A function to tell how many more examples are done; it shows a bar where stderr is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"preparing {source.name}", total=sum(len(split) for split in source.splits.values()))
        yield lambda examples: progress.advance(task, examples)


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


def prepare(dataset: str, data_dir: str | Path, tfds_dir: str | None, image_size: int, on_error: str = "fail") -> Path:
    """Prepares a set under `data_dir` unless that is done already, says so on stderr, and returns the store's folder.

    Args:
        dataset: 'groceries' or a TFDS name, which is read from `tfds_dir` (None: TFDS's own folder).
        image_size: side of the prepared images in pixels.
        on_error: 'fail' at an image that cannot be decoded, or 'skip' it and list it in meta.json.

    Raises:
        UserError: the source cannot be opened or decoded, or the store cannot be written; or it exists and is damaged.
    """
    if image_size < 1:
        raise UserError(f"--image_size={image_size} must be at least 1")
    if on_error not in ON_ERROR:
        raise UserError(f"--on_error={on_error} must be one of {', '.join(ON_ERROR)}")
    path = store_path(Path(data_dir), dataset, image_size)
    try:
        if path.exists():
            return _report(path, "was prepared before and stays as it is", open_store(path))
        source = open_source(dataset, tfds_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(path):
            if path.exists():
                return _report(path, "has just been prepared by another process", open_store(path))
            return _report(path, "prepared", write_store(source, path, image_size, on_error))
    except OSError as error:
        raise UserError(f"--data_dir={data_dir} cannot be used: {error}") from error


def _report(path: Path, what: str, store: Store) -> Path:
    counts = ", ".join(f"{len(split):,} {name}" for name, split in store.splits.items())
    print(f"{path}: {what}: {counts}, {store.image_size} px, {len(store.classes):,} classes", file=sys.stderr)
    return path


def define_flags() -> None:
    """The flags of this command; other entry points that import `prepare` have their own."""
    flags.DEFINE_string("dataset", "groceries", "'groceries' (embedded photographs) or the name of a TFDS set")
    flags.DEFINE_string("data_dir", "data", "folder of the prepared sets")
    flags.DEFINE_string("tfds_dir", None, "folder of the TFDS sets, written as ArrayRecord; default: TFDS's own")
    flags.DEFINE_integer("image_size", 256, "side in pixels of the prepared images (Section 2: 256)")
    flags.DEFINE_enum("on_error", "fail", ON_ERROR, "at an undecodable image: stop, or leave it out and list it")


def main() -> None:
    """Reads the flags and prepares."""
    values = flags.FLAGS
    prepare(values.dataset, values.data_dir, values.tfds_dir, values.image_size, values.on_error)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
