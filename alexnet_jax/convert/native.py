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
        config = replace(from_dict(json.loads(metadata["config"])), mean="own", init="", init_layers=())
        classes = tuple(str(name) for name in json.loads(metadata["classes"]))
        mean = arrays.pop("mean")
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} lacks its config, classes or mean: {error!r}") from error
    params: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        layer, _, part = name.partition(".")
        params.setdefault(layer, {})[part] = array
    if mean.shape != (config.image_size, config.image_size, 3):
        raise UserError(f"{path}: the mean image is {mean.shape} but --image_size={config.image_size}")
    return Imported(config, classes, mean, params)


def write_native(trained: Trained, path: Path) -> None:
    """Writes a network with all that a run needs. Raises UserError if safetensors is not installed."""
    config = replace(read_config(trained.config.workdir), workdir="", data_dir=Config.data_dir)
    arrays = {name: np.asarray(x) for name, x in flatten_dict(trained.params, sep=".").items()}
    metadata = {"config": json.dumps(as_dict(config)), "format": FORMAT, "classes": json.dumps(trained.classes)}
    pytorch.write_safetensors(path, arrays | {"mean": trained.mean}, metadata)
