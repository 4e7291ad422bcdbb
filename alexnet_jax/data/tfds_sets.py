"""TensorFlow data sets as sources. TensorFlow is needed only to prepare a set and to read TFRecord."""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from alexnet_jax.data.example import Example, Examples, Source
from alexnet_jax.system.errors import UserError
from alexnet_jax.system.extras import install

_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}
_READ_AT_ONCE = 64
_DECODERS = {"image": tfds.decode.SkipDecoding()}
_IMAGENET_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
_TAR_END = bytes(1024)  # two empty records close every tar file
_INSTALL = install("tensorflow")


@dataclass(frozen=True)
class _ArrayRecords:
    """One split of a set in ArrayRecord files. Each image stays undecoded: the bytes of its file."""

    where: str
    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def read(self, start: int) -> Iterator[Example]:
        """The examples from number `start` on. Raises UserError if the file of records is missing or damaged."""
        for first in range(start, len(self), _READ_AT_ONCE):
            numbers = list(range(first, min(first + _READ_AT_ONCE, len(self))))
            try:
                # The reader raises no error for some files that end early.
                examples = [_example(record) for record in self.records.__getitems__(numbers)]
                if len(examples) != len(numbers):
                    raise ValueError("the file ends early")
            except (RuntimeError, OSError, ValueError, TypeError) as error:
                what = f"the records from example {first} on cannot be read"
                raise UserError(f"{self.where}: {what}: {_one_line(error)}") from error
            yield from examples


@dataclass(frozen=True)
class _TfRecords:
    """One split of a set in TFRecord files. TensorFlow reads it from front to back."""

    where: str
    builder: Any
    split: str

    def __len__(self) -> int:
        return self.builder.info.splits[self.split].num_examples

    def read(self, start: int) -> Iterator[Example]:
        """The examples from number `start` on. Raises UserError if the file of records is missing or damaged."""
        import tensorflow as tf  # pyright: ignore[reportMissingImports]

        order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        try:
            records = self.builder.as_dataset(
                split=f"{self.split}[{start}:]", decoders=_DECODERS, read_config=order, shuffle_files=False
            )
            yield from (_example(record) for record in records.as_numpy_iterator())
        except tf.errors.OpError as error:
            raise UserError(f"{self.where}: the records cannot be read: {_one_line(error)}") from error


def _example(record: Any) -> Example:
    image, name = record["image"], record.get("file_name", b"")
    if image is None or record["label"] is None:
        raise ValueError("a record is empty")
    return Example(bytes(image), int(record["label"]), name.decode() if isinstance(name, bytes) else str(name))


def open_tfds(dataset: str, tfds_dir: str | None, others: Sequence[str] = ()) -> Source:
    """Opens a TFDS set. TFDS prepares it first if it never did.

    Args:
        tfds_dir: where TFDS keeps its sets; None: TFDS's own folder.
        others: data sets outside TFDS, which the error about an unknown name suggests too.

    Raises:
        UserError: the set is unknown, has no `image` and `label`, or cannot be read or prepared; or TensorFlow is needed
            and not installed.
    """
    if tfds_dir and os.path.exists(tfds_dir) and not os.path.isdir(tfds_dir):
        raise UserError(f"--tfds_dir={tfds_dir} is no folder")
    builder = _builder(dataset, tfds_dir, others)
    _check_features(dataset, builder.info.features)
    if not builder.info.splits:
        builder = _build(dataset, tfds_dir, builder)
    info, where = builder.info, f"--dataset={dataset} in {builder.data_dir}"
    splits: dict[str, Examples] = {}
    for split, published in _SPLITS.items():
        if name := next((name for name in published if name in info.splits), None):
            examples = _open_split(dataset, builder, name, f"{where}, split {name}")
            first = next(examples.read(0), None) if len(examples) else None
            # TFDS writes label -1 if the labels were never published.
            if first is not None and first.label >= 0:
                splits[split] = examples
    description = f"TensorFlow Datasets {info.full_name}, read with tensorflow-datasets {tfds.__version__}"
    return Source(dataset, tuple(info.features["label"].names), description, splits)


