"""Opens the set that `--dataset` names. A new source is a module of its own and a line here."""

import glob
import os

from alexnet_jax.data.example import Source
from alexnet_jax.data.folder import open_folder
from alexnet_jax.data.groceries import open_groceries
from alexnet_jax.data.tar import open_tar
from alexnet_jax.system.errors import UserError

_OTHERS = ("groceries", "folder:PATH", "parquet:GLOB", "tar:GLOB", "synthetic")


def open_source(dataset: str, tfds_dir: str | None, split_seed: int = 0) -> Source:
    """Opens 'groceries', 'folder:PATH', 'parquet:GLOB', 'tar:GLOB', or a TFDS set.

    TFDS prepares its set first if need be; that takes TensorFlow.

    Args:
        tfds_dir: where TFDS keeps its sets; None: TFDS's own folder.
        split_seed: of the random split of a folder or of files without splits.

    Raises:
        UserError: the set is unknown, missing or damaged, or an example lacks its one image and one label.
    """
    if dataset == "synthetic":
        raise UserError("--dataset=synthetic is made in memory and needs no preparation")
    if dataset == "groceries":
        return open_groceries()
    if dataset.startswith("folder:"):
        return open_folder(dataset, split_seed)
    if dataset.startswith("tar:"):
        return open_tar(dataset, split_seed)
    # These two here, because importing PyArrow and TFDS takes a second.
    if dataset.startswith("parquet:"):
        from alexnet_jax.data.parquet import open_parquet

        return open_parquet(dataset, split_seed)
    from alexnet_jax.data.tfds_sets import open_tfds

    return open_tfds(dataset, tfds_dir, others=_OTHERS)


def is_on_disk(dataset: str) -> bool:
    """Whether this is a set of the user's own files, and some of them are there."""
    kind, _, pattern = dataset.partition(":")
    pattern = os.path.expanduser(pattern)
    if kind == "folder":
        return os.path.isdir(pattern)
    return kind in ("parquet", "tar") and (os.path.isfile(pattern) or bool(glob.glob(pattern, recursive=True)))
