"""Opens the set that `--dataset` names. A new source is a module of its own and a line here."""

from alexnet_jax.data.example import Source
from alexnet_jax.data.folder import open_folder
from alexnet_jax.data.groceries import open_groceries
from alexnet_jax.system.errors import UserError


def open_source(dataset: str, tfds_dir: str | None, split_seed: int = 0) -> Source:
    """Opens 'groceries', 'folder:PATH', or a TFDS set. TFDS prepares its set first if need be; that takes TensorFlow.

    Args:
        tfds_dir: where TFDS keeps its sets; None: TFDS's own folder.
        split_seed: of the random split of a folder without splits.

    Raises:
        UserError: the set is unknown, missing or damaged, or an example lacks its one image and one label.
    """
    if dataset == "synthetic":
        raise UserError("--dataset=synthetic is made in memory and needs no preparation")
    if dataset == "groceries":
        return open_groceries()
    if dataset.startswith("folder:"):
        return open_folder(dataset, split_seed)
    from alexnet_jax.data.tfds_sets import open_tfds  # here, because importing TFDS takes a second

    return open_tfds(dataset, tfds_dir, others=("groceries", "folder:PATH", "synthetic"))