def _open_split(dataset: str, builder: Any, name: str, where: str) -> Examples:
    try:
        return _ArrayRecords(where, builder.as_data_source(name, decoders=_DECODERS))
    except NotImplementedError as error:
        if not _has_tensorflow():
            raise UserError(
                f"--dataset={dataset} lies in {builder.data_dir} as {builder.info.file_format.value}, and only TensorFlow "
                f"reads that: {_INSTALL}"
            ) from error
        return _TfRecords(where, builder, name)


def _check_features(dataset: str, features: Any) -> None:
    known = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    image, label = known.get("image"), known.get("label")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise UserError(f"--dataset={dataset} needs a uint8 `image` feature, and has {_one_line(features)}")
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"--dataset={dataset} needs a `label` feature with classes, and has {_one_line(features)}")


def _builder(dataset: str, tfds_dir: str | None, others: Sequence[str] = (), **options: Any) -> Any:
    """The builder of a TFDS name. Raises UserError for an unknown one, and suggests similar names."""
    try:
        return tfds.builder(dataset, data_dir=tfds_dir, **options)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(dataset, [*others, *tfds.list_builders(with_community_datasets=False)], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(others)} and the names of TFDS"
        raise UserError(f"--dataset={dataset} is no data set: {hint}") from error
    except Exception as error:
        # TFDS cannot parse this name or load its files, and raises errors of many kinds.
        reason = str(error).partition("\n")[0]
        raise UserError(f"--dataset={dataset} cannot be opened: {reason}") from error


def _build(dataset: str, tfds_dir: str | None, builder: Any) -> Any:
    """Lets TFDS prepare the set as ArrayRecord, from its downloads or its manual folder."""
    folder = Path(builder.data_dir)
    if not _has_tensorflow():
        raise UserError(
            f"--dataset={dataset} was not found under {tfds_dir or folder}: name its folder with --tfds_dir, or install "
            f"TensorFlow once, so that TFDS can prepare it there: {_INSTALL}"
        )
    root = Path(tfds_dir) if tfds_dir else folder.parents[len(builder.info.full_name.split("/")) - 1]
    if builder.name == "imagenet2012":
        _check_imagenet_tars(root / "downloads" / "manual")
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        builder = _builder(dataset, tfds_dir, file_format="array_record")
        with contextlib.redirect_stdout(sys.stderr):  # TFDS prints to stdout, where only results belong
            builder.download_and_prepare()
    except UserError:
        raise
    except Exception as error:
        # A builder, its downloads and TensorFlow raise errors of many kinds.
        what = f"TFDS could not prepare it under {root} ({type(error).__name__}: {_one_line(error)})"
        raise UserError(f"--dataset={dataset}: {what}") from error
    return builder


def _check_imagenet_tars(manual: Path) -> None:
    """Raises UserError if a tar is missing or ends early. TFDS does without a tar and sees no cut between its files."""
    for name in _IMAGENET_TARS:
        path = manual / name
        if not path.is_file():
            raise UserError(
                f"--dataset=imagenet2012: {path} is missing: put {' and '.join(_IMAGENET_TARS)} from "
                "https://image-net.org/download-images there, or name the folder above downloads/manual with --tfds_dir"
            )
        with path.open("rb") as tar:
            size = tar.seek(0, 2)
            tar.seek(max(0, size - len(_TAR_END)))
            if tar.read() != _TAR_END or size % 512:
                raise UserError(f"--dataset=imagenet2012: {path} ends early, after {size:,} bytes: fetch it again")


def _has_tensorflow() -> bool:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # silences its messages at start-up
    try:
        import tensorflow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def _one_line(what: object) -> str:
    """The text on one line of at most 300 characters."""
    line = " ".join(str(what).split())
    return line if len(line) <= 300 else line[:297] + "..."
