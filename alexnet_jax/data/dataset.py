"""The data set that a config names, ready to train on or to evaluate."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from alexnet_jax.augment import colour_components
from alexnet_jax.config import Config
from alexnet_jax.data.prepare import prepare
from alexnet_jax.data.remote import local_store
from alexnet_jax.data.splits import Subset, fold_split, whole
from alexnet_jax.data.store import Store, open_store, synthetic_store
from alexnet_jax.system.errors import UserError

MeanImage = Float32[np.ndarray, "size size 3"]


@dataclass(frozen=True)
class Dataset:
    """Splits by name ('train', 'validation', 'test'), none empty; class names; and statistics of the training pixels."""

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Subset]
    mean: MeanImage
    colours: Float32[np.ndarray, "3 3"]  # `colour_components` of the run's form of colour noise
    fingerprint: str

    def split(self, name: str) -> Subset:
        """Raises UserError naming --split if the set has no such split."""
        if name not in self.splits:
            raise UserError(
                f"--split={name}: {self.name} has {', '.join(self.splits)}: choose one of them, prepare a set with a {name} "
                "split, or train with --fold=0/5 to hold out a fifth for validation"
            )
        return self.splits[name]


def open_dataset(config: Config, own_mean: MeanImage | None = None) -> Dataset:
    """Opens the prepared set of a config; the embedded photographs are prepared on first use.

    `own_mean` is what --mean=own subtracts. Raises UserError if the set is missing, not prepared or damaged, or if a fold
    leaves no images to train on or to validate with.
    """
    store = _open(config)
    if "train" not in store.splits or not len(store.splits["train"]):
        raise UserError(f"--dataset={config.dataset} has no train split: it has {', '.join(store.splits) or 'none'}")
    splits = {name: whole(split) for name, split in store.splits.items() if len(split)}
    if config.fold is not None:
        pooled = whole(*(store.splits[name] for name in ("train", "validation") if name in store.splits))
        splits["train"], splits["validation"] = fold_split(pooled, config.fold.index, config.fold.count)
    return Dataset(
        name=config.dataset,
        classes=store.classes,
        splits=splits,
        mean=_mean(config, store, own_mean),
        colours=colour_components(config.colour_noise, store.colour_std, store.colour_vectors),
        fingerprint=store.fingerprint,
    )


def _mean(config: Config, store: Store, own: MeanImage | None) -> MeanImage:
    if config.mean == "image":
        return np.ascontiguousarray(store.mean_image)
    if config.mean == "channel":
        return np.ascontiguousarray(np.broadcast_to(store.channel_mean, store.mean_image.shape))
    if own is None:
        raise UserError("--mean=own: neither --workdir nor --init has a mean.npy: choose --mean=image or --mean=channel")
    return own


def _open(config: Config) -> Store:
    if config.dataset == "synthetic":
        return synthetic_store(config.image_size)
    path = local_store(config.data_dir, config.dataset, config.image_size, config.resize)
    if not os.path.exists(path) and config.dataset == "groceries":  # unlike Path.exists, False for a name that is too long
        prepare(config.dataset, config.data_dir, image_size=config.image_size, resize=config.resize)
    if not os.path.exists(path):
        raise UserError(
            f"--dataset={config.dataset} is not prepared at {config.image_size} px under --data_dir={config.data_dir}: run "
            f"python -m alexnet_jax.prepare --dataset={config.dataset} --data_dir={config.data_dir} "
            f"--image_size={config.image_size}" + (f" --resize={config.resize}" if config.resize != "centre" else "")
        )
    store = open_store(path)
    if store.name != config.dataset:
        raise UserError(f"--dataset={config.dataset}: {path} holds {store.name}: name another --data_dir")
    return store
