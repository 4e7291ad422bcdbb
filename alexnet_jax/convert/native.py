"""This package's own file format: safetensors with parameters, mean image, config and class names."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float32

from alexnet_jax.config import Config, as_dict, from_dict
from alexnet_jax.convert import pytorch
from alexnet_jax.inference.predictor import Trained
from alexnet_jax.network import Params
from alexnet_jax.run.workdir import read_config
from alexnet_jax.system.errors import UserError

FORMAT = "alexnet_jax 1"  # in the file's metadata


@dataclass(frozen=True)
class Imported:
    """The contents of a run's folder."""

    config: Config
    classes: tuple[str, ...]
    mean: Float32[np.ndarray, "size size 3"]
    params: Params


def read_native(path: Path) -> Imported:
    """A network that `write_native` wrote. Raises UserError if it is not one, or the mean is of another size."""
    arrays, metadata = pytorch.read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not this package's own: for a state dict say: convert torchvision {path}")
    try:
        stored, classes, mean = json.loads(metadata["config"]), json.loads(metadata["classes"]), arrays.pop("mean")
    except (KeyError, ValueError, RecursionError) as error:
        raise UserError(f"{path} lacks its config, classes or mean: {error!r}") from error
    if not isinstance(stored, dict) or not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: its config is no dictionary, or its classes are no list of names")
    config = replace(from_dict(stored), mean="own", init="", init_layers=(), init_velocity=False)
    params: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        layer, _, part = name.partition(".")
        params.setdefault(layer, {})[part] = array
    size = config.image_size
    if mean.shape != (size, size, 3) or mean.dtype != np.float32 or not np.isfinite(mean).all():
        raise UserError(f"{path}: the mean is no finite float32 image of {size} px: it is {mean.dtype} {mean.shape}")
    return Imported(config, tuple(classes), mean, params)


def write_native(trained: Trained, path: Path) -> None:
    """Writes a network with all that a run needs. Raises UserError if safetensors is not installed."""
    config = replace(read_config(trained.config.workdir), workdir="", data_dir=Config.data_dir)
    arrays = {name: np.asarray(x) for name, x in flatten_dict(trained.params, sep=".").items()}
    metadata = {"config": json.dumps(as_dict(config)), "format": FORMAT, "classes": json.dumps(trained.classes)}
    pytorch.write_safetensors(path, arrays | {"mean": trained.mean}, metadata)
